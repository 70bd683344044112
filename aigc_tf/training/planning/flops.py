"""The floating-point operations of a training step: those of its matrix products and convolutions.

A multiplication and an addition count as two. Everything else (norms, softmax, dropout, the optimizer) is left out, as
in the definition of FLOPs utilisation that uses the numbers.

Source: Chowdhery et al. 2022, "PaLM", section 4.1 and appendix B, https://arxiv.org/abs/2204.02311
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import function_def_to_graph

from aigc_tf.training.step.traced_step import StepGraph, TracedStep

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_BRANCHES = ("If", "StatelessIf")
_LOOPS = ("While", "StatelessWhile")


class StepFlops:
    """Floating-point operations of a step, by padded length; counted on first use.

    Up to three lengths are all counted. If there are more, the shortest, the longest and the middle one are, and the
    polynomial through them gives the others: products of tokens with weights grow with the length, attention with its
    square.

    Args:
        step: The step of one replica, up to its gradients; it is not kept.
        lengths: All padded lengths.
    Raises:
        ValueError: If the size of a product is not known before the step runs.
    """

    def __init__(self, step: TracedStep, lengths: Iterable[int]):
        ordered = sorted({int(length) for length in lengths})
        last = len(ordered) - 1
        places = sorted({0, last // 2, last})
        self._counted = {ordered[place]: count_flops(step.at(ordered[place])) for place in places}

    def __call__(self, length: int) -> int:
        """Returns the count for one padded length."""
        total = Fraction(0)
        for one, count in self._counted.items():  # Lagrange's form
            total += count * math.prod(Fraction(length - other, one - other) for other in self._counted if other != one)
        return round(total)


def count_flops(step: StepGraph) -> int:
    """Counts the operations of a step.

    Raises:
        ValueError: If the size of a product, or the iterations of a loop with products in it, are not known.
    """
    return _count(step.operations)


def _count(operations: Sequence[tf.Operation]) -> int:
    return sum(_count_operation(operation) for operation in operations)


def _count_operation(operation: tf.Operation) -> int:
    kind = operation.type
    if kind in _COUNTERS:
        return _COUNTERS[kind](operation)
    if kind in _CALLS:
        return _count_function(operation, "f", operation.inputs)
    if kind in _BRANCHES:
        return max(_count_function(operation, name, operation.inputs[1:]) for name in ("then_branch", "else_branch"))
    if kind in _LOOPS:
        inside = _count_function(operation, "body", operation.inputs)
        return inside * _turns(operation) if inside else 0
    return 0


def _count_function(operation: tf.Operation, attribute: str, inputs: Sequence[tf.Tensor]) -> int:
    name = operation.get_attr(attribute).name
    definition = operation.graph._get_function(name).cached_definition
    shapes = [tensor.shape for tensor in inputs]
    return _count(function_def_to_graph.function_def_to_graph(definition, input_shapes=shapes).get_operations())


def _turns(operation: tf.Operation) -> int:
    # The first inputs of a tf.while_loop are its counter and the largest number of its iterations.
    turns = tf.get_static_value(operation.inputs[1]) if len(operation.inputs) > 1 else None
    if turns is None or np.ndim(turns) or turns < 0:
        raise ValueError(f"The loop {operation.name} has products in it, and its number of iterations is not known.")
    return int(turns)


def _sizes(tensor: tf.Tensor) -> list[int]:
    if not tensor.shape.is_fully_defined():
        raise ValueError(f"The shape of {tensor.name} is not known before the step runs: {tensor.shape}.")
    return [int(size) for size in tensor.shape]


def _count_matmul(operation: tf.Operation) -> int:
    """Products of `(..., M, K) @ (..., K, N)`: each element of the output is a sum of K products."""
    is_batch = operation.type != "MatMul"
    transposed = operation.get_attr("adj_x" if is_batch else "transpose_a")
    inner = _sizes(operation.inputs[0])[-2 if transposed else -1]
    return 2 * inner * math.prod(_sizes(operation.outputs[0]))


def _count_einsum(operation: tf.Operation) -> int:
    """Products of two inputs: one for each combination of all axes that occur."""
    if len(operation.inputs) != 2:
        return 0
    equation = operation.get_attr("equation").decode().replace(" ", "")
    sizes: dict[str, int] = {}
    for term, tensor in zip(equation.split("->")[0].split(","), operation.inputs, strict=True):
        shape = _sizes(tensor)
        named = len(re.sub(r"\.\.\.", "", term))
        # An ellipsis stands for the axes without a name; they are counted from the end, as they broadcast.
        unnamed = [f"-{place}" for place in range(len(shape) - named, 0, -1)]
        before, _, after = term.partition("...")
        for axis, size in zip([*before, *unnamed, *after], shape, strict=True):
            sizes[axis] = max(sizes.get(axis, 1), size)
    return 2 * math.prod(sizes.values())


def _count_convolution(operation: tf.Operation) -> int:
    """Each element of the output is a sum over the filter's window and the input channels of its group.

    The gradients of input and filter take as many products as the forward.
    """
    kind = operation.type
    kernel = operation.outputs[0] if kind.endswith("BackpropFilter") else operation.inputs[1]
    output = operation.inputs[2] if "Backprop" in kind else operation.outputs[0]
    # (height, width, input channels, output channels); depthwise, each output channel sees one input channel.
    window = _sizes(kernel)[: 2 if kind.startswith("Depthwise") else 3]
    return 2 * math.prod(window) * math.prod(_sizes(output))


_COUNTERS: dict[str, Callable[[tf.Operation], int]] = {
    "Einsum": _count_einsum,
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _count_matmul),
    **{
        f"{name}{direction}": _count_convolution
        for name in ("Conv2D", "DepthwiseConv2dNative")
        for direction in ("", "BackpropInput", "BackpropFilter")
    },
}
