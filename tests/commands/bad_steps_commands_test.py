"""A regression with a label that makes the loss infinite, through the commands: found, shown as text, skipped."""

import csv
import json

import pytest

from aigc_tf.errors import InputError, RunError
from aigc_tf.evaluation.report import read_report
from tests import scripts_behind as commands
from tests.commands.train_test import tiny_config

BAD_TEXT = "the planted one,\nin two lines 電影"  # its hash puts it in the training split


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    with open(folder / "reviews.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows([f"number {index} of many", index % 10 / 10] for index in range(150))
        rows.writerow([BAD_TEXT, "3e38"])  # a float32, but its square is not
    config = tiny_config(folder, problem_type="regression")
    config.training.num_steps, config.training.evaluate_every, config.training.checkpoint_every = 20, 0, 5
    commands.prepare(config)
    return folder, config


def test_a_planted_infinite_loss_stops_the_run_and_is_shown_as_text(experiment, capsys):
    folder, config = experiment
    workdir = str(folder / "stopped")
    with pytest.raises(RunError, match=r"gave a loss of inf .*inspect_examples.py --workdir="):
        commands.train(config, workdir)
    capsys.readouterr()
    commands.inspect_examples(workdir)
    shown = capsys.readouterr().out.splitlines()
    first = shown.index("loss inf, weight 1")
    assert shown[first + 1].endswith("label 3e+38")
    assert [line.split() for line in shown[first + 2 : first + 4]] == [
        ["the", "planted", "one", ",", "in", "two", "lines", "電", "影"],
        [],
    ], "WordPiece keeps words, not spaces"
    assert sum(line.startswith("loss ") for line in shown) == 16
    with pytest.raises(InputError, match="was not bad"):
        commands.inspect_examples(workdir, step=999)


def test_the_same_run_goes_on_when_told_to_skip(experiment):
    folder, config = experiment
    workdir = folder / "skipping"
    with pytest.raises(RunError, match="gave a loss of inf"):
        commands.train(config, str(workdir))
    config.training.bad_steps.policy = "skip"
    commands.train(config, str(workdir))
    assert read_report(workdir)["steps"] == 20
    decisions = [json.loads(line) for line in (workdir / "skipped.jsonl").read_text().splitlines()]
    assert decisions
    assert {decision["policy"] for decision in decisions} == {"skip"}
    assert all(decision["loss"] == "inf" for decision in decisions)
    config.training.bad_steps.policy = "stop"
