"""Memory and peak rates of devices, from the makers' tables; other devices are measured briefly.

Rates are of matrix products without sparsity, in floating-point operations per second; a multiplication with its
addition counts as two. `float32` is the rate at which TensorFlow computes float32: from NVIDIA's Ampere on in
TensorFloat-32, and on TPU in one pass of bfloat16.
"""

import dataclasses
import os
import time

import tensorflow as tf

from aigc_tf.errors import InputError, suggest
from aigc_tf.training.devices.strategy import Devices

_GIB, _TERA = 2**30, 1e12
_CPU_WIDTH, _GPU_WIDTH = 2048, 8192  # width of the matrices that are multiplied to measure a rate
_MEASURED_CALLS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceKind:
    """One row of the table."""

    name: str
    words: tuple[str, ...]
    """Words of TensorFlow's name for the device, in lower case."""
    memory_bytes: int
    bfloat16: float
    """0: it does not multiply bfloat16."""
    float32: float
    source: str
    replicas: int = 1
    """TensorFlow's replicas on one chip: a TPU v2 or v3 has two cores, each with half of the memory and rate."""

    def rate(self, precision: str) -> float:
        """Returns the peak of one replica at `float32` or `bfloat16`."""
        chip = self.bfloat16 if precision == "bfloat16" else self.float32
        return (chip or self.float32) / self.replicas


def _gpu(name: str, *words: str, gib: int, bfloat16: float, float32: float, source: str) -> DeviceKind:
    return DeviceKind(
        name=name,
        words=words,
        memory_bytes=gib * _GIB,
        bfloat16=bfloat16 * _TERA,
        float32=float32 * _TERA,
        source=source,
    )


def _tpu(name: str, *words: str, gib: int, bfloat16: float, replicas: int = 1) -> DeviceKind:
    return DeviceKind(
        name=name,
        words=words,
        memory_bytes=gib * _GIB,
        bfloat16=bfloat16 * _TERA,
        float32=bfloat16 * _TERA,
        source=f"https://cloud.google.com/tpu/docs/{name.removeprefix('TPU ')}",
        replicas=replicas,
    )


_NVIDIA = "https://www.nvidia.com/en-us/data-center"
_A100 = f"{_NVIDIA}/a100"
_H100 = "NVIDIA H100 Tensor Core GPU datasheet; half of what it gives with sparsity"
_V100 = "NVIDIA V100 Tensor Core GPU datasheet (SXM2)"
# A device's row is the first whose words are all in its name.
DEVICE_KINDS = (
    _gpu("B200", "b200", gib=180, bfloat16=2250, float32=1125, source="NVIDIA DGX B200 datasheet, an eighth, dense"),
    _gpu("H200", "h200", gib=141, bfloat16=989.5, float32=494.5, source="NVIDIA H200 datasheet (SXM), dense"),
    _gpu("H100-PCIe", "h100", "pcie", gib=80, bfloat16=756, float32=378, source=_H100),
    _gpu("H100-NVL", "h100", "nvl", gib=94, bfloat16=835.5, float32=417.5, source=_H100),
    _gpu("H100", "h100", gib=80, bfloat16=989.5, float32=494.5, source=_H100),
    _gpu("A100-80GB", "a100", "80gb", gib=80, bfloat16=312, float32=156, source=_A100),
    _gpu("A100", "a100", gib=40, bfloat16=312, float32=156, source=_A100),
    _gpu("L40S", "l40s", gib=48, bfloat16=362, float32=183, source=f"{_NVIDIA}/l40s"),
    _gpu("L4", "nvidia l4", gib=24, bfloat16=121, float32=60, source=f"{_NVIDIA}/l4"),
    _gpu("V100-32GB", "v100", "32gb", gib=32, bfloat16=0, float32=15.7, source=_V100),
    _gpu("V100", "v100", gib=16, bfloat16=0, float32=15.7, source=_V100),
    _gpu("T4", "tesla t4", gib=16, bfloat16=0, float32=8.1, source=f"{_NVIDIA}/tesla-t4"),
    _tpu("TPU v6e", "v6e", gib=32, bfloat16=918),
    _tpu("TPU v5p", "v5p", gib=95, bfloat16=459),
    _tpu("TPU v5e", "v5lite", gib=16, bfloat16=197),
    _tpu("TPU v4", "v4-", gib=32, bfloat16=275),
    _tpu("TPU v3", "v3-", gib=32, bfloat16=123, replicas=2),
    _tpu("TPU v2", "v2-", gib=16, bfloat16=46, replicas=2),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachinePeak:
    """The peak rate of all devices of a run together."""

    flops_per_second: float
    origin: str
    """One sentence: where it was looked up, or how it was measured."""


def named_device(name: str) -> DeviceKind:
    """Returns the row of a device that a user names, such as `H100` or `tpu-v5e`.

    Raises:
        InputError: If the table has no device of that name.
    """
    plain = _plain(name)
    for kind in DEVICE_KINDS:
        if plain in (_plain(kind.name), _plain(kind.name).removeprefix("tpu")):
            return kind
    known = [kind.name for kind in DEVICE_KINDS]
    raise InputError(f"There is no device {name!r} in the table of devices.{suggest(name, known)}")


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def find_kind(device_name: str) -> DeviceKind | None:
    """Returns the row for a device's name in TensorFlow or in a TPU's environment; None if the table lacks it."""
    words = device_name.lower()
    return next((kind for kind in DEVICE_KINDS if all(word in words for word in kind.words)), None)


def machine_kind() -> DeviceKind | None:
    """Returns the row of this machine's first device; None for a CPU and for devices that the table lacks."""
    return find_kind(_device_name())


def machine_peak(devices: Devices, precision: str) -> MachinePeak:
    """Looks up the peak rate of all devices of a run together, or measures it.

    Args:
        devices: Where the run trains. Its hosts are assumed to be alike.
        precision: The dtype of products, `float32` or `bfloat16`.
    """
    name = _device_name()
    kind = find_kind(name)
    replicas = devices.num_replicas
    if kind is not None:
        total = kind.rate(precision) * replicas
        origin = f"{replicas} x {kind.name} at {kind.rate(precision) / _TERA:,.1f} TFLOP/s in {precision}"
        return MachinePeak(flops_per_second=total, origin=f"{origin}, looked up for {name!r} ({kind.source})")
    is_cpu = not tf.config.list_physical_devices("GPU") and not tf.config.list_physical_devices("TPU")
    times = devices.num_workers if is_cpu else replicas  # the replicas on one CPU share its rate
    measured = measure_rate(precision, width=_CPU_WIDTH if is_cpu else _GPU_WIDTH)
    return MachinePeak(
        flops_per_second=measured * times,
        origin=f"{times} x {name or 'CPU'} at {measured / _TERA:,.3f} TFLOP/s in {precision}, measured by the product "
        f"of two square matrices when the run started",
    )


def _device_name() -> str:
    if os.environ.get("TPU_ACCELERATOR_TYPE"):  # set on Google's TPU VMs, such as v5litepod-8
        return os.environ["TPU_ACCELERATOR_TYPE"]
    gpus = tf.config.list_physical_devices("GPU")
    return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")) if gpus else ""


def measure_rate(precision: str, *, width: int = _CPU_WIDTH) -> float:
    """Returns the operations per second of a product of two square matrices: the best of a few, after a first one."""
    matrix = tf.cast(tf.random.stateless_uniform([width, width], [0, 0]), precision)
    seconds = []
    for _ in range(1 + _MEASURED_CALLS):
        started = time.perf_counter()
        tf.reduce_sum(tf.matmul(matrix, matrix)[:1]).numpy()  # a number on the host, which waits for the product
        seconds.append(time.perf_counter() - started)
    return 2.0 * width**3 / min(seconds[1:])
