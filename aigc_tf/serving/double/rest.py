"""The REST interface of TensorFlow Serving (http_rest_api_handler.cc), for the protocol double.

POST /v1/models/NAME[/versions/N|/labels/L]:(predict|classify|regress), GET /v1/models/NAME[...][/metadata].
"""

import json
import re
import sys
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow_serving.apis import get_model_metadata_pb2

from aigc_tf.serving.apis import Api
from aigc_tf.serving.double import inference, json_requests
from aigc_tf.serving.double.served_models import Models, ModelSpec
from aigc_tf.serving.stand_in.answering import DEFAULT_SIGNATURE
from aigc_tf.serving.stand_in.status import StatusError, invalid

_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)", re.I)
_GET = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?:/(?P<method>metadata))?", re.I)
_LARGEST_BODY = 1 << 31
_HTTP_STATUS = {
    "OK": 200,
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "UNAUTHENTICATED": 401,
}
"""The HTTP status of each canonical code; 500 for the others."""


class RestServer(ThreadingHTTPServer):
    """Serves models over HTTP, with a thread for each connection.

    Args:
        models: The served models.
        address: Host and port; port 0 means a free one.
        timeout: Seconds that a request may take.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, models: Models, address: tuple[str, int], *, timeout: float):
        super().__init__(address, _Handler)
        self.models, self.seconds = models, timeout

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that disconnect; any other error is a bug of this program."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet
    server: RestServer

    def _respond(self) -> None:
        path = re.sub(r"^https?://[^/]*|[?#].*", "", self.path)
        body = self._read_body()
        if body is None:
            self.close_connection = True  # the start of the next request is unknown
            self._send(400, "text/html", b"<html><head><title>400 Bad Request</title></head></html>")
            return
        if not path.lower().startswith("/v1/"):
            self._send(404, "text/html", b"<html><head><title>404 Not Found</title></head></html>")
            return
        status = 200
        try:
            reply = answer(self.server.models, self.command, path, body, timeout=self.server.seconds)
        except StatusError as error:
            status, reply = _HTTP_STATUS.get(error.code, 500), {"error": error.message}
        # Bytes that are not UTF-8 go out unchanged, as in the server.
        text = json.dumps(reply, ensure_ascii=False, indent=4)
        self._send(status, "application/json", text.encode("utf-8", "surrogateescape"))

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _respond

    def _read_body(self) -> bytes | None:
        """Returns the body; None if its length is not stated as HTTP requires, or too large."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            size = _parse_size(self.headers.get("Content-Length", "0"), r"\d+", 10)
            return None if size is None else self.rfile.read(size)
        chunks: list[bytes] = []
        while size := _parse_size(self.rfile.readline(100).decode("latin-1").split(";")[0], r"[\da-f]+", 16):
            chunks.append(self.rfile.read(size))
            if len(chunks[-1]) < size:
                return None
            self.rfile.readline()
        if size is None:
            return None
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The server writes no access log either."""


def _parse_size(text: str, pattern: str, base: int) -> int | None:
    if not re.fullmatch(pattern, text.strip(), re.ASCII | re.IGNORECASE) or len(text) > 100:
        return None
    size = int(text, base)
    return size if size < _LARGEST_BODY else None


def answer(models: Models, method: str, path: str, body: bytes, *, timeout: float) -> dict[str, Any]:
    """Answers an HTTP request.

    Args:
        models: The served models.
        method: GET or POST.
        path: Path of the URL, still quoted.
        body: Body of the request.
        timeout: Seconds that it may take.
    Returns:
        The content of the reply's JSON.
    Raises:
        StatusError: As the server raises it.
    """
    pattern = {"POST": _POST, "GET": _GET}.get(method)
    match = pattern.fullmatch(path) if pattern else None
    if match is None:
        raise invalid(f"Malformed request: {method} {path}")
    version = (match["version"] or "").lstrip("0")
    if len(version) > 19 or int(version or 0) >= 2**63:
        raise invalid(f"Failed to convert version: {match['version']} to numeric.")
    spec = ModelSpec(
        name=urllib.parse.unquote(match["name"] or ""),
        version=int(version or 0) if match["version"] else None,
        label=urllib.parse.unquote(match["label"]) if match["label"] else None,
    )
    asked = (match["method"] or "").lower()
    if method == "GET":
        return _describe(models, spec, asked)
    document = json_requests.parse(body)
    spec = ModelSpec(
        name=spec.name, version=spec.version, label=spec.label, signature=json_requests.signature_of(document)
    )
    if asked == Api.PREDICT:
        return _predict(models, spec, document, timeout)
    examples = json_requests.examples_of(document)
    if asked == Api.CLASSIFY:
        return json_requests.classifications(inference.classify(models, spec, examples, timeout=timeout))
    return json_requests.regressions(inference.regress(models, spec, examples, timeout=timeout))


def _predict(models: Models, spec: ModelSpec, document: dict[str, Any], timeout: float) -> dict[str, Any]:
    signatures, name = models.find(spec).signatures, spec.signature or DEFAULT_SIGNATURE
    if name not in signatures:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    infos = signatures[name]["inputs"]
    if not infos:
        raise invalid(f"Failed to get input map for signature: {spec.signature or 'DEFAULT'}")
    inputs = json_requests.inputs_of(document, infos)
    return json_requests.predictions(inference.predict(models, spec, inputs, timeout=timeout), document)


def _describe(models: Models, spec: ModelSpec, asked: str) -> dict[str, Any]:
    if not spec.name:
        raise invalid("Missing model name in request.")
    if asked != "metadata":
        return _to_json(inference.describe_states(models, spec))
    response = inference.describe_signatures(models, spec)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    # The server prints the inner map as if it were the metadata itself, so signature_def occurs twice.
    return {"model_spec": _to_json(response.model_spec), "metadata": {"signature_def": _to_json(signatures)}}


def _to_json(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
    )
