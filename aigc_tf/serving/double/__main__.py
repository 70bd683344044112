r"""The protocol double: a fake of TensorFlow Serving's two protocols, for trying clients without a server.

    python -m aigc_tf.serving.double --rest_api_port=8501 --model_name=bert_sentiment \
        --model_base_path="$PWD/saved_models/bert_sentiment"

It is not TensorFlow Serving and not for production: it is written in Python and answers only this host. Its flags have
the server's names and meanings; docs/double.md lists them. Ctrl-C or SIGTERM ends it.
"""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from aigc_tf.errors import InputError, RunError
from aigc_tf.serving.deployment.server_configs import read_batching
from aigc_tf.serving.double.batching import Batching, batching_of
from aigc_tf.serving.double.flags import parse_flags
from aigc_tf.serving.double.served_models import read_config, single_model
from aigc_tf.serving.double.server import HOST, Double


def main() -> int:
    """Serves until a signal arrives, and returns the exit status."""
    flags = parse_flags(sys.argv[1:], description=__doc__ or "")
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    try:
        with _build(flags) as double:
            print("The protocol double of TensorFlow Serving, for trying and testing clients; not for production.")
            if double.grpc_port is not None:
                print(f"Running gRPC ModelServer at {HOST}:{double.grpc_port} ...")
            if double.rest_port is not None:
                print(f"Exporting HTTP/REST API at:{HOST}:{double.rest_port} ...")
            sys.stdout.flush()
            ending.wait()
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


def _build(flags: argparse.Namespace) -> Double:
    if not flags.model_config_file and not flags.model_base_path:
        raise InputError("--model_base_path is missing: the absolute path of a folder such as saved_models/NAME.")
    for name in ("port", "rest_api_port"):
        if not 0 <= getattr(flags, name) < 2**16:
            raise InputError(f"--{name} is {getattr(flags, name)}; a port is 1 to 65535, or 0 to switch it off.")
    if not flags.port and not flags.rest_api_port:
        raise InputError("--port and --rest_api_port are both 0; set one of them.")
    if flags.model_config_file:
        config = read_config(flags.model_config_file)
    else:
        config = single_model(flags.model_name, flags.model_base_path)
    return Double(
        config,
        rest_port=flags.rest_api_port or None,
        grpc_port=flags.port or None,
        batching=_read_batching(flags),
        warm_up=flags.enable_model_warmup,
        rest_timeout=flags.rest_api_timeout_in_ms / 1000,
        poll_seconds=flags.file_system_poll_wait_seconds,
        config_file=flags.model_config_file,
        config_poll_seconds=flags.model_config_file_poll_wait_seconds,
        allow_labels_early=flags.allow_version_labels_for_unavailable_models,
    )


def _read_batching(flags: argparse.Namespace) -> Batching | None:
    path, num_cpus = flags.batching_parameters_file, os.cpu_count() or 1
    if not flags.enable_batching:
        if path:
            raise InputError("--batching_parameters_file is given without --enable_batching.")
        return None
    if not path:
        return Batching(num_batch_threads=num_cpus)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise InputError(f"--batching_parameters_file {path} cannot be read ({error}).") from error
    return batching_of(read_batching(text, name=path), num_cpus=num_cpus)


if __name__ == "__main__":
    sys.exit(main())
