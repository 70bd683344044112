"""FLOPs counted off the graph are those counted by hand."""

import keras
import keras_nlp
import pytest
import tensorflow as tf

from aigc_tf.config import ModelConfig
from aigc_tf.models.generators.generator import build_generator
from aigc_tf.training.devices.strategy import build_devices
from aigc_tf.training.planning.flops import StepFlops, count_flops
from aigc_tf.training.step import losses
from aigc_tf.training.step.batch_losses import Losses
from aigc_tf.training.step.traced_step import StepGraph, TracedStep
from tests import tiny_task

pytestmark = pytest.mark.slow

ROWS, VOCABULARY, WIDTH, HIDDEN, LAYERS, HEADS = 2, 30, 16, 24, 2, 4
GENERATOR = ModelConfig(dropout=0.1, num_layers=LAYERS, hidden_dim=WIDTH, num_heads=HEADS, intermediate_dim=HIDDEN)


def generator_losses(model, batch):
    return Losses(losses.token_losses(batch["labels"], model(batch, training=True)), batch["weights"])


def generator_spec(length):
    matrix = tf.TensorSpec([ROWS, length], tf.int32)
    return {"token_ids": matrix, "labels": matrix, "weights": tf.TensorSpec([ROWS, length], tf.float32)}


def generator_flops(length):
    """By hand: 2 M K N for each (M, K) @ (K, N), forward; the backward is two products of that size for each."""
    tokens = ROWS * length
    block = 2 * tokens * WIDTH * (3 * WIDTH + WIDTH + 2 * HIDDEN)  # queries, keys, values; output; feed-forward
    attention = 2 * 2 * ROWS * length * length * WIDTH  # scores, and the weighted sum, over all heads
    return 3 * (LAYERS * (block + attention) + 2 * tokens * WIDTH * VOCABULARY)


@pytest.fixture(scope="module")
def generator_step():
    model = build_generator(GENERATOR, vocabulary_size=VOCABULARY, max_length=32)
    return TracedStep(model, generator_losses, generator_spec(None))


@pytest.mark.parametrize("length", [8, 32])
def test_a_generators_step_has_the_flops_counted_by_hand(generator_step, length):
    assert count_flops(generator_step.at(length)) == generator_flops(length)


def test_of_many_lengths_three_are_counted_and_the_others_follow(generator_step):
    flops = StepFlops(generator_step, range(8, 33))
    assert [flops(length) for length in (8, 9, 17, 31, 32)] == [generator_flops(n) for n in (8, 9, 17, 31, 32)]
    assert len(flops._counted) == 3


def bert_step(model):
    matrix, row = tf.TensorSpec([ROWS, None], tf.int32), tf.TensorSpec([ROWS], tf.int32)
    spec = {"token_ids": matrix, "segment_ids": matrix, "padding_mask": matrix, "labels": row}
    spec["weights"] = tf.TensorSpec([ROWS], tf.float32)
    return TracedStep(model, tiny_task.tiny_losses, spec)


def bert_flops(length, *, width=16, hidden=32, classes=2):
    tokens = ROWS * length
    block = 2 * tokens * width * (4 * width + 2 * hidden) + 2 * 2 * ROWS * length * length * width
    return 3 * (2 * block + 2 * ROWS * width * (width + classes))  # the pooler and the head see one token a row


def test_a_classifiers_step_on_a_keras_nlp_bert_has_the_flops_counted_by_hand():
    assert count_flops(bert_step(tiny_task.build_model(dropout=0.1)).at(12)) == bert_flops(12)


def test_what_is_frozen_needs_no_gradient():
    model = tiny_task.build_model()
    model.backbone.trainable = False
    head = 2 * ROWS * 16 * 2
    assert count_flops(bert_step(model).at(12)) == bert_flops(12) // 3 + head  # of the head's kernel alone


def test_another_backbone_is_counted_too():
    backbone = keras_nlp.models.DistilBertBackbone(
        vocabulary_size=40, num_layers=2, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=16
    )
    model = keras_nlp.models.DistilBertTextClassifier(backbone, num_classes=2)

    def task_losses(model, batch):
        logits = model({name: batch[name] for name in ("token_ids", "padding_mask")}, training=True)
        values = losses.classification_losses(batch["labels"], logits, problem_type="single_label")
        return Losses(values, batch["weights"])

    matrix, row = tf.TensorSpec([ROWS, None], tf.int32), tf.TensorSpec([ROWS], tf.int32)
    spec = {"token_ids": matrix, "padding_mask": matrix, "labels": row, "weights": tf.TensorSpec([ROWS], tf.float32)}
    assert count_flops(TracedStep(model, task_losses, spec).at(12)) == bert_flops(12)


def test_two_replicas_count_as_one_does_on_its_share():
    devices = build_devices("mirrored")
    with devices.strategy.scope():
        model = tiny_task.build_model()
    assert count_flops(bert_step(model).at(12)) == bert_flops(12)


def graph_of(function, *specs):
    graph = tf.function(function).get_concrete_function(*specs).graph
    return StepGraph(operations=graph.get_operations(), fetches=graph.outputs, constants=frozenset())


MATRIX = tf.TensorSpec([4, 4], tf.float32)


def test_loops_branches_and_calls_are_looked_into():
    product = tf.function(lambda x: x @ x)

    def looped(x):
        return tf.while_loop(lambda i, _: i < 5, lambda i, y: (i + 1, y @ x), (0, x), maximum_iterations=5)[1]

    def branched(x):
        return tf.cond(tf.reduce_sum(x) > 0, lambda: x @ x @ x, lambda: x @ x)

    one = 2 * 4**3
    assert count_flops(graph_of(lambda x: product(x) + x, MATRIX)) == one
    assert count_flops(graph_of(looped, MATRIX)) == 5 * one
    assert count_flops(graph_of(branched, MATRIX)) == 2 * one


def test_a_loop_of_unknown_turns_is_not_guessed():
    def looped(x, turns):
        return tf.while_loop(lambda i, _: i < turns, lambda i, y: (i + 1, y @ x), (0, x))[1]

    with pytest.raises(ValueError, match="its number of iterations"):
        count_flops(graph_of(looped, MATRIX, tf.TensorSpec([], tf.int32)))


def test_a_shape_that_is_not_known_is_not_guessed():
    with pytest.raises(ValueError, match="not known"):
        count_flops(graph_of(lambda x: x @ x, tf.TensorSpec([None, 4], tf.float32)))


def test_einsum_and_convolutions():
    a, b = tf.TensorSpec([2, 3, 5], tf.float32), tf.TensorSpec([5, 7], tf.float32)
    assert count_flops(graph_of(lambda a, b: tf.einsum("bik,kj->bij", a, b), a, b)) == 2 * 2 * 3 * 5 * 7
    assert count_flops(graph_of(lambda a, b: tf.einsum("...k,kj->...j", a, b), a, b)) == 2 * 2 * 3 * 5 * 7
    image, kernel = tf.TensorSpec([2, 8, 8, 3], tf.float32), tf.TensorSpec([3, 3, 3, 5], tf.float32)

    def convolution(image, kernel):
        with tf.GradientTape() as tape:
            tape.watch([image, kernel])
            y = tf.nn.conv2d(image, kernel, 1, "SAME")
        return tape.gradient(y, [image, kernel])

    assert count_flops(graph_of(convolution, image, kernel)) == 3 * 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)
    depthwise = tf.TensorSpec([3, 3, 3, 2], tf.float32)
    count = count_flops(graph_of(lambda x, k: tf.nn.depthwise_conv2d(x, k, [1, 1, 1, 1], "SAME"), image, depthwise))
    assert count == 2 * (2 * 8 * 8 * 6) * (3 * 3)


def test_tracing_leaves_a_models_random_state_as_it_was():
    model = tiny_task.build_model(dropout=0.1)
    generators = [layer.seed_generator for layer in model._flatten_layers() if hasattr(layer, "seed_generator")]
    before = [keras.ops.convert_to_numpy(generator.state) for generator in generators]
    bert_step(model)
    after = [keras.ops.convert_to_numpy(generator.state) for generator in generators]
    assert len(before) > 0
    assert all((one == other).all() for one, other in zip(before, after, strict=True))
