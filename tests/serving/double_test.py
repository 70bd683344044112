"""The double of tensorflow_model_server over real sockets: JSON of its documentation, errors, labels, batches."""

import concurrent.futures
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.double import __main__ as door
from aigc_tf.serving.double.__main__ import _build
from aigc_tf.serving.double.batching import Batching
from aigc_tf.serving.double.flags import parse_flags
from aigc_tf.serving.double.served_models import read_config, single_model
from aigc_tf.serving.double.server import Double
from aigc_tf.serving.stand_in.status import StatusError
from tests.echo_model import Echo, HalfPlusThree, save

ROOT = Path(__file__).parents[2]
CONFIG = """
model_config_list {
  config {
    name: "half" base_path: "BASE/half" model_platform: "tensorflow"
    model_version_policy { specific { versions: 123 versions: 124 } }
    version_labels { key: "stable" value: 123 } version_labels { key: "canary" value: 124 }
  }
  config { name: "echo" base_path: "BASE/echo" model_platform: "tensorflow" }
}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with two versions of one model and one of another, and the config that serves them."""
    folder = tmp_path_factory.mktemp("models")
    save(HalfPlusThree(), folder / "half" / "123")
    save(HalfPlusThree(offset=100.0), folder / "half" / "124")
    save(Echo(), folder / "echo" / "1")
    (folder / "echo" / "old").mkdir()
    (folder / "models.config").write_text(CONFIG.replace("BASE", os.fspath(folder)))
    return folder


@pytest.fixture(scope="module")
def double(base):
    config = read_config(os.fspath(base / "models.config"))
    with Double(config, grpc_port=0, allow_labels_early=True, poll_seconds=0) as double:
        yield double


@pytest.fixture(scope="module")
def channel(double):
    with grpc.insecure_channel(f"127.0.0.1:{double.grpc_port}") as channel:
        yield channel


@pytest.fixture(scope="module")
def prediction(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


def ask(double, path, body=None, *, method=None, headers=None):
    """Status and JSON of a request; a body that is no bytes is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", double.rest_port, timeout=60)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method or ("GET" if body is None else "POST"), path, data, headers or {})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text) if text[:1] == b"{" else text


def test_the_examples_of_the_documentation_give_its_json(double):
    path = "/v1/models/half/versions/123"
    assert ask(double, path) == (
        200,
        {
            "model_version_status": [
                {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
            ]
        },
    )
    assert ask(double, f"{path}:predict", {"instances": [1.0, 2.0, 5.0]}) == (200, {"predictions": [3.5, 4.0, 5.5]})
    request = {"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1.0}, {"x": 2.0}]}
    assert ask(double, f"{path}:regress", request) == (200, {"results": [3.5, 4.0]})
    assert ask(double, "/v1/models/hall:predict", {"instances": [1.0, 5.0]}) == (
        404,
        {"error": "Servable not found for request: Latest(hall)"},
    )


def test_a_status_names_all_versions_newest_first_and_labels_do_not_count(double):
    for path in ("/v1/models/half", "/v1/models/half/labels/stable", "/V1/Models/half"):
        status, body = ask(double, path)
        assert status == 200
        assert [one["version"] for one in body["model_version_status"]] == ["124", "123"]
    assert ask(double, "/v1/models/none") == (404, {"error": "Could not find any versions of model none"})
    assert ask(double, "/v1/models/half/versions/9") == (404, {"error": "Could not find version 9 of model half"})
    assert ask(double, "/v1/models") == (400, {"error": "Missing model name in request."})


def test_metadata_are_the_signatures(double):
    status, body = ask(double, "/v1/models/echo/metadata")
    assert status == 200
    assert body["model_spec"] == {"name": "echo", "signature_name": "", "version": "1"}
    signatures = body["metadata"]["signature_def"]["signature_def"]
    assert signatures["add"]["inputs"]["x"] == {
        "name": "add_x:0",
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1", "name": ""}, {"size": "2", "name": ""}], "unknown_rank": False},
    }
    assert signatures["add"]["method_name"] == "tensorflow/serving/predict"
    assert signatures["__saved_model_init_op"]["outputs"]["__saved_model_init_op"]["dtype"] == "DT_INVALID"
    assert ask(double, "/v1/models/half/labels/canary/metadata")[1]["model_spec"]["version"] == "124"


def test_versions_and_labels_choose_and_without_them_the_newest_answers(double):
    def predict(place):
        return ask(double, f"/v1/models/half{place}:predict", {"inputs": [2.0]})

    assert predict("") == predict("/versions/124") == predict("/labels/canary") == (200, {"outputs": [101.0]})
    assert predict("/versions/123") == predict("/labels/stable") == (200, {"outputs": [4.0]})
    assert predict("/versions/7") == (404, {"error": "Servable not found for request: Specific(half, 7)"})
    assert predict("/labels/old") == (400, {"error": "Unrecognized servable version label: old"})


def test_rows_and_columns_of_several_inputs_and_outputs(double):
    path = "/v1/models/echo:predict"
    rows = [{"x": [1, 1], "n": 0, "flag": True}, {"x": [0.5, 2], "n": 10, "flag": False}]
    assert ask(double, path, {"signature_name": "add", "instances": rows}) == (
        200,
        {"predictions": [{"flag": False, "sums": 3.0}, {"flag": True, "sums": -1.0}]},
    )
    columns = {"x": [[1, 1], [0.5, 2]], "n": [0, 10], "flag": [True, False], "more": "is not looked at"}
    assert ask(double, path, {"signature_name": "add", "inputs": columns}) == (
        200,
        {"outputs": {"flag": [False, True], "sums": [3.0, -1.0]}},
    )
    assert ask(double, path, {"instances": ["é", {"b64": "eA=="}]}) == (
        200,
        {"predictions": [{"text": "é", "size": 2}, {"text": "x", "size": 1}]},
    )
    assert ask(double, path, {"signature_name": "raw", "instances": [{"text": "é"}]}) == (
        200,
        {"predictions": [{"b64": "w6k="}]},
    )
    assert ask(double, path, {"inputs": []}) == (200, {"outputs": {"text": [], "size": []}})
    assert ask(double, path, {"signature_name": "scalar", "inputs": "a"}) == (
        200,
        {"outputs": {"words": [["a", "a"]], "word": "a"}},
    )


def test_numbers_are_written_as_the_server_writes_them(double):
    path = "/v1/models/half/versions/123:predict"
    body = json.dumps({"inputs": [2 / 3, 1e8, -6.0]}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", double.rest_port, timeout=60)
    connection.request("POST", path, body)
    text = connection.getresponse().read().decode()
    assert [part.strip() for part in text[text.index("[") + 1 : text.index("]")].split(",")] == [
        "3.33333325",  # nine digits, as six would be another float32
        "50000004.0",  # the nearest float32 to 50000003
        "0.0",
    ]
    large = 2**53 + 1
    status, reply = ask(double, "/v1/models/echo:predict", {"signature_name": "cast", "inputs": [large]})
    assert (status, reply["error"]) == (400, "Failed to write JSON value for tensor type: bfloat16")
    nan = b'{"inputs": [NaN, Infinity, -Infinity]}'
    outputs = ask(double, path, nan)[1]["outputs"]
    assert np.isnan(outputs[0])
    assert outputs[1:] == [np.inf, -np.inf]


def test_classify_gives_pairs_of_label_and_score(double):
    path = "/v1/models/half:classify"
    request = {"signature_name": "classify", "examples": [{"x": 0.5}, {"x": [-2.0]}]}
    assert ask(double, path, request) == (
        200,
        {"results": [[["up", 0.5], ["döwn", -0.5]], [["up", -2.0], ["döwn", 2.0]]]},
    )
    assert ask(double, path, {**request, "context": {"x": 4.0}, "examples": [{}]}) == (
        200,
        {"results": [[["up", 4.0], ["döwn", -4.0]]]},
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("echo:predict", b"", 400, "JSON Parse error: The document is empty"),
        ("echo:predict", b"{", 400, "JSON Parse error: "),
        ("echo:predict", b"[" * 100_000, 400, "JSON Parse error: "),
        ("echo:predict", b'{"inputs": [' + b"9" * 5000 + b"]}", 400, "JSON Parse error: "),
        (
            "echo:predict",
            b'{"signature_name": "add", "inputs": [' + b"9" * 400 + b"]}",
            400,
            "Number too big",
        ),
        (
            "echo:predict",
            b'{"signature_name": "add", "inputs": [-1e400]}',
            400,
            "Number too big",
        ),
        (
            "echo:predict",
            b'{"signature_name": "\\ud800"}',
            400,
            "The surrogate pair in string is invalid",
        ),
        ("echo:predict", b'{"instances": [{"\\uDC80": "a"}]}', 400, "The surrogate pair in string is invalid"),
        ("echo:classify", b'{"examples": [{"\\\\\\ud83d!": "a"}]}', 400, "The surrogate pair in string is invalid"),
        (
            "echo:predict",
            b'{"inputs":' + b"[" * 64 + b"]" * 64 + b"}",
            400,
            "takes tensors of fewer than 64 dimensions",
        ),
        (
            "echo/versions/9223372036854775808:predict",
            {"inputs": []},
            400,
            "Failed to convert version: 92233",
        ),
        (f"echo/versions/{'9' * 5000}:predict", {"inputs": []}, 400, "Failed to convert version: 9999"),
        ("echo/versions/01:predict", {"inputs": 1}, 400, "is not of expected type: string"),
        ("echo:predict", [1], 400, "JSON Value: [1] Is not object"),
        ("echo:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("echo:predict", {"inputs": [], "instances": []}, 400, "expecting only one of 'inputs' or 'instances'"),
        ("echo:predict", {"instances": "a"}, 400, "Expecting 'instances' to be an list/array"),
        ("echo:predict", {"instances": []}, 400, "No values in 'instances' array"),
        ("echo:predict", {"signature_name": 1, "inputs": []}, 400, "'signature_name' key must be a string value"),
        ("echo:predict", {"signature_name": "x", "inputs": []}, 400, 'Serving signature name: "x" not found in sig'),
        ("echo:predict", {"signature_name": "add", "inputs": [1]}, 400, "inputs is a plain value/list, but expecting"),
        ("echo:predict", {"signature_name": "add", "inputs": {"x": []}}, 400, "Missing named input: flag in 'inputs'"),
        ("echo:predict", {"signature_name": "add", "instances": [1]}, 400, "instances is a plain list, but expecting"),
        ("echo:predict", {"instances": [{"text": "a"}, "b"]}, 400, "Expecting object but got list at item 1"),
        ("echo:predict", {"instances": ["b", {"text": "a"}]}, 400, "Expecting value/list but got object at item 1"),
        (
            "echo:predict",
            {"instances": ["a", ["b"]]},
            400,
            "element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Ex",
        ),
        ("echo:predict", {"instances": [["a"], ["b", "c"]]}, 400, "Expecting tensor size: 1 but got: 2"),
        ("echo:predict", {"instances": [[["a", "b"]], [["a"], ["b"]]]}, 400, "Expecting shape [1,2] but got: [2,1]"),
        ("echo:predict", {"instances": [{"word": "a"}]}, 400, "JSON object: does not have named input: word"),
        ("echo:predict", {"instances": [{}]}, 400, "JSON object: {} keys must be equal to: text"),
        ("echo:predict", {"instances": [1]}, 400, "JSON Value: 1 Type: Number is not of expected type: string"),
        ("echo:predict", {"inputs": {"text": [{"b64": "?"}]}}, 400, "Unable to base64 decode"),
        (
            "echo:predict",
            {"signature_name": "total", "inputs": [[1], [2, 3]]},
            400,
            "Encountered list at unexpected si",
        ),
        ("echo:predict", {"signature_name": "divide", "inputs": [0]}, 400, "Integer division by zero"),
        ("echo:predict", {"signature_name": "compiled", "inputs": [0]}, 500, "XLA compilation disabled"),
        (
            "echo:predict",
            {"signature_name": "half", "inputs": [1]},
            400,
            "Failed to write JSON value for tensor type: h",
        ),
        ("echo:classify", {"examples": [{}]}, 400, "No classification inputs found in SignatureDef"),
        ("echo:classify", {"signature_name": "x", "examples": [{}]}, 400, "No signature was found with the name: x"),
        ("echo:classify", {"examples": []}, 400, "'examples' value is an empty array"),
        ("echo:classify", {"examples": 1}, 400, "Expecting 'examples' value to be an list/array"),
        ("echo:classify", {}, 400, "When method is classify, key 'examples' is expected and was not found"),
        ("echo:classify", {"examples": [1]}, 400, "Example must be JSON object but got JSON Number"),
        ("echo:classify", {"examples": [{"a": None}]}, 400, "Feature: a has element with unexpected JSON type: Null"),
        ("echo:classify", {"examples": [{"a": [1, 1.0]}]}, 400, "Unexpected element type in feature: a"),
        ("echo:classify", {"examples": [{"a": [[1]]}]}, 400, "has element with unexpected JSON type: Array"),
        ("echo:classify", {"examples": [{"a": 2**63}]}, 400, "has uint64_t element. Only int64_t is supported."),
        ("half:regress", {"examples": [{}]}, 400, "No regression inputs found in SignatureDef"),
        ("half:classify", {"signature_name": "classify", "examples": [{"x": "a"}]}, 400, "Data types don't match"),
        ("echo", {"inputs": []}, 400, "Malformed request: POST /v1/models/echo"),
        ("echo:explain", {"inputs": []}, 400, "Malformed request: POST /v1/models/echo:explain"),
    ],
)
def test_a_request_that_does_not_fit_gets_its_status_and_its_words(double, path, body, status, words):
    found, reply = ask(double, f"/v1/models/{path}", body)
    assert (found, words in reply["error"]) == (status, True), reply


def test_paths_and_methods_that_are_none_of_the_interface(double):
    assert ask(double, "/")[0] == ask(double, "/metrics")[0] == 404
    assert ask(double, "/v1/models/echo:predict", method="GET")[0] == 400
    assert ask(double, "/v1/models/echo", {}, method="PUT") == (
        400,
        {"error": "Malformed request: PUT /v1/models/echo"},
    )
    assert ask(double, "/v1/models/ec%68o")[0] == 200
    with socket.create_connection(("127.0.0.1", double.rest_port), timeout=10) as client:
        client.sendall(b"GET http://[/v1/models/echo?x#y HTTP/1.0\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"


def test_a_body_in_chunks_and_one_of_ten_megabytes(double):
    connection = http.client.HTTPConnection("127.0.0.1", double.rest_port, timeout=60)
    connection.request("POST", "/v1/models/echo:predict", iter([b'{"inputs"', b': ["ab"]}']), encode_chunked=True)
    assert json.loads(connection.getresponse().read())["outputs"]["size"] == [2]
    body = {"inputs": ["é" * 5_000_000]}
    assert ask(double, "/v1/models/echo:predict", body)[1]["outputs"]["size"] == [10_000_000]


@pytest.mark.parametrize("text", [b'{"b64": "/2E="}', b'"\xffa"'])
def test_bytes_that_are_no_text_go_out_as_they_are(double, text):
    connection = http.client.HTTPConnection("127.0.0.1", double.rest_port, timeout=60)
    connection.request("POST", "/v1/models/echo:predict", b'{"inputs": [' + text + b"]}")
    assert b'"\xffa"' in connection.getresponse().read()


def test_escapes_that_are_text_are_taken(double):
    body = rb'{"inputs": ["\ud83d\ude00", "\\ud800", "\\\ud83d\ude00"]}'
    assert ask(double, "/v1/models/echo:predict", body)[1]["outputs"]["text"] == ["😀", "\\ud800", "\\😀"]


@pytest.mark.parametrize(
    "rest",
    [
        *[f"Content-Length: {size}\r\n\r\nabc" for size in ("abc", "-1", "1_0", "+5", "5, 5", 10**12, 10**30)],
        *[f"Transfer-Encoding: chunked\r\n\r\n{chunk}" for chunk in ("z\r\n", "-1\r\na", "5\r\nab", "f" * 20, "")],
    ],
)
def test_a_body_of_no_length_is_refused_and_the_connection_is_closed(double, rest):
    with socket.create_connection(("127.0.0.1", double.rest_port), timeout=10) as client:
        client.sendall(b"POST /v1/models/echo:predict HTTP/1.1\r\nHost: x\r\n" + rest.encode())
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400 ")


def spec(message, name, *, version=None, label=None, signature=""):
    message.model_spec.name, message.model_spec.signature_name = name, signature
    if version:
        message.model_spec.version.value = version
    if label:
        message.model_spec.version_label = label
    return message


def predict(prediction, name, inputs, *, output_filter=(), timeout=60, **places):
    request = spec(predict_pb2.PredictRequest(output_filter=output_filter), name, **places)
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return prediction.Predict(request, timeout=timeout)


def test_predict_over_grpc(prediction):
    inputs = {"x": np.array([[1, 1], [0.5, 2]], "f"), "n": np.array([0, 10], "i"), "flag": [True, False]}
    response = predict(prediction, "echo", inputs, signature="add")
    assert (response.model_spec.name, response.model_spec.version.value) == ("echo", 1)
    assert response.model_spec.signature_name == "add"
    assert list(response.outputs["sums"].float_val) == [3.0, -1.0]  # the fields that the server fills
    assert tf.make_ndarray(response.outputs["flag"]).tolist() == [False, True]
    response = predict(prediction, "echo", {"text": [b"\xff", b""]}, output_filter=["text"])
    assert list(response.outputs) == ["text"]
    assert tf.make_ndarray(response.outputs["text"]).tolist() == [b"\xff", b""]
    empty = predict(prediction, "echo", {"ids": np.zeros([0, 5], np.int32)}, signature="total")
    assert tf.make_ndarray(empty.outputs["total"]).shape == (0,)
    types = predict(prediction, "echo", {"n": np.array([1, 2**40])}, signature="cast", output_filter=["int64", "uint8"])
    assert list(types.outputs["int64"].int64_val) == [1, 2**40]
    assert (types.outputs["uint8"].dtype, list(types.outputs["uint8"].int_val)) == (tf.uint8.as_datatype_enum, [1, 0])
    for places, y in (({}, 101.0), ({"version": 123}, 4.0), ({"label": "stable"}, 4.0)):
        assert list(predict(prediction, "half", {"x": [2.0]}, **places).outputs["y"].float_val) == [y]


def test_floats_of_two_bytes_over_grpc(prediction):
    response = predict(prediction, "echo", {"n": np.array([0, -3])}, signature="half")
    assert response.outputs["half"].half_val == [0, 0xC200]
    assert tf.make_ndarray(response.outputs["half"]).tolist() == [0.0, -3.0]
    response = predict(prediction, "echo", {"n": np.array([257])}, signature="cast", output_filter=["bfloat16"])
    assert response.outputs["bfloat16"].dtype == tf.bfloat16.as_datatype_enum
    assert tf.make_ndarray(response.outputs["bfloat16"]).tolist() == [256.0]


def test_classify_and_regress_over_grpc(prediction):
    def examples(message):
        for x in (0.5, -2.0):
            message.input.example_list.examples.add().features.feature["x"].float_list.value.append(x)
        return message

    request = examples(spec(classification_pb2.ClassificationRequest(), "half", signature="classify"))
    result = prediction.Classify(request, timeout=60).result
    assert [[(one.label, one.score) for one in row.classes] for row in result.classifications] == [
        [("up", 0.5), ("döwn", -0.5)],
        [("up", -2.0), ("döwn", 2.0)],
    ]
    name = "tensorflow/serving/regress"
    request = examples(spec(regression_pb2.RegressionRequest(), "half", signature=name, version=123))
    assert [one.value for one in prediction.Regress(request, timeout=60).result.regressions] == [3.25, 2.0]
    request.input.Clear()
    request.input.example_list_with_context.context.features.feature["x"].float_list.value.append(8.0)
    request.input.example_list_with_context.examples.add()
    assert [one.value for one in prediction.Regress(request, timeout=60).result.regressions] == [7.0]


def test_metadata_and_status_over_grpc(prediction, channel):
    request = spec(get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"]), "echo")
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response = prediction.GetModelMetadata(request, timeout=60)
    response.metadata["signature_def"].Unpack(signatures)
    assert response.model_spec.version.value == 1
    assert [dim.size for dim in signatures.signature_def["add"].inputs["x"].tensor_shape.dim] == [-1, 2]
    model = model_service_pb2_grpc.ModelServiceStub(channel)
    status = model.GetModelStatus(spec(get_model_status_pb2.GetModelStatusRequest(), "half", version=124), timeout=60)
    assert [(one.version, one.state) for one in status.model_version_status] == [(124, 30)]


def test_errors_over_grpc(prediction):
    cases = [
        ("hall", {"x": [1.0]}, {}, "NOT_FOUND", "Servable not found for request: Latest(hall)"),
        ("", {"x": [1.0]}, {}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ("half", {"x": [1.0]}, {"label": "old"}, "INVALID_ARGUMENT", "Unrecognized servable version label: old"),
        ("half", {"x": [1.0]}, {"signature": "a"}, "FAILED_PRECONDITION", 'Serving signature key "a" not found.'),
        ("half", {"x": [1.0], "z": [1]}, {}, "INVALID_ARGUMENT", "Sent extra: {z}. Missing but required: {}."),
        ("half", {"z": [1.0]}, {}, "INVALID_ARGUMENT", "Signature input alias: x(feed name: serving_default_x:0)"),
        ("half", {"x": ["a"]}, {}, "INVALID_ARGUMENT", "string"),
        ("half", {"x": [1.0]}, {"output_filter": ["z"]}, "INVALID_ARGUMENT", "output tensor alias not found in"),
        ("half", {"x": [1.0]}, {"output_filter": ["y", "y"]}, "INVALID_ARGUMENT", "duplicate output tensor alias: y"),
        ("echo", {"n": [0]}, {"signature": "divide"}, "INVALID_ARGUMENT", "Integer division by zero"),
        ("echo", {"x": [0.0]}, {"signature": "compiled"}, "INTERNAL", "XLA compilation disabled"),
    ]
    for name, inputs, options, code, words in cases:
        with pytest.raises(grpc.RpcError) as caught:
            predict(prediction, name, inputs, **options)
        assert (caught.value.code().name, words in caught.value.details()) == (code, True), caught.value.details()
    request = predict_pb2.PredictRequest()
    spec(request, "half").inputs["x"].CopyFrom(tf.make_tensor_proto([1.0, 2.0]))
    request.inputs["x"].tensor_content = b"abc"
    with pytest.raises(grpc.RpcError, match="tensor parsing error: x"):
        prediction.Predict(request, timeout=60)
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    request.inputs["x"].tensor_shape.dim[0].size = 1 << 40
    with pytest.raises(grpc.RpcError, match="tensor parsing error: x"):
        prediction.Predict(request, timeout=60)
    request.inputs["x"].Clear()
    request.inputs["x"].dtype = tf.variant.as_datatype_enum
    with pytest.raises(grpc.RpcError, match="tensor parsing error: x"):
        prediction.Predict(request, timeout=60)
    with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
        prediction.MultiInference(inference_pb2.MultiInferenceRequest(), timeout=60)
    with pytest.raises(grpc.RpcError, match="must specify at least one metadata_field"):
        prediction.GetModelMetadata(spec(get_model_metadata_pb2.GetModelMetadataRequest(), "half"), timeout=60)


def test_a_request_that_takes_too_long_is_ended(base, prediction):
    with pytest.raises(grpc.RpcError, match="DEADLINE_EXCEEDED"):
        predict(prediction, "echo", {"steps": [300]}, signature="work", timeout=0.05)
    config = single_model("echo", os.fspath(base / "echo"))
    with Double(config, rest_timeout=0.05) as double:
        status, reply = ask(double, "/v1/models/echo:predict", {"signature_name": "work", "inputs": [300]})
        assert (status, "no answer in 0.05 s" in reply["error"]) == (504, True)


def test_a_process_that_dies_is_started_anew_and_meanwhile_unavailable(base):
    def say(double):
        return ask(double, "/v1/models/echo:predict", {"inputs": ["a"]})

    with Double(single_model("echo", os.fspath(base / "echo"))) as double:
        assert say(double)[0] == 200
        [version] = double.models._loaded.values()
        os.kill(version.pid, signal.SIGKILL)
        while (answer := say(double))[0] == 200:  # until the kernel has ended it
            pass
        assert (answer[0], "SIGKILL" in answer[1]["error"]) == (503, True)
        states = []
        while (answer := say(double))[0] == 503:
            states.append(ask(double, "/v1/models/echo")[1]["model_version_status"][0]["state"])
            time.sleep(0.05)
        assert answer[0] == 200
        assert states[0] == "LOADING"


def test_versions_come_and_go_and_labels_move(base, tmp_path):
    folder = tmp_path / "half"
    shutil.copytree(base / "half" / "123", folder / "0001")  # the server parses the number

    def config(policy, labels):
        config = single_model("half", os.fspath(folder))
        text_format.Parse(f"{policy} {labels}", config.model_config_list.config[0])
        return config

    def label(name, number):
        return f'version_labels {{ key: "{name}" value: {number} }}'

    def answers(place=""):
        return ask(double, f"/v1/models/half{place}:predict", {"inputs": [2.0]})[1]

    def wait_for(expected, place=""):
        end = time.monotonic() + 20
        while answers(place) != expected and time.monotonic() < end:
            time.sleep(0.02)
        assert answers(place) == expected

    with Double(config("", ""), grpc_port=0, poll_seconds=0.05) as double:
        assert answers() == {"outputs": [4.0]}
        shutil.copytree(base / "half" / "124", tmp_path / "next")
        (tmp_path / "next").rename(folder / "2")
        seen = [answers()]
        while seen[-1] != {"outputs": [101.0]}:
            seen.append(answers())
        assert all(answer in ({"outputs": [4.0]}, {"outputs": [101.0]}) for answer in seen)  # no request fails
        wait_for({"error": "Servable not found for request: Specific(half, 1)"}, "/versions/1")
        with grpc.insecure_channel(f"127.0.0.1:{double.grpc_port}") as channel:
            service = model_service_pb2_grpc.ModelServiceStub(channel)

            def reload(policy, labels):
                request = model_management_pb2.ReloadConfigRequest(config=config(policy, labels))
                return service.HandleReloadConfigRequest(request, timeout=60)

            both = "model_version_policy { specific { versions: 1 versions: 2 } }"
            with pytest.raises(grpc.RpcError, match="Request to assign label to version 1 of model half, which is not"):
                reload(both, label("stable", 1))
            reload(both, "")
            reload(both, label("stable", 1))
            assert answers("/labels/stable") == {"outputs": [4.0]}
            reload(both, label("stable", 2))
            assert answers("/labels/stable") == {"outputs": [101.0]}
        (folder / "3").mkdir()
        double.models.reload(config("", ""))
        states = ask(double, "/v1/models/half")[1]["model_version_status"]
        assert [(one["version"], one["state"]) for one in states] == [("3", "END"), ("2", "AVAILABLE")]
        assert "Could not find SavedModel" in states[0]["status"]["error_message"]
        assert answers() == {"outputs": [101.0]}, "the version before stays where the new one cannot be loaded"
        assert answers("/versions/1")["error"].startswith("Servable not found")


def test_requests_that_come_together_are_computed_together(base):
    batching = Batching(max_batch_size=8, batch_timeout_micros=300_000, num_batch_threads=2, allowed_batch_sizes=(2, 8))
    with Double(single_model("echo", os.fspath(base / "echo")), batching=batching, grpc_port=0) as double:

        def say(number):
            return ask(double, "/v1/models/echo:predict", {"instances": [f"text {number}"] * (1 + number % 2)})

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            replies = list(threads.map(say, range(4)))
        for number, (status, reply) in enumerate(replies):
            assert status == 200
            assert reply["predictions"] == [{"text": f"text {number}", "size": 6}] * (1 + number % 2)
        assert double.batcher.batch_sizes == [8]  # six rows and two that fill up
        assert say(0)[0] == 200
        assert double.batcher.batch_sizes == [8, 2]
        status, reply = ask(double, "/v1/models/echo:predict", {"inputs": ["a"] * 9})
        assert (status, reply["error"]) == (400, "Task size 9 is larger than maximum input batch size 8")
        request = {"signature_name": "scalar", "inputs": "a"}
        status, reply = ask(double, "/v1/models/echo:predict", request)
        assert (status, "must have at least one dimension" in reply["error"]) == (400, True)

        with (
            grpc.insecure_channel(f"127.0.0.1:{double.grpc_port}") as channel,
            concurrent.futures.ThreadPoolExecutor(2) as threads,
        ):
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            texts, sizes = threads.map(
                lambda wanted: predict(stub, "echo", {"text": ["ab"]}, output_filter=[wanted]), ("text", "size")
            )
            assert (list(texts.outputs), list(sizes.outputs)) == (["text"], ["size"])

            # A version that goes answers the request that it has begun.
            reply = threads.submit(predict, stub, "echo", {"steps": [500]}, signature="work")
            while not double.models._loaded["echo", 1]._num_held:
                time.sleep(0.001)
            nothing = read_config(os.devnull)
            nothing.model_config_list.SetInParent()
            double.models.reload(nothing)
            assert ask(double, "/v1/models/echo")[0] == 404
            assert tf.make_ndarray(reply.result(60).outputs["done"]).tolist() == [500]


def test_a_label_in_use_does_not_move_to_a_version_that_is_not_loaded(double, base):
    config = read_config(os.fspath(base / "models.config"))
    config.model_config_list.config[0].version_labels["stable"] = 125
    with pytest.raises(StatusError, match="version 125 of model half, which is not currently available"):
        double.models.reload(config)
    assert ask(double, "/v1/models/half/labels/stable:predict", {"inputs": [2.0]}) == (200, {"outputs": [4.0]})


def test_a_config_that_the_server_refuses_is_one_sentence(base, tmp_path):
    echo = os.fspath(base / "echo")
    for config, error, words in [
        (
            single_model("echo", "saved_models/echo"),
            RunError,
            "to have an absolute path or URI; got base_path()=saved_m",
        ),
        (single_model("echo", os.fspath(tmp_path)), InputError, "No version of echo was found in"),
        (read_config(os.fspath(base / "models.config")), RunError, "Request to assign label to version 12"),
    ]:
        with pytest.raises(error) as caught:
            Double(config)
        assert words in str(caught.value)
    twice = single_model("echo", echo)
    twice.model_config_list.config.add(name="echo", base_path=echo, model_platform="tensorflow")
    with pytest.raises(RunError, match="Illegal to list model echo multiple times"):
        Double(twice)
    (tmp_path / "bad" / "1").mkdir(parents=True)
    with pytest.raises(RunError, match=r"Version 1 of bad cannot be loaded.*Could not find SavedModel"):
        Double(single_model("bad", os.fspath(tmp_path / "bad")))
    (tmp_path / "models.config").write_text("model_config_list { config { nam: 'x' } }")
    with pytest.raises(InputError, match="is not a ModelServerConfig of TensorFlow Serving"):
        read_config(os.fspath(tmp_path / "models.config"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options in ({"rest_port": port}, {"rest_port": None, "grpc_port": port}):
            with pytest.raises(RunError, match=f"Port {port} cannot be opened"):
                Double(single_model("echo", echo), **options)


@pytest.mark.parametrize("flag", ["--port=65536", "--rest_api_port=-1"])
def test_a_port_that_is_none_is_one_sentence(flag):
    with pytest.raises(InputError, match="a port is 1 to 65535, or 0 to switch it off"):
        _build(parse_flags(["--model_base_path=/nowhere", flag], description=""))


def test_the_help_shows_a_command_that_can_be_copied(capsys):
    with pytest.raises(SystemExit):
        parse_flags(["--help"], description=door.__doc__)
    assert "--model_name=bert_sentiment \\\n        --model_base_path=" in capsys.readouterr().out


def test_it_runs_from_the_command_line_with_the_flags_of_the_server(base, tmp_path):
    (tmp_path / "batching.config").write_text("max_batch_size { value: 4 } allowed_batch_sizes: [1, 4]")
    with socket.socket() as free, socket.socket() as other:
        free.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        rest, grpc_port = free.getsockname()[1], other.getsockname()[1]
    command = [sys.executable, "-m", "aigc_tf.serving.double"]
    process = subprocess.Popen(
        [
            *[*command, f"--port={grpc_port}", f"--rest_api_port={rest}", f"--model_config_file={base}/models.config"],
            *["--allow_version_labels_for_unavailable_models=true", "--enable_batching", "--num_load_threads=2"],
            *[f"--batching_parameters_file={tmp_path}/batching.config", "--rest_api_timeout_in_ms=60000"],
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        assert "not for production" in lines[0]
        assert lines[1:] == [
            f"Running gRPC ModelServer at 127.0.0.1:{grpc_port} ...\n",
            f"Exporting HTTP/REST API at:127.0.0.1:{rest} ...\n",
        ]
        double = type("Ports", (), {"rest_port": rest})
        assert ask(double, "/v1/models/half/labels/stable:predict", {"instances": [1.0]}) == (
            200,
            {"predictions": [3.5]},
        )
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "note: --num_load_threads has no effect here." in errors
