"""Replays a model's warm-up requests before it answers, as TensorFlow Serving does (saved_model_warmup.cc).

They are in `assets.extra/tf_serving_warmup_requests`: a TFRecord file of serialized
tensorflow.serving.PredictionLog messages, at most 1,000. A failing request fails the load. Field numbers:
tensorflow_serving/apis/{prediction_log,predict,classification,input,model}.proto and
tensorflow/core/framework/tensor.proto. The file is parsed by hand, since TensorFlow's TFRecord readers belong to
TensorFlow's Python, see `wire_format`.
"""

import array
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aigc_tf.serving.stand_in.answering import DEFAULT_SIGNATURE, check_names, wanted_outputs
from aigc_tf.serving.stand_in.c_api import Model
from aigc_tf.serving.stand_in.status import StatusError, invalid
from aigc_tf.serving.stand_in.tensors import ARRAY_CODES, STRING, Tensor
from aigc_tf.serving.stand_in.wire_format import (
    Signature,
    as_bytes,
    as_signed,
    read_fields,
    read_map,
    read_shape,
    read_varints,
)

FILE = "assets.extra/tf_serving_warmup_requests"
_MAX_RECORDS = 1000
_CLASSIFY, _REGRESS, _MULTI_INFERENCE, _SESSION_RUN, _PREDICT, _STREAMED = 2, 3, 4, 5, 6, 7
_DTYPE, _SHAPE, _CONTENT, _STRINGS = 1, 2, 4, 8
# By the type's number: the field of a TensorProto that holds its values, and their layout.
_INTEGERS = {3: 7, 4: 7, 5: 7, 6: 7, 17: 7, 9: 10, 10: 11, 14: 13, 19: 13, 22: 16, 23: 17}
_FLOATS = {1: (5, "f"), 2: (6, "d")}
_CRC_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8


def warm_up(model: Model, folder: str) -> int:
    """Runs each request of the file, if there is one, and returns their number.

    Raises:
        StatusError: If the file is broken, or a request fails.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return 0
    number = 0
    for number, record in enumerate(_read_records(path.read_bytes(), path), start=1):
        if number > _MAX_RECORDS:
            raise invalid(f"Number of warmup records exceeds the maximum ({_MAX_RECORDS}) at {path}")
        try:
            _replay(model, record)
        except (ValueError, OverflowError, struct.error) as error:
            raise invalid(f"Failed to parse warmup record: {number} from {path} ({error})") from error
        except StatusError as error:
            raise StatusError(error.code, f"Warm-up request {number} of {path} fails: {error.message}") from error
    return number


def _read_records(data: bytes, path: Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file, each stored as size, its checksum, bytes, their checksum."""
    at = 0
    while at < len(data):
        head = data[at : at + 8]
        size = int.from_bytes(head, "little")
        record, sums = data[at + 12 : at + 12 + size], (data[at + 8 : at + 12], data[at + 12 + size : at + 16 + size])
        if [int.from_bytes(one, "little") for one in sums] != [_masked_crc(head), _masked_crc(record)]:
            raise StatusError(
                "DATA_LOSS",
                f"corrupted record at {at} of {path}. Please verify your warmup data is in TFRecord format.",
            )
        yield record
        at += 16 + size


def _build_crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_CRC_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _build_crc_table()


def _masked_crc(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def _replay(model: Model, record: bytes) -> None:
    replays: dict[int, Callable[[Model, bytes], None]] = {_PREDICT: _predict, _CLASSIFY: _classify, _REGRESS: _regress}
    for kind, log in read_fields(record):
        if kind in replays:
            requests = [value for number, value in read_fields(as_bytes(log)) if number == 1]
            replays[kind](model, b"".join(map(as_bytes, requests)))
        elif kind in (_MULTI_INFERENCE, _SESSION_RUN, _STREAMED):  # of these the server replays the first only
            raise StatusError("UNIMPLEMENTED", f"Unsupported log_type for warmup: {kind}")


def _predict(model: Model, request: bytes) -> None:
    inputs, output_filter = {}, []
    for number, value in read_fields(request):
        if number == 2:
            name, tensor = read_map(value)
            inputs[name] = read_tensor(tensor)
        elif number == 3:
            output_filter.append(as_bytes(value).decode())
    signature = _find_signature(model, request, "FAILED_PRECONDITION", 'Serving signature key "{}" not found.')
    check_names({name: info.tensor for name, info in signature.inputs.items()}, inputs)
    model.run(signature, inputs, wanted_outputs(list(signature.outputs), output_filter))


def _classify(model: Model, request: bytes) -> None:
    _run_examples(model, request, ("classes", "scores"))


def _regress(model: Model, request: bytes) -> None:
    _run_examples(model, request, ("outputs",))


def _run_examples(model: Model, request: bytes, names: tuple[str, ...]) -> None:
    signature = _find_signature(model, request, "INVALID_ARGUMENT", "No signature was found with the name: {}")
    outputs = [name for name in names if name in signature.outputs]
    if list(signature.inputs) != ["inputs"] or not outputs:
        raise invalid("Expected one input Tensor called inputs and an output called " + " or ".join(names))
    examples = [
        example
        for number, value in read_fields(request)
        if number == 2
        for kind, examples in read_fields(as_bytes(value))
        for example in _read_examples(kind, as_bytes(examples))
    ]
    if not examples:
        raise invalid("Input is empty.")
    model.run(signature, {"inputs": Tensor(STRING, (len(examples),), examples)}, outputs)


def _read_examples(kind: int, message: bytes) -> list[bytes]:
    fields = [(number, as_bytes(value)) for number, value in read_fields(message)]
    context = b"".join(value for number, value in fields if kind == 2 and number == 2)
    return [context + value for number, value in fields if number == 1]


def _find_signature(model: Model, request: bytes, code: str, words: str) -> Signature:
    name = DEFAULT_SIGNATURE
    for number, value in read_fields(request):
        if number == 1:  # model_spec
            name = as_bytes(dict(read_fields(as_bytes(value))).get(3, b"")).decode() or name
    if name not in model.signatures:
        raise StatusError(code, words.format(name))
    return model.signatures[name]


def read_tensor(message: bytes) -> Tensor:
    """Returns the tensor of a serialized TensorProto.

    Raises:
        StatusError: If it is not a tensor that TensorFlow can hold.
        ValueError: If it is not a protobuf message.
    """
    fields = list(read_fields(message))
    single = dict(fields)
    dtype, shape = as_signed(single.get(_DTYPE, 0)), read_shape(as_bytes(single.get(_SHAPE, b"")))
    if shape is None or any(size < 0 for size in shape) or (dtype != STRING and dtype not in ARRAY_CODES):
        raise invalid("tensor parsing error: a tensor of an unknown type or shape")
    count = math.prod(shape)
    if dtype == STRING:
        texts = [as_bytes(value) for number, value in fields if number == _STRINGS]
        return Tensor(dtype, shape, _filled(texts, count, b""))
    if content := as_bytes(single.get(_CONTENT, b"")):
        if len(content) != count * array.array(ARRAY_CODES[dtype]).itemsize:
            raise invalid(f"tensor parsing error: {len(content)} bytes do not fit shape {list(shape)}")
        return Tensor(dtype, shape, content)
    if dtype in _FLOATS:
        field, code = _FLOATS[dtype]
        data = b"".join(as_bytes(value) for number, value in fields if number == field)
        values: list[Any] = list(struct.unpack(f"<{len(data) // struct.calcsize(code)}{code}", data))
    else:
        values = [item for number, value in fields if number == _INTEGERS[dtype] for item in read_varints(value)]
    return Tensor(dtype, shape, array.array(ARRAY_CODES[dtype], _filled(values, count, 0)).tobytes())


def _filled(values: list[Any], count: int, nothing: Any) -> list[Any]:
    """Repeats the last value, since a TensorProto may leave out equal values at its end."""
    if len(values) > count:
        raise invalid(f"tensor parsing error: {len(values)} values for {count} places")
    return values + [values[-1] if values else nothing] * (count - len(values))
