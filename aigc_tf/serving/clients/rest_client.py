"""The REST interface of TensorFlow Serving, for `serving.clients.client`. Without TensorFlow."""

import base64
import http.client
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import requests
import urllib3

from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.apis import SERVING_DEFAULT
from aigc_tf.serving.clients.client import (
    ModelAddress,
    NotAvailable,
    Signature,
    VersionStatus,
    call_until_answered,
    checked_rows,
    checked_signature,
    refusal,
    too_slow,
)
from aigc_tf.serving.stand_in.tensors import NUMPY_NAMES

# Statuses of a proxy in between as well as of the server (http_server.cc).
_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    409: "ALREADY_EXISTS",
    413: "INVALID_ARGUMENT",
    499: "CANCELLED",
    501: "UNIMPLEMENTED",
    504: "DEADLINE_EXCEEDED",
}
_MAY_PASS = (429, 502, 503)
_CONNECT_SECONDS = 5.0


def build_client(address: ModelAddress, *, timeout: float, notice: Callable[[str], None]) -> "RestClient":
    """Returns a client; see `serving.clients.client.connect`."""
    return RestClient(address, timeout=timeout, notice=notice)


class RestClient:
    """A `serving.clients.client.Client` over HTTP. Threads must not share it: each needs its own."""

    def __init__(self, address: ModelAddress, *, timeout: float, notice: Callable[[str], None]):
        self.address = address
        self._timeout, self._notice = timeout, notice
        self._session = requests.Session()
        self._signatures: dict[str, Signature] | None = None
        self._model = f"{address.server}/v1/models/{quote(address.model, safe='')}"
        self._chosen = self._model
        if address.version is not None:
            self._chosen += f"/versions/{address.version}"
        if address.label:
            self._chosen += f"/labels/{quote(address.label, safe='')}"

    def status(self) -> list[VersionStatus]:
        """Returns the state of every version, or of the one that the address names."""
        place = self._chosen if self.address.version is not None else self._model
        rows = self._part(self._call("GET", place), "model_version_status", list)
        return [
            VersionStatus(
                version=int(row["version"]), state=row["state"], error=row.get("status", {}).get("error_message", "")
            )
            for row in rows
        ]

    def signatures(self) -> dict[str, Signature]:
        """Returns the functions of the model by name."""
        if self._signatures is None:
            metadata = self._part(self._call("GET", f"{self._chosen}/metadata"), "metadata", dict)
            found = self._part(self._part(metadata, "signature_def", dict), "signature_def", dict)
            self._signatures = {
                name: Signature(inputs=_specs(one.get("inputs", {})), outputs=_specs(one.get("outputs", {})))
                for name, one in found.items()
                if not name.startswith("__")  # Keras' and TensorFlow's own, such as __saved_model_init_op
            }
        return self._signatures

    def predict(self, inputs: Mapping[str, Sequence[Any]], *, signature: str = SERVING_DEFAULT) -> dict[str, list[Any]]:
        """Calls a function of the model; see `serving.clients.client.Client`."""
        wanted = checked_signature(self.signatures(), signature, self.address)
        checked_rows(inputs, wanted, self.address)
        request = {"signature_name": signature, "inputs": {name: _to_json(values) for name, values in inputs.items()}}
        answer = self._call("POST", f"{self._chosen}:predict", request)
        if len(wanted.outputs) == 1:  # the server leaves out the name of an only output
            return {name: _from_json(self._part(answer, "outputs", list)) for name in wanted.outputs}
        return {name: _from_json(values) for name, values in self._part(answer, "outputs", dict).items()}

    def classify(self, examples: Sequence[Mapping[str, str]], *, signature: str) -> list[list[tuple[str, float]]]:
        """Returns, for each example, all classes with their scores."""
        request = {"signature_name": signature, "examples": [_to_json(example) for example in examples]}
        rows = self._part(self._call("POST", f"{self._chosen}:classify", request), "results", list)
        return [[(label, float(score)) for label, score in row] for row in rows]

    def close(self) -> None:
        """Ends the connection."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, url: str, content: Any = None) -> Any:
        body = None if content is None else json.dumps(content, ensure_ascii=False).encode()
        status, answer = call_until_answered(
            lambda deadline: self._attempt(method, url, body, deadline),
            address=self.address,
            timeout=self._timeout,
            notice=self._notice,
        )
        try:
            parsed = json.loads(answer)
        except ValueError as error:
            if status == requests.codes.ok:
                raise RunError(
                    f"{self.address.server} did not answer with JSON ({_shown(answer)}); is it the REST port of "
                    "TensorFlow Serving?"
                ) from error
            parsed = None
        if status != requests.codes.ok:
            said = parsed.get("error") if isinstance(parsed, dict) else None
            message = str(said) if said else f"HTTP status {status} {_shown(answer)}"
            raise refusal(_CODES.get(status, "UNKNOWN"), message, self.address, timeout=self._timeout)
        return parsed

    def _attempt(self, method: str, url: str, body: bytes | None, deadline: float) -> tuple[int, bytes]:
        """Sends the request once and returns status and body of the answer."""
        # Never 0, which `requests` refuses as a timeout.
        left = max(deadline - time.monotonic(), 0.001)
        headers = {"Content-Type": "application/json"}
        try:
            with self._session.request(
                method, url, data=body, headers=headers, stream=True, timeout=(min(left, _CONNECT_SECONDS), left)
            ) as response:
                answer = b"".join(self._pieces(response, deadline))
        except requests.exceptions.ReadTimeout as error:
            raise too_slow(self.address, self._timeout) from error
        except (requests.exceptions.SSLError, requests.exceptions.InvalidURL, ValueError) as error:
            raise InputError(f"{self.address.server} cannot be asked: {_reason(error)}.") from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise self._broken(error) from error
        if response.status_code in _MAY_PASS:
            raise NotAvailable(f"HTTP status {response.status_code} {_shown(answer)}")
        return response.status_code, answer

    def _pieces(self, response: requests.Response, deadline: float) -> Iterator[bytes]:
        """Yields the body as it comes; it does not wait for more beyond the deadline."""
        # Not iter_content, which waits until it has the requested number of bytes.
        while piece := response.raw.read1(1 << 20, decode_content=True):
            yield piece
            left = deadline - time.monotonic()
            if left <= 0:
                raise too_slow(self.address, self._timeout)
            socket = getattr(response.raw.connection, "sock", None)
            if socket is not None:
                socket.settimeout(left)

    def _broken(self, error: Exception) -> Exception:
        """Returns the error for a failed connection."""
        causes = _causes(error)
        if any(isinstance(cause, urllib3.exceptions.NameResolutionError) for cause in causes):
            return InputError(
                f"There is no host of the name in {self.address.server}, or no name server can be reached."
            )
        if any(isinstance(cause, urllib3.exceptions.ReadTimeoutError | TimeoutError) for cause in causes) and not any(
            isinstance(cause, urllib3.exceptions.ConnectTimeoutError) for cause in causes
        ):
            return too_slow(self.address, self._timeout)
        for cause in causes:
            if isinstance(cause, http.client.BadStatusLine) and not isinstance(cause, http.client.RemoteDisconnected):
                return RunError(
                    f"{self.address.server} does not speak HTTP; if it is the gRPC port of a server, write grpc:// ."
                )
        return NotAvailable(_reason(error))

    def _part(self, answer: Any, key: str, kind: type) -> Any:
        part = answer.get(key) if isinstance(answer, dict) else None
        if not isinstance(part, kind):
            raise RunError(
                f"{self.address.server} answered JSON without {key!r} ({_shown(json.dumps(answer).encode())}); is it "
                "the REST port of TensorFlow Serving?"
            )
        return part


def _specs(tensors: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns dtype and shape of each tensor; protobuf's JSON writes int64 as a string."""
    return {
        name: (
            _numpy_name(str(tensor["dtype"])),
            tuple(int(dim["size"]) for dim in tensor.get("tensor_shape", {}).get("dim", ())),
        )
        for name, tensor in tensors.items()
    }


def _numpy_name(dtype: str) -> str:
    name = dtype.removeprefix("DT_").lower()
    return NUMPY_NAMES.get(name, name)


def _to_json(value: Any) -> Any:
    """Returns a value in TensorFlow Serving's JSON: bytes in base64; half a surrogate pair is replaced."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {key: _to_json(one) for key, one in value.items()}
    if isinstance(value, Sequence):
        return [_to_json(one) for one in value]
    return value.item() if hasattr(value, "item") else value  # a NumPy number


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(one) for one in value]
    if isinstance(value, dict) and set(value) == {"b64"}:
        return base64.b64decode(value["b64"])
    return value


def _causes(error: BaseException | None) -> list[BaseException]:
    """Returns an error and its causes, which `requests` keeps in several attributes."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and one not in found:
            found.append(one)
            waiting += [*one.args, one.__cause__, one.__context__, getattr(one, "reason", None)]
    return found


def _reason(error: BaseException) -> str:
    """Returns the operating system's message for a failure, else that of the innermost library."""
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, OSError) and cause.strerror:
            return str(cause.strerror)
    return " ".join(str(causes[-1]).split())[:200] or type(causes[-1]).__name__


def _shown(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return repr(text if len(text) <= 120 else f"{text[:120]} ...") if text else "without a body"
