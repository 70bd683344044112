"""The stand-in: a process on TensorFlow's C API that loads a SavedModel as the server does, and answers lines of JSON.

    python -m aigc_tf.serving.stand_in --model=saved_models/NAME/1 --tensorflow=.../site-packages/tensorflow \
        [--op_library=.../site-packages/tensorflow_text/python/ops/_regex_split_ops.so ...] [--threads=2] [--warmup]

It uses the standard library and TensorFlow's C API only: no Python of TensorFlow's, and no code that exports. It reads
one request per line and writes one reply per line; the first line of output says whether the model is loaded.

    {"id": 1, "signature_name": "serving_default", "inputs": {"text": ["Good.", {"b64": "/w=="}]}}
    {"id": 1, "outputs": {"label": [{"b64": "Z29vZA=="}, ...], "logits": [[-0.7, ...], ...]}, "seconds": 0.01}
    {"id": 2, "tensors": {"text": {"dtype": "string", "shape": [1], "data": ["R29vZC4="]}}}
    {"id": 2, "tensors": {"label": {"dtype": "string", "shape": [1], "data": ["Z29vZA=="]}, ...}, "seconds": 0.01}
    {"id": 3, "error": "...", "code": "INVALID_ARGUMENT"}

With several threads replies come in any order. It ends when its input ends.
"""

import argparse
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from aigc_tf.serving.stand_in.answering import answer_line
from aigc_tf.serving.stand_in.c_api import Model, Runtime
from aigc_tf.serving.stand_in.status import StatusError
from aigc_tf.serving.stand_in.tensors import DTYPES
from aigc_tf.serving.stand_in.warmup import warm_up
from aigc_tf.serving.stand_in.wire_format import TensorInfo


def main() -> int:
    """Loads the model, answers until the input ends, and returns the exit status: 1 if it cannot be loaded."""
    flags = _read_flags()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent process, which then ends this one
    write = _open_replies()
    started = time.perf_counter()
    try:
        model = Model(runtime := Runtime(flags.tensorflow, flags.op_library), flags.model)
        load_seconds = time.perf_counter() - started
        num_warmup_requests = warm_up(model, flags.model) if flags.warmup else 0
    except StatusError as error:
        write({"ready": False, "error": error.message, "code": error.code})
        return 1
    write(
        {
            "ready": True,
            "tensorflow": runtime.version,
            "xla": runtime.xla,
            "load_seconds": load_seconds,
            "num_warmup_requests": num_warmup_requests,
            "warmup_seconds": time.perf_counter() - started - load_seconds,
            "signatures": _describe(model),
        }
    )
    _serve(model, write, num_threads=flags.threads)
    model.close()
    return 0


def _read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the SavedModel")
    parser.add_argument("--tensorflow", required=True, help="folder with libtensorflow_cc.so.2")
    parser.add_argument("--op_library", action="append", default=[], help="a .so file with other ops; may be repeated")
    parser.add_argument("--warmup", action="store_true", help="replay the model's warm-up requests before it is ready")
    parser.add_argument("--threads", type=int, default=1, help="requests that run at the same time")
    return parser.parse_args()


def _open_replies() -> Callable[[dict[str, Any]], None]:
    """Returns the function that writes a reply; output of libraries is redirected to standard error."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    lock = threading.Lock()

    def write(reply: dict[str, Any]) -> None:
        line = json.dumps(reply).encode() + b"\n"
        with lock:
            replies.write(line)
            replies.flush()

    return write


def _describe(model: Model) -> dict[str, Any]:
    def describe(infos: dict[str, TensorInfo]) -> dict[str, Any]:
        return {
            name: {"dtype": DTYPES.get(info.dtype, str(info.dtype)), "shape": info.shape, "tensor": info.tensor}
            for name, info in infos.items()
        }

    return {
        name: {"method": value.method, "inputs": describe(value.inputs), "outputs": describe(value.outputs)}
        for name, value in model.signatures.items()
    }


def _serve(model: Model, write: Callable[[dict[str, Any]], None], *, num_threads: int) -> None:
    lines: queue.Queue[bytes] = queue.Queue(maxsize=num_threads)  # bounded: further requests wait in the pipe

    def work() -> None:
        while line := lines.get():
            try:
                write(answer_line(model, line))
            except BrokenPipeError:  # the parent process is gone
                os._exit(1)

    threading.excepthook = _end  # or the parent would wait forever for a dead thread
    threads = [threading.Thread(target=work) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for line in sys.stdin.buffer:
        if line.strip():
            lines.put(line)
    # An empty line ends a thread; it comes after all requests, so these are still answered.
    for _ in threads:
        lines.put(b"")
    for thread in threads:
        thread.join()


def _end(failure: threading.ExceptHookArgs) -> None:
    sys.excepthook(failure.exc_type, failure.exc_value or failure.exc_type(), failure.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
