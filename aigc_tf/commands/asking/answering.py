"""Asks any answerer questions: a live model, an export or a server.

Questions are values of flags or rows of a file; for continuations also lines of standard input, or a conversation.
Answers are one JSON object per line; continuations without an output file are printed as text.
"""

import contextlib
import io
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from aigc_tf.commands.asking.answers import (
    count,
    json_line,
    open_output,
    piped_lines,
    print_continuation,
    print_speed,
    read_questions,
    with_progress,
)
from aigc_tf.errors import InputError
from aigc_tf.serving.local.answerer import Answer, Answerer, Question, Settings, check_fields

with contextlib.suppress(ImportError):  # some builds of Python lack it
    import readline  # noqa: F401  line editing and a history for `input`

Stream = Callable[[str, Settings], Iterator[Any]]


def answer_questions(
    answerer: Answerer,
    given: Mapping[str, Sequence[str]],
    *,
    settings: Settings,
    input_path: str = "",
    output_path: str = "",
) -> None:
    """Asks questions, and prints or writes the answers in their order.

    Args:
        answerer: The model to ask.
        given: The values of each input in all questions, by its name.
        settings: Fields of GenerationConfig that differ from the model's own.
        input_path: File of questions, instead of `given`.
        output_path: JSONL file of the answers; empty: the terminal.
    Raises:
        InputError: If the questions or settings do not fit the model.
        RunError: If an answer has a number that is not finite, or cannot be written.
    """
    if settings and not answerer.takes_settings:
        raise InputError(f"{answerer.name} takes no --{next(iter(settings))}; leave it out.")
    continuing = answerer.continuing
    if not given and not input_path and continuing and continuing.stream and sys.stdin and sys.stdin.isatty():
        _converse(answerer, continuing.stream, settings)
        return
    rows = _questions(answerer, given, input_path)
    if continuing or not input_path:  # continuations take all questions at once; other files may be endless
        rows = list(rows)
    total = len(rows) if isinstance(rows, list) else None
    if input_path or output_path or not continuing:
        _write_rows(answerer, rows, settings, output_path=output_path, total=total)
    elif continuing.stream and total == 1 and sys.stdout.isatty():
        _build_graphs(continuing.stream, settings)
        _stream(answerer, continuing.stream, next(iter(rows)), settings)
    else:
        for question, answer in _answered(answerer, rows, settings):
            print_continuation(question[answerer.inputs[0]], answer["text"], is_single=total == 1)


def _questions(answerer: Answerer, given: Mapping[str, Sequence[str]], input_path: str) -> Iterable[Question]:
    if input_path:
        return read_questions(input_path, answerer.inputs, answerer.columns)
    if given:
        check_fields(answerer, given)
        return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
    if answerer.continuing:
        name = answerer.inputs[0]
        return [{name: line} for line in piped_lines(name)]
    wanted = " and ".join(f"--{name}" for name in answerer.inputs)
    raise InputError(f"{answerer.name} takes {wanted}; give it, or a file with --input.")


def _write_rows(
    answerer: Answerer, rows: Iterable[Question], settings: Settings, *, output_path: str, total: int | None
) -> None:
    """Writes one JSON object per line: the question's first value, its other non-empty values, and the answer."""
    started, num_rows = time.perf_counter(), 0
    with open_output(output_path) as write:
        answered: Iterable[tuple[Question, Answer]] = _answered(answerer, rows, settings)
        if output_path:
            what = "Continuing" if answerer.continuing else "Answering"
            answered = with_progress(answered, total=total, what=what)
        for question, answer in answered:
            first, *others = answerer.inputs
            asked = {first: question[first]} | {name: question[name] for name in others if question[name]}
            write(json_line(asked, answer, answerer.name))
            num_rows += 1
    if output_path and answerer.continuing:
        print(f"Continuations: {output_path}", file=sys.stderr)
    elif output_path:
        rate = num_rows / (time.perf_counter() - started)
        what = answerer.inputs[0]
        print(f"{count(num_rows, 'answer')} in {output_path}, {rate:.0f} {what}s per second.", file=sys.stderr)


def _answered(answerer: Answerer, rows: Iterable[Question], settings: Settings) -> Iterator[tuple[Question, Answer]]:
    """Yields questions and answers; after continuations prints what did not fit, and the speed."""
    asked, kept = itertools.tee(rows)
    continuing = answerer.continuing
    if continuing is None:
        yield from zip(kept, answerer.answer(asked, settings), strict=True)
        return
    continuing.warm_up(settings)  # so that the speed does not include building graphs
    told, started = [], time.perf_counter()
    for question, answer in zip(kept, answerer.answer(asked, settings), strict=True):
        told.append({name: answer[name] for name in ("finish_reason", "prompt_cut")})
        told[-1]["num_tokens"] = len(answer["token_ids"])
        yield question, answer
    _say_at_the_end(answerer, told, settings, time.perf_counter() - started)


def _say_at_the_end(answerer: Answerer, told: Sequence[Answer], settings: Settings, seconds: float) -> None:
    for remark in answerer.continuing.remarks(told, settings) if answerer.continuing else ():
        print(remark, file=sys.stderr)
    print_speed(len(told), sum(one["num_tokens"] for one in told), seconds)


def _build_graphs(stream: Stream, settings: Settings) -> None:
    """Traces now what the first call would trace."""
    for _ in stream("", {**settings, "max_new_tokens": 8}):
        pass


def _converse(answerer: Answerer, stream: Stream, settings: Settings) -> None:
    """Continues typed text until the end of the input. Ctrl-C ends a continuation."""
    _build_graphs(stream, settings)
    name, seed = answerer.inputs[0], settings.get("seed", answerer.continuing.seed if answerer.continuing else 0)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    print("Type a beginning and Enter; \\n stands for a new line. Ctrl-C stops a text, Ctrl-D ends.", file=sys.stderr)
    for number in itertools.count():
        try:
            prompt = input("> ").replace("\\n", "\n")
        except EOFError:
            print(file=sys.stderr)
            return
        try:
            _stream(answerer, stream, {name: prompt}, {**settings, "seed": seed + number})
        except KeyboardInterrupt:
            print(flush=True)


def _stream(answerer: Answerer, stream: Stream, question: Question, settings: Settings) -> None:
    """Shows a prompt and its continuation while it is generated."""
    prompt = question[answerer.inputs[0]]
    print(prompt, end="", flush=True)
    started, last = time.perf_counter(), None
    for last in stream(prompt, settings):
        print(last.text, end="", flush=True)
    print(flush=True)
    if last is not None:
        told = {"num_tokens": last.num_tokens, "finish_reason": last.finish_reason, "prompt_cut": last.prompt_cut}
        _say_at_the_end(answerer, [told], settings, time.perf_counter() - started)
