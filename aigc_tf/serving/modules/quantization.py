"""Weights stored in fewer bits than the computation uses, and restored once in every request.

`bfloat16` halves every floating-point weight. `int8` stores kernels and embeddings as whole numbers in [-127, 127] with
float32 scales: one per output channel of a kernel, one per row of a table. A scale is the largest absolute value of its
channel or row over 127 (symmetric, without zero point). Biases, norms and other weights of one axis stay float32.

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
"""Last part of the path of an embedding table."""
_LARGEST = 127

Stored = tuple[np.ndarray, ...]
"""A weight as it is stored: one array, or int8 values and float32 scales that broadcast against them."""


def quantize(value: np.ndarray, axes: tuple[int, ...]) -> Stored:
    """Returns int8 values and scales whose product is nearest to `value`.

    Args:
        value: float32.
        axes: Axes that share a scale; the scales have size 1 there.
    """
    largest = np.max(np.abs(value), axis=axes, keepdims=True)
    scales = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    return np.clip(np.rint(value / scales), -_LARGEST, _LARGEST).astype(np.int8), scales


def restore(stored: Stored) -> np.ndarray:
    """Returns the float32 values to compute with; arrays that are not floats stay unchanged."""
    if len(stored) == 2:
        return stored[0].astype(np.float32) * stored[1]
    return stored[0].astype(np.float32) if stored[0].dtype == _BFLOAT16 else stored[0]


def store(model: keras.Model, kind: str) -> list[Stored]:
    """Quantizes the weights of a model, and sets the model to the rounded weights.

    Args:
        model: A model with float32 weights, which change.
        kind: One of config.STORED_WEIGHTS.
    Returns:
        The stored form of each of `model.weights`.
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
        # The reference of parity computes with the rounded weights as well: parity checks the export, not the rounding.
        weight.assign(restored)
        stored.append(small)
    return stored


def _axes_of_a_scale(weight: keras.Variable, equation: str) -> tuple[int, ...]:
    """Returns the axes that share a scale: for a kernel the ones its product sums over, for a table the last."""
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
        stored: The result of `store`; None to save the model's own variables.
    """

    def __init__(self, model: keras.Model, stored: list[Stored] | None = None):
        super().__init__(name="weights")
        self.values = None if stored else [weight.value for weight in model.weights]
        self.stored = [[tf.Variable(part, trainable=False) for part in small] for small in stored or []]
        # In lambdas, so that a SavedModel does not track the Keras model.
        dtype = tf.as_dtype(model.dtype_policy.compute_dtype)
        self.restored: Callable[[], list[tf.Tensor]] = lambda: [
            _restored(small, dtype) for _, small in _restored_whole(model, self.stored)
        ]
        """In a graph: restores all weights except embedding tables; empty if no weight is quantized."""
        self.computing_with = functools.partial(_computing_with, model, self.stored)
        """`computing_with(values)`: graphs traced within it compute with the result of `restored`."""
        self.specs: Callable[[], list[tf.TensorSpec]] = lambda: [
            tf.TensorSpec(small[0].shape, _restored_dtype(small, dtype))
            for _, small in _restored_whole(model, self.stored)
        ]
        """Shapes and dtypes of the result of `restored`."""

    def restoring(self, body: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function for graphs that runs `body` with the model computing with the stored weights.

        They are restored once in each call, outside of loops of `body`. `body` must not call a graph function that is
        traced separately.
        """

        def restoring_body(*arguments: Any) -> Any:
            with self.computing_with(self.restored()):
                return body(*arguments)

        return restoring_body


def _restored_whole(model: keras.Model, stored: list[Any]) -> list[tuple[keras.Variable, Any]]:
    """Returns the weights except embedding tables, each with its stored form."""
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
    """Returns the products' dtype for a weight of several axes, float32 for others; integers keep their dtype."""
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
            scope.add_update((weight, value))  # the scope's constructor would cast it to float32
        for layer in _lookups(model):
            stack.enter_context(_looking_up(layer, parts[id(layer._embeddings)], scope))
        yield


def _lookups(model: keras.Model) -> list[Any]:
    """Returns the layers whose table is restored row by row."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]
    return [layer for layer in layers if not layer.mask_zero]


@contextlib.contextmanager
def _looking_up(layer: Any, small: list[tf.Variable], scope: keras.StatelessScope) -> Iterator[None]:
    """Within it, an embedding layer restores only the rows that it looks up, not its whole table."""
    whole, dtype = layer.call, tf.as_dtype(layer.compute_dtype)

    def look_up(inputs: tf.Tensor, *arguments: Any, **named: Any) -> tf.Tensor:
        if arguments or any(named.values()):  # reverse=True uses the table as a kernel
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
