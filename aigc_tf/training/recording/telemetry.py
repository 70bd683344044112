"""Records of a run: metrics.jsonl, which is authoritative, and TensorBoard's event files in logs/.

metrics.jsonl has one JSON object per line: `{"step": 7, "train/loss": 0.31, ...}` for each training step and
`{"step": 500, "validation/accuracy": 0.87, ...}` for each evaluation. Tags that measure time start with `time/`;
they alone differ between two runs of the same config. A tag has one value per step. JSON has no NaN, so a line is

    {"step": 8, "train/loss": null, "nonfinite": {"train/loss": "NaN"}}

if a value is not finite; null without an entry in `nonfinite` is a value that is undefined. `read_metrics`
gives NaN and infinities back. TensorBoard gets the same scalars (NaN itself) with fewer training steps.

A run that resumes at step k continues as if it had never gone further: metrics.jsonl is cut back to step k, and the
event files are replaced by one that holds each (tag, step) up to k once.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from aigc_tf import storage
from aigc_tf.errors import InputError, RunError
from aigc_tf.training.recording import hparams
from aigc_tf.training.recording.event_files import EventWriter, cut_event_files
from aigc_tf.training.recording.step_log import StepLog, parse_lines, writing

METRICS_NAME = "metrics.jsonl"
LOGS_NAME = "logs"

_NONFINITE = "nonfinite"
_CONFIG_TAG = "config"


class Telemetry:
    """Writes metrics.jsonl and TensorBoard's event files of one run. A context manager; one process a run writes.

    A second value of a tag at the same step is left out: what is recorded stays. So an evaluation that a resumed
    run repeats at the step it resumed from leaves no trace.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, resume_step: int, log_every: int = 1, enabled: bool = True
    ) -> None:
        """Cuts what is there back to `resume_step` and opens it for more.

        Args:
            workdir: The run folder, local or an object store.
            resume_step: Steps that are done; 0 starts afresh. What was recorded of later steps is dropped.
            log_every: TensorBoard gets the training record of step 1 and of each multiple of this.
            enabled: False on all workers except the chief: nothing is read or written.

        Raises:
            InputError: If metrics.jsonl has a broken line before its end.
            RunError: If the files cannot be written.
        """
        self._enabled = enabled
        if not enabled:
            return
        self._log_every = log_every
        self._resume_step = resume_step
        self._path = storage.join(workdir, METRICS_NAME)
        logs = storage.join(workdir, LOGS_NAME)
        storage.make_folder(logs)
        self._is_remote = storage.is_remote(workdir)
        self._recorded: dict[str, int] = {}
        self._log = StepLog(self._path, keep=self._keep_line)
        with writing(logs):
            self._drawn = cut_event_files(
                logs, last_step=resume_step, superseded=_CONFIG_TAG, dropped=hparams.SESSION_TAGS
            )
            self._writer = EventWriter(logs, first_step=resume_step + 1)
        if resume_step > max(self._recorded.values(), default=0):
            logging.warning("%s ends before step %d, where the run resumes: it has a gap.", self._path, resume_step)

    def _keep_line(self, row: dict[str, Any]) -> bool:
        """Whether a line is of a step that is done; notes the last step of each of its tags."""
        if row["step"] > self._resume_step:
            return False
        self._recorded |= {tag: row["step"] for tag in row if tag not in ("step", _NONFINITE)}
        return True

    def __enter__(self) -> "Telemetry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The error that ended the run is the one to report, not that its last lines could not be written either.
        with contextlib.suppress(RunError) if error is not None else contextlib.nullcontext():
            self.close()

    def record(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Records training steps, one mapping a step.

        Args:
            records: Each with `step` and numbers by tag, steps ascending; None is a value that is undefined.

        Raises:
            RunError: If the disk is full.
            ValueError: If a value is not a number, or a tag's steps go backwards.
        """
        if not self._enabled:
            return
        for record in records:
            step = int(record["step"])
            values = {tag: value for tag, value in record.items() if tag != "step"}
            self._add(step, values, draw=step == 1 or step % self._log_every == 0)
        self._hand_over()

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Records numbers by tag, such as the metrics of an evaluation; TensorBoard always gets them.

        Args:
            step: Global step they belong to.
            values: Numbers by tag; None is a value that is undefined.

        Raises:
            RunError: If the disk is full.
            ValueError: If a value is not a number, or a tag's steps go backwards.
        """
        if self._enabled:
            self._add(step, values, draw=True)
            self._hand_over()

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Gives TensorBoard an image.

        Args:
            step: Global step.
            tag: Name in TensorBoard.
            image: `(H, W, 3)` uint8.

        Raises:
            RunError: If the disk is full.
            ValueError: If it is not such an array.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"The image {tag!r} must be (H, W, 3) uint8, received {image.shape} {image.dtype}.")
        if self._enabled and self._is_new(self._drawn, tag, step):
            with writing(self._path):
                self._writer.image(step, tag, image)
            self._hand_over()

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Gives TensorBoard a text in Markdown.

        Raises:
            RunError: If the disk is full.
        """
        if self._enabled and self._is_new(self._drawn, tag, step):
            with writing(self._path):
                self._writer.text(step, tag, markdown)
            self._hand_over()

    def config(self, text: str) -> None:
        """Gives TensorBoard the resolved config, unformatted; once per start of the run, at its first step."""
        if self._enabled:
            self.text(self._resume_step, _CONFIG_TAG, "\n".join(f"    {line}" for line in text.splitlines()))

    def histogram(self, step: int, tag: str, values: np.ndarray) -> None:
        """Gives TensorBoard the distribution of numbers, such as a weight's; what is not finite is left out.

        Raises:
            RunError: If the disk is full.
        """
        if self._enabled and self._is_new(self._drawn, tag, step):
            with writing(self._path):
                self._writer.histogram(step, tag, values)
            self._hand_over()

    def session_start(self, settings: Mapping[str, hparams.Setting], *, started: float) -> None:
        """Gives TensorBoard's HParams tab the settings of the run, which began at `started`, seconds since 1970.

        Raises:
            RunError: If the disk is full.
        """
        if self._enabled:
            self._summary(0, hparams.session_start(settings, started=started))

    def session_end(self, *, succeeded: bool) -> None:
        """Tells TensorBoard's HParams tab how the run ended.

        Raises:
            RunError: If the disk is full.
        """
        if self._enabled:
            self._summary(self._resume_step, hparams.session_end(succeeded=succeeded, ended=time.time()))

    def _summary(self, step: int, summary: Any) -> None:
        with writing(self._path):
            self._writer.summary(step, summary)
        self._hand_over()

    def flush(self) -> None:
        """Puts all records on disk. Call it before a checkpoint, from which a run may resume.

        Raises:
            RunError: If the disk is full.
        """
        if not self._enabled:
            return
        with writing(self._path):
            self._writer.flush()
        self._log.flush()

    def close(self) -> None:
        """Flushes and closes the files; closing twice does nothing.

        Raises:
            RunError: If the disk is full.
        """
        if not self._enabled:
            return
        try:
            self.flush()
        finally:
            self._enabled = False
            with writing(self._path):
                self._writer.close()
            self._log.close()

    def _add(self, step: int, values: Mapping[str, Any], *, draw: bool) -> None:
        if values.keys() & {"step", _NONFINITE}:
            raise ValueError(f"'step' and {_NONFINITE!r} are keys of a line, no tags; received {list(values)}.")
        numbers = {tag: _plain(tag, value) for tag, value in values.items()}
        new = {tag: number for tag, number in numbers.items() if self._is_new(self._recorded, tag, step)}
        if new:
            self._log.add(_to_row(step, new))
        if not draw:
            return
        with writing(self._path):
            for tag, number in numbers.items():
                if number is not None and self._is_new(self._drawn, tag, step):
                    self._writer.scalar(step, tag, float(number))

    def _hand_over(self) -> None:
        """Gives what is recorded to the operating system, where it outlives a kill of this process."""
        if not self._is_remote:  # there a flush would upload the whole file
            self._log.hand_over()
            with writing(self._path):
                self._writer.flush()

    @staticmethod
    def _is_new(seen: dict[str, int], tag: str, step: int) -> bool:
        """Whether `tag` has no value at `step` yet; from now on it has."""
        last = seen.get(tag, -1)
        if step < last:
            raise ValueError(f"{tag!r} of step {step} comes after that of step {last}; steps must ascend.")
        seen[tag] = step
        return step > last


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads metrics.jsonl of a run, one dict a line, NaN and infinities restored.

    The last line of a run that is writing, or was killed, may be half there; it is left out.

    Raises:
        InputError: If there is no such file or a line is broken.
    """
    path = storage.join(workdir, METRICS_NAME)
    if not storage.exists(path):
        raise InputError(f"There is no {path}; training writes it. Give the folder of a run.")
    rows = []
    try:
        for _, row in parse_lines(storage.read_bytes(path)):
            nonfinite = row.pop(_NONFINITE, {})
            rows.append(row | {tag: float(text) for tag, text in nonfinite.items()})
    except ValueError as error:
        raise InputError(f"{path} is broken: {error}; repair it, or take another run.") from error
    return rows


def _plain(tag: str, value: Any) -> bool | int | float | None:
    """Returns a Python number of a NumPy or TensorFlow scalar; a float32 keeps its value exactly."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    array = np.asarray(value.numpy() if isinstance(value, tf.Tensor) else value)
    if array.size != 1 or array.dtype.kind not in "biufV":  # V: bfloat16
        raise ValueError(f"The value of {tag!r} must be one number, received {str(value)[:80]!r}.")
    number = array.reshape(()).item()
    return number if isinstance(number, (bool, int)) else float(number)


def _to_row(step: int, values: Mapping[str, bool | int | float | None]) -> dict[str, Any]:
    nonfinite = {
        tag: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        for tag, value in values.items()
        if value is not None and not math.isfinite(value)
    }
    row: dict[str, Any] = {"step": step} | {tag: None if tag in nonfinite else value for tag, value in values.items()}
    if nonfinite:
        row[_NONFINITE] = nonfinite
    return row
