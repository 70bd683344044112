"""Devices and workers: which tf.distribute strategy a run uses, and what the hardware supports."""

import dataclasses
import functools
import json
import os
import signal
from pathlib import Path

import tensorflow as tf

from aigc_tf.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """The strategy of a run and this process's place in it."""

    strategy: tf.distribute.Strategy
    name: str
    """One of config.STRATEGIES except `auto`."""
    num_replicas: int
    first_replica: int
    """Number of this worker's first replica among those of all workers."""
    local_replicas: int
    is_chief: bool
    """Whether this process writes the run folder."""
    static_shapes: bool
    """Whether a call into the graph takes steps of one padded length only, as on TPU."""

    @property
    def num_workers(self) -> int:
        return self.num_replicas // self.local_replicas


@functools.cache
def build_devices(strategy: str) -> Devices:
    """Builds the strategy, once per process; under multi_worker the process must not have used TensorFlow before.

    Two strategies in one process would confuse each other's collective operations and fail.

    Args:
        strategy: One of config.STRATEGIES.
    Raises:
        InputError: If the machine or the environment does not offer that strategy.
    """
    name = _resolve(strategy)
    if name == "none":
        return _devices(name, tf.distribute.get_strategy())
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return _devices(name, tf.distribute.MirroredStrategy([device.name for device in devices]))
    if name == "multi_worker":
        cluster(name)
        on_sigterm = signal.getsignal(signal.SIGTERM)
        devices = _devices(name, tf.distribute.MultiWorkerMirroredStrategy())
        # TensorFlow takes over SIGTERM, and a worker that is asked to end would continue forever.
        signal.signal(signal.SIGTERM, on_sigterm)
        return devices
    return _devices(name, _tpu_strategy())


def _devices(name: str, strategy: tf.distribute.Strategy) -> Devices:
    resolver = strategy.cluster_resolver if name == "multi_worker" else None
    task = (resolver.task_id or 0) if resolver else 0
    workers = resolver.cluster_spec().num_tasks("worker") if resolver else 1
    local = strategy.num_replicas_in_sync // workers
    return Devices(
        strategy=strategy,
        name=name,
        num_replicas=strategy.num_replicas_in_sync,
        first_replica=task * local,
        local_replicas=local,
        is_chief=task == 0,
        static_shapes=name == "tpu",
    )


def _resolve(strategy: str) -> str:
    if strategy != "auto":
        return strategy
    if os.environ.get("TF_CONFIG"):
        return "multi_worker"
    if os.environ.get("TPU_NAME") or Path("/dev/accel0").exists():
        return "tpu"
    return "mirrored" if len(tf.config.list_physical_devices("GPU")) > 1 else "none"


def cluster(strategy: str) -> tuple[tuple[str, ...], int] | None:
    """Returns the addresses of all workers, `host:port` each, and this one's index; None without several workers.

    Args:
        strategy: One of config.STRATEGIES.
    Raises:
        InputError: If TF_CONFIG does not describe the workers.
    """
    if _resolve(strategy) != "multi_worker":
        return None
    example = '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
    value = os.environ.get("TF_CONFIG", "")
    try:
        description = json.loads(value or "{}")
        addresses, task = description["cluster"]["worker"], description["task"]
        index = int(task["index"])
        if task["type"] != "worker" or not 0 <= index < len(addresses):
            raise KeyError("task")
        if not all(0 < int(address.rpartition(":")[2]) < 2**16 for address in addresses):
            raise KeyError("port")
        return tuple(addresses), index
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"training.devices.strategy 'multi_worker' reads the environment variable TF_CONFIG, received {value!r}; "
            f"give every worker something like {example}."
        ) from error


def _tpu_strategy() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=os.environ.get("TPU_NAME", "local"))
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (ValueError, tf.errors.OpError) as error:
        raise InputError(
            f"training.devices.strategy is 'tpu', but TensorFlow finds no TPU here ({str(error).splitlines()[0]}); "
            "see docs/install.md, or set training.devices.strategy to 'auto'."
        ) from error


def resolve_precision(precision: str) -> str:
    """Returns `float32` or `bfloat16`; `auto` is bfloat16 if the hardware multiplies it."""
    if precision != "auto":
        return precision
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return "bfloat16" if details.get("compute_capability", (0, 0))[0] >= 8 else "float32"
    if tf.config.list_physical_devices("TPU"):
        return "bfloat16"
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & _cpu_flags() else "float32"


def resolve_jit(jit: str) -> str:
    """Returns `on` or `off`; `auto` is on for GPU and TPU. On CPU oneDNN's bf16 matmul beats XLA's several times."""
    if jit != "auto":
        return jit
    accelerators = tf.config.list_physical_devices("GPU") + tf.config.list_physical_devices("TPU")
    return "on" if accelerators else "off"


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()  # not Linux: the flags cannot be read, float32 is right everywhere
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
