"""Weights that are stored smaller than they are computed with, and are restored once in every request.

`bfloat16` halves every floating-point weight. `int8` keeps kernels and embeddings as whole numbers in [-127, 127] with
float32 scales: of a kernel one an output channel, of a table one a row, which is the largest absolute value there over
127 (symmetric, without zero point). Biases, norms and all else of one axis stay float32 then.

Source: Jacob et al. 2018, section 2.1, with the zero point 0.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_BFLOAT16 = tf.bfloat16.as_numpy_dtype
_TABLES = ("embeddings", "tokens", "positions", "position_embeddings")
"""Last part of the path of a table whose rows are looked up."""
_LARGEST = 127

Stored = tuple[np.ndarray, ...]
"""A weight as it is stored: one array, or int8 values and float32 scales that broadcast against them."""


def quantize(value: np.ndarray, axes: tuple[int, ...]) -> Stored:
    """Returns int8 values and scales, whose product is the nearest to `value` that there is.

    Args:
        value: float32.
        axes: What shares a scale; the scales have the size 1 there.
    """
    largest = np.max(np.abs(value), axis=axes, keepdims=True)
    scales = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    return np.clip(np.rint(value / scales), -_LARGEST, _LARGEST).astype(np.int8), scales


def restore(stored: Stored) -> np.ndarray:
    """Returns the float32 values that are computed with; what is no float as it is."""
    if len(stored) == 2:
        return stored[0].astype(np.float32) * stored[1]
    return stored[0].astype(np.float32) if stored[0].dtype == _BFLOAT16 else stored[0]


def store(model: keras.Model, kind: str) -> list[Stored]:
    """Makes the weights of a model small, and sets them to what is computed with then, which is rounded.

    Args:
        model: With float32 weights, which change.
        kind: One of config.STORED_WEIGHTS.
    Returns:
        What is to be stored of each of `model.weights`.
    """
    equations = {
        id(layer.kernel): layer.equation
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.EinsumDense)
    }
    dtype = tf.as_dtype(model.dtype_policy.compute_dtype).as_numpy_dtype
    stored = []
    for weight in model.weights:
        value: np.ndarray = np.asarray(weight)
        if kind == "bfloat16" and value.dtype == np.float32:
            small: Stored = (value.astype(_BFLOAT16),)
        elif kind == "int8" and value.dtype == np.float32 and value.ndim > 1:
            small = quantize(value, _axes_of_a_scale(weight, equations.get(id(weight), "")))
        else:
            small = (value,)
        restored = restore(small)
        if restored.dtype == np.float32 and restored.ndim > 1:  # see _restored_dtype
            restored = restored.astype(dtype).astype(np.float32)
        weight.assign(restored)
        stored.append(small)
    return stored


def _axes_of_a_scale(weight: keras.Variable, equation: str) -> tuple[int, ...]:
    """Returns the axes that share a scale: of a kernel those that its product sums over, of a table the last."""
    axes = tuple(range(len(weight.shape)))
    if weight.path.rpartition("/")[2] in _TABLES:
        return axes[-1:]
    if equation:  # such as abc,cde->abde
        kernel, output = equation.partition(",")[2].split("->")
        return tuple(axis for axis, letter in enumerate(kernel) if letter not in output)
    return axes[:-1]


class ServedWeights(tf.Module):
    """The weights of an exported model: its variables, and the values that its functions compute with.

    Args:
        model: The model.
        stored: What `store` returned; None where the model's own variables are saved as they are.
    """

    def __init__(self, model: keras.Model, stored: list[Stored] | None = None):
        super().__init__(name="weights")
        self.values = None if stored else [weight.value for weight in model.weights]
        self.stored = [[tf.Variable(part, trainable=False) for part in small] for small in stored or []]
        # In functions, lest SavedModels see the Keras model.
        dtype = tf.as_dtype(model.dtype_policy.compute_dtype)
        self.restored: Callable[[], list[tf.Tensor]] = lambda: [
            _restored(small, dtype) for _, small in _restored_whole(model, self.stored)
        ]
        """In a graph: the values of all weights but those that are looked up; none where nothing is small."""
        self.computing_with = functools.partial(_computing_with, model, self.stored)
        """`computing_with(values)`: has the model compute with what `restored` gave, in a graph traced in the block."""
        self.specs: Callable[[], list[tf.TensorSpec]] = lambda: [
            tf.TensorSpec(small[0].shape, _restored_dtype(small, dtype))
            for _, small in _restored_whole(model, self.stored)
        ]
        """Shapes and types of what `restored` gives."""

    def restoring(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function for graphs that does what `body` does, with the model computing with the stored weights.

        They are restored once in each call, outside of loops of `body`. No graph function that is traced apart may be
        called in it.
        """

        def restoring_body(*arguments: Any) -> Any:
            with self.computing_with(self.restored()):
                return body(*arguments)

        return restoring_body


def _restored_whole(model: keras.Model, stored: list[Any]) -> list[tuple[keras.Variable, Any]]:
    """Returns the weights, with what is stored of each, but for tables whose rows are looked up."""
    if not stored:
        return []
    looked_up = {id(layer._embeddings) for layer in _lookups(model)}
    return [pair for pair in zip(model.weights, stored, strict=True) if id(pair[0]) not in looked_up]


def _restored(small: list[tf.Variable], dtype: tf.DType) -> tf.Tensor:
    value = tf.convert_to_tensor(small[0])
    if len(small) == 2:
        value = tf.cast(value, tf.float32) * small[1]
    return tf.cast(value, _restored_dtype(small, dtype))


def _restored_dtype(small: list[tf.Variable], dtype: tf.DType) -> tf.DType:
    """Returns the dtype of the products for a weight of several axes, float32 for others; what is no float stays."""
    if len(small) == 1 and not small[0].dtype.is_floating:
        return small[0].dtype
    return dtype if small[0].shape.rank > 1 else tf.float32


@contextlib.contextmanager
def _computing_with(model: keras.Model, stored: list[list[tf.Variable]], values: list[tf.Tensor]) -> Iterator[None]:
    if not stored:
        yield
        return
    parts = {id(weight): small for weight, small in zip(model.weights, stored, strict=True)}
    with keras.StatelessScope() as scope, contextlib.ExitStack() as stack:
        for (weight, _), value in zip(_restored_whole(model, stored), values, strict=True):
            scope.add_update((weight, value))  # the scope's own argument would make float32 of it
        for layer in _lookups(model):
            stack.enter_context(_looking_up(layer, parts[id(layer._embeddings)], scope))
        yield


def _lookups(model: keras.Model) -> list[Any]:
    """Returns the layers whose table is restored row by row."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]
    return [layer for layer in layers if not layer.mask_zero]


@contextlib.contextmanager
def _looking_up(layer: Any, small: list[tf.Variable], scope: keras.StatelessScope) -> Iterator[None]:
    """Has an embedding layer restore the rows that it looks up, and not its whole table."""
    whole, dtype = layer.call, tf.as_dtype(layer.compute_dtype)

    def look_up(inputs: tf.Tensor, *arguments: Any, **named: Any) -> tf.Tensor:
        if arguments or any(named.values()):  # reverse: the table is a kernel
            scope.add_update((layer._embeddings, _restored(small, dtype)))
            return whole(inputs, *arguments, **named)
        rows = [tf.gather(part, inputs) for part in small]
        value = tf.cast(rows[0], tf.float32) * rows[1] if len(rows) == 2 else rows[0]
        return tf.cast(value, dtype)

    layer.call = look_up
    try:
        yield
    finally:
        del layer.call
