"""What is known of a task before TensorFlow is imported: its name, the config it reads, how it is asked.

Standard library only, and so are the modules `spec` of the tasks, so that the command line, the checks of a config, a
sweep and a deployment know a task at once.
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
    """Name of the script that asks it, without `.py`."""
    inputs: tuple[str, ...]
    """Fields of one question, in order, such as `("text", "text_b")`. Each is a flag of the script and a column of
    a file of questions; the column of `prompt` is called `text`."""
    takes_settings: bool = False
    """Whether a question takes the fields of `GenerationConfig` as flags."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task, as far as it is known without TensorFlow."""

    name: str
    sections: tuple[str, ...]
    """The top-level sections of the config that it reads. Others are not printed, and are refused when set."""
    schema: Callable[[ExperimentConfig], Schema]
    """The columns of its prepared data."""
    check: Callable[[ExperimentConfig], None]
    """Refuses fields that do not fit the task; called by `tasks.check_config` after `checks.validate`."""
    metrics: Callable[[ExperimentConfig], Mapping[str, int]]
    """Metrics that can name the best checkpoint -> 1 where more is better, else -1. The first is the default."""
    ask: AskSpec
    latency_seconds: float
    """What a rendered deployment takes as an acceptable latency of one request."""
    timeout_seconds: float
    """After that a rendered deployment gives a request up."""
    load: Callable[[], Any]
    """Returns the task's `TaskDoor`; imports TensorFlow."""

    def asked_inputs(self, config: ExperimentConfig) -> tuple[str, ...]:
        """Returns the inputs that a model of this config takes: those that its examples have too, else the first."""
        columns = {column.name for column in self.schema(config).columns}
        return tuple(name for name in self.ask.inputs if name in columns) or self.ask.inputs[:1]

    def manifest_facts(self) -> dict[str, Any]:
        """Returns what the manifest of an exported model keeps: deployment and asking read it there. For JSON."""
        return {
            "task": self.name,
            "ask": dataclasses.asdict(self.ask),
            "latency_seconds": self.latency_seconds,
            "timeout_seconds": self.timeout_seconds,
        }
