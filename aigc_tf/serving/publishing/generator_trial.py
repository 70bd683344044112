"""Trials of an exported generator only: whether other rows change a prompt's tokens, and its speed.

Some prompts are continued alone and again in a batch. In a batch, sums may be rounded differently, which changes a draw
if the random number lies between the two roundings. That is rare in float32. In bfloat16 it is common, so there it is
only counted.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aigc_tf.errors import RunError
from aigc_tf.serving.apis import SERVING_DEFAULT
from aigc_tf.serving.modules.fields import Signature
from aigc_tf.serving.modules.generator_signatures import GeneratorModule
from aigc_tf.serving.process.other_process import StandIn
from aigc_tf.serving.publishing.parity import BATCH, Call, compare

_TOKENS = 64
_TIMED_CALLS = 3
_MAX_ALONE = 8
_MAX_TURNED = 2  # in float32; a row that sees its neighbours by mistake changes nearly all prompts
_DRAWN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorTrial:
    """Results of the trial."""

    num_prompts: int
    num_alone: int
    """Prompts that were continued alone and in a batch, by up to 64 drawn tokens."""
    num_alone_identical: int
    """Prompts among them with the same tokens both times."""
    tokens_per_second: float
    """Speed of the export with a batch of 8 on the CPU: the fastest of three calls after a first."""
    tokens_per_second_in_process: float


def try_generator(
    process: StandIn, module: GeneratorModule, *, prompts: Sequence[str | bytes], max_length: int, dtype: str
) -> GeneratorTrial:
    """Continues prompts alone and in batches, and measures the speed.

    Args:
        process: The loaded export.
        module: The saved module, on the CPU.
        prompts: Prompts to continue.
        max_length: Positions of prompt and continuation together.
        dtype: Dtype of the module's computation: float32 or bfloat16.
    Raises:
        RunError: If the process continues a prompt differently than the module, which the message names; or if in
            float32 other rows change a prompt's tokens.
    """
    serve = module.signatures()[SERVING_DEFAULT]
    rows = range(len(prompts))
    alone = rows[:: -(-len(rows) // _MAX_ALONE)]
    together, *single = (_drawn_call(serve, prompts, some, max_length) for some in [alone, *([row] for row in alone)])
    in_batch = _token_rows(_compared(process, together))
    turned = sum(
        not np.array_equal(_token_rows(_compared(process, call))[0], row)
        for call, row in zip(single, in_batch, strict=True)
    )
    if dtype == "float32" and turned > _MAX_TURNED:
        raise RunError(
            f"{turned} of {len(alone)} prompts are continued differently alone than in a batch; nothing was published."
        )
    timed = _timed_call(serve, prompts, max_length)
    return GeneratorTrial(
        num_prompts=len(prompts),
        num_alone=len(alone),
        num_alone_identical=len(alone) - turned,
        tokens_per_second=_rate(lambda: process.timed_call(serve.name, timed.inputs)),
        tokens_per_second_in_process=_rate(lambda: _timed(timed)),
    )


def _compared(process: StandIn, call: Call) -> dict[str, np.ndarray]:
    """Returns the module's answer, after checking that the other process gives the same."""
    expected = call.signature(call.inputs)
    compare(call, expected, process.call(call.signature.name, call.inputs))
    return expected


def _timed_call(serve: Signature, prompts: Sequence[str | bytes], max_length: int) -> Call:
    """Returns a call of 8 prompts with many settings."""
    numbers = range(BATCH)
    inputs = {name: field.rows(field.hostile, numbers) for name, field in serve.inputs.items()}
    return Call(signature=serve, inputs=inputs | _prompt_inputs(serve, prompts, numbers, max_length))


def _drawn_call(serve: Signature, prompts: Sequence[str | bytes], numbers: Sequence[int], max_length: int) -> Call:
    drawn = {name: serve.inputs[name].rows([value], numbers) for name, value in _DRAWN.items()}
    drawn["seed"] = serve.inputs["seed"].rows(range(len(prompts)), numbers)
    return Call(signature=serve, inputs=drawn | _prompt_inputs(serve, prompts, numbers, max_length))


def _prompt_inputs(
    serve: Signature, prompts: Sequence[str | bytes], numbers: Sequence[int], max_length: int
) -> dict[str, np.ndarray]:
    values: dict[str, Sequence[Any]] = {"prompt": prompts, "max_new_tokens": [min(_TOKENS, max_length - 1)]}
    return {name: serve.inputs[name].rows(value, numbers) for name, value in values.items()}


def drawn_inputs(module: GeneratorModule, prompts: Sequence[str | bytes], *, max_length: int) -> dict[str, np.ndarray]:
    """Returns the inputs of `serving_default` for 8 prompts and up to 64 drawn tokens each, to measure the speed."""
    serve = module.signatures()[SERVING_DEFAULT]
    return dict(_drawn_call(serve, prompts, range(BATCH), max_length).inputs)


def _token_rows(outputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [ids[:count] for ids, count in zip(outputs["token_ids"], outputs["num_tokens"], strict=True)]


def _timed(call: Call) -> tuple[dict[str, np.ndarray], float]:
    started = time.monotonic()
    outputs = call.signature(call.inputs)
    return outputs, time.monotonic() - started


def _rate(ask: Any) -> float:
    """Returns tokens per second of the fastest of three calls after a first, since other work can only slow them."""
    ask()
    answers = [ask() for _ in range(_TIMED_CALLS)]
    return round(max(float(outputs["num_tokens"].sum()) / seconds for outputs, seconds in answers), 1)
