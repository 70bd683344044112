"""Laws of the generator: what comes later changes nothing before it; the cache says what the whole forward says."""

import numpy as np
import tensorflow as tf

from aigc_tf.config import ModelConfig
from aigc_tf.models.generator import build_generator, computing_in, decoder_step, empty_cache

BOUND = 1e-4
VOCABULARY, POSITIONS = 97, 24


def tiny_model(dtype="float32"):
    config = ModelConfig(num_layers=2, hidden_dim=32, num_heads=4, intermediate_dim=64)
    model = build_generator(config, vocabulary_size=VOCABULARY, max_length=POSITIONS, dtype=dtype, seed=5)
    for weight in model.weights:  # far from the small numbers a model begins with, so that differences would show
        weight.assign(weight + np.random.default_rng(0).normal(0, 0.2, weight.shape).astype(np.float32))
    return model


def token_ids(rows=3, length=POSITIONS):
    return np.random.default_rng(1).integers(0, VOCABULARY, (rows, length)).astype(np.int32)


def test_a_later_token_changes_no_earlier_logit(measure):
    model, ids = tiny_model(), token_ids()
    forward = tf.function(lambda ids: model({"token_ids": ids}, training=False))
    for call in (forward, lambda ids: model({"token_ids": ids}, training=False)):
        before = call(tf.constant(ids)).numpy()
        for place in (1, 7, POSITIONS - 1):
            changed = ids.copy()
            changed[:, place:] = (changed[:, place:] + 1) % VOCABULARY
            difference = np.abs(call(tf.constant(changed)).numpy() - before)
            assert difference[:, place:].max() > 0
            measure("a later token changes no earlier logit", float(difference[:, :place].max()), 0.0)


def test_cached_decoding_is_the_whole_forward(measure):
    """Prompts of different lengths in one batch, then token by token."""
    model, ids = tiny_model(), token_ids()
    whole = model({"token_ids": tf.constant(ids)}, training=False).numpy()
    lengths = np.array([3, 11, 1], np.int32)
    cache = empty_cache(model, 3, POSITIONS)
    prompts = np.where(np.arange(11) < lengths[:, None], ids[:, :11], 0).astype(np.int32)
    logits, cache = decoder_step(model, tf.constant(prompts), cache, tf.zeros(3, tf.int32), tf.constant(lengths))
    for step in range(POSITIONS - 11):
        expected = whole[np.arange(3), lengths + step - 1]
        measure("cached decoding == full forward, logits", float(np.abs(logits.numpy() - expected).max()), BOUND)
        assert np.array_equal(logits.numpy().argmax(1), expected.argmax(1))
        index = lengths + step
        token = ids[np.arange(3), index][:, None]
        logits, cache = decoder_step(model, tf.constant(token), cache, tf.constant(index), tf.ones(3, tf.int32))


def test_a_row_alone_is_the_row_in_a_batch(measure):
    model, ids = tiny_model(), token_ids(rows=5, length=9)
    lengths = np.array([9, 2, 5, 1, 7], np.int32)
    zeros = tf.zeros(5, tf.int32)
    batch, _ = decoder_step(model, tf.constant(ids), empty_cache(model, 5, POSITIONS), zeros, tf.constant(lengths))
    for row in range(5):
        alone, _ = decoder_step(
            model,
            tf.constant(ids[row : row + 1, : lengths[row]]),
            empty_cache(model, 1, POSITIONS),
            zeros[:1],
            tf.constant(lengths[row : row + 1]),
        )
        difference = np.abs(alone.numpy()[0] - batch.numpy()[row]).max()
        measure("a row alone == the row in any batch, logits", float(difference), BOUND)


def test_another_compute_dtype_for_a_while_is_a_model_of_that_dtype(measure):
    half, whole = tiny_model("mixed_bfloat16"), tiny_model("float32")
    inputs = {"token_ids": tf.constant(token_ids())}
    with computing_in(half, "float32"):
        borrowed = half(inputs, training=False).numpy()
    expected = whole(inputs, training=False).numpy()
    measure("evaluated in float32 == a float32 model", float(np.abs(borrowed - expected).max()), 0.0)
    assert np.abs(half(inputs, training=False).numpy() - expected).max() > 0
