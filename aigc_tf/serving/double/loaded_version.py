"""The versions of a model that the protocol double has loaded, each in its own stand-in process."""

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aigc_tf.errors import RunError
from aigc_tf.serving.double.batching import Batcher
from aigc_tf.serving.process.other_process import CallError, StandIn
from aigc_tf.serving.stand_in.status import StatusError

_RETRY_SECONDS = 1.0
NO_TIMEOUT = 3600.0
"""Seconds that a request without a deadline may take."""


class LoadedVersion:
    """One version of a model: a stand-in process, which is restarted when it dies.

    Args:
        name: Name of the model.
        number: Number of the version.
        folder: The SavedModel.
        num_threads: Requests that run at the same time.
        warm_up: Whether it replays its warm-up requests when it is loaded.
        batcher: Batches requests; None to run each alone.
    Raises:
        RunError: If it cannot be loaded.
    """

    def __init__(
        self, name: str, number: int, folder: str, *, num_threads: int, warm_up: bool, batcher: Batcher | None = None
    ):
        self.name, self.number, self._warm_up = name, number, warm_up
        self._folder, self._num_threads, self._batcher = folder, num_threads, batcher
        self._lock, self._is_closed = threading.Lock(), False
        self._num_held, self._changed = 0, threading.Condition()
        self._process: StandIn | None = self._start()
        self.signatures: dict[str, dict[str, Any]] = self._process.signatures if self._process else {}

    def _start(self) -> StandIn:
        return StandIn(self._folder, num_threads=self._num_threads, warm_up=self._warm_up)

    @property
    def state(self) -> str:
        """The state's name in GetModelStatus."""
        return "AVAILABLE" if self._process else "LOADING"

    @property
    def pid(self) -> int | None:
        """Id of the process that holds the model; None while it restarts."""
        process = self._process
        return process.pid if process else None

    def run(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], *, timeout: float = NO_TIMEOUT
    ) -> dict[str, np.ndarray]:
        """Computes outputs of a signature, batched with other requests if batching is on.

        Args:
            signature: One of the model's.
            inputs: By name; strings as arrays of bytes objects.
            outputs: Names of the requested outputs.
            timeout: Seconds to wait for them.
        Raises:
            StatusError: TensorFlow's error; UNAVAILABLE while the process restarts.
        """
        if self._batcher is None:
            return self._run_now(signature, inputs, outputs, timeout)
        key = (id(self), signature, frozenset(outputs))
        return self._batcher.run(
            key, inputs, lambda merged, left: self._run_now(signature, merged, outputs, left), timeout=timeout
        )

    def hold(self) -> None:
        """Keeps it from being unloaded until `release`."""
        with self._changed:
            self._num_held += 1

    def release(self) -> None:
        """Ends a `hold`."""
        with self._changed:
            self._num_held -= 1
            self._changed.notify_all()

    def _run_now(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], timeout: float
    ) -> dict[str, np.ndarray]:
        process = self._process
        if process is None:
            raise StatusError("UNAVAILABLE", f"The process of {self.name} {self.number} is restarting.")
        try:
            return process.call(signature, inputs, output_filter=outputs, timeout=timeout)
        except CallError as error:
            raise StatusError(error.code, error.message) from error
        except RunError as error:
            self._start_anew(process)
            raise StatusError("UNAVAILABLE", str(error)) from error

    def _start_anew(self, dead: StandIn) -> None:
        with self._lock:
            if self._process is not dead:
                return
            self._process = None
        dead.close()
        threading.Thread(target=self._keep_starting, daemon=True).start()

    def _keep_starting(self) -> None:
        while not self._is_closed:
            with contextlib.suppress(RunError):
                process = self._start()
                with self._lock:
                    if not self._is_closed:
                        self._process = process
                        return
                process.close()
            time.sleep(_RETRY_SECONDS)

    def close(self, *, wait: float = 0.0) -> None:
        """Unloads it. It first waits up to `wait` seconds until nothing holds it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._num_held, timeout=wait)
        with self._lock:
            self._is_closed = True
            process, self._process = self._process, None
        if process:
            process.close()
