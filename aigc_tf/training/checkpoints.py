"""Checkpoints of a run: weights and optimizer slots as safetensors, the rest as JSON, all hashed.

    checkpoints/
      step-00000500/weights.safetensors     model.variables by path, without random states
                    optimizer.safetensors   optimizer.variables by path
                    state.json              step, progress of the run, sha256 of the two
      best.json                             {"folder", "step", "metric", "value"} of the best evaluation
      last.json                             {"folder", "step"}

A folder gets its name when it is complete and on disk; only then are older ones removed (the newest two and the best
stay). Reading checks the hashes; a broken newest checkpoint is named and the one before is taken.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import safetensors
import safetensors.numpy

from aigc_tf import storage
from aigc_tf.config import InputError, RunError

_WEIGHTS, _OPTIMIZER, _STATE = "weights.safetensors", "optimizer.safetensors", "state.json"


@dataclasses.dataclass(kw_only=True)
class Checkpoint:
    """What a checkpoint folder holds, on the host."""

    step: int
    """Optimizer steps done."""
    weights: dict[str, np.ndarray]
    slots: dict[str, np.ndarray]
    progress: dict[str, Any]
    """What else a run needs to go on: seconds trained, evaluations since the best, ..."""


def named_variables(variables: list[keras.Variable]) -> dict[str, keras.Variable]:
    """Returns variables by path, without the states of seed generators, which the step does not use.

    Raises:
        RunError: If two variables share a path, which no checkpoint could tell apart.
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


def to_host(variables: list[keras.Variable]) -> dict[str, np.ndarray]:
    """Copies variables to host arrays by path."""
    return {path: np.asarray(variable.numpy()) for path, variable in named_variables(variables).items()}


def assign(variables: list[keras.Variable], values: Mapping[str, np.ndarray], *, what: str) -> None:
    """Assigns host arrays to variables by path.

    Raises:
        InputError: If names or shapes differ: it is the checkpoint of another model.
    """
    named = named_variables(variables)
    missing, unknown = sorted(set(named) - set(values)), sorted(set(values) - set(named))
    if missing or unknown:
        odd = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which this model has not"
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


def save(workdir: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Writes a checkpoint, makes it the last, and removes older ones but the one before and the best.

    Raises:
        RunError: If the disk is full; the older checkpoints are untouched.
    """
    name = f"step-{checkpoint.step:08d}"
    parts = {
        _WEIGHTS: safetensors.numpy.save(checkpoint.weights),
        _OPTIMIZER: safetensors.numpy.save(checkpoint.slots),
    }
    state = {
        "step": checkpoint.step,
        "progress": checkpoint.progress,
        "sha256": {part: hashlib.sha256(content).hexdigest() for part, content in parts.items()},
    }
    if storage.is_remote(workdir):
        for part, content in parts.items():
            storage.write_bytes(folder_of(workdir, name, part), content)
        storage.write_json(folder_of(workdir, name, _STATE), state)  # last: a folder without it is no checkpoint
    else:
        with storage.staged_folder(folder_of(workdir, name), overwrite=True) as staging:
            for part, content in parts.items():
                (staging / part).write_bytes(content)
            storage.write_json(staging / _STATE, state)
    storage.write_json(folder_of(workdir, "last.json"), {"folder": name, "step": checkpoint.step})


def mark_best(workdir: str | os.PathLike[str], *, step: int, metric: str, value: float) -> None:
    """Names the checkpoint of `step` as the best."""
    content = {"folder": f"step-{step:08d}", "step": step, "metric": metric, "value": value}
    storage.write_json(folder_of(workdir, "best.json"), content)


def prune(workdir: str | os.PathLike[str]) -> None:
    """Removes all checkpoints but the newest two and the best."""
    folders = _folders(workdir)
    best = folder_of(workdir, "best.json")
    keep = set(folders[-2:]) | ({storage.read_json(best)["folder"]} if storage.exists(best) else set())
    for name in folders:
        if name not in keep:
            storage.remove_folder(folder_of(workdir, name))


def repair(workdir: str | os.PathLike[str], newest: Checkpoint, *, best_step: int, metric: str, value: float) -> bool:
    """Makes the folder say what a run that goes on from `newest` knows; a kill may have come between two writes.

    Newer folders, which are broken or unfinished, are removed, and `last.json` and `best.json` are written anew.

    Args:
        workdir: The run folder.
        newest: What the run goes on from.
        best_step: Step of the best evaluation up to then; 0 for none.
        metric: Name of the metric that was best.
        value: Its value.
    Returns:
        Whether the best weights are there, or there were none.
    """
    for name in _folders(workdir):
        if _step_of(name) > newest.step:
            storage.remove_folder(folder_of(workdir, name))
    storage.write_json(folder_of(workdir, "last.json"), {"folder": f"step-{newest.step:08d}", "step": newest.step})
    if best_step and f"step-{best_step:08d}" in _folders(workdir):
        mark_best(workdir, step=best_step, metric=metric, value=value)
        return True
    storage.remove_file(folder_of(workdir, "best.json"))
    return not best_step


def any_there(workdir: str | os.PathLike[str]) -> bool:
    """Whether the run has written a checkpoint."""
    return bool(_folders(workdir))


def load_newest(workdir: str | os.PathLike[str]) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest checkpoint that is whole, or None, and a sentence for each newer one that is not.

    Raises:
        RunError: If there are checkpoints but every one is broken.
    """
    complaints: list[str] = []
    folders = _folders(workdir)
    for name in reversed(folders):
        try:
            return load(folder_of(workdir, name)), complaints
        except RunError as error:
            complaints.append(f"{error} Taking the one before.")
    if folders:
        raise RunError(f"Every checkpoint in {folder_of(workdir)} is broken; remove the folder to start anew.")
    return None, complaints


def load_named(workdir: str | os.PathLike[str], which: str) -> Checkpoint:
    """Loads the `best` or the `last` checkpoint; a run that never evaluated has no best, then it is the last.

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
    raise InputError(f"{os.fspath(workdir)} has no checkpoint yet; train first: python scripts/train.py --workdir=...")


def load(folder: str) -> Checkpoint:
    """Reads a checkpoint folder and checks its hashes.

    Raises:
        RunError: If a file is missing or not what was written.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    try:
        state = storage.read_json(storage.join(folder, _STATE))
        for part, expected in state["sha256"].items():
            content = storage.read_bytes(storage.join(folder, part))
            if hashlib.sha256(content).hexdigest() != expected:
                raise RunError(f"Checkpoint {folder} is broken: {part} is not what was written.")
            parts[part] = safetensors.numpy.load(content)
        return Checkpoint(
            step=state["step"], weights=parts[_WEIGHTS], slots=parts[_OPTIMIZER], progress=state["progress"]
        )
    except (OSError, KeyError, TypeError, InputError, safetensors.SafetensorError) as error:
        raise RunError(f"Checkpoint {folder} is broken: {error}") from error


def _folders(workdir: str | os.PathLike[str]) -> list[str]:
    names = [name for name in storage.list_folder(folder_of(workdir)) if name[:5] == "step-" and name[5:].isdigit()]
    if storage.is_remote(workdir):  # a folder there is complete when its state.json is
        names = [name for name in names if storage.exists(folder_of(workdir, name, _STATE))]
    return sorted(names, key=_step_of)


def _step_of(folder: str) -> int:
    return int(folder.removeprefix("step-"))
