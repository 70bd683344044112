"""Law: decoding with a cache == the full forward; a row alone == the row in any batch."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import ModelConfig
from aigc_tf.models.generators.generator import build_generator, decoder_step, empty_cache

BOUND = 1e-4
CONFIG = ModelConfig(num_layers=3, hidden_dim=48, num_heads=3, intermediate_dim=96)
V, LENGTH = 60, 40
LENGTHS = np.array([7, 1, 12, 4], np.int32)


@pytest.fixture(scope="module", params=["float32", "mixed_bfloat16"])
def model(request):
    model = build_generator(CONFIG, vocabulary_size=V, max_length=LENGTH, dtype=request.param, seed=1)
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            weight.assign(weight * 16.0)
    model.embeddings.tokens.assign(model.embeddings.tokens * 10.0)
    return model


def prompts(lengths=LENGTHS):
    return np.random.default_rng(0).integers(0, V, (len(lengths), lengths.max())).astype(np.int32)


def continue_greedily(model, prompt_ids, lengths, num_tokens):
    """Returns `(B, N)` ids and the `(B, N, V)` logits that they were chosen from."""

    @tf.function
    def run(prompt_ids, lengths):
        cache = empty_cache(model, tf.shape(prompt_ids)[0], LENGTH)
        logits, cache = decoder_step(model, prompt_ids, cache, tf.zeros_like(lengths), lengths)

        def body(step, cache, logits, found):
            found = found.write(step, logits)
            token = tf.argmax(logits, axis=-1, output_type=tf.int32)[:, None]
            logits, cache = decoder_step(model, token, cache, lengths + step, tf.ones_like(lengths))
            return step + 1, cache, logits, found

        found = tf.TensorArray(tf.float32, num_tokens)
        loop = (0, cache, logits, found)
        return tf.transpose(tf.while_loop(lambda step, *_: step < num_tokens, body, loop)[-1].stack(), [1, 0, 2])

    logits = run(tf.constant(prompt_ids), tf.constant(lengths)).numpy()
    return logits.argmax(-1), logits


@pytest.mark.parametrize("padding", [0, 6])
def test_decoding_with_a_cache_is_the_full_forward(model, padding, measure):
    prompt_ids = np.pad(prompts(), [(0, 0), (0, padding)], constant_values=3)
    ids, logits = continue_greedily(model, prompt_ids, LENGTHS, 20)
    bound = BOUND if model.dtype_policy.name == "float32" else 0.05
    for row, length in enumerate(LENGTHS):
        whole = np.concatenate([prompt_ids[row, :length], ids[row]]).astype(np.int32)
        full = model({"token_ids": whole[None]}).numpy()[0, length - 1 : -1]
        law = f"decoding with a cache == the full forward, logits, {model.dtype_policy.name}"
        measure(law, np.abs(full - logits[row]).max(), bound)
        if bound == BOUND:
            np.testing.assert_array_equal(full.argmax(-1), ids[row])
    assert len(np.unique(ids)) > 5


@pytest.mark.parametrize("model", ["float32"], indirect=True)
def test_a_row_alone_is_the_row_in_a_batch(model, measure):
    prompt_ids = prompts()
    ids, logits = continue_greedily(model, prompt_ids, LENGTHS, 12)
    for row, length in enumerate(LENGTHS):
        alone_ids, alone = continue_greedily(model, prompt_ids[row : row + 1, :length], LENGTHS[row : row + 1], 12)
        np.testing.assert_array_equal(alone_ids[0], ids[row])
        measure("decoding a row alone == in a batch, logits", np.abs(alone[0] - logits[row]).max(), BOUND)


def test_a_prompt_read_in_parts_is_the_prompt_read_at_once(model, measure):
    prompt_ids = prompts()
    step = functools.partial(decoder_step, model)
    zeros = np.zeros(4, np.int32)
    at_once, _ = step(prompt_ids, empty_cache(model, 4, LENGTH), zeros, zeros + 12)
    cache = empty_cache(model, 4, LENGTH)
    for first in (0, 5, 7):
        part = prompt_ids[:, first : {0: 5, 5: 7, 7: 12}[first]]
        in_parts, cache = step(part, cache, zeros + first, zeros + part.shape[1])
    bound = BOUND if model.dtype_policy.name == "float32" else 0.05
    law = f"a prompt read in parts == at once, logits, {model.dtype_policy.name}"
    measure(law, np.abs(in_parts - at_once).max(), bound)


def test_a_cache_that_is_kept_is_not_changed_by_those_who_go_on_from_it(model):
    prompt_ids, zeros = prompts(), np.zeros(4, np.int32)
    _, cache = decoder_step(model, prompt_ids, empty_cache(model, 4, LENGTH), zeros, LENGTHS)
    before = tf.nest.map_structure(lambda tensor: tensor.numpy().copy(), cache)
    for token in (1, 2):
        decoder_step(model, np.full([4, 1], token, np.int32), cache, LENGTHS, zeros + 1)
    tf.nest.map_structure(np.testing.assert_array_equal, before, tf.nest.map_structure(np.asarray, cache))
