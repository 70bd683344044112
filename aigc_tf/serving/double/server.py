"""The protocol double: TensorFlow Serving's two protocols over real sockets, for trying clients.

It is not TensorFlow Serving and not for production: it is written in Python and answers only this host. Behind it,
processes load the models as the server does (`serving.stand_in`). docs/double.md lists what it leaves out.
"""

import contextlib
import os
import threading
from types import TracebackType
from typing import Any, Self

from aigc_tf.errors import RunError
from aigc_tf.serving.double.batching import Batcher, Batching
from aigc_tf.serving.double.grpc_api import start_grpc_server
from aigc_tf.serving.double.rest import RestServer
from aigc_tf.serving.double.served_models import Models, read_config
from aigc_tf.serving.stand_in.status import StatusError

HOST = "127.0.0.1"


class Double:
    """Serves models over REST and gRPC until the block ends.

    Args:
        config: A `ModelServerConfig`; `served_models.single_model` makes one.
        rest_port: Port of REST; 0 means a free one, None switches REST off.
        grpc_port: Port of gRPC, likewise.
        batching: Batches requests; None to run each alone.
        warm_up: Whether a version replays its warm-up requests when it is loaded.
        rest_timeout: Seconds that a REST request may take.
        poll_seconds: Time between searches for new versions; 0 for none.
        config_file: File of the config, read again every `config_poll_seconds`.
        config_poll_seconds: Time between reads; 0 for none.
        allow_labels_early: Whether a label may name a version that is not loaded yet.
    Raises:
        InputError: If there is no version to load.
        RunError: If a version cannot be loaded, the config is refused, or a port is taken.
    """

    def __init__(
        self,
        config: Any,
        *,
        rest_port: int | None = 0,
        grpc_port: int | None = None,
        batching: Batching | None = None,
        warm_up: bool = True,
        rest_timeout: float = 30.0,
        poll_seconds: float = 1.0,
        config_file: str = "",
        config_poll_seconds: float = 0.0,
        allow_labels_early: bool = False,
    ):
        num_threads = max(4, os.cpu_count() or 1)
        with contextlib.ExitStack() as stack:
            self.batcher = Batcher(batching) if batching else None
            if self.batcher:
                stack.callback(self.batcher.close)
            try:
                self.models = Models(
                    config,
                    num_threads=num_threads,
                    warm_up=warm_up,
                    batcher=self.batcher,
                    allow_labels_early=allow_labels_early,
                )
            except StatusError as error:
                raise RunError(f"The config of the models is refused: {error.message}.") from error
            stack.callback(self.models.close)
            self.rest_port = self._start_rest(stack, rest_port, rest_timeout) if rest_port is not None else None
            self.grpc_port = self._start_grpc(stack, grpc_port) if grpc_port is not None else None
            self._ending = threading.Event()
            stack.callback(self._ending.set)
            self._repeat(poll_seconds, self.models.refresh)
            self._repeat(config_poll_seconds, lambda: self._reload(config_file))
            self._stack = stack.pop_all()

    def _start_rest(self, stack: contextlib.ExitStack, port: int, timeout: float) -> int:
        try:
            server = RestServer(self.models, (HOST, port), timeout=timeout)
        except OSError as error:
            raise RunError(f"Port {port} cannot be opened: {error.strerror}.") from error
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        return server.server_address[1]

    def _start_grpc(self, stack: contextlib.ExitStack, port: int) -> int:
        try:
            server, port = start_grpc_server(self.models, f"{HOST}:{port}")
        except RuntimeError as error:  # gRPC raises this for a taken port
            raise RunError(f"Port {port} cannot be opened.") from error
        stack.callback(lambda: server.stop(grace=None).wait())
        return port

    def _repeat(self, seconds: float, action: Any) -> None:
        def work() -> None:
            while not self._ending.wait(seconds):
                action()

        if seconds > 0:
            threading.Thread(target=work, daemon=True).start()

    def _reload(self, config_file: str) -> None:
        # As in the server, a temporarily broken file or a label that comes too early changes nothing.
        with contextlib.suppress(StatusError, ValueError, RunError):
            self.models.reload(read_config(config_file))

    def close(self) -> None:
        """Closes the ports and unloads the models."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
