"""Warm-up requests as the stand-in for the server replays them: every form of a tensor, and what fails the load."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from aigc_tf.errors import RunError
from aigc_tf.serving.double.served_models import single_model
from aigc_tf.serving.double.server import Double
from aigc_tf.serving.process.other_process import StandIn
from aigc_tf.serving.stand_in.status import StatusError
from aigc_tf.serving.stand_in.tensors import ARRAY_CODES, NUMBERS, STRING
from aigc_tf.serving.stand_in.warmup import FILE, read_tensor, warm_up
from aigc_tf.serving.stand_in.wire_format import Signature, TensorInfo
from tests.echo_model import HalfPlusThree, save


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(HalfPlusThree(), tmp_path_factory.mktemp("half") / "1")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the model, to be given a file of requests."""
    shutil.copytree(saved, tmp_path / "half" / "1")
    (tmp_path / "half" / "1" / FILE).parent.mkdir()
    return tmp_path / "half" / "1"


def predict(inputs, *, signature="", output_filter=()):
    log = PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = "half", signature
    request.output_filter.extend(output_filter)
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log


def examples(kind, *, signature, number=1, with_context=False):
    log = PredictionLog()
    request = getattr(log, f"{kind}_log").request
    request.model_spec.signature_name = signature
    for _ in range(number):
        if with_context:
            request.input.example_list_with_context.context.features.feature["x"].float_list.value.append(1.0)
            request.input.example_list_with_context.examples.add()
        else:
            request.input.example_list.examples.add().features.feature["x"].float_list.value.append(1.0)
    return log


def write(folder, records):
    with tf.io.TFRecordWriter(os.fspath(folder / FILE)) as writer:
        for record in records:
            writer.write(record if isinstance(record, bytes) else record.SerializeToString())


def test_requests_of_every_kind_are_replayed(folder):
    write(
        folder,
        [
            predict({"x": np.array([1, 2], "f")}),
            predict({"x": np.zeros(0, "f")}, signature="serving_default", output_filter=["y"]),
            examples("classify", signature="classify"),
            examples("classify", signature="classify", with_context=True),
            examples("regress", signature="tensorflow/serving/regress"),
            b"",  # a log of no kind: the server passes over it
        ],
    )
    with StandIn(folder, warm_up=True) as model:
        assert model.num_warmup_requests == 6
        assert model.warmup_seconds > 0
        assert model.call("serving_default", {"x": np.array([1], "f")})["y"].tolist() == [3.5]
    with StandIn(folder) as model:
        assert model.num_warmup_requests == 0


def test_a_model_without_requests_is_ready_at_once(saved):
    with StandIn(saved, warm_up=True) as model:
        assert model.num_warmup_requests == 0


class Model:
    """Has the signatures of the saved one and runs nothing."""

    def __init__(self):
        x, inputs = TensorInfo("serving_default_x:0", NUMBERS["float"], (-1,)), TensorInfo("inputs:0", STRING, (-1,))
        self.signatures = {
            "serving_default": Signature("", {"x": x}, {"y": x}),
            "classify": Signature("", {"inputs": inputs}, {"classes": inputs, "scores": x}),
        }

    def run(self, signature, inputs, outputs):
        for name, tensor in inputs.items():
            if tensor.dtype != signature.inputs[name].dtype:
                raise StatusError("INVALID_ARGUMENT", "another type")


@pytest.mark.parametrize(
    ("record", "code", "words"),
    [
        (predict({"z": [1.0]}), "INVALID_ARGUMENT", "Warm-up request 2 of .* fails: Signature input alias: x"),
        (predict({"x": [1.0], "z": [1]}), "INVALID_ARGUMENT", "Sent extra: {z}"),
        (predict({"x": ["a"]}), "INVALID_ARGUMENT", "Warm-up request 2 of .* fails: another type"),
        (predict({"x": [1.0]}, signature="no"), "FAILED_PRECONDITION", 'Serving signature key "no" not found'),
        (
            predict({"x": [1.0]}, output_filter=["z"]),
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: z",
        ),
        (examples("classify", signature="no"), "INVALID_ARGUMENT", "No signature was found with the name: no"),
        (examples("classify", signature=""), "INVALID_ARGUMENT", "Expected one input Tensor called inputs"),
        (examples("regress", signature="classify"), "INVALID_ARGUMENT", "and an output called outputs"),
        (examples("classify", signature="classify", number=0), "INVALID_ARGUMENT", "Input is empty."),
        (PredictionLog(session_run_log={}), "UNIMPLEMENTED", "Unsupported log_type for warmup: 5"),
        (PredictionLog(predict_streamed_log={}), "UNIMPLEMENTED", "Unsupported log_type for warmup: 7"),
        (b"\x32\x05ab", "INVALID_ARGUMENT", "Failed to parse warmup record: 2 from"),
    ],
)
def test_a_request_that_does_not_fit_is_an_error(tmp_path, record, code, words):
    (tmp_path / FILE).parent.mkdir()
    write(tmp_path, [predict({"x": [1.0]}), record])
    with pytest.raises(StatusError, match=words) as caught:
        warm_up(Model(), tmp_path)
    assert caught.value.code == code


def test_a_file_that_is_broken_is_an_error(tmp_path):
    (tmp_path / FILE).parent.mkdir()
    write(tmp_path, [predict({"x": [1.0]})] * 2)
    data = (tmp_path / FILE).read_bytes()
    broken = bytearray(data)
    broken[len(data) // 2 + 14] ^= 1
    for content in (bytes(broken), data[:-3], data + b"\x00", b"no records at all"):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(StatusError, match=r"corrupted record at .* in TFRecord format"):
            warm_up(Model(), tmp_path)


def test_a_request_that_fails_fails_the_load_of_stand_in_and_double(folder):
    write(folder, [predict({"x": [1.0]}), predict({"x": ["a"]})])
    with pytest.raises(RunError, match=r"fails in a new process: INVALID_ARGUMENT: Warm-up request 2 of .*string"):
        StandIn(folder, warm_up=True)
    config = single_model("half", os.fspath(folder.parent))
    with pytest.raises(RunError, match=r"Version 1 of half cannot be loaded.*Warm-up request 2"):
        Double(config)
    with Double(config, warm_up=False) as double:
        assert double.models.states("half") == {1: ("AVAILABLE", None)}


def test_more_than_a_thousand_requests_are_refused(tmp_path):
    (tmp_path / FILE).parent.mkdir()
    write(tmp_path, [predict({"x": [1.0]})] * 1001)
    with pytest.raises(StatusError, match=r"Number of warmup records exceeds the maximum \(1000\)"):
        warm_up(Model(), tmp_path)


@pytest.mark.parametrize("name", [name for name, number in NUMBERS.items() if number in ARRAY_CODES])
def test_tensors_of_every_type_are_read_as_tensorflow_reads_them(name):
    dtype = tf.dtypes.as_dtype(name)
    for array in (np.arange(6).reshape(2, 3), np.array([[1, 1]]), np.array(1), np.zeros([0, 4])):
        values = tf.cast(array, dtype)
        for proto in (tf.make_tensor_proto(values.numpy()), _with_values(values, dtype)):
            found = read_tensor(proto.SerializeToString())
            assert (found.dtype, found.shape) == (proto.dtype, array.shape)
            assert found.values == tf.make_ndarray(proto).tobytes()


def _with_values(values, dtype):
    """The form of the server: values in their field, the last ones left out where they are the same."""
    proto = tf.make_tensor_proto(np.zeros(0, dtype.as_numpy_dtype), shape=[0])
    proto.Clear()
    proto.dtype = dtype.as_datatype_enum
    for size in values.shape:
        proto.tensor_shape.dim.add(size=size)
    flat = values.numpy().ravel()
    if dtype in (tf.float16, tf.bfloat16):
        field, flat = "half_val", flat.view(np.uint16)
    else:
        field = {"float": "float_val", "double": "double_val", "bool": "bool_val"}.get(
            dtype.name.rstrip("2346"), "int_val"
        )
        field = f"{dtype.name}_val" if dtype.name in ("int64", "uint32", "uint64") else field
    flat = flat.tolist()
    while len(flat) > 1 and flat[-1] == flat[-2]:
        flat.pop()
    getattr(proto, field).extend(flat)
    return proto


def test_strings_and_negative_numbers_are_read_too():
    strings = tf.make_tensor_proto([[b"a", b"\xff"], [b"", b"b"]])
    assert read_tensor(strings.SerializeToString()).values == [b"a", b"\xff", b"", b"b"]
    repeated = tf.make_tensor_proto(["a"], shape=[3])
    assert read_tensor(repeated.SerializeToString()).values == [b"a"] * 3
    assert read_tensor(tf.make_tensor_proto([], dtype=tf.string).SerializeToString()).dtype == STRING
    number = tf.make_tensor_proto(-5)
    assert read_tensor(number.SerializeToString()).values == np.int32(-5).tobytes()


def test_what_is_no_tensor_is_refused():
    for change in (
        lambda proto: proto.tensor_shape.dim.add(size=-1),
        lambda proto: setattr(proto.tensor_shape, "unknown_rank", True),
        lambda proto: setattr(proto, "dtype", tf.resource.as_datatype_enum),
        lambda proto: setattr(proto, "tensor_content", b"abc"),
        lambda proto: proto.int_val.extend([1, 2]),
    ):
        proto = tf.make_tensor_proto(1)
        change(proto)
        with pytest.raises(StatusError, match="tensor parsing error"):
            read_tensor(proto.SerializeToString())
