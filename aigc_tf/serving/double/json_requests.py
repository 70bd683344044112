"""The JSON of REST requests and replies, with the rules and messages of TensorFlow Serving (util/json_tensor.cc).

A predict request has rows (`instances`) or columns (`inputs`); the reply has the same form. The values are those of the
server, but not the bytes: spaces, the order of keys and long values in errors differ.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorflow.core.example import example_pb2

from aigc_tf.serving.double.inference import Answer
from aigc_tf.serving.stand_in.status import StatusError, invalid
from aigc_tf.serving.stand_in.tensors import (
    DTYPES,
    NUMBERS,
    NUMPY_NAMES,
    STRING,
    Tensor,
    decode_text,
    encode_b64,
    json_type,
    show,
    tensor_from_json,
)

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint32", "uint64")
_MAX_DIMENSIONS = 64  # NumPy's
_ESCAPE = re.compile(r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<lone>u[dD][89a-fA-F]..)|.)")


def _read_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("Number too big to be stored in double.")
    return number


def _read_int(text: str) -> int:
    _read_float(text)
    return int(text)


_DECODER = json.JSONDecoder(parse_float=_read_float, parse_int=_read_int)


def parse(body: bytes) -> dict[str, Any]:
    """Returns the object of a request's body.

    Raises:
        StatusError: If it is not a JSON object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    try:
        # Anything after the document is ignored. Bytes that are not UTF-8 become lone surrogates.
        text = body.decode("utf-8", "surrogateescape").lstrip()
        document, end = _DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
    except RecursionError:
        raise invalid("JSON Parse error: the document is nested too deeply") from None
    except ValueError as error:  # a number
        raise invalid(f"JSON Parse error: {error}") from None
    if "\\u" in text and any(escape["lone"] for escape in _ESCAPE.finditer(text, 0, end)):
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.")
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {show(document)} Is not object")
    return document


def signature_of(document: Mapping[str, Any]) -> str:
    """Returns the name of the signature, empty for the default one.

    Raises:
        StatusError: If it is not a string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {show(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name


def inputs_of(document: Mapping[str, Any], infos: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Returns the inputs of a predict request.

    Args:
        document: The request.
        infos: Each input's `dtype`, by name.
    Raises:
        StatusError: If they do not fit.
    """
    dtypes = {name: NUMBERS[info["dtype"]] for name, info in infos.items()}
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {show(document)} Not formatted correctly expecting only one of 'inputs' or 'instances' keys "
            "to exist "
        )
    if "instances" in document:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise invalid(f"JSON Value: {show(document)} Expecting 'instances' to be an list/array")
        if not rows:
            raise invalid(f"JSON Value: {show(document)} No values in 'instances' array")
        return _from_rows(rows, dtypes)
    if "inputs" in document:
        return _from_columns(document["inputs"], dtypes)
    raise invalid("Missing 'inputs' or 'instances' key")


def _from_columns(value: Any, dtypes: Mapping[str, int]) -> dict[str, np.ndarray]:
    if not _is_object(value):
        if len(dtypes) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        value = {name: value for name in dtypes}
    for name in dtypes:
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    tensors = {name: tensor_from_json(value[name], dtype) for name, dtype in dtypes.items()}
    return {name: _array([tensor]).reshape(tensor.shape) for name, tensor in tensors.items()}


def _from_rows(rows: list[Any], dtypes: Mapping[str, int]) -> dict[str, np.ndarray]:
    if not isinstance(rows[0], dict) and len(dtypes) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    is_named = _is_object(rows[0])
    columns: dict[str, list[Tensor]] = {name: [] for name in dtypes}
    for number, row in enumerate(rows):
        if _is_object(row) != is_named:
            expected, found = ("object", "list") if is_named else ("value/list", "object")
            raise invalid(f"Expecting {expected} but got {found} at item {number} of input list")
        for name, value in row.items() if is_named else [(next(iter(dtypes)), row)]:
            try:
                _add(columns, name, value, dtypes)
            except StatusError as error:
                key = f" key: {name}" if is_named else ""
                raise invalid(
                    f"Failed to process element: {number}{key} of 'instances' list. Error: "
                    f"{error.code}: {error.message}"
                ) from None
        if is_named and row.keys() != dtypes.keys():
            raise invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: {show(row)} keys must be equal "
                f"to: {','.join(sorted(dtypes))}"
            )
    return {name: _array(tensors) for name, tensors in columns.items()}


def _is_object(value: Any) -> bool:
    """Whether a value is an object other than the base64 of a string."""
    return isinstance(value, dict) and not (list(value) == ["b64"] and isinstance(value["b64"], str))


def _add(columns: Mapping[str, list[Tensor]], name: str, value: Any, dtypes: Mapping[str, int]) -> None:
    if name not in dtypes:
        raise invalid(f"JSON object: does not have named input: {name}")
    tensor = tensor_from_json(value, dtypes[name])
    before = columns[name][:1]
    if before and _size(before[0]) != _size(tensor):
        raise invalid(f"Expecting tensor size: {_size(before[0])} but got: {_size(tensor)}")
    if before and before[0].shape != tensor.shape:
        shapes = [f"[{','.join(map(str, some.shape))}]" for some in (before[0], tensor)]
        raise invalid(f"Expecting shape {shapes[0]} but got: {shapes[1]}")
    columns[name].append(tensor)


def _size(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape))


def _array(tensors: list[Tensor]) -> np.ndarray:
    """Stacks tensors of one type and shape along a new first axis."""
    first = tensors[0]
    if len(first.shape) >= _MAX_DIMENSIONS:
        raise invalid(f"The protocol double takes tensors of fewer than {_MAX_DIMENSIONS} dimensions")
    if first.dtype == STRING:
        values = np.empty([len(tensors), *first.shape], object)
        values.ravel()[:] = [text for tensor in tensors for text in tensor.values]
        return values
    name = DTYPES[first.dtype]
    data = b"".join(tensor.values for tensor in tensors if isinstance(tensor.values, bytes))
    return np.frombuffer(bytearray(data), NUMPY_NAMES.get(name, name)).reshape([len(tensors), *first.shape])


def predictions(answer: Answer, document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the reply to a predict request, in the form of the request.

    Raises:
        StatusError: If the outputs cannot be written in that form.
    """
    outputs = answer.outputs
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    infos = answer.version.signatures[answer.signature]["outputs"]
    if "bfloat16" in (infos[name]["dtype"] for name in outputs):  # arrays hold it as float32
        raise invalid("Failed to write JSON value for tensor type: bfloat16")
    lists = {name: _to_lists(name, value) for name, value in outputs.items()}
    if "instances" not in document:
        return {"outputs": lists if len(lists) > 1 else next(iter(lists.values()))}
    sizes: dict[str, int] = {}
    for name, value in outputs.items():
        if value.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        expected = next(iter(sizes.values()), len(value))
        if len(value) != expected:
            raise invalid(f"Tensor name: {name} has inconsistent batch size: {len(value)} expecting: {expected}")
        sizes[name] = len(value)
    if len(lists) == 1:
        return {"predictions": next(iter(lists.values()))}
    return {"predictions": [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]}


def _to_lists(name: str, value: np.ndarray) -> Any:
    kind = value.dtype.name
    if kind == "object":
        if name.endswith("_bytes"):
            return _map_values(value, lambda text: {"b64": encode_b64(text)})
        return _map_values(value, lambda text: text.decode("utf-8", "surrogateescape"))
    if kind in ("float32", "float64"):
        return _map_values(value, lambda number: shorten(number, kind))
    if kind in ("bool", *_INTEGERS):
        return value.tolist()
    raise invalid(f"Failed to write JSON value for tensor type: {kind.replace('float16', 'half')}")


def _map_values(value: np.ndarray, function: Any) -> Any:
    mapped = np.empty(value.shape, object)
    mapped.ravel()[:] = [function(item) for item in value.ravel().tolist()]
    return mapped.tolist()


def shorten(number: float, dtype: str) -> float:
    """Returns a float with as many digits as the server writes: 6, or all if 6 do not identify the value."""
    if not np.isfinite(number):
        return number
    short = float(f"{number:.6g}")
    if np.dtype(dtype).type(short) == number:
        return short
    return float(f"{number:.9g}") if dtype == "float32" else number


def examples_of(document: Mapping[str, Any]) -> list[bytes]:
    """Returns the serialized tf.Examples of a classify or regress request.

    Raises:
        StatusError: If it has no examples, or one does not fit.
    """
    context = _example(document["context"]).SerializeToString() if "context" in document else b""
    if "examples" not in document:
        raise invalid(
            f"JSON Value: {show(document)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise invalid(f"JSON Value: {show(document)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise invalid(f"JSON Value: {show(document)} 'examples' value is an empty array")
    return [context + _example(value).SerializeToString() for value in examples]


def _example(value: Any) -> example_pb2.Example:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {json_type(value)}")
    example = example_pb2.Example()
    for name, content in value.items():
        feature = example.features.feature[name]
        for item in content if isinstance(content, list) else [content]:
            _add_value(feature, name, item)
    return example


def _add_value(feature: Any, name: str, item: Any) -> None:
    kind, value = _feature_value(name, item)
    found = feature.WhichOneof("kind")
    if found not in (None, kind):
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {found.removesuffix('_list')}")
    getattr(feature, kind).value.append(value)


def _feature_value(name: str, item: Any) -> tuple[str, Any]:
    if isinstance(item, str) or (isinstance(item, dict) and not _is_object(item)):
        return "bytes_list", decode_text(item)
    if isinstance(item, float):
        return "float_list", item
    if isinstance(item, int):  # true and false too
        if not -(2**63) <= item < 2**63:
            raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        return "int64_list", int(item)
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {json_type(item)}")


def classifications(answer: Answer) -> dict[str, Any]:
    """Returns the reply to a classify request: pairs of label and score for each example."""
    columns = [_to_lists(name, answer.outputs[name]) for name in ("classes", "scores") if name in answer.outputs]
    if "classes" not in answer.outputs:
        columns.insert(0, [[""] * len(row) for row in columns[0]])
    if "scores" not in answer.outputs:
        columns.append([[0.0] * len(row) for row in columns[0]])
    return {"results": [[list(pair) for pair in zip(*row, strict=True)] for row in zip(*columns, strict=True)]}


def regressions(answer: Answer) -> dict[str, Any]:
    """Returns the reply to a regress request."""
    return {"results": _to_lists("outputs", answer.outputs["outputs"])}
