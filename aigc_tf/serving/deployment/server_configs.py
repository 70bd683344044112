"""The server's own config files, as protocol buffer text: parsed with all known fields, so that a typo is reported.

tensorflow-serving-api has the messages of models.config, but not those of the other two files. These are small, so
their descriptors are built here, with the field numbers of tensorflow_serving/servables/tensorflow/
session_bundle_config.proto and tensorflow_serving/config/monitoring_config.proto (2.20.0).
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from aigc_tf.errors import InputError

_FIELD = descriptor_pb2.FieldDescriptorProto
_INT, _BOOL, _STRING = ((_FIELD.TYPE_MESSAGE, f".google.protobuf.{name}Value") for name in ("Int64", "Bool", "String"))
_BATCHING: dict[str, tuple[Any, ...]] = {
    "max_batch_size": (1, *_INT),
    "batch_timeout_micros": (2, *_INT),
    "max_enqueued_batches": (3, *_INT),
    "num_batch_threads": (4, *_INT),
    "thread_pool_name": (5, *_STRING),
    "allowed_batch_sizes": (6, _FIELD.TYPE_INT64, None),
    "pad_variable_length_inputs": (7, _FIELD.TYPE_BOOL, None),
    "enable_large_batch_splitting": (8, *_BOOL),
    "max_execution_batch_size": (9, *_INT),
}
_REPEATED = ("allowed_batch_sizes",)
_PROMETHEUS: dict[str, tuple[Any, ...]] = {"enable": (1, _FIELD.TYPE_BOOL, None), "path": (2, _FIELD.TYPE_STRING, None)}
_MONITORING: dict[str, tuple[Any, ...]] = {"prometheus_config": (1, _FIELD.TYPE_MESSAGE, ".aigc_tf.PrometheusConfig")}


def _build_messages() -> dict[str, type]:
    file = descriptor_pb2.FileDescriptorProto(name="aigc_tf/server_configs.proto", package="aigc_tf", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    messages = {"BatchingParameters": _BATCHING, "PrometheusConfig": _PROMETHEUS, "MonitoringConfig": _MONITORING}
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, type_name) in fields.items():
            label = _FIELD.LABEL_REPEATED if field in _REPEATED else _FIELD.LABEL_OPTIONAL
            message.field.add(name=field, number=number, type=kind, type_name=type_name, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"aigc_tf.{name}")) for name in messages}


_MESSAGES = _build_messages()


def read_batching(text: str, *, name: str) -> Any:
    """Parses a batching file, with the checks that the server does when it loads a model.

    Args:
        text: The file's content.
        name: The file's name, for errors.
    Returns:
        A message with the fields of tensorflow.serving.BatchingParameters.
    Raises:
        InputError: If it is not a batching file, or the server would refuse it.
    """
    parameters = _parse(text, "BatchingParameters", name)
    sizes = list(parameters.allowed_batch_sizes)
    largest = parameters.max_batch_size.value
    if not parameters.HasField("max_batch_size") or largest < 1:
        raise InputError(f"{name} has no max_batch_size of at least 1; write: max_batch_size {{ value: 8 }}")
    if any(size < 1 for size in sizes) or sizes != sorted(set(sizes)):
        raise InputError(f"{name} has allowed_batch_sizes {sizes}; they must ascend and start at 1 or more.")
    if sizes and sizes[-1] != largest:
        raise InputError(
            f"{name} has {sizes[-1]} as the last of allowed_batch_sizes and {largest} as max_batch_size; they must "
            "be equal."
        )
    executed = parameters.max_execution_batch_size.value
    if parameters.enable_large_batch_splitting.value and sizes and executed != largest:
        raise InputError(
            f"{name} has max_execution_batch_size {executed}; with enable_large_batch_splitting and allowed sizes "
            f"it must be max_batch_size, {largest}."
        )
    if parameters.HasField("num_batch_threads") and parameters.num_batch_threads.value < 1:
        raise InputError(f"{name} has num_batch_threads {parameters.num_batch_threads.value}; it must be at least 1.")
    return parameters


def read_monitoring(text: str, *, name: str) -> Any:
    """Parses a monitoring file into a message with the fields of tensorflow.serving.MonitoringConfig.

    Raises:
        InputError: If it is not a monitoring file.
    """
    return _parse(text, "MonitoringConfig", name)


def _parse(text: str, message: str, name: str) -> Any:
    try:
        return text_format.Parse(text, _MESSAGES[message]())
    except text_format.ParseError as error:
        raise InputError(f"{name} is not a {message} of TensorFlow Serving ({error}).") from error
