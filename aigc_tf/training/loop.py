"""The outer loop: calls into the graph, records, evaluation, checkpoints, resume.

One loop for every task and every strategy. A task brings values and functions (`Task`); what it computes per step
lies in step.py.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.config import InputError, RunError, TrainingConfig
from aigc_tf.data.batches import BatchSource
from aigc_tf.data.order import TrainingOrder
from aigc_tf.data.windows import WindowOrder
from aigc_tf.training import checkpoints, optimizers
from aigc_tf.training.step import Losses, Observe, build_evaluate_step, build_run_steps
from aigc_tf.training.strategy import Devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSplit:
    """One pass over a split."""

    source: BatchSource
    num_batches: int
    score: Callable[[dict[str, np.ndarray]], dict[str, Any]]
    """What was observed of all its rows -> its metrics, nested."""
    length: int | None = None
    """The padded length of all batches, where shapes must be known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a task brings to the loop."""

    build_model: Callable[[], keras.Model]
    losses: Losses
    observe: Observe
    order: TrainingOrder | WindowOrder
    train: BatchSource
    evaluations: dict[str, EvaluationSplit]
    best_metric: tuple[str, int]
    """Metric that names the best checkpoint, and 1 where more is better, -1 where less is."""
    data_sha256: str
    """Hash of the prepared data set; a run refuses to go on with another."""
    sample: Callable[[keras.Model], list[tuple[str, str]]] | None = None
    """Prompts and what the model makes of each, to be looked at after an evaluation."""


class Watcher(Protocol):
    """Sees what happens in a run; every method is called on the chief only."""

    def on_start(self, step: int) -> None:
        """Before the first step of this process; `step` are done."""

    def on_steps(self, records: list[dict[str, float]]) -> None:
        """After a call into the graph, one record a step."""

    def on_evaluation(self, step: int, split: str, metrics: dict[str, Any], seconds: float) -> None:
        """After an evaluation."""

    def on_samples(self, step: int, texts: list[tuple[str, str]]) -> None:
        """After an evaluation, where the task generates something."""

    def before_checkpoint(self, step: int) -> None:
        """What was recorded up to `step` must be on disk now: a resumed run starts from there."""

    def on_checkpoint(self, step: int, seconds: float) -> None:
        """After a checkpoint is on disk."""


@dataclasses.dataclass(kw_only=True)
class Progress:
    """What a run has to remember besides weights and slots; kept in every checkpoint."""

    train_seconds: float = 0.0
    """Wall seconds inside training calls, waiting for input included, over all restarts."""
    train_tokens: float = 0.0
    """Tokens trained on, padding not counted, over all restarts."""
    best_value: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    stopped_early: bool = False


@dataclasses.dataclass(kw_only=True)
class TrainState:
    """A run in memory."""

    model: keras.Model
    optimizer: keras.optimizers.Optimizer
    step: int
    progress: Progress
    data_sha256: str

    def checkpoint(self) -> checkpoints.Checkpoint:
        return checkpoints.Checkpoint(
            step=self.step,
            weights=checkpoints.to_host(self.model.variables),
            slots=checkpoints.to_host(self.optimizer.variables),
            progress=dataclasses.asdict(self.progress) | {"data_sha256": self.data_sha256},
        )


def build_state(task: Task, config: TrainingConfig, devices: Devices) -> TrainState:
    """Builds model and optimizer under the strategy, at step 0."""
    with devices.strategy.scope():
        model = task.build_model()
        optimizer = optimizers.build_optimizer(config, model.trainable_variables)
    return TrainState(model=model, optimizer=optimizer, step=0, progress=Progress(), data_sha256=task.data_sha256)


def restore(state: TrainState, checkpoint: checkpoints.Checkpoint) -> None:
    """Puts a checkpoint into a state.

    Raises:
        InputError: If it is of another model or was trained on other data.
    """
    progress = dict(checkpoint.progress)
    if progress.pop("data_sha256", None) != state.data_sha256:
        raise InputError(
            "The prepared data set has changed since this run began, so it cannot go on; "
            "take another --workdir, or prepare the data as they were."
        )
    checkpoints.assign(state.model.variables, checkpoint.weights, what="weights")
    checkpoints.assign(state.optimizer.variables, checkpoint.slots, what="optimizer slots")
    state.step, state.progress = checkpoint.step, Progress(**progress)


def repair_folder(workdir: str, state: TrainState, checkpoint: checkpoints.Checkpoint, task: Task) -> None:
    """Makes the run folder fit the checkpoint that `state` was restored from; called on the chief."""
    name, sign = task.best_metric
    progress = state.progress
    value = sign * (progress.best_value or 0.0)
    if not checkpoints.repair(workdir, checkpoint, best_step=progress.best_step, metric=name, value=value):
        progress.best_value, progress.best_step = None, 0  # its weights are gone: the next evaluation is the best


def wait_for_all(devices: Devices) -> None:
    """Returns when every worker is here: what the chief wrote before can then be read by all."""
    if devices.num_workers == 1:
        return

    @tf.function
    def meet() -> tf.Tensor:
        here = devices.strategy.run(lambda: tf.ones([]))
        return devices.strategy.reduce(tf.distribute.ReduceOp.SUM, here, axis=None)

    meet().numpy()


def train(
    task: Task,
    config: TrainingConfig,
    workdir: str,
    *,
    state: TrainState,
    devices: Devices,
    watcher: Watcher,
) -> None:
    """Runs `state` up to `config.num_steps` or an early stop, with checkpoints and evaluations on the way.

    Raises:
        RunError: If the loss or a gradient is not finite, or the disk is full.
    """
    run_steps = build_run_steps(
        state.model,
        state.optimizer,
        task.losses,
        strategy=devices.strategy,
        learning_rate=functools.partial(optimizers.learning_rate, config=config),
        clip_norm=config.clip_norm,
        seed=config.seed,
        jit=config.jit == "on",
    )
    evaluator = Evaluator(state.model, task, devices=devices, jit=config.jit == "on")
    feed = _Feed(task, devices, state.step)
    if devices.is_chief:
        watcher.on_start(state.step)
    while state.step < config.num_steps and not state.progress.stopped_early:
        iterator, num_steps = feed.take(state.step, _steps_to_event(state.step, config))
        started = time.perf_counter()
        columns = run_steps(iterator, tf.constant(state.step, tf.int64), tf.constant(num_steps))
        records = _records(columns, state.step)
        seconds = time.perf_counter() - started
        state.progress.train_seconds += seconds
        state.step += num_steps
        tokens = sum(record["train/tokens"] for record in records)
        state.progress.train_tokens += tokens
        if devices.is_chief:
            rates = {
                "time/examples_per_second": num_steps * task.train.global_batch_size / seconds,
                "time/tokens_per_second": tokens / seconds,
            }
            watcher.on_steps([record | rates for record in records])
        _check_finite(records, workdir)
        _at_boundary(task, config, workdir, state=state, evaluator=evaluator, devices=devices, watcher=watcher)


def _steps_to_event(step: int, config: TrainingConfig) -> int:
    """Steps until something happens between two calls, at most `steps_per_call`."""
    intervals = [config.steps_per_call, config.checkpoint_every, config.evaluate_every]
    return min([interval - step % interval for interval in intervals if interval] + [config.num_steps - step])


def _at_boundary(
    task: Task,
    config: TrainingConfig,
    workdir: str,
    *,
    state: TrainState,
    evaluator: "Evaluator",
    devices: Devices,
    watcher: Watcher,
) -> None:
    """Evaluates and writes a checkpoint where this step is due one."""
    last = state.step == config.num_steps
    improved = False
    is_evaluated = last or bool(config.evaluate_every and not state.step % config.evaluate_every)
    if is_evaluated and "validation" in task.evaluations:
        started = time.perf_counter()
        metrics = evaluator.evaluate("validation")
        improved = _note_evaluation(state, metrics, task.best_metric, config.early_stopping_patience)
        if devices.is_chief:
            watcher.on_evaluation(state.step, "validation", metrics, time.perf_counter() - started)
    if is_evaluated and devices.is_chief and task.sample:
        watcher.on_samples(state.step, task.sample(state.model))
    due = last or improved or state.progress.stopped_early or not state.step % config.checkpoint_every
    if not due or not devices.is_chief:
        return
    watcher.before_checkpoint(state.step)
    started = time.perf_counter()
    checkpoints.save(workdir, state.checkpoint())
    if improved and state.progress.best_value is not None:
        name, sign = task.best_metric
        checkpoints.mark_best(workdir, step=state.step, metric=name, value=sign * state.progress.best_value)
    checkpoints.prune(workdir)
    watcher.on_checkpoint(state.step, time.perf_counter() - started)


def _note_evaluation(state: TrainState, metrics: dict[str, Any], best_metric: tuple[str, int], patience: int) -> bool:
    """Updates the run's progress; returns whether this is the best evaluation so far."""
    name, sign = best_metric
    value, progress = metrics[name], state.progress
    signed = None if value is None else sign * value
    if signed is not None and (progress.best_value is None or signed > progress.best_value):
        progress.best_value, progress.best_step, progress.evaluations_since_best = signed, state.step, 0
        return True
    progress.evaluations_since_best += 1
    progress.stopped_early = 0 < patience <= progress.evaluations_since_best
    return False


def _records(columns: dict[str, tf.Tensor], first_step: int) -> list[dict[str, float]]:
    """Turns the columns of a call into one record a step, the step counted from 1."""
    arrays = {name: column.numpy() for name, column in columns.items()}
    return [
        {
            "step": first_step + i + 1,
            "train/loss": float(arrays["loss"][i]),
            "train/weight": float(arrays["weight"][i]),
            "train/gradient_norm": float(arrays["gradient_norm"][i]),
            "train/learning_rate": float(arrays["learning_rate"][i]),
            "train/finite": bool(arrays["finite"][i]),
            "train/tokens": float(arrays["tokens"][i]),
            "train/useful_share": float(arrays["tokens"][i] / arrays["positions"][i]),
            "time/input_seconds": float(arrays["input_seconds"][i]),
        }
        for i in range(len(arrays["loss"]))
    ]


def _check_finite(records: list[dict[str, float]], workdir: str) -> None:
    for record in records:
        if not record["train/finite"]:
            raise RunError(
                f"Step {record['step']} gave a loss of {record['train/loss']} and a gradient norm of "
                f"{record['train/gradient_norm']}; training stopped, and what {workdir} has of checkpoints is from "
                "before. Try a lower training.learning_rate in another --workdir, or look at the data of that step."
            )


class Evaluator:
    """Runs the model over whole splits."""

    def __init__(self, model: keras.Model, task: Task, *, devices: Devices, jit: bool):
        self._task, self._devices = task, devices
        self._evaluate_step = build_evaluate_step(model, task.observe, strategy=devices.strategy, jit=jit)

    def evaluate(self, split: str) -> dict[str, Any]:
        """Returns the task's metrics of a split, the same on every worker."""
        return self._task.evaluations[split].score(self.observe(split))

    def observe(self, split: str) -> dict[str, np.ndarray]:
        """Returns what the task observes of all rows of a split, in the order of its batches."""
        chosen = self._task.evaluations[split]
        iterator = iter(
            distribute(chosen.source, self._devices, first_step=0, num_steps=chosen.num_batches, length=chosen.length)
        )
        batches: list[dict[str, np.ndarray]] = []
        for _ in range(chosen.num_batches):
            results = {name: value.numpy() for name, value in self._evaluate_step(iterator).items()}
            real = results["weights"] > 0
            batches.append({name: values[real] for name, values in results.items()})
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def distribute(
    source: BatchSource, devices: Devices, *, first_step: int, num_steps: int | None = None, length: int | None = None
) -> Any:
    """Returns the distributed data set of a source: each replica gets its rows of each global batch."""

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        del context  # Devices knows this worker's place under every strategy
        return source.dataset(
            first_step,
            first_shard=devices.first_replica,
            local_shards=devices.local_replicas,
            num_shards=devices.num_replicas,
            num_steps=num_steps,
            length=length,
        )

    return devices.strategy.distribute_datasets_from_function(dataset)


class _Feed:
    """Hands out the iterator for the next call and how many steps it may take."""

    def __init__(self, task: Task, devices: Devices, first_step: int):
        self._task, self._devices = task, devices
        self._iterator = None
        if not devices.static_shapes:
            self._iterator = iter(distribute(task.train, devices, first_step=first_step))

    def take(self, step: int, limit: int) -> tuple[Any, int]:
        if self._iterator is not None:
            return self._iterator, limit
        num_steps = min(limit, self._task.order.run_end(step) - step)  # steps of one shape
        length = self._task.order.batch(step).length
        batches = distribute(self._task.train, self._devices, first_step=step, num_steps=num_steps, length=length)
        return iter(batches), num_steps
