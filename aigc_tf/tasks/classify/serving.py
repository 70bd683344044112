"""How the task `classify` is served: its export, and the picture of its metrics."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.config import ExperimentConfig
from aigc_tf.data.encoders.labels import LabelEncoder
from aigc_tf.data.prepared.facts import DataFacts
from aigc_tf.data.prepared.prepared import PreparedDataset
from aigc_tf.evaluation.confusion_matrix import plot_confusion_matrix
from aigc_tf.models.classifiers import classifier
from aigc_tf.serving.modules.classifier_signatures import ServingSpec
from aigc_tf.serving.publishing.classifier_servable import classifier_servable
from aigc_tf.serving.publishing.servable import Servable
from aigc_tf.serving.publishing.weights_cost import Judge
from aigc_tf.tasks.classify.spec import LABEL, TEXT
from aigc_tf.tasks.classify.training import classify
from aigc_tf.tasks.weights_cost import compare_weights
from aigc_tf.training.devices.strategy import build_devices

_EXPORT_SAMPLES = 32
"""Examples of the data on which an exported model must answer like the trained one, besides hostile texts."""


def serving_spec(config: ExperimentConfig, facts: DataFacts) -> ServingSpec:
    """Returns what a classifier's answers mean."""
    label: LabelEncoder = facts.encoder(LABEL)
    return ServingSpec(
        label_names=label.names,
        problem_type=label.problem_type,
        is_pair=len(facts.schema.text_names) == 2,
        max_length=config.data.max_length,
        truncation=config.data.truncation,
        label_separator=config.data.label_separator,
    )


def classification_servable(
    model: keras.Model, config: ExperimentConfig, facts: DataFacts, *, prepared: PreparedDataset | None
) -> Servable:
    """Prepares a trained classifier to be published; it is tried on a few examples if the data are available."""
    tokenizer = facts.encoder(TEXT)
    samples: list[tuple[str, ...]] = []
    if prepared is not None:
        split = prepared.splits.get("test", prepared.splits["train"])
        ids = np.arange(min(_EXPORT_SAMPLES, split.num_examples))
        columns = [split.column(name).rows(ids) for name in facts.schema.text_names]
        samples = [tuple(tokenizer.decode(part) for part in row) for row in zip(*columns, strict=True)]
    return classifier_servable(
        model,
        tokenizer,
        serving_spec(config, facts),
        dtype=config.export.dtype,
        weights=config.export.weights,
        judge=None if prepared is None or config.export.weights == "float32" else _judge(config, prepared),
        samples=samples,
    )


def _judge(config: ExperimentConfig, prepared: PreparedDataset) -> Judge | None:
    """Returns the comparison of smaller weights on the validation data; None without such data."""
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
            accumulator=split.accumulator,
            metric=metric,
        )
        return {"split": "validation", "metric": metric, **compared}

    return judge


def draw_confusions(metrics: dict[str, Any], facts: DataFacts) -> dict[str, np.ndarray]:
    """Draws the confusion matrix, if there is one."""
    if "confusion_matrix" not in metrics:
        return {}
    matrix = np.array(metrics["confusion_matrix"])
    return {"confusion_matrix": plot_confusion_matrix(matrix, facts.encoder(LABEL).names)}
