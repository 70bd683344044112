"""Continuations, and what all ways to generate them share: checked prompts, settings per row, rows of ids."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from aigc_tf.config import GenerationConfig
from aigc_tf.errors import InputError
from aigc_tf.generation.sampling import Settings, make_settings
from aigc_tf.serving.modules.continuer import SETTINGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuation:
    """The continuation of a prompt."""

    text: str
    """Up to a stop string; U+FFFD for bytes that are not UTF-8."""
    token_ids: tuple[int, ...]
    """All generated tokens, including those of a stop string, without the end of text."""
    finish_reason: str
    """`end` of the text, a `stop` string, or `length`: the limit or the end of the context was reached."""
    log_probability: float
    """Of the tokens, and of the end of text if it was chosen, under the model without sampling settings."""
    prompt_cut: int
    """Tokens cut off the beginning of a too long prompt."""


class Piece(NamedTuple):
    """The next part of a streamed continuation; the last piece has the finish reason."""

    text: str
    num_tokens: int
    """Of the continuation so far."""
    finish_reason: str = ""
    prompt_cut: int = 0


def as_pieces(answers: Iterable[Continuation]) -> Iterator[Piece]:
    """Yields each whole continuation as one piece."""
    for answer in answers:
        yield Piece(answer.text, len(answer.token_ids), answer.finish_reason, answer.prompt_cut)


def settings_of(config: GenerationConfig, num_rows: int) -> Settings:
    """Returns `(B,)` settings in which row i uses the seed `config.seed + i`.

    Raises:
        InputError: If a value does not fit.
    """
    seeds = [(config.seed + row + 2**63) % 2**64 - 2**63 for row in range(num_rows)]  # wraps around, as int64 does
    values = {name: getattr(config, name) for name in SETTINGS if name != "seed"}
    return make_settings(num_rows, **values, seed=np.array(seeds, np.int64))


def pad_rows(rows: Sequence[np.ndarray], *, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of ids as `(B, P)` int32, padded on the right, and their `(B,)` int32 lengths.

    P is the length of the longest row, or `width`.
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    ids = np.zeros((len(rows), width or max(lengths, default=0)), np.int32)
    for row, target in zip(rows, ids, strict=True):
        target[: len(row)] = row
    return ids, lengths


def clean(prompt: str) -> str:
    """Returns the prompt with `?` for half a surrogate pair, which UTF-8 cannot encode."""
    return prompt.encode("utf-8", "replace").decode()


def check_prompts(prompts: Sequence[str]) -> None:
    """Checks that prompts are a list of strings.

    Raises:
        InputError: If they are not.
    """
    if isinstance(prompts, str | bytes):
        raise InputError("The prompts are a single string; give a list of strings.")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InputError(f"Prompt {number} (counted from 0) is a {type(prompt).__name__}, not a string.")


def continuations(outputs: dict[str, np.ndarray]) -> Iterator[Continuation]:
    """Yields the rows of a signature's outputs."""
    for row, count in enumerate(outputs["num_tokens"]):
        yield Continuation(
            text=outputs["text"][row].decode(),
            token_ids=tuple(outputs["token_ids"][row, :count].tolist()),
            finish_reason=outputs["finish_reason"][row].decode(),
            log_probability=float(outputs["log_probability"][row]),
            prompt_cut=int(outputs["prompt_cut"][row]),
        )
