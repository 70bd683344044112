"""The task `generate`, as far as it is known without TensorFlow."""

import importlib
from typing import Any

from aigc_tf.config import ExperimentConfig
from aigc_tf.evaluation import language_model
from aigc_tf.tasks.spec import AskSpec, TaskSpec


def check(config: ExperimentConfig) -> None:
    """Refuses fields that do not fit the task."""


def metrics(config: ExperimentConfig) -> dict[str, int]:
    return dict(language_model.DIRECTIONS)


def load() -> Any:
    return importlib.import_module("aigc_tf.tasks.generate.door").DOOR


SPEC = TaskSpec(
    name="generate",
    sections=("data", "tokenizer", "model", "training", "evaluation", "generation", "export", "adapter"),
    check=check,
    metrics=metrics,
    ask=AskSpec(script="generate", inputs=("prompt",), takes_settings=True),
    latency_seconds=30,
    timeout_seconds=120,
    load=load,
)
