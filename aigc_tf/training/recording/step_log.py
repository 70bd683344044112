"""A file of JSON lines, one a step, that a resumed run cuts back to where it goes on from."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, BinaryIO

from aigc_tf import storage
from aigc_tf.errors import InputError, RunError


class StepLog:
    """Appends lines `{"step": ..., ...}`. A context manager; one process a run writes.

    Args:
        path: The file, local or an object store.
        resume_step: Lines of later steps, and an unfinished last one, are removed first.
    Raises:
        InputError: If a line before the last is broken.
        RunError: If the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, resume_step: int):
        self._path = path
        content = storage.read_bytes(path) if storage.exists(path) else b""
        lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
        try:
            kept = b"".join(line for line in lines if json.loads(line)["step"] <= resume_step)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{os.fspath(path)} is broken ({error}); move the file away and run again.") from error
        if kept != content:
            storage.write_bytes(path, kept)
        # Object stores cannot append: there the lines stay here, and flush() uploads all of them.
        self._lines: list[bytes] | None = [kept] if storage.is_remote(path) else None
        self._file: BinaryIO | None = None
        if self._lines is None:
            with self._one_sentence():
                self._file = open(path, "ab")  # noqa: SIM115  open as long as the run; close() closes it

    def __enter__(self) -> "StepLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(RunError) if error is not None else contextlib.nullcontext():
            self.close()

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends the line of a step."""
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        if self._lines is not None:
            self._lines.append(line)
        elif self._file is not None:
            with self._one_sentence():
                self._file.write(line)

    def flush(self) -> None:
        """Puts all lines on disk.

        Raises:
            RunError: If the disk is full.
        """
        if self._lines is not None:
            storage.write_bytes(self._path, b"".join(self._lines))
        elif self._file is not None:
            with self._one_sentence():
                self._file.flush()
                os.fsync(self._file.fileno())

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"Cannot write {os.fspath(self._path)}: {error.strerror}. Mend that and run the same command again."
            ) from error

    def close(self) -> None:
        """Flushes and closes the file."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None
