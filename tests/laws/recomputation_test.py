"""Law: recomputing blocks in the backward pass changes no gradient, dropout on."""

import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.models.blocks import repeated_blocks
from aigc_tf.models.gpt2.networks import Decoder
from aigc_tf.training.step.recomputation import recomputed
from aigc_tf.training.step.step import forward_key, seed_generators, stateless_seeds
from tests import tiny_task

BOUND = 1e-6


def classifier():
    return tiny_task.build_model(dropout=0.3)


def generator():
    keras.utils.set_random_seed(0)
    sizes = dict(vocabulary_size=40, num_positions=16, num_layers=3, hidden_dim=16, num_heads=2, intermediate_dim=32)
    return Decoder(**sizes, dropout=0.3)


def relative_positions():
    """A network whose blocks are given trained tensors beside the stream."""
    keras.utils.set_random_seed(0)
    backbone = keras_nlp.models.DebertaV3Backbone(
        vocabulary_size=40,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        dropout=0.1,
        max_sequence_length=16,
        bucket_size=8,
    )
    return keras_nlp.models.DebertaV3TextClassifier(backbone, num_classes=2, dropout=0.1)


def batch():
    ids = np.random.default_rng(0).integers(1, 40, (4, 16)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, 9:] = 0
    return {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": mask}


def gradients(model, blocks, jit):
    generators = seed_generators(model)

    @tf.function(jit_compile=jit)
    def compute(inputs):
        names = ("token_ids",) if isinstance(model, Decoder) else tuple(model.input)
        key = forward_key(3, tf.constant(5, tf.int64), 0)
        with stateless_seeds(generators, key), recomputed(blocks), tf.GradientTape() as tape:
            logits = model({name: inputs[name] for name in names}, training=True)
            loss = tf.reduce_sum(tf.square(logits - 0.5))
        return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    return [tf.convert_to_tensor(value).numpy() for value in compute(batch())], compute


@pytest.mark.parametrize(
    ("build", "jit"), [(classifier, False), (classifier, True), (generator, True), (relative_positions, False)]
)
def test_gradients_are_the_same(build, jit, measure):
    model = build()
    kept, _ = gradients(model, [], jit)
    again, compute = gradients(model, repeated_blocks(model), jit)
    scale = max(float(np.abs(value).max()) for value in kept)
    difference = np.max([np.abs(a - b).max() for a, b in zip(kept, again, strict=True)]) / scale
    measure("recomputation == none, dropout on, gradients", difference, BOUND)
    assert "call" not in vars(repeated_blocks(model)[0]), "the block is as it was"
    if not jit:
        graph = compute.get_concrete_function(batch()).graph
        dropped = [op for op in graph.get_operations() if op.type.startswith("StatelessRandom")]
        plain = gradients(build(), [], jit)[1].get_concrete_function(batch()).graph
        before = [op for op in plain.get_operations() if op.type.startswith("StatelessRandom")]
        assert len(dropped) > 1.5 * len(before), "the masks are drawn again, so blocks are computed again"


def test_what_is_inside_blocks_is_not_kept_for_the_backward_pass():
    """Between the forward of a block and its backward nothing but its input may live: counted in the graph."""
    model = generator()
    compute = gradients(model, repeated_blocks(model), False)[1]
    graph = compute.get_concrete_function(batch()).graph
    softmaxes = [op for op in graph.get_operations() if op.type == "Softmax"]
    readers = sorted(len(output.consumers()) for op in softmaxes for output in op.outputs)
    assert readers[:3] == [1, 1, 1], "a softmax of the first forward is read by its block alone"
    assert len(readers) == 6
    assert min(readers[3:]) > 1, "one of the second is read by its gradient too"
