"""The warm-up file of a SavedModel: requests that TensorFlow Serving answers to itself before it accepts others.

TensorFlow optimises the graph of a signature at its first call; warm-up moves that into loading.
The file is `assets.extra/tf_serving_warmup_requests`, a TFRecord of PredictionLog; the server replays it by default,
and a failing request fails the load (tensorflow_serving/servables/tensorflow/saved_model_warmup.cc).
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from aigc_tf.serving.apis import Api
from aigc_tf.serving.modules.fields import Signature
from aigc_tf.serving.process.other_process import StandIn

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Times of a replay of the file in another process."""

    num_requests: int
    seconds: float
    first_request_seconds: float
    """Seconds of a request of one row after the replay."""


def write_warmup(
    folder: str | os.PathLike[str],
    model_name: str,
    signatures: Mapping[str, Signature],
    batch_sizes: Sequence[int],
) -> None:
    """Writes the warm-up file: one request for each signature and batch size, with its fields' warm-up values.

    Args:
        folder: The SavedModel.
        model_name: Name of the model on the server.
        signatures: Signatures by name.
        batch_sizes: Numbers of rows of the requests.
    """
    path = Path(folder) / WARMUP_FILE
    path.parent.mkdir()
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for signature in signatures.values():
            for num_rows in batch_sizes:
                writer.write(_log(model_name, signature, num_rows).SerializeToString())


def try_warmup(folder: str | os.PathLike[str], signature: Signature) -> WarmUp:
    """Loads the model in another process, which replays the file as the server does, and calls a signature once.

    Raises:
        RunError: If a request of the file fails.
    """
    with StandIn(folder, warm_up=True) as model:
        _, seconds = model.timed_call(signature.name, _inputs(signature, 1))
        return WarmUp(
            num_requests=model.num_warmup_requests,
            seconds=round(model.warmup_seconds, 4),
            first_request_seconds=round(seconds, 4),
        )


def _inputs(signature: Signature, num_rows: int) -> dict[str, np.ndarray]:
    return {name: field.rows(field.warmup, range(num_rows)) for name, field in signature.inputs.items()}


def _log(model_name: str, signature: Signature, num_rows: int) -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    request = getattr(log, f"{signature.api}_log").request  # classify_log, predict_log, regress_log
    request.model_spec.name, request.model_spec.signature_name = model_name, signature.name
    for key, values in _inputs(signature, num_rows).items():
        if signature.api is Api.PREDICT:
            request.inputs[key].CopyFrom(tf.make_tensor_proto(values))
        else:
            request.input.example_list.examples.extend(map(tf.train.Example.FromString, values))
    return log
