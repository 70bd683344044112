"""What the scripts do: prepare, train, evaluate, predict, export. The same for every task."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import keras
import tensorflow as tf
from rich.console import Console
from rich.table import Table

from aigc_tf import config as config_module
from aigc_tf import storage
from aigc_tf.config import (
    OPERATIONAL_FIELDS,
    DataConfig,
    ExperimentConfig,
    InputError,
    RunError,
    flatten,
    from_json,
    suggest,
    to_json,
)
from aigc_tf.data import preparation, sources
from aigc_tf.data.prepared import PreparedDataset, open_prepared, verify_prepared
from aigc_tf.evaluation import classification, report
from aigc_tf.models import classifier
from aigc_tf.models.weights import load_weights_by_path, weights_by_path, weights_sha256
from aigc_tf.serving.predictor import Predictor
from aigc_tf.tasks import TASKS, DataFacts, TaskDoor, facts_of
from aigc_tf.training import checkpoints, loop, strategy
from aigc_tf.training.progress import ProgressBar
from aigc_tf.training.strategy import Devices
from aigc_tf.training.telemetry import Telemetry

_CONFIG, _DATA, _TOKENIZER = "config.json", "data.json", "tokenizer"  # of a run folder
_BUCKETS_COMPILED, _BUCKETS_PLAIN = 8, 32  # each padded length is a compilation under XLA


def prepare(config: ExperimentConfig, *, overwrite: bool = False) -> None:
    """Makes the prepared data set of an experiment."""
    preparation.prepare(config, overwrite=overwrite)


def train(config: ExperimentConfig, workdir: str, *, dry_run: bool = False) -> None:
    """Trains or continues a run, judges its best weights and writes its report."""
    door = _door(config)
    devices = strategy.build_devices(config.training.strategy)
    if config.training.deterministic:
        tf.config.experimental.enable_op_determinism()
    # A run that failed before its first checkpoint binds nobody to its config.
    stored = _stored_config(workdir) if checkpoints.any_there(workdir) else None
    config = resolve(config, stored, devices)
    keras.utils.set_random_seed(config.training.seed % 2**32)
    prepared = _open_prepared(config)
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
    state = loop.build_state(task, config.training, devices)
    if newest:
        loop.restore(state, newest)
        if devices.is_chief:
            loop.repair_folder(workdir, state, newest, task)
    facts = facts_of(prepared)
    if devices.is_chief:
        _describe_run(workdir, config, facts, state.model)
    with _Watcher(door, config, workdir, resume_step=state.step, devices=devices, facts=facts) as watcher:
        loop.train(task, config.training, workdir, state=state, devices=devices, watcher=watcher)
    loop.wait_for_all(devices)
    _finish(config, workdir, task=task, state=state, devices=devices)


def _describe_run(workdir: str, config: ExperimentConfig, facts: DataFacts, model: keras.Model) -> None:
    """Writes what later commands need of a run besides its weights; config.json, which says it is a run, last."""
    storage.write_json(storage.join(workdir, classifier.ARCHITECTURE_FILE), classifier.describe_classifier(model))
    storage.copy_folder(facts.tokenizer_folder, storage.join(workdir, _TOKENIZER))
    written = dataclasses.asdict(facts) | {"tokenizer_folder": _TOKENIZER}
    storage.write_json(storage.join(workdir, _DATA), written)
    storage.write_bytes(storage.join(workdir, _CONFIG), to_json(config).encode())


def _read_facts(workdir: str) -> DataFacts:
    content = storage.read_json(storage.join(workdir, _DATA))
    tokenizer = storage.as_local_folder(storage.join(workdir, _TOKENIZER))
    try:
        return DataFacts(**content | {"label_names": tuple(content["label_names"]), "tokenizer_folder": str(tokenizer)})
    except (KeyError, TypeError) as error:
        raise InputError(f"{storage.join(workdir, _DATA)} is not what scripts/train.py writes ({error}).") from error


def evaluate(workdir: str, *, config: ExperimentConfig | None = None, checkpoint: str = "best") -> None:
    """Judges a run's weights on its validation and test data and refreshes the metrics of its report."""
    config = config_of_run(workdir, config)
    devices = strategy.build_devices("none")
    prepared = _open_prepared(config)
    if prepared.sha256 != _read_facts(workdir).sha256:
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
    task = _door(config).build(config, prepared, devices)
    model, step = load_model(workdir, checkpoint=checkpoint, dtype=_policy(config))
    written = report.update_metrics(workdir, _judge(task, model, devices, config, step=step))
    report.print_report(written, workdir=workdir)


def export(workdir: str, *, config: ExperimentConfig | None = None, checkpoint: str = "best") -> None:
    """Publishes a run's weights as a SavedModel."""
    config = config_of_run(workdir, config)
    facts = _read_facts(workdir)
    model, step = load_model(workdir, checkpoint=checkpoint, dtype=_policy(config))
    source = {
        "run": os.fspath(workdir),
        "checkpoint": checkpoint,
        "step": step,
        "config_sha256": config_module.sha256(config),
        "data_sha256": facts.sha256,
    }
    try:
        prepared: PreparedDataset | None = _open_prepared(config)
    except InputError as error:
        print(f"Without samples of the data: {error}", file=sys.stderr)
        prepared = None
    if prepared is not None and prepared.sha256 != facts.sha256:
        print("Without samples of the data, which were prepared anew since.", file=sys.stderr)
        prepared = None
    done = _door(config).export(model, config, facts, prepared=prepared, source=source)
    print(done.summary())
    folder = os.path.dirname(done.path)
    print(f'\nAsk it:    python scripts/predict.py --model={folder} --text="..."')
    print(f"Serve it:  tensorflow_model_server --rest_api_port=8501 --model_name={config.name} \\")
    print(f"               --model_base_path={os.path.abspath(folder)}")


def predict(
    model: str,
    *,
    texts: list[str],
    texts_b: list[str] | None = None,
    input_path: str = "",
    output_path: str = "",
    checkpoint: str = "best",
) -> None:
    """Answers texts with a run or an exported model: one JSON object a line, in the order of the texts."""
    if bool(texts) == bool(input_path):
        raise InputError("Give the texts with --text (once for each), or a file with --input, and not both.")
    if input_path and output_path and os.path.exists(output_path) and os.path.samefile(input_path, output_path):
        raise InputError(f"--output {output_path} is the file of the texts; give another name.")
    answer, columns = _answerer(model, checkpoint)
    is_pair = bool(columns[1])
    if texts and is_pair != bool(texts_b):
        wanted = "pairs: give one --text_b for each --text" if is_pair else "single texts: leave --text_b out"
        raise InputError(f"The model {model} takes {wanted}.")
    rows, inputs = itertools.tee(
        _read_texts(input_path, columns) if input_path else iter(_pair_up(texts, texts_b or []))
    )
    started, count = time.perf_counter(), 0
    with _open_output(output_path) as write:
        for (text, text_b), answered in zip(inputs, answer(rows), strict=True):
            row = {"text": text} | ({"text_b": text_b} if text_b else {}) | answered
            write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if output_path:
        rate = count / (time.perf_counter() - started)
        print(f"{count} answers in {output_path}, {rate:.0f} texts per second.", file=sys.stderr)


def _pair_up(texts: list[str], texts_b: list[str]) -> list[tuple[str, str]]:
    if texts_b and len(texts_b) != len(texts):
        raise InputError(
            f"There are {len(texts)} --text and {len(texts_b)} --text_b; give one --text_b for each --text."
        )
    return list(zip(texts, texts_b or [""] * len(texts), strict=True))


def _read_texts(path: str, columns: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Reads texts to answer: the lines of a plain text, or the text columns of a table with a header."""
    text_column, text_b_column = columns
    data = DataConfig(
        sources=(path,), text_column=text_column, text_b_column=text_b_column, label_column="", max_bad_share=0.0
    )
    files = sources.find_sources(data)
    if text_b_column and any(file.format == "text" for file in files):
        raise InputError(
            f"{path} has single texts, but the model takes pairs; give a table with the columns {text_column!r} "
            f"and {text_b_column!r}."
        )
    for record in sources.read_records(files, data, []):
        yield record.text, record.text_b


Answer = Callable[[Iterator[tuple[str, str]]], Iterator[dict[str, Any]]]


def _answerer(model: str, checkpoint: str) -> tuple[Answer, tuple[str, str]]:
    """Returns what answers texts, a run or an exported model, and the columns it reads of a table."""
    if not storage.exists(storage.join(model, _CONFIG)):
        exported = Predictor(model)

        def ask_export(rows: Iterator[tuple[str, str]]) -> Iterator[dict[str, Any]]:
            first, second = itertools.tee(rows)
            texts_b = (text_b for _, text_b in second) if exported.is_pair else None
            return exported.predict((text for text, _ in first), texts_b)

        return ask_export, ("text", "text_b" if exported.is_pair else "")
    config = config_of_run(model, None)
    loaded, _ = load_model(model, checkpoint=checkpoint, dtype="float32")
    facts = _read_facts(model)
    columns = (config.data.text_column, config.data.text_b_column)
    return lambda rows: _door(config).answer(loaded, config, facts, rows), columns


@contextlib.contextmanager
def _open_output(path: str) -> Iterator[Callable[[str], Any]]:
    """Yields the function that writes a line: to the terminal, or to a file that is whole or not there."""
    if not path:
        yield sys.stdout.write
        return
    partial = Path(f"{path}.partial-{uuid.uuid4().hex[:8]}")
    try:
        file = open(partial, "w", encoding="utf-8")  # noqa: SIM115 - what opening it says is the user's to mend
    except OSError as error:
        raise InputError(f"--output {path} cannot be written: {error.strerror}.") from error

    def write(line: str) -> None:
        try:
            file.write(line)
        except OSError as error:
            raise RunError(f"Cannot write {path}: {error.strerror}.") from error

    try:
        with file:
            yield write
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def resolve(config: ExperimentConfig, stored: ExperimentConfig | None, devices: Devices) -> ExperimentConfig:
    """Returns the config with every `auto` settled.

    Precision and number of buckets stay as at the run's first start; where it runs and whether XLA compiles, which are
    operational, go by this machine.

    Raises:
        InputError: If the run began with another config; the fields are named.
    """
    training, data = config.training, config.data
    if stored:
        if training.precision == "auto":
            training = dataclasses.replace(training, precision=stored.training.precision)
        if not data.num_buckets:
            data = dataclasses.replace(data, num_buckets=stored.data.num_buckets)
    jit = strategy.resolve_jit(training.jit)
    precision = strategy.resolve_precision(training.precision)
    training = dataclasses.replace(training, jit=jit, precision=precision, strategy=devices.name)
    compiled = jit == "on" or devices.static_shapes
    data = dataclasses.replace(
        data, num_buckets=data.num_buckets or (_BUCKETS_COMPILED if compiled else _BUCKETS_PLAIN)
    )
    resolved = dataclasses.replace(config, data=data, training=training)
    if stored:
        _check_same_run(resolved, stored)
    return resolved


def _check_same_run(config: ExperimentConfig, stored: ExperimentConfig) -> None:
    before, now = flatten(stored), flatten(config)
    changed = [name for name in now if now[name] != before[name] and name not in OPERATIONAL_FIELDS]
    if now["training.num_steps"] > before["training.num_steps"]:
        changed.remove("training.num_steps")
    if changed:
        differences = "; ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in changed)
        raise InputError(
            f"This run began with another config: {differences}. "
            "Take another --workdir for another experiment, or the old value to go on with this one."
        )


def _stored_config(workdir: str) -> ExperimentConfig | None:
    path = storage.join(workdir, _CONFIG)
    if not storage.exists(path):
        return None
    try:
        return from_json(storage.read_bytes(path).decode())
    except (InputError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from error


def config_of_run(workdir: str, config: ExperimentConfig | None) -> ExperimentConfig:
    """Returns the config a run was trained with; of one given beside it, only operational fields count.

    Raises:
        InputError: If there is no run, or the given config is another experiment's.
    """
    stored = _stored_config(workdir)
    if stored is None:
        raise InputError(f"{workdir} is no run: it has no {_CONFIG}. Train one: python scripts/train.py --workdir=...")
    if config is None:
        return stored
    training = dataclasses.replace(
        config.training,
        jit=stored.training.jit,
        strategy=stored.training.strategy,
        precision=stored.training.precision if config.training.precision == "auto" else config.training.precision,
        num_steps=max(config.training.num_steps, stored.training.num_steps),
    )
    data = dataclasses.replace(config.data, num_buckets=config.data.num_buckets or stored.data.num_buckets)
    config = dataclasses.replace(config, training=training, data=data)
    _check_same_run(config, stored)
    return config


def load_model(workdir: str, *, checkpoint: str, dtype: str) -> tuple[keras.Model, int]:
    """Builds a run's model with its weights; returns it and the step the weights are of.

    Raises:
        InputError: If the run has no checkpoint.
    """
    loaded = checkpoints.load_named(workdir, checkpoint)
    description = storage.read_json(storage.join(workdir, classifier.ARCHITECTURE_FILE))
    model = classifier.rebuild_classifier(description, dtype=dtype)
    load_weights_by_path(model, loaded.weights, source=f"the checkpoint of {workdir}")
    return model, loaded.step


def _door(config: ExperimentConfig) -> TaskDoor:
    if config.task not in TASKS:
        raise InputError(f"task is {config.task!r}, which is no task.{suggest(config.task, TASKS)}")
    return TASKS[config.task]


def _policy(config: ExperimentConfig) -> str:
    return "mixed_bfloat16" if config.training.precision == "bfloat16" else "float32"


def _open_prepared(config: ExperimentConfig) -> PreparedDataset:
    return open_prepared(os.path.join(os.path.expanduser(config.data.prepared_dir), config.name))


def _is_finished(newest: checkpoints.Checkpoint, config: ExperimentConfig) -> bool:
    return newest.step >= config.training.num_steps or bool(newest.progress.get("stopped_early"))


def _reported_step(workdir: str) -> int | None:
    """Returns the number of steps that report.json is about, or None where there is no report."""
    if not storage.exists(storage.join(workdir, report.REPORT_NAME)):
        return None
    return int(report.read_report(workdir)["steps"])


def _judge(
    task: loop.Task, model: keras.Model, devices: Devices, config: ExperimentConfig, *, step: int
) -> dict[str, dict[str, Any]]:
    """Evaluates every split and says of which step the weights are."""
    evaluator = loop.Evaluator(model, task, devices=devices, jit=config.training.jit == "on")
    return {split: {"step": step} | evaluator.evaluate(split) for split in task.evaluations}


def _finish(
    config: ExperimentConfig, workdir: str, *, task: loop.Task, state: loop.TrainState, devices: Devices
) -> None:
    """Judges the best weights on every split and writes the report. Every worker takes part in the evaluation."""
    last_weights = weights_by_path(state.model)
    best = checkpoints.load_named(workdir, "best")
    checkpoints.assign(state.model.variables, best.weights, what="weights")
    metrics = _judge(task, state.model, devices, config, step=best.step)
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
        metrics=metrics,
    )
    report.print_report(written, workdir=workdir)
    print(f"\nLook at it:  tensorboard --logdir={workdir}/logs")
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
    ):
        self._door, self._facts = door, facts
        self._metric, _ = classification.best_metric(facts.problem_type, config.evaluation.best_metric)
        self._telemetry = Telemetry(
            workdir, resume_step=resume_step, log_every=config.training.log_every, enabled=devices.is_chief
        )
        self._progress = ProgressBar(
            num_steps=config.training.num_steps, first_step=resume_step, enabled=devices.is_chief
        )
        self._telemetry.config(to_json(config))

    def __enter__(self) -> "_Watcher":
        self._telemetry.__enter__()
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
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

    def before_checkpoint(self, step: int) -> None:
        self._telemetry.flush()

    def on_checkpoint(self, step: int, seconds: float) -> None:
        self._telemetry.scalars(step, {"time/checkpoint_seconds": seconds})


def _print_plan(config: ExperimentConfig, task: loop.Task, devices: Devices) -> None:
    """Prints what a run would do: parameters, steps, epochs, padded lengths, where it would run."""
    model = task.build_model()
    trainable = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    training, order = config.training, task.order
    examples = training.num_steps * training.global_batch_size
    table = Table(title=f"Plan of {config.name}", show_header=False, title_justify="left")
    for name, value in {
        "parameters": f"{model.count_params():,} ({trainable:,} trained)",
        "training examples": f"{order.num_examples:,}",
        "steps": f"{training.num_steps:,} of {training.global_batch_size} examples, "
        f"{examples / order.num_examples:.2f} epochs",
        "padded lengths": f"{len(order.bucket_lengths)}: {', '.join(map(str, order.bucket_lengths))}",
        "evaluated on": ", ".join(f"{name} ({split.num_batches} batches)" for name, split in task.evaluations.items())
        or "nothing: there is no validation or test split",
        "runs on": f"{devices.num_replicas} replica(s), strategy {devices.name}, {training.precision}, "
        f"XLA {training.jit}",
    }.items():
        table.add_row(name, value)
    Console().print(table)
