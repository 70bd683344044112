"""The warm-up file of a SavedModel: requests that TensorFlow Serving answers to itself before it lets anybody in.

TensorFlow optimises the graph of a signature when it is first asked; so that is paid while the model loads.
The file is `assets.extra/tf_serving_warmup_requests`, a TFRecord of PredictionLog; the server replays it by default,
and one request that fails fails the load (tensorflow_serving/servables/tensorflow/saved_model_warmup.cc).
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from aigc_tf.serving.process.other_process import StandIn

WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
_TEXTS = ("A short text.", "Another text, which is a little longer than the one before it, so that batches are uneven.")
_VALUES: dict[str, Any] = {"max_new_tokens": 4, "seed": 0, "prompt_lengths": 2, "stop": b"", "choices": b"a\nb"}
"""What an input gets in each row; other numbers get -1, with which a setting is the export's own, and other texts
those above. Ids and masks get 1."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmUp:
    """What replaying the file in another process took."""

    num_requests: int
    seconds: float
    first_request_seconds: float
    """Of a request of one row to `serving_default`, after that."""


def write_warmup(
    folder: str | os.PathLike[str],
    model_name: str,
    signatures: Mapping[str, Mapping[str, Any]],
    batch_sizes: Sequence[int],
) -> None:
    """Writes the warm-up file: one request for each signature and batch size.

    Args:
        folder: The SavedModel.
        model_name: By which the server knows it.
        signatures: By name its `inputs`: by name dtype and shape, the first axis free, as the manifest has them.
        batch_sizes: Rows of the requests.
    """
    path = Path(folder) / WARMUP_FILE
    path.parent.mkdir()
    with tf.io.TFRecordWriter(os.fspath(path)) as writer:
        for name, signature in signatures.items():
            for num_rows in batch_sizes:
                writer.write(_log(model_name, name, signature["inputs"], num_rows).SerializeToString())


def try_warmup(folder: str | os.PathLike[str], signatures: Mapping[str, Mapping[str, Any]]) -> WarmUp:
    """Loads the model in another process, which replays the file as the server does, and asks it once.

    Raises:
        RunError: If a request of the file fails.
    """
    inputs = {name: _value(name, *spec, num_rows=1) for name, spec in signatures["serving_default"]["inputs"].items()}
    with StandIn(folder, warm_up=True) as model:
        _, seconds = model.timed_call("serving_default", inputs)
        return WarmUp(
            num_requests=model.num_warmup_requests,
            seconds=round(model.warmup_seconds, 4),
            first_request_seconds=round(seconds, 4),
        )


def _log(model_name: str, name: str, inputs: Mapping[str, Any], num_rows: int) -> prediction_log_pb2.PredictionLog:
    log = prediction_log_pb2.PredictionLog()
    kind = {"classify": log.classify_log, "regress": log.regress_log}.get(name)
    if kind is not None:
        kind.request.model_spec.name, kind.request.model_spec.signature_name = model_name, name
        for row in range(num_rows):
            example = kind.request.input.example_list.examples.add()
            for feature in ("text", "text_b"):
                example.features.feature[feature].bytes_list.value.append(_TEXTS[row % len(_TEXTS)].encode())
        return log
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = model_name, name
    for key, (dtype, shape) in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(_value(key, dtype, shape, num_rows=num_rows)))
    return log


def _value(name: str, dtype: str, shape: Sequence[int | None], *, num_rows: int) -> np.ndarray:
    size = [num_rows, *[length or 1 for length in shape[1:]]]
    if dtype == "string":
        rows = [_VALUES.get(name, _TEXTS[row % len(_TEXTS)].encode()) for row in range(num_rows)]
        return np.broadcast_to(np.array(rows, object).reshape([num_rows, *[1] * (len(size) - 1)]), size)
    return np.full(size, _VALUES.get(name, 1 if len(size) > 1 else -1), dtype)
