"""The graph of a training step, traced but not run, to find out how much it computes and how much memory it needs.

It is traced once with an open length, as in the loop on CPU. TensorFlow's shape inference then gives the shapes for a
length, in a tenth of the time of tracing again.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.ops import handle_data_util

from aigc_tf.training.step.batch_losses import LossFunction
from aigc_tf.training.step.recomputation import recomputed
from aigc_tf.training.step.step import forward_key, seed_generators, stateless_seeds
from aigc_tf.training.step.unchanged import check_unchanged


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepGraph:
    """The operations of a step at one padded length."""

    operations: list[tf.Operation]
    """The operations that the step needs, in a possible order of execution."""
    fetches: list[tf.Tensor]
    """The results of the step; alive to its end."""
    constants: frozenset[str]
    """Names of operations that TensorFlow computes once, when it optimises the graph."""


class TracedStep:
    """A step of one replica: forward, backward, and with an update the norm and what the update does.

    Args:
        model: Its variables are read, but nothing is computed with them.
        losses: Of the task.
        spec: Shapes and types of the batch of one forward; the length may be open.
        update: `update(gradients, step)` applies the gradients. None: the step ends with them.
        blocks: Layers that are computed again in the backward pass.
    Raises:
        InputError: If the forward changes a variable. A step with an update is not checked, since updates do.
    """

    def __init__(
        self,
        model: keras.Model,
        losses: LossFunction,
        spec: Mapping[str, tf.TensorSpec],
        *,
        update: Callable[[list[tf.Tensor], tf.Tensor], None] | None = None,
        blocks: Sequence[keras.layers.Layer] = (),
    ):
        generators, variables = seed_generators(model), model.trainable_variables

        def step(batch: dict[str, tf.Tensor], number: tf.Tensor) -> list[tf.Tensor]:
            key = forward_key(0, number, 0)
            with stateless_seeds(generators, key), recomputed(blocks), tf.GradientTape() as tape:
                found = losses(model, batch)
                total = tf.reduce_sum(found.values * found.weights)
            gradients = tape.gradient(total, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
            if update is None:
                return [*gradients, total]
            norm = tf.linalg.global_norm(gradients)
            update([gradient * norm for gradient in gradients], number)
            return [total, norm]

        function = tf.function(step).get_concrete_function(dict(spec), tf.TensorSpec([], tf.int64))
        self._graph = function.graph
        if update is None:
            check_unchanged(model, self._graph)
        self._definition = self._graph.as_graph_def()
        self._constants = folded_constants(self._graph)

    def at(self, length: int) -> StepGraph:
        """Returns the step for batches whose open dimensions are `length`."""
        graph = tf.Graph()
        with graph.as_default():
            inputs = {tensor.name: _placeholder(tensor, length) for tensor in self._graph.inputs}
            tf.import_graph_def(self._definition, input_map=inputs, name="")
        fetches = [graph.get_tensor_by_name(tensor.name) for tensor in self._graph.outputs]
        effects = [graph.get_operation_by_name(operation.name) for operation in self._graph.control_outputs]
        needed = needed_operations([*(tensor.op for tensor in fetches), *effects], self._constants)
        operations = [operation for operation in graph.get_operations() if operation in needed]
        return StepGraph(operations=operations, fetches=fetches, constants=self._constants)


def _placeholder(tensor: tf.Tensor, length: int) -> tf.Tensor:
    if tensor.dtype == tf.resource:
        placeholder = tf.compat.v1.placeholder(tf.resource, [])
        # Copy the variable's shape and type, or nothing read from it would have a shape.
        handle_data_util.set_handle_data(placeholder, handle_data_util.get_resource_handle_data(tensor))
        return placeholder
    shape = [length if size is None else size for size in tensor.shape]
    return tf.compat.v1.placeholder(tensor.dtype, shape)


def folded_constants(graph: Any) -> frozenset[str]:
    """Names of the operations whose values depend on the graph alone: constants, known shapes, what uses only these.

    Random numbers are not among them, since their seeds depend on the step.
    """
    constants: set[str] = set()
    for operation in graph.get_operations():
        if operation.type in ("Shape", "ShapeN", "Size", "Rank"):
            is_constant = all(tensor.shape.is_fully_defined() for tensor in operation.inputs)
        elif operation.inputs and not operation.op_def.is_stateful and not operation.control_inputs:
            is_constant = all(tensor.op.name in constants for tensor in operation.inputs)
        else:
            is_constant = operation.type == "Const"
        if is_constant:
            constants.add(operation.name)
    return frozenset(constants)


def needed_operations(ends: list[tf.Operation], constants: frozenset[str]) -> set[tf.Operation]:
    needed: set[tf.Operation] = set()
    waiting = list(ends)
    while waiting:
        operation = waiting.pop()
        if operation not in needed:
            needed.add(operation)
            if operation.name not in constants:
                waiting += [tensor.op for tensor in operation.inputs]
                waiting += operation.control_inputs
    return needed
