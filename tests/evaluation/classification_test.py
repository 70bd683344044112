"""Hand-computed metrics, undefined ones, broken logits, and confusion matrices that can be drawn."""

import json
import math
import warnings

import numpy as np
import pytest
import sklearn.metrics

from aigc_tf.errors import RunError
from aigc_tf.evaluation.best_metric import CLASSIFICATION
from aigc_tf.evaluation.classification import (
    Classification,
    confusion,
    scalar_metrics,
)

NAMES = ("bad", "good", "so-so")


def logits_of(*predicted, num_classes=3):
    """Logits that predict the given classes by a margin of 1."""
    return np.eye(num_classes, dtype=np.float32)[list(predicted)]


def judged(labels, logits, *, problem_type, label_names=(), batches=1):
    """Metrics of rows that come in so many batches."""
    judge = Classification(problem_type, label_names)
    for part, of_labels in zip(np.array_split(logits, batches), np.array_split(labels, batches), strict=True):
        judge.add({"labels": of_labels, "logits": part})
    return judge.result()


def single(labels, logits, names=NAMES, **kwargs):
    return judged(np.array(labels), logits, problem_type="single_label", label_names=names, **kwargs)


def test_single_label_metrics_are_those_computed_by_hand():
    metrics = single([0, 0, 0, 1, 1, 2], logits_of(0, 0, 1, 1, 0, 1))
    assert metrics["num_examples"] == 6
    assert metrics["confusion_matrix"] == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert metrics["accuracy"] == 0.5
    assert metrics["accuracy_standard_error"] == pytest.approx(math.sqrt(0.25 / 6))
    assert metrics["majority_accuracy"] == 0.5
    assert metrics["per_class"] == {
        "bad": {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3},
        "good": {"precision": 1 / 3, "recall": 0.5, "f1": 0.4, "support": 2},
        "so-so": {"precision": None, "recall": 0.0, "f1": 0.0, "support": 1},
    }
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 0.4 + 0) / 3)
    assert metrics["weighted_f1"] == pytest.approx((3 * 2 / 3 + 2 * 0.4) / 6)
    # A hit costs log(e + 2) - 1, a miss log(e + 2); half are hits.
    assert metrics["loss"] == pytest.approx(math.log(math.e + 2) - 0.5)


def test_single_label_metrics_agree_with_scikit_learn_on_random_rows():
    generator = np.random.default_rng(0)
    labels, logits = generator.integers(0, 3, 200), generator.normal(size=(200, 3)).astype(np.float32)
    metrics, predicted = single(labels, logits), np.argmax(logits, axis=1)
    assert metrics["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))
    assert metrics["weighted_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="weighted"))
    assert metrics["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predicted))
    assert metrics["confusion_matrix"] == sklearn.metrics.confusion_matrix(labels, predicted).tolist()
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert metrics["loss"] == pytest.approx(sklearn.metrics.log_loss(labels, probabilities), rel=1e-6)


def test_a_class_that_is_neither_seen_nor_predicted_is_undefined_and_left_out_of_the_mean():
    metrics = single([0, 1], logits_of(0, 1))
    assert metrics["per_class"]["so-so"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert metrics["macro_f1"] == 1.0


@pytest.mark.parametrize(("labels", "predicted"), [([1, 1, 1], (1, 0, 1)), ([0, 1, 2], (1, 1, 1))])
def test_matthews_is_undefined_where_truth_or_predictions_are_one_class(labels, predicted):
    assert single(labels, logits_of(*predicted))["matthews"] is None


def test_matthews_of_a_balanced_coin_is_zero_not_undefined():
    assert single([0, 0, 1, 1], logits_of(0, 1, 0, 1))["matthews"] == 0.0


def test_loss_is_computed_in_fp64_and_survives_extreme_logits():
    metrics = single([0, 0], np.array([[3e38, -3e38, 0], [-3e38, 3e38, 0]], np.float32))
    assert metrics["loss"] == pytest.approx(np.float64(np.float32(3e38)))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_with_their_number(broken):
    logits = logits_of(0, 1, 2, 0)
    logits[1, 2] = logits[3, 0] = broken
    for batches in (1, 2, 4):
        with pytest.raises(RunError, match="logits of 2 of 4 rows"):
            single([0, 1, 2, 0], logits, batches=batches)


def test_every_undefined_value_is_null_in_json_even_without_a_single_row():
    empty = {
        "single_label": (np.zeros(0, np.int32), np.zeros((0, 3), np.float32)),
        "multi_label": (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)),
        "regression": (np.zeros(0, np.float32), np.zeros((0, 1), np.float32)),
    }
    for problem_type, (labels, logits) in empty.items():
        metrics = judged(labels, logits, problem_type=problem_type, label_names=NAMES)
        assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
        assert metrics["num_examples"] == 0
        assert metrics["loss"] is None
        assert metrics[next(iter(CLASSIFICATION[problem_type]))] is None


def test_all_values_are_plain_json_numbers():
    metrics = single([0, 1, 2], logits_of(0, 1, 1))
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert type(metrics["confusion_matrix"][0][0]) is int


def test_multi_label_metrics_are_those_computed_by_hand():
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 0]], np.float32)
    logits = np.array([[2, -1, -1], [-1, -1, 3], [1, -1, 1]], np.float32)
    metrics = judged(labels, logits, problem_type="multi_label", label_names=NAMES)
    assert metrics["subset_accuracy"] == pytest.approx(1 / 3)
    assert metrics["per_class"] == {
        "bad": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 2},
        "good": {"precision": None, "recall": None, "f1": None, "support": 0},
        "so-so": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
    }
    assert metrics["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert metrics["macro_f1"] == pytest.approx(0.75)
    # -log sigmoid(x) = log(1 + exp(-x)); every sign but the two misses of +-1 agrees with its label.
    right = [2, 1, 1, 1, 3, 1, 1]
    expected = sum(math.log1p(math.exp(-x)) for x in right) + 2 * math.log1p(math.exp(1))
    assert metrics["loss"] == pytest.approx(expected / 9)


def test_a_single_label_column_is_not_mistaken_for_a_binary_problem():
    metrics = judged(
        np.array([[1], [0], [0]]), np.array([[5.0], [5.0], [-5.0]]), problem_type="multi_label", label_names=["spam"]
    )
    assert metrics["per_class"]["spam"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}


def test_multi_label_threshold_is_strict_at_logit_zero():
    metrics = judged(np.array([[0, 0]]), np.zeros((1, 2)), problem_type="multi_label", label_names=["a", "b"])
    assert metrics["subset_accuracy"] == 1.0
    assert metrics["loss"] == pytest.approx(math.log(2))
    assert metrics["micro_f1"] is None


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_regression_metrics_are_those_computed_by_hand(shape):
    metrics = judged(
        np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 4.0, 3.0]).reshape(shape), problem_type="regression"
    )
    assert metrics["mse"] == metrics["loss"] == 0.5
    assert metrics["mae"] == 0.5
    assert metrics["baseline_mse"] == 1.25
    assert metrics["pearson"] == pytest.approx(0.8)  # covariance 1 over variances 1.25
    assert metrics["spearman"] == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)


@pytest.mark.parametrize(
    ("labels", "predictions"), [([1.0, 1.0], [0.0, 2.0]), ([1.0, 2.0], [3.0, 3.0]), ([1.0], [2.0])]
)
def test_correlations_with_a_constant_are_undefined_and_silent(labels, predictions):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = judged(np.array(labels), np.array(predictions), problem_type="regression")
    assert metrics["pearson"] is None
    assert metrics["spearman"] is None
    assert metrics["mse"] is not None


@pytest.mark.parametrize(
    ("labels", "logits", "problem_type", "names"),
    [
        ([0, 1], np.zeros((2, 2)), "single_label", NAMES),
        ([0, 3], np.zeros((2, 3)), "single_label", NAMES),
        ([0, -1], np.zeros((2, 3)), "single_label", NAMES),
        ([0, 1], np.zeros((2, 0)), "single_label", ()),
        ([[0, 2, 1]], np.zeros((1, 3)), "multi_label", NAMES),
        ([0, 1], np.zeros((2, 3)), "multi_label", NAMES),
        ([0.0, np.nan], np.zeros((2, 1)), "regression", ()),
        ([0.0, 1.0], np.zeros((2, 2)), "regression", ()),
    ],
)
def test_labels_and_logits_that_do_not_fit_are_refused(labels, logits, problem_type, names):
    with pytest.raises(ValueError):
        judged(np.array(labels), logits, problem_type=problem_type, label_names=names)


def test_equal_logits_count_for_the_first_class_as_in_tensorflow():
    assert confusion(np.array([1]), np.zeros((1, 2)), 2).tolist() == [[0, 0], [1, 0]]


def test_only_single_numbers_become_curves():
    scalars = scalar_metrics(single([0, 0, 0], logits_of(0, 0, 0)))
    assert scalars["accuracy"] == 1.0
    assert scalars["matthews"] is None
    assert "per_class" not in scalars
    assert "confusion_matrix" not in scalars


def test_every_metric_that_can_be_the_best_is_among_the_metrics():
    rows = {
        "single_label": (np.array([0, 1, 2]), logits_of(0, 1, 1)),
        "multi_label": (np.eye(3), logits_of(0, 1, 1) - 0.5),
        "regression": (np.array([0.0, 1.0]), np.array([0.0, 2.0])),
    }
    for problem_type, (labels, logits) in rows.items():
        metrics = judged(labels, logits, problem_type=problem_type, label_names=NAMES)
        for name in CLASSIFICATION[problem_type]:
            assert isinstance(metrics[name], float)
