"""Losses on hand-computed numbers."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.training.step.losses import class_weights, classification_losses, token_losses


def _loss(labels, logits, **kwargs):
    return classification_losses(tf.constant(labels), tf.constant(logits), **kwargs).numpy()


def test_cross_entropy_of_one_to_three_odds():
    logits = np.log([[0.25, 0.75]]).astype(np.float32)
    np.testing.assert_allclose(_loss([1], logits, problem_type="single_label"), [-np.log(0.75)], rtol=1e-6)


def test_smoothing_spreads_its_share_over_all_classes():
    logits = np.log([[0.25, 0.75]]).astype(np.float32)
    expected = -(0.9 + 0.05) * np.log(0.75) - 0.05 * np.log(0.25)
    found = _loss([1], logits, problem_type="single_label", label_smoothing=0.1)
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_z_loss_adds_the_squared_log_of_the_denominator():
    logits = np.log([[1.0, 3.0]]).astype(np.float32)  # Z is 4
    found = _loss([1], logits, problem_type="single_label", z_loss=0.5)
    np.testing.assert_allclose(found, [-np.log(0.75) + 0.5 * np.log(4) ** 2], rtol=1e-6)
    found = _loss([1], logits, problem_type="single_label", z_loss=0.5, label_smoothing=0.1)
    smoothed = -(0.9 + 0.05) * np.log(0.75) - 0.05 * np.log(0.25)
    np.testing.assert_allclose(found, [smoothed + 0.5 * np.log(4) ** 2], rtol=1e-6)


def test_multi_label_is_the_mean_over_labels():
    logits = np.log([[3.0, 1.0]]).astype(np.float32)  # probabilities 0.75 and 0.5
    expected = -(np.log(0.75) + np.log(0.5)) / 2
    found = _loss([[1.0, 0.0]], logits, problem_type="multi_label")
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_regression_is_the_squared_error_of_bfloat16_outputs_in_float32():
    logits = tf.constant([[1.5]], tf.bfloat16)
    found = classification_losses(tf.constant([3.5]), logits, problem_type="regression")
    assert found.dtype == tf.float32
    assert found.numpy().tolist() == [4.0]


@pytest.mark.parametrize(("table", "expected"), [((), [1, 1, 1]), ((0.5, 3.0), [0.5, 3.0, 0.5])])
def test_class_weights_are_looked_up_by_label(table, expected):
    assert class_weights(tf.constant([0, 1, 0]), table).numpy().tolist() == expected


def test_token_losses_are_cross_entropy_of_each_token():
    logits = tf.math.log(tf.constant([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]))
    found = token_losses(tf.constant([[1, 1]]), logits).numpy()
    np.testing.assert_allclose(found, [[np.log(4), -np.log(0.8)]], rtol=1e-6)


def test_token_losses_spread_their_target_over_the_vocabulary():
    logits = tf.math.log(tf.constant([[[0.5, 0.25, 0.25]]]))
    found = token_losses(tf.constant([[0]]), logits, label_smoothing=0.3).numpy()
    mean = (np.log(2) + 2 * np.log(4)) / 3
    np.testing.assert_allclose(found, [[0.7 * np.log(2) + 0.3 * mean]], rtol=1e-6)


def test_z_loss_of_tokens_is_of_each_tokens_softmax():
    logits = tf.math.log(tf.constant([[[1.0, 1.0, 2.0], [0.5, 0.25, 0.25]]]))  # Z is 4 and 1
    found = token_losses(tf.constant([[0, 0]]), logits, z_loss=0.1).numpy()
    np.testing.assert_allclose(found, [[np.log(4) + 0.1 * np.log(4) ** 2, np.log(2)]], rtol=1e-6)
    both = token_losses(tf.constant([[0, 0]]), logits, z_loss=0.1, label_smoothing=0.3).numpy()
    smoothed = token_losses(tf.constant([[0, 0]]), logits, label_smoothing=0.3).numpy()
    np.testing.assert_allclose(both - smoothed, [[0.1 * np.log(4) ** 2, 0.0]], rtol=1e-5, atol=1e-6)
