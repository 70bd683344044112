"""Evaluates a run's weights on its validation and test data."""

from collections.abc import Callable
from typing import Any

import keras

from aigc_tf import storage
from aigc_tf.commands.runs import (
    config_of_run,
    door_of,
    load_model,
    open_prepared_of,
)
from aigc_tf.config import ExperimentConfig
from aigc_tf.data.prepared.facts import read_facts
from aigc_tf.errors import InputError
from aigc_tf.evaluation import report
from aigc_tf.tasks.door import policy_of
from aigc_tf.training import checkpoints
from aigc_tf.training.devices import strategy
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.evaluator import Evaluator
from aigc_tf.training.task import Task


def evaluate(workdir: str, *, config: ExperimentConfig | None = None, checkpoint: str = "best") -> None:
    """Evaluates a run's weights on its validation and test data, and updates the metrics of its report."""
    config = config_of_run(workdir, config)
    # One device, whatever the run trained on: metrics do not depend on the number of replicas.
    devices = strategy.build_devices("none")
    prepared = open_prepared_of(config)
    if prepared.sha256 != read_facts(workdir).sha256:
        raise InputError(
            f"The prepared data {prepared.folder} are not those of the run {workdir}, so its report would mix two "
            "data sets; prepare the same data again."
        )
    # Evaluation updates a report and cannot write one: speed and memory are those of the training.
    last_step = checkpoints.load_named(workdir, "last").step
    if reported_step(workdir) != last_step:
        raise InputError(
            f"The run {workdir} is not finished: it has {last_step} steps and no report on them. "
            "The command that trained it resumes it."
        )
    task = door_of(config).build(config, prepared, devices)
    model, step = load_model(workdir, config, checkpoint=checkpoint, dtype=policy_of(config.training.devices.precision))
    written = report.update_metrics(workdir, judge(task, model, devices, config, step=step))
    report.print_report(written, workdir=workdir)


def judge(
    task: Task,
    model: keras.Model,
    devices: Devices,
    config: ExperimentConfig,
    *,
    step: int,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, Any]]:
    """Evaluates every split; the result names the step of the weights."""
    jit = config.training.devices.jit == "on"
    evaluator = Evaluator(model, task, devices=devices, jit=jit, stop_requested=stop_requested)
    return {split: {"step": step} | evaluator.evaluate(split) for split in task.evaluations}


def reported_step(workdir: str) -> int | None:
    """Returns the step that report.json describes; None without a report."""
    if not storage.exists(storage.join(workdir, report.REPORT_NAME)):
        return None
    try:
        return int(report.read_report(workdir)["steps"])
    except InputError:
        return None  # damaged or from another version: it is written again
