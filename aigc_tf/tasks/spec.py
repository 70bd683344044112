"""The facts of a task that need no TensorFlow: its name, the config it reads, how it is asked.

Standard library only, as are the `spec` modules of the tasks, so that the command line, the checks of a config, a sweep
and a deployment know a task at once.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from aigc_tf.config import ExperimentConfig
from aigc_tf.data.prepared.schema import Schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskSpec:
    """How a trained or exported model of a task is asked."""

    script: str
    """Name of the script that asks its models, without `.py`."""
    inputs: tuple[str, ...]
    """Fields of one question, in order, such as `("text", "text_b")`. Each is a flag of the script and a column of
    a file of questions; the column of `prompt` is called `text`."""
    takes_settings: bool = False
    """Whether a question takes the fields of `GenerationConfig` as flags."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task as known without TensorFlow."""

    name: str
    sections: tuple[str, ...]
    """The top-level sections of the config that it reads. Other sections are not printed, and are refused if set."""
    schema: Callable[[ExperimentConfig], Schema]
    """The columns of its prepared data."""
    check: Callable[[ExperimentConfig], None]
    """Refuses fields that do not fit the task; called by `tasks.check_config` after `checks.validate`."""
    metrics: Callable[[ExperimentConfig], Mapping[str, int]]
    """Metrics that can choose the best checkpoint -> 1 if more is better, else -1. The first is the default."""
    ask: AskSpec
    latency_seconds: float
    """The latency of a request above which a rendered deployment alerts."""
    timeout_seconds: float
    """The time after which a rendered deployment gives up a request."""
    load: Callable[[], Any]
    """Returns the task's `TaskDoor`; imports TensorFlow."""

    def asked_inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        """Returns the inputs that a model of this config takes: those that its examples have too, else the first."""
        columns = {column.name for column in self.schema(config).columns}
        return tuple(name for name in self.ask.inputs if name in columns) or self.ask.inputs[:1]

    def manifest_facts(self) -> dict[str, Any]:
        """Returns the facts for the manifest of an export, where deployment and asking read them. For JSON."""
        return {
            "task": self.name,
            "ask": dataclasses.asdict(self.ask),
            "latency_seconds": self.latency_seconds,
            "timeout_seconds": self.timeout_seconds,
        }
