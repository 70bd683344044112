"""The gRPC interface of TensorFlow Serving, for `serving.clients.client`. Its messages need TensorFlow."""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from aigc_tf.errors import InputError
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

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # 4 MiB by default, and the server sends up to 2 GiB
    ("grpc.max_send_message_length", -1),
    # So the next retry finds a restarted server; gRPC's default pause grows up to 2 min.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


def build_client(address: ModelAddress, *, timeout: float, notice: Callable[[str], None]) -> "GrpcClient":
    """Returns a client; see `serving.clients.client.connect`."""
    return GrpcClient(address, timeout=timeout, notice=notice)


class GrpcClient:
    """A `serving.clients.client.Client` over gRPC. Threads may share it."""

    def __init__(self, address: ModelAddress, *, timeout: float, notice: Callable[[str], None]):
        self.address = address
        self._timeout, self._notice = timeout, notice
        self._channel = grpc.insecure_channel(address.server.removeprefix("grpc://"), options=_OPTIONS)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._signatures: dict[str, Signature] | None = None

    def status(self) -> list[VersionStatus]:
        """Returns the state of every version, or of the one that the address names."""
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec())
        answer = self._call(self._models.GetModelStatus, request)
        states = get_model_status_pb2.ModelVersionStatus.State
        return [
            VersionStatus(version=row.version, state=states.Name(row.state), error=row.status.error_message)
            for row in answer.model_version_status
        ]

    def signatures(self) -> dict[str, Signature]:
        """Returns the functions of the model by name."""
        if self._signatures is None:
            request = get_model_metadata_pb2.GetModelMetadataRequest(
                model_spec=self._spec(), metadata_field=["signature_def"]
            )
            answer = self._call(self._predictions.GetModelMetadata, request)
            found = get_model_metadata_pb2.SignatureDefMap()
            answer.metadata["signature_def"].Unpack(found)
            self._signatures = {
                name: Signature(inputs=_specs(one.inputs), outputs=_specs(one.outputs))
                for name, one in found.signature_def.items()
                if not name.startswith("__")
            }
        return self._signatures

    def predict(self, inputs: Mapping[str, Sequence[Any]], *, signature: str = SERVING_DEFAULT) -> dict[str, list[Any]]:
        """Calls a function of the model; see `serving.clients.client.Client`."""
        wanted = checked_signature(self.signatures(), signature, self.address)
        checked_rows(inputs, wanted, self.address)
        request = predict_pb2.PredictRequest(model_spec=self._spec(signature))
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(self._tensor(name, values, wanted.inputs[name][0]))
        answer = self._call(self._predictions.Predict, request)
        return {name: _to_list(name, tf.make_ndarray(tensor)) for name, tensor in answer.outputs.items()}

    def classify(self, examples: Sequence[Mapping[str, str]], *, signature: str) -> list[list[tuple[str, float]]]:
        """Returns, for each example, all classes with their scores."""
        request = classification_pb2.ClassificationRequest(model_spec=self._spec(signature))
        for example in examples:
            row = request.input.example_list.examples.add()
            for name, text in example.items():
                row.features.feature[name].bytes_list.value.append(_to_bytes(text))
        answer = self._call(self._predictions.Classify, request)
        return [[(one.label, one.score) for one in row.classes] for row in answer.result.classifications]

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _spec(self, signature: str = "") -> model_pb2.ModelSpec:
        spec = model_pb2.ModelSpec(
            name=self.address.model, version_label=self.address.label or None, signature_name=signature
        )
        if self.address.version is not None:
            spec.version.value = self.address.version
        return spec

    def _tensor(self, name: str, values: Sequence[Any], dtype: str) -> Any:
        rows = [_to_bytes(value) for value in values] if dtype == "string" else values
        try:
            tensor = tf.make_tensor_proto(rows, dtype=dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{name} of {self.address} takes values of type {dtype}: {str(error)[:200]}.") from error
        if tf.dtypes.as_dtype(dtype).is_integer and (tf.make_ndarray(tensor) != np.asarray(values, object)).any():
            raise InputError(f"{name} of {self.address} takes values of type {dtype}: there is a larger one.")
        return tensor

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        def attempt(deadline: float) -> Any:
            try:
                return method(request, timeout=max(deadline - time.monotonic(), 0.001))
            except grpc.RpcError as error:
                raise self._refused(error) from error

        return call_until_answered(attempt, address=self.address, timeout=self._timeout, notice=self._notice)

    def _refused(self, error: Any) -> Exception:
        """Returns the error for a gRPC status."""
        code, said = error.code().name, error.details() or ""
        if "DNS resolution failed" in said or "errors resolving" in said:
            return InputError(
                f"There is no host of the name in {self.address.server}, or no name server can be reached."
            )
        if code == "UNAVAILABLE" or (code == "RESOURCE_EXHAUSTED" and "larger than max" not in said):
            return NotAvailable(" ".join(said.split())[:200] or code)
        if code == "DEADLINE_EXCEEDED":
            return too_slow(self.address, self._timeout)
        return refusal(code, said, self.address, timeout=self._timeout)


def _specs(tensors: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        name: (tf.dtypes.as_dtype(tensor.dtype).name, tuple(dim.size for dim in tensor.tensor_shape.dim))
        for name, tensor in tensors.items()
    }


def _to_bytes(text: Any) -> Any:
    return text.encode("utf-8", "replace") if isinstance(text, str) else text


def _to_list(name: str, values: np.ndarray) -> list[Any]:
    """Returns rows as Python values; texts are decoded as UTF-8, unless the output's name ends in `_bytes`."""
    if values.dtype != object or name.endswith("_bytes"):
        return list(values.tolist())
    return list(np.vectorize(lambda text: text.decode("utf-8", "replace"), otypes=[object])(values).tolist())
