"""The task `classify`: texts or pairs of texts -> classes, several labels, or a number."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.config import ExperimentConfig
from aigc_tf.data.batching.batches import ExampleSource, Packing, build_packing, model_lengths
from aigc_tf.data.batching.order import TrainingOrder, choose_bucket_lengths, evaluation_batches
from aigc_tf.data.batching.packed_batches import PackedExampleSource
from aigc_tf.data.batching.packed_order import PackedOrder
from aigc_tf.data.prepared.prepared import PreparedDataset
from aigc_tf.data.sources.samples import resolve_sample
from aigc_tf.data.tokenizers.tokenizers import load_tokenizer
from aigc_tf.errors import InputError
from aigc_tf.evaluation import classification
from aigc_tf.models.adapters.adapters import add_adapter
from aigc_tf.models.blocks import repeated_blocks
from aigc_tf.models.classifiers import classifier
from aigc_tf.models.packed import check_packed, packed_logits
from aigc_tf.serving.local.predictor import predict_texts
from aigc_tf.serving.modules.classifier_signatures import ClassifierModule, ServingSpec, text_function
from aigc_tf.serving.publishing.classifier_export import export_classifier
from aigc_tf.serving.publishing.publishing import Export
from aigc_tf.serving.publishing.weights_cost import Judge
from aigc_tf.tasks.door import DataFacts, TaskDoor, check_sizes, check_tokenizer, policy_of
from aigc_tf.tasks.weights_cost import compare_weights
from aigc_tf.training.devices.strategy import Devices, build_devices
from aigc_tf.training.step import losses
from aigc_tf.training.task import EvaluationSplit, Task

_EXPORT_SAMPLES = 32
"""Examples of the data on which an exported model must answer like the trained one, besides hostile texts."""


def classify(config: ExperimentConfig, prepared: PreparedDataset, devices: Devices) -> Task:
    """A text classifier: single texts or pairs; classes, several labels, or a number."""
    check_sizes(config, prepared, devices)
    check_tokenizer(config, prepared)
    tokenizer = load_tokenizer(prepared.tokenizer_folder)
    packing = build_packing(tokenizer, max_length=config.data.max_length, truncation=config.data.truncation)
    order, train, bucket_lengths = _training_rows(config, prepared, packing)
    problem_type, label_names = prepared.problem_type, prepared.label_names

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

    table = _class_weights(config, prepared)

    def row_losses(labels: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        values = losses.classification_losses(
            labels,
            logits,
            problem_type=problem_type,
            label_smoothing=config.training.loss.label_smoothing,
            z_loss=config.training.loss.z_loss,
        )
        return values, losses.class_weights(labels, table)

    def classification_losses(model: keras.Model, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        logits = model(classifier.model_inputs(model, batch), training=True)
        values, class_weights = row_losses(batch["labels"], logits)
        return values, batch["weights"] * class_weights

    def packed_losses(model: keras.Model, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        labels, weights = batch["labels"], batch["weights"]  # (B, M, ...) and (B, M)
        labels = tf.reshape(labels, [-1, *labels.shape[2:]])
        values, class_weights = row_losses(labels, packed_logits(model, batch, training=True))
        return tf.reshape(values, tf.shape(weights)), weights * tf.reshape(class_weights, tf.shape(weights))

    def observe(model: keras.Model, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        logits = model(classifier.model_inputs(model, batch), training=False)
        return {"logits": tf.cast(logits, tf.float32), "labels": batch["labels"], "weights": batch["weights"]}

    def score(rows: dict[str, np.ndarray]) -> dict[str, Any]:
        return classification.classification_metrics(
            rows["labels"], rows["logits"], problem_type=problem_type, label_names=label_names
        )

    return Task(
        build_model=build_model,
        losses=packed_losses if config.data.packing else classification_losses,
        observe=observe,
        order=order,
        train=train,
        evaluations=_evaluations(config, prepared, packing, bucket_lengths, devices, score=score),
        best_metric=classification.best_metric(problem_type, config.evaluation.best_metric),
        data_sha256=prepared.sha256,
        judged_weights=config.evaluation.weights,
        blocks=repeated_blocks,
    )


def _training_rows(
    config: ExperimentConfig, prepared: PreparedDataset, packing: Packing
) -> tuple[TrainingOrder | PackedOrder, ExampleSource, np.ndarray]:
    """Returns the order of the training split, the source of its batches, and padded lengths that suit its examples."""
    split, size, is_pair = prepared.splits["train"], config.training.global_batch_size, prepared.is_pair
    lengths = model_lengths(split.lengths, packing, is_pair=is_pair)
    seed, num_buckets = config.training.seed, config.data.num_buckets
    if config.data.packing:
        packed = PackedOrder(lengths, length=packing.max_length, seed=seed, global_batch_size=size)
        rows = PackedExampleSource(
            split,
            packed.batch,
            packing,
            is_pair=is_pair,
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
    source = ExampleSource(split, order.batch, packing, is_pair=is_pair, global_batch_size=size)
    return order, source, order.bucket_lengths


def _evaluations(
    config: ExperimentConfig,
    prepared: PreparedDataset,
    packing: Packing,
    bucket_lengths: np.ndarray,
    devices: Devices,
    *,
    score: Callable[[dict[str, np.ndarray]], dict[str, Any]],
) -> dict[str, EvaluationSplit]:
    length = config.data.max_length if devices.static_shapes else None  # one shape, one compilation
    if length:
        bucket_lengths = np.array([length])
    size = config.evaluation.batch_size
    evaluations = {}
    for name in ("validation", "test"):
        split = prepared.splits.get(name)
        if split is None or not split.num_examples:
            continue
        lengths = model_lengths(split.lengths, packing, is_pair=prepared.is_pair)
        batches = evaluation_batches(lengths, batch_size=size, bucket_lengths=bucket_lengths)
        source = ExampleSource(split, batches.__getitem__, packing, is_pair=prepared.is_pair, global_batch_size=size)
        evaluations[name] = EvaluationSplit(source=source, num_batches=len(batches), score=score, length=length)
    return evaluations


def _class_weights(config: ExperimentConfig, prepared: PreparedDataset) -> tuple[float, ...]:
    given = config.training.loss.class_weights
    if given and len(given) != len(prepared.label_names):
        raise InputError(
            f"training.loss.class_weights has {len(given)} numbers, but the data have {len(prepared.label_names)} "
            "labels: "
            f"{', '.join(prepared.label_names)}; give one weight for each, in this order."
        )
    if not config.training.loss.balance_classes:
        return given
    counts = np.bincount(prepared.splits["train"].all_labels(), minlength=len(prepared.label_names))
    return tuple((counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist())


def _serving_spec(config: ExperimentConfig, facts: DataFacts) -> ServingSpec:
    return ServingSpec(
        label_names=facts.label_names,
        problem_type=facts.problem_type,
        is_pair=facts.is_pair,
        max_length=config.data.max_length,
        truncation=config.data.truncation,
        label_separator=config.data.label_separator,
    )


def export_classification(
    model: keras.Model,
    config: ExperimentConfig,
    facts: DataFacts,
    *,
    prepared: PreparedDataset | None,
    source: dict[str, Any],
) -> Export:
    """Exports a trained classifier; where its data are at hand, a few of their examples are tried on it."""
    tokenizer = load_tokenizer(facts.tokenizer_folder)
    samples: list[tuple[str, ...]] = []
    if prepared is not None:
        split = prepared.splits.get("test", prepared.splits["train"])
        rows = split.rows(np.arange(min(_EXPORT_SAMPLES, split.num_examples)))
        samples = [tuple(tokenizer.decode(part) for part in row[: 1 + facts.is_pair]) for row in rows]
    return export_classifier(
        model,
        tokenizer,
        _serving_spec(config, facts),
        directory=config.export.directory,
        name=config.name,
        dtype=config.export.dtype,
        target=config.export.target,
        batch_sizes=config.export.batch_sizes,
        weights=config.export.weights,
        judge=None if prepared is None or config.export.weights == "float32" else _judge(config, prepared),
        samples=samples,
        source=source,
    )


def _judge(config: ExperimentConfig, prepared: PreparedDataset) -> Judge | None:
    """Returns what judges smaller weights on the validation data, None where there are none."""
    task = classify(config, prepared, build_devices("none"))
    if "validation" not in task.evaluations:
        return None
    split, metric = task.evaluations["validation"], task.best_metric[0]

    def judge(full: keras.Model, small: keras.Model) -> dict[str, Any]:
        compared = compare_weights(
            (full, small),
            split,
            logits_of=lambda model, batch: tf.cast(
                model(classifier.model_inputs(model, batch), training=False), tf.float32
            ),
            observe=lambda logits, batch: {"logits": logits, "labels": batch["labels"]},
            score=lambda rows: split.score(rows)[metric],
        )
        return {"split": "validation", "metric": metric, **compared}

    return judge


def answer_classification(
    model: keras.Model, config: ExperimentConfig, facts: DataFacts, rows: Iterable[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """Answers texts, or pairs of texts, with a trained classifier, by the functions that an export publishes."""
    module = ClassifierModule(model, load_tokenizer(facts.tokenizer_folder), _serving_spec(config, facts))
    first, second = itertools.tee(rows)
    return predict_texts(
        text_function(module),
        (text for text, _ in first),
        (text_b for _, text_b in second) if facts.is_pair else None,
        label_names=facts.label_names,
        problem_type=facts.problem_type,
        batch_size=config.evaluation.batch_size,
    )


def draw_confusions(metrics: dict[str, Any], facts: DataFacts) -> dict[str, np.ndarray]:
    """Draws the confusion matrix where there is one."""
    if "confusion_matrix" not in metrics:
        return {}
    matrix = np.array(metrics["confusion_matrix"])
    return {"confusion_matrix": classification.plot_confusion_matrix(matrix, facts.label_names)}


DOOR = TaskDoor(
    build=classify,
    describe=classifier.describe_classifier,
    rebuild=classifier.rebuild_classifier,
    export=export_classification,
    answer=answer_classification,
    draw=draw_confusions,
    ask_script="predict.py --text",
    unit="examples",
    rate="examples_per_second",
)
