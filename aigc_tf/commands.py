"""What the scripts do: prepare, train, evaluate, export. The same for every task."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from aigc_tf import __version__, storage
from aigc_tf import config as config_module
from aigc_tf.config import ExperimentConfig, InputError, RunError, flatten
from aigc_tf.data import preparation
from aigc_tf.data.prepared import PreparedDataset, verify_prepared
from aigc_tf.data.tokenizers import load_tokenizer
from aigc_tf.evaluation import report
from aigc_tf.models.weights import weights_by_path, weights_sha256
from aigc_tf.runs import (
    config_of_run,
    describe_run,
    door_of,
    first_start,
    load_model,
    open_prepared_of,
    read_facts,
    resolve,
    stored_config,
)
from aigc_tf.tasks import DataFacts, facts_of
from aigc_tf.tasks.door import policy_of
from aigc_tf.training import checkpoints, loop, preflight, run_state, skipping, strategy
from aigc_tf.training.evaluator import Evaluator
from aigc_tf.training.hardware import DeviceKind, named_device
from aigc_tf.training.preemption import stop_requests
from aigc_tf.training.strategy import Devices
from aigc_tf.training.task import Task
from aigc_tf.training.workers import Workers, joined
from aigc_tf.watching import RunWatcher, goodput

# Places on a worker's own host, which may differ between workers.
_PLACES = ("data.prepared_dir", "data.tfds_data_dir", "data.tfds_download", "export.directory")


def prepare(config: ExperimentConfig, *, overwrite: bool = False) -> None:
    """Makes the prepared data set of an experiment."""
    preparation.prepare(config, overwrite=overwrite)


def train(config: ExperimentConfig, workdir: str, *, dry_run: bool = False, device: str | None = None) -> None:
    """Trains or continues a run, judges its best weights and writes its report.

    Args:
        config: The experiment.
        workdir: The run folder.
        dry_run: Print what the run would do and take instead.
        device: With `dry_run`, a name of hardware's table: what the run is asked to fit.
    """
    kind = named_device(device) if device else None
    facts = {"the version of aigc_tf": __version__, "the version of TensorFlow": tf.__version__, "--dry_run": dry_run}
    cluster, timeout = strategy.cluster(config.training.strategy), config.training.workers_timeout
    last_step = functools.partial(_last_step, workdir)
    with joined(cluster, facts | _compared(config), timeout=timeout, last_step=last_step) as workers:
        _start(config, workdir, dry_run=dry_run, kind=kind, workers=workers)


def _compared(config: ExperimentConfig) -> dict[str, Any]:
    """Returns the fields that must be equal at all workers."""
    return {name: value for name, value in flatten(config).items() if name not in _PLACES}


def _last_step(workdir: str) -> int:
    """Returns the step of the run's last checkpoint, 0 without one."""
    path = checkpoints.folder_of(workdir, "last.json")
    return int(storage.read_json(path)["step"]) if storage.exists(path) else 0


def _start(config: ExperimentConfig, workdir: str, *, dry_run: bool, kind: DeviceKind | None, workers: Workers) -> None:
    """Trains with all workers there."""
    door = door_of(config)
    with workers.connecting():
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
        _print_plan(config, task, devices, kind)
        return
    verify_prepared(prepared.folder)
    with contextlib.ExitStack() as stack:
        if devices.is_chief:  # before the checkpoints are read: another process may be writing its last one
            busy = f"Another process trains into {workdir} right now; wait until it is done, or take another --workdir."
            lock = storage.locked_file(storage.join(workdir, ".lock"), busy=busy, advice="Take another --workdir.")
            stack.enter_context(lock)
        newest, complaints = checkpoints.load_newest(workdir)
        for complaint in complaints:
            print(complaint, file=sys.stderr)
        last_step = newest.step if newest else 0
        facts = {"the prepared data's sha256": prepared.sha256, "the last checkpoint's step": last_step}
        workers.compare(facts | _compared(config))
        if newest and _is_finished(newest, config) and _reported_step(workdir) == newest.step:
            print(f"This run is finished: {newest.step} steps are done.")
            report.print_report(report.read_report(workdir), workdir=workdir)
            return
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
    state = run_state.build_state(task, config.training, devices)
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
            config, workdir, task=task, state=state, devices=devices, facts=facts, started=started
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
        loop.agree(devices)
        _finish(
            config, workdir, task=task, state=state, devices=devices, started=started, stop_requested=stop_requested
        )


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


def inspect_examples(workdir: str, *, config: ExperimentConfig | None = None, step: int = 0) -> None:
    """Prints the examples of a bad step of a run, the worst first, with their losses."""
    config = config_of_run(workdir, config)
    facts = read_facts(workdir)
    step, rows = skipping.read_examples(workdir, step)
    prepared = open_prepared_of(config)
    if prepared.sha256 != facts.sha256:
        raise InputError(f"The prepared data {prepared.folder} are not those of the run {workdir}; prepare them again.")
    source = door_of(config).build(config, prepared, strategy.build_devices("none")).train
    tokenizer = load_tokenizer(facts.tokenizer_folder)
    print(f"Step {step} of {workdir}, {skipping.examples_path(workdir, step)}: {len(rows)} rows, the worst first.")
    for row in rows:
        print(f"\nloss {row['loss']}, weight {row['weight']:g}")
        for example_id in row["example_ids"]:
            parts, label = source.example(example_id)
            named = "" if label is None else f", label {_shown_label(label, facts)}"
            print(f"  example {example_id}{named}")
            for part in parts:
                print("\n".join(f"    {line}" for line in tokenizer.decode(part).splitlines()) or "    (empty)")


def _shown_label(label: np.ndarray, facts: DataFacts) -> str:
    if facts.problem_type == "single_label":
        return facts.label_names[int(label)]
    if facts.problem_type == "multi_label":
        return "|".join(name for name, is_set in zip(facts.label_names, label, strict=True) if is_set) or "none"
    return f"{float(label):g}"


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
    if table := done.cost_table():
        print(f"\nWhat its weights cost:\n{table}")
    folder = os.path.dirname(done.path)
    flag = door.ask_script.partition(" ")[2]
    print(f'\nAsk it:         python scripts/{door.ask_script.replace(" ", f" --model={folder} ")}="..."')
    print(f"Serve it:       tensorflow_model_server --rest_api_port=8501 --model_name={config.name} \\")
    print(f"                    --model_base_path={os.path.abspath(folder)}")
    print(f'Ask the server: python scripts/ask.py --server=http://localhost:8501 --model={config.name} {flag}="..."')
    print(f"Deploy it:      python scripts/render_deployment.py --model={folder} --output=deploy/{config.name}")


def _is_finished(newest: checkpoints.Checkpoint, config: ExperimentConfig) -> bool:
    return newest.step >= config.training.num_steps or bool(newest.progress.get("stopped_early"))


def _reported_step(workdir: str) -> int | None:
    """Returns the number of steps that report.json is about, or None where there is no report."""
    if not storage.exists(storage.join(workdir, report.REPORT_NAME)):
        return None
    try:
        return int(report.read_report(workdir)["steps"])
    except InputError:
        return None  # of another version, or damaged: it is written anew


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
    started: float | None,
    stop_requested: Callable[[], bool],
) -> None:
    """Judges the best weights on every split and writes the report. Every worker takes part in the evaluation."""
    last_weights = weights_by_path(state.model)
    try:
        best = checkpoints.load_named(workdir, "best")
    except RunError as error:  # the run is not lost for that
        print(f"{error} Judging the last weights instead.", file=sys.stderr)
        best = checkpoints.load_named(workdir, "last")
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
        goodput=goodput(seconds, started),
        metrics=metrics,
    )
    report.print_report(written, workdir=workdir)
    ask = door_of(config).ask_script.replace(" ", f" --model={workdir} ")
    print(f"\nLook at it:  tensorboard --logdir={workdir}/logs")
    print(f'Ask it:      python scripts/{ask}="..."')
    print(f"Export it:   python scripts/export.py --workdir={workdir}")


def _print_plan(config: ExperimentConfig, task: Task, devices: Devices, device: DeviceKind | None) -> None:
    """Prints what a run would do and take: steps, shapes, FLOPs, memory, and whether a device fits it."""
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
        "runs on": f"{devices.num_replicas} replica(s), strategy {devices.name}, {training.precision}, "
        f"XLA {training.jit}",
    }
    for name, value in (rows | preflight.plan_rows(plan, training, devices, device)).items():
        table.add_row(name, value)
    Console().print(table)
