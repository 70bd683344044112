"""The gRPC interface of TensorFlow Serving: PredictionService and ModelService, for the protocol double.

MultiInference is UNIMPLEMENTED.
"""

from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from aigc_tf.serving.double import inference
from aigc_tf.serving.double.loaded_version import NO_TIMEOUT
from aigc_tf.serving.double.served_models import Models, ModelSpec
from aigc_tf.serving.stand_in.status import CODES, StatusError, invalid

_NUM_THREADS = 64
_MESSAGE_LIMIT = 1024
_FIELDS = {
    "object": ("string_val", types_pb2.DT_STRING),
    "float32": ("float_val", types_pb2.DT_FLOAT),
    "float16": ("half_val", types_pb2.DT_HALF),
    "float64": ("double_val", types_pb2.DT_DOUBLE),
    "bool": ("bool_val", types_pb2.DT_BOOL),
    "int64": ("int64_val", types_pb2.DT_INT64),
    "uint32": ("uint32_val", types_pb2.DT_UINT32),
    "uint64": ("uint64_val", types_pb2.DT_UINT64),
    "int8": ("int_val", types_pb2.DT_INT8),
    "int16": ("int_val", types_pb2.DT_INT16),
    "int32": ("int_val", types_pb2.DT_INT32),
    "uint8": ("int_val", types_pb2.DT_UINT8),
    "uint16": ("int_val", types_pb2.DT_UINT16),
}
"""The field of a TensorProto that holds the values of a NumPy type, and TensorFlow's number for it."""


def start_grpc_server(models: Models, address: str) -> tuple[grpc.Server, int]:
    """Serves models over gRPC.

    Args:
        models: The served models.
        address: `host:port`; port 0 means a free one.
    Returns:
        The server, started, and its port.
    """
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(_NUM_THREADS), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_PredictionService(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_ModelService(models), server)
    port = server.add_insecure_port(address)
    server.start()
    return server, port


def _answering(body: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """Turns a StatusError into the status of the call."""

    def method(self: Any, request: Any, context: Any) -> Any:
        try:
            return body(self, request, context)
        except StatusError as error:
            message = error.message
            if len(message) > _MESSAGE_LIMIT:
                message = message[:_MESSAGE_LIMIT] + "...TRUNCATED"
            code = next(code for code in grpc.StatusCode if code.value[0] == CODES.index(error.code))
            context.abort(code, message)

    return method


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models: Models):
        self._models = models

    @_answering
    def Predict(self, request: Any, context: Any) -> Any:
        """Runs any signature."""
        inputs = {name: _to_array(name, tensor) for name, tensor in request.inputs.items()}
        answer = inference.predict(
            self._models,
            _spec(request.model_spec),
            inputs,
            output_filter=list(request.output_filter),
            timeout=_seconds_left(context),
        )
        response = predict_pb2.PredictResponse()
        _fill_spec(response.model_spec, answer)
        infos = answer.version.signatures[answer.signature]["outputs"]
        for name, value in answer.outputs.items():
            _fill_tensor(response.outputs[name], value, dtype=infos[name]["dtype"])
        return response

    @_answering
    def Classify(self, request: Any, context: Any) -> Any:
        """Labels and scores of examples."""
        answer = inference.classify(
            self._models, _spec(request.model_spec), _examples(request.input), timeout=_seconds_left(context)
        )
        response = classification_pb2.ClassificationResponse()
        _fill_spec(response.model_spec, answer)
        first = next(iter(answer.outputs.values()))
        for row in range(len(first)):
            classes = response.result.classifications.add().classes
            for column in range(first.shape[1]):
                found = classes.add()
                if "classes" in answer.outputs:
                    found.label = answer.outputs["classes"][row, column].decode("utf-8", "replace")
                if "scores" in answer.outputs:
                    found.score = answer.outputs["scores"][row, column]
        return response

    @_answering
    def Regress(self, request: Any, context: Any) -> Any:
        """Values of examples."""
        answer = inference.regress(
            self._models, _spec(request.model_spec), _examples(request.input), timeout=_seconds_left(context)
        )
        response = regression_pb2.RegressionResponse()
        _fill_spec(response.model_spec, answer)
        for value in answer.outputs["outputs"]:
            response.result.regressions.add(value=value)
        return response

    @_answering
    def GetModelMetadata(self, request: Any, context: Any) -> Any:
        """Signatures of a version."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        return inference.describe_signatures(self._models, _spec(request.model_spec))


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: Models):
        self._models = models

    @_answering
    def GetModelStatus(self, request: Any, context: Any) -> Any:
        """States of the versions of a model."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        return inference.describe_states(self._models, _spec(request.model_spec))

    @_answering
    def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:
        """Switches to another config."""
        self._models.reload(request.config)
        return model_management_pb2.ReloadConfigResponse()


def _spec(message: Any) -> ModelSpec:
    return ModelSpec(
        name=message.name,
        version=message.version.value if message.HasField("version") else None,
        label=message.version_label if message.HasField("version_label") else None,
        signature=message.signature_name,
    )


def _seconds_left(context: Any) -> float:
    left = context.time_remaining()
    return NO_TIMEOUT if left is None else min(left, NO_TIMEOUT)


def _fill_spec(message: Any, answer: inference.Answer) -> None:
    message.name, message.signature_name = answer.version.name, answer.signature
    message.version.value = answer.version.number


def _to_array(name: str, tensor: Any) -> np.ndarray:
    try:
        return tf.make_ndarray(tensor)
    except (TypeError, ValueError, KeyError, MemoryError) as error:
        raise invalid(f"tensor parsing error: {name}") from error


def _fill_tensor(message: Any, value: np.ndarray, *, dtype: str) -> None:
    """Fills the field of the type, as the server does; TensorFlow's Python would fill `tensor_content`."""
    field, message.dtype = _FIELDS[value.dtype.name]
    if value.dtype == np.float16:  # the field holds bits, here and in the next branch
        value = value.view(np.uint16)
    elif dtype == "bfloat16":  # arrays hold it as float32
        field, message.dtype, value = "half_val", types_pb2.DT_BFLOAT16, value.view(np.uint32) >> 16
    for size in value.shape:
        message.tensor_shape.dim.add(size=size)
    getattr(message, field).extend(value.ravel().tolist())


def _examples(message: Any) -> Sequence[bytes]:
    if message.WhichOneof("kind") == "example_list_with_context":
        context = message.example_list_with_context.context.SerializeToString()
        return [context + example.SerializeToString() for example in message.example_list_with_context.examples]
    return [example.SerializeToString() for example in message.example_list.examples]
