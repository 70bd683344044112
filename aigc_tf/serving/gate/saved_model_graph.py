"""The graph of a SavedModel and which part of it each signature runs, read without running it."""

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aigc_tf.errors import RunError
from aigc_tf.serving.gate.saved_model_protos import DecodeError, saved_model_pb2

INIT_OP = "__saved_model_init_op"
"""Signature that TensorFlow adds itself; it runs once, when the model is loaded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a node."""

    signatures: tuple[str, ...]
    """The signatures that run it; empty if no client can make it run."""
    function: str
    """Name in the function library; empty in the graph itself."""
    node: str
    """Name of the node; empty for the function as a whole."""

    def __str__(self) -> str:
        who = f"signature {', '.join(self.signatures)}" if self.signatures else "no signature"
        return ", ".join(part for part in (who, self.function and f"function {self.function}", self.node) if part)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedGraph:
    """The graph that a server loads."""

    tags: tuple[str, ...]
    meta_graph: Any
    """MetaGraphDef."""
    nodes: tuple[tuple[Place, Any], ...]
    """Every node (NodeDef), those of functions included."""
    functions: tuple[tuple[Place, Any], ...]
    """Every function (FunctionDef)."""

    @property
    def signatures(self) -> dict[str, Any]:
        """The signatures that a client can call, SignatureDef by name."""
        return {name: self.meta_graph.signature_def[name] for name in _asked(self.meta_graph)}


def read_graph(folder: str | os.PathLike[str]) -> SavedGraph:
    """Reads `saved_model.pb`: the graph tagged `serve`, or the first one without such a tag.

    Raises:
        RunError: If the file cannot be read as a SavedModel.
    """
    path = Path(folder) / "saved_model.pb"
    try:
        meta_graphs = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs
    except (DecodeError, OSError) as error:
        raise RunError(f"{path} cannot be read as a SavedModel ({error}); export or copy it again.") from error
    if not meta_graphs:
        raise RunError(f"{path} holds no graph; export or copy it again.")
    meta_graph = next((one for one in meta_graphs if "serve" in one.meta_info_def.tags), meta_graphs[0])
    graph = meta_graph.graph_def
    bodies = {function.signature.name: function.node_def for function in graph.library.function}
    users = _users(meta_graph, bodies)

    def place(function: str, node: str) -> Place:
        return Place(signatures=users[function, "" if function else node], function=function, node=node)

    nodes = [(place("", node.name), node) for node in graph.node]
    nodes += [(place(name, node.name), node) for name, body in bodies.items() for node in body]
    functions = [(place(function.signature.name, ""), function) for function in graph.library.function]
    tags = tuple(meta_graph.meta_info_def.tags)
    return SavedGraph(tags=tags, meta_graph=meta_graph, nodes=tuple(nodes), functions=tuple(functions))


def called_functions(node: Any) -> Iterator[str]:
    """Yields the names of the functions that a node may call."""
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func.name
        yield from (function.name for function in value.list.func)
    yield node.op  # TensorFlow 1 calls a function by an op of its name


def _asked(meta_graph: Any) -> list[str]:
    return sorted(name for name in meta_graph.signature_def if name != INIT_OP)


def _users(meta_graph: Any, bodies: dict[str, Any]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Returns the signatures that run (function, "") or a node of the graph itself ("", node)."""
    graph_nodes = {node.name: node for node in meta_graph.graph_def.node}
    users: dict[tuple[str, str], tuple[str, ...]] = collections.defaultdict(tuple)
    for signature in _asked(meta_graph):
        outputs = [info.name for info in meta_graph.signature_def[signature].outputs.values()]
        for place in _reached(outputs, graph_nodes, bodies):
            users[place] += (signature,)
    return users


def _reached(tensors: Iterable[str], graph_nodes: dict[str, Any], bodies: dict[str, Any]) -> set[tuple[str, str]]:
    """Returns what some tensors need: the graph's nodes that lead to them, and the functions these call."""
    waiting = [("", _node_name(tensor)) for tensor in tensors]
    seen: set[tuple[str, str]] = set()
    while waiting:
        place = waiting.pop()
        function, name = place
        if place in seen or (name not in graph_nodes if not function else function not in bodies):
            continue
        seen.add(place)
        run = bodies[function] if function else [graph_nodes[name]]
        if not function:
            waiting += [("", _node_name(tensor)) for tensor in graph_nodes[name].input]
        waiting += [(called, "") for node in run for called in called_functions(node) if called in bodies]
    return seen


def _node_name(tensor: str) -> str:
    """Returns the node of `node:0`, `node` or `^node`."""
    return tensor.lstrip("^").partition(":")[0]
