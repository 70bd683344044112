"""Metrics of a classifier or regressor from its logits, and the picture of a confusion matrix.

NumPy, SciPy and scikit-learn only. A metric that is 0/0 for the data at hand (the recall of a class without a
row, a correlation with a constant) is None, never NaN and never a convenient 0; it is JSON's `null`.

Shape letters: N examples, C classes or labels.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from scipy import special, stats
from sklearn.metrics import matthews_corrcoef

from aigc_tf.config import PROBLEM_TYPES
from aigc_tf.errors import InputError, RunError, suggest

_WIDE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "Arial Unicode MS")
_MAX_NAME = 28  # characters of a class name on an axis
_MAX_NUMBERED = 30  # classes up to which each cell shows its count
_MAX_TICKS = 60  # names on an axis


def classification_metrics(
    labels: np.ndarray,
    logits: np.ndarray,
    *,
    problem_type: str,
    label_names: Sequence[str] = (),
    weights: np.ndarray | None = None,
) -> dict[str, Any]:
    """Judges logits against labels.

    Args:
        labels: `(N,)` int in [0, C) for single_label; `(N, C)` of 0 and 1 for multi_label; `(N,)` float for
            regression.
        logits: `(N, C)` float; `(N, 1)` or `(N,)` for regression.
        problem_type: One of `config.PROBLEM_TYPES`.
        label_names: C names, in the order of the logits; not read for regression.
        weights: `(N,)`; rows of weight 0 only fill up a batch and are left out. Other weights count as 1.

    Returns:
        Plain numbers, None where a metric is undefined, and nested dicts and lists of those. `num_examples`, and

        - single_label: `loss` (mean cross-entropy in nats), `accuracy`, `accuracy_standard_error` (binomial),
          `majority_accuracy` (what always answering the most frequent class gets), `macro_f1` (mean over the
          classes that were seen or predicted), `weighted_f1` (weighted by support), `matthews`,
          `per_class: {name: {precision, recall, f1, support}}`, `confusion_matrix` (C x C, rows are the truth);
        - multi_label: `loss` (mean binary cross-entropy over N and C), `subset_accuracy`, `micro_f1`, `macro_f1`,
          `per_class`; a label is predicted where its logit is above 0;
        - regression: `loss` and `mse`, `mae`, `baseline_mse` (what always answering the mean label gets),
          `pearson`, `spearman`.

    Raises:
        RunError: If logits are NaN or infinite.
        ValueError: If shapes or labels do not fit together.
    """
    _check_problem_type(problem_type)
    labels, logits = _checked(labels, logits, problem_type, label_names, weights)
    if problem_type == "single_label":
        return _single_label(labels, logits, label_names)
    if problem_type == "multi_label":
        return _multi_label(labels, logits, label_names)
    return _regression(labels, logits)


def scalar_metrics(metrics: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Returns the single numbers among the metrics (None where undefined), without the tables; for curves."""
    return {key: value for key, value in metrics.items() if value is None or isinstance(value, (int, float))}


def confusion(labels: np.ndarray, logits: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts `(C, C)` int64: entry [i, j] is how many rows of class i were taken for class j.

    Args:
        labels: `(N,)` int in [0, C).
        logits: `(N, C)` float; the first of equal maxima wins.
        num_classes: C.
    """
    predicted = np.argmax(logits, axis=-1)
    cells = np.asarray(labels, np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def plot_confusion_matrix(matrix: np.ndarray | Sequence[Sequence[int]], label_names: Sequence[str]) -> np.ndarray:
    """Draws a confusion matrix: colour is the share of the row's truth, numbers are counts.

    A name with characters that no installed font has is shown as its class number (`#3`); the middle of a long
    one is left out. Beyond 30 classes cells have no numbers, beyond 60 only some ticks have names.

    Args:
        matrix: `(C, C)` int, rows are the truth.
        label_names: C names.

    Returns:
        `(H, W, 3)` uint8.

    Raises:
        ValueError: If the matrix is not `(C, C)` with C at least 1.
    """
    counts = np.asarray(matrix)
    num_classes = len(label_names)
    if counts.shape != (num_classes, num_classes) or not num_classes:
        raise ValueError(
            f"matrix must be (C, C) with one name a class, received {counts.shape} and {num_classes} names."
        )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.42 * num_classes, 3.0), 18.0)  # inches of the square of cells
    figure = Figure(figsize=(side + 3.2, side + 2.6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    _name_ticks(axes, label_names, points=72 * side)
    if num_classes <= _MAX_NUMBERED:
        _number_cells(axes, counts, shares, points=72 * side / num_classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    figure.colorbar(image, ax=axes, label="share of the truth", shrink=0.8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # names too long for the layout are still drawn
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _check_problem_type(problem_type: str) -> None:
    if problem_type not in PROBLEM_TYPES:
        raise InputError(
            f"The problem type is {problem_type!r}; it is one of {', '.join(PROBLEM_TYPES)}."
            f"{suggest(problem_type, PROBLEM_TYPES)}"
        )


def _checked(
    labels: np.ndarray, logits: np.ndarray, problem_type: str, label_names: Sequence[str], weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels and the fp64 logits of the rows that count."""
    labels, logits = np.asarray(labels), np.asarray(logits)
    num_rows, num_classes = len(labels), len(label_names)
    if problem_type != "regression" and not num_classes:
        raise ValueError(f"For {problem_type}, label_names must name each column of the logits; received none.")
    if problem_type == "regression" and logits.shape == (num_rows, 1):
        logits = logits[:, 0]
    fits_labels = {"single_label": (num_rows,), "multi_label": (num_rows, num_classes), "regression": (num_rows,)}
    fits_logits = (num_rows,) if problem_type == "regression" else (num_rows, num_classes)
    if labels.shape != fits_labels[problem_type] or logits.shape != fits_logits:
        raise ValueError(
            f"For {problem_type} with {num_classes} label names, labels must be {fits_labels[problem_type]} and "
            f"logits {fits_logits}, received {labels.shape} and {logits.shape}."
        )
    if weights is not None:
        weights = np.asarray(weights)
        if weights.shape != (num_rows,):
            raise ValueError(f"weights must be ({num_rows},), received {weights.shape}.")
        labels, logits = labels[weights != 0], logits[weights != 0]
    logits = logits.astype(np.float64)
    broken = ~np.isfinite(logits).all(axis=tuple(range(1, logits.ndim)))
    if broken.any():
        raise RunError(
            f"The logits of {broken.sum()} of {len(logits)} rows are NaN or infinite, so the model cannot be judged; "
            "train again with a lower learning rate or from an earlier checkpoint."
        )
    _check_label_range(labels, problem_type, num_classes)
    return labels, logits


def _check_label_range(labels: np.ndarray, problem_type: str, num_classes: int) -> None:
    if problem_type == "single_label" and len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"Labels must be in [0, {num_classes}), received {labels.min()} to {labels.max()}.")
    if problem_type == "multi_label" and not np.isin(labels, (0, 1)).all():
        raise ValueError("multi_label labels must be 0 or 1.")
    if problem_type == "regression" and not np.isfinite(labels.astype(np.float64)).all():
        raise ValueError("Regression labels must be finite.")


def _single_label(labels: np.ndarray, logits: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    num_examples = len(labels)
    labels = labels.astype(np.int64)
    matrix = confusion(labels, logits, len(label_names))
    supports = matrix.sum(axis=1)
    per_class = _per_class(label_names, hits=np.diag(matrix), predicted=matrix.sum(axis=0), supports=supports)
    log_probabilities = special.log_softmax(logits, axis=-1)
    accuracy = _ratio(int(np.trace(matrix)), num_examples)
    weighted_f1 = sum(row["f1"] * row["support"] for row in per_class.values() if row["support"])
    return {
        "num_examples": num_examples,
        "loss": _mean(-log_probabilities[np.arange(num_examples), labels]),
        "accuracy": accuracy,
        "accuracy_standard_error": None if accuracy is None else math.sqrt(accuracy * (1 - accuracy) / num_examples),
        "majority_accuracy": _ratio(int(supports.max()), num_examples),
        "macro_f1": _mean([row["f1"] for row in per_class.values() if row["f1"] is not None]),
        "weighted_f1": _ratio(weighted_f1, num_examples),
        "matthews": _matthews(labels, logits, matrix),
        "per_class": per_class,
        "confusion_matrix": matrix.tolist(),
    }


def _matthews(labels: np.ndarray, logits: np.ndarray, matrix: np.ndarray) -> float | None:
    # With a single class in the truth or among the predictions it is 0/0, which scikit-learn reports as 0.
    if np.count_nonzero(matrix.sum(axis=1)) < 2 or np.count_nonzero(matrix.sum(axis=0)) < 2:
        return None
    return float(matthews_corrcoef(labels, np.argmax(logits, axis=-1)))


def _multi_label(labels: np.ndarray, logits: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
    truth, predicted = labels.astype(bool), logits > 0
    losses = np.logaddexp(0.0, logits) - logits * truth  # binary cross-entropy, stable for any logit
    hits, positives, supports = (truth & predicted).sum(axis=0), predicted.sum(axis=0), truth.sum(axis=0)
    per_class = _per_class(label_names, hits=hits, predicted=positives, supports=supports)
    return {
        "num_examples": len(truth),
        "loss": _mean(losses),
        "subset_accuracy": _mean((truth == predicted).all(axis=1)),
        "micro_f1": _ratio(2 * hits.sum(), supports.sum() + positives.sum()),
        "macro_f1": _mean([row["f1"] for row in per_class.values() if row["f1"] is not None]),
        "per_class": per_class,
    }


def _regression(labels: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
    labels = labels.astype(np.float64)
    errors = predictions - labels
    mse = _mean(errors**2)
    varies = len(labels) > 1 and np.ptp(labels) > 0 and np.ptp(predictions) > 0
    return {
        "num_examples": len(labels),
        "loss": mse,
        "mse": mse,
        "mae": _mean(np.abs(errors)),
        "baseline_mse": _mean((labels - labels.mean()) ** 2) if len(labels) else None,
        "pearson": _finite(stats.pearsonr(labels, predictions).statistic) if varies else None,
        "spearman": _finite(stats.spearmanr(labels, predictions).statistic) if varies else None,
    }


def _per_class(
    label_names: Sequence[str], *, hits: np.ndarray, predicted: np.ndarray, supports: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Scores each class from `(C,)` counts; not scikit-learn's, which takes a single column for a binary problem."""
    return {
        name: {
            "precision": _ratio(hit, positive),
            "recall": _ratio(hit, support),
            "f1": _ratio(2 * hit, positive + support),
            "support": int(support),
        }
        for name, hit, positive, support in zip(label_names, hits, predicted, supports, strict=True)
    }


def _mean(values: Any) -> float | None:
    values = np.asarray(values, np.float64)
    return _finite(values.mean()) if values.size else None


def _ratio(part: float, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _font_families() -> list[str]:
    """Fonts tried character by character; asking for one that is not installed would fill the log."""
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(family for family in _WIDE_FONTS if family in installed)]


def _name_ticks(axes: Any, label_names: Sequence[str], *, points: float) -> None:
    """Names both axes, which are about `points` long."""
    families = _font_families()
    fonts = [font_manager.get_font(font_manager.findfont(family)) for family in families]
    shown = [_drawable_name(name, index, fonts) for index, name in enumerate(label_names)]
    ticks = list(range(0, len(shown), math.ceil(len(shown) / _MAX_TICKS)))
    # parse_math: a dollar sign in a class name is a dollar sign.
    style = {"fontfamily": families, "fontsize": min(points / len(ticks) * 0.5, 10.0), "parse_math": False}
    axes.set_xticks(ticks, [shown[tick] for tick in ticks], rotation=90, **style)
    axes.set_yticks(ticks, [shown[tick] for tick in ticks], **style)


def _number_cells(axes: Any, counts: np.ndarray, shares: np.ndarray, *, points: float) -> None:
    """Writes each count into its cell, `points` wide; numbers too wide for it are shortened (12k)."""
    size = min(points * 0.28, 12.0)
    fitting = int(points * 0.9 / (size * 0.64))  # a digit is 0.64 of the font size wide
    for row, column in np.ndindex(counts.shape):
        text = str(counts[row, column])
        text = text if len(text) <= fitting else _short_count(int(counts[row, column]))
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)


def _drawable_name(name: str, index: int, fonts: Sequence[FT2Font]) -> str:
    name = " ".join(name.split())  # a line break would push the axis away
    if not name or any(not any(font.get_char_index(ord(character)) for font in fonts) for character in name):
        return f"#{index}"
    if len(name) <= _MAX_NAME:
        return name
    half = _MAX_NAME // 2
    return f"{name[:half]}…{name[-(half - 1) :]}"


def _short_count(count: int) -> str:
    """At most five characters, rounded down: 999, 12k, 3M, 1e+09."""
    for limit, divisor, unit in ((1_000, 1, ""), (10**6, 1_000, "k"), (10**9, 10**6, "M")):
        if count < limit:
            return f"{count // divisor}{unit}"
    return f"{count:.0e}"
