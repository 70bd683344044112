"""Checks for signatures that a server's batching, its REST interface or its clients cannot use."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from aigc_tf.serving.apis import SERVING_DEFAULT
from aigc_tf.serving.gate.findings import REFUSED, WARNED, Finding
from aigc_tf.serving.gate.saved_model_graph import SavedGraph
from aigc_tf.serving.gate.saved_model_protos import types_pb2

# Names that TensorFlow and Keras give to unnamed tensors.
_NAMELESS = re.compile(r"output_\d+|(args|inputs|input|keras_tensor|unknown)(_\d+)+|args|kwargs|unknown")
# The types that TensorFlow Serving's util/json_tensor.cc reads and writes.
_JSON_TYPES = frozenset(
    f"DT_{name}"
    for name in ("FLOAT", "DOUBLE", "INT32", "INT16", "INT8", "UINT8", "STRING", "INT64", "BOOL", "UINT32", "UINT64")
)
_CLASSIFY_OUTPUTS = ({"classes"}, {"scores"}, {"classes", "scores"})


def check_signatures(graph: SavedGraph) -> Iterator[Finding]:
    """Yields problems that a server or its clients have with the signatures of a graph."""
    signatures = graph.signatures
    if not signatures:
        yield Finding(
            grade=REFUSED,
            what="there is no signature",
            where=("saved_model.pb",),
            why="A server loads the model, but no request can be made.",
            advice="Save it with tf.saved_model.save(..., signatures=...).",
        )
    elif SERVING_DEFAULT not in signatures:
        yield Finding(
            grade=WARNED,
            what=f"there is no signature {SERVING_DEFAULT}",
            where=(f"signatures {', '.join(signatures)}",),
            why="A request without a signature name is answered with an error.",
            advice="Save one of them under that name too, or tell clients to send a signature_name.",
        )
    tensors = [
        (f"signature {signature}, {side} {name}", side, name, info)
        for signature, definition in signatures.items()
        for side, infos in (("input", definition.inputs), ("output", definition.outputs))
        for name, info in sorted(infos.items())
    ]
    if parts := tuple(where for where, _, _, info in tensors if not info.name):
        yield Finding(
            grade=REFUSED,
            what="inputs or outputs of several tensors (ragged or sparse)",
            where=parts,
            why="The server takes and returns one tensor for each name, and answers such a request with an error.",
            advice="Replace a ragged tensor by to_tensor() and row_lengths(), a sparse one by tf.sparse.to_dense().",
        )
    for what, applies, why, advice in _TENSOR_RULES:
        places = tuple(
            f"{where} {_shape_text(info)}"
            for where, side, name, info in tensors
            if info.name and applies(side, name, info)
        )
        if places:
            yield Finding(grade=WARNED, what=what, where=places, why=why, advice=advice)
    yield from _classify(signatures)


def _classify(signatures: dict[str, Any]) -> Iterator[Finding]:
    for name, signature in signatures.items():
        if set(signature.outputs) not in _CLASSIFY_OUTPUTS:
            continue
        inputs = {key: info.dtype for key, info in signature.inputs.items()}
        if inputs != {"inputs": types_pb2.DT_STRING}:
            yield Finding(
                grade=WARNED,
                what="outputs of the Classify API with other inputs",
                where=(f"signature {name}, inputs {', '.join(sorted(inputs)) or 'none'}",),
                why="The Classify API sends serialized tf.Example as one string input called `inputs`.",
                advice="Name the input `inputs`, or use other output names than `classes` and `scores`.",
            )


def _dims(info: Any) -> list[int] | None:
    """Returns the sizes of the axes, -1 for an unknown one; None if the number of axes is unknown."""
    shape = info.tensor_shape
    return None if shape.unknown_rank else [axis.size for axis in shape.dim]


def _shape_text(info: Any) -> str:
    dims = _dims(info)
    return "of unknown rank" if dims is None else f"({', '.join('?' if size < 0 else str(size) for size in dims)})"


def _has_no_name(side: str, name: str, info: Any) -> bool:
    return bool(_NAMELESS.fullmatch(name))


def _has_no_batch(side: str, name: str, info: Any) -> bool:
    dims = _dims(info)
    return dims is None or not dims or dims[0] >= 0


def _has_open_length(side: str, name: str, info: Any) -> bool:
    return side == "input" and any(size < 0 for size in (_dims(info) or ())[1:])


def _is_no_json(side: str, name: str, info: Any) -> bool:
    return types_pb2.DataType.Name(info.dtype) not in _JSON_TYPES


_TENSOR_RULES: tuple[tuple[str, Callable[[str, str, Any], bool], str, str], ...] = (
    (
        "inputs or outputs without a batch axis",
        _has_no_batch,
        "With batching on, the server joins and splits requests along the first axis, which must be free: it refuses "
        "these. REST's `instances` also needs a batch axis.",
        "Make each a vector (B,) or more, with None as its first axis; or serve the model without batching and use "
        "`inputs` in requests.",
    ),
    (
        "inputs without a fixed length",
        _has_open_length,
        "With batching on, requests of different lengths are refused; with pad_variable_length_inputs the server pads "
        "them with their first element, which a model takes for content.",
        "Give all axes but the first a fixed size; or add an input with the length of each row, and set "
        "pad_variable_length_inputs.",
    ),
    (
        "inputs or outputs without a name",
        _has_no_name,
        "Clients must send and read these names.",
        "Name each input by tf.TensorSpec(..., name=...), and return a dictionary of the outputs.",
    ),
    (
        "inputs or outputs without a JSON type",
        _is_no_json,
        "The REST interface of the server fails on them; gRPC does not.",
        "Cast them to float32 in the exported function.",
    ),
)
