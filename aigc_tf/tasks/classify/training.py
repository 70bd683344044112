"""The task `classify`: texts or pairs of texts -> classes, several labels, or a number."""

import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.config import ExperimentConfig
from aigc_tf.data.batching.batches import ExampleSource
from aigc_tf.data.batching.order import POSITIONS, TrainingOrder, choose_bucket_lengths, evaluation_batches
from aigc_tf.data.batching.packed_batches import PackedExampleSource
from aigc_tf.data.batching.packed_order import PackedOrder
from aigc_tf.data.batching.special_tokens import SpecialTokens, model_lengths, special_tokens_of
from aigc_tf.data.encoders.labels import LabelEncoder
from aigc_tf.data.prepared.prepared import PreparedDataset
from aigc_tf.data.sources.samples import resolve_sample
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.errors import InputError
from aigc_tf.evaluation import classification
from aigc_tf.evaluation.best_metric import best_metric
from aigc_tf.models.adapters.adapters import add_adapter
from aigc_tf.models.blocks import repeated_blocks
from aigc_tf.models.classifiers import classifier
from aigc_tf.models.packed import check_packed, packed_logits
from aigc_tf.tasks.classify.spec import LABEL, SPEC, TEXT
from aigc_tf.tasks.door import check_sizes, check_tokenizer, policy_of, refusals
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.step import losses
from aigc_tf.training.step.batch_losses import Losses
from aigc_tf.training.step.step import Observe
from aigc_tf.training.task import Evaluation, Task


def data_warnings(config: ExperimentConfig, prepared: PreparedDataset) -> list[str]:
    """Returns why a classifier cannot learn from the data with this config: class weights of other labels."""
    return refusals(lambda: _class_weights(config, prepared, prepared.facts.encoder(LABEL).names))


def classify(config: ExperimentConfig, prepared: PreparedDataset, devices: Devices) -> Task:
    """Builds a text classifier: single texts or pairs; classes, several labels, or a number."""
    check_sizes(config, prepared, devices)
    check_tokenizer(config, prepared)
    tokenizer: Tokenizer = prepared.facts.encoder(TEXT)
    label: LabelEncoder = prepared.facts.encoder(LABEL)
    special = special_tokens_of(tokenizer, max_length=config.data.max_length, truncation=config.data.truncation)
    order, train, bucket_lengths = _training_rows(config, prepared, special)
    problem_type, label_names = label.problem_type, label.names

    def build_model() -> keras.Model:
        model = classifier.build_classifier(
            dataclasses.replace(config.model, source=resolve_sample(config.model.source)),
            num_outputs=len(label_names) or 1,
            vocabulary_size=tokenizer.vocabulary_size,
            max_length=config.data.max_length,
            dtype=policy_of(config.training.devices.precision),
            seed=config.training.seed,
        )
        if config.data.packing:
            check_packed(model)
        return add_adapter(model, config.adapter, seed=config.training.seed)

    table = _class_weights(config, prepared, label_names)

    def row_losses(labels: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values = losses.classification_losses(
            labels,
            logits,
            problem_type=problem_type,
            label_smoothing=config.training.loss.label_smoothing,
            z_loss=config.training.loss.z_loss,
        )
        return values, losses.class_weights(labels, table)

    def classification_losses(model: keras.Model, batch: dict[str, tf.Tensor]) -> Losses:
        logits = model(classifier.model_inputs(model, batch), training=True)
        values, class_weights = row_losses(batch["labels"], logits)
        return Losses(values, batch["weights"] * class_weights)

    def packed_losses(model: keras.Model, batch: dict[str, tf.Tensor]) -> Losses:
        labels, weights = batch["labels"], batch["weights"]  # (B, M, ...) and (B, M)
        labels = tf.reshape(labels, [-1, *labels.shape[2:]])
        values, class_weights = row_losses(labels, packed_logits(model, batch, training=True))
        values, class_weights = (tf.reshape(found, tf.shape(weights)) for found in (values, class_weights))
        return Losses(values, weights * class_weights)

    def observe(model: keras.Model, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        logits = model(classifier.model_inputs(model, batch), training=False)
        return {"logits": tf.cast(logits, tf.float32), "labels": batch["labels"], "weights": batch["weights"]}

    return Task(
        build_model=build_model,
        losses=packed_losses if config.data.packing else classification_losses,
        order=order,
        train=train,
        evaluations=_evaluations(config, prepared, special, bucket_lengths, devices, observe=observe),
        best_metric=best_metric(SPEC.metrics(config), config.evaluation.best_metric),
        data_sha256=prepared.sha256,
        judged_weights=config.evaluation.weights,
        blocks=repeated_blocks,
    )


def _training_rows(
    config: ExperimentConfig, prepared: PreparedDataset, special: SpecialTokens
) -> tuple[TrainingOrder | PackedOrder, ExampleSource, np.ndarray]:
    """Returns the order of the training split, the source of its batches, and padded lengths that fit its examples."""
    split, size, texts = prepared.splits["train"], config.training.global_batch_size, prepared.schema.text_names
    lengths = model_lengths(split.sizes, special, is_pair=len(texts) == 2)
    seed, num_buckets = config.training.seed, config.data.num_buckets
    if config.data.packing:
        packed = PackedOrder(lengths, length=special.max_length, seed=seed, global_batch_size=size)
        rows = PackedExampleSource(
            split,
            packed.batch,
            special,
            texts=texts,
            label=LABEL,
            num_segments=packed.num_segments,
            global_batch_size=size,
        )
        return packed, rows, choose_bucket_lengths(lengths, num_buckets=num_buckets, smallest=size)
    order = TrainingOrder(
        lengths,
        seed=seed,
        global_batch_size=size,
        num_buckets=num_buckets,
        run_length=config.data.bucket_run_length,
    )
    source = ExampleSource(split, order.batch, special, texts=texts, label=LABEL, global_batch_size=size)
    return order, source, order.bucket_lengths


def _evaluations(
    config: ExperimentConfig,
    prepared: PreparedDataset,
    special: SpecialTokens,
    bucket_lengths: np.ndarray,
    devices: Devices,
    *,
    observe: Observe,
) -> dict[str, Evaluation]:
    length = config.data.max_length if devices.static_shapes else None  # a single shape needs one compilation
    if length:
        bucket_lengths = np.array([length])
    shape = {POSITIONS: length} if length else None
    size = config.evaluation.batch_size
    label, texts = prepared.facts.encoder(LABEL), prepared.schema.text_names
    accumulator = functools.partial(classification.Classification, label.problem_type, label.names)
    evaluations = {}
    for name in ("validation", "test"):
        split = prepared.splits.get(name)
        if split is None or not split.num_examples:
            continue
        lengths = model_lengths(split.sizes, special, is_pair=len(texts) == 2)
        batches = evaluation_batches(lengths, batch_size=size, bucket_lengths=bucket_lengths)
        source = ExampleSource(split, batches.__getitem__, special, texts=texts, label=LABEL, global_batch_size=size)
        evaluations[name] = Evaluation(
            source=source, num_batches=len(batches), observe=observe, accumulator=accumulator, shape=shape
        )
    return evaluations


def _class_weights(
    config: ExperimentConfig, prepared: PreparedDataset, label_names: tuple[str, ...]
) -> tuple[float, ...]:
    given = config.training.loss.class_weights
    if given and len(given) != len(label_names):
        raise InputError(
            f"training.loss.class_weights has {len(given)} numbers, but the data have {len(label_names)} "
            f"labels: {', '.join(label_names)}; give one weight for each, in this order."
        )
    if not config.training.loss.balance_classes:
        return given
    counts = np.bincount(prepared.splits["train"].column(LABEL).all(), minlength=len(label_names))
    return tuple((counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist())
