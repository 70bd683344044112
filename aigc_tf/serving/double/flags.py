"""The flags of the protocol double: those of tensorflow_model_server that have an effect here."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

# Flags of the server that change nothing a client of the protocol double could see.
WITHOUT_EFFECT = (
    "enable_grpc_healthcheck_service",
    "enable_profiler",
    "flush_filesystem_caches",
    "grpc_channel_arguments",
    "monitoring_config_file",
    "num_load_threads",
    "num_unload_threads",
    "rest_api_num_threads",
    "tensorflow_inter_op_parallelism",
    "tensorflow_intra_op_parallelism",
    "tensorflow_session_parallelism",
)


def parse_flags(arguments: Sequence[str], *, description: str) -> argparse.Namespace:
    """Reads the flags; those without effect are named on standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m aigc_tf.serving.double",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--port", type=int, default=8500, help="port of gRPC; 0 for none")
    add("--rest_api_port", type=int, default=0, help="port of REST; 0 for none")
    add("--rest_api_timeout_in_ms", type=int, default=30000, help="for a request of REST")
    add("--model_name", default="default", help="name of the one model")
    add("--model_base_path", default="", help="folder of the one model, absolute")
    add("--model_config_file", default="", help="a ModelServerConfig, instead of the two above")
    add("--model_config_file_poll_wait_seconds", type=float, default=0, help="time between reads; 0: once")
    add("--file_system_poll_wait_seconds", type=float, default=1, help="time between searches for versions; 0: once")
    add("--allow_version_labels_for_unavailable_models", **_BOOL, help="labels in the first config")
    add("--enable_batching", **_BOOL, help="compute concurrent requests together")
    add("--enable_model_warmup", **{**_BOOL, "default": True}, help="replay a version's warm-up requests as it loads")
    add("--batching_parameters_file", default="", help="how")
    for name in WITHOUT_EFFECT:
        add(f"--{name}", nargs="?", const="", default=None, help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    for name in WITHOUT_EFFECT:
        if getattr(flags, name) is not None:
            print(f"note: --{name} has no effect here.", file=sys.stderr)
    return flags


def _parse_bool(text: str) -> bool:
    if text not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text in ("true", "1")


_BOOL: dict[str, Any] = {"nargs": "?", "type": _parse_bool, "const": True, "default": False}
