"""Checkpoints of a run: weights and optimizer slots as safetensors, the rest as JSON, all hashed.

    checkpoints/
      step-00000500/weights.safetensors     the model's trained variables by path
                    averages.safetensors    their moving averages, if the run keeps them
                    optimizer.safetensors   optimizer.variables by path
                    state.json              step, progress of the run, sha256 of every file, the name of the frozen one
      frozen-<sha256>.safetensors           the variables that no step changes, once for all steps
      best.json                             {"folder", "step", "metric", "value"} of the best evaluation
      last.json                             {"folder", "step"}

A folder gets its name when it is complete, on disk, and equal to what was written when it is read back; only then are
older ones removed (the newest two and the best stay). Reading checks the hashes. If the newest checkpoint is broken, it
is reported and the one before is used. `Writer` does all this in a thread, on copies in the host's memory, during
training.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import keras
import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf

from aigc_tf import storage
from aigc_tf.errors import InputError, RunError

_WEIGHTS, _AVERAGES, _OPTIMIZER = "weights.safetensors", "averages.safetensors", "optimizer.safetensors"
_STATE = "state.json"


@dataclasses.dataclass(kw_only=True)
class Checkpoint:
    """The content of a checkpoint folder, on the host."""

    step: int
    """Steps done."""
    weights: dict[str, np.ndarray]
    """By path: the trained weights and, if it was read from disk, the frozen ones."""
    slots: dict[str, np.ndarray]
    progress: dict[str, Any]
    """What else a run needs to resume: seconds trained, evaluations since the best, ..."""
    averages: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """Moving averages of the trained weights, by the path of the weight."""
    frozen: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """The frozen weights, by path; only if they are still to be written."""
    frozen_file: str = ""
    """The file of the frozen weights, if it is written already."""

    def weights_of(self, kind: str) -> dict[str, np.ndarray]:
        """Returns the weights to judge and to export.

        Args:
            kind: `raw`, `averaged`, or `auto`: averaged if there are averages.
        Raises:
            InputError: If there are no averages.
        """
        if kind == "averaged" and not self.averages:
            raise InputError(
                "This run keeps no averaged weights (training.optimizer.ema_decay is 0); ask for raw ones."
            )
        return self.weights if kind == "raw" else self.weights | self.averages


class Best(NamedTuple):
    """The best evaluation so far."""

    metric: str
    value: float


class Written(NamedTuple):
    """A checkpoint that is on disk."""

    step: int
    seconds: float
    """Time that writing took, in the thread."""
    frozen_file: str
    """The file of the frozen weights; empty if all weights are trained."""


def named_variables(variables: Iterable[keras.Variable]) -> dict[str, keras.Variable]:
    """Returns variables by path, without the states of seed generators, which the step does not use.

    Raises:
        RunError: If two variables share a path, since a checkpoint could not distinguish them.
    """
    named: dict[str, keras.Variable] = {}
    for variable in variables:
        if variable.path.endswith("seed_generator_state"):
            continue
        if variable.path in named:
            raise RunError(
                f"Two variables of the model share the path {variable.path!r}; a checkpoint cannot keep both."
            )
        named[variable.path] = variable
    return named


def to_host(variables: Iterable[keras.Variable]) -> dict[str, np.ndarray]:
    """Returns the current values of variables, by path, as host arrays that no later step changes."""
    return {path: host_array(variable) for path, variable in named_variables(variables).items()}


def host_array(variable: keras.Variable) -> np.ndarray:
    """Returns the current value of a variable.

    On CPU it shares the variable's memory. When TensorFlow updates a variable whose memory is still in use elsewhere,
    it allocates new memory; so the next step makes the copy, in its threads.
    """
    return np.asarray(tf.convert_to_tensor(variable.value))


def assign(variables: list[keras.Variable], values: Mapping[str, np.ndarray], *, what: str) -> None:
    """Assigns host arrays to variables by path.

    Raises:
        InputError: If names or shapes differ, so that it is the checkpoint of another model.
    """
    named = named_variables(variables)
    missing, unknown = sorted(set(named) - set(values)), sorted(set(values) - set(named))
    if missing or unknown:
        odd = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which this model does not have"
        raise InputError(f"The checkpoint's {what} belong to another model: it {odd}.")
    for path, variable in named.items():
        if tuple(variable.shape) != values[path].shape:
            raise InputError(
                f"The checkpoint's {what} belong to another model: {path!r} is {values[path].shape} there "
                f"and {tuple(variable.shape)} here."
            )
        variable.assign(values[path])


def folder_of(workdir: str | os.PathLike[str], *names: str) -> str:
    return storage.join(workdir, "checkpoints", *names)


class Writer:
    """Writes checkpoints one after another in a thread. A context manager; leaving it waits for the last one.

    If the thread fails, the next call raises its error.

    Args:
        workdir: The run folder.
        reach: A checkpoint is also kept from at least this many steps before the newest, for a run that may roll back.
    """

    def __init__(self, workdir: str | os.PathLike[str], *, reach: int = 0):
        self._workdir, self._reach = workdir, reach
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[Written] | None = None
        self.frozen_file = ""
        """The file that the awaited checkpoints use; the next ones need not write it again."""

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Errors of the writer must not hide the error that ended the run.
        with contextlib.suppress(Exception) if error is not None else contextlib.nullcontext():
            try:
                self.wait()
            finally:
                self._pool.shutdown()

    def submit(self, checkpoint: Checkpoint, *, best: Best | None = None) -> list[Written]:
        """Starts to write a checkpoint once the previous one is written; returns that one, if not yet reported.

        Args:
            checkpoint: Copies in the host's memory, which nobody else changes.
            best: Its evaluation, if it is the best so far.
        Raises:
            RunError: If the previous one could not be written.
        """
        written = self.wait()
        self._pending = self._pool.submit(_write, self._workdir, checkpoint, best, self._reach)
        return written

    def poll(self) -> list[Written]:
        """Returns the checkpoint that is written by now and not yet reported.

        Raises:
            RunError: If it could not be written.
        """
        return self.wait() if self._pending is not None and self._pending.done() else []

    def wait(self) -> list[Written]:
        """Waits for the checkpoint that is being written.

        Raises:
            RunError: If it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return []
        written = pending.result()
        self.frozen_file = written.frozen_file
        return [written]


def _write(workdir: str | os.PathLike[str], checkpoint: Checkpoint, best: Best | None, reach: int) -> Written:
    started = time.perf_counter()
    frozen_file = save(workdir, checkpoint)
    if best is not None:
        mark_best(workdir, step=checkpoint.step, metric=best.metric, value=best.value)
    with contextlib.suppress(RunError, OSError):  # a failed removal is tried again next time
        prune(workdir, reach=reach)
    return Written(checkpoint.step, time.perf_counter() - started, frozen_file)


def save(workdir: str | os.PathLike[str], checkpoint: Checkpoint) -> str:
    """Writes a checkpoint, reads it back and makes it the last; returns the name of the frozen weights' file.

    Raises:
        RunError: If the disk is full, or reading back gives something else. Older checkpoints stay untouched.
    """
    name = f"step-{checkpoint.step:08d}"
    parts = {_WEIGHTS: checkpoint.weights, _AVERAGES: checkpoint.averages, _OPTIMIZER: checkpoint.slots}
    hashes: dict[str, str] = {}
    state = {"step": checkpoint.step, "progress": checkpoint.progress, "sha256": hashes}
    frozen_file = checkpoint.frozen_file
    if checkpoint.frozen:
        frozen_file = _save_frozen(workdir, checkpoint.frozen)
    if frozen_file:
        state["frozen"] = frozen_file
        if not storage.exists(folder_of(workdir, frozen_file)):
            raise RunError(f"{folder_of(workdir, frozen_file)} is gone; no checkpoint is complete without it.")
    with contextlib.ExitStack() as stack:
        folder: str | Path = folder_of(workdir, name)
        if not storage.is_remote(workdir):
            folder = stack.enter_context(storage.staged_folder(folder, overwrite=True))
        for part, arrays in parts.items():
            if arrays or part != _AVERAGES:
                hashes[part] = _write_checked(storage.join(folder, part), safetensors.numpy.save(arrays))
        storage.write_json(storage.join(folder, _STATE), state)  # last: a remote folder without it is not complete
    storage.write_json(folder_of(workdir, "last.json"), {"folder": name, "step": checkpoint.step})
    return frozen_file


def _save_frozen(workdir: str | os.PathLike[str], frozen: dict[str, np.ndarray]) -> str:
    """Writes the frozen weights if they are not there yet; returns the name of their file."""
    content = safetensors.numpy.save(frozen)
    name = f"frozen-{hashlib.sha256(content).hexdigest()}.safetensors"
    path = folder_of(workdir, name)
    if not storage.exists(path) or storage.sha256_read_back(path) not in name:
        _write_checked(path, content)
    return name


def _write_checked(path: str, content: bytes) -> str:
    """Writes a file, reads it back and returns its sha256.

    Raises:
        RunError: If it cannot be written, or reading back gives something else.
    """
    written = hashlib.sha256(content).hexdigest()
    storage.write_bytes(path, content)
    if storage.sha256_read_back(path) != written:
        raise RunError(f"Reading {path} back gives something else than was written; check the disk.")
    return written


def mark_best(workdir: str | os.PathLike[str], *, step: int, metric: str, value: float) -> None:
    """Names the checkpoint of `step` as the best."""
    content = {"folder": f"step-{step:08d}", "step": step, "metric": metric, "value": value}
    storage.write_json(folder_of(workdir, "best.json"), content)


def prune(workdir: str | os.PathLike[str], *, reach: int = 0) -> None:
    """Removes all checkpoints except the newest two, the best, and those needed to go back `reach` steps."""
    folders = _folders(workdir)
    best = folder_of(workdir, "best.json")
    keep = set(folders[-2:]) | ({storage.read_json(best)["folder"]} if storage.exists(best) else set())
    before = [name for name in folders if _step_of(name) <= _step_of(folders[-1]) - reach]
    keep |= set(before[-1:] + folders[len(before) :])
    for name in folders:
        if name not in keep:
            storage.remove_folder(folder_of(workdir, name))


def repair(workdir: str | os.PathLike[str], newest: Checkpoint, *, best_step: int, best: Best | None) -> None:
    """Makes the folder consistent for a run that resumes from `newest`, since a kill may have come between two writes.

    It removes newer folders, which are broken or unfinished, and the remains of killed writes, and writes `last.json`
    and `best.json` anew.

    Args:
        workdir: The run folder.
        newest: The checkpoint that the run resumes from.
        best_step: Step of the best evaluation up to then; its checkpoint exists.
        best: That evaluation; None if there was none.
    """
    _remove_leftovers(workdir)
    for name in _folders(workdir):
        if _step_of(name) > newest.step:
            storage.remove_folder(folder_of(workdir, name))
    storage.write_json(folder_of(workdir, "last.json"), {"folder": f"step-{newest.step:08d}", "step": newest.step})
    if best is not None:
        mark_best(workdir, step=best_step, metric=best.metric, value=best.value)
    else:
        storage.remove_file(folder_of(workdir, "best.json"))


def _remove_leftovers(workdir: str | os.PathLike[str]) -> None:
    whole = set(_folders(workdir))
    for name in storage.list_folder(folder_of(workdir)):
        path = folder_of(workdir, name)
        if re.fullmatch(r"step-\d+", name) and name not in whole:
            storage.remove_folder(path)  # an upload that was killed
        elif ".partial" in name:
            (storage.remove_folder if name.startswith(".") else storage.remove_file)(path)


def is_there(workdir: str | os.PathLike[str], step: int) -> bool:
    """Whether the run has a checkpoint of a step."""
    return any(_step_of(name) == step for name in _folders(workdir))


def any_there(workdir: str | os.PathLike[str]) -> bool:
    """Whether the run has written a checkpoint."""
    return bool(_folders(workdir))


class _BrokenCheckpoint(RunError):
    """A file is missing or differs from what was written."""


def load_newest(
    workdir: str | os.PathLike[str], *, last_step: int | None = None
) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest checkpoint that is intact, or None, and a sentence for each newer one that is broken.

    Args:
        workdir: The run folder.
        last_step: Checkpoints of later steps are skipped. None: none is skipped.
    Raises:
        RunError: If every checkpoint is broken, or one cannot be read now.
    """
    complaints: list[str] = []
    folders = [name for name in _folders(workdir) if last_step is None or _step_of(name) <= last_step]
    for name in reversed(folders):
        try:
            return load(folder_of(workdir, name)), complaints
        except _BrokenCheckpoint as error:
            complaints.append(f"{error} Taking the one before.")
    if folders:
        reasons = " ".join(complaint.removesuffix(" Taking the one before.") for complaint in complaints)
        raise RunError(
            f"Every checkpoint in {folder_of(workdir)} is broken: {reasons} Restore intact ones, or move the folder "
            "away to start anew."
        )
    return None, complaints


def load_named(workdir: str | os.PathLike[str], which: str) -> Checkpoint:
    """Loads the `best` or the `last` checkpoint; for a run without evaluations the best is the last.

    Raises:
        InputError: If the run has no checkpoint, or `which` is neither.
        RunError: If the checkpoint is broken.
    """
    if which not in ("best", "last"):
        raise InputError(f"--checkpoint is 'best' or 'last', received {which!r}.")
    for pointer in (["best.json"] if which == "best" else []) + ["last.json"]:
        path = folder_of(workdir, pointer)
        if storage.exists(path):
            return load(folder_of(workdir, storage.read_json(path)["folder"]))
    raise InputError(f"{os.fspath(workdir)} has no checkpoint yet; run the command that trains it again.")


def load(folder: str) -> Checkpoint:
    """Reads a checkpoint folder and checks its hashes.

    Raises:
        RunError: If a file is missing or differs from what was written.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    try:
        state = storage.read_json(storage.join(folder, _STATE))
        files = {storage.join(folder, part): (part, expected) for part, expected in state["sha256"].items()}
        if "frozen" in state:
            name = state["frozen"]
            path = storage.join(os.path.dirname(folder), name)
            files[path] = ("frozen", name.removeprefix("frozen-").removesuffix(".safetensors"))
        for path, (part, expected) in files.items():
            content = storage.read_bytes(path)
            if hashlib.sha256(content).hexdigest() != expected:
                raise _BrokenCheckpoint(
                    f"Checkpoint {folder} is broken: {os.path.basename(path)} differs from what was written."
                )
            parts[part] = safetensors.numpy.load(content)
        return Checkpoint(
            step=state["step"],
            weights=parts[_WEIGHTS] | parts.get("frozen", {}),
            slots=parts[_OPTIMIZER],
            progress=state["progress"],
            averages=parts.get(_AVERAGES, {}),
        )
    except (FileNotFoundError, KeyError, TypeError, InputError, safetensors.SafetensorError) as error:
        raise _BrokenCheckpoint(f"Checkpoint {folder} is broken: {error}.") from error
    except OSError as error:  # it may be intact
        raise RunError(
            f"Checkpoint {folder} cannot be read now: {error}. Fix that and run the command again."
        ) from error


def _folders(workdir: str | os.PathLike[str]) -> list[str]:
    names = [name for name in storage.list_folder(folder_of(workdir)) if name[:5] == "step-" and name[5:].isdigit()]
    if storage.is_remote(workdir):  # a folder there is complete when its state.json is
        names = [name for name in names if storage.exists(folder_of(workdir, name, _STATE))]
    return sorted(names, key=_step_of)


def _step_of(folder: str) -> int:
    return int(folder.removeprefix("step-"))
