"""Calls a SavedModel's functions in another process, as a server would run them.

That process knows TensorFlow and tensorflow-text and nothing of ours, and has XLA switched off as TensorFlow Serving
has it. It computes on the CPU: another device would answer differently by more than parity allows.
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

import numpy as np

from aigc_tf.config import RunError

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

# Runs alone (-I: no environment, no working directory). Reads one JSON line; arrays come and go in .npz files, strings
# as base64.
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
load_seconds = time.monotonic() - started
arrays, answers, seconds = dict(np.load(request["inputs"])), {}, []
for number, name in enumerate(request["functions"]):
    function = model.signatures[name] if name in model.signatures else getattr(model, name)
    inputs = {key.split("/")[1]: value for key, value in arrays.items() if key.split("/")[0] == str(number)}
    tensors = {key: tf.constant([base64.b64decode(text) for text in value], tf.string, shape=[len(value)])
        if value.dtype.kind == "S" else tf.constant(value) for key, value in inputs.items()}
    started = time.monotonic()
    outputs = {key: value.numpy() for key, value in function(**tensors).items()}
    seconds.append(time.monotonic() - started)
    for key, value in outputs.items():
        answers[f"{number}/{key}"] = (np.array([base64.b64encode(text) for text in value], "S")
            if value.dtype == object else value)
np.savez(request["outputs"], **answers)
print(json.dumps({"xla": xla, "load_seconds": load_seconds, "seconds": seconds}))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a function of a SavedModel."""

    function: str
    """Name of a signature, or of a function that the saved module holds."""
    inputs: Mapping[str, np.ndarray]
    """By name; strings as `(B,)` arrays of bytes objects."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What the other process answered."""

    outputs: list[dict[str, np.ndarray]]
    """Of each call, by name; strings as arrays of bytes objects."""
    seconds: list[float]
    """Each call took."""
    load_seconds: float
    xla: str
    """`off` where the process could switch it off."""


def bytes_array(texts: Sequence[str | bytes]) -> np.ndarray:
    """Returns a `(B,)` array of bytes objects; what UTF-8 cannot hold (half a surrogate pair) becomes `?`."""
    return np.array([text.encode("utf-8", "replace") if isinstance(text, str) else text for text in texts], object)


def call_elsewhere(folder: str | os.PathLike[str], calls: Sequence[Call]) -> Answers:
    """Loads a SavedModel in a new process and makes the calls one after another.

    Raises:
        RunError: If the process fails; its last words are named.
    """
    inputs = {f"{n}/{name}": _encoded(value) for n, call in enumerate(calls) for name, value in call.inputs.items()}
    with tempfile.TemporaryDirectory(prefix="aigc_tf-parity-") as scratch:
        files = {name: os.path.join(scratch, f"{name}.npz") for name in ("inputs", "outputs")}
        with open(files["inputs"], "wb") as file:
            np.savez(file, allow_pickle=False, **inputs)
        functions = [call.function for call in calls]
        done = _run_worker(json.dumps({"folder": os.path.abspath(folder), "functions": functions, **files}))
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
            raise RunError(f"The exported model fails in a new process (exit {done.returncode}): {lines[-1][:300]}.")
        outputs: list[dict[str, np.ndarray]] = [{} for _ in calls]
        with np.load(files["outputs"]) as answers:
            for key in answers.files:
                number, name = key.split("/")
                outputs[int(number)][name] = _decoded(answers[key])
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Answers(outputs=outputs, **facts)


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


def _encoded(values: np.ndarray) -> np.ndarray:
    return np.array([base64.b64encode(text) for text in values], "S") if values.dtype == object else values


def _decoded(values: np.ndarray) -> np.ndarray:
    return np.array([base64.b64decode(text) for text in values], object) if values.dtype.kind == "S" else values
