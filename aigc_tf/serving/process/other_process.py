"""Calls a SavedModel's signatures in another process, as a server runs them.

That process is `serving.stand_in`: TensorFlow's C API and tensorflow-text's ops, with XLA switched off as in TensorFlow
Serving. It imports nothing of TensorFlow's Python, and of this package only itself. It computes on the CPU, since
answers of another device would differ by more than parity allows.
"""

import base64
import contextlib
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import numpy as np

import aigc_tf
from aigc_tf.errors import RunError
from aigc_tf.serving.process.runtimes import Runtime
from aigc_tf.serving.stand_in.tensors import NUMPY_NAMES

_SECONDS = 900
_LOG_LINE = re.compile(r"[IWE]\d{4} ")  # TensorFlow's log; the error that ends the process does not look like this
_NUMPY = {**NUMPY_NAMES, "bfloat16": "uint16"}  # NumPy has no bfloat16, so its bits travel as uint16
_TENSORFLOW = {name: own for own, name in NUMPY_NAMES.items()}


def bytes_array(texts: Sequence[str | bytes]) -> np.ndarray:
    """Returns a `(B,)` array of bytes objects; half a surrogate pair, which UTF-8 cannot encode, becomes `?`."""
    return np.array([text.encode("utf-8", "replace") if isinstance(text, str) else text for text in texts], object)


def installed_runtime() -> Runtime:
    """Returns the runtime of the installed packages, without importing them.

    Raises:
        RunError: If one is not installed.
    """
    folders = []
    for package in ("tensorflow", "tensorflow_text"):
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise RunError(f"The package {package} is not installed; exported models are tried with its libraries.")
        folders.append(Path(found.submodule_search_locations[0]))
    return Runtime(folder=folders[0], op_libraries=tuple(sorted(folders[1].glob("python/ops/*.so"))))


class CallError(RunError):
    """The other process answered a call with an error.

    Args:
        code: Canonical code, such as INVALID_ARGUMENT.
        message: The error's message.
    """

    def __init__(self, code: str, message: str):
        super().__init__(f"The exported model fails in a new process: {code}: {message[:300]}")
        self.code, self.message = code, message


class StandIn:
    """A process that has loaded a SavedModel and answers until the block ends. Threads may share it.

    Args:
        folder: The SavedModel.
        runtime: The TensorFlow to load it with; None for the installed one.
        num_threads: Requests that run at the same time.
        warm_up: Whether to replay the model's warm-up requests before it is ready; a failure fails the load.
    Raises:
        RunError: If the model cannot be loaded, or the process ends; the message has its last output.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        runtime: Runtime | None = None,
        num_threads: int = 1,
        warm_up: bool = False,
    ):
        ready = Future[dict[str, Any]]()
        self._numbers = itertools.count()
        self._death: RunError | None = None
        self._waiting: dict[int | None, Future[dict[str, Any]]] = {None: ready}  # by the id of the request
        # Two locks: while a long request waits to be written, replies must still be read, or both sides would block.
        self._lock, self._write_lock = threading.Lock(), threading.Lock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  a pipe would block when it is full
        options = [f"--model={os.path.abspath(folder)}", f"--threads={num_threads}", *["--warmup"] * warm_up]
        self._process = _start(options, runtime or installed_runtime(), self._errors)
        self._requests, self._replies = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read_replies, daemon=True)
        self._reader.start()
        try:
            facts = _checked(_wait(ready))
        except BaseException:
            self.close()
            raise
        self.load_seconds: float = facts["load_seconds"]
        self.num_warmup_requests: int = facts["num_warmup_requests"]
        self.warmup_seconds: float = facts["warmup_seconds"]
        self.xla: str = facts["xla"]
        """`off`, or `on` if the runtime cannot switch it off."""
        self.tensorflow: str = facts["tensorflow"]
        """Version of the runtime."""
        self.signatures: dict[str, dict[str, Any]] = facts["signatures"]
        """By name: `method`, and for each of `inputs` and `outputs` its `dtype`, `shape` and `tensor`."""

    def submit(self, request: Mapping[str, Any]) -> "Future[dict[str, Any]]":
        """Sends a request of `serving.stand_in` and returns a future of the reply, which may hold an error.

        The future raises RunError if the process ends before it replies.
        """
        reply, number = Future[dict[str, Any]](), next(self._numbers)
        with self._lock:
            if self._death is not None:
                reply.set_exception(self._death)
                return reply
            self._waiting[number] = reply
        with self._write_lock, contextlib.suppress(OSError, ValueError):  # if it has ended, _read_replies reports it
            self._requests.write(json.dumps({**request, "id": number}).encode() + b"\n")
            self._requests.flush()
        return reply

    def call(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        *,
        output_filter: Sequence[str] = (),
        timeout: float = _SECONDS,
    ) -> dict[str, np.ndarray]:
        """Calls a signature.

        Args:
            signature: Its name.
            inputs: By name; strings as arrays of bytes objects.
            output_filter: Names of the requested outputs; empty for all.
            timeout: Seconds to wait for the reply.
        Returns:
            The outputs by name; strings as arrays of bytes objects, bfloat16 as float32.
        Raises:
            CallError: If the call fails, with TensorFlow's message, or takes too long (DEADLINE_EXCEEDED).
            RunError: If the process ends.
        """
        return self.timed_call(signature, inputs, output_filter=output_filter, timeout=timeout)[0]

    def timed_call(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        *,
        output_filter: Sequence[str] = (),
        timeout: float = _SECONDS,
    ) -> tuple[dict[str, np.ndarray], float]:
        """Returns the outputs of `call`, and the seconds that TensorFlow took."""
        tensors = {name: _to_bytes(value) for name, value in inputs.items()}
        request = {"signature_name": signature, "tensors": tensors, "output_filter": list(output_filter)}
        reply = _checked(_wait(self.submit(request), timeout))
        return {name: _from_bytes(value) for name, value in reply["tensors"].items()}, reply["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()  # it has nothing to save
        self._process.wait()
        self._reader.join()
        for file in (self._requests, self._replies, self._errors):
            with contextlib.suppress(OSError):  # unread input
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_replies(self) -> None:
        for line in self._replies:
            if not line.endswith(b"\n"):  # the process ended in the middle of a reply
                break
            reply = json.loads(line)
            with self._lock:
                waiting = self._waiting.pop(reply.get("id"), None)
            if waiting is not None:
                waiting.set_result(reply)
        # Everyone who waits, and everyone who asks later, gets this error instead of waiting forever.
        death = self._last_words()
        with self._lock:
            self._death = death
            left, self._waiting = self._waiting, {}
        for waiting in left.values():
            waiting.set_exception(death)

    def _last_words(self) -> RunError:
        code = self._process.wait()
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").splitlines()
        lines = [line for line in lines if line.strip() and not _LOG_LINE.match(line)]
        return RunError(
            f"The exported model fails in a new process ({ended}): {(lines or ['no message'])[-1][:300].rstrip('.')}."
        )


def _start(options: Sequence[str], runtime: Runtime, errors: IO[bytes]) -> "subprocess.Popen[bytes]":
    # No GPU: this process holds its memory, and parity compares CPU with CPU.
    # XLA's flags could switch on what the stand-in must run without.
    environment = {k: v for k, v in os.environ.items() if k not in ("TF_XLA_FLAGS", "XLA_FLAGS", "TF_CONFIG")}
    environment |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    # -E and -s ignore the user's Python settings. The module is found through the working directory.
    return subprocess.Popen(
        [
            *[sys.executable, "-E", "-s", "-m", "aigc_tf.serving.stand_in", *options],
            f"--tensorflow={runtime.folder}",
            *[f"--op_library={path}" for path in runtime.op_libraries],
        ],
        cwd=Path(aigc_tf.__file__).parents[1],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
    )


def _wait(reply: "Future[dict[str, Any]]", timeout: float = _SECONDS) -> dict[str, Any]:
    try:
        return reply.result(timeout=timeout)
    except TimeoutError as error:
        raise CallError("DEADLINE_EXCEEDED", f"There was no answer in {timeout:.3g} s.") from error


def _checked(reply: dict[str, Any]) -> dict[str, Any]:
    if "error" in reply:
        raise CallError(reply["code"], reply["error"])
    return reply


def _to_bytes(values: np.ndarray) -> dict[str, Any]:
    if values.dtype == object:
        return {"dtype": "string", "shape": values.shape, "data": [_encode(text) for text in values.ravel()]}
    name = values.dtype.name
    return {"dtype": _TENSORFLOW.get(name, name), "shape": values.shape, "data": _encode(values.tobytes())}


def _from_bytes(tensor: Mapping[str, Any]) -> np.ndarray:
    if tensor["dtype"] == "string":
        values = np.empty(tensor["shape"], object)
        values.ravel()[:] = [base64.b64decode(text) for text in tensor["data"]]
        return values
    dtype = _NUMPY.get(tensor["dtype"], tensor["dtype"])
    values = np.frombuffer(bytearray(base64.b64decode(tensor["data"])), dtype).reshape(tensor["shape"])
    if tensor["dtype"] == "bfloat16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
