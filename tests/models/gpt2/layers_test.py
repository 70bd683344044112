"""The pieces of GPT-2 compute what their formulas say."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.models.gpt2.layers import attend, dense, dropout, gelu, layer_norm, visibility_bias, write_cache


def test_a_layer_norm_is_that_of_keras():
    x = np.random.default_rng(0).normal(3, 2, (4, 5, 8)).astype(np.float32)
    layer = keras.layers.LayerNormalization(epsilon=1e-5)
    layer.build(x.shape)
    scale, offset = np.linspace(0.5, 2, 8, dtype=np.float32), np.linspace(-1, 1, 8, dtype=np.float32)
    layer.set_weights([scale, offset])
    np.testing.assert_allclose(layer_norm(tf.constant(x), scale, offset), layer(x), atol=1e-6)
    assert layer_norm(tf.cast(x, tf.bfloat16), scale, offset).dtype == tf.float32


def test_gelu_is_the_tanh_approximation_in_float32():
    x = np.linspace(-6, 6, 101).astype(np.float32)
    expected = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x.tolist()]
    np.testing.assert_allclose(gelu(tf.constant(x)), expected, atol=1e-6)
    rounded = tf.cast(x, tf.bfloat16)
    exact = tf.cast(gelu(tf.cast(rounded, tf.float32)), tf.bfloat16)
    np.testing.assert_array_equal(tf.cast(gelu(rounded), tf.float32), tf.cast(exact, tf.float32))


def test_a_dense_layer_multiplies_the_last_axis():
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(2, 3, 4)), rng.normal(size=(4, 5)), rng.normal(size=5)
    x, kernel, bias = (tf.constant(value, tf.float32) for value in (x, kernel, bias))
    np.testing.assert_allclose(dense(x, kernel, bias), np.asarray(x) @ np.asarray(kernel) + np.asarray(bias), atol=1e-5)
    assert dense(tf.cast(x, tf.bfloat16), kernel, bias).dtype == tf.bfloat16


def test_attention_averages_the_values_that_are_visible():
    zeros = tf.zeros([1, 1, 2, 4])
    values = tf.constant([[[[1.0, 2, 3, 4], [5, 6, 7, 8]]]])
    bias = visibility_bias(tf.constant([[[True, False], [True, True]]]))
    attended = attend(zeros, zeros, values, bias, lambda weights: weights)
    np.testing.assert_array_equal(attended[0, 0], [[1, 2, 3, 4], [3, 4, 5, 6]])


def test_attention_weighs_by_the_scaled_products():
    queries = tf.constant([[[[2.0, 0, 0, 0]]]])
    keys = tf.constant([[[[1.0, 0, 0, 0], [0, 1, 0, 0]]]])
    values = tf.constant([[[[1.0, 0, 0, 0], [0, 1, 0, 0]]]])
    attended = attend(queries, keys, values, visibility_bias(tf.fill([1, 1, 2], True)), lambda weights: weights)
    share = math.e / (math.e + 1)  # the products are 2 and 0, the scale is 1/2
    np.testing.assert_allclose(attended[0, 0, 0], [share, 1 - share, 0, 0], atol=1e-6)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(dtype):
    x = tf.ones([101, 401], dtype)  # an odd number of elements, of 16 bits each
    dropped = tf.cast(dropout(x, 0.1, tf.constant([1, 2])), tf.float32).numpy()
    assert abs((dropped == 0).mean() - 0.1) < 0.01
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.9, rtol=4e-3)
    assert abs(dropped.mean() - 1) < 0.01


def test_dropout_is_a_function_of_the_seed():
    x = tf.ones([64, 64])
    first = dropout(x, 0.5, tf.constant([1, 2])).numpy()
    np.testing.assert_array_equal(first, tf.function(dropout)(x, 0.5, tf.constant([1, 2], tf.int64)))
    assert (first != dropout(x, 0.5, tf.constant([1, 3])).numpy()).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("index", [[2, 2, 2], [0, 3, 1]])
@pytest.mark.parametrize("graph", [False, True])
def test_a_cache_is_written_where_each_row_stands(index, graph):
    rng = np.random.default_rng(0)
    cache = tuple(tf.constant(rng.normal(size=(3, 2, 6, 4)), tf.float32) for _ in range(2))
    keys, values = (tf.constant(rng.normal(size=(3, 2, 3, 4)), tf.float32) for _ in range(2))
    write = tf.function(write_cache) if graph else write_cache
    written = write(cache, keys, values, tf.constant(index))
    for old, new, result in zip(cache, (keys, values), written, strict=True):
        expected = old.numpy().copy()
        for row, first in enumerate(index):
            expected[row, :, first : first + 3] = new[row]
        np.testing.assert_array_equal(result, expected)
