"""Clients over real sockets: what they send, and what they say of servers that are gone, full, slow or something else.

The servers here do one thing each; what TensorFlow Serving does is in server_cases.py.
"""

import concurrent.futures
import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.clients.client import VersionStatus, connect


def tensor_info(dtype, *dims):
    return {"dtype": dtype, "tensor_shape": {"dim": [{"size": str(dim), "name": ""} for dim in dims]}, "name": "x:0"}


METADATA = {
    "model_spec": {"name": "m", "signature_name": "", "version": "3"},
    "metadata": {
        "signature_def": {
            "signature_def": {
                "serving_default": {
                    "inputs": {"text": tensor_info("DT_STRING", -1), "top_k": tensor_info("DT_INT32", -1)},
                    "outputs": {"text": tensor_info("DT_STRING", -1), "p": tensor_info("DT_FLOAT", -1, 2)},
                },
                "single": {
                    "inputs": {"text": tensor_info("DT_STRING", -1)},
                    "outputs": {"value": tensor_info("DT_FLOAT", -1)},
                },
                "__saved_model_init_op": {"inputs": {}, "outputs": {"x": tensor_info("DT_INVALID")}},
            }
        }
    },
}


class HttpServer:
    """Answers by `script`, a list of functions of the handler, the last one for ever; keeps what it was asked."""

    def __init__(self, port=0):
        self.script, self.asked = [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.asked.append((self.path, None))
                self.reply(200, METADATA)

            def do_POST(self):
                outer.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
                answer = outer.script.pop(0) if len(outer.script) > 1 else outer.script[0]
                with contextlib.suppress(OSError):  # a client that has gone away
                    answer(self)

            def reply(self, status, content):
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def process_request(self, request, client_address):
                outer.connections.append(request)
                super().process_request(request, client_address)

        self.connections = []
        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        """Ends the server and its open connections, as when its process dies."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def replies(status, content):
    return lambda handler: handler.reply(status, content)


def hangs_up(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"outp')
    handler.close_connection = True


OK = replies(200, {"outputs": {"text": ["a"], "p": [[0.25, 0.75]]}})
ONE = {"text": ["a"], "top_k": [0]}


@pytest.fixture
def server():
    running = HttpServer()
    yield running
    running.close()


@pytest.fixture
def ask(server):
    """Asks for one row and returns the outputs; connects by the options given."""

    def call(inputs=ONE, *, signature="serving_default", model="m", url=None, **options):
        with connect(url or server.url, model, **{"timeout": 5, **options}) as client:
            return client.predict(inputs, signature=signature)

    return call


def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


# ---------------------------------------------------------------------------------------------------------------- REST


def test_columns_go_out_and_come_back(server, ask):
    server.script = [replies(200, {"outputs": {"text": ["ä🙂"], "text_bytes": [{"b64": "/w=="}], "p": [[0.5, "NaN"]]}})]
    outputs = ask({"text": ["\r\n\0 é 中 🙂 \ud83d", b"\xff"], "top_k": [1, 2]})
    assert outputs == {"text": ["ä🙂"], "text_bytes": [b"\xff"], "p": [[0.5, "NaN"]]}
    assert server.asked == [
        ("/v1/models/m/metadata", None),
        (
            "/v1/models/m:predict",
            {
                "signature_name": "serving_default",
                "inputs": {"text": ["\r\n\0 é 中 🙂 ?", {"b64": "/w=="}], "top_k": [1, 2]},
            },
        ),
    ]


def test_the_only_output_gets_its_name(server, ask):
    server.script = [replies(200, {"outputs": [1.5, 2.5]})]
    assert ask({"text": ["a", "b"]}, signature="single") == {"value": [1.5, 2.5]}


def test_version_label_and_a_name_of_any_letters_are_in_the_address(server, ask):
    server.script = [OK]
    ask(version=7)
    ask(model="Größe ?", label="canary")
    assert [path for path, _ in server.asked] == [
        "/v1/models/m/versions/7/metadata",
        "/v1/models/m/versions/7:predict",
        "/v1/models/Gr%C3%B6%C3%9Fe%20%3F/labels/canary/metadata",
        "/v1/models/Gr%C3%B6%C3%9Fe%20%3F/labels/canary:predict",
    ]


def test_signatures_have_dtypes_and_shapes(server):
    with connect(server.url, "m") as client:
        found = client.signatures()
    assert set(found) == {"serving_default", "single"}
    assert found["serving_default"].inputs == {"text": ("string", (-1,)), "top_k": ("int32", (-1,))}
    assert found["serving_default"].outputs["p"] == ("float32", (-1, 2))


def test_classes_come_with_their_scores(server):
    server.script = [replies(200, {"results": [[["bad", 0.25], ["gut", 0.75]], [["bad", 1], ["gut", 0]]]})]
    with connect(server.url, "m") as client:
        rows = client.classify([{"text": "a"}, {"text": "\ud800"}], signature="classify")
    assert rows == [[("bad", 0.25), ("gut", 0.75)], [("bad", 1.0), ("gut", 0.0)]]
    assert server.asked == [
        ("/v1/models/m:classify", {"signature_name": "classify", "examples": [{"text": "a"}, {"text": "?"}]})
    ]


@pytest.mark.parametrize("status", [503, 429, 502])
def test_a_server_that_is_full_is_asked_again(server, ask, status):
    server.script = [replies(status, {"error": "The queue is full"}), replies(status, b""), OK]
    said = []
    assert ask(notice=said.append)["text"] == ["a"]
    assert len(server.asked) == 1 + 3
    shown = repr('{"error": "The queue is full"}')
    assert said == [f"{server.url}: HTTP status {status} {shown}. Trying again for up to 5 s."]


def test_an_answer_that_breaks_off_is_asked_for_again(server, ask):
    server.script = [hangs_up, OK]
    assert ask()["text"] == ["a"]


def test_a_server_that_comes_back_is_found(ask):
    port = free_port()
    back = []

    def come_back():
        time.sleep(0.6)
        back.append(HttpServer(port))
        back[0].script = [OK]

    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(come_back)
        assert ask(url=f"http://127.0.0.1:{port}")["text"] == ["a"]
    back[0].close()


def test_a_server_that_dies_between_two_requests_and_comes_back_is_found(ask):
    first = HttpServer()
    first.script = [OK]
    with connect(first.url, "m", timeout=5) as client:
        client.predict(ONE)
        first.close()

        def come_back():
            time.sleep(0.6)
            again = HttpServer(first.port)
            again.script = [OK]
            return again

        with concurrent.futures.ThreadPoolExecutor() as pool:
            back = pool.submit(come_back)
            assert client.predict(ONE)["text"] == ["a"]
        back.result().close()


def _refused(ask, **options):
    """Returns the error of a call and the seconds it took."""
    started = time.monotonic()
    with pytest.raises((InputError, RunError)) as error:
        ask(**options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    return error.value, time.monotonic() - started


def test_what_never_is_available_is_given_up_in_time(ask):
    port = free_port()
    error, seconds = _refused(ask, url=f"http://127.0.0.1:{port}", timeout=0.7)
    assert isinstance(error, RunError)
    assert str(error).startswith(f"http://127.0.0.1:{port} was not available for 0.7 s (")
    assert str(error).endswith("tries): Connection refused. Is the server running, and is this its address?")
    assert seconds < 2


def test_an_answer_past_the_deadline_is_not_waited_for(server, ask):
    server.script = [lambda handler: (time.sleep(3), OK(handler))]
    error, seconds = _refused(ask, timeout=0.5)
    assert isinstance(error, RunError)
    assert "gave no answer for the model 'm' in time (0.5 s). Ask for less at once" in str(error)
    assert seconds < 2
    assert len(server.asked) == 2  # and not asked again


def test_an_answer_that_drips_or_stalls_ends_at_the_deadline_too(server, ask):
    def drips(handler, pause=0.1):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(30):
            handler.wfile.write(b" ")
            time.sleep(pause)

    server.script = [drips]
    assert _refused(ask, timeout=0.6)[1] < 2
    server.script = [lambda handler: (time.sleep(0.4), drips(handler, 3))]  # a first byte late, then nothing
    assert _refused(ask, timeout=0.6)[1] < 2


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (
            replies(200, b"<html>hi</html>"),
            RunError,
            "did not answer with JSON ('<html>hi</html>'); is it the REST port",
        ),
        (replies(200, b'{"outputs": [1, 2'), RunError, "did not answer with JSON"),
        (replies(200, b"\xff\xfe"), RunError, "did not answer with JSON"),
        (replies(200, {"predictions": []}), RunError, "answered JSON without 'outputs' ("),
        (replies(200, [1]), RunError, "answered JSON without 'outputs' ('[1]')"),
        (
            replies(400, {"error": "input tensor alias not found in signature: txt"}),
            InputError,
            "refuses the request to the model 'm': input tensor alias not found in signature: txt.",
        ),
        (
            replies(404, {"error": "Servable not found for request: Latest(m)"}),
            InputError,
            "does not have the model 'm': Servable not found for request: Latest(m). Its REST address /v1/models/m",
        ),
        (
            replies(404, b"<html>404\n\nnginx</html>"),
            InputError,
            "does not have the model 'm': HTTP status 404 '<html>404 n",
        ),
        (replies(403, b"no"), InputError, "refuses the request to the model 'm': HTTP status 403 'no'."),
        (replies(413, b""), InputError, "refuses the request to the model 'm': HTTP status 413 without a body."),
        (
            replies(500, {"error": "Op failed.\n\t [[{{node x}}]]"}),
            RunError,
            "failed to answer for the model 'm': Op failed.",
        ),
        (replies(504, {"error": "Timed out"}), RunError, "gave no answer for the model 'm' in time (Timed out)."),
        (replies(500, {"error": "long " * 1000}), RunError, "long ..."),
        (replies(302, b""), RunError, "failed to answer for the model 'm': HTTP status 302 without a body."),
    ],
)
def test_what_a_server_says_is_told_in_one_sentence(server, ask, answer, kind, sentence):
    server.script = [answer]
    error, _ = _refused(ask)
    assert type(error) is kind
    assert sentence in str(error)
    assert str(error).startswith(server.url)
    assert len(server.asked) == 2  # asked once


def test_a_prompt_of_ten_megabytes_goes_through_and_back(server, ask):
    server.script = [lambda handler: handler.reply(200, {"outputs": server.asked[-1][1]["inputs"]})]
    text = "中" * 3_400_000
    assert ask({"text": [text], "top_k": [0]}, timeout=30)["text"] == [text]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"text": ["a"]}, "the model 'm' takes text, top_k; top_k missing."),
        ({"txt": ["a"], "text": ["a"], "top_k": [1]}, "takes text, top_k; txt not known."),
        (
            {"text": ["a", "b"], "top_k": [1]},
            "the same number of rows, at least one, in every input; there are text 2, top_k 1.",
        ),
        ({"text": [], "top_k": []}, "there are text 0, top_k 0."),
    ],
)
def test_what_does_not_fit_the_signature_is_told_before_it_is_sent(server, ask, inputs, sentence):
    error, _ = _refused(ask, inputs=inputs)
    assert isinstance(error, InputError)
    assert sentence in str(error)
    assert [path for path, _ in server.asked] == ["/v1/models/m/metadata"]
    error, _ = _refused(ask, signature="generate")
    assert str(error) == "the model 'm' has no signature 'generate'; it has serving_default, single."


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (("localhost:8501", "m"), {}, "The server is 'localhost:8501'; write http://host:8501"),
        (("ftp://host", "m"), {}, "write http://host:8501"),
        (("http://", "m"), {}, "write http://host:8501"),
        (("http://host/v1?x=1", "m"), {}, "write http://host:8501"),
        (("grpc://host:8500/path", "m"), {}, "write http://host:8501"),
        (("http://host", ""), {}, "The model is ''; give the name"),
        (("http://host", "saved_models/m"), {}, "The model is 'saved_models/m'; give the name that the server has"),
        (("http://host", "m"), {"version": 1, "label": "a"}, "Version 1 and label 'a' are given"),
        (("http://host", "m"), {"version": -1}, "The version is -1"),
        (("http://host", "m"), {"timeout": 0}, "The timeout is 0 s; it must be above 0."),
        (("http://host", "m"), {"timeout": float("nan")}, "The timeout is nan s"),
    ],
)
def test_an_address_that_does_not_fit_is_told_at_once(arguments, options, sentence):
    with pytest.raises(InputError) as error:
        connect(*arguments, **options)
    assert sentence in str(error.value)


def test_a_host_that_is_not_there_is_not_tried_again(ask):
    for url in ("http://no-such-host.invalid:1", "grpc://no-such-host.invalid:1"):
        error, seconds = _refused(ask, url=url, timeout=20)
        assert str(error) == f"There is no host of the name in {url}, or no name server can be reached."
        assert seconds < 10


def test_rest_needs_no_tensorflow():
    code = (
        "import sys; from aigc_tf.serving.clients.client import connect; connect('http://localhost:1', 'm');"
        "assert not {'tensorflow', 'keras', 'grpc'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# ---------------------------------------------------------------------------------------------------------------- gRPC


class GrpcServer(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    """Echoes the inputs of a request after `script` had its say: functions of the context, the last one for ever."""

    def __init__(self, port=0):
        self.script, self.asked = [lambda context: None], []
        options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=options)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(self, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.url = f"grpc://127.0.0.1:{self.port}"
        self._server.start()

    def close(self):
        self._server.stop(0).wait()

    def GetModelMetadata(self, request, context):
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name in ("text", "top_k"):
            for side in ("inputs", "outputs"):
                info = getattr(signatures.signature_def["serving_default"], side)[name]
                info.dtype = tf.string.as_datatype_enum if name == "text" else tf.int32.as_datatype_enum
                info.tensor_shape.dim.add(size=-1)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.metadata["signature_def"].Pack(signatures)
        return response

    def Predict(self, request, context):
        self.asked.append(request)
        (self.script.pop(0) if len(self.script) > 1 else self.script[0])(context)
        return predict_pb2.PredictResponse(outputs=request.inputs)

    def Classify(self, request, context):
        self.asked.append(request)
        response = classification_pb2.ClassificationResponse()
        for _ in request.input.example_list.examples:
            response.result.classifications.add().classes.add(label="gut", score=0.5)
        return response

    def GetModelStatus(self, request, context):
        response = get_model_status_pb2.GetModelStatusResponse()
        response.model_version_status.add(version=2**40, state="LOADING").status.error_message = "no"
        return response


def aborts(code, message):
    return lambda context: context.abort(code, message)


@pytest.fixture
def grpc_server():
    running = GrpcServer()
    yield running
    running.close()


def test_tensors_go_out_and_come_back(grpc_server):
    with connect(grpc_server.url, "m", label="stable") as client:
        outputs = client.predict({"text": ["\r\n\0 é 中 🙂 \ud83d", b"\xc3\xa4"], "top_k": [1, 2]})
        assert outputs == {"text": ["\r\n\0 é 中 🙂 ?", "ä"], "top_k": [1, 2]}
        assert client.classify([{"text": "ä"}], signature="classify") == [[("gut", 0.5)]]
        assert client.status() == [VersionStatus(version=2**40, state="LOADING", error="no")]
    predicted, classified = grpc_server.asked
    assert (predicted.model_spec.name, predicted.model_spec.version_label) == ("m", "stable")
    assert predicted.model_spec.signature_name == "serving_default"
    [example] = classified.input.example_list.examples
    assert list(example.features.feature["text"].bytes_list.value) == ["ä".encode()]


def test_an_answer_of_ten_megabytes_is_taken(grpc_server):
    with connect(grpc_server.url, "m", version=3) as client:
        text = "中" * 3_400_000
        assert client.predict({"text": [text], "top_k": [0]})["text"] == [text]
    assert grpc_server.asked[0].model_spec.version.value == 3


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_grpc_server_that_is_full_is_asked_again(grpc_server, ask, code):
    grpc_server.script = [aborts(code, "full"), aborts(code, "full"), lambda context: None]
    said = []
    assert ask(url=grpc_server.url, notice=said.append)["text"] == ["a"]
    assert len(grpc_server.asked) == 3
    assert said == [f"{grpc_server.url}: full. Trying again for up to 5 s."]


def test_a_grpc_server_that_dies_and_comes_back_is_found(grpc_server):
    with connect(grpc_server.url, "m", timeout=10) as client:
        client.predict(ONE)
        grpc_server.close()

        def come_back():
            time.sleep(0.7)
            return GrpcServer(grpc_server.port)

        with concurrent.futures.ThreadPoolExecutor() as pool:
            back = pool.submit(come_back)
            assert client.predict(ONE)["text"] == ["a"]
        back.result().close()


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (
            aborts(grpc.StatusCode.NOT_FOUND, "Unrecognized servable version label: canary"),
            InputError,
            "does not have the model 'm': Unrecognized servable version label: canary. Its REST address",
        ),
        (
            aborts(grpc.StatusCode.INVALID_ARGUMENT, "bad\nshape"),
            InputError,
            "refuses the request to the model 'm': bad shape.",
        ),
        (aborts(grpc.StatusCode.INTERNAL, ""), RunError, "failed to answer for the model 'm': INTERNAL."),
        (
            lambda context: 1 / 0,
            RunError,
            "failed to answer for the model 'm': Exception calling application: division",
        ),
        (lambda context: time.sleep(4), RunError, "gave no answer for the model 'm' in time (0.5 s)."),
    ],
)
def test_what_a_grpc_server_says_is_told_in_one_sentence(grpc_server, ask, answer, kind, sentence):
    grpc_server.script = [answer]
    error, seconds = _refused(ask, url=grpc_server.url, timeout=0.5)
    assert type(error) is kind
    assert sentence in str(error)
    assert seconds < 2
    assert len(grpc_server.asked) == 1


def test_grpc_that_never_is_available_is_given_up_in_time(ask):
    error, seconds = _refused(ask, url=f"grpc://127.0.0.1:{free_port()}", timeout=0.7)
    assert "was not available for 0.7 s (" in str(error)
    assert "Connection refused" in str(error)
    assert seconds < 2


def test_values_of_a_wrong_type_are_told_before_they_are_sent(grpc_server, ask):
    for wrong in ("many", 1.5, 2**40):
        error, _ = _refused(ask, url=grpc_server.url, inputs={"text": ["a"], "top_k": [wrong]})
        assert str(error).startswith("top_k of the model 'm' takes values of type int32: ")
    assert grpc_server.asked == []


def test_the_port_of_the_other_interface_is_told(server, grpc_server, ask):
    error, _ = _refused(ask, url=grpc_server.url.replace("grpc", "http"), timeout=3)
    assert "does not speak HTTP; if it is the gRPC port of a server, write grpc:// ." in str(error)
    error, _ = _refused(ask, url=server.url.replace("http", "grpc"), timeout=1)
    assert isinstance(error, RunError)
