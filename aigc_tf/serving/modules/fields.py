"""The fields of signatures: their inputs and outputs.

A task states each field once. The manifest's signatures, the warm-up file, the calls that try an export in another
process, and the comparison of its answers are all derived from it.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aigc_tf.serving.apis import Api
from aigc_tf.serving.modules.graph_functions import traced_once

HOSTILE_TEXTS: tuple[str | bytes, ...] = (
    "",
    " \t\n",
    "😀👩‍👩‍👧 emoji",
    "自然言語処理 与 中文",
    "ÀÉÎ naïve ﬁ ı İ",
    "a\x00b\u200b\ufeff",
    b"\xff\xfe not \xc3 UTF-8",
    "[CLS] [SEP] ##ing",
    "long " * 2000,
)
"""Hostile values of a text field."""
WARMUP_TEXTS = (
    "A short text.",
    "Another text, which is a little longer than the one before it, so that batches are uneven.",
)
"""Warm-up values of a text field."""

Body = Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """An input or output of a signature."""

    name: str
    dtype: str
    """TensorFlow's name, such as `string` or `float32`."""
    shape: tuple[int | None, ...]
    """The first axis is None, for rows; any other None may differ between requests."""
    warmup: tuple[Any, ...] = (0,)
    """Of an input: values that warm-up rows take in turn, each for a row or for all elements of a row."""
    hostile: tuple[Any, ...] = ()
    """Of an input: values on which every export is tried besides samples of the data."""
    tolerance: float = 0.0
    """Of an output: the largest allowed difference between the export and the trained model; 0: identical."""

    def rows(self, values: Sequence[Any], numbers: Iterable[int]) -> np.ndarray:
        """Returns an array of this field whose row i is value number `numbers[i]`, modulo their count.

        Args:
            values: At least one. A value with fewer axes than a row fills all its places.
            numbers: One number per row.
        Returns:
            `(B, ...)`; strings as bytes objects, where half a surrogate pair, which UTF-8 cannot encode, becomes `?`.
        """
        numbers = list(numbers)
        size = [length or 1 for length in self.shape[1:]]
        dtype: Any = object if self.dtype == "string" else self.dtype
        array = np.empty([len(numbers), *size], dtype)
        for row, number in enumerate(numbers):
            value = values[number % len(values)]
            array[row] = _as_bytes(value) if dtype is object else value
        return array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signature:
    """A function of a SavedModel, as clients see it."""

    name: str
    inputs: Mapping[str, Field]
    outputs: Mapping[str, Field]
    function: Any
    """tf.function from a dictionary of the inputs to one of the outputs."""
    api: Api = Api.PREDICT
    """An API besides Predict, which every signature supports."""

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Computes the outputs of arrays or tensors in this process."""
        answers = self.function({name: _tensor(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in answers.items()}


def build_signature(
    name: str, body: Body, *, inputs: Sequence[Field], outputs: Sequence[Field], api: Api = Api.PREDICT
) -> Signature:
    """Makes `body` a signature: a graph function whose inputs and outputs are the keys of a request's JSON.

    Raises:
        tf.errors.InvalidArgumentError: When it is called, if the shape of an input does not fit its field, or the
            inputs have different numbers of rows.
    """
    specs = {field.name: tf.TensorSpec(field.shape, field.dtype, name=field.name) for field in inputs}
    traced = traced_once(body, [specs])

    # The server does not check shapes, and a text that is not a vector makes tensorflow-text's op crash it.
    @tf.function(autograph=False, input_signature=[specs])
    def checked(given: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        given = {key: tf.ensure_shape(value, specs[key].shape) for key, value in given.items()}
        if len(given) == 1:
            return traced(given)
        num_rows = tf.stack([tf.shape(value)[0] for value in given.values()])
        same = tf.debugging.assert_equal(num_rows, num_rows[0], f"{', '.join(given)} must have as many rows each.")
        with tf.control_dependencies([same]):
            # Identity makes each input wait for the check; the check alone would not run before its use.
            return traced({key: tf.identity(value) for key, value in given.items()})

    return Signature(name=name, inputs=_by_name(inputs), outputs=_by_name(outputs), function=checked, api=api)


def _by_name(fields: Iterable[Field]) -> dict[str, Field]:
    return {field.name: field for field in sorted(fields, key=lambda field: field.name)}


def serialized_examples(columns: Mapping[str, Sequence[str | bytes]]) -> tuple[bytes, ...]:
    """Returns serialized tf.Examples, one per row.

    Every second row leaves its empty texts out, which has the same meaning.
    """
    rows = []
    for number, values in enumerate(zip(*columns.values(), strict=True)):
        texts = {name: _as_bytes(value) for name, value in zip(columns, values, strict=True) if value or number % 2}
        feature = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text])) for name, text in texts.items()}
        rows.append(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True))
    return tuple(rows)


def _as_bytes(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace")
    return value if isinstance(value, bytes) else [_as_bytes(one) for one in value]


def _tensor(value: Any) -> tf.Tensor:
    if isinstance(value, np.ndarray) and value.dtype == object:  # without rows TensorFlow would not infer strings
        return tf.constant(value.tolist(), tf.string, shape=value.shape)
    return tf.convert_to_tensor(value)
