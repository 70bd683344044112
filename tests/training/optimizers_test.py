"""The learning rate by hand, and what weight decay leaves out."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import TrainingConfig
from aigc_tf.training.optimizers import build_optimizer, learning_rate


def _rates(steps, **fields):
    config = TrainingConfig(learning_rate=1.0, num_steps=10, **fields)
    return [float(learning_rate(tf.constant(step, tf.int64), config)) for step in steps]


def test_warm_up_rises_to_the_peak_and_the_line_falls_to_zero():
    assert _rates(range(4), warmup_steps=4, schedule="linear") == [0.25, 0.5, 0.75, 1.0]
    assert _rates([4, 7, 10], warmup_steps=4, schedule="linear") == pytest.approx([1.0, 0.5, 0.0])
    assert _rates([0, 5, 10, 99], schedule="linear") == pytest.approx([1.0, 0.5, 0.0, 0.0])


def test_cosine_is_half_way_at_half_time():
    assert _rates([0, 5, 10], schedule="cosine") == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)
    assert _rates([6], schedule="cosine", warmup_steps=2) == pytest.approx([0.5], abs=1e-6)


def test_constant_stays():
    assert _rates([0, 1, 2, 9], schedule="constant", warmup_steps=2) == [0.5, 1.0, 1.0, 1.0]


def test_a_run_that_is_all_warm_up_works():
    assert _rates([0, 9], schedule="linear", warmup_steps=10) == pytest.approx([0.1, 1.0])


def test_one_step_of_adamw_by_hand_with_biases_left_out_of_decay():
    model = keras.Sequential(
        [keras.Input([1]), keras.layers.Dense(1, kernel_initializer="ones", bias_initializer="ones")]
    )
    config = TrainingConfig(learning_rate=0.1, weight_decay=0.5, epsilon=1e-8)
    optimizer = build_optimizer(config, model.trainable_variables)
    optimizer.apply([tf.constant([[2.0]]), tf.constant([2.0])], model.trainable_variables)
    # The first step of Adam moves by the rate whatever the gradient; decay takes another 0.1 * 0.5 of the kernel.
    kernel, bias = (variable.numpy().item() for variable in model.trainable_variables)
    np.testing.assert_allclose([kernel, bias], [1 - 0.05 - 0.1, 1 - 0.1], rtol=1e-5)
