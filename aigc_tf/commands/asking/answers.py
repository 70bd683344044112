"""Reads questions and writes answers, to the terminal or to a file that is complete or absent."""

import contextlib
import io
import json
import os
import stat
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from aigc_tf.config import DataConfig
from aigc_tf.data.sources import sources
from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.local.answerer import Answer, Question

_Row = TypeVar("_Row")


def check_no_overwriting(input_path: str, output_path: str) -> None:
    """Checks that the answers do not replace the questions.

    Raises:
        InputError: If both are the same file.
    """
    if input_path and output_path and os.path.exists(output_path) and os.path.samefile(input_path, output_path):
        raise InputError(f"--output {output_path} is the file of the questions; give another name.")


@contextlib.contextmanager
def open_output(path: str) -> Iterator[Callable[[str], Any]]:
    """Yields the function that writes a line: to the terminal, or to a file that gets its name when it is complete.

    If the user interrupts, the lines so far stay in a file beside it, which is named. A path that is not a plain file,
    such as a pipe or /dev/null, is written to directly.

    Args:
        path: Path of the file; empty: the terminal. A link is followed.
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
        file = open(written, "w", encoding="utf-8")  # noqa: SIM115 - closed below, since closing may fail

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
            with contextlib.suppress(OSError):  # unwritten content cannot be flushed either
                file.close()
            os.unlink(written)


@contextlib.contextmanager
def _refused(path: str, sentence: str, kind: type[Exception]) -> Iterator[None]:
    """Turns a refused write into one sentence; a reader that stops reading is not an error."""
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
    """Yields the rows, and shows their number on a terminal; with a total also the time left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from rows
        return
    columns = [TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(rows, total=total)


def read_questions(path: str, inputs: Sequence[str], columns: Sequence[str]) -> Iterator[Question]:
    """Reads questions: the lines of a plain text, or columns of a table with a header.

    Args:
        path: Path of the file.
        inputs: Names of the values of a question.
        columns: The column of each.
    Raises:
        InputError: If the file lacks a column, or is plain text although a question has several values.
    """
    data = DataConfig(sources=(path,), max_bad_share=0.0)
    files = sources.find_sources(data)
    if len(columns) > 1 and any(file.format == "text" for file in files):
        raise InputError(
            f"{path} has one value a line, but the model takes {len(columns)}; give a table with the columns "
            f"{' and '.join(map(repr, columns))}."
        )
    read = [sources.SourceColumn(name, is_text=True, field="the model") for name in columns]
    for record in sources.read_records(files, data, [], columns=read):
        yield dict(zip(inputs, map(str, record.cells), strict=True))


def piped_lines(name: str) -> list[str]:
    """Returns the lines of standard input, values of the input `name`; a backslash and n become a line break."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    lines = [line.removesuffix("\n").replace("\\n", "\n") for line in sys.stdin or ()]
    if not lines:
        raise InputError(f"There is no {name}, and nothing on standard input; give --{name} or --input.")
    return lines


def json_line(question: Question, answer: Answer, model: str) -> str:
    """Returns a question and its answer as a line of JSON.

    Raises:
        RunError: If a number of the answer is not finite.
    """
    try:
        return json.dumps({**question, **answer}, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        asked = next(iter(question.values()))
        raise RunError(
            f"The weights of {model} give no finite answer to {asked[:40]!r}; ask another checkpoint or run."
        ) from error


def print_speed(num_prompts: int, num_tokens: int, seconds: float) -> None:
    speed = f"{num_tokens / seconds:,.0f} tokens per second" if seconds and num_tokens else "nothing to time"
    print(
        f"{count(num_prompts, 'continuation')} of {count(num_tokens, 'token')} in {seconds:.2f} s, {speed}.",
        file=sys.stderr,
    )


def print_continuation(prompt: str, text: str, *, is_single: bool) -> None:
    """Prints a prompt with its continuation; a line separates several."""
    print(f"{prompt}{text}" + ("" if is_single else f"\n{'-' * 20}"), flush=True)
