"""Which metric names the best checkpoint."""

import subprocess
import sys

import pytest

from aigc_tf.errors import InputError
from aigc_tf.evaluation.best_metric import CLASSIFICATION, LANGUAGE_MODEL, best_metric


@pytest.mark.parametrize(
    ("directions", "name", "expected"),
    [
        (CLASSIFICATION["single_label"], "auto", ("accuracy", 1)),
        (CLASSIFICATION["multi_label"], "auto", ("micro_f1", 1)),
        (CLASSIFICATION["regression"], "auto", ("mse", -1)),
        (CLASSIFICATION["regression"], "-mse", ("mse", -1)),
        (CLASSIFICATION["single_label"], "loss", ("loss", -1)),
        (CLASSIFICATION["single_label"], "matthews", ("matthews", 1)),
        (LANGUAGE_MODEL, "auto", ("loss", -1)),
        (LANGUAGE_MODEL, "-bits_per_byte", ("bits_per_byte", -1)),
        (LANGUAGE_MODEL, "accuracy", ("accuracy", 1)),
    ],
)
def test_best_metric_names_the_key_and_the_direction(directions, name, expected):
    assert best_metric(directions, name) == expected


@pytest.mark.parametrize(
    ("directions", "name", "words"),
    [
        (CLASSIFICATION["single_label"], "acuracy", "not a metric of this task. Did you mean 'accuracy'"),
        (CLASSIFICATION["single_label"], "-accuracy", "Did you mean 'accuracy'"),
        (CLASSIFICATION["regression"], "micro_f1", "Known: auto, loss, mae"),
        (LANGUAGE_MODEL, "perplexty", "Did you mean 'perplexity'"),
        (LANGUAGE_MODEL, "-accuracy", "not a metric of this task"),
    ],
)
def test_an_unknown_metric_gets_the_nearest_name(directions, name, words):
    with pytest.raises(InputError, match=words):
        best_metric(directions, name)


def test_the_tasks_and_their_metrics_are_known_without_heavy_libraries():
    heavy = "{'tensorflow', 'keras', 'sklearn', 'scipy', 'matplotlib'}"
    code = f"import sys, aigc_tf.tasks; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
