"""Asks a model, trained or exported: `predict` has texts answered by a classifier, `generate` has them continued."""

import contextlib
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from aigc_tf import storage
from aigc_tf.commands.answers import (
    count,
    json_line,
    open_output,
    pair_up,
    piped_prompts,
    print_continuation,
    print_speed,
    read_texts,
    with_progress,
)
from aigc_tf.commands.runs import CONFIG, config_of_run, door_of, load_model, read_facts
from aigc_tf.config import ExperimentConfig, GenerationConfig
from aigc_tf.data.tokenizers.tokenizers import load_tokenizer
from aigc_tf.errors import InputError
from aigc_tf.serving.local.continuations import Continuation, Piece, clean
from aigc_tf.serving.local.exported_generator import ExportedGenerator
from aigc_tf.serving.local.predictor import Predictor
from aigc_tf.serving.local.text_generator import TextGenerator

with contextlib.suppress(ImportError):  # some builds of Python are without
    import readline  # noqa: F401  line editing and a history for `input`


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
    rows, inputs = itertools.tee(read_texts(input_path, columns) if input_path else iter(pair_up(texts, texts_b or [])))
    started, num_rows = time.perf_counter(), 0
    with open_output(output_path) as write:
        answered_rows: Iterator[Any] = zip(inputs, answer(rows), strict=True)
        if output_path:
            answered_rows = with_progress(answered_rows, total=len(texts) or None, what="Answering")
        for (text, text_b), answered in answered_rows:
            row = {"text": text} | ({"text_b": text_b} if text_b else {}) | answered
            write(json_line(row, model))
            num_rows += 1
    if output_path:
        rate = num_rows / (time.perf_counter() - started)
        print(f"{count(num_rows, 'answer')} in {output_path}, {rate:.0f} texts per second.", file=sys.stderr)


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
    while it is generated. Without any, prompts are the lines of standard input; on a terminal it is a conversation.

    Args:
        model: Run folder, or folder of an exported model.
        prompts: Texts to continue.
        settings: Fields of GenerationConfig that differ from those of the run or the export.
        input_path: File of prompts.
        output_path: JSONL file of the answers.
        checkpoint: Of a run, one of `known_flags.CHECKPOINTS`.
    """
    if input_path and output_path and os.path.exists(output_path) and os.path.samefile(input_path, output_path):
        raise InputError(f"--output {output_path} is the file of the prompts; give another name.")
    config = _config_of(model, settings, checkpoint)
    converses = not prompts and not input_path and sys.stdin is not None and sys.stdin.isatty()
    if input_path:
        column = config.data.text_column if config else "text"
        prompts = [text for text, _ in read_texts(input_path, (column, ""))]
    elif not prompts and not converses:
        prompts = piped_prompts()
    prompts = [clean(prompt) for prompt in prompts]
    continuer, defaults = _continuer(model, config, checkpoint)
    chosen = dataclasses.replace(defaults, **settings)
    chosen.stop = tuple(clean(text) for text in chosen.stop)
    if input_path or output_path:
        with open_output(output_path) as write:
            answers = _continue_all(continuer, prompts, chosen)
            if output_path:
                answers = with_progress(answers, total=len(prompts), what="Continuing")
            for prompt, answer in answers:
                write(json.dumps({"prompt": prompt, **dataclasses.asdict(answer)}, ensure_ascii=False) + "\n")
        if output_path:
            print(f"Continuations: {output_path}", file=sys.stderr)
    elif converses:
        _converse(continuer, chosen)
    elif len(prompts) == 1 and sys.stdout.isatty() and isinstance(continuer, TextGenerator):
        _build_graphs(continuer, chosen)
        _stream(continuer, prompts[0], chosen)
    else:
        for prompt, answer in _continue_all(continuer, prompts, chosen):
            print_continuation(prompt, answer.text, is_single=len(prompts) == 1)


LoadedGenerator = TextGenerator | ExportedGenerator


def _config_of(model: str, settings: dict[str, Any], checkpoint: str) -> ExperimentConfig | None:
    """Returns the config of a run of a generator, None for an exported model."""
    if storage.exists(storage.join(model, CONFIG)):
        config = config_of_run(model, None)
        if config.task != "generate":
            raise InputError(f"{model} is a run of task {config.task!r}; scripts/predict.py asks it, with --text.")
        return config
    if checkpoint != "best":
        raise InputError(f"--checkpoint={checkpoint} is for runs; the exported model {model} has one set of weights.")
    if settings.get("num_beams", 1) > 1:
        raise InputError(
            f"--num_beams is {settings['num_beams']}, but an exported model has no beam search; ask the run instead."
        )
    return None


def _continuer(
    model: str, config: ExperimentConfig | None, checkpoint: str
) -> tuple[LoadedGenerator, GenerationConfig]:
    """Returns what continues texts, and how it does where nothing else is asked for."""
    if sys.stderr.isatty():
        print(f"Loading {model} ...", file=sys.stderr)
    if config is None:
        exported = ExportedGenerator(model)
        return exported, exported.defaults
    loaded, _ = load_model(model, config, checkpoint=checkpoint, dtype="float32")
    tokenizer = load_tokenizer(read_facts(model).tokenizer_folder)
    return TextGenerator(loaded, tokenizer, max_length=config.data.max_length), config.generation


def _continue_all(
    continuer: LoadedGenerator, prompts: list[str], settings: GenerationConfig
) -> Iterator[tuple[str, Continuation]]:
    """Yields prompts and their continuations, then says how fast they came, the building of graphs left out."""
    for _ in continuer.generate([""], settings=dataclasses.replace(settings, max_new_tokens=1)):
        pass
    num_tokens, num_cut, num_full, started = 0, 0, 0, time.perf_counter()
    for prompt, answer in zip(prompts, continuer.generate(prompts, settings=settings), strict=True):
        num_tokens += len(answer.token_ids)
        num_cut += answer.prompt_cut > 0
        num_full += answer.finish_reason == "length" and len(answer.token_ids) < settings.max_new_tokens
        yield prompt, answer
    seconds = time.perf_counter() - started
    _say_what_did_not_fit(num_cut, num_full, continuer.max_length)
    print_speed(len(prompts), num_tokens, seconds)


def _build_graphs(continuer: LoadedGenerator, settings: GenerationConfig) -> None:
    """Has what is traced at the first call traced now."""
    for _ in continuer.stream("", settings=dataclasses.replace(settings, max_new_tokens=8)):
        pass


def _converse(continuer: LoadedGenerator, settings: GenerationConfig) -> None:
    """Continues what is typed until the end of the input. Ctrl-C ends a continuation."""
    _build_graphs(continuer, settings)
    print("Type a beginning and Enter; \\n stands for a new line. Ctrl-C stops a text, Ctrl-D ends.", file=sys.stderr)
    for number in itertools.count():
        try:
            prompt = clean(input("> ").replace("\\n", "\n"))
        except EOFError:
            print(file=sys.stderr)
            return
        try:
            _stream(continuer, prompt, dataclasses.replace(settings, seed=settings.seed + number))
        except KeyboardInterrupt:
            print(flush=True)


def _stream(continuer: LoadedGenerator, prompt: str, settings: GenerationConfig) -> None:
    """Shows a prompt and its continuation as it comes."""
    print(prompt, end="", flush=True)
    started, last = time.perf_counter(), Piece("", 0)
    for last in continuer.stream(prompt, settings=settings):
        print(last.text, end="", flush=True)
    print(flush=True)
    seconds = time.perf_counter() - started
    is_full = last.finish_reason == "length" and last.num_tokens < settings.max_new_tokens
    _say_what_did_not_fit(int(last.prompt_cut > 0), int(is_full), continuer.max_length)
    print_speed(1, last.num_tokens, seconds)


def _say_what_did_not_fit(num_cut: int, num_full: int, max_length: int) -> None:
    if num_cut:
        print(
            f"{count(num_cut, 'prompt')} too long for the context of {max_length} tokens: the end was kept.",
            file=sys.stderr,
        )
    if num_full:
        print(
            f"{count(num_full, 'continuation')} ended early: prompt and continuation filled the context of "
            f"{max_length} tokens.",
            file=sys.stderr,
        )
