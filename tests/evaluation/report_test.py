"""report.json is whole, honest about which weights it judges, and readable on any terminal."""

import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from aigc_tf import storage
from aigc_tf.errors import InputError, RunError
from aigc_tf.evaluation.report import (
    REPORT_KEYS,
    peak_memory_bytes,
    print_report,
    read_report,
    update_metrics,
    versions,
    write_report,
)

WEIGHTS = "b" * 64
TEST = {
    "num_examples": 1234,
    "loss": 0.25,
    "accuracy": 0.875,
    "accuracy_standard_error": 0.0123,
    "matthews": None,
    "per_class": {
        "[red]bad": {"precision": 0.5, "recall": None, "f1": 0.0, "support": 2},
        "好": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 1232},
    },
    "confusion_matrix": [[4321, 1], [0, 1232]],
}


def write(workdir, **changes):
    arguments = {
        "task": "classify",
        "config_sha256": "a" * 64,
        "weights_sha256": WEIGHTS,
        "steps": 1500,
        "train_seconds": 3725.0,
        "examples_per_second": 1234.56,
        "tokens_per_second": 40000.0,
        "goodput": 0.75,
        "metrics": {"validation": {"accuracy": 0.5, "loss": 1e-7}, "test": TEST},
    }
    return write_report(workdir, **(arguments | changes))


def printed(report, workdir="runs/s1", **kwargs):
    console = Console(file=io.StringIO(), width=120)
    print_report(report, workdir=workdir, console=console, **kwargs)
    return console.file.getvalue()


def test_a_report_is_read_back_as_it_was_written(tmp_path):
    report = write(tmp_path)
    assert read_report(tmp_path) == report
    assert tuple(report) == REPORT_KEYS
    assert report["metrics"]["test"]["accuracy"] == 0.875
    assert report["metrics"]["test"]["matthews"] is None


def test_a_report_lies_on_an_object_store_too():
    report = write("ram://reports/run")
    assert read_report("ram://reports/run") == report
    with pytest.raises(InputError, match="There is no"):
        read_report("ram://reports/other")


def test_nan_is_refused_and_the_old_report_stays(tmp_path):
    report = write(tmp_path)
    with pytest.raises(ValueError):
        write(tmp_path, metrics={"test": {"accuracy": float("nan")}})
    assert read_report(tmp_path) == report


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "finished run"),
        (b"", "not valid JSON"),
        (b'{"task": "clas', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "lacks task, config_sha256"),
        (b'{"task": "classify"}', "lacks config_sha256"),
    ],
)
def test_a_missing_or_broken_report_is_one_sentence(tmp_path, content, words):
    if content is not None:
        (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        read_report(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("steps", "many"), ("versions", None), ("metrics", {"test": 3})])
def test_a_report_edited_into_other_types_is_refused_by_name(tmp_path, key, value):
    report = write(tmp_path)
    storage.write_json(tmp_path / "report.json", report | {key: value})
    with pytest.raises(InputError, match=key):
        read_report(tmp_path)


def test_evaluate_refreshes_the_metrics_and_nothing_else(tmp_path):
    before = write(tmp_path)
    after = update_metrics(tmp_path, {"test": {"accuracy": 0.9}})
    assert after == read_report(tmp_path)
    assert after["metrics"] == {"test": {"accuracy": 0.9}}
    assert {key: after[key] for key in REPORT_KEYS[:-1]} == {key: before[key] for key in REPORT_KEYS[:-1]}


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="Cannot write"):
        write(tmp_path / "file")


def test_versions_name_the_installed_software():
    import tensorflow as tf

    found = versions()
    assert found["tensorflow"] == tf.__version__
    assert found["numpy"] == np.__version__
    assert found["python"] == sys.version.split()[0]
    assert set(found) == {
        "python",
        "tensorflow",
        "keras",
        "keras-nlp",
        "tensorflow-text",
        "numpy",
        "aigc_tf",
        "platform",
    }
    json.dumps(found)


def test_peak_memory_is_in_bytes_and_never_falls():
    before = peak_memory_bytes()
    block = np.ones(8_000_000)  # 64 MB
    assert peak_memory_bytes() >= max(before, block.nbytes)


def test_a_report_prints_every_metric_and_where_it_lies(tmp_path):
    text = printed(write(tmp_path), workdir="runs/s1")
    assert "0.8750 ± 0.0123" in text
    assert "undefined" in text
    assert "1.000e-07" in text
    assert "[red]bad" in text
    assert "好" in text
    assert "4321" in text
    assert "1,500 steps in 1 h 02 min" in text
    assert "1,234.6 examples per second, 40,000.0 tokens per second" in text
    assert "runs/s1/report.json" in text
    assert "accuracy_standard_error" not in text


def test_the_classes_of_the_asked_split_are_shown_and_another_if_it_has_none(tmp_path):
    report = write(tmp_path, metrics={"test": TEST, "validation": TEST})
    assert "Classes (validation)" in printed(report, split="validation")
    assert "Classes (test)" in printed(report)
    assert "Classes (validation)" in printed(report, split="train")


def test_a_large_confusion_matrix_is_left_to_the_file(tmp_path):
    names = [f"class {index}" for index in range(13)]
    large = {"per_class": {name: TEST["per_class"]["好"] for name in names}, "confusion_matrix": np.eye(13).tolist()}
    text = printed(write(tmp_path, metrics={"test": large}))
    assert "Classes (test)" in text
    assert "Confusions" not in text


def test_a_report_without_metrics_or_speed_is_printed_all_the_same(tmp_path):
    text = printed(write(tmp_path, metrics={}, train_seconds=None, examples_per_second=None, tokens_per_second=None))
    assert "an unknown time" in text


def test_the_path_is_not_broken_over_lines_on_a_narrow_terminal(tmp_path):
    console = Console(file=io.StringIO(), width=40)
    print_report(write(tmp_path), workdir="runs/" + "long" * 20, console=console)
    assert "long" * 20 + "/report.json" in console.file.getvalue()
