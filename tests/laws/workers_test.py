"""Law: a run sees the same examples at every step, however many workers it has and however often that changes.

2 workers as a user launches them, of which one is killed, then one worker, then 4. What each step saw comes
from the run's own `example_ids.jsonl`, what it should have seen from the order, which knows no workers.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aigc_tf.commands.runs import open_prepared_of, stored_config
from aigc_tf.config.fields import to_json
from aigc_tf.evaluation.report import read_report
from aigc_tf.tasks import TASKS
from aigc_tf.training.devices.strategy import build_devices
from aigc_tf.training.recording.telemetry import read_metrics
from tests import scripts_behind as commands
from tests.commands.train_test import tiny_config, write_reviews
from tests.fork_server import ForkServer, finish, start
from tests.training_fields import training_with

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server():
    with ForkServer() as started:
        yield started


def launch(num_workers, config_path, workdir):
    train = ["scripts/train.py", f"--config={config_path}", f"--workdir={workdir}"]
    return subprocess.Popen(
        [sys.executable, "scripts/launch.py", f"--num_workers={num_workers}", "--", *train],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def process_of_worker(launcher, index):
    """Returns the process id of one of a launcher's workers."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        [place] = [value for value in environment if value.startswith(b"TF_CONFIG=")]
        if json.loads(place.removeprefix(b"TF_CONFIG="))["task"]["index"] == index:
            return int(child)
    raise LookupError(f"There is no worker {index} among {children}.")


def seen(workdir):
    lines = (workdir / "example_ids.jsonl").read_text().splitlines()
    return [(line["step"], line["example_ids"]) for line in map(json.loads, lines)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the workers in /proc")
def test_two_then_one_then_four_workers_see_the_same_examples(server, tmp_path, measure):
    write_reviews(tmp_path / "reviews.csv")
    config = tiny_config(tmp_path)
    training = training_with(
        config.training, num_steps=150, steps_per_call=1, checkpoint_every=5, evaluate_every=0, log_example_ids=True
    )
    config = dataclasses.replace(config, training=training)
    (tmp_path / "config.json").write_text(to_json(config))
    commands.prepare(config)
    workdir = tmp_path / "run"

    launcher = launch(2, tmp_path / "config.json", workdir)
    last = workdir / "checkpoints" / "last.json"
    deadline = time.monotonic() + 300
    while not last.exists() and launcher.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process_of_worker(launcher, 1), signal.SIGKILL)
    _, errors = launcher.communicate(timeout=60)  # the other stops within a minute
    assert launcher.returncode == 128 + signal.SIGKILL, errors
    [sentence] = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert sentence.startswith("error: Worker 1 (127.0.0.1:")
    step = json.loads(last.read_text())["step"]
    assert sentence.endswith(
        f") is gone: its process has ended. Start the same command on every worker to go on after step {step}."
    )
    assert 5 <= len(seen(workdir)) < 150

    commands.train(config, str(workdir))  # one worker, here
    assert stored_config(workdir).training.devices.strategy == "none"

    longer = dataclasses.replace(config, training=training_with(training, num_steps=170))
    (tmp_path / "config.json").write_text(to_json(longer))
    finish(start(server, tmp_path, "run", workers=4))
    assert stored_config(workdir).training.devices.strategy == "multi_worker"

    task = TASKS["classify"].load().build(stored_config(workdir), open_prepared_of(config), build_devices("none"))
    expected = [(step + 1, task.order.batch(step).example_ids.tolist()) for step in range(170)]
    found = seen(workdir)
    assert [step for step, _ in found] == list(range(1, 171))
    differing = sum(ids != others for (_, ids), (_, others) in zip(found, expected, strict=True))
    measure("2 -> 1 -> 4 worker processes, steps whose example ids differ", differing, 0)


def test_two_workers_leave_one_run_folder_with_the_run_of_one(server, tmp_path):
    write_reviews(tmp_path / "reviews.csv")
    config = tiny_config(tmp_path)
    short = training_with(config.training, num_steps=12, evaluate_every=6, checkpoint_every=6)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.0), training=short)
    (tmp_path / "config.json").write_text(to_json(config))
    commands.prepare(config)
    commands.train(config, str(tmp_path / "one"))
    workers = start(server, tmp_path, "two", workers=2)
    finish(workers)
    one, two = (read_report(tmp_path / name) for name in ("one", "two"))
    assert two["metrics"]["test"]["confusion_matrix"] == one["metrics"]["test"]["confusion_matrix"]
    assert two["metrics"]["validation"]["loss"] == pytest.approx(one["metrics"]["validation"]["loss"], abs=1e-4)
    assert [line["step"] for line in read_metrics(tmp_path / "two") if "train/loss" in line] == list(range(1, 13))
    assert "Metrics" in workers[0].log.read_text()
    assert "Metrics" not in workers[1].log.read_text()  # one worker writes and speaks
