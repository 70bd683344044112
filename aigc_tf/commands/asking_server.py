"""Asks a running server: texts are answered by a classifier, prompts continued by a generator. See `serving.client`."""

import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

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
from aigc_tf.config import GenerationConfig
from aigc_tf.errors import InputError
from aigc_tf.serving.clients.client import SERVING_DEFAULT, Client, Signature, connect

_MAX_ROWS = 8
"""Rows of one request: what a rendered deployment takes at most. A server that takes less says so."""
_TOO_MANY_ROWS = re.compile(r"larger than maximum input batch size (\d+)")

_OWN_SETTING = -1
"""Stands in a request for the setting that the model was exported with."""

_Row = TypeVar("_Row")
_Answered = TypeVar("_Answered")


def ask(
    server: str,
    model: str,
    *,
    version: int | None = None,
    label: str = "",
    timeout: float,
    texts: list[str],
    texts_b: list[str],
    prompts: list[str],
    settings: dict[str, Any],
    input_path: str = "",
    output_path: str = "",
) -> None:
    """Asks a model of a running server, and prints its answers as `asking.predict` and `asking.generate` do.

    Args:
        server: Address, see `serving.client.connect`.
        model: Its name on the server.
        version: Version to ask; None, and no label: the newest that is loaded.
        label: Label to ask.
        timeout: Seconds that a request may take.
        texts: For a classifier.
        texts_b: Second texts of pairs.
        prompts: For a generator.
        settings: Fields of GenerationConfig; those that are left out are the model's own, from its export. Without any
            all prompts have one seed.
        input_path: File of texts or prompts in the place of the lists.
        output_path: JSONL file of the answers.
    """
    if input_path and output_path and os.path.exists(output_path) and os.path.samefile(input_path, output_path):
        raise InputError(f"--output {output_path} is the file of the texts; give another name.")

    def notice(sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    with connect(server, model, version=version, label=label, timeout=timeout, notice=notice) as client:
        inputs = _text_signature(client).inputs
        if "prompt" in inputs:
            if texts:
                raise InputError(f"{client.address} is a generator; give --prompt in the place of --text.")
            if input_path:
                prompts = [text for text, _ in read_texts(input_path, ("text", ""))]
            elif not prompts:
                prompts = piped_prompts()
            _continue(client, prompts, settings, output_path=output_path, as_json=bool(input_path or output_path))
        else:
            if prompts or settings or not (texts or input_path):
                raise InputError(f"{client.address} is a classifier; give --text or --input, no --prompt, no settings.")
            is_pair = "text_b" in inputs
            if texts and is_pair != bool(texts_b):
                wanted = "pairs: give one --text_b for each --text" if is_pair else "single texts: leave --text_b out"
                raise InputError(f"{client.address} takes {wanted}.")
            rows = (
                read_texts(input_path, ("text", "text_b" if is_pair else "")) if input_path else pair_up(texts, texts_b)
            )
            _answer(client, rows, total=len(texts) or None, is_pair=is_pair, output_path=output_path)


def _text_signature(client: Client) -> Signature:
    signatures = client.signatures()
    signature = signatures.get(SERVING_DEFAULT)
    if signature is None or not {"prompt", "text"} & set(signature.inputs):
        takes = ", ".join(signature.inputs) if signature else "nothing by default"
        raise InputError(f"{client.address} takes {takes}, not text; ask what scripts/export.py has exported.")
    return signature


def _answer(
    client: Client, rows: Iterable[tuple[str, str]], *, total: int | None, is_pair: bool, output_path: str
) -> None:
    """Has texts answered: one JSON object a line, in the order of the texts."""
    row_of = _reading(client)

    def call(chunk: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        columns = {"text": [text for text, _ in chunk]}
        if is_pair:
            columns["text_b"] = [text_b for _, text_b in chunk]
        outputs = client.predict(columns)
        return [row_of(outputs, index) for index in range(len(chunk))]

    started, num_rows = time.perf_counter(), 0
    with open_output(output_path) as write:
        answers: Iterable[Any] = in_requests(rows, call)
        if output_path:
            answers = with_progress(answers, total=total, what="Answering")
        for (text, text_b), answer in answers:
            row = {"text": text} | ({"text_b": text_b} if text_b else {}) | answer
            write(json_line(row, str(client.address)))
            num_rows += 1
    if output_path:
        rate = num_rows / (time.perf_counter() - started)
        print(f"{count(num_rows, 'answer')} in {output_path}, {rate:.0f} texts per second.", file=sys.stderr)


def _reading(client: Client) -> Callable[[dict[str, list[Any]], int], dict[str, Any]]:
    """Returns what makes an answer of one row of the outputs, in the words of `serving.predictor.predict_texts`."""
    outputs = client.signatures()[SERVING_DEFAULT].outputs
    if "value" in outputs:
        return lambda outputs, index: {"value": outputs["value"][index]}
    # The names of all labels are in no output of a text but in those of the Classify API.
    [classes] = client.classify([{"text": ""}], signature="classify")
    names = [name for name, _ in classes]

    def read(outputs: dict[str, list[Any]], index: int) -> dict[str, Any]:
        probabilities = dict(zip(names, outputs["probabilities"][index], strict=True))
        if "predicted" in outputs:
            chosen = [name for name, one in zip(names, outputs["predicted"][index], strict=True) if one]
            return {"labels": chosen, "probabilities": probabilities}
        return {"label": outputs["label"][index], "probabilities": probabilities}

    return read


def _continue(client: Client, prompts: list[str], settings: dict[str, Any], *, output_path: str, as_json: bool) -> None:
    """Has prompts continued: one JSON object a line, or as text."""
    num_tokens, started = 0, time.perf_counter()
    with open_output(output_path) as write:
        answers: Iterable[Any] = in_requests(enumerate(prompts), lambda chunk: _continued(client, chunk, settings))
        if output_path:
            answers = with_progress(answers, total=len(prompts), what="Continuing")
        for (_, prompt), answer in answers:
            num_tokens += len(answer["token_ids"])
            if as_json:
                write(json.dumps({"prompt": prompt, **answer}, ensure_ascii=False) + "\n")
            else:
                print_continuation(prompt, answer["text"], is_single=len(prompts) == 1)
            _say_what_is_missing(answer)
    if output_path:
        print(f"Continuations: {output_path}", file=sys.stderr)
    print_speed(len(prompts), num_tokens, time.perf_counter() - started)


def _continued(client: Client, numbered: Sequence[tuple[int, str]], settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Continues prompts; with settings, prompt i draws by seed + i, as scripts/generate.py does."""
    inputs: dict[str, list[Any]] = {"prompt": [prompt for _, prompt in numbered]}
    signature = "defaults"
    if settings:
        signature = "generate_until" if settings.get("stop") else SERVING_DEFAULT
        for name, (_, shape) in _inputs_of(client, signature).items():
            if name == "seed":
                first = settings.get(name, GenerationConfig.seed)
                inputs[name] = [(first + number + 2**63) % 2**64 - 2**63 for number, _ in numbered]
            elif name == "stop":
                inputs[name] = [_row_of_stops(settings[name], places=shape[1])] * len(numbered)
            elif name != "prompt":
                inputs[name] = [settings.get(name, _OWN_SETTING)] * len(numbered)
    outputs = client.predict(inputs, signature=signature)
    return [
        {
            "text": outputs["text"][row],
            "token_ids": outputs["token_ids"][row][:num_tokens],
            "finish_reason": outputs["finish_reason"][row],
            "log_probability": outputs["log_probability"][row],
            "prompt_cut": outputs["prompt_cut"][row],
        }
        for row, num_tokens in enumerate(outputs["num_tokens"])
    ]


def _inputs_of(client: Client, name: str) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    signatures = client.signatures()
    if name not in signatures:
        raise InputError(f"{client.address} has no signature {name}, which --stop needs; export the model anew.")
    return signatures[name].inputs


def _row_of_stops(stops: Sequence[str], *, places: int) -> list[str]:
    if len(stops) > places:
        raise InputError(f"There are {len(stops)} --stop; a request has at most {places}.")
    return [*stops, *[""] * (places - len(stops))]


def _say_what_is_missing(answer: dict[str, Any]) -> None:
    if answer["finish_reason"] == "refused":
        print(
            "Refused: the prompt is too long for the model, or a stop string has more than 256 bytes.", file=sys.stderr
        )
    elif answer["prompt_cut"]:
        print(
            f"This prompt is too long: {count(answer['prompt_cut'], 'token')} cut off its beginning.", file=sys.stderr
        )


def in_requests(
    rows: Iterable[_Row], call: Callable[[Sequence[_Row]], list[_Answered]]
) -> Iterator[tuple[_Row, _Answered]]:
    """Yields rows and their answers, some rows a request: as many as the server takes."""
    source, waiting, size = iter(rows), list[_Row](), _MAX_ROWS
    while waiting := waiting or list(itertools.islice(source, size)):
        try:
            answers = call(waiting[:size])
        except InputError as error:
            limit = _TOO_MANY_ROWS.search(str(error))
            if limit is None or not 0 < int(limit[1]) < size:
                raise
            size = int(limit[1])
            continue
        yield from zip(waiting[:size], answers, strict=True)
        waiting = waiting[size:]
