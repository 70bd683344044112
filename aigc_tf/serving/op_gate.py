"""Which ops a SavedModel needs, and whether a stock TensorFlow Serving has them."""

import os
from collections.abc import Iterable
from pathlib import Path

from tensorflow.core.protobuf import saved_model_pb2

from aigc_tf.config import RunError

# XLA is switched off in a stock server; Python ops live in the process that made them; RoundRobinTrim is missing
# from servers before 2.20 (tensorflow/serving#2267).
_REFUSED_PREFIXES = ("Xla", "PyFunc", "EagerPyFunc", "TFText>RoundRobin")
_COMPILED = "_XlaMustCompile"


def graph_ops(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the sorted names of all ops of a SavedModel, those of its functions included."""
    return sorted({node.op for node in _nodes(folder)})


def check_ops(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the ops, as `graph_ops`.

    Raises:
        RunError: If a stock server cannot run one of them.
    """
    refused = {node.op for node in _nodes(folder) if node.op.startswith(_REFUSED_PREFIXES)}
    refused |= {f"{node.op} ({_COMPILED})" for node in _nodes(folder) if node.attr[_COMPILED].b}
    if refused:
        raise RunError(f"A stock TensorFlow Serving cannot run {', '.join(sorted(refused))}; nothing was exported.")
    return graph_ops(folder)


def _nodes(folder: str | os.PathLike[str]) -> Iterable:
    saved_model = saved_model_pb2.SavedModel.FromString((Path(folder) / "saved_model.pb").read_bytes())
    for graph in (meta_graph.graph_def for meta_graph in saved_model.meta_graphs):
        yield from graph.node
        for function in graph.library.function:
            yield from function.node_def
