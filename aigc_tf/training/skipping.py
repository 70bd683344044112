"""Bad steps of a run: which batches were left out and why, and which examples they held.

    skipped.jsonl                       one line per decision, never changed afterwards
    bad_steps/step-00000123.jsonl       the examples of the batch with their losses, the greatest first

A line of skipped.jsonl is `{"step", "loss", "gradient_norm", "finite", "policy", "omitted", "examples"}`; steps are
counted from 1, `omitted` are those whose batch is left out. What the policy `skip` decided is decided again when a run
that was killed comes to that step anew, so such lines are cut back to the checkpoint's step; lines of a rollback stay,
since a run that resumes from a checkpoint before them leaves those batches out.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from aigc_tf import storage
from aigc_tf.errors import InputError
from aigc_tf.training.recording.step_log import StepLog, parse_lines

LOG_NAME = "skipped.jsonl"
FOLDER_NAME = "bad_steps"


def omitted_steps(workdir: str | os.PathLike[str], *, resume_step: int) -> set[int]:
    """Returns the steps, counted from 0, whose batches a run that resumes after `resume_step` leaves out."""
    return {step - 1 for line in _kept(workdir, resume_step) for step in line["omitted"] if step > resume_step}


def cut_back(workdir: str | os.PathLike[str], *, resume_step: int) -> None:
    """Removes the decisions that a run that resumes after `resume_step` will make again."""
    if _read(workdir):  # a run without bad steps has no such file
        StepLog(_path(workdir), keep=lambda line: _stays(line, resume_step)).close()


def append(workdir: str | os.PathLike[str], record: Mapping[str, Any], *, policy: str, omitted: Iterable[int]) -> None:
    """Adds a decision to skipped.jsonl.

    Args:
        workdir: The run folder.
        record: Of the bad step, as metrics.jsonl has it.
        policy: `skip` or `rollback`.
        omitted: Steps, counted from 1, whose batches are left out.
    """
    line = {
        "step": record["step"],
        "loss": _number(record["train/loss"]),
        "gradient_norm": _number(record["train/gradient_norm"]),
        "finite": record["train/finite"],
        "policy": policy,
        "omitted": list(omitted),
        "examples": os.path.basename(examples_path(workdir, int(record["step"]))),
    }
    with StepLog(_path(workdir), keep=lambda line: True) as log:
        log.add(line)


def examples_path(workdir: str | os.PathLike[str], step: int) -> str:
    """Returns where the examples of a bad step, counted from 1, are written."""
    return storage.join(workdir, FOLDER_NAME, f"step-{step:08d}.jsonl")


def write_examples(workdir: str | os.PathLike[str], step: int, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes what `rank_examples` returned."""
    storage.make_folder(storage.join(workdir, FOLDER_NAME))
    content = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    storage.write_bytes(examples_path(workdir, step), content.encode())


def read_examples(workdir: str | os.PathLike[str], step: int = 0) -> tuple[int, list[dict[str, Any]]]:
    """Returns the step and the examples of a bad step of a run.

    Args:
        workdir: The run folder.
        step: Counted from 1. 0: the last one.
    Raises:
        InputError: If the run had no such step.
    """
    known = [int(name[5:13]) for name in storage.list_folder(storage.join(workdir, FOLDER_NAME)) if name[:5] == "step-"]
    if not known:
        raise InputError(f"{os.fspath(workdir)} had no bad step: there is no folder {FOLDER_NAME} in it.")
    if step and step not in known:
        raise InputError(f"Step {step} of {os.fspath(workdir)} was not bad; bad were {', '.join(map(str, known))}.")
    step = step or max(known)
    path = examples_path(workdir, step)
    try:
        rows = [json.loads(line) for line in storage.read_bytes(path).splitlines()]
        if not rows or any(not {"loss", "weight", "example_ids"} <= row.keys() for row in rows):
            raise ValueError("no examples in it")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is not what scripts/train.py writes ({error}).") from error
    return step, rows


def rank_examples(example_ids: np.ndarray, losses: np.ndarray, weights: np.ndarray) -> list[dict[str, Any]]:
    """Returns the examples of a batch as JSON-able rows, those that are not finite first, then the greatest loss first.

    Args:
        example_ids: `(B,)`, or `(B, M)` where a row holds several, -1 for none.
        losses: `(B,)`, `(B, M)` or one a token, `(B, T)`.
        weights: As losses.
    Returns:
        `{"example_ids", "loss", "weight"}`: weighted mean of the losses and sum of the weights of a row, or of an
        example where there is one loss for each; a loss that is not finite is a string.
    """
    rows = []
    if example_ids.shape == losses.shape:
        example_ids, losses, weights = (part.reshape(-1, 1) for part in (example_ids, losses, weights))
    for ids, values, shares in zip(example_ids.reshape(len(losses), -1), losses, weights, strict=True):
        values, shares = np.atleast_1d(values).astype(np.float64), np.atleast_1d(shares).astype(np.float64)
        counted = shares != 0
        weight = float(shares.sum())
        if ids.max() < 0 or not counted.any():
            continue  # fills up a row or a batch
        loss = float((values[counted] * shares[counted]).sum() / weight)
        rows.append((loss, {"example_ids": ids[ids >= 0].tolist(), "loss": _number(loss), "weight": weight}))
    rows.sort(key=lambda row: (math.isfinite(row[0]), -row[0] if math.isfinite(row[0]) else 0.0))
    return [row for _, row in rows]


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else str(value)


def _kept(workdir: str | os.PathLike[str], resume_step: int) -> list[dict[str, Any]]:
    return [line for line in _read(workdir) if _stays(line, resume_step)]


def _stays(line: Mapping[str, Any], resume_step: int) -> bool:
    return line["step"] <= resume_step or line.get("policy") == "rollback"


def _path(workdir: str | os.PathLike[str]) -> str:
    return storage.join(workdir, LOG_NAME)


def _read(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    path = _path(workdir)
    if not storage.exists(path):
        return []
    try:
        return [row | {"omitted": list(row["omitted"])} for _, row in parse_lines(storage.read_bytes(path))]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not what scripts/train.py writes ({error}); mend it or put it back: what a rollback left out "
            "stands there alone, and without it those batches would be trained on again."
        ) from error
