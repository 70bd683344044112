"""The tasks, each with how it trains, exports and answers. No other place names a task.

To add a task: a folder here with a `spec` and a `door`, its entry in `TASKS`, a config, a test, a page in docs.
"""

import dataclasses

from aigc_tf.config import ExperimentConfig
from aigc_tf.config.checks import check_unread, validate
from aigc_tf.config.fields import table
from aigc_tf.errors import InputError, nearest
from aigc_tf.evaluation.best_metric import best_metric
from aigc_tf.tasks.classify import spec as classify
from aigc_tf.tasks.generate import spec as generate
from aigc_tf.tasks.spec import TaskSpec

TASKS: dict[str, TaskSpec] = {spec.name: spec for spec in (classify.SPEC, generate.SPEC)}

__all__ = ["TASKS", "TaskSpec", "check_config", "shown_config", "spec_of"]


def spec_of(config: ExperimentConfig) -> TaskSpec:
    """Returns the task of a config.

    Raises:
        InputError: If there is no such task.
    """
    if config.task not in TASKS:
        came = f"is {config.task!r}" if config.task else "is missing"
        raise InputError(f"task {came}; it is one of {', '.join(TASKS)}.{nearest(config.task.lower(), TASKS)}")
    return TASKS[config.task]


def check_config(config: ExperimentConfig) -> None:
    """Checks a whole config, for every task and for its own. Every command calls this check.

    Raises:
        InputError: One sentence that names the field, its value and what fits.
    """
    validate(config)
    spec = spec_of(config)
    check_unread(
        config,
        [f"{name}." for name in _sections(config) if name not in spec.sections],
        f"task {spec.name!r} does not read that section; leave it out.",
    )
    spec.check(config)
    best_metric(spec.metrics(config), config.evaluation.best_metric)


def shown_config(config: ExperimentConfig) -> str:
    """Returns the config as a table, without the sections that its task does not read."""
    sections = spec_of(config).sections
    return table(config, leave_out=[name for name in _sections(config) if name not in sections])


def _sections(config: ExperimentConfig) -> list[str]:
    fields = dataclasses.fields(config)
    return [field.name for field in fields if dataclasses.is_dataclass(getattr(config, field.name))]
