"""The task `classify`, as far as it is known without TensorFlow."""

import importlib
from typing import Any

from aigc_tf.config import ExperimentConfig
from aigc_tf.evaluation import classification
from aigc_tf.tasks.spec import AskSpec, TaskSpec


def check(config: ExperimentConfig) -> None:
    """Refuses fields that do not fit the task."""


def metrics(config: ExperimentConfig) -> dict[str, int]:
    return classification.directions(config.data.problem_type)


def load() -> Any:
    return importlib.import_module("aigc_tf.tasks.classify.door").DOOR


SPEC = TaskSpec(
    name="classify",
    sections=("data", "tokenizer", "model", "training", "evaluation", "export", "adapter"),
    check=check,
    metrics=metrics,
    ask=AskSpec(script="predict", inputs=("text", "text_b")),
    latency_seconds=1,
    timeout_seconds=30,
    load=load,
)
