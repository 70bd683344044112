"""Asks a model, trained or exported: `predict` has texts answered by a classifier, `generate` has them continued."""

import contextlib
import dataclasses
import io
import itertools
import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aigc_tf import storage
from aigc_tf.config import DataConfig, GenerationConfig, InputError, RunError
from aigc_tf.data import sources
from aigc_tf.data.tokenizers import load_tokenizer
from aigc_tf.runs import CONFIG, config_of_run, door_of, load_model, read_facts
from aigc_tf.serving.continuations import Continuation, clean
from aigc_tf.serving.exported_generator import ExportedGenerator
from aigc_tf.serving.predictor import Predictor
from aigc_tf.serving.text_generator import TextGenerator


def predict(
    model: str,
    *,
    texts: list[str],
    texts_b: list[str] | None = None,
    input_path: str = "",
    output_path: str = "",
    checkpoint: str = "best",
) -> None:
    """Answers texts with a run or an exported model: one JSON object a line, in the order of the texts."""
    if bool(texts) == bool(input_path):
        raise InputError("Give the texts with --text (once for each), or a file with --input, and not both.")
    if input_path and output_path and os.path.exists(output_path) and os.path.samefile(input_path, output_path):
        raise InputError(f"--output {output_path} is the file of the texts; give another name.")
    answer, columns = _answerer(model, checkpoint)
    is_pair = bool(columns[1])
    if texts and is_pair != bool(texts_b):
        wanted = "pairs: give one --text_b for each --text" if is_pair else "single texts: leave --text_b out"
        raise InputError(f"The model {model} takes {wanted}.")
    rows, inputs = itertools.tee(
        _read_texts(input_path, columns) if input_path else iter(_pair_up(texts, texts_b or []))
    )
    started, count = time.perf_counter(), 0
    with _open_output(output_path) as write:
        for (text, text_b), answered in zip(inputs, answer(rows), strict=True):
            row = {"text": text} | ({"text_b": text_b} if text_b else {}) | answered
            write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if output_path:
        rate = count / (time.perf_counter() - started)
        print(f"{count} answers in {output_path}, {rate:.0f} texts per second.", file=sys.stderr)


def _pair_up(texts: list[str], texts_b: list[str]) -> list[tuple[str, str]]:
    if texts_b and len(texts_b) != len(texts):
        raise InputError(
            f"There are {len(texts)} --text and {len(texts_b)} --text_b; give one --text_b for each --text."
        )
    return list(zip(texts, texts_b or [""] * len(texts), strict=True))


def _read_texts(path: str, columns: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Reads texts to answer: the lines of a plain text, or the text columns of a table with a header."""
    text_column, text_b_column = columns
    data = DataConfig(
        sources=(path,), text_column=text_column, text_b_column=text_b_column, label_column="", max_bad_share=0.0
    )
    files = sources.find_sources(data)
    if text_b_column and any(file.format == "text" for file in files):
        raise InputError(
            f"{path} has single texts, but the model takes pairs; give a table with the columns {text_column!r} "
            f"and {text_b_column!r}."
        )
    for record in sources.read_records(files, data, []):
        yield record.text, record.text_b


Answer = Callable[[Iterator[tuple[str, str]]], Iterator[dict[str, Any]]]


def _answerer(model: str, checkpoint: str) -> tuple[Answer, tuple[str, str]]:
    """Returns what answers texts, a run or an exported model, and the columns it reads of a table."""
    if not storage.exists(storage.join(model, CONFIG)):
        exported = Predictor(model)

        def ask_export(rows: Iterator[tuple[str, str]]) -> Iterator[dict[str, Any]]:
            first, second = itertools.tee(rows)
            texts_b = (text_b for _, text_b in second) if exported.is_pair else None
            return exported.predict((text for text, _ in first), texts_b)

        return ask_export, ("text", "text_b" if exported.is_pair else "")
    config = config_of_run(model, None)
    answer = door_of(config).answer
    if answer is None:
        raise InputError(f"{model} is a run of task {config.task!r}; scripts/generate.py asks it, with --prompt.")
    loaded, _ = load_model(model, config, checkpoint=checkpoint, dtype="float32")
    facts = read_facts(model)
    columns = (config.data.text_column, config.data.text_b_column)
    return lambda rows: answer(loaded, config, facts, rows), columns


def generate(
    model: str,
    *,
    prompts: list[str],
    settings: dict[str, Any],
    input_path: str = "",
    output_path: str = "",
    checkpoint: str = "best",
) -> None:
    """Continues texts with a run or an exported model.

    Prompts of a file, or with an output file, give one JSON object a line. Others are shown as text, a single one
    while it is generated; without any, prompts are lines read from standard input.

    Args:
        model: Run folder, or folder of an exported model.
        prompts: Texts to continue.
        settings: Fields of GenerationConfig that differ from those of the run or the export.
        input_path: File of prompts.
        output_path: JSONL file of the answers.
        checkpoint: Of a run, `best` or `last`.
    """
    if input_path and output_path and os.path.exists(output_path) and os.path.samefile(input_path, output_path):
        raise InputError(f"--output {output_path} is the file of the prompts; give another name.")
    continuer, defaults = _continuer(model, checkpoint)
    chosen = dataclasses.replace(defaults, **settings)
    chosen.stop = tuple(clean(text) for text in chosen.stop)
    prompts = [clean(prompt) for prompt in prompts]
    if input_path or output_path:
        texts = prompts or [text for text, _ in _read_texts(input_path, ("text", ""))]
        with _open_output(output_path) as write:
            for prompt, answer in _continue_all(continuer, texts, chosen):
                write(json.dumps({"prompt": prompt, **dataclasses.asdict(answer)}, ensure_ascii=False) + "\n")
        if output_path:
            print(f"Continuations: {output_path}", file=sys.stderr)
    elif len(prompts) > 1:
        for prompt, answer in _continue_all(continuer, prompts, chosen):
            print(f"{prompt}{answer.text}\n{'-' * 20}", flush=True)
    elif prompts:
        _stream(continuer, prompts[0], chosen)
    else:
        for number, prompt in enumerate(_typed_prompts()):
            _stream(continuer, prompt, dataclasses.replace(chosen, seed=chosen.seed + number))


def _continuer(model: str, checkpoint: str) -> tuple[TextGenerator | ExportedGenerator, GenerationConfig]:
    """Returns what continues texts, and how it does where nothing else is asked for."""
    if not storage.exists(storage.join(model, CONFIG)):
        exported = ExportedGenerator(model)
        return exported, exported.defaults
    config = config_of_run(model, None)
    if config.task != "generate":
        raise InputError(f"{model} is a run of task {config.task!r}; scripts/predict.py asks it, with --text.")
    loaded, _ = load_model(model, config, checkpoint=checkpoint, dtype="float32")
    tokenizer = load_tokenizer(read_facts(model).tokenizer_folder)
    return TextGenerator(loaded, tokenizer, max_length=config.data.max_length), config.generation


def _continue_all(
    continuer: TextGenerator | ExportedGenerator, prompts: list[str], settings: GenerationConfig
) -> Iterator[tuple[str, Continuation]]:
    """Yields prompts and their continuations, then says how fast they came, the building of graphs left out."""
    for _ in continuer.generate([""], settings=dataclasses.replace(settings, max_new_tokens=1)):
        pass
    num_tokens, started = 0, time.perf_counter()
    for prompt, answer in zip(prompts, continuer.generate(prompts, settings=settings), strict=True):
        num_tokens += len(answer.token_ids)
        _say_cut(answer.prompt_cut)
        yield prompt, answer
    _print_speed(len(prompts), num_tokens, time.perf_counter() - started)


def _stream(continuer: TextGenerator | ExportedGenerator, prompt: str, settings: GenerationConfig) -> None:
    """Shows a prompt and its continuation, as it comes where somebody looks on."""
    if isinstance(continuer, ExportedGenerator) or not sys.stdout.isatty():
        for _, answer in _continue_all(continuer, [prompt], settings):
            print(prompt + answer.text, flush=True)
        return
    for _ in continuer.stream("", settings=dataclasses.replace(settings, max_new_tokens=8)):
        pass  # builds the graphs
    _say_cut(continuer.count_cut(prompt))
    print(prompt, end="", flush=True)
    text, started = "", time.perf_counter()
    for piece in continuer.stream(prompt, settings=settings):
        text += piece
        print(piece, end="", flush=True)
    print(flush=True)
    _print_speed(1, continuer.count_tokens(text), time.perf_counter() - started)


def _say_cut(num_tokens: int) -> None:
    if num_tokens:
        print(f"Too long a prompt: its first {num_tokens} tokens were left out.", file=sys.stderr)


def _print_speed(num_prompts: int, num_tokens: int, seconds: float) -> None:
    plural = "" if num_prompts == 1 else "s"
    speed = f"{num_tokens / seconds:,.0f} tokens per second" if seconds and num_tokens else "nothing to time"
    print(f"{num_prompts} continuation{plural} of {num_tokens} tokens in {seconds:.2f} s, {speed}.", file=sys.stderr)


def _typed_prompts() -> Iterator[str]:
    """Yields the lines of standard input, a backslash and n in them as a line's end; asks for them on a terminal."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("Type a beginning and Enter; \\n stands for a new line. Ctrl-D ends.", file=sys.stderr)
    while True:
        if is_terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.removesuffix("\n").replace("\\n", "\n")


@contextlib.contextmanager
def _open_output(path: str) -> Iterator[Callable[[str], Any]]:
    """Yields the function that writes a line: to the terminal, or to a file that is whole or not there."""
    if not path:
        yield sys.stdout.write
        return
    partial = Path(f"{path}.partial-{uuid.uuid4().hex[:8]}")
    try:
        file = open(partial, "w", encoding="utf-8")  # noqa: SIM115 - what opening it says is the user's to mend
    except OSError as error:
        raise InputError(f"--output {path} cannot be written: {error.strerror}.") from error

    def write(line: str) -> None:
        try:
            file.write(line)
        except OSError as error:
            raise RunError(f"Cannot write {path}: {error.strerror}.") from error

    try:
        with file:
            yield write
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
