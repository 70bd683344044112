"""Laws: a later token never changes an earlier logit; packed documents are as if each were alone."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import ModelConfig
from aigc_tf.models.generators.generator import build_generator, model_inputs

CONFIG = ModelConfig(num_layers=2, hidden_dim=48, num_heads=3, intermediate_dim=96)
V, LENGTH = 60, 33


@pytest.fixture(scope="module")
def model():
    """With weights that are large enough for tokens to matter to each other."""
    model = build_generator(CONFIG, vocabulary_size=V, max_length=LENGTH, seed=1)
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            weight.assign(weight * 16.0)
    model.embeddings.tokens.assign(model.embeddings.tokens * 10.0)
    return model


def ids(rows, length, seed=0):
    return np.random.default_rng(seed).integers(0, V, (rows, length)).astype(np.int32)


@pytest.mark.parametrize("graph", [False, True])
def test_changing_a_later_token_never_changes_an_earlier_logit(model, graph, measure):
    call = tf.function(lambda token_ids: model({"token_ids": token_ids}), reduce_retracing=True) if graph else None
    call = call or (lambda token_ids: model({"token_ids": token_ids}))
    before = ids(3, LENGTH)
    logits = call(tf.constant(before)).numpy()
    for place in range(1, LENGTH):
        changed = before.copy()
        changed[:, place:] = (changed[:, place:] + 1 + place) % V
        others = call(tf.constant(changed)).numpy()
        assert np.abs(others[:, place:] - logits[:, place:]).max() > 1e-3
        measure("a later token changes no earlier logit", np.abs(others[:, :place] - logits[:, :place]).max(), 0)


def test_no_gradient_flows_to_a_later_token(model, measure):
    table = model.embeddings.tokens
    row = tf.constant(np.arange(LENGTH, dtype=np.int32)[None])  # every token once
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model({"token_ids": row})[:, 10, :1]))
    gradient = tf.convert_to_tensor(tape.gradient(loss, table)).numpy()
    assert np.abs(gradient[1:11]).max() > 0
    measure("a later token gets no gradient of an earlier logit", np.abs(gradient[11:LENGTH]).max(), 0)


def test_packed_documents_are_as_if_each_were_alone(model, measure):
    lengths = (5, 9, 1, 7)
    row = ids(1, sum(lengths), seed=4)
    batch = {
        "token_ids": row,
        "positions": np.concatenate([np.arange(n) for n in lengths])[None].astype(np.int32),
        "document_ids": np.repeat(np.arange(4), lengths)[None].astype(np.int32),
    }
    packed = model(model_inputs(model, batch)).numpy()[0]
    plain = model({"token_ids": row}).numpy()[0]
    assert np.abs(packed - plain).max() > 1e-3
    first = 0
    for length in lengths:
        alone = model({"token_ids": row[:, first : first + length]}).numpy()[0]
        measure("packed == each document alone, logits", np.abs(packed[first : first + length] - alone).max(), 1e-5)
        first += length
