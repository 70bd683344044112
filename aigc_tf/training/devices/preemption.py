"""SIGTERM, the request to end that schedulers send before they take a machine away."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether this process has received SIGTERM since; within it, SIGTERM ends nothing."""
    received: list[int] = []

    def note(signal_number: int, frame: Any) -> None:
        del frame
        received.append(signal_number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)
