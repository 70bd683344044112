"""Parses the few protocol buffers that the stand-in needs, field by field, without their classes.

protobuf's classes of these messages are in TensorFlow's Python package. The stand-in must not import it: it stands for
a server without Python, and importing would hide what an export needs of it.

Field numbers: tensorflow/core/protobuf/meta_graph.proto, tensorflow/core/framework/tensor_shape.proto.
"""

import dataclasses
from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SIGN = 1 << 63


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """An input or output of a signature."""

    tensor: str
    """Its name in the graph: `operation:index`."""
    dtype: int
    """Number of the type, see `tensors.DTYPES`."""
    shape: tuple[int, ...] | None
    """-1 for a dimension of any size; None for an unknown number of dimensions."""


@dataclasses.dataclass(frozen=True)
class Signature:
    """A function that a SavedModel offers."""

    method: str
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


def read_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields number and value of each field of a message: an unsigned int, or bytes.

    Raises:
        ValueError: If it is not a protobuf message.
    """
    at, end = 0, len(message)
    while at < end:
        key, at = _read_varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _read_varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"Wire type {kind} at byte {at} is not one of protobuf.")
        if at + size > end:
            raise ValueError(f"A field of {size} bytes at byte {at} is longer than the message of {end} bytes.")
        yield key >> 3, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError(f"The number at byte {at} of a message has no end.")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def as_signed(value: int | bytes) -> int:
    """Returns the int64 that an unsigned varint encodes."""
    number = _number(value)
    return number - 2 * _SIGN if number >= _SIGN else number


def read_varints(value: int | bytes) -> list[int]:
    """Returns the int64 of a repeated field: a single one, or several packed into bytes."""
    if isinstance(value, int):
        return [as_signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = _read_varint(value, at)
        numbers.append(as_signed(number))
    return numbers


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("A field holds bytes where a number is expected.")
    return value


def as_bytes(value: int | bytes) -> bytes:
    """Returns the bytes of a field."""
    if isinstance(value, int):
        raise ValueError("A field holds a number where bytes are expected.")
    return value


def read_map(entry: int | bytes) -> tuple[str, bytes]:
    """Returns key and value of an entry of a map from strings to messages."""
    fields = dict(read_fields(as_bytes(entry)))
    return as_bytes(fields.get(1, b"")).decode(), as_bytes(fields.get(2, b""))


def read_signatures(meta_graph: bytes) -> dict[str, Signature]:
    """Returns the signatures of a serialized MetaGraphDef by their names."""
    entries = [read_map(value) for number, value in read_fields(meta_graph) if number == 5]
    return {name: _read_signature(message) for name, message in sorted(entries)}


def _read_signature(message: bytes) -> Signature:
    method, maps = "", {1: {}, 2: {}}  # type: tuple[str, dict[int, dict[str, TensorInfo]]]
    for number, value in read_fields(message):
        if number in maps:
            name, info = read_map(value)
            maps[number][name] = _read_tensor_info(info)
        elif number == 3:
            method = as_bytes(value).decode()
    return Signature(method, dict(sorted(maps[1].items())), dict(sorted(maps[2].items())))


def _read_tensor_info(message: bytes) -> TensorInfo:
    fields = dict(read_fields(message))
    return TensorInfo(
        as_bytes(fields.get(1, b"")).decode(), _number(fields.get(2, 0)), read_shape(as_bytes(fields.get(3, b"")))
    )


def read_shape(message: bytes) -> tuple[int, ...] | None:
    """Returns the dimensions of a TensorShapeProto, None if their number is unknown."""
    sizes = []
    for number, value in read_fields(message):
        if number == 2:
            sizes.append(as_signed(dict(read_fields(as_bytes(value))).get(1, 0)))
        elif number == 3 and value:
            return None
    return tuple(sizes)
