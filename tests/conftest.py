"""Two logical CPU devices, so that what only shows with two replicas shows in every test."""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import pytest

# The files whose tests take longest together, by `pytest --durations=0`; they decide the order alone.
LONGEST = (
    "tests/training/bad_steps_test.py",
    "tests/laws/kill_test.py",
    "tests/training/loop_test.py",
    "tests/serving/publishing/generator_export_test.py",
    "tests/laws/export_test.py",
    "tests/commands/configs_test.py",
    "tests/commands/generator_commands_test.py",
    "tests/serving/publishing/classifier_export_test.py",
    "tests/serving/modules/quantization_test.py",
    "tests/commands/adapter_commands_test.py",
    "tests/commands/train_test.py",
    "tests/laws/micro_batches_test.py",
    "tests/laws/compilation_test.py",
    "tests/laws/resume_test.py",
    "tests/laws/workers_test.py",
    "tests/serving/server_test.py",
    "tests/serving/publishing/publishing_test.py",
    "tests/laws/round_trip_test.py",
    "tests/data/tokenizers/preset_tokenizers_test.py",
    "tests/laws/skipped_batch_test.py",
    "tests/laws/token_ids_test.py",
    "tests/serving/modules/generator_signatures_test.py",
    "tests/serving/modules/scoring_test.py",
    "tests/laws/replicas_test.py",
)


def pytest_collection_modifyitems(items):
    """Puts the longest files first, so that no core idles at the end while another one works on them."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


@pytest.fixture(scope="session", autouse=True)
def two_cpu_devices():
    """Splits the CPU before TensorFlow first uses it.

    Test files import TensorFlow at their top. Where none of those collected does, the tests need not wait for it.
    """
    if "tensorflow" not in sys.modules:
        return
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
