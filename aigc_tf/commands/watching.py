"""Records and shows a run while it trains: metrics.jsonl, TensorBoard, the progress bar, the profiler."""

import contextlib
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf

from aigc_tf import storage
from aigc_tf.commands.runs import door_of
from aigc_tf.config import OPERATIONAL_FIELDS, ExperimentConfig
from aigc_tf.config.fields import flatten, to_json
from aigc_tf.data.prepared.facts import DataFacts
from aigc_tf.errors import Preempted, RunError
from aigc_tf.evaluation import classification
from aigc_tf.evaluation.report import peak_memory_bytes
from aigc_tf.training import checkpoints
from aigc_tf.training.devices.hardware import MachinePeak, machine_peak
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.planning.flops import StepFlops
from aigc_tf.training.planning.preflight import length_of, resident_bytes
from aigc_tf.training.recording import hparams
from aigc_tf.training.recording.profiling import ProfileWindow
from aigc_tf.training.recording.progress import ProgressBar
from aigc_tf.training.recording.step_log import StepLog
from aigc_tf.training.recording.telemetry import LOGS_NAME, Telemetry
from aigc_tf.training.run_state import TrainState
from aigc_tf.training.step.batch_losses import RECORDED_NAMES
from aigc_tf.training.step.traced_step import TracedStep
from aigc_tf.training.task import Shown, Task


class RunWatcher:
    """Passes the loop's events to telemetry, the profiler and the progress bar. A context manager.

    Args:
        config: Resolved config of the run.
        workdir: The run folder.
        task: The task that is trained.
        state: The run in memory, at the step where it starts or resumes.
        devices: Where it trains; only the chief records.
        facts: Facts of the data.
        flops: Floating-point operations of its step by padded length, or the reason why they are unknown.
        started: Time of the run's first start, in seconds since 1970; None if unknown.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        workdir: str,
        *,
        task: Task,
        state: TrainState,
        devices: Devices,
        facts: DataFacts,
        flops: StepFlops | str,
        started: float | None,
    ):
        training = config.training
        self._door, self._config, self._facts = door_of(config), config, facts
        self._task, self._state, self._devices = task, state, devices
        self._workdir, self._started = workdir, started
        self._flops = flops
        self._peak: MachinePeak | None = None
        self._said_undefined = False
        self._progress = ProgressBar(
            num_steps=training.num_steps, first_step=state.step, rate=self._door.rate, enabled=devices.is_chief
        )
        self._profile = ProfileWindow(storage.join(workdir, LOGS_NAME), training.recording.profile_steps)
        self._shown = contextlib.ExitStack()
        self._telemetry, self._example_ids = self._open(state.step)

    def _open(self, resume_step: int) -> tuple[Telemetry, StepLog | None]:
        """Opens the records of the run, cut back to `resume_step`."""
        training, is_chief = self._config.training, self._devices.is_chief
        telemetry = Telemetry(
            self._workdir, resume_step=resume_step, log_every=training.recording.log_every, enabled=is_chief
        )
        telemetry.config(to_json(self._config))
        settings = {name: value for name, value in flatten(self._config).items() if name not in OPERATIONAL_FIELDS}
        telemetry.session_start(hparams.settings_of(settings), started=self._started or time.time())
        if not training.recording.log_example_ids or not is_chief:
            return telemetry, None
        return telemetry, StepLog(
            storage.join(self._workdir, "example_ids.jsonl"), keep=lambda line: bool(line["step"] <= resume_step)
        )

    def __enter__(self) -> "RunWatcher":
        self._shown.enter_context(self._progress)
        self._shown.enter_context(self._profile)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as records:
            records.callback(self._telemetry.__exit__, kind, error, trace)
            if self._example_ids is not None:
                records.callback(self._example_ids.__exit__, kind, error, trace)
            records.callback(self._end_session, error)
            self._shown.close()

    def _end_session(self, error: BaseException | None) -> None:
        if isinstance(error, Preempted):
            return  # the run is not over: the same command resumes it
        # A failure to write this must not hide the error that ended the run.
        with contextlib.suppress(RunError) if error is not None else contextlib.nullcontext():
            self._telemetry.session_end(succeeded=error is None)

    def on_start(self, step: int) -> None:
        if step:
            self._progress.note(f"resuming after step {step}")
        self._peak = machine_peak(self._devices, self._config.training.devices.precision)
        self._telemetry.text(step, "time/peak_flops", self._peak.origin)
        if isinstance(self._flops, str):
            self._progress.note(f"no FLOPs utilisation: {self._flops}")
        self._profile.after_step(step)

    def on_steps(self, records: list[dict[str, float]]) -> None:
        measured = self._speeds(records) | memory_in_use()
        self._telemetry.record([record | measured for record in records])
        self._progress(records[-1], parts=_parts(records[-1]))
        step = int(records[-1]["step"])
        self._profile.after_step(step)
        every = self._config.training.recording.histograms_every
        if every and not step % every:
            self._draw_weights(step)

    def _speeds(self, records: list[dict[str, float]]) -> dict[str, float]:
        """Returns how well a call into the graph used the devices; empty if it computed nothing."""
        rows = self._task.train.global_batch_size
        seconds = len(records) * rows / records[-1].get("time/examples_per_second", math.inf)
        if not seconds:
            return {}
        waited = sum(record["time/input_seconds"] for record in records)
        speeds = {"time/input_stall_share": waited / seconds}
        if self._peak is not None and not isinstance(self._flops, str):
            shapes = [self._task.order.batch(int(record["step"]) - 1).shape for record in records]
            flops = sum(self._flops(length_of(shape)) for shape in shapes) * self._devices.num_replicas
            speeds["time/flops_utilisation"] = flops / seconds / self._peak.flops_per_second
        return speeds

    def _draw_weights(self, step: int) -> None:
        for path, values in checkpoints.to_host(self._state.model.trainable_variables).items():
            self._telemetry.histogram(step, f"weights/{path}", values)

    def on_evaluation(self, step: int, split: str, metrics: dict[str, Any], seconds: float) -> None:
        scalars = {f"{split}/{name}": value for name, value in classification.scalar_metrics(metrics).items()}
        self._telemetry.scalars(step, scalars | {f"time/{split}_seconds": seconds})
        for name, image in self._door.draw(metrics, self._facts).items():
            self._telemetry.image(step, f"{split}/{name}", image)
        metric, _ = self._task.best_metric
        value = metrics[metric]
        shown = "undefined" if value is None else f"{value:.4f}"
        self._progress.note(f"step {step}: {split} {metric} {shown}, judged in {seconds:.1f} s")
        if value is None and not self._said_undefined:
            self._said_undefined = True
            self._progress.note(
                f"{metric} is undefined for the {split} data, such as a correlation with equal labels; such "
                "an evaluation chooses no best checkpoint and does not count for early stopping. If that persists, "
                "take another evaluation.best_metric or other data."
            )

    def on_early_stop(self, step: int, message: str) -> None:
        self._progress.note(message)

    def on_samples(self, step: int, samples: list[Shown]) -> None:
        for number, sample in enumerate(samples, start=1):
            if sample.kind not in _SHOW:
                known = ", ".join(_SHOW)
                raise RunError(f"A sample of the kind {sample.kind!r} cannot be shown; the task may show {known}.")
            note = _SHOW[sample.kind](self._telemetry, step, f"samples/{number}", sample)
            self._progress.note(f"sample {number} after step {step}:\n{note}")

    def before_checkpoint(self, step: int) -> None:
        self._telemetry.flush()
        if self._example_ids is not None:
            self._example_ids.flush()

    def on_checkpoint(self, step: int, blocked_seconds: float) -> None:
        kept = goodput(self._state.progress.train_seconds, self._started)
        known = {} if kept is None else {"time/goodput": kept}
        self._telemetry.scalars(step, {"time/checkpoint_blocked_seconds": blocked_seconds} | known)

    def on_written(self, step: int, seconds: float) -> None:
        self._telemetry.scalars(step, {"time/checkpoint_seconds": seconds})

    def on_example_ids(self, first_step: int, example_ids: np.ndarray) -> None:
        if self._example_ids is not None:
            for step, ids in enumerate(example_ids.tolist(), start=first_step):
                self._example_ids.add({"step": step, "example_ids": ids})

    def on_skipped(self, step: int, message: str) -> None:
        self._progress.note(message)

    def on_rollback(self, step: int) -> None:
        # Closed first, since opening cuts the files back to the step: buffered lines would be written after the cut.
        self._telemetry.close()
        if self._example_ids is not None:
            self._example_ids.close()
        self._telemetry, self._example_ids = self._open(step)
        self._progress.note(f"rolled back to step {step}")


def count_step_flops(step: TracedStep, task: Task) -> StepFlops | str:
    """Returns the floating-point operations of a traced step by padded length, or the reason why they are unknown."""
    try:
        return StepFlops(step, task.order.bucket_lengths)
    except ValueError as reason:
        return str(reason)


def _parts(record: dict[str, float]) -> dict[str, float]:
    """Returns the parts of the loss in the record of a step."""
    trained = {tag.removeprefix("train/"): value for tag, value in record.items() if tag.startswith("train/")}
    return {name: value for name, value in trained.items() if name not in RECORDED_NAMES}


def _show_text(telemetry: Telemetry, step: int, tag: str, sample: Shown) -> str:
    # Markdown shows indented text literally. The mark ⟩ separates the prompt from the generated text.
    shown = "\n".join(f"    {line}" for line in f"{sample.caption}⟩{sample.value}".split("\n"))
    telemetry.text(step, tag, shown)
    return shown


def _show_picture(telemetry: Telemetry, step: int, tag: str, sample: Shown) -> str:
    telemetry.image(step, tag, sample.value)
    height, width = sample.value.shape[:2]
    return f"    {sample.caption}⟩a picture of {width} x {height}, in TensorBoard as {tag}"


# How each kind of sample is recorded; the functions return the text for the terminal.
_SHOW: dict[str, Callable[[Telemetry, int, str, Shown], str]] = {"text": _show_text, "picture": _show_picture}


def goodput(train_seconds: float, started: float | None) -> float | None:
    """Returns the share of the time since a run's first start that went into training steps that count.

    Steps that a restart repeated count once, since a checkpoint keeps the seconds of its steps. The other time is for
    starting, compiling outside of calls, evaluations, checkpoints, repeated steps, and time when the run was down.

    Args:
        train_seconds: Seconds inside training calls of the steps that led to the run's weights.
        started: Time of the run's first start, in seconds since 1970; None if unknown, then the result is None.
    """
    return None if started is None else train_seconds / max(time.time() - started, train_seconds, 1e-9)


def memory_in_use() -> dict[str, float]:
    """Returns the current and peak memory of this process, by tag, and on GPUs that of the fullest one."""
    held = resident_bytes()
    # The system counts the two separately, and the peak may lag a little behind.
    found: dict[str, float] = {"time/host_peak_memory_bytes": max(peak_memory_bytes(), held)}
    if held:
        found["time/host_memory_bytes"] = held
    devices = [tf.config.experimental.get_memory_info(gpu.name) for gpu in tf.config.list_logical_devices("GPU")]
    if devices:
        found["time/device_memory_bytes"] = float(np.max([info["current"] for info in devices]))
        found["time/device_peak_memory_bytes"] = float(np.max([info["peak"] for info in devices]))
    return found
