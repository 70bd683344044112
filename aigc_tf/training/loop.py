"""The outer loop: calls into the graph, records, evaluation, checkpoints, resume, bad steps, the end on request.

One loop for every task and every strategy. A task brings values and functions (task.py); step.py computes a step.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from aigc_tf.config import TrainingConfig
from aigc_tf.config.shell import shell_line
from aigc_tf.errors import Preempted, RunError
from aigc_tf.training import checkpoints, skipping
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.evaluator import Evaluator
from aigc_tf.training.feed import Feed, distribute
from aigc_tf.training.optimizers import optimizers
from aigc_tf.training.recording import profiling
from aigc_tf.training.run_state import TrainState, early_stop, forget_lost_best, repair_folder, restore
from aigc_tf.training.step.averages import averaged
from aigc_tf.training.step.step import LossHistory, build_inspect_step, build_run_steps
from aigc_tf.training.task import Shown, Task

_BAD_STEPS_IN_A_ROW = 10
"""Bad steps in a row after which the run stops under any policy: so many are not the fault of their batches."""


class Watcher(Protocol):
    """Observes a run. Every method is called on the chief only."""

    def on_start(self, step: int) -> None:
        """Before the first step of this process; `step` are done."""

    def on_steps(self, records: list[dict[str, float]]) -> None:
        """After a call into the graph, with one record per step."""

    def on_evaluation(self, step: int, split: str, metrics: dict[str, Any], seconds: float) -> None:
        """After an evaluation."""

    def on_samples(self, step: int, samples: list[Shown]) -> None:
        """After an evaluation, if the task has samples to show."""

    def on_early_stop(self, step: int, message: str) -> None:
        """After the evaluation that ends the run before its last step."""

    def before_checkpoint(self, step: int) -> None:
        """Records up to `step` must be on disk now, since a resumed run starts there."""

    def on_checkpoint(self, step: int, blocked_seconds: float) -> None:
        """After the weights were copied for a checkpoint, which is then written during training."""

    def on_written(self, step: int, seconds: float) -> None:
        """After a checkpoint is on disk, with the time it took."""

    def on_example_ids(self, first_step: int, example_ids: np.ndarray) -> None:
        """After a call into the graph, if ids are logged: `(steps, B, ...)` int64, the step counted from 1."""

    def on_skipped(self, step: int, message: str) -> None:
        """After the batch of a step was left out."""

    def on_rollback(self, step: int) -> None:
        """After the run went back to `step`: later records are void."""


def agree(devices: Devices, number: int = 0) -> int:
    """Returns the chief's number once every worker is here; then all can read what the chief wrote before."""
    if devices.num_workers == 1:
        return number

    @tf.function
    def meet(number: tf.Tensor) -> tf.Tensor:
        here = devices.strategy.run(lambda: number)
        return devices.strategy.reduce(tf.distribute.ReduceOp.SUM, here, axis=None)

    return int(meet(tf.constant(number if devices.is_chief else 0, tf.int64))) // devices.local_replicas


def train(
    task: Task,
    config: TrainingConfig,
    workdir: str,
    *,
    state: TrainState,
    devices: Devices,
    watcher: Watcher,
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Runs `state` up to `config.num_steps` or an early stop, with checkpoints and evaluations on the way.

    Args:
        task: The task.
        config: How to train.
        workdir: The run folder.
        state: New, or restored from a checkpoint; it is changed.
        devices: Where to train.
        watcher: Observes the run.
        stop_requested: Whether this process was asked to end; checked between calls into the graph and between the
            batches of an evaluation.
    Raises:
        Preempted: If this process or another worker was asked to end; a last checkpoint is on disk.
        RunError: If a step is bad and the policy is to stop, or a checkpoint cannot be written.
    """
    reach = config.bad_steps.rollback_batches - 1 if config.bad_steps.policy == "rollback" else 0
    with checkpoints.Writer(workdir, reach=reach) as writer:
        loop = _Loop(
            task,
            config,
            workdir,
            state=state,
            devices=devices,
            watcher=watcher,
            writer=writer,
            stop_requested=stop_requested,
        )
        loop.run()


class _Loop:
    """One call of `train`."""

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        workdir: str,
        *,
        state: TrainState,
        devices: Devices,
        watcher: Watcher,
        writer: checkpoints.Writer,
        stop_requested: Callable[[], bool],
    ):
        self._task, self._config, self._workdir = task, config, workdir
        self._state, self._devices, self._watcher, self._writer = state, devices, watcher, writer
        self._stop_requested = stop_requested
        self._run_steps = build_run_steps(
            state.model,
            state.optimizer,
            task.losses,
            strategy=devices.strategy,
            learning_rate=functools.partial(optimizers.learning_rate, config=config),
            config=config,
            averages=state.averages,
            blocks=task.blocks(state.model) if config.devices.recompute else (),
        )
        self._evaluator = Evaluator(
            state.model, task, devices=devices, jit=config.devices.jit == "on", stop_requested=stop_requested
        )
        self._feed = Feed(task, devices, state.step)
        self._omitted = skipping.omitted_steps(workdir, resume_step=state.step)
        self._bad_in_a_row = self._last_bad_step = 0
        self._saved_step = state.step

    def run(self) -> None:
        state, config = self._state, self._config
        if self._devices.is_chief:
            self._watcher.on_start(state.step)
            skipping.cut_back(self._workdir, resume_step=state.step)
            if config.bad_steps.policy == "rollback" and not state.step:
                self._save(improved=False)  # so that a rollback before the first checkpoint has somewhere to go
        try:
            if self._is_due_for_evaluation():
                self._at_boundary()  # the previous process was asked to end during this evaluation
            while state.step < config.num_steps and not state.progress.stopped_early:
                is_stopping = self._call()
                if is_stopping:
                    raise Preempted
                self._at_boundary()
        except Preempted:
            self._save_last()
            raise
        self._report_written(self._writer.wait())
        if state.progress.stopped_early and state.step < config.num_steps and self._devices.is_chief:
            self._watcher.on_early_stop(state.step, early_stop(state.progress, state.step, self._task.best_metric))

    def _call(self) -> bool:
        """Runs the next steps, up to an event or a bad step; returns whether any worker was asked to end."""
        state = self._state
        if state.step in self._omitted:
            return self._leave_out()
        to_omitted = [step - state.step for step in self._omitted if step > state.step]
        # A call ends where something is due, so that no event has to look into the graph.
        limit = min([_steps_to_event(state.step, self._config), *to_omitted])
        iterator, num_steps = self._feed.take(state.step, limit)
        started = time.perf_counter()
        columns, parts, history = self._run_steps(
            iterator,
            tf.constant(state.step, tf.int64),
            tf.constant(num_steps),
            LossHistory(*(tf.constant(value, tf.float32) for value in state.progress.loss_history)),
            tf.constant(self._stop_requested()),
        )
        arrays = {name: column.numpy() for name, column in columns.items()}
        seconds = time.perf_counter() - started  # `numpy()` waited for the steps; the call itself does not on a GPU
        records = _records(arrays, {name: column.numpy() for name, column in parts.items()}, state.step)
        tokens = float(arrays["tokens"].sum(dtype=np.float64))
        state.progress.train_seconds += seconds
        state.progress.train_tokens += tokens
        steps, mean, variance = (float(value) for value in history)
        state.progress.loss_history = (steps, mean, variance)
        if self._devices.is_chief:
            rates = {"time/examples_per_second": len(records) * self._task.train.global_batch_size / seconds}
            if tokens:
                rates["time/tokens_per_second"] = tokens / seconds
            self._watcher.on_steps([record | rates for record in records])
            if self._config.recording.log_example_ids:
                self._watcher.on_example_ids(state.step + 1, arrays["example_ids"])
            self._report_written(self._writer.poll())
        state.step += len(records)
        good_steps = [record["step"] for record in records if not record.get("train/skipped")]
        if good_steps and good_steps[-1] > self._last_bad_step:
            self._bad_in_a_row = 0  # only beyond the farthest step so far: a rollback repeats good steps
        if not arrays["good"][-1]:
            self._on_bad_step(records[-1])
        return bool(arrays["stop"][-1])

    def _leave_out(self) -> bool:
        """Skips a batch that a rollback left out: step and schedule advance, weights and slots stay."""
        self._feed.drop(self._state.step)
        self._state.step += 1
        if self._devices.is_chief:
            self._watcher.on_steps([{"step": self._state.step, "train/skipped": True}])
        return False

    def _on_bad_step(self, record: dict[str, Any]) -> None:
        """Saves the examples of a bad step; then stops, skips the batch or rolls back, by the policy.

        The weights are those that the step was computed with.
        """
        step, policy = int(record["step"]), self._config.bad_steps.policy
        self._bad_in_a_row, self._last_bad_step = self._bad_in_a_row + 1, step
        what = (
            f"Step {step} gave a loss of {record['train/loss']:.6g} and a gradient norm of "
            f"{record['train/gradient_norm']:.6g}" + (", a spike" if record["train/finite"] else "")
        )
        look = self._write_examples(step)
        if policy == "stop":
            raise RunError(
                f"{what}; training stopped, and the checkpoints in {self._workdir} are from before. {look} Lower "
                "training.optimizer.learning_rate in another --workdir, or go on with "
                "--config.training.bad_steps.policy=skip."
            )
        if self._bad_in_a_row == _BAD_STEPS_IN_A_ROW:
            raise RunError(
                f"{what}, the {self._bad_in_a_row}th bad step in a row, so its batch is not at fault; training "
                f"stopped, and the checkpoints in {self._workdir} are from before. {look} Lower "
                "training.optimizer.learning_rate "
                "in another --workdir."
            )
        if policy == "rollback":
            self._roll_back(record, f"{what}. {look}")
        elif self._devices.is_chief:
            skipping.append(self._workdir, record, policy=policy, omitted=[step])
            self._watcher.on_skipped(step, f"{what}; its batch is left out. {look}")

    def _write_examples(self, step: int) -> str:
        """Saves the examples of a step with their losses; returns a sentence on where to look."""
        rows = self._inspect(step - 1)
        if not self._devices.is_chief:
            return ""
        try:
            skipping.write_examples(self._workdir, step, rows)
        except RunError as error:
            return f"Its examples could not be written: {error}"
        command = shell_line("python", "scripts/inspect_examples.py", f"--workdir={self._workdir}", f"--step={step}")
        return f"Look at its examples: {command}"

    def _roll_back(self, record: dict[str, Any], message: str) -> None:
        """Returns to the newest checkpoint before the batches that are left out, the same on every worker."""
        step = int(record["step"])
        first = max(step - self._config.bad_steps.rollback_batches + 1, 1)
        self._report_written(self._writer.wait())  # the newest checkpoint may be the one to go back to
        # Only the chief's disk counts: another worker may see a shared drive later.
        target = agree(self._devices, self._step_to_go_back_to(first) if self._devices.is_chief else 0)
        newest, _ = checkpoints.load_newest(self._workdir, last_step=target)
        if newest is None or newest.step != target:
            raise RunError(f"The checkpoint of step {target} in {self._workdir}, to go back to, cannot be read here.")
        restore(self._state, newest)
        forget_lost_best(self._workdir, self._state)
        if self._devices.is_chief:
            omitted = range(max(first, target + 1), step + 1)
            skipping.append(self._workdir, record, policy="rollback", omitted=omitted)
            self._watcher.on_skipped(step, message)
        agree(self._devices)  # now all have read the checkpoint, and all can see skipped.jsonl
        self._omitted = skipping.omitted_steps(self._workdir, resume_step=target)
        if self._devices.is_chief:
            repair_folder(self._workdir, self._state, newest, self._task)
            self._watcher.on_rollback(target)
        self._saved_step = target
        self._feed = Feed(self._task, self._devices, target)  # its iterator is ahead; an order starts at any step

    def _step_to_go_back_to(self, first: int) -> int:
        """Returns the step of the newest intact checkpoint before a step; if there is none, of the newest of all."""
        newest, complaints = checkpoints.load_newest(self._workdir, last_step=first - 1)
        for complaint in complaints:
            self._watcher.on_skipped(first, complaint)
        if newest is None:
            newest, _ = checkpoints.load_newest(self._workdir)
        if newest is None:
            raise RunError(f"There is no checkpoint in {self._workdir} to go back to.")
        return newest.step

    def _inspect(self, step: int) -> list[dict[str, Any]]:
        """Returns the examples of a step, counted from 0, with their losses, the largest first."""
        shape = self._task.order.batch(step).shape
        batches = distribute(self._task.train, self._devices, first_step=step, num_steps=1, shape=shape)
        seen = {
            name: value.numpy()
            for name, value in self._inspect_step(iter(batches), tf.constant(step, tf.int64)).items()
        }
        return skipping.rank_examples(**seen)

    @functools.cached_property
    def _inspect_step(self) -> Callable[[Any, tf.Tensor], dict[str, tf.Tensor]]:
        return build_inspect_step(
            self._state.model, self._task.losses, strategy=self._devices.strategy, config=self._config
        )

    def _is_due_for_evaluation(self) -> bool:
        step, every = self._state.step, self._config.evaluate_every
        is_due = step == self._config.num_steps or bool(every and not step % every)
        return is_due and self._state.progress.evaluated_step < step

    def _at_boundary(self) -> None:
        """Evaluates and writes a checkpoint if they are due at this step."""
        state, config, task = self._state, self._config, self._task
        improved = False
        if self._is_due_for_evaluation():
            judged = state.averages if task.judged_weights != "raw" else []
            with averaged(judged, state.model.trainable_variables):
                improved = self._evaluate()
                samples = task.samples(state.model) if self._devices.is_chief else []
                if samples:
                    self._watcher.on_samples(state.step, samples)
            state.progress.evaluated_step, self._saved_step = state.step, -1  # a checkpoint of it knows nothing of this
        last = state.step == config.num_steps or state.progress.stopped_early
        # A best evaluation is saved at once: its weights are gone after the next step.
        is_due = last or not state.step % config.checkpoint_every
        if improved or (is_due and state.step != self._saved_step):
            self._save(improved=improved)

    def _evaluate(self) -> bool:
        """Returns whether this is the best evaluation so far."""
        state = self._state
        if "validation" not in self._task.evaluations:
            return False
        started = time.perf_counter()
        metrics = self._evaluator.evaluate("validation")
        improved = _note_evaluation(state, metrics, self._task.best_metric, self._config.early_stopping_patience)
        if self._devices.is_chief:
            self._watcher.on_evaluation(state.step, "validation", metrics, time.perf_counter() - started)
        return improved

    def _save(self, *, improved: bool) -> None:
        """Copies the run's state and has it written during training."""
        self._saved_step = self._state.step
        if not self._devices.is_chief:
            return
        self._watcher.before_checkpoint(self._state.step)
        started = time.perf_counter()
        self._report_written(self._writer.wait())  # so that only one copy is in memory
        checkpoint = self._state.checkpoint(frozen_file=self._writer.frozen_file)
        name, sign = self._task.best_metric
        value = self._state.progress.best_value
        best = checkpoints.Best(name, sign * value) if improved and value is not None else None
        self._report_written(self._writer.submit(checkpoint, best=best))
        self._watcher.on_checkpoint(self._state.step, time.perf_counter() - started)

    def _save_last(self) -> None:
        """Puts the finished steps on disk before the process ends."""
        if self._saved_step != self._state.step:
            self._save(improved=False)
        self._report_written(self._writer.wait())

    def _report_written(self, written: list[checkpoints.Written]) -> None:
        for checkpoint in written:
            self._watcher.on_written(checkpoint.step, checkpoint.seconds)


def _steps_to_event(step: int, config: TrainingConfig) -> int:
    """Returns the steps until the next event between two calls, at most `steps_per_call`."""
    intervals = [
        config.devices.steps_per_call,
        config.checkpoint_every,
        config.evaluate_every,
        config.recording.histograms_every,
    ]
    to_intervals = [interval - step % interval for interval in intervals if interval]
    return min([*to_intervals, *profiling.steps_to_edge(step, config.recording.profile_steps), config.num_steps - step])


def _note_evaluation(state: TrainState, metrics: dict[str, Any], best_metric: tuple[str, int], patience: int) -> bool:
    """Updates the run's progress; returns whether this is the best evaluation so far."""
    name, sign = best_metric
    value, progress = metrics[name], state.progress
    if value is None:
        return False  # an undefined metric is not worse than the best, so it is no reason to stop
    signed = sign * value
    if progress.best_value is None or signed > progress.best_value:
        progress.best_value, progress.best_step, progress.evaluations_since_best = signed, state.step, 0
        return True
    progress.evaluations_since_best += 1
    progress.stopped_early = 0 < patience <= progress.evaluations_since_best
    return False


def _records(arrays: dict[str, np.ndarray], parts: dict[str, np.ndarray], first_step: int) -> list[dict[str, Any]]:
    """Turns the columns of a call into one record per step; steps count from 1."""
    records = []
    for i in range(len(arrays["loss"])):
        record = {
            "step": first_step + i + 1,
            "train/loss": float(arrays["loss"][i]),
            "train/weight": float(arrays["weight"][i]),
            "train/gradient_norm": float(arrays["gradient_norm"][i]),
            "train/learning_rate": float(arrays["learning_rate"][i]),
            "train/finite": bool(arrays["finite"][i]),
        }
        if arrays["positions"][i]:  # the batches say which of their positions are tokens
            record["train/tokens"] = float(arrays["tokens"][i])
            record["train/useful_share"] = float(arrays["tokens"][i] / arrays["positions"][i])
        record |= {f"train/{name}": float(values[i]) for name, values in parts.items()}
        record["time/input_seconds"] = float(arrays["input_seconds"][i])
        if not arrays["good"][i]:
            record["train/skipped"] = True
        records.append(record)
    return records
