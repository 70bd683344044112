"""Metrics of a classifier or regressor, accumulated from its logits batch by batch.

NumPy, SciPy and scikit-learn only. A metric that is 0/0 for the data (the recall of a class without rows, a correlation
with a constant) is None, never NaN and never a convenient 0; in JSON it is `null`.

Shape letters: N examples, C classes or labels.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special, stats
from sklearn.metrics import matthews_corrcoef

from aigc_tf.config import PROBLEM_TYPES
from aigc_tf.errors import InputError, RunError, suggest


class Classification:
    """Compares logits with labels. `add` takes the rows of a batch, `result` returns the metrics of all rows so far.

    It keeps only sums (for regression two floats per row, which the correlations need). So memory does not grow with
    the split, and no metric depends on how the rows were cut into batches.

    Args:
        problem_type: One of `config.PROBLEM_TYPES`.
        label_names: C names, in the order of the logits; ignored for regression.
    Raises:
        ValueError: If there are no names.
    """

    def __init__(self, problem_type: str, label_names: Sequence[str] = ()):
        _check_problem_type(problem_type)
        if problem_type != "regression" and not label_names:
            raise ValueError(f"For {problem_type}, label_names must name each column of the logits; received none.")
        self._problem_type, self._num_classes = problem_type, len(label_names)
        self._sums: _SingleLabel | _MultiLabel | _Regression
        if problem_type == "single_label":
            self._sums = _SingleLabel(label_names)
        elif problem_type == "multi_label":
            self._sums = _MultiLabel(label_names)
        else:
            self._sums = _Regression()
        self._num_rows = self._num_broken = 0

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds rows.

        Args:
            rows: `labels`, `(N,)` int in [0, C) for single_label, `(N, C)` of 0 and 1 for multi_label, `(N,)` float
                for regression; `logits`, `(N, C)` float, `(N, 1)` or `(N,)` for regression. Other keys are ignored.
        Raises:
            ValueError: If shapes or labels do not fit together.
        """
        labels, logits = _checked(rows["labels"], rows["logits"], self._problem_type, self._num_classes)
        is_broken = ~np.isfinite(logits).all(axis=tuple(range(1, logits.ndim)))
        self._num_rows += len(logits)
        self._num_broken += int(is_broken.sum())
        self._sums.add(labels[~is_broken], logits[~is_broken])

    def result(self) -> dict[str, Any]:
        """Returns plain numbers, None for an undefined metric, and nested dicts and lists of those.

        `num_examples`, and

        - single_label: `loss` (mean cross-entropy in nats), `accuracy`, `accuracy_standard_error` (binomial),
          `majority_accuracy` (of always answering the most frequent class), `macro_f1` (mean over the
          classes that were seen or predicted), `weighted_f1` (weighted by support), `matthews`,
          `per_class: {name: {precision, recall, f1, support}}`, `confusion_matrix` (C x C, rows are the truth);
        - multi_label: `loss` (mean binary cross-entropy over N and C), `subset_accuracy`, `micro_f1`, `macro_f1`,
          `per_class`; a label is predicted if its logit is above 0;
        - regression: `loss` and `mse`, `mae`, `baseline_mse` (of always answering the mean label),
          `pearson`, `spearman`.

        Raises:
            RunError: If logits were NaN or infinite.
        """
        if self._num_broken:
            raise RunError(
                f"The logits of {self._num_broken} of {self._num_rows} rows are NaN or infinite, so the model cannot "
                "be evaluated; train again with a lower learning rate or from an earlier checkpoint."
            )
        return self._sums.result()


def scalar_metrics(metrics: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Returns the single numbers among the metrics (None if undefined), without the tables; for curves."""
    return {key: value for key, value in metrics.items() if value is None or isinstance(value, (int, float))}


def confusion(labels: np.ndarray, logits: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts `(C, C)` int64: entry [i, j] counts the rows of class i that were predicted as class j.

    Args:
        labels: `(N,)` int in [0, C).
        logits: `(N, C)` float; the first of equal maxima wins.
        num_classes: C.
    """
    predicted = np.argmax(logits, axis=-1)
    # bincount over numbered cells, since np.add.at on the matrix is slow.
    cells = np.asarray(labels, np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def _check_problem_type(problem_type: str) -> None:
    if problem_type not in PROBLEM_TYPES:
        raise InputError(
            f"The problem type is {problem_type!r}; it is one of {', '.join(PROBLEM_TYPES)}."
            f"{suggest(problem_type, PROBLEM_TYPES)}"
        )


def _checked(
    labels: np.ndarray, logits: np.ndarray, problem_type: str, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the labels, and the logits in float64."""
    labels, logits = np.asarray(labels), np.asarray(logits)
    num_rows = len(labels)
    if problem_type == "regression" and logits.shape == (num_rows, 1):
        logits = logits[:, 0]
    fits_labels = (num_rows, num_classes) if problem_type == "multi_label" else (num_rows,)
    fits_logits = (num_rows,) if problem_type == "regression" else (num_rows, num_classes)
    if labels.shape != fits_labels or logits.shape != fits_logits:
        raise ValueError(
            f"For {problem_type} with {num_classes} label names, labels must be {fits_labels} and "
            f"logits {fits_logits}, received {labels.shape} and {logits.shape}."
        )
    _check_label_range(labels, problem_type, num_classes)
    # float64, so that the sums hardly depend on how the rows were cut into batches.
    return labels, logits.astype(np.float64)


def _check_label_range(labels: np.ndarray, problem_type: str, num_classes: int) -> None:
    if problem_type == "single_label" and len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"Labels must be in [0, {num_classes}), received {labels.min()} to {labels.max()}.")
    if problem_type == "multi_label" and not np.isin(labels, (0, 1)).all():
        raise ValueError("multi_label labels must be 0 or 1.")
    if problem_type == "regression" and not np.isfinite(labels.astype(np.float64)).all():
        raise ValueError("Regression labels must be finite.")


class _SingleLabel:
    """A confusion matrix and a sum of losses."""

    def __init__(self, label_names: Sequence[str]):
        self._label_names = label_names
        self._matrix = np.zeros((len(label_names), len(label_names)), np.int64)
        self._loss = 0.0

    def add(self, labels: np.ndarray, logits: np.ndarray) -> None:
        labels = labels.astype(np.int64)
        self._matrix += confusion(labels, logits, len(self._label_names))
        self._loss -= float(special.log_softmax(logits, axis=-1)[np.arange(len(labels)), labels].sum())

    def result(self) -> dict[str, Any]:
        matrix, num_examples = self._matrix, int(self._matrix.sum())
        supports = matrix.sum(axis=1)
        per_class = _per_class(self._label_names, hits=np.diag(matrix), predicted=matrix.sum(axis=0), supports=supports)
        accuracy = _ratio(int(np.trace(matrix)), num_examples)
        error = None if accuracy is None else math.sqrt(accuracy * (1 - accuracy) / num_examples)
        weighted_f1 = sum(row["f1"] * row["support"] for row in per_class.values() if row["support"])
        return {
            "num_examples": num_examples,
            "loss": _mean(self._loss, num_examples),
            "accuracy": accuracy,
            "accuracy_standard_error": error,
            "majority_accuracy": _ratio(int(supports.max()), num_examples),
            "macro_f1": _macro_f1(per_class),
            "weighted_f1": _ratio(weighted_f1, num_examples),
            "matthews": _matthews(matrix),
            "per_class": per_class,
            "confusion_matrix": matrix.tolist(),
        }


def _matthews(matrix: np.ndarray) -> float | None:
    # With a single class among the labels or the predictions it is 0/0, which scikit-learn reports as 0.
    if np.count_nonzero(matrix.sum(axis=1)) < 2 or np.count_nonzero(matrix.sum(axis=0)) < 2:
        return None
    truth, predicted = np.indices(matrix.shape).reshape(2, -1)  # one row per cell, weighted by its count
    return float(matthews_corrcoef(truth, predicted, sample_weight=matrix.ravel()))


class _MultiLabel:
    """Counts by label, and a sum of losses."""

    def __init__(self, label_names: Sequence[str]):
        self._label_names = label_names
        self._hits, self._positives, self._supports = np.zeros((3, len(label_names)), np.int64)
        self._num_examples = self._num_right = 0
        self._loss = 0.0

    def add(self, labels: np.ndarray, logits: np.ndarray) -> None:
        truth, predicted = labels.astype(bool), logits > 0
        self._hits += (truth & predicted).sum(axis=0)
        self._positives += predicted.sum(axis=0)
        self._supports += truth.sum(axis=0)
        self._num_examples += len(truth)
        self._num_right += int((truth == predicted).all(axis=1).sum())
        # Binary cross-entropy, stable for any logit.
        self._loss += float((np.logaddexp(0.0, logits) - logits * truth).sum())

    def result(self) -> dict[str, Any]:
        hits, positives, supports = self._hits, self._positives, self._supports
        per_class = _per_class(self._label_names, hits=hits, predicted=positives, supports=supports)
        return {
            "num_examples": self._num_examples,
            "loss": _mean(self._loss, self._num_examples * len(self._label_names)),
            "subset_accuracy": _ratio(self._num_right, self._num_examples),
            "micro_f1": _ratio(2 * hits.sum(), supports.sum() + positives.sum()),
            "macro_f1": _macro_f1(per_class),
            "per_class": per_class,
        }


class _Regression:
    """Keeps labels and predictions: Spearman's correlation needs their ranks, which need all rows."""

    def __init__(self) -> None:
        self._labels: list[np.ndarray] = [np.zeros(0)]
        self._predictions: list[np.ndarray] = [np.zeros(0)]

    def add(self, labels: np.ndarray, predictions: np.ndarray) -> None:
        self._labels.append(labels.astype(np.float64))
        self._predictions.append(predictions)

    def result(self) -> dict[str, Any]:
        labels, predictions = np.concatenate(self._labels), np.concatenate(self._predictions)
        errors, num_examples = predictions - labels, len(labels)
        mse = _mean((errors**2).sum(), num_examples)
        # A constant has no correlation; SciPy would warn and return NaN.
        varies = num_examples > 1 and np.ptp(labels) > 0 and np.ptp(predictions) > 0
        return {
            "num_examples": num_examples,
            "loss": mse,
            "mse": mse,
            "mae": _mean(np.abs(errors).sum(), num_examples),
            "baseline_mse": _mean(((labels - labels.mean()) ** 2).sum(), num_examples) if num_examples else None,
            "pearson": _finite(stats.pearsonr(labels, predictions).statistic) if varies else None,
            "spearman": _finite(stats.spearmanr(labels, predictions).statistic) if varies else None,
        }


def _per_class(
    label_names: Sequence[str], *, hits: np.ndarray, predicted: np.ndarray, supports: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Scores each class from `(C,)` counts. scikit-learn's function would read a single column as a binary problem."""
    return {
        name: {
            "precision": _ratio(hit, positive),
            "recall": _ratio(hit, support),
            "f1": _ratio(2 * hit, positive + support),
            "support": int(support),
        }
        for name, hit, positive, support in zip(label_names, hits, predicted, supports, strict=True)
    }


def _macro_f1(per_class: Mapping[str, Mapping[str, Any]]) -> float | None:
    known = [row["f1"] for row in per_class.values() if row["f1"] is not None]
    return _mean(np.sum(known), len(known))


def _mean(total: float, count: int) -> float | None:
    return _finite(total / count) if count else None


def _ratio(part: float, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
