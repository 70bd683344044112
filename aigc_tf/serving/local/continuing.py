"""Answers that are continuations, from a live or exported generator in this process."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from aigc_tf.config import GenerationConfig
from aigc_tf.serving.local.answerer import Answer, Answerer, Continuing, Question, Settings
from aigc_tf.serving.local.continuations import Continuation, Piece


class Continuer(Protocol):
    """What `TextGenerator` and `ExportedGenerator` share."""

    max_length: int

    def generate(self, prompts: Sequence[str], *, settings: Any) -> Iterator[Continuation]: ...

    def stream(self, prompt: str, *, settings: Any) -> Iterator[Piece]: ...


def continuing_answerer(continuer: Continuer, defaults: GenerationConfig, *, column: str = "text") -> Answerer:
    """Returns an answerer that continues prompts.

    Args:
        continuer: Continues texts.
        defaults: Settings that a question does not override.
        column: Column of prompts in a table.
    """

    def chosen(settings: Settings, **more: Any) -> GenerationConfig:
        return dataclasses.replace(defaults, **settings, **more)

    def answer(questions: Iterable[Question], settings: Settings) -> Iterator[Answer]:
        prompts = [question["prompt"] for question in questions]
        return (dataclasses.asdict(one) for one in continuer.generate(prompts, settings=chosen(settings)))

    def warm_up(settings: Settings) -> None:
        for _ in continuer.generate([""], settings=dataclasses.replace(chosen(settings), max_new_tokens=1)):
            pass

    def remarks(answers: Sequence[Answer], settings: Settings) -> list[str]:
        wanted = chosen(settings).max_new_tokens
        num_cut = sum(one["prompt_cut"] > 0 for one in answers)
        num_full = sum(one["finish_reason"] == "length" and one["num_tokens"] < wanted for one in answers)
        return _what_did_not_fit(num_cut, num_full, continuer.max_length)

    return Answerer(
        inputs=("prompt",),
        columns=(column,),
        answer=answer,
        takes_settings=True,
        continuing=Continuing(
            remarks=remarks,
            warm_up=warm_up,
            stream=lambda prompt, settings: continuer.stream(prompt, settings=chosen(settings)),
            seed=defaults.seed,
        ),
    )


def _what_did_not_fit(num_cut: int, num_full: int, max_length: int) -> list[str]:
    """Returns a sentence on cut prompts, and one on continuations that filled the context."""
    said = []
    if num_cut:
        prompts = "1 prompt" if num_cut == 1 else f"{num_cut:,} prompts"
        said.append(f"{prompts} too long for the context of {max_length} tokens: the end was kept.")
    if num_full:
        ended = "1 continuation" if num_full == 1 else f"{num_full:,} continuations"
        said.append(f"{ended} ended early: prompt and continuation filled the context of {max_length} tokens.")
    return said
