"""The cost and gain of smaller weights, measured beside the same model with float32 weights.

Two stand-ins load both models and are called in turn, so that other work of the machine slows both alike.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from aigc_tf.serving.process.other_process import StandIn

Judge = Callable[[keras.Model, keras.Model], dict[str, Any]]
"""Model with float32 weights, the same with smaller ones -> `rows`, `metric`, its `values` of the two (None where it is
undefined), and `logits_difference`, the largest."""
_MEGA = 1e6
_REPEATS = 7


def measure_served(
    folders: Sequence[Path],
    signature: str,
    inputs: Mapping[str, np.ndarray],
    *,
    count: Callable[[Mapping[str, np.ndarray]], int],
) -> list[dict[str, Any]]:
    """Measures exported models that answer the same call.

    Args:
        folders: Folders of the SavedModels.
        signature: The signature to call.
        inputs: Inputs of the call, by name.
        count: Outputs -> number of examples or tokens, for the speed.
    Returns:
        For each model `megabytes` (10**6 bytes) of weights on disk, `resident_megabytes` after it has answered,
        `peak_megabytes` (both None if the system does not report them), and `per_second`, in the fastest of 7 calls,
        since other work of the machine can only slow them.
    """
    with contextlib.ExitStack() as stack:
        models = [stack.enter_context(StandIn(folder)) for folder in folders]
        rates: list[list[float]] = [[] for _ in models]
        for model in models:
            model.call(signature, inputs)
        for _ in range(_REPEATS):
            for model, rate in zip(models, rates, strict=True):
                outputs, seconds = model.timed_call(signature, inputs)
                rate.append(count(outputs) / seconds)
        return [
            {
                "megabytes": round(_weight_bytes(folder) / _MEGA, 2),
                "resident_megabytes": _memory(model.pid, "VmRSS"),
                "peak_megabytes": _memory(model.pid, "VmHWM"),
                "per_second": round(max(rate), 2),
            }
            for folder, model, rate in zip(folders, models, rates, strict=True)
        ]


def cost_table(cost: Mapping[str, Any], *, weights: str) -> str:
    """Returns the manifest's `weights_cost` as a table for the user."""
    full, small = cost["float32"], cost[weights]
    rows = [
        ("", "float32", weights),
        ("weights on disk, MB", f"{full['megabytes']:.1f}", f"{small['megabytes']:.1f}"),
        (f"{cost['unit']} per second", f"{full['per_second']:.1f}", f"{small['per_second']:.1f}"),
    ]
    for name, key in (("resident memory, MB", "resident_megabytes"), ("peak memory, MB", "peak_megabytes")):
        if full[key] is not None:
            rows.append((name, f"{full[key]:.0f}", f"{small[key]:.0f}"))
    if "judged" in cost:
        judged = cost["judged"]
        before, after = ("undefined" if value is None else f"{value:.4f}" for value in judged["values"])
        rows.append((f"{judged['metric']}, {judged['rows']} rows of {judged['split']}", before, after))
        rows.append(("largest difference of a logit", "", f"{judged['logits_difference']:.3g}"))
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"  {name:<{width}}  {one:>10}  {other:>10}" for name, one, other in rows)


def _weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "variables").iterdir())


def _memory(pid: int, field: str) -> float | None:
    path = f"/proc/{pid}/status"
    if not os.path.exists(path):
        return None
    kibibytes = int(Path(path).read_text(encoding="utf-8").split(f"{field}:")[1].split()[0])
    return round(kibibytes * 1024 / _MEGA, 1)
