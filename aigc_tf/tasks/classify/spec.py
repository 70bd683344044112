"""The task `classify`, as known without TensorFlow."""

import importlib
from collections.abc import Mapping
from typing import Any

from aigc_tf.config import DataConfig, ExperimentConfig
from aigc_tf.config.checks import check_columns
from aigc_tf.data.prepared.schema import Column, Schema
from aigc_tf.errors import InputError
from aigc_tf.evaluation.best_metric import CLASSIFICATION
from aigc_tf.tasks.spec import AskSpec, TaskSpec

TEXT, TEXT_B, LABEL = "text", "text_b", "label"
"""The columns of an example; pairs have the second text."""


def schema(config: ExperimentConfig) -> Schema:
    """Returns the columns: one or two texts, and the label."""
    data = config.data
    texts = [Column(TEXT, data.text_column, "tokenizer")]
    if data.text_b_column:
        texts.append(Column(TEXT_B, data.text_b_column, "tokenizer"))
    names = tuple(column.name for column in texts)
    columns = (*texts, Column(LABEL, data.label_column, "label"))
    return Schema(columns=columns, split_by=names, size_columns=names, tokenizer_kind="wordpiece")


def check(config: ExperimentConfig) -> None:
    """Refuses fields that do not fit the task."""
    check_columns(config.data, "text_column", "text_b_column", "label_column")
    _check_labels(config.data)
    _check_class_weights(config)
    problem_type, loss = config.data.problem_type, config.training.loss
    if loss.label_smoothing and problem_type == "regression":
        raise InputError(
            "training.loss.label_smoothing has no meaning for data.problem_type 'regression'; set it to 0."
        )
    if loss.z_loss and problem_type != "single_label":
        raise InputError(
            f"training.loss.z_loss needs a softmax, which data.problem_type {problem_type!r} lacks; set it to 0."
        )
    if config.adapter.enabled and config.adapter.kind == "prefix":
        raise InputError("adapter.kind 'prefix' is for task 'generate', received task 'classify'; take 'lora'.")


def _check_labels(data: DataConfig) -> None:
    thresholds = data.label_thresholds
    if thresholds:
        if data.problem_type != "single_label":
            raise InputError(
                f"data.label_thresholds make classes; data.problem_type {data.problem_type!r} must be 'single_label'."
            )
        if list(thresholds) != sorted(set(thresholds)):
            raise InputError(f"data.label_thresholds must ascend, received {thresholds}.")
        if len(data.label_names) != len(thresholds) + 1:
            raise InputError(
                f"{len(thresholds)} data.label_thresholds make {len(thresholds) + 1} classes, "
                f"but data.label_names has {len(data.label_names)}; name each range, lowest first."
            )
    if len(set(data.label_names)) != len(data.label_names):
        raise InputError(f"data.label_names repeats a name: {data.label_names}.")
    if data.label_names and data.problem_type == "regression":
        raise InputError("data.label_names has no meaning for data.problem_type 'regression'; remove it.")
    if data.label_margin and not thresholds:
        raise InputError("data.label_margin is a distance to data.label_thresholds, which is empty.")


def _check_class_weights(config: ExperimentConfig) -> None:
    weights, is_balanced = config.training.loss.class_weights, config.training.loss.balance_classes
    if weights and (min(weights) < 0 or not any(weights)):
        raise InputError(
            f"training.loss.class_weights is {weights}; weights are 0 or more, and at least one is above 0."
        )
    if weights and is_balanced:
        raise InputError(
            "training.loss.class_weights and training.loss.balance_classes both weight the classes; set one of them."
        )
    if (weights or is_balanced) and config.data.problem_type != "single_label":
        raise InputError(
            f"Class weights fit data.problem_type 'single_label', received {config.data.problem_type!r}; remove them."
        )


def metrics(config: ExperimentConfig) -> Mapping[str, int]:
    return CLASSIFICATION[config.data.problem_type]


def load() -> Any:
    return importlib.import_module("aigc_tf.tasks.classify.door").DOOR


SPEC = TaskSpec(
    name="classify",
    sections=("data", "tokenizer", "model", "training", "evaluation", "export", "adapter"),
    check=check,
    schema=schema,
    metrics=metrics,
    ask=AskSpec(script="predict", inputs=("text", "text_b")),
    latency_seconds=1,
    timeout_seconds=30,
    load=load,
)
