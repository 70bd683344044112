"""Whether an exported classifier answers in another process as the model does in this one.

The other process gets texts and token ids; compared are the packed token ids (exact) and every output. A server shows
the outputs of signatures only, so the packed ids are one, `tokenize`: the very function that the text signature calls.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.data.batching.special_tokens import add_special_tokens, special_tokens_of
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.errors import RunError
from aigc_tf.models.classifiers.classifier import model_inputs
from aigc_tf.serving.modules.classifier_signatures import EXAMPLE_SIGNATURES, ServingSpec, answer, row_length, scores
from aigc_tf.serving.modules.text_tensors import to_bytes
from aigc_tf.serving.process.other_process import Call, bytes_array, call_elsewhere

_TIMED_ROWS = 8
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest difference of a logit or probability, by the dtype both processes compute in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """What the comparison measured."""

    num_texts: int
    token_ids: str
    """`identical`, always: anything else is an error."""
    max_difference: dict[str, float]
    """Of each float output, over all signatures."""
    bound: float
    xla: str
    """`off` where the other process could switch it off."""
    load_seconds: float
    first_request_seconds: float
    second_request_seconds: float


def check_parity(
    folder: str | os.PathLike[str],
    model: keras.Model,
    tokenizer: Tokenizer,
    spec: ServingSpec,
    *,
    texts: Sequence[tuple[str | bytes, ...]],
    dtype: str,
) -> Parity:
    """Loads a SavedModel in a new process and compares its answers with the model's.

    Args:
        folder: The SavedModel.
        model: The classifier in this process, in the dtype of the SavedModel, on the CPU.
        tokenizer: The tokenizer, called eagerly here.
        spec: Meaning of input and output.
        texts: `(text,)` or `(text, text_b)` of each row.
        dtype: A key of `BOUNDS`.
    Raises:
        RunError: If the process fails or an answer differs by more than the bound; the numbers are named.
    """
    length = row_length(model, spec)
    full = model_inputs(model, token_rows(texts, tokenizer, spec, length=spec.max_length))
    calls = _calls(texts, full, spec)
    expected = {f"tokenize/{name}": value for name, value in full.items()}
    logits = _logits(model, token_rows(texts, tokenizer, spec, length=length), length=length)
    for kind, call in calls.items():
        make = scores if call.function in EXAMPLE_SIGNATURES.values() else answer
        if call.function != "tokenize":
            outputs = make(logits[:0] if kind == "empty" else logits, spec)
            expected |= {f"{kind}/{name}": value.numpy() for name, value in outputs.items()}
    answers = call_elsewhere(folder, list(calls.values()))
    found = {
        f"{kind}/{name}": value
        for kind, outputs in zip(calls, answers.outputs, strict=True)
        for name, value in outputs.items()
    }
    differences = _compare(expected, found, bound=BOUNDS[dtype])
    _check_labels(found, spec)
    return Parity(
        num_texts=len(texts),
        token_ids="identical",
        max_difference=differences,
        bound=BOUNDS[dtype],
        xla=answers.xla,
        load_seconds=round(answers.load_seconds, 4),
        first_request_seconds=round(answers.seconds[0], 4),
        second_request_seconds=round(answers.seconds[1], 4),
    )


def timed_call(texts: Sequence[tuple[str | bytes, ...]]) -> Call:
    """Returns a call of 8 texts, to measure speed by."""
    rows = [texts[row % len(texts)] for row in range(_TIMED_ROWS)]
    columns = dict(zip(("text", "text_b"), map(bytes_array, zip(*rows, strict=True)), strict=False))
    return Call(function="serving_default", inputs=columns)


def logits_difference(first: keras.Model, second: keras.Model, batch: Mapping[str, np.ndarray]) -> float:
    """Returns the largest difference of a logit between two models on one batch."""
    logits = [np.asarray(model(model_inputs(model, batch), training=False)) for model in (first, second)]
    return float(np.max(np.abs(logits[0] - logits[1])))


def token_rows(
    texts: Sequence[tuple[str | bytes, ...]], tokenizer: Tokenizer, spec: ServingSpec, *, length: int | None = None
) -> dict[str, np.ndarray]:
    """Returns the batch that a training would make of the texts, in NumPy, padded to `length` or the longest row."""
    parts = []
    for column in zip(*texts, strict=True):
        parts.append([row.numpy() for row in tokenizer.tokenize(to_bytes(column))])
    if len(parts) == 1:
        parts.append([np.zeros(0, np.int32)] * len(parts[0]))
    special = special_tokens_of(tokenizer, max_length=spec.max_length, truncation=spec.truncation)
    rows = list(zip(*parts, strict=True))
    longest = max(len(a) + len(b) for a, b in rows) + special.num_special(spec.is_pair)
    return add_special_tokens(rows, special, length=length or min(longest, spec.max_length), is_pair=spec.is_pair)


def _calls(
    texts: Sequence[tuple[str | bytes, ...]], full: Mapping[str, np.ndarray], spec: ServingSpec
) -> dict[str, Call]:
    """Returns a call of each signature, the first of them twice."""
    columns = dict(zip(("text", "text_b"), map(bytes_array, zip(*texts, strict=True)), strict=False))
    nothing = {name: value[:0] for name, value in columns.items()}
    return {
        "text": Call(function="serving_default", inputs=columns),
        "again": Call(function="serving_default", inputs=columns),
        "empty": Call(function="serving_default", inputs=nothing),
        "examples": Call(
            function=EXAMPLE_SIGNATURES[spec.problem_type], inputs={"inputs": serialized_examples(columns)}
        ),
        "tokenize": Call(function="tokenize", inputs=columns),
        "ids": Call(function="token_ids", inputs=dict(full)),
    }


def serialized_examples(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns `(B,)` serialized tf.Examples of string columns, those of row 0 without its empty features."""
    rows = []
    for number, values in enumerate(zip(*columns.values(), strict=True)):
        feature = {
            name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
            for name, value in zip(columns, values, strict=True)
            if value or number
        }
        rows.append(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return bytes_array(rows)


def _logits(model: keras.Model, batch: Mapping[str, np.ndarray], *, length: int | None) -> tf.Tensor:
    # A graph with the shapes of the signatures: which ops are fused decides where bfloat16 is rounded.
    inputs = {name: tf.constant(value) for name, value in model_inputs(model, batch).items()}
    shapes = {name: tf.TensorSpec([None, length], tf.int32) for name in inputs}
    return tf.function(lambda inputs: model(inputs, training=False), input_signature=[shapes])(inputs)


def _compare(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], *, bound: float) -> dict[str, float]:
    """Token ids and shapes exact, floats within the bound."""
    if expected.keys() != found.keys():
        raise RunError(f"The exported model has the outputs {sorted(found)}, expected {sorted(expected)}.")
    differences: dict[str, float] = {}
    for name, value in expected.items():
        kind, output = name.split("/")
        if value.shape != found[name].shape:
            raise RunError(f"Output {name} of the exported model is {found[name].shape}, expected {value.shape}.")
        if (kind == "tokenize" or output == "classes") and not np.array_equal(value, found[name]):
            row = int(np.argmax(np.any(value != found[name], axis=1)))
            raise RunError(f"The exported model answers other {output} than the training: first in sample text {row}.")
        if value.dtype.kind == "f" and value.size:
            differences[output] = max(differences.get(output, 0.0), float(np.max(np.abs(value - found[name]))))
    if not all(difference <= bound for difference in differences.values()):  # so that NaN fails too
        numbers = ", ".join(f"{name} by {difference:.2e}" for name, difference in differences.items())
        raise RunError(
            f"The exported model differs from the trained one: {numbers} (bound {bound:.0e}); nothing was published."
        )
    return differences


def _check_labels(found: Mapping[str, np.ndarray], spec: ServingSpec) -> None:
    """Labels follow from the logits of the same answer: two scores may lie nearer than the bound."""
    for kind in ("text", "ids"):
        if f"{kind}/logits" not in found:
            continue
        for name, value in answer(tf.constant(found[f"{kind}/logits"]), spec).items():
            if value.dtype != tf.float32 and not np.array_equal(value.numpy(), found[f"{kind}/{name}"]):
                raise RunError(f"Output {name} of the exported model does not follow from its logits.")
