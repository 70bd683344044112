"""report.json of a run folder: what was trained, how fast, and its metrics. It is written whole or not at all.

Its top-level keys are `REPORT_KEYS`, always all of them:

    task                  key of `tasks.TASKS`
    config_sha256         `config.sha256` of the resolved config
    weights_sha256        `models.weights.weights_sha256` of the weights of the last step
    steps                 optimizer steps
    train_seconds         wall time over all restarts of the run; null if unknown
    examples_per_second   of training, over the same time; null if unknown
    tokens_per_second     the same, without padding
    goodput               share of the time since the run's first start that went into training; null if unknown
    peak_memory_bytes     largest resident set of the process that finished the training
    versions              `versions()`
    metrics               {"validation": {...}, "test": {...}}, as `classification_metrics` or `language_model_metrics`
                          returns them, and the `step` of the evaluated weights: those of the best checkpoint

An undefined metric is null in the file and `undefined` on the terminal.
"""

import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aigc_tf import storage
from aigc_tf.errors import InputError

REPORT_NAME = "report.json"
_TYPES: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "config_sha256": str,
    "weights_sha256": str,
    "steps": int,
    "train_seconds": (int, float, type(None)),
    "examples_per_second": (int, float, type(None)),
    "tokens_per_second": (int, float, type(None)),
    "goodput": (int, float, type(None)),
    "peak_memory_bytes": int,
    "versions": dict,
    "metrics": dict,
}
REPORT_KEYS = tuple(_TYPES)

# The module tensorflow has several distribution names, by device.
_TENSORFLOWS = ("tensorflow", "tensorflow-tpu", "tensorflow-cpu", "tf-nightly")
_MAX_MATRIX = 12  # the most classes whose confusion matrix fits a terminal


def write_report(
    workdir: str | os.PathLike[str],
    *,
    task: str,
    config_sha256: str,
    weights_sha256: str,
    steps: int,
    train_seconds: float | None,
    examples_per_second: float | None,
    tokens_per_second: float | None,
    goodput: float | None,
    metrics: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Writes report.json of a run and returns it; memory and versions are those of this process.

    Args:
        workdir: The run folder, local or an object store.
        task: Key of `tasks.TASKS`.
        config_sha256: Hex digest of the resolved config.
        weights_sha256: Hex digest of the weights of the last step.
        steps: Optimizer steps of the run.
        train_seconds: Seconds of training, over all restarts of the run.
        examples_per_second: Training examples per second.
        tokens_per_second: Training tokens per second, without padding.
        goodput: Share of the time since the run's first start that went into training steps that count.
        metrics: Split name to its metrics; finite numbers, None, and dicts and lists of those.

    Raises:
        RunError: If the file cannot be written.
        ValueError: If a number is NaN or infinite.
    """
    report = {
        "task": task,
        "config_sha256": config_sha256,
        "weights_sha256": weights_sha256,
        "steps": steps,
        "train_seconds": train_seconds,
        "examples_per_second": examples_per_second,
        "tokens_per_second": tokens_per_second,
        "goodput": goodput,
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": versions(),
        "metrics": {split: dict(values) for split, values in metrics.items()},
    }
    storage.write_json(storage.join(workdir, REPORT_NAME), report)
    return report


def read_report(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads report.json of a run.

    Raises:
        InputError: If it is missing or broken.
    """
    path = storage.join(workdir, REPORT_NAME)
    if not storage.exists(path):
        raise InputError(f"There is no {path}; training writes it when it ends. Give the folder of a finished run.")
    report = storage.read_json(path)
    missing = [key for key in REPORT_KEYS if key not in report] if isinstance(report, dict) else list(REPORT_KEYS)
    if missing:
        raise InputError(f"{path} is not a report of this version: it lacks {', '.join(missing)}.")
    for key, types in _TYPES.items():
        if not isinstance(report[key], types):
            raise InputError(f"{path} is broken: {key!r} is {str(report[key])[:80]!r}.")
    if not all(isinstance(values, dict) for values in report["metrics"].values()):
        raise InputError(f"{path} is broken: 'metrics' must hold one object per split.")
    return report


def update_metrics(workdir: str | os.PathLike[str], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Replaces the metrics in report.json, leaves the rest as training wrote it, and returns the report.

    Args:
        workdir: The run folder.
        metrics: As for `write_report`, of every split, so that no report mixes two evaluations.

    Raises:
        InputError: If the report is missing or broken; nothing is written then.
        RunError: If the file cannot be written.
    """
    report = read_report(workdir)
    report["metrics"] = {split: dict(values) for split, values in metrics.items()}
    storage.write_json(storage.join(workdir, REPORT_NAME), report)
    return report


def versions() -> dict[str, str | None]:
    """Returns the versions that a result depends on; None for packages that are not installed."""
    return {
        "python": platform.python_version(),
        "tensorflow": next(filter(None, map(_version, _TENSORFLOWS)), None),
        "keras": _version("keras"),
        "keras-nlp": _version("keras-nlp"),
        "tensorflow-text": _version("tensorflow-text"),
        "numpy": _version("numpy"),
        "aigc_tf": _version("aigc_tf"),
        "platform": platform.platform(),
    }


def peak_memory_bytes() -> int:
    """Returns the largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def print_report(
    report: Mapping[str, Any],
    *,
    workdir: str | os.PathLike[str],
    console: Console | None = None,
    split: str = "test",
) -> None:
    """Prints a report: metrics of the splits side by side, classes and confusions of one split, speed, path.

    Args:
        report: As `read_report` returns it.
        workdir: The run folder, to print the report's path.
        console: Where to print; standard output by default.
        split: Whose classes are shown; the last one in the report if it has no such split.
    """
    console = console or Console()
    metrics = report["metrics"]
    if not metrics:
        console.print("There are no metrics: the data have neither a validation nor a test split.")
    else:
        console.print(_metrics_table(metrics))
        split = split if split in metrics else list(metrics)[-1]
        per_class, matrix = metrics[split].get("per_class"), metrics[split].get("confusion_matrix")
        if per_class:
            console.print(_classes_table(per_class, split))
        if per_class and matrix and len(matrix) <= _MAX_MATRIX:
            console.print(_matrix_table(matrix, list(per_class), split))
    for line in _facts(report, storage.join(workdir, REPORT_NAME)):
        console.print(Text(line), soft_wrap=True)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _metrics_table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    table = _table("Metrics", "metric", list(metrics))
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    for name in names:
        values = [split.get(name, "") for split in metrics.values()]
        is_table = any(isinstance(value, (dict, list)) for value in values)
        if is_table or name.endswith("_standard_error"):
            continue
        errors = [split.get(f"{name}_standard_error") for split in metrics.values()]
        cells = [_number(value) for value in values]
        shown = [cell if error is None else f"{cell} ± {error:.4f}" for cell, error in zip(cells, errors, strict=True)]
        table.add_row(Text(name), *map(Text, shown))
    return table


def _classes_table(per_class: Mapping[str, Mapping[str, Any]], split: str) -> Table:
    columns = ("precision", "recall", "f1", "support")
    table = _table(f"Classes ({split})", "class", columns)
    for name, scores in per_class.items():
        table.add_row(Text(name), *(_number(scores.get(column)) for column in columns))
    return table


def _matrix_table(matrix: list[list[int]], names: list[str], split: str) -> Table:
    table = _table(f"Confusions ({split}); rows are the truth, columns the predictions", "", names)
    for index, (name, row) in enumerate(zip(names, matrix, strict=True)):
        cells = (Text(str(count), style="bold" if index == column else "") for column, count in enumerate(row))
        table.add_row(Text(name), *cells)
    return table


def _table(title: str, first: str, columns: Any) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left")
    table.add_column(first, overflow="fold")
    for column in columns:
        # Text, since rich would take a class name such as [red] for markup.
        table.add_column(Text(column), justify="right", overflow="fold")
    return table


def _facts(report: Mapping[str, Any], path: str) -> list[str]:
    speeds = [(report[f"{what}_per_second"], f"{what} per second") for what in ("examples", "tokens")]
    speed_shown = ", ".join(f"{speed:,.1f} {unit}" for speed, unit in speeds if speed is not None) or "unknown speed"
    software = ", ".join(f"{name} {version or 'not installed'}" for name, version in report["versions"].items())
    kept = report["goodput"]
    share = "" if kept is None else f", {100 * kept:.1f} % of the time since the run's first start"
    return [
        f"Trained {report['steps']:,} steps in {_duration(report['train_seconds'])}{share}; {speed_shown}, "
        f"peak memory {report['peak_memory_bytes'] / 2**30:.2f} GiB.",
        f"Weights {report['weights_sha256'][:12]}, config {report['config_sha256'][:12]}, task {report['task']}.",
        f"Software: {software}.",
        f"Report: {path}",
    ]


def _number(value: Any) -> str:
    if value is None:
        return "undefined"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.3e}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
