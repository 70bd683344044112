"""No forward changes a variable, so a network after n steps depends on its gradients alone.

Batch statistics, such as BatchNormalization's, differ between micro-batches and the whole batch, and between one
replica and two; and a skipped or repeated step would change them. So a network whose forward assigns to a variable is
refused before its first step.
"""

from typing import Any

import keras
from tensorflow.python.framework import auto_control_deps_utils

from aigc_tf.errors import InputError, some_of


def check_unchanged(model: keras.Model, graph: Any) -> None:
    """Checks the graph of a forward, traced outside any replica of a strategy.

    Args:
        model: The model whose variables must not change.
        graph: A `FuncGraph` with only forward and backward.
    Raises:
        InputError: If it assigns to a variable of the model.
    """
    # TensorFlow itself lists the inputs that no operation of the graph writes to, including its calls, loops and
    # branches, to know which operations must wait for one another.
    read_only = set(auto_control_deps_utils.get_read_only_resource_input_indices_graph(graph))
    handles = {id(inside): outside for outside, inside in graph.captures}
    written = {
        id(handles[id(tensor)])
        for index, tensor in enumerate(graph.inputs)
        if index not in read_only and id(tensor) in handles
    }
    changed = [variable for variable in model.variables if written & _handles_of(variable)]
    if changed:
        layers = sorted({variable.path.rpartition("/")[0] for variable in changed})
        names = sorted({variable.name for variable in changed})
        raise InputError(
            f"The network cannot be trained exactly: its forward changes {some_of(names)} of the layers "
            f"{some_of(layers)}, so micro-batches, replicas and restarts would give other weights. Freeze these "
            f"layers (training.optimizer.freeze=('{layers[0]}/*',)), or use others, such as GroupNormalization or "
            "LayerNormalization."
        )


def _handles_of(variable: keras.Variable) -> set[int]:
    """Returns the ids of a variable's handles; under a strategy each replica has one."""
    value = variable.value
    return {id(one.handle) for one in getattr(value, "values", [value])}
