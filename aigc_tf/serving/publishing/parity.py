"""Parity: an export in another process answers as the trained model, on samples and hostile values of every signature.

The fields of the signatures give the values to ask with and the tolerances of the answers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aigc_tf.errors import RunError
from aigc_tf.serving.apis import SERVING_DEFAULT
from aigc_tf.serving.modules.fields import Signature
from aigc_tf.serving.process.other_process import StandIn
from aigc_tf.serving.publishing.servable import Reference

BATCH = 8
"""The most rows of a call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """Results of the comparison."""

    num_calls: int
    num_rows: int
    """Rows of all calls together."""
    answers: str
    """`identical` for every output without a tolerance; a difference is an error."""
    max_difference: dict[str, float]
    """The largest difference of each output with a tolerance, over all calls."""
    tolerance: dict[str, float]
    xla: str
    """`off` if the other process could switch it off."""
    load_seconds: float
    first_request_seconds: float
    second_request_seconds: float
    """Seconds of the first request when it is repeated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a signature."""

    signature: Signature
    inputs: Mapping[str, np.ndarray]


def make_calls(signatures: Mapping[str, Signature], samples: Mapping[str, Sequence[Any]]) -> list[Call]:
    """Returns calls that try all samples and hostile values of every signature's inputs, and one without rows.

    Args:
        signatures: By name.
        samples: Values of rows by the name of an input. Inputs of one signature have equally many, row by row.
    """
    calls = []
    for signature in signatures.values():
        values = {
            name: [*samples.get(name, ()), *field.hostile] or list(field.warmup)
            for name, field in signature.inputs.items()
        }
        count = max(len(value) for value in values.values())
        rows = [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
        for numbers in [*rows, *[range(0)] * (signature.name == SERVING_DEFAULT)]:
            inputs = {name: field.rows(values[name], numbers) for name, field in signature.inputs.items()}
            calls.append(Call(signature=signature, inputs=inputs))
    return calls


def check_parity(process: StandIn, calls: Sequence[Call], *, reference: Reference | None = None) -> Parity:
    """Makes calls in another process and compares its answers.

    Args:
        process: The loaded export, without any call so far.
        calls: The calls; the first one is timed.
        reference: Returns the expected answers; None: those of the signatures in this process.
    Raises:
        RunError: If a call fails, or an answer differs by more than its field's tolerance; the message has the numbers.
    """
    expect = reference or (lambda signature, inputs, found: signature(inputs))
    differences: dict[str, float] = {}
    seconds = []
    for call in [calls[0], *calls]:
        found, taken = process.timed_call(call.signature.name, call.inputs)
        seconds.append(taken)
        for name, difference in compare(call, expect(call.signature, call.inputs, found), found).items():
            differences[name] = max(difference, differences.get(name, 0.0))
    return Parity(
        num_calls=len(calls),
        num_rows=sum(len(next(iter(call.inputs.values()))) for call in calls),
        answers="identical",
        max_difference=differences,
        tolerance={name: field.tolerance for call in calls for name, field in _tolerated(call.signature).items()},
        xla=process.xla,
        load_seconds=round(process.load_seconds, 4),
        first_request_seconds=round(seconds[0], 4),
        second_request_seconds=round(seconds[1], 4),
    )


def _tolerated(signature: Signature) -> dict[str, Any]:
    return {name: field for name, field in signature.outputs.items() if field.tolerance}


def compare(call: Call, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the difference of each output that has a tolerance.

    Raises:
        RunError: If an output differs by more than its field allows.
    """
    signature = call.signature
    if expected.keys() != found.keys():
        raise RunError(f"The exported model has the outputs {sorted(found)}, expected {sorted(expected)}.")
    for name, value in expected.items():
        if value.shape != found[name].shape:
            raise RunError(f"Output {name} of the exported model is {found[name].shape}, expected {value.shape}.")
        if not signature.outputs[name].tolerance:
            _check_same(name, value, found[name], signature)
    tolerated = {name: field.tolerance for name, field in _tolerated(signature).items()}
    differences = {name: _difference(expected[name], found[name]) for name in tolerated}
    if not all(differences[name] <= tolerance for name, tolerance in tolerated.items()):
        numbers = ", ".join(f"{name} by {differences[name]:.2e} (bound {tolerated[name]:.0e})" for name in tolerated)
        raise RunError(
            f"The exported model differs from the trained one: {numbers} of {signature.name}; nothing was published."
        )
    return differences


def _check_same(name: str, expected: np.ndarray, found: np.ndarray, signature: Signature) -> None:
    is_float = expected.dtype.kind == "f"
    if np.array_equal(expected, found, equal_nan=is_float):
        return
    row = int(np.argmax((expected != found).reshape(len(expected), -1).any(axis=1)))
    raise RunError(
        f"The exported model answers another {name} than the trained one: {found[row]!r}, expected {expected[row]!r}, "
        f"in row {row} of a call of {signature.name}; nothing was published."
    )


def _difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Returns the largest difference; infinite if only one is a number, or infinities differ."""
    is_number = np.isfinite(expected)
    if not np.array_equal(is_number, np.isfinite(found)):
        return float("inf")
    if not np.array_equal(expected[~is_number], found[~is_number], equal_nan=True):
        return float("inf")
    return float(np.max(np.abs(expected[is_number] - found[is_number]), initial=0.0))
