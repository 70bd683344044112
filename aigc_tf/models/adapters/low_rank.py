"""LoRA: a kernel W (I, O) stays fixed, and the product of two narrow matrices, which train, is added to it.

    x W + scale * (x A) B        A (I, R) drawn, B (R, O) zeros, scale = alpha / R

A kernel of more than two axes, such as Keras' kernels with an axis for the attention heads, is treated as a matrix: I
and O are the products of its input and of its output axes. Keras' own `enable_lora` factorises only its last axis,
which for a query (D, H, E) is another update with H times the weights of A. It also adds A B to W in every step, so the
backward pass computes the gradient of the whole kernel again.

Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, section 4.1.
"""

import math
import string
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from aigc_tf.models.gpt2.layers import DecoderBlock, LowRank

SUFFIXES = ("lora_a", "lora_b")
"""Ends of these variables' paths."""
_BLOCK_KERNELS = ("attention_inputs", "attention_output", "feed_forward_input", "feed_forward_output")


class Kernel(NamedTuple):
    """A kernel that can get a low rank."""

    path: str
    largest_rank: int
    """min(I, O)"""
    attach: Callable[[int, float, int], None]
    """`attach(rank, alpha, seed)`"""


class LowRankDense(keras.layers.Dense):
    """A built `Dense` becomes one of these in place."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """As `Dense`, with the low rank."""
        x = ops.matmul(inputs, self.kernel)
        x = ops.add(x, ops.matmul(self.lora_scale * ops.matmul(inputs, self.lora_a), self.lora_b))
        return _finish(self, x)


class LowRankEinsumDense(keras.layers.EinsumDense):
    """A built `EinsumDense` becomes one of these in place."""

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """As `EinsumDense`, with the low rank."""
        parts = _parts(self.equation)
        x = ops.einsum(self.equation, inputs, self.kernel)
        narrow = self.lora_scale * ops.einsum(parts.down, inputs, self.lora_a)
        return _finish(self, ops.add(x, ops.einsum(parts.up, narrow, self.lora_b)))


def find_kernels(model: keras.Model) -> list[Kernel]:
    """Returns the kernels of a model's `Dense` and `EinsumDense` layers and decoder blocks, in their order."""
    kernels: dict[str, Kernel] = {}
    for layer in model._flatten_layers():
        if isinstance(layer, DecoderBlock):
            found = [_of_block(layer, name) for name in _BLOCK_KERNELS]
        elif type(layer) is keras.layers.Dense:
            found = [_of_dense(layer)]
        elif type(layer) is keras.layers.EinsumDense and _is_matrix(layer.equation):
            found = [_of_einsum_dense(layer)]
        else:
            found = []
        kernels |= {kernel.path: kernel for kernel in found}
    return list(kernels.values())


def deltas(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the updates that a model's low ranks add to its kernels: float32, by the kernels' paths."""
    added: dict[str, np.ndarray] = {}
    for layer in model._flatten_layers():
        if isinstance(layer, DecoderBlock):
            for name in _BLOCK_KERNELS:
                kernel, _, *low_rank = getattr(layer, name)
                for down, up, scale in low_rank:
                    added[kernel.path] = scale * (np.asarray(down) @ np.asarray(up))
        elif isinstance(layer, LowRankDense):
            added[layer.kernel.path] = layer.lora_scale * (np.asarray(layer.lora_a) @ np.asarray(layer.lora_b))
        elif isinstance(layer, LowRankEinsumDense):
            product = np.einsum(_parts(layer.equation).delta, np.asarray(layer.lora_a), np.asarray(layer.lora_b))
            added[layer.kernel.path] = layer.lora_scale * product
    return added


class _Parts(NamedTuple):
    inputs: list[int]
    """Axes of the kernel that are summed over."""
    outputs: list[int]
    down: str
    """Equation of x A,"""
    up: str
    """of (x A) B,"""
    delta: str
    """and of A B in the layout of the kernel."""


def _parts(equation: str) -> _Parts:
    x, kernel, result = equation.replace(",", "->").split("->")
    narrow = next(letter for letter in string.ascii_letters if letter not in equation)
    summed = "".join(letter for letter in kernel if letter not in result)
    kept = "".join(letter for letter in kernel if letter in result)
    rest = "".join(letter for letter in x if letter not in summed) + narrow
    return _Parts(
        inputs=[kernel.index(letter) for letter in summed],
        outputs=[kernel.index(letter) for letter in kept],
        down=f"{x},{summed}{narrow}->{rest}",
        up=f"{rest},{narrow}{kept}->{result}",
        delta=f"{summed}{narrow},{narrow}{kept}->{kernel}",
    )


def _is_matrix(equation: str) -> bool:
    """Whether the kernel is one matrix: each axis is either summed over or new, so no kernel per row or head."""
    x, kernel, result = equation.replace(",", "->").split("->")
    return all((letter in x) != (letter in result) for letter in kernel)


def _of_dense(layer: Any) -> Kernel:
    def attach(rank: int, alpha: float, seed: int) -> None:
        inputs, outputs = layer.kernel.shape
        _attach(layer, LowRankDense, (inputs,), (outputs,), rank=rank, alpha=alpha, seed=seed)

    return Kernel(layer.kernel.path, min(layer.kernel.shape), attach)


def _of_einsum_dense(layer: Any) -> Kernel:
    parts, shape = _parts(layer.equation), layer.kernel.shape
    inputs, outputs = (tuple(shape[axis] for axis in axes) for axes in (parts.inputs, parts.outputs))

    def attach(rank: int, alpha: float, seed: int) -> None:
        _attach(layer, LowRankEinsumDense, inputs, outputs, rank=rank, alpha=alpha, seed=seed)

    return Kernel(layer.kernel.path, min(math.prod(inputs), math.prod(outputs)), attach)


def _attach(
    layer: Any,
    cls: type,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    *,
    rank: int,
    alpha: float,
    seed: int,
) -> None:
    """Gives a layer its variables and the `call` that reads them. It stays the same object for layers that hold it."""
    layer.lora_a, layer.lora_b = _add_low_rank(layer, "", layer.kernel, inputs, outputs, rank=rank, seed=seed)
    layer.lora_scale = alpha / rank
    layer.__class__ = cls


def _of_block(block: DecoderBlock, name: str) -> Kernel:
    kernel, bias = getattr(block, name)[:2]

    def attach(rank: int, alpha: float, seed: int) -> None:
        inputs, outputs = kernel.shape
        low_rank = _add_low_rank(block, f"{name}_", kernel, (inputs,), (outputs,), rank=rank, seed=seed)
        setattr(block, name, (kernel, bias, LowRank(*low_rank, alpha / rank)))

    return Kernel(kernel.path, min(kernel.shape), attach)


def _add_low_rank(
    layer: Any,
    prefix: str,
    kernel: keras.Variable,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    *,
    rank: int,
    seed: int,
) -> tuple[keras.Variable, keras.Variable]:
    down = add_variable(layer, f"{prefix}lora_a", (*inputs, rank), beside=kernel, initializer=_drawn(kernel.path, seed))
    return down, add_variable(layer, f"{prefix}lora_b", (rank, *outputs), beside=kernel, initializer="zeros")


def add_variable(
    layer: Any, name: str, shape: tuple[int, ...], *, beside: keras.Variable, initializer: Any
) -> keras.Variable:
    """Gives a built layer a new float32 variable, whose path begins like that of one of its variables.

    Keras takes the path from the place of the layer's first call, and locks a built layer against new variables; its
    own `enable_lora` unlocks it in the same way.
    """
    layer._parent_path = "/".join(beside.path.split("/")[:-2])
    was_locked = layer._tracker.locked
    layer._tracker.unlock()
    try:
        return layer.add_weight(
            name=name, shape=shape, initializer=initializer, dtype="float32", autocast=layer.autocast
        )
    finally:
        if was_locked:
            layer._tracker.lock()


def _drawn(path: str, seed: int) -> Callable[..., Any]:
    """Draws from a normal distribution of variance 1 / I, by seed and path, so that x A has about the size of x."""

    def initialize(shape: tuple[int, ...], dtype: Any = None) -> Any:
        deviation = 1.0 / math.sqrt(math.prod(shape[:-1]))
        values = np.random.default_rng([seed, zlib.crc32(path.encode())]).normal(0.0, deviation, shape)
        return ops.convert_to_tensor(values.astype(np.float32))

    return initialize


def _finish(layer: Any, x: Any) -> Any:
    if layer.bias is not None:
        x = ops.add(x, layer.bias)
    return x if layer.activation is None else layer.activation(x)
