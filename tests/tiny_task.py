"""A classification task small enough to train in a test: 64 examples in memory, a BERT of 2 layers x 16."""

import functools

import keras_nlp
import numpy as np
import tensorflow as tf

from aigc_tf.data.batching.batches import ExampleSource
from aigc_tf.data.batching.order import TrainingOrder, evaluation_batches
from aigc_tf.data.batching.special_tokens import SpecialTokens, model_lengths
from aigc_tf.training.step import losses
from aigc_tf.training.step.batch_losses import Losses
from aigc_tf.training.task import Evaluation, Task
from tests.memory_split import MemorySplit, dense, ragged
from tests.training_fields import training_with

SPECIAL_TOKENS = SpecialTokens(
    start_ids=(1,), between_ids=(2,), end_ids=(2,), padding_id=0, max_length=16, truncation="head"
)
VOCABULARY = 40


COLUMNS = dict(texts=("text",), label="label")


def tiny_split(count=64, seed=0):
    """Examples in memory: the label of one is whether token 5 comes before token 6."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(7, VOCABULARY, rng.integers(2, 20)).astype(np.int32) for _ in range(count)]
    labels = rng.integers(0, 2, count).astype(np.int32)
    for row, label in zip(rows, labels, strict=True):
        row[:2] = (5, 6) if label else (6, 5)
    return MemorySplit(text=ragged(*rows, dtype=np.int32), label=dense(labels))


def build_model(dropout=0.0, dtype="float32", seed=0):
    import keras

    keras.utils.set_random_seed(seed)
    backbone = keras_nlp.models.BertBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        dropout=dropout,
        max_sequence_length=16,
        dtype=dtype,
    )
    return keras_nlp.models.BertTextClassifier(backbone, num_classes=2, dropout=dropout, dtype=dtype)


def tiny_logits(model, batch, training):
    inputs = {name: batch[name] for name in ("token_ids", "segment_ids", "padding_mask")}
    return model(inputs, training=training)


def tiny_losses(model, batch, class_weights=()):
    logits = tiny_logits(model, batch, training=True)
    values = losses.classification_losses(batch["labels"], logits, problem_type="single_label")
    return Losses(values, batch["weights"] * losses.class_weights(batch["labels"], class_weights))


def tiny_observe(model, batch):
    logits = tiny_logits(model, batch, training=False)
    return {"outputs": tf.cast(logits, tf.float32), "labels": batch["labels"], "weights": batch["weights"]}


def accuracy(rows):
    labels, outputs = rows["labels"], rows["outputs"]
    return {"accuracy": float((outputs.argmax(axis=1) == labels).mean()), "count": len(labels)}


class Rows:
    """Keeps all rows of a split for a function that judges them at once."""

    def __init__(self, score):
        self.score, self.batches = score, []

    def add(self, rows):
        self.batches.append(rows)

    def result(self):
        return self.score({name: np.concatenate([rows[name] for rows in self.batches]) for name in self.batches[0]})


def training_config(**changes):
    defaults = dict(
        num_steps=12,
        global_batch_size=8,
        learning_rate=1e-3,
        warmup_steps=2,
        epsilon=1e-6,
        checkpoint_every=5,
        evaluate_every=6,
        steps_per_call=4,
        precision="float32",
        jit="off",
        strategy="none",
    )
    return training_with(**(defaults | changes))


def tiny_task(config, *, dropout=0.0, class_weights=(), special=SPECIAL_TOKENS, num_buckets=3, score=accuracy):
    split, held_out = tiny_split(), tiny_split(count=13, seed=1)
    lengths = model_lengths(split.sizes, special, is_pair=False)
    order = TrainingOrder(
        lengths, seed=config.seed, global_batch_size=config.global_batch_size, num_buckets=num_buckets
    )
    batches = evaluation_batches(
        model_lengths(held_out.sizes, special, is_pair=False), batch_size=4, bucket_lengths=order.bucket_lengths
    )
    return Task(
        build_model=functools.partial(build_model, dropout=dropout),
        losses=functools.partial(tiny_losses, class_weights=class_weights),
        order=order,
        train=ExampleSource(split, order.batch, special, **COLUMNS, global_batch_size=config.global_batch_size),
        evaluations={
            "validation": Evaluation(
                source=ExampleSource(held_out, batches.__getitem__, special, **COLUMNS, global_batch_size=4),
                num_batches=len(batches),
                observe=tiny_observe,
                accumulator=lambda: Rows(score),
            )
        },
        best_metric=("accuracy", 1),
        data_sha256="tiny",
    )


class ListWatcher:
    """Keeps what the loop reports."""

    def __init__(self):
        self.records, self.evaluations, self.checkpoints, self.started = [], [], [], []
        self.early_stops = []
        self.written, self.example_ids, self.skipped, self.rollbacks = [], [], [], []

    def on_start(self, step):
        self.started.append(step)

    def on_steps(self, records):
        self.records += records

    def on_evaluation(self, step, split, metrics, seconds):
        self.evaluations.append((step, split, metrics))

    def on_early_stop(self, step, message):
        self.early_stops.append((step, message))

    def before_checkpoint(self, step):
        self.flushed = step

    def on_checkpoint(self, step, blocked_seconds):
        assert self.flushed == step
        self.checkpoints.append(step)

    def on_written(self, step, seconds):
        self.written.append(step)

    def on_example_ids(self, first_step, example_ids):
        self.example_ids += [ids.tolist() for ids in example_ids]

    def on_skipped(self, step, message):
        self.skipped.append((step, message))

    def on_rollback(self, step):
        self.rollbacks.append(step)
        self.records = [record for record in self.records if record["step"] <= step]
