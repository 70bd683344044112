"""Tensors, and how JSON says them: TensorFlow Serving's rules and words (tensorflow_serving/util/json_tensor.cc).

A tensor is nested lists. A string is a JSON string, or `{"b64": "..."}` for any bytes. Unlike there a string always
goes out as `{"b64": "..."}`, so that nothing is lost.
"""

import array
import base64
import binascii
import dataclasses
import json
import math
import struct
from collections.abc import Sequence
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
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "half",
    20: "resource",
    22: "uint32",
    23: "uint64",
}
"""TensorFlow's names of the types, by the numbers of tensorflow/core/framework/types.proto; those of signatures."""
STRING = 7
_CODES = {1: "f", 2: "d", 3: "i", 4: "B", 5: "h", 6: "b", 9: "q", 10: "B", 14: "H", 17: "H", 22: "I", 23: "Q"}
_BOOL, _BFLOAT16, _HALF = 10, 14, 19
_FLOATS = (1, 2)
_LARGEST_DEPTH = 254  # of a tensor's dimensions
_SHOWN = 256


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the C API, copied."""

    dtype: int
    shape: tuple[int, ...]
    values: bytes | list[bytes]
    """As in memory, row by row; of strings a list."""


def tensor_from_json(value: Any, dtype: int, *, shape: Sequence[int] | None = None) -> Tensor:
    """Returns the tensor that JSON describes.

    Args:
        value: Nested lists, all of one length at each depth.
        dtype: Number of the type.
        shape: Sizes of the dimensions; nested lists do not say those of a tensor without elements.
    Raises:
        StatusError: If it is none, in the server's words.
    """
    if dtype != STRING and (dtype not in _CODES or dtype == _BFLOAT16):
        raise StatusError(
            "UNIMPLEMENTED", f"Conversion of JSON Value: {show(value)} to type: {DTYPES.get(dtype, dtype)}"
        )
    found = _shape_of(value)
    flat: list[Any] = []
    _flatten(value, found, 0, flat)
    if shape is not None:
        _check_shape(shape, len(flat))
        found = tuple(shape)
    if dtype == STRING:
        return Tensor(dtype, found, [_to_bytes(item) for item in flat])
    for item in flat:
        if not _fits(item, dtype):
            raise invalid(f"JSON Value: {show(item)} Type: {_json_type(item)} is not of expected type: {DTYPES[dtype]}")
    code = _CODES[dtype]
    return Tensor(dtype, found, array.array(code, map(_narrow, flat) if code == "f" else flat).tobytes())


def tensor_to_json(tensor: Tensor) -> Any:
    """Returns a tensor as nested lists; strings as `{"b64": "..."}`."""
    if isinstance(tensor.values, list):
        flat: list[Any] = [{"b64": base64.b64encode(text).decode()} for text in tensor.values]
    elif tensor.dtype == _HALF:
        flat = list(struct.unpack(f"={len(tensor.values) // 2}e", tensor.values))
    elif tensor.dtype == _BFLOAT16:  # the upper half of a float
        flat = array.array("f", b"".join(b"\0\0" + pair for pair in _pairs(tensor.values))).tolist()
    elif tensor.dtype == _BOOL:
        flat = [byte != 0 for byte in tensor.values]
    elif tensor.dtype in _CODES:
        flat = array.array(_CODES[tensor.dtype], tensor.values).tolist()
    else:
        raise invalid(f"Failed to write JSON value for tensor type: {DTYPES.get(tensor.dtype, tensor.dtype)}")
    return _nest(flat, tensor.shape)


def show(value: Any) -> str:
    """Returns a JSON value as an error names it: its beginning, if it is long."""
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


def _check_shape(shape: Any, count: int) -> None:
    is_shape = isinstance(shape, (list, tuple)) and all(type(size) is int and size >= 0 for size in shape)
    if not is_shape or len(shape) > _LARGEST_DEPTH or math.prod(shape) != count:
        raise invalid(f"Shape {show(shape)} does not fit {count} values")


def _to_bytes(item: Any) -> bytes:
    if isinstance(item, dict):
        if list(item) != ["b64"] or not isinstance(item["b64"], str):
            raise invalid(f"JSON Value: {show(item)} not formatted correctly for base64 data")
        try:
            return base64.b64decode(item["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise invalid("Unable to base64 decode") from None
    if not isinstance(item, str):
        raise invalid(f"JSON Value: {show(item)} Type: {_json_type(item)} is not of expected type: string")
    try:
        return item.encode()
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None


def _fits(item: Any, dtype: int) -> bool:
    if dtype == _BOOL:
        return item is True or item is False
    if dtype in _FLOATS:
        return type(item) in (int, float)
    code = _CODES[dtype]
    bits = 8 * array.array(code).itemsize
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if code.islower() else (0, (1 << bits) - 1)
    return type(item) is int and low <= item <= high


def _narrow(item: float) -> float:
    """A number beyond float32 is infinite there."""
    try:
        return float(item)
    except OverflowError:
        return math.copysign(math.inf, item)


def _json_type(item: Any) -> str:
    if isinstance(item, bool):
        return "True" if item else "False"
    names: dict[type, str] = {type(None): "Null", dict: "Object", list: "Array", str: "String"}
    return names.get(type(item), "Number")


def _pairs(values: bytes) -> list[bytes]:
    return [values[at : at + 2] for at in range(0, len(values), 2)]


def _nest(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if not shape:
        return flat[0]
    if len(shape) == 1:
        return flat
    step = math.prod(shape[1:])
    return [_nest(flat[row * step : (row + 1) * step], shape[1:]) for row in range(shape[0])]
