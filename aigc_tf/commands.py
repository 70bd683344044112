"""What the scripts do: prepare, train, evaluate, export. The same for every task."""

import contextlib
import math
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from aigc_tf import config as config_module
from aigc_tf import storage
from aigc_tf.config import (
    ExperimentConfig,
    InputError,
    to_json,
)
from aigc_tf.data import preparation
from aigc_tf.data.prepared import PreparedDataset, verify_prepared
from aigc_tf.evaluation import classification, report
from aigc_tf.models.weights import weights_by_path, weights_sha256
from aigc_tf.runs import (
    config_of_run,
    describe_run,
    door_of,
    load_model,
    open_prepared_of,
    read_facts,
    resolve,
    stored_config,
)
from aigc_tf.tasks import DataFacts, TaskDoor, facts_of
from aigc_tf.tasks.door import policy_of
from aigc_tf.training import checkpoints, loop, run_state, strategy
from aigc_tf.training.evaluator import Evaluator
from aigc_tf.training.preemption import stop_requests
from aigc_tf.training.progress import ProgressBar
from aigc_tf.training.step_log import StepLog
from aigc_tf.training.strategy import Devices
from aigc_tf.training.task import Task
from aigc_tf.training.telemetry import Telemetry


def prepare(config: ExperimentConfig, *, overwrite: bool = False) -> None:
    """Makes the prepared data set of an experiment."""
    preparation.prepare(config, overwrite=overwrite)


def train(config: ExperimentConfig, workdir: str, *, dry_run: bool = False) -> None:
    """Trains or continues a run, judges its best weights and writes its report."""
    door = door_of(config)
    devices = strategy.build_devices(config.training.strategy)
    if config.training.deterministic:
        tf.config.experimental.enable_op_determinism()
    # A run that failed before its first checkpoint binds nobody to its config.
    stored = stored_config(workdir) if checkpoints.any_there(workdir) else None
    config = resolve(config, stored, devices)
    keras.utils.set_random_seed(config.training.seed % 2**32)
    prepared = open_prepared_of(config)
    preparation.check_matches(prepared, config)
    task = door.build(config, prepared, devices)
    if dry_run:
        print(config_module.table(config))
        _print_plan(config, task, devices)
        return
    verify_prepared(prepared.folder)
    newest, complaints = checkpoints.load_newest(workdir)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    if newest and _is_finished(newest, config) and _reported_step(workdir) == newest.step:
        print(f"This run is finished: {newest.step} steps are done.")
        report.print_report(report.read_report(workdir), workdir=workdir)
        return
    with contextlib.ExitStack() as stack:
        if devices.is_chief:
            busy = f"Another process trains into {workdir} right now; wait until it is done, or take another --workdir."
            lock = storage.locked_file(storage.join(workdir, ".lock"), busy=busy, advice="Take another --workdir.")
            stack.enter_context(lock)
        _train(config, workdir, task=task, newest=newest, facts=facts_of(prepared), devices=devices)


def _train(
    config: ExperimentConfig,
    workdir: str,
    *,
    task: Task,
    newest: checkpoints.Checkpoint | None,
    facts: DataFacts,
    devices: Devices,
) -> None:
    door = door_of(config)
    state = run_state.build_state(task, config.training, devices)
    if newest:
        run_state.restore(state, newest)
        if devices.is_chief:
            run_state.repair_folder(workdir, state, newest, task)
    if devices.is_chief:
        describe_run(workdir, config, facts, state.model)
    metric, _ = task.best_metric
    with stop_requests() as stop_requested:
        with _Watcher(
            door, config, workdir, resume_step=state.step, devices=devices, facts=facts, metric=metric
        ) as watcher:
            loop.train(
                task,
                config.training,
                workdir,
                state=state,
                devices=devices,
                watcher=watcher,
                stop_requested=stop_requested,
            )
        loop.wait_for_all(devices)
        _finish(config, workdir, task=task, state=state, devices=devices, stop_requested=stop_requested)


def evaluate(workdir: str, *, config: ExperimentConfig | None = None, checkpoint: str = "best") -> None:
    """Judges a run's weights on its validation and test data and refreshes the metrics of its report."""
    config = config_of_run(workdir, config)
    devices = strategy.build_devices("none")
    prepared = open_prepared_of(config)
    if prepared.sha256 != read_facts(workdir).sha256:
        raise InputError(
            f"The prepared data {prepared.folder} are not those of the run {workdir}, so its report would mix two "
            "data sets; prepare the data as they were."
        )
    last_step = checkpoints.load_named(workdir, "last").step
    if _reported_step(workdir) != last_step:
        raise InputError(
            f"The run {workdir} is not finished: it has {last_step} steps and no report of them. "
            "The command that trained it goes on with it."
        )
    task = door_of(config).build(config, prepared, devices)
    model, step = load_model(workdir, config, checkpoint=checkpoint, dtype=policy_of(config.training.precision))
    written = report.update_metrics(workdir, _judge(task, model, devices, config, step=step))
    report.print_report(written, workdir=workdir)


def export(workdir: str, *, config: ExperimentConfig | None = None, checkpoint: str = "best") -> None:
    """Publishes a run's weights as a SavedModel."""
    config = config_of_run(workdir, config)
    door, facts = door_of(config), read_facts(workdir)
    model, step = load_model(workdir, config, checkpoint=checkpoint, dtype=policy_of(config.training.precision))
    source = {
        "run": os.fspath(workdir),
        "checkpoint": checkpoint,
        "step": step,
        "config_sha256": config_module.sha256(config),
        "data_sha256": facts.sha256,
    }
    try:
        prepared: PreparedDataset | None = open_prepared_of(config)
    except InputError as error:
        print(f"Without samples of the data: {error}", file=sys.stderr)
        prepared = None
    if prepared is not None and prepared.sha256 != facts.sha256:
        print("Without samples of the data, which were prepared anew since.", file=sys.stderr)
        prepared = None
    done = door.export(model, config, facts, prepared=prepared, source=source)
    print(done.summary())
    folder = os.path.dirname(done.path)
    print(f'\nAsk it:    python scripts/{door.ask_script.replace(" ", f" --model={folder} ")}="..."')
    print(f"Serve it:  tensorflow_model_server --rest_api_port=8501 --model_name={config.name} \\")
    print(f"               --model_base_path={os.path.abspath(folder)}")


def _is_finished(newest: checkpoints.Checkpoint, config: ExperimentConfig) -> bool:
    return newest.step >= config.training.num_steps or bool(newest.progress.get("stopped_early"))


def _reported_step(workdir: str) -> int | None:
    """Returns the number of steps that report.json is about, or None where there is no report."""
    if not storage.exists(storage.join(workdir, report.REPORT_NAME)):
        return None
    return int(report.read_report(workdir)["steps"])


def _judge(
    task: Task,
    model: keras.Model,
    devices: Devices,
    config: ExperimentConfig,
    *,
    step: int,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, dict[str, Any]]:
    """Evaluates every split and says of which step the weights are."""
    jit = config.training.jit == "on"
    evaluator = Evaluator(model, task, devices=devices, jit=jit, stop_requested=stop_requested)
    return {split: {"step": step} | evaluator.evaluate(split) for split in task.evaluations}


def _finish(
    config: ExperimentConfig,
    workdir: str,
    *,
    task: Task,
    state: run_state.TrainState,
    devices: Devices,
    stop_requested: Callable[[], bool],
) -> None:
    """Judges the best weights on every split and writes the report. Every worker takes part in the evaluation."""
    last_weights = weights_by_path(state.model)
    best = checkpoints.load_named(workdir, "best")
    weights = best.weights_of(config.evaluation.weights)
    checkpoints.assign(state.model.variables, weights, what="weights")
    metrics = _judge(task, state.model, devices, config, step=best.step, stop_requested=stop_requested)
    if not devices.is_chief:
        return
    seconds = state.progress.train_seconds
    written = report.write_report(
        workdir,
        task=config.task,
        config_sha256=config_module.sha256(config),
        weights_sha256=weights_sha256(last_weights),
        steps=state.step,
        train_seconds=seconds,
        examples_per_second=state.step * config.training.global_batch_size / seconds if seconds else None,
        tokens_per_second=state.progress.train_tokens / seconds if seconds else None,
        metrics=metrics,
    )
    report.print_report(written, workdir=workdir)
    ask = door_of(config).ask_script.replace(" ", f" --model={workdir} ")
    print(f"\nLook at it:  tensorboard --logdir={workdir}/logs")
    print(f'Ask it:      python scripts/{ask}="..."')
    print(f"Export it:   python scripts/export.py --workdir={workdir}")


class _Watcher:
    """Tells telemetry and the progress bar what happens in the loop."""

    def __init__(
        self,
        door: TaskDoor,
        config: ExperimentConfig,
        workdir: str,
        *,
        resume_step: int,
        devices: Devices,
        facts: DataFacts,
        metric: str,
    ):
        self._door, self._facts = door, facts
        self._metric = metric
        self._config, self._workdir, self._is_chief = config, workdir, devices.is_chief
        self._telemetry, self._example_ids = self._open(resume_step)
        self._progress = ProgressBar(
            num_steps=config.training.num_steps, first_step=resume_step, rate=door.rate, enabled=devices.is_chief
        )

    def _open(self, resume_step: int) -> tuple[Telemetry, StepLog | None]:
        training = self._config.training
        telemetry = Telemetry(
            self._workdir, resume_step=resume_step, log_every=training.log_every, enabled=self._is_chief
        )
        telemetry.config(to_json(self._config))
        if not training.log_example_ids or not self._is_chief:
            return telemetry, None
        return telemetry, StepLog(storage.join(self._workdir, "example_ids.jsonl"), resume_step=resume_step)

    def __enter__(self) -> "_Watcher":
        self._telemetry.__enter__()
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        if self._example_ids is not None:
            self._example_ids.__exit__(kind, error, trace)
        self._telemetry.__exit__(kind, error, trace)

    def on_start(self, step: int) -> None:
        if step:
            self._progress.note(f"going on after step {step}")

    def on_steps(self, records: list[dict[str, float]]) -> None:
        self._telemetry.record(records)
        self._progress(records[-1])

    def on_evaluation(self, step: int, split: str, metrics: dict[str, Any], seconds: float) -> None:
        scalars = {f"{split}/{name}": value for name, value in classification.scalar_metrics(metrics).items()}
        self._telemetry.scalars(step, scalars | {f"time/{split}_seconds": seconds})
        for name, image in self._door.draw(metrics, self._facts).items():
            self._telemetry.image(step, f"{split}/{name}", image)
        value = metrics[self._metric]
        shown = "undefined" if value is None else f"{value:.4f}"
        self._progress.note(f"step {step}: {split} {self._metric} {shown}, judged in {seconds:.1f} s")

    def on_samples(self, step: int, texts: list[tuple[str, str]]) -> None:
        for number, (prompt, text) in enumerate(texts, start=1):
            # Indented, markdown shows a text as it is; what was given is told from what was generated.
            shown = "\n".join(f"    {line}" for line in f"{prompt}⟩{text}".split("\n"))
            self._telemetry.text(step, f"samples/{number}", shown)
            self._progress.note(f"sample {number} after step {step}:\n{shown}")

    def before_checkpoint(self, step: int) -> None:
        self._telemetry.flush()
        if self._example_ids is not None:
            self._example_ids.flush()

    def on_checkpoint(self, step: int, blocked_seconds: float) -> None:
        self._telemetry.scalars(step, {"time/checkpoint_blocked_seconds": blocked_seconds})

    def on_written(self, step: int, seconds: float) -> None:
        self._telemetry.scalars(step, {"time/checkpoint_seconds": seconds})

    def on_example_ids(self, first_step: int, example_ids: np.ndarray) -> None:
        if self._example_ids is not None:
            for step, ids in enumerate(example_ids.tolist(), start=first_step):
                self._example_ids.add(step, {"example_ids": ids})

    def on_skipped(self, step: int, message: str) -> None:
        self._progress.note(message)

    def on_rollback(self, step: int) -> None:
        self._telemetry.close()
        if self._example_ids is not None:
            self._example_ids.close()
        self._telemetry, self._example_ids = self._open(step)
        self._progress.note(f"went back to what the run was after step {step}")


def _print_plan(config: ExperimentConfig, task: Task, devices: Devices) -> None:
    """Prints what a run would do: parameters, steps, epochs, padded lengths, where it would run."""
    model = task.build_model()
    trainable = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    training, order = config.training, task.order
    examples = training.num_steps * training.global_batch_size
    unit = door_of(config).unit
    table = Table(title=f"Plan of {config.name}", show_header=False, title_justify="left")
    for name, value in {
        "parameters": f"{model.count_params():,} ({trainable:,} trained)",
        f"training {unit}": f"{order.num_examples:,}",
        "steps": f"{training.num_steps:,} of {training.global_batch_size} {unit}, "
        f"{examples / order.num_examples:.2f} epochs",
        "padded lengths": f"{len(order.bucket_lengths)}: {', '.join(map(str, order.bucket_lengths))}",
        "evaluated on": ", ".join(f"{name} ({split.num_batches} batches)" for name, split in task.evaluations.items())
        or "nothing: there is no validation or test split",
        "runs on": f"{devices.num_replicas} replica(s), strategy {devices.name}, {training.precision}, "
        f"XLA {training.jit}",
    }.items():
        table.add_row(name, value)
    Console().print(table)
