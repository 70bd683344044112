"""Imports TensorFlow late, and without the messages of its C++ libraries while they load."""

import contextlib
import glob
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from aigc_tf.cli.running import is_debugged

_ERRORS = "2"  # TF_CPP_MIN_LOG_LEVEL without warnings: this program reports the relevant ones
_FATAL = "3"  # without errors: a lost worker fails every sum, and the error is raised anyway
# Harmless messages that TensorFlow's C++ libraries print while they load, before any log level applies.
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
    """Imports a module that needs TensorFlow; called after all checks that do not need it."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    with quiet():
        import tensorflow as tf

        room = importlib.import_module(f"aigc_tf.{name}")
        tf.config.list_physical_devices()  # makes the GPU libraries print their messages now, where they are filtered
    return room


def quiet() -> contextlib.AbstractContextManager[None]:
    """Silences TensorFlow's C++ libraries, unless the user has set their log level."""
    level = _FATAL if os.environ.get("TF_CONFIG") and not is_debugged() else _ERRORS
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", level) != level:
        return contextlib.nullcontext()
    return _filtered_stderr()


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Filters known messages from standard error. Others pass at once, even if this process dies while loading."""
    has_gpu = glob.glob("/dev/nvidia*") or os.path.exists("/dev/dxg")
    pattern = "|".join(_START_NOISE if has_gpu else _START_NOISE + _NO_GPU_NOISE)
    command = ["grep", "--line-buffered", "--invert-match", "--extended-regexp", pattern]
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        # In its own session, or Ctrl-C would end it before it has passed on all messages.
        grep = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=saved, start_new_session=True)
    except FileNotFoundError:
        os.close(saved)
        yield
        return
    try:
        with grep.stdin as pipe:  # type: ignore[union-attr]  # set, since stdin is a pipe
            os.dup2(pipe.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
        with contextlib.suppress(subprocess.TimeoutExpired):
            grep.wait(timeout=5)
