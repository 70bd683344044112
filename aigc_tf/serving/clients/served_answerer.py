"""A model on a server as an answerer: its signatures say what it takes and returns."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from aigc_tf.config import GenerationConfig
from aigc_tf.config.fields import flatten
from aigc_tf.errors import InputError
from aigc_tf.serving.apis import SERVING_DEFAULT, Api
from aigc_tf.serving.clients.client import Client
from aigc_tf.serving.local.answerer import Answer, Answerer, Continuing, Question, Settings, typed_value
from aigc_tf.serving.local.reading_outputs import answers_of, is_continuation

_MAX_ROWS = 8
"""Rows of one request: the most that a rendered deployment takes. A server with a lower limit reports it."""
_TOO_MANY_ROWS = re.compile(r"larger than maximum input batch size (\d+)")
_OWN_SETTING = -1
"""The value in a request that selects the setting the model was exported with."""
_SETTINGS = frozenset(flatten(GenerationConfig()))

_Row = TypeVar("_Row")
_Answered = TypeVar("_Answered")


def served_answerer(client: Client) -> Answerer:
    """Returns an answerer that asks a server. With settings, question i uses the seed `seed + i`.

    Raises:
        InputError: If the model has no default signature.
    """
    signature = client.signatures().get(SERVING_DEFAULT)
    if signature is None:
        raise InputError(f"{client.address} has no default signature; ask a model that scripts/export.py exported.")
    dtypes = {name: dtype for name, (dtype, _) in signature.inputs.items() if name not in _SETTINGS}
    takes_settings = len(dtypes) < len(signature.inputs)
    is_classifier = "probabilities" in signature.outputs and Api.CLASSIFY.value in client.signatures()
    label_names = _label_names(client) if is_classifier else []

    def call(chunk: Sequence[tuple[int, Question]], settings: Settings) -> list[Answer]:
        asked = {
            name: [typed_value(question[name], dtype, name) for _, question in chunk] for name, dtype in dtypes.items()
        }
        chosen = SERVING_DEFAULT
        if settings:
            chosen = "generate_until" if settings.get("stop") else SERVING_DEFAULT
            asked |= _settings_of_rows(client, chosen, settings, [number for number, _ in chunk])
        elif takes_settings:
            chosen = "defaults"
        return list(answers_of(client.predict(asked, signature=chosen), label_names))

    def answer(questions: Iterable[Question], settings: Settings) -> Iterator[Answer]:
        return (one for _, one in in_requests(enumerate(questions), lambda chunk: call(chunk, settings)))

    return Answerer(
        name=str(client.address),
        inputs=tuple(dtypes),
        columns=tuple("text" if name == "prompt" else name for name in dtypes),
        answer=answer,
        takes_settings=takes_settings,
        continuing=Continuing(remarks=_remarks) if is_continuation(signature.outputs) else None,
    )


def _label_names(client: Client) -> list[str]:
    """Returns all label names. Only the Classify API gives them; the outputs for a text do not."""
    [classes] = client.classify([{"text": ""}], signature=Api.CLASSIFY.value)
    return [name for name, _ in classes]


def _settings_of_rows(
    client: Client, signature: str, settings: Settings, numbers: Sequence[int]
) -> dict[str, list[Any]]:
    """Returns the settings that a signature takes, a value for each row."""
    rows: dict[str, list[Any]] = {}
    for name, (_, shape) in _inputs_of(client, signature).items():
        if name == "seed":
            first = settings.get(name, GenerationConfig.seed)
            rows[name] = [(first + number + 2**63) % 2**64 - 2**63 for number in numbers]
        elif name == "stop":
            rows[name] = [_row_of_stops(settings[name], places=shape[1])] * len(numbers)
        elif name in _SETTINGS:
            rows[name] = [settings.get(name, _OWN_SETTING)] * len(numbers)
    return rows


def _inputs_of(client: Client, name: str) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    signatures = client.signatures()
    if name not in signatures:
        raise InputError(f"{client.address} has no signature {name}, which --stop needs; export the model again.")
    return signatures[name].inputs


def _row_of_stops(stops: Sequence[str], *, places: int) -> list[str]:
    if len(stops) > places:
        raise InputError(f"There are {len(stops)} --stop; a request has at most {places}.")
    return [*stops, *[""] * (places - len(stops))]


def _remarks(answers: Sequence[Answer], settings: Settings) -> list[str]:
    """Returns remarks on prompts that were too long. A server does not tell the length of the model's context."""
    del settings
    said = []
    for answer in answers:
        if answer["finish_reason"] == "refused":
            said.append("Refused: the prompt is too long for the model, or a stop string has more than 256 bytes.")
        elif answer["prompt_cut"]:
            tokens = "1 token" if answer["prompt_cut"] == 1 else f"{answer['prompt_cut']:,} tokens"
            said.append(f"This prompt is too long: {tokens} cut off its beginning.")
    return said


def in_requests(
    rows: Iterable[_Row], call: Callable[[Sequence[_Row]], list[_Answered]]
) -> Iterator[tuple[_Row, _Answered]]:
    """Yields rows and their answers, with as many rows per request as the server takes."""
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
