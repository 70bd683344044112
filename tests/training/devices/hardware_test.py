"""Devices are found by the names that TensorFlow gives them and that people give them."""

import pytest

from aigc_tf.errors import InputError
from aigc_tf.training.devices import hardware
from aigc_tf.training.devices.hardware import DEVICE_KINDS, find_kind, machine_peak, measure_rate, named_device
from aigc_tf.training.devices.strategy import build_devices


@pytest.mark.parametrize(
    ("device_name", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla T4", "T4"),
        ("v5litepod-8", "TPU v5e"),
        ("v5p-16", "TPU v5p"),
        ("v4-8", "TPU v4"),
        ("v3-8", "TPU v3"),
        ("v6e-4", "TPU v6e"),
    ],
)
def test_tensorflows_names_lead_to_their_row(device_name, kind):
    assert find_kind(device_name).name == kind


@pytest.mark.parametrize("device_name", ["", "CPU", "NVIDIA GeForce GTX 1080", "NVIDIA L2", "Quadro P4000"])
def test_what_the_table_lacks_is_no_other_device(device_name):
    assert find_kind(device_name) is None


@pytest.mark.parametrize(
    ("name", "kind"), [("h100", "H100"), ("TPU-v5e", "TPU v5e"), ("v5e", "TPU v5e"), ("a100 80gb", "A100-80GB")]
)
def test_people_may_write_a_name_in_their_way(name, kind):
    assert named_device(name).name == kind


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"no device 'A100-80' in the table of devices\. Did you mean 'A100-80GB'\?"):
        named_device("A100-80")


def test_every_row_can_be_named_has_a_source_and_a_rate():
    for kind in DEVICE_KINDS:
        assert named_device(kind.name) is kind
        assert kind.source
        assert kind.memory_bytes >= 16 * 2**30
        assert 0 < kind.rate("float32") <= kind.rate("bfloat16")


def test_a_core_of_an_old_tpu_has_half_of_its_chip_and_a_v100_no_bfloat16():
    assert named_device("v3").rate("bfloat16") == 61.5e12
    assert named_device("V100").rate("bfloat16") == named_device("V100").rate("float32") == 15.7e12


def test_a_devices_peak_is_looked_up_and_says_so(monkeypatch):
    monkeypatch.setattr(hardware, "_device_name", lambda: "NVIDIA A100-SXM4-40GB")
    peak = machine_peak(build_devices("mirrored"), "bfloat16")
    assert peak.flops_per_second == 2 * 312e12
    assert peak.origin.startswith("2 x A100 at 312.0 TFLOP/s in bfloat16, looked up for 'NVIDIA A100-SXM4-40GB'")


def test_replicas_on_one_cpu_share_its_measured_peak(monkeypatch):
    monkeypatch.setattr(hardware, "measure_rate", lambda precision, width: 1e11)
    monkeypatch.setattr(hardware, "_device_name", lambda: "")
    peak = machine_peak(build_devices("mirrored"), "float32")
    assert peak.flops_per_second == 1e11
    assert peak.origin.startswith("1 x CPU at 0.100 TFLOP/s in float32, measured")


def test_a_rate_is_measured_in_the_asked_precision():
    assert measure_rate("float32", width=64) > 0
    assert measure_rate("bfloat16", width=64) > 0
