"""Two logical CPU devices, so that what only shows with two replicas shows in every test."""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import pytest


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
