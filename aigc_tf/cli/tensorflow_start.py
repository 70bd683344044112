"""Imports what needs TensorFlow, late and without the noise that its C++ libraries make while they are loaded."""

import contextlib
import glob
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from aigc_tf.cli.running import is_debugged

_ERRORS = "2"  # TF_CPP_MIN_LOG_LEVEL that leaves warnings out: what matters of them is said by us
_FATAL = "3"  # and errors too: among workers the loss of one is an error of every sum, and what matters is raised
# What TensorFlow's C++ libraries print while they are loaded, when no log level reaches them yet: nothing is wrong.
_START_NOISE = (
    r"^I0000 ",
    r"^WARNING: All log messages before absl::InitializeLog\(\) is called are written to STDERR",
    r"^To enable the following instructions: ",
    r"Unable to register cu(DNN|FFT|BLAS) (plugin|factory)",
    r"computation placer already registered",
    r"TF-TRT Warning: Could not find TensorRT",
    r"oneDNN supports DT_INT64 only on platforms with AVX-512",
)
_NO_GPU_NOISE = (r"failed call to cuInit", r"Could not find cuda drivers")


def heavy_room(name: str) -> Any:
    """Imports a module that needs TensorFlow. Here and not at the top, since every check before needs none of it."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with quiet():
        import tensorflow as tf

        room = importlib.import_module(f"aigc_tf.{name}")
        tf.config.list_physical_devices()  # has the GPU libraries say now what they have to say
    return room


def quiet() -> contextlib.AbstractContextManager[None]:
    """Keeps TensorFlow's C++ libraries from talking, unless the user has set how much they shall talk."""
    level = _FATAL if os.environ.get("TF_CONFIG") and not is_debugged() else _ERRORS
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", level) != level:
        return contextlib.nullcontext()
    return _filtered_stderr()


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Keeps known noise off the terminal. All else passes at once, also when this process dies while it loads."""
    has_gpu = glob.glob("/dev/nvidia*") or os.path.exists("/dev/dxg")
    pattern = "|".join(_START_NOISE if has_gpu else _START_NOISE + _NO_GPU_NOISE)
    command = ["grep", "--line-buffered", "--invert-match", "--extended-regexp", pattern]
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        # In a session of its own, or Ctrl-C would end it before it has passed on what was said.
        grep = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=saved, start_new_session=True)
    except FileNotFoundError:
        os.close(saved)
        yield
        return
    try:
        with grep.stdin as pipe:  # type: ignore[union-attr]  # it is there, as asked for
            os.dup2(pipe.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
        with contextlib.suppress(subprocess.TimeoutExpired):
            grep.wait(timeout=5)
