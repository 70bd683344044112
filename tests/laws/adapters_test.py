"""Laws: an adapter merged == beside the weights; decoding behind a prefix == the full forward behind it."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import AdapterConfig, ModelConfig
from aigc_tf.models.adapters.adapters import add_adapter
from aigc_tf.models.classifiers.classifier import merge_classifier
from aigc_tf.models.generators.generator import build_generator, merge_generator
from tests import tiny_classifier
from tests.laws.decoding_test import LENGTHS, continue_greedily, prompts

CONFIG = ModelConfig(num_layers=3, hidden_dim=48, num_heads=3, intermediate_dim=96)
V, LENGTH = 60, 40
TARGETS = {"queries and values": (), "every kernel": ("*kernel",)}


def trained(model, config):
    """A model whose adapter is as large as training might make it."""
    add_adapter(model, config, seed=3)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if weight.path.endswith(("lora_b", "prefix_keys", "prefix_values")):
            weight.assign(np.asarray(weight) + rng.normal(0, 0.05, weight.shape).astype(np.float32))
    return model


def generator(gain=16.0):
    """A generator whose continuations vary, by kernels that much larger than new ones are."""
    model = build_generator(CONFIG, vocabulary_size=V, max_length=LENGTH, seed=1)
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            weight.assign(weight * gain)
    model.embeddings.tokens.assign(model.embeddings.tokens * 10.0)
    return model


@pytest.mark.parametrize("targets", TARGETS)
def test_a_low_rank_merged_is_the_low_rank_beside_the_weights(targets, measure):
    config = AdapterConfig(enabled=True, rank=4, alpha=8.0, targets=TARGETS[targets])
    classifier, batch = tiny_classifier.build_model(), tiny_classifier.make_batch()
    bare = tiny_classifier.logits_of(classifier, batch)
    beside = tiny_classifier.logits_of(trained(classifier, config), batch)
    assert np.abs(beside - bare).max() > 0.01
    merged = tiny_classifier.logits_of(merge_classifier(classifier, dtype="float32"), batch)
    measure(f"adapter merged == beside the weights, {targets}, classifier, logits", np.abs(merged - beside).max(), 1e-5)

    model, inputs = generator(gain=8.0), {"token_ids": prompts()}  # at 16 rounding grows from block to block
    bare = model(inputs).numpy()
    beside = trained(model, config)(inputs).numpy()
    assert np.abs(beside - bare).max() > 0.01
    merged = merge_generator(model, dtype="float32")(inputs).numpy()
    measure(f"adapter merged == beside the weights, {targets}, generator, logits", np.abs(merged - beside).max(), 1e-5)


@pytest.mark.parametrize("kind", ["prefix", "lora"])
def test_decoding_with_a_cache_is_the_full_forward_with_an_adapter(kind, measure):
    model = generator()
    bare, _ = continue_greedily(model, prompts(), LENGTHS, 20)
    trained(model, AdapterConfig(enabled=True, kind=kind, prefix_length=7))
    ids, logits = continue_greedily(model, prompts(), LENGTHS, 20)
    assert not np.array_equal(ids, bare)
    for row, length in enumerate(LENGTHS):
        whole = np.concatenate([prompts()[row, :length], ids[row]]).astype(np.int32)
        full = model({"token_ids": whole[None]}).numpy()[0, length - 1 : -1]
        measure(f"decoding with a cache == the full forward, {kind}, logits", np.abs(full - logits[row]).max(), 1e-4)
        np.testing.assert_array_equal(full.argmax(-1), ids[row])


def test_packed_documents_behind_a_prefix_are_as_each_alone(measure):
    model = trained(generator(), AdapterConfig(enabled=True, kind="prefix", prefix_length=7))
    ids = prompts()[:1]
    packed = {
        "token_ids": ids,
        "positions": tf.constant([[*range(5), *range(7)]]),
        "document_ids": tf.constant([[1] * 5 + [2] * 7]),
    }
    alone = [model({"token_ids": part}).numpy() for part in (ids[:, :5], ids[:, 5:])]
    found = model(packed).numpy()
    measure("packed == each document alone, prefix, logits", np.abs(found - np.concatenate(alone, 1)).max(), 1e-5)


def test_a_prefix_computes_the_same_compiled_by_xla(measure):
    model, ids = trained(generator(), AdapterConfig(enabled=True, kind="prefix")), tf.constant(prompts())
    compiled = tf.function(model, jit_compile=True)({"token_ids": ids})
    measure("XLA == eager, prefix, logits", np.abs(compiled - model({"token_ids": ids})).max(), 1e-5)
