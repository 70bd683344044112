"""Whether a SavedModel answers in another process as the model does in this one.

The other process knows TensorFlow and tensorflow-text and nothing of ours, and has XLA switched off as TensorFlow
Serving has it. It gets texts and token ids; compared are the packed token ids (exact) and every output. Both
processes compute on the CPU: another device would answer differently by more than the bound.
"""

import base64
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.config import RunError
from aigc_tf.data.batches import pack_rows
from aigc_tf.data.tokenizers import Tokenizer
from aigc_tf.models.classifier import model_inputs
from aigc_tf.serving.predictor import to_bytes
from aigc_tf.serving.signatures import ServingSpec, answer, build_packing, packed_length

BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest difference of a logit or probability, by the dtype both processes compute in."""
HOSTILE_TEXTS: tuple[str | bytes, ...] = (
    "",
    " \t\n",
    "😀👩‍👩‍👧 emoji",
    "自然言語処理 与 中文",
    "ÀÉÎ naïve ﬁ ı İ",
    "a\x00b\u200b\ufeff",
    b"\xff\xfe not \xc3 UTF-8",
    "[CLS] [SEP] ##ing",
    "long " * 2000,
)
"""Texts that every export is tried on, besides those of the caller."""
_WORKER_SECONDS = 900

# Runs alone (-I: no environment, no working directory). Reads one JSON line, writes arrays into an .npz file.
_WORKER = r"""
import base64, ctypes, glob, json, os, sys, time
request = json.loads(sys.stdin.readline())
import numpy as np, tensorflow as tf, tensorflow_text
xla = "on"
for library in glob.glob(os.path.join(os.path.dirname(tf.__file__), "libtensorflow_*.so*")):
    disable = getattr(ctypes.CDLL(library), "_ZN10tensorflow21DisableXlaCompilationEv", None)
    if disable is not None:
        disable()
        xla = "off"
started = time.monotonic()
model = tf.saved_model.load(request["folder"])
loaded = time.monotonic()
columns = [[base64.b64decode(text) for text in column] for column in request["columns"]]
text = {name: tf.constant(column, tf.string, shape=[len(column)]) for name, column in zip(["text", "text_b"], columns)}
serve, ids = model.signatures["serving_default"], model.signatures["token_ids"]
arrays = {"text/" + name: value.numpy() for name, value in serve(**text).items()}
answered = time.monotonic()
serve(**text)
again = time.monotonic()
arrays.update({"pack/" + name: value.numpy() for name, value in model.pack(*text.values()).items()})
rows = dict(np.load(request["rows"]))
arrays.update({"ids/" + k: v.numpy() for k, v in ids(**{k: tf.constant(v) for k, v in rows.items()}).items()})
empty = serve(**{name: value[:0] for name, value in text.items()})
arrays.update({"empty/" + name: value.numpy() for name, value in empty.items()})
arrays = {k: np.array([base64.b64encode(t) for t in v], "S") if v.dtype == object else v for k, v in arrays.items()}
np.savez(request["answers"], **arrays)
print(json.dumps({"xla": xla, "load_seconds": loaded - started,
    "first_request_seconds": answered - loaded, "second_request_seconds": again - answered}))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity:
    """What the comparison measured."""

    num_texts: int
    token_ids: str
    """`identical`, always: anything else is an error."""
    max_difference: dict[str, float]
    """Of each float output, over the text and the token_ids signature."""
    bound: float
    xla: str
    """`off` where the other process could switch it off."""
    load_seconds: float
    first_request_seconds: float
    second_request_seconds: float


def check_parity(
    folder: str | os.PathLike[str],
    model: keras.Model,
    tokenizer: Tokenizer,
    spec: ServingSpec,
    *,
    texts: Sequence[tuple[str | bytes, ...]],
    dtype: str,
) -> Parity:
    """Loads a SavedModel in a new process and compares its answers with the model's.

    Args:
        folder: The SavedModel.
        model: The classifier in this process, in the dtype of the SavedModel, on the CPU.
        tokenizer: The tokenizer, called eagerly here.
        spec: Meaning of input and output.
        texts: `(text,)` or `(text, text_b)` of each row.
        dtype: A key of `BOUNDS`.
    Raises:
        RunError: If the process fails or an answer differs by more than the bound; the numbers are named.
    """
    columns = [list(column) for column in zip(*texts, strict=True)]
    length = packed_length(model, spec)
    batch = pack_texts(texts, tokenizer, spec, length=length)
    full = pack_texts(texts, tokenizer, spec, length=spec.max_length)
    expected = {
        **{f"pack/{name}": value for name, value in batch.items()},
        **{f"text/{name}": value for name, value in _answers(model, batch, spec, length=length).items()},
        **{f"ids/{name}": value for name, value in _answers(model, full, spec, length=spec.max_length).items()},
    }
    expected |= {f"empty/{name[5:]}": value[:0] for name, value in expected.items() if name.startswith("text/")}
    found, facts = _ask_other_process(folder, columns, model_inputs(model, full))
    differences = _compare(expected, found, bound=BOUNDS[dtype])
    _check_labels(found, spec)
    return Parity(
        num_texts=len(texts),
        token_ids="identical",
        max_difference=differences,
        bound=BOUNDS[dtype],
        xla=facts["xla"],
        **{name: round(facts[name], 4) for name in facts if name.endswith("_seconds")},
    )


def logits_difference(first: keras.Model, second: keras.Model, batch: Mapping[str, np.ndarray]) -> float:
    """Returns the largest difference of a logit between two models on one batch."""
    logits = [np.asarray(model(model_inputs(model, batch), training=False)) for model in (first, second)]
    return float(np.max(np.abs(logits[0] - logits[1])))


def pack_texts(
    texts: Sequence[tuple[str | bytes, ...]], tokenizer: Tokenizer, spec: ServingSpec, *, length: int | None = None
) -> dict[str, np.ndarray]:
    """Packs rows of texts as the training's batches are packed, in NumPy; to their longest length if none is given."""
    parts = []
    for column in zip(*texts, strict=True):
        parts.append([row.numpy() for row in tokenizer.tokenize(to_bytes(column))])
    if len(parts) == 1:
        parts.append([np.zeros(0, np.int32)] * len(parts[0]))
    packing = build_packing(tokenizer, spec)
    rows = list(zip(*parts, strict=True))
    longest = max(len(a) + len(b) for a, b in rows) + packing.num_special(spec.is_pair)
    return pack_rows(rows, packing, length=length or min(longest, spec.max_length), is_pair=spec.is_pair)


def _answers(
    model: keras.Model, batch: Mapping[str, np.ndarray], spec: ServingSpec, *, length: int | None
) -> dict[str, np.ndarray]:
    # A graph with the shapes of the signature: which ops are fused decides where bfloat16 is rounded.
    inputs = {name: tf.constant(value) for name, value in model_inputs(model, batch).items()}
    shapes = {name: tf.TensorSpec([None, length], tf.int32) for name in inputs}
    forward = tf.function(lambda inputs: model(inputs, training=False), input_signature=[shapes])
    return {name: value.numpy() for name, value in answer(forward(inputs), spec).items()}


def _ask_other_process(
    folder: str | os.PathLike[str], columns: Sequence[Sequence[str | bytes]], rows: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    encoded = [[base64.b64encode(text).decode() for text in to_bytes(column).numpy()] for column in columns]
    with tempfile.TemporaryDirectory(prefix="aigc_tf-parity-") as scratch:
        rows_file, answers_file = (os.path.join(scratch, name) for name in ("rows.npz", "answers.npz"))
        with open(rows_file, "wb") as file:
            np.savez(file, allow_pickle=False, **rows)
        files = {"folder": os.path.abspath(folder), "rows": rows_file, "answers": answers_file}
        done = _run_worker(json.dumps({**files, "columns": encoded}))
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise RunError(f"The exported model fails in a new process (exit {done.returncode}): {lines[-1][:300]}.")
        with np.load(answers_file) as answers:
            found = {name: _decoded(answers[name]) for name in answers.files}
    return found, json.loads(done.stdout.splitlines()[-1])


def _run_worker(request: str) -> subprocess.CompletedProcess[str]:
    # Not the GPU: this process holds its memory, and the comparison is one of CPU with CPU.
    environment = {k: v for k, v in os.environ.items() if k not in ("TF_XLA_FLAGS", "XLA_FLAGS", "TF_CONFIG")}
    environment |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-I", "-c", _WORKER]
    try:
        return subprocess.run(
            command,
            input=request + "\n",
            capture_output=True,
            text=True,
            timeout=_WORKER_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(f"The process that tries the exported model gave no answer in {_WORKER_SECONDS} s.") from error


def _decoded(values: np.ndarray) -> np.ndarray:
    return np.array([base64.b64decode(text) for text in values], object) if values.dtype.kind == "S" else values


def _compare(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], *, bound: float) -> dict[str, float]:
    """Token ids and shapes exact, floats within the bound."""
    if expected.keys() != found.keys():
        raise RunError(f"The exported model has the outputs {sorted(found)}, expected {sorted(expected)}.")
    differences: dict[str, float] = {}
    for name, value in expected.items():
        kind, output = name.split("/")
        if value.shape != found[name].shape:
            raise RunError(f"Output {name} of the exported model is {found[name].shape}, expected {value.shape}.")
        if kind == "pack" and not np.array_equal(value, found[name]):
            row = int(np.argmax(np.any(value != found[name], axis=1)))
            raise RunError(f"The exported model packs other {output} than the training: first in sample text {row}.")
        if value.dtype.kind == "f" and value.size:
            differences[output] = max(differences.get(output, 0.0), float(np.max(np.abs(value - found[name]))))
    if not all(difference <= bound for difference in differences.values()):  # so that NaN fails too
        numbers = ", ".join(f"{name} by {difference:.2e}" for name, difference in differences.items())
        raise RunError(
            f"The exported model differs from the trained one: {numbers} (bound {bound:.0e}); nothing was published."
        )
    return differences


def _check_labels(found: Mapping[str, np.ndarray], spec: ServingSpec) -> None:
    """Labels follow from the logits of the same answer: two scores may lie nearer than the bound."""
    for kind in ("text", "ids"):
        if f"{kind}/logits" not in found:
            continue
        for name, value in answer(tf.constant(found[f"{kind}/logits"]), spec).items():
            if value.dtype != tf.float32 and not np.array_equal(value.numpy(), found[f"{kind}/{name}"]):
                raise RunError(f"Output {name} of the exported model does not follow from its logits.")
