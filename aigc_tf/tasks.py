"""Wires the rooms: for each task how it trains, exports and answers. Nothing else wires them.

To add a task: its functions here, an entry in `TASKS`, a config, a test.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.config import ExperimentConfig, InputError
from aigc_tf.data.batches import BatchSource, Packing, model_lengths
from aigc_tf.data.order import TrainingOrder, evaluation_batches
from aigc_tf.data.prepared import PreparedDataset
from aigc_tf.data.samples import resolve_sample
from aigc_tf.data.tokenizers import Tokenizer, load_tokenizer
from aigc_tf.evaluation import classification
from aigc_tf.models import classifier
from aigc_tf.serving.export import Export, export_classifier
from aigc_tf.serving.predictor import predict_texts
from aigc_tf.serving.signatures import ClassifierModule, ServingSpec, text_function
from aigc_tf.training import losses
from aigc_tf.training.loop import EvaluationSplit, Task
from aigc_tf.training.strategy import Devices

_EXPORT_SAMPLES = 32
"""Examples of the data on which an exported model must answer like the trained one, besides hostile texts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a trained model has to know of the data it was trained on. A run folder keeps it, so it needs no data."""

    label_names: tuple[str, ...]
    """Sorted; empty for regression."""
    problem_type: str
    """One of config.PROBLEM_TYPES."""
    is_pair: bool
    """Whether an example has two texts."""
    sha256: str
    """Hash of the prepared data set."""
    tokenizer_folder: str
    """Where `load_tokenizer` finds the tokenizer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskDoor:
    """The functions by which a task enters the commands."""

    build: Callable[[ExperimentConfig, PreparedDataset, Devices], Task]
    """What the training loop needs."""
    export: Callable[..., Export]
    """Trained model -> SavedModel."""
    answer: Callable[..., Iterator[dict[str, Any]]]
    """Trained model, texts -> one JSON-able answer a text."""
    draw: Callable[[dict[str, Any], DataFacts], dict[str, np.ndarray]]
    """Metrics of an evaluation -> pictures by tag, `(H, W, 3)` uint8."""


def classify(config: ExperimentConfig, prepared: PreparedDataset, devices: Devices) -> Task:
    """A text classifier: single texts or pairs; classes, several labels, or a number."""
    _check_sizes(config, prepared, devices)
    tokenizer = load_tokenizer(prepared.tokenizer_folder)
    packing = _packing(config, tokenizer)
    split = prepared.splits["train"]
    order = TrainingOrder(
        model_lengths(split.lengths, packing, is_pair=prepared.is_pair),
        seed=config.training.seed,
        global_batch_size=config.training.global_batch_size,
        num_buckets=config.data.num_buckets,
        run_length=config.data.bucket_run_length,
    )
    problem_type, label_names = prepared.problem_type, prepared.label_names

    def build_model() -> keras.Model:
        return classifier.build_classifier(
            dataclasses.replace(config.model, source=resolve_sample(config.model.source)),
            num_outputs=len(label_names) or 1,
            vocabulary_size=tokenizer.vocabulary_size,
            max_length=config.data.max_length,
            dtype="mixed_bfloat16" if config.training.precision == "bfloat16" else "float32",
            seed=config.training.seed,
        )

    table = _class_weights(config, prepared)

    def classification_losses(
        model: keras.Model, batch: dict[str, tf.Tensor], training: bool
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        logits = model(classifier.model_inputs(model, batch), training=training)
        values = losses.classification_losses(
            batch["labels"],
            logits,
            problem_type=problem_type,
            label_smoothing=config.training.label_smoothing if training else 0.0,
        )
        return values, batch["weights"] * losses.class_weights(batch["labels"], table), logits

    return Task(
        build_model=build_model,
        losses=classification_losses,
        order=order,
        train=BatchSource(
            split,
            order.batch,
            packing,
            is_pair=prepared.is_pair,
            global_batch_size=config.training.global_batch_size,
        ),
        evaluations=_evaluations(config, prepared, packing, order.bucket_lengths, devices),
        score=functools.partial(
            classification.classification_metrics, problem_type=problem_type, label_names=label_names
        ),
        best_metric=classification.best_metric(problem_type, config.evaluation.best_metric),
        data_sha256=prepared.sha256,
    )


def _check_sizes(config: ExperimentConfig, prepared: PreparedDataset, devices: Devices) -> None:
    """Refuses at once what would fail at the first step or evaluation."""
    sizes = {
        "training.global_batch_size": config.training.global_batch_size,
        "evaluation.batch_size": config.evaluation.batch_size,
    }
    for name, size in sizes.items():
        if size % devices.num_replicas:
            raise InputError(
                f"{name} is {size}, which cannot be split evenly over {devices.num_replicas} replicas; "
                f"take a multiple of {devices.num_replicas}."
            )
    if config.training.early_stopping_patience and "validation" not in prepared.splits:
        raise InputError(
            "training.early_stopping_patience counts evaluations on the validation split, but the data have none; "
            "set it to 0 or prepare the data with a validation split."
        )


def _packing(config: ExperimentConfig, tokenizer: Tokenizer) -> Packing:
    return Packing(
        start_ids=tokenizer.start_ids,
        between_ids=tokenizer.between_ids,
        end_ids=tokenizer.end_ids,
        padding_id=tokenizer.padding_id,
        max_length=config.data.max_length,
        truncation=config.data.truncation,
    )


def _evaluations(
    config: ExperimentConfig,
    prepared: PreparedDataset,
    packing: Packing,
    bucket_lengths: np.ndarray,
    devices: Devices,
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
        source = BatchSource(split, batches.__getitem__, packing, is_pair=prepared.is_pair, global_batch_size=size)
        evaluations[name] = EvaluationSplit(source=source, num_batches=len(batches), length=length)
    return evaluations


def _class_weights(config: ExperimentConfig, prepared: PreparedDataset) -> tuple[float, ...]:
    given = config.training.class_weights
    if given and len(given) != len(prepared.label_names):
        raise InputError(
            f"training.class_weights has {len(given)} numbers, but the data have {len(prepared.label_names)} labels: "
            f"{', '.join(prepared.label_names)}; give one weight for each, in this order."
        )
    if not config.training.balance_classes:
        return given
    counts = np.bincount(prepared.splits["train"].all_labels(), minlength=len(prepared.label_names))
    return tuple((counts.sum() / (len(counts) * np.maximum(counts, 1))).tolist())


def facts_of(prepared: PreparedDataset) -> DataFacts:
    """Reads the facts off a prepared data set."""
    return DataFacts(
        label_names=tuple(prepared.label_names),
        problem_type=prepared.problem_type,
        is_pair=prepared.is_pair,
        sha256=prepared.sha256,
        tokenizer_folder=str(prepared.tokenizer_folder),
    )


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
        samples=samples,
        source=source,
    )


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


TASKS: dict[str, TaskDoor] = {
    "classify": TaskDoor(
        build=classify,
        export=export_classification,
        answer=answer_classification,
        draw=draw_confusions,
    )
}
