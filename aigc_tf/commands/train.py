"""Trains or resumes a run, evaluates its best weights and writes its report. The same for every task."""

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from aigc_tf import __version__, storage
from aigc_tf.commands.evaluate import judge, reported_step
from aigc_tf.commands.runs import (
    describe_run,
    door_of,
    first_start,
    open_prepared_of,
    resolve,
    stored_config,
)
from aigc_tf.commands.watching import RunWatcher, count_step_flops, goodput
from aigc_tf.config import ExperimentConfig
from aigc_tf.config.fields import flatten, sha256
from aigc_tf.config.shell import shell_line
from aigc_tf.data.prepared.facts import DataFacts
from aigc_tf.data.prepared.prepared import verify_prepared
from aigc_tf.data.preparing import preparation
from aigc_tf.errors import RunError
from aigc_tf.evaluation import report
from aigc_tf.models.weights import weights_by_path, weights_sha256
from aigc_tf.tasks import TASKS, shown_config
from aigc_tf.training import checkpoints, loop, run_state
from aigc_tf.training.devices import strategy
from aigc_tf.training.devices.hardware import DeviceKind, named_device
from aigc_tf.training.devices.preemption import stop_requests
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.devices.workers import Workers, joined
from aigc_tf.training.planning import preflight
from aigc_tf.training.task import Task

# Paths on a worker's own host, which may differ between workers.
_PLACES = ("data.prepared_dir", "data.tfds_data_dir", "data.tfds_download", "export.directory")


def train(config: ExperimentConfig, workdir: str, *, dry_run: bool = False, device: str | None = None) -> None:
    """Trains or resumes a run, evaluates its best weights and writes its report.

    Args:
        config: The experiment.
        workdir: The run folder.
        dry_run: Only print what the run would do and need.
        device: With `dry_run`: a device of the hardware table that the run should fit.
    """
    kind = named_device(device) if device else None
    facts = {"the version of aigc_tf": __version__, "the version of TensorFlow": tf.__version__, "--dry_run": dry_run}
    cluster, timeout = strategy.cluster(config.training.devices.strategy), config.training.devices.workers_timeout
    last_step = functools.partial(_last_step, workdir)
    with joined(cluster, facts | _compared(config), timeout=timeout, last_step=last_step) as workers:
        _start(config, workdir, dry_run=dry_run, kind=kind, workers=workers)


def _compared(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the fields that must be equal on all workers."""
    return {name: value for name, value in flatten(config).items() if name not in _PLACES}


def _last_step(workdir: str) -> int:
    """Returns the step of the run's last checkpoint, 0 without one."""
    path = checkpoints.folder_of(workdir, "last.json")
    return int(storage.read_json(path)["step"]) if storage.exists(path) else 0


def _start(config: ExperimentConfig, workdir: str, *, dry_run: bool, kind: DeviceKind | None, workers: Workers) -> None:
    """Trains once all workers are up."""
    door = door_of(config)
    with workers.connecting():
        devices = strategy.build_devices(config.training.devices.strategy)
    if config.training.devices.deterministic:
        tf.config.experimental.enable_op_determinism()
    # A run that failed before its first checkpoint may start again with another config.
    stored = stored_config(workdir) if checkpoints.any_there(workdir) else None
    config = resolve(config, stored, devices)
    keras.utils.set_random_seed(config.training.seed % 2**32)
    prepared = open_prepared_of(config)
    preparation.check_matches(prepared, config)
    preparation.check_schema(prepared, TASKS[config.task].schema(config))
    task = door.build(config, prepared, devices)
    if dry_run:
        print(shown_config(config))
        _print_plan(config, task, devices, kind)
        return
    # Reads all data once: a damaged file would otherwise change what the model learns, and nobody would notice.
    verify_prepared(prepared.folder)
    with contextlib.ExitStack() as stack:
        if devices.is_chief:  # locked before reading checkpoints, since another process may be writing its last one
            busy = f"Another process trains into {workdir} right now; wait until it is done, or take another --workdir."
            lock = storage.locked_file(storage.join(workdir, ".lock"), busy=busy, advice="Take another --workdir.")
            stack.enter_context(lock)
        newest, complaints = checkpoints.load_newest(workdir)
        for complaint in complaints:
            print(complaint, file=sys.stderr)
        last_step = newest.step if newest else 0
        facts = {"the prepared data's sha256": prepared.sha256, "the last checkpoint's step": last_step}
        workers.compare(facts | _compared(config))
        if newest and _is_finished(newest, config) and reported_step(workdir) == newest.step:
            print(f"This run is finished: {newest.step} steps are done.")
            progress = run_state.progress_of(newest)
            if progress.stopped_early and newest.step < config.training.num_steps:
                print(f"It {run_state.early_stop(progress, newest.step, task.best_metric)}.")
            report.print_report(report.read_report(workdir), workdir=workdir)
            return
        _train(config, workdir, task=task, newest=newest, facts=prepared.facts, devices=devices)


def _train(
    config: ExperimentConfig,
    workdir: str,
    *,
    task: Task,
    newest: checkpoints.Checkpoint | None,
    facts: DataFacts,
    devices: Devices,
) -> None:
    state = run_state.build_state(task, config.training, devices)
    # On every worker: if only the chief refused a network, the others would wait for it forever.
    flops = count_step_flops(preflight.trace_step(task, state.model, devices), task)
    if newest:
        run_state.restore(state, newest)
        run_state.forget_lost_best(workdir, state)
        if devices.is_chief:
            run_state.repair_folder(workdir, state, newest, task)
    if devices.is_chief:
        describe_run(workdir, config, facts, state.model)
    started = first_start(workdir, goes_on=newest is not None) if devices.is_chief else None
    with stop_requests() as stop_requested:
        with RunWatcher(
            config, workdir, task=task, state=state, devices=devices, facts=facts, flops=flops, started=started
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
        # All workers read the best checkpoint below, so they wait here until the chief has written it.
        loop.agree(devices)
        _finish(
            config, workdir, task=task, state=state, devices=devices, started=started, stop_requested=stop_requested
        )


def _is_finished(newest: checkpoints.Checkpoint, config: ExperimentConfig) -> bool:
    return newest.step >= config.training.num_steps or bool(newest.progress.get("stopped_early"))


def _finish(
    config: ExperimentConfig,
    workdir: str,
    *,
    task: Task,
    state: run_state.TrainState,
    devices: Devices,
    started: float | None,
    stop_requested: Callable[[], bool],
) -> None:
    """Evaluates the best weights on every split and writes the report. Every worker takes part in the evaluation."""
    # Hashed below: the best weights overwrite them in the same variables.
    last_weights = weights_by_path(state.model)
    try:
        best = checkpoints.load_named(workdir, "best")
    except RunError as error:  # a broken best checkpoint must not lose the run
        print(f"{error} Evaluating the last weights instead.", file=sys.stderr)
        best = checkpoints.load_named(workdir, "last")
    weights = best.weights_of(config.evaluation.weights)
    checkpoints.assign(state.model.variables, weights, what="weights")
    metrics = judge(task, state.model, devices, config, step=best.step, stop_requested=stop_requested)
    if not devices.is_chief:
        return
    seconds = state.progress.train_seconds
    written = report.write_report(
        workdir,
        task=config.task,
        config_sha256=sha256(config),
        weights_sha256=weights_sha256(last_weights),
        steps=state.step,
        train_seconds=seconds,
        examples_per_second=state.step * config.training.global_batch_size / seconds if seconds else None,
        tokens_per_second=state.progress.train_tokens / seconds if seconds and state.progress.train_tokens else None,
        goodput=goodput(seconds, started),
        metrics=metrics,
    )
    report.print_report(written, workdir=workdir)
    spec = TASKS[config.task]
    print(f"\nLook at it:  {shell_line('tensorboard', f'--logdir={workdir}/logs')}")
    asking = shell_line("python", f"scripts/{spec.ask.script}.py", f"--model={workdir}")
    print("Ask it:     ", asking, *(f'--{name}="..."' for name in spec.asked_inputs(config)))
    print(f"Export it:   {shell_line('python', 'scripts/export.py', f'--workdir={workdir}')}")


def _print_plan(config: ExperimentConfig, task: Task, devices: Devices, device: DeviceKind | None) -> None:
    """Prints what a run would do and need: steps, shapes, FLOPs, memory, and whether a device fits it."""
    training, order = config.training, task.order
    unit = "rows" if config.data.packing else door_of(config).unit
    plan = preflight.plan_run(task, training, devices)
    examples = training.num_steps * training.global_batch_size
    table = Table(title=f"Plan of {config.name}", show_header=False, title_justify="left")
    rows = {
        f"training {unit}": f"{order.num_examples:,}",
        "steps": f"{training.num_steps:,} of {training.global_batch_size} {unit}, "
        f"{examples / order.num_examples:.2f} epochs",
        "padded lengths": f"{len(order.bucket_lengths)}: {', '.join(map(str, order.bucket_lengths))}",
        "evaluated on": ", ".join(f"{name} ({split.num_batches} batches)" for name, split in task.evaluations.items())
        or "nothing: there is no validation or test split",
        "runs on": f"{devices.num_replicas} replica(s), strategy {devices.name}, {training.devices.precision}, "
        f"XLA {training.devices.jit}",
    }
    for name, value in (rows | preflight.plan_rows(plan, training, devices, device)).items():
        table.add_row(name, value)
    Console().print(table)
