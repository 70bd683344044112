"""The task `generate`, as known without TensorFlow."""

import importlib
from collections.abc import Mapping
from typing import Any

from aigc_tf.config import ExperimentConfig
from aigc_tf.config.checks import check_columns, check_unread
from aigc_tf.data.prepared.schema import Column, Schema
from aigc_tf.errors import InputError
from aigc_tf.evaluation.best_metric import LANGUAGE_MODEL
from aigc_tf.tasks.spec import AskSpec, TaskSpec

_OF_LABELS_AND_CUTS = (
    "data.label_column",
    "data.problem_type",
    "data.label_names",
    "data.label_separator",
    "data.label_thresholds",
    "data.label_margin",
    "data.truncation",
    "training.loss.class_weights",
    "training.loss.balance_classes",
)

TEXT, RESPONSE = "text", "response"
"""The columns of an example: a document, or a prompt and its response."""


def schema(config: ExperimentConfig) -> Schema:
    """Returns the columns: a document, which is learnt whole, or a prompt and its response, which alone is learnt."""
    data, text = config.data, Column(TEXT, config.data.text_column, "tokenizer")
    columns = (text, Column(RESPONSE, data.text_b_column, "tokenizer")) if data.text_b_column else (text,)
    names = tuple(column.name for column in columns)
    return Schema(
        columns=columns,
        split_by=names,
        size_columns=names,
        learnt=names[-1:],
        unit="pair" if data.text_b_column else "document",
        tokenizer_kind="sentencepiece",  # WordPiece does not keep the whole text, so it cannot write text
    )


def check(config: ExperimentConfig) -> None:
    """Refuses fields that do not fit the task."""
    if config.tokenizer.kind == "wordpiece":
        raise InputError("tokenizer.kind is 'wordpiece'; it must be 'sentencepiece' for a generator, which keeps text.")
    check_columns(config.data, "text_column", "text_b_column")
    check_unread(config, _OF_LABELS_AND_CUTS, "task 'generate' has no labels and cuts nothing; leave it out.")
    if config.data.text_b_column and not config.data.packing:
        raise InputError(
            f"data.text_b_column is {config.data.text_b_column!r}, so that an example is a prompt and a response; "
            "these are trained on in packed rows, not in windows: set data.packing to True."
        )


def metrics(config: ExperimentConfig) -> Mapping[str, int]:
    del config  # the same for every config
    return LANGUAGE_MODEL


def load() -> Any:
    return importlib.import_module("aigc_tf.tasks.generate.door").DOOR


SPEC = TaskSpec(
    name="generate",
    sections=("data", "tokenizer", "model", "training", "evaluation", "generation", "export", "adapter"),
    check=check,
    schema=schema,
    metrics=metrics,
    ask=AskSpec(script="generate", inputs=("prompt",), takes_settings=True),
    latency_seconds=30,
    timeout_seconds=120,
    load=load,
)
