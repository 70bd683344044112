"""Law: packed == each example alone, in logits and gradients, for BERT and our own GPT-2; with XLA and dropout too."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import AdapterConfig
from aigc_tf.data.batching.batches import text_rows
from aigc_tf.data.batching.packed_batches import PackedDocumentSource, PackedExampleSource
from aigc_tf.data.batching.packed_order import PackedOrder
from aigc_tf.data.batching.special_tokens import add_special_tokens, model_lengths
from aigc_tf.models.adapters.adapters import add_adapter
from aigc_tf.models.generators import generator
from aigc_tf.models.packed import packed_logits
from aigc_tf.training.step import losses
from aigc_tf.training.step.step import forward_key, seed_generators, stateless_seeds
from tests import tiny_classifier, tiny_generator, tiny_task
from tests.memory_split import MemorySplit, dense, ragged

BOUND = 1e-5
LENGTH = 16
ROWS = 6
END = 39


def short_texts(count=40, seed=0, is_pair=True):
    """Pairs of short texts or single ones, with two labels."""
    rng = np.random.default_rng(seed)
    rows = [
        (rng.integers(1, 38, rng.integers(0, 6)), rng.integers(1, 38, rng.integers(1, 6)) if is_pair else [])
        for _ in range(count)
    ]
    first, second = zip(*rows, strict=True)
    return MemorySplit(text=ragged(*first), second=ragged(*second), label=dense(rng.integers(0, 2, count, np.int32)))


def rows_of(split, ids):
    return text_rows([split.column("text"), split.column("second")], ids)


def gradients_of(model, total):
    def compute(*arguments):
        with tf.GradientTape() as tape:
            value = total(*arguments)
        found = tape.gradient(value, model.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(gradient) for gradient in found]

    return compute


def largest(ours, theirs):
    return max(np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in zip(ours, theirs, strict=True))


@pytest.fixture(scope="module")
def classifier():
    split, special = short_texts(), tiny_task.SPECIAL_TOKENS
    order = PackedOrder(
        model_lengths(split.sizes, special, is_pair=True), length=LENGTH, seed=0, global_batch_size=ROWS
    )
    source = PackedExampleSource(
        split,
        order.batch,
        special,
        texts=("text", "second"),
        label="label",
        num_segments=order.num_segments,
        global_batch_size=ROWS,
    )
    batch = source.rows(1, shard=0, num_shards=1)
    assert (batch["document_ids"].max(axis=1) > 1).any()
    assert (batch["example_ids"] < 0).any()
    ids = batch["example_ids"][batch["example_ids"] >= 0]
    alone = add_special_tokens(rows_of(split, ids), special, length=LENGTH, is_pair=True)
    alone |= {"labels": split.column("label").rows(ids)}
    config = dataclasses.replace(tiny_classifier.CONFIG, dropout=0.0)
    return tiny_classifier.build_model(num_outputs=2, max_length=LENGTH, config=config), batch, alone


def test_a_classifier_says_of_packed_examples_what_it_says_of_each_alone(classifier, measure):
    model, batch, alone = classifier
    logits = packed_logits(model, batch, training=False).numpy()[batch["weights"].ravel() > 0]
    expected = tiny_task.tiny_logits(model, alone, training=False).numpy()
    assert np.ptp(expected, axis=0).min() > 0.1
    measure("packed == each example alone, logits of BERT", np.abs(logits - expected).max(), BOUND)


def test_a_classifier_learns_from_packed_examples_what_it_learns_from_each_alone(classifier, measure):
    model, batch, alone = classifier

    def packed_total():
        logits = packed_logits(model, batch, training=True)
        values = losses.classification_losses(batch["labels"].ravel(), logits, problem_type="single_label")
        return tf.reduce_sum(values * batch["weights"].ravel()) / batch["weights"].sum()

    def total():
        logits = tiny_task.tiny_logits(model, alone, training=True)
        return tf.reduce_mean(losses.classification_losses(alone["labels"], logits, problem_type="single_label"))

    ours, theirs = gradients_of(model, packed_total)(), gradients_of(model, total)()
    assert max(np.abs(gradient).max() for gradient in theirs) > 0.1
    measure("packed == each example alone, gradients of BERT", largest(ours, theirs), BOUND)


def document_batch(is_pair):
    split = short_texts(is_pair=is_pair)
    order = PackedOrder(split.sizes + 1, length=LENGTH, seed=0, global_batch_size=ROWS)
    source = PackedDocumentSource(
        split,
        order.batch,
        end_id=END,
        texts=("text", "second")[: 1 + is_pair],
        length=LENGTH,
        num_segments=order.num_segments,
        global_batch_size=ROWS,
    )
    batch = source.rows(1, shard=0, num_shards=1)
    assert (batch["document_ids"].max(axis=1) > 1).sum() > 2
    alone = []
    for row, number in np.argwhere(batch["example_ids"] >= 0):
        places = batch["document_ids"][row] == number + 1
        alone.append({name: batch[name][row : row + 1, places] for name in ("token_ids", "labels", "weights")})
        (first, second), mine = rows_of(split, batch["example_ids"][row, [number]])[0], alone[-1]
        targets = [*first, *second, END]
        assert mine["labels"][0].tolist() == targets
        assert mine["token_ids"][0].tolist() == [END, *targets[:-1]]
        assert mine["weights"][0].tolist() == [float(not is_pair)] * len(first) + [1.0] * (len(second) + 1)
    return batch, alone


@pytest.mark.parametrize(
    ("is_pair", "has_prefix"), [(False, False), (True, False), (True, True)], ids=["documents", "pairs", "prefix"]
)
def test_a_generator_reads_and_learns_from_packed_documents_as_from_each_alone(is_pair, has_prefix, measure):
    model = generator.build_generator(tiny_generator.CONFIG, vocabulary_size=END + 1, max_length=LENGTH, seed=1)
    model.embeddings.tokens.assign(model.embeddings.tokens * 10.0)
    add_adapter(model, AdapterConfig(enabled=has_prefix, kind="prefix", prefix_length=3))
    batch, alone = document_batch(is_pair)
    logits = model(generator.model_inputs(model, batch)).numpy()
    place = {row: 0 for row in range(ROWS)}
    for (row, _), one in zip(np.argwhere(batch["example_ids"] >= 0), alone, strict=True):
        expected = model(generator.model_inputs(model, one)).numpy()[0]
        packed = logits[row, place[row] : place[row] + len(expected)]
        place[row] += len(expected)
        measure("packed == each example alone, logits of GPT-2", np.abs(packed - expected).max(), BOUND)

    def total(batches):
        def one(batch):
            logits = model(generator.model_inputs(model, batch), training=True)
            return tf.reduce_sum(losses.token_losses(batch["labels"], logits) * batch["weights"])

        scale = 1 / sum(one["weights"].sum() for one in alone)  # the mean over tokens, as a step computes it
        return scale * tf.add_n([one(batch) for batch in batches])

    ours, theirs = (gradients_of(model, total)(batches) for batches in ([batch], alone))
    assert max(np.abs(gradient).max() for gradient in theirs) > 1e-3
    measure("packed == each example alone, gradients of GPT-2", largest(ours, theirs), BOUND)


def test_packed_rows_compile_with_dropout_and_their_gradients_are_those_of_the_graph(measure):
    model = generator.build_generator(
        dataclasses.replace(tiny_generator.CONFIG, dropout=0.2),
        vocabulary_size=END + 1,
        max_length=LENGTH,
        seed=1,
    )
    batch = {name: tf.constant(value) for name, value in document_batch(True)[0].items()}

    def total(batch):
        with stateless_seeds(seed_generators(model), forward_key(5, tf.constant(0, tf.int64), 0)):
            logits = model(generator.model_inputs(model, batch), training=True)
        values = losses.token_losses(batch["labels"], logits) * batch["weights"]
        return tf.reduce_sum(values) / tf.reduce_sum(batch["weights"])

    compute = gradients_of(model, total)
    plain, compiled = (tf.function(compute, jit_compile=jit)(batch) for jit in (False, True))
    measure("XLA == graph, gradients of packed rows with dropout", largest(plain, compiled), BOUND)


def test_a_packed_classifier_compiles_with_dropout(classifier):
    model = tiny_classifier.build_model(num_outputs=2, max_length=LENGTH)
    batch = {name: tf.constant(value) for name, value in classifier[1].items()}

    def total(batch):
        with stateless_seeds(seed_generators(model), forward_key(5, tf.constant(0, tf.int64), 0)):
            return tf.reduce_sum(packed_logits(model, batch, training=True) ** 2)

    compute = tf.function(gradients_of(model, total), jit_compile=True)
    gradients = [np.asarray(gradient) for gradient in compute(batch)]
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert any(np.abs(gradient).max() > 0 for gradient in gradients)
    assert largest(gradients, compute(batch)) == 0


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_other_examples_of_a_row_change_nothing(classifier, dtype, measure):
    """In bfloat16 a mask that is added to scores could be too small to hide everything."""
    _, batch, _ = classifier
    row, (first, second) = next((i, ids[:2]) for i, ids in enumerate(batch["example_ids"]) if ids[1] >= 0)
    assert first != second
    is_other = batch["document_ids"] != 1
    other = batch | {"token_ids": np.where(is_other, (batch["token_ids"] + 7) % END, batch["token_ids"])}
    bert = tiny_classifier.build_model(num_outputs=2, max_length=LENGTH, dtype=dtype)
    ours, theirs = (packed_logits(bert, one, training=False).numpy().reshape(ROWS, -1, 2) for one in (batch, other))
    assert (ours[row, 1] != theirs[row, 1]).any()
    measure("other examples of a packed row change no logit", np.abs(ours[:, 0] - theirs[:, 0]).max(), 0)
    gpt2 = generator.build_generator(
        tiny_generator.CONFIG, vocabulary_size=END + 1, max_length=LENGTH, dtype=dtype, seed=1
    )
    ours, theirs = (gpt2(generator.model_inputs(gpt2, one)).numpy() for one in (batch, other))
    assert (ours[is_other] != theirs[is_other]).any()
    measure("other examples of a packed row change no logit", np.abs(ours - theirs)[~is_other].max(), 0)
