"""Tensors and their two forms in JSON.

- As nested lists, with the rules and messages of TensorFlow Serving (util/json_tensor.cc). A string is a
  JSON string, or `{"b64": "..."}` for any bytes.
- As `{"dtype": "float", "shape": [2, 3], "data": "..."}`, which is exact: the memory in base64, row by row; for strings
  a list of base64. Nested lists cannot express the shape of a tensor without elements, nor all types.
"""

import array
import base64
import binascii
import dataclasses
import json
import math
from typing import Any

from aigc_tf.serving.stand_in.status import StatusError, invalid

DTYPES = {
    0: "invalid",
    1: "float",
    2: "double",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    7: "string",
    8: "complex64",
    9: "int64",
    10: "bool",
    11: "qint8",
    12: "quint8",
    13: "qint32",
    14: "bfloat16",
    15: "qint16",
    16: "quint16",
    17: "uint16",
    18: "complex128",
    19: "half",
    20: "resource",
    21: "variant",
    22: "uint32",
    23: "uint64",
}
"""TensorFlow's names of the types that signatures have, by their numbers in tensorflow/core/framework/types.proto."""
STRING = 7
NUMPY_NAMES = {"float": "float32", "double": "float64", "half": "float16"}
"""NumPy's name of a type, if it differs from TensorFlow's."""
NUMBERS = {name: number for number, name in DTYPES.items()}
"""Numbers of the types, by TensorFlow's names."""
ARRAY_CODES = {
    1: "f",
    2: "d",
    3: "i",
    4: "B",
    5: "h",
    6: "b",
    9: "q",
    10: "B",
    14: "H",
    17: "H",
    19: "H",
    22: "I",
    23: "Q",
}
"""The array module's letter of each type except strings; 2-byte floats are copied as bits."""
_BOOL, _FLOATS, _NOT_IN_LISTS = 10, (1, 2), (14, 17, 19)
_LARGEST_DEPTH = 254  # dimensions of a tensor
_SHOWN = 256


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the C API, copied."""

    dtype: int
    shape: tuple[int, ...]
    values: bytes | list[bytes]
    """The memory, row by row; a list for strings."""


def tensor_from_json(value: Any, dtype: int) -> Tensor:
    """Returns the tensor that nested lists hold.

    Args:
        value: Nested lists, all of one length at each depth.
        dtype: Number of the type.
    Raises:
        StatusError: If it is not such a tensor, with the server's message.
    """
    if dtype != STRING and (dtype not in ARRAY_CODES or dtype in _NOT_IN_LISTS):
        raise StatusError(
            "UNIMPLEMENTED", f"Conversion of JSON Value: {show(value)} to type: {DTYPES.get(dtype, dtype)}"
        )
    shape = _shape_of(value)
    flat: list[Any] = []
    _flatten(value, shape, 0, flat)
    if dtype == STRING:
        return Tensor(dtype, shape, [decode_text(item) for item in flat])
    for item in flat:
        if not _fits(item, dtype):
            raise invalid(f"JSON Value: {show(item)} Type: {json_type(item)} is not of expected type: {DTYPES[dtype]}")
    code = ARRAY_CODES[dtype]
    return Tensor(dtype, shape, array.array(code, map(_narrow, flat) if dtype in _FLOATS else flat).tobytes())


def tensor_to_json(tensor: Tensor) -> Any:
    """Returns a tensor as nested lists, strings as `{"b64": "..."}`.

    Raises:
        StatusError: If the server does not write its type.
    """
    if isinstance(tensor.values, list):
        flat: list[Any] = [{"b64": text} for text in map(encode_b64, tensor.values)]
    elif tensor.dtype == _BOOL:
        flat = [byte != 0 for byte in tensor.values]
    elif tensor.dtype in ARRAY_CODES and tensor.dtype not in _NOT_IN_LISTS:
        flat = array.array(ARRAY_CODES[tensor.dtype], tensor.values).tolist()
    else:
        raise invalid(f"Failed to write JSON value for tensor type: {DTYPES.get(tensor.dtype, tensor.dtype)}")
    return _nest(flat, tensor.shape)


def tensor_from_bytes(value: Any) -> Tensor:
    """Returns the tensor that `{"dtype": ..., "shape": ..., "data": ...}` describes.

    Raises:
        StatusError: If it does not describe a tensor.
    """
    try:
        dtype, shape = NUMBERS[value["dtype"]], tuple(value["shape"])
        if dtype == STRING:
            values: bytes | list[bytes] = [base64.b64decode(text, validate=True) for text in value["data"]]
            size: float = len(values)
        else:
            values = base64.b64decode(value["data"], validate=True)
            size = len(values) / array.array(ARRAY_CODES[dtype]).itemsize
    except (KeyError, TypeError, ValueError):
        raise invalid(f"tensor parsing error: {show(value)}") from None
    if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) != size:
        raise invalid(f"tensor parsing error: shape {show(list(shape))} does not fit {size} values")
    return Tensor(dtype, shape, values)


def tensor_to_bytes(tensor: Tensor) -> dict[str, Any]:
    """Returns a tensor as `{"dtype": ..., "shape": ..., "data": ...}`."""
    data = (
        [encode_b64(text) for text in tensor.values] if isinstance(tensor.values, list) else encode_b64(tensor.values)
    )
    return {"dtype": DTYPES.get(tensor.dtype, str(tensor.dtype)), "shape": tensor.shape, "data": data}


def encode_b64(values: bytes) -> str:
    """Returns base64 as text."""
    return base64.b64encode(values).decode("ascii")


def show(value: Any) -> str:
    """Returns a JSON value for an error message, shortened if it is long."""
    text = ""
    for piece in json.JSONEncoder(ensure_ascii=False).iterencode(_shallow(value)):
        text += piece[:_SHOWN]
        if len(text) >= _SHOWN:
            return text[:_SHOWN]
    return text


def _shallow(value: Any) -> Any:
    return value[:_SHOWN] if isinstance(value, str) else value


def _shape_of(value: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if len(shape) > _LARGEST_DEPTH:
            raise invalid(f"A tensor has at most {_LARGEST_DEPTH} dimensions, received lists that are nested deeper")
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _flatten(value: Any, shape: tuple[int, ...], level: int, flat: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {show(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        flat.append(value)
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        _flatten(item, shape, level + 1, flat)


def decode_text(item: Any) -> bytes:
    """Returns the bytes that a JSON string, or an object of base64, stands for.

    Raises:
        StatusError: If it is neither.
    """
    if isinstance(item, dict):
        if list(item) != ["b64"] or not isinstance(item["b64"], str):
            raise invalid(f"JSON Value: {show(item)} not formatted correctly for base64 data")
        try:
            return base64.b64decode(item["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise invalid("Unable to base64 decode") from None
    if not isinstance(item, str):
        raise invalid(f"JSON Value: {show(item)} Type: {json_type(item)} is not of expected type: string")
    try:
        return item.encode("utf-8", "surrogateescape")  # bytes that are not UTF-8 pass unchanged, as in the server
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None


def _fits(item: Any, dtype: int) -> bool:
    if dtype == _BOOL:
        return item is True or item is False
    if dtype in _FLOATS:
        return type(item) in (int, float)
    code = ARRAY_CODES[dtype]
    bits = 8 * array.array(code).itemsize
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if code.islower() else (0, (1 << bits) - 1)
    return type(item) is int and low <= item <= high


def _narrow(item: float) -> float:
    """Rounds to float32, where too large numbers become infinite."""
    try:
        return float(item)
    except OverflowError:
        return math.inf if item > 0 else -math.inf


def json_type(item: Any) -> str:
    """Returns the name that the server's errors have for the type of a JSON value."""
    if isinstance(item, bool):
        return "True" if item else "False"
    names: dict[type, str] = {type(None): "Null", dict: "Object", list: "Array", str: "String"}
    return names.get(type(item), "Number")


def _nest(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    step = math.prod(shape[1:])
    return [_nest(flat[row * step : (row + 1) * step], shape[1:]) for row in range(shape[0])]
