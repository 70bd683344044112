"""Clients of a running TensorFlow Serving: what REST and gRPC share. Only the gRPC client imports TensorFlow.

with connect("http://localhost:8501", "bert_sentiment", label="stable") as client:
    client.predict({"text": ["Dull."]})  # {"label": ["negative"], "probabilities": [[0.93, 0.07]], ...}
"""

import dataclasses
import importlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import tenacity

from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.apis import SERVING_DEFAULT

DEFAULT_TIMEOUT = 60.0
"""Seconds that a call may take, all tries together."""

_Answer = TypeVar("_Answer")
_MODULES = {"http": "rest_client", "https": "rest_client", "grpc": "grpc_client"}
_URL = re.compile(r"(?P<scheme>[a-z]+)://(?P<host>[^\s/?#]+)(?P<path>/[^\s?#]*)?")
_OURS = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "OUT_OF_RANGE", "NOT_FOUND", "UNIMPLEMENTED"}
_OURS |= {"PERMISSION_DENIED", "UNAUTHENTICATED", "ALREADY_EXISTS"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelAddress:
    """The address of a model on a server. Without version and label it means the newest loaded version."""

    server: str
    """`http://host:8501`, `https://...` or `grpc://host:8500`."""
    model: str
    version: int | None = None
    label: str = ""

    def __str__(self) -> str:
        chosen = f", version {self.version}" if self.version is not None else ""
        chosen += f", label {self.label!r}" if self.label else ""
        return f"the model {self.model!r}{chosen}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signature:
    """Inputs and outputs of a function of a model: by name the dtype, such as `string`, and the shape; -1 means any."""

    inputs: Mapping[str, tuple[str, tuple[int, ...]]]
    outputs: Mapping[str, tuple[str, tuple[int, ...]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VersionStatus:
    """The state of one version on the server."""

    version: int
    state: str
    """START, LOADING, AVAILABLE, UNLOADING or END. Only AVAILABLE answers."""
    error: str
    """Why it could not be loaded; empty without an error."""


class Client(Protocol):
    """What `connect` returns. Every call ends within the client's timeout, retries if that may help, and raises

    - InputError if the request does not fit: an unknown model, version or label, wrong inputs,
    - RunError if the server cannot be reached, is too slow, or fails.
    """

    address: ModelAddress

    def status(self) -> list[VersionStatus]:
        """Returns the states of all versions of the model, or of the version in the address. Labels do not count."""

    def signatures(self) -> dict[str, Signature]:
        """Returns the functions of the model by name, requested once."""

    def predict(self, inputs: Mapping[str, Sequence[Any]], *, signature: str = SERVING_DEFAULT) -> dict[str, list[Any]]:
        """Calls a function of the model.

        Args:
            inputs: By name, one value for each row; texts as str, or bytes.
            signature: Name of the function.
        Returns:
            The outputs by name, a list with one value for each row; texts as str, or as bytes if the output's name
            ends in `_bytes`.
        """

    def classify(self, examples: Sequence[Mapping[str, str]], *, signature: str) -> list[list[tuple[str, float]]]:
        """Returns, for each example, all classes with their scores, in the order of the model."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def connect(
    server: str,
    model: str,
    *,
    version: int | None = None,
    label: str = "",
    timeout: float = DEFAULT_TIMEOUT,
    notice: Callable[[str], None] | None = None,
) -> Client:
    """Returns a client of one model. Nothing is sent yet.

    Args:
        server: `http://host:8501` or `https://...` for REST, `grpc://host:8500` for gRPC.
        model: Name of the model on the server.
        version: The version to ask.
        label: The label to ask, such as `stable`.
        timeout: Seconds that a call may take, all tries together.
        notice: Receives one sentence when a call must wait for the server.
    Raises:
        InputError: If the address does not fit.
    """
    url = _URL.fullmatch(server.rstrip("/"))
    if not url or url["scheme"] not in _MODULES or (url["scheme"] == "grpc" and url["path"]):
        raise InputError(
            f"The server is {server!r}; write http://host:8501 (or https://...) for REST, grpc://host:8500 for gRPC."
        )
    if not model or "/" in model or ":" in model:
        raise InputError(f"The model is {model!r}; give the name that the server has for it, such as bert_sentiment.")
    if version is not None and label:
        raise InputError(f"Version {version} and label {label!r} are given; a request names one of them, or neither.")
    if version is not None and version < 0:
        raise InputError(f"The version is {version}; versions count from 1.")
    if not timeout > 0:
        raise InputError(f"The timeout is {timeout} s; it must be above 0.")
    address = ModelAddress(server=server.rstrip("/"), model=model, version=version, label=label)
    module = importlib.import_module(f"aigc_tf.serving.clients.{_MODULES[url['scheme']]}")  # gRPC's takes seconds
    client: Client = module.build_client(address, timeout=timeout, notice=notice or (lambda sentence: None))
    return client


class NotAvailable(Exception):
    """An attempt failed, but another may succeed: nothing listens, the connection broke, or the server is full."""


def call_until_answered(
    attempt: Callable[[float], _Answer], *, address: ModelAddress, timeout: float, notice: Callable[[str], None]
) -> _Answer:
    """Retries `attempt(deadline)`, a time of `time.monotonic`, while it raises NotAvailable, with growing pauses.

    Raises:
        RunError: If it stays unavailable until the time is over.
    """
    deadline = time.monotonic() + timeout

    def tell(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            notice(f"{address.server}: {state.outcome.exception()}. Trying again for up to {timeout:g} s.")

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(NotAvailable),
        wait=tenacity.wait_random_exponential(multiplier=0.1, min=0.05, max=2),
        stop=tenacity.stop_before_delay(timeout),
        before_sleep=tell,
        reraise=True,
    )
    try:
        return retrying(attempt, deadline)
    except NotAvailable as error:
        tries = retrying.statistics["attempt_number"]
        raise RunError(
            f"{address.server} was not available for {timeout:g} s ({tries} tries): {error}. Is the server running, "
            "and is this its address?"
        ) from error


def refusal(code: str, message: str, address: ModelAddress, *, timeout: float) -> Exception:
    """Returns the error for a server's refusal: one sentence, and what to do.

    Args:
        code: Name of the status, as in gRPC.
        message: The server's message.
        address: The model that was addressed.
        timeout: Seconds that the call was allowed.
    """
    said = " ".join(message.split())
    said = said.rstrip(".") if len(said) <= 400 else f"{said[:400].rstrip()} ..."
    if code == "NOT_FOUND":
        return InputError(
            f"{address.server} does not have {address}: {said}. Its REST address /v1/models/{address.model} says which "
            "versions are loaded."
        )
    if code == "DEADLINE_EXCEEDED":
        return too_slow(address, timeout, said)
    kind, verb = (InputError, "refuses the request to") if code in _OURS else (RunError, "failed to answer for")
    return kind(f"{address.server} {verb} {address}: {said or code}.")


def too_slow(address: ModelAddress, timeout: float, said: str = "") -> RunError:
    """Returns the error for a deadline, the client's or the server's."""
    return RunError(
        f"{address.server} gave no answer for {address} in time ({said or f'{timeout:g} s'}). Ask for less at once, or "
        "allow more: the client's timeout, and the server's --rest_api_timeout_in_ms."
    )


def checked_signature(signatures: Mapping[str, Signature], name: str, address: ModelAddress) -> Signature:
    """Returns a signature by its name.

    Raises:
        InputError: If the model has no such signature.
    """
    if name not in signatures:
        raise InputError(f"{address} has no signature {name!r}; it has {', '.join(sorted(signatures))}."[:1000])
    return signatures[name]


def checked_rows(inputs: Mapping[str, Sequence[Any]], signature: Signature, address: ModelAddress) -> int:
    """Returns the number of rows of a request.

    Raises:
        InputError: If inputs are missing, unknown, empty, or of several lengths.
    """
    missing, unknown = sorted(set(signature.inputs) - set(inputs)), sorted(set(inputs) - set(signature.inputs))
    if missing or unknown:
        raise InputError(
            f"{address} takes {', '.join(sorted(signature.inputs))}; "
            + "; ".join(
                f"{', '.join(names)} {what}" for names, what in ((missing, "missing"), (unknown, "not known")) if names
            )
            + "."
        )
    counts = {name: len(values) for name, values in inputs.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise InputError(f"A request has the same number of rows, at least one, in every input; there are {shown}.")
    return next(iter(counts.values()))
