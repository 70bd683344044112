"""A file of JSON lines, one per step, that a resumed run cuts back to the step it resumes from."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO

from aigc_tf import storage
from aigc_tf.errors import InputError, RunError


class StepLog:
    """Appends lines `{"step": ..., ...}`. A context manager; one process a run writes.

    Args:
        path: The file, local or an object store.
        keep: Whether a line that is there stays, called with each in turn. An unfinished last line, which is what a
            killed process leaves, never stays.
    Raises:
        InputError: If a line before the last is broken; nothing is changed then.
        RunError: If the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, keep: Callable[[dict[str, Any]], bool]):
        self._path = path
        content = storage.read_bytes(path) if storage.exists(path) else b""
        try:
            kept = b"".join(line for line, row in parse_lines(content) if keep(row))
        except ValueError as error:
            raise InputError(
                f"{os.fspath(path)} is broken: {error}; repair it, or move the file away and run again."
            ) from error
        if kept != content:
            storage.write_bytes(path, kept)
        # Object stores cannot append: there the lines stay here, and flush() uploads all of them.
        self._lines: list[bytes] | None = [kept] if storage.is_remote(path) else None
        self._unwritten = False
        self._file: BinaryIO | None = None
        if self._lines is None:
            with writing(path):
                os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
                self._file = open(path, "ab")  # noqa: SIM115  open as long as the run; close() closes it

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The error that ended the run is the one to report, not that its last lines could not be written either.
        with contextlib.suppress(RunError) if error is not None else contextlib.nullcontext():
            self.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a line.

        Raises:
            RunError: If the disk is full.
            ValueError: If a number is NaN or infinite, which JSON has not.
        """
        self._unwritten = True
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        if self._lines is not None:
            self._lines.append(line)
        elif self._file is not None:
            with writing(self._path):
                self._file.write(line)

    def hand_over(self) -> None:
        """Gives what is recorded to the operating system, where it outlives a kill of this process."""
        if self._file is not None:
            with writing(self._path):
                self._file.flush()

    def flush(self) -> None:
        """Puts all lines on disk.

        Raises:
            RunError: If the disk is full.
        """
        if self._lines is not None and self._unwritten:
            storage.write_bytes(self._path, b"".join(self._lines))
        elif self._file is not None:
            with writing(self._path):
                self._file.flush()
                os.fsync(self._file.fileno())
        self._unwritten = False

    def close(self) -> None:
        """Flushes and closes the file; closing twice does nothing."""
        try:
            self.flush()
        finally:
            file, self._file, self._lines = self._file, None, None
            if file is not None:
                with writing(self._path):
                    file.close()


def parse_lines(content: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yields each line and what it says; an unfinished last line is skipped.

    Raises:
        ValueError: If a line before the last is not an object with a step.
    """
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("no object with a step")
        except ValueError as error:  # also of JSON and of UTF-8
            if not line.endswith(b"\n"):
                return
            raise ValueError(f"line {number} ({error})") from error
        yield line.rstrip(b"\n") + b"\n", row


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns a refusal to write what a run records into one sentence, of TensorFlow's file layer too."""
    advice = "Mend that and run the same command again to go on."
    with storage.one_sentence(path, advice=advice), storage.remote_errors():
        yield
