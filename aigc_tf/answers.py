"""Where answers go: the terminal, or a file that is whole or not there. And how far it is."""

import contextlib
import os
import stat
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from aigc_tf.config import InputError, RunError

_Row = TypeVar("_Row")


@contextlib.contextmanager
def open_output(path: str) -> Iterator[Callable[[str], Any]]:
    """Yields the function that writes a line: to the terminal, or to a file that gets its name when it is complete.

    Where the user interrupts, the lines so far stay in a file beside it, which is named. What is no plain file, such as
    a pipe or /dev/null, is written to as it is.

    Args:
        path: Of the file; empty: the terminal. A link is followed.
    Raises:
        InputError: If it cannot be opened.
        RunError: If it cannot be written.
    """
    if not path:
        yield sys.stdout.write
        return
    final = os.path.realpath(path)
    is_plain = not os.path.exists(final) or stat.S_ISREG(os.stat(final).st_mode)
    written = f"{final}.partial-{uuid.uuid4().hex[:8]}" if is_plain else final
    with _refused(path, "--output {} cannot be written", InputError):
        file = open(written, "w", encoding="utf-8")  # noqa: SIM115 - closed below, where that may fail

    def write(line: str) -> None:
        with _refused(path, "Cannot write {}", RunError):
            file.write(line)

    is_kept = not is_plain
    try:
        yield write
        with _refused(path, "Cannot write {}", RunError):
            file.close()
            if is_plain:
                os.replace(written, final)
        is_kept = True
    except KeyboardInterrupt:
        file.close()
        if is_plain and os.path.getsize(written):
            is_kept = True
            print(f"\nThe answers so far are in {written}.", file=sys.stderr)
        raise
    finally:
        if not is_kept:
            with contextlib.suppress(OSError):  # what could not be written cannot be flushed either
                file.close()
            os.unlink(written)


@contextlib.contextmanager
def _refused(path: str, sentence: str, kind: type[Exception]) -> Iterator[None]:
    """Says in one sentence that the operating system refuses to write; a reader that has enough is no refusal."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise kind(f"{sentence.format(path)}: {error.strerror or error}.") from error


def count(number: int, what: str) -> str:
    """Returns `1 token`, `2 tokens`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def with_progress(rows: Iterable[_Row], *, total: int | None, what: str) -> Iterator[_Row]:
    """Yields the rows, and shows on a terminal how many there were; with a total also the time left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from rows
        return
    columns = [TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(rows, total=total)
