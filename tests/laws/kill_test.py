"""Law: training processes killed with SIGKILL at any moment end, by the same command, as one that never was.

The moments are random: in a step, while a checkpoint is written, during an evaluation, before the first checkpoint.
"""

import json
import random
import signal

import pytest

from aigc_tf.config.fields import to_json
from aigc_tf.evaluation.report import read_report
from aigc_tf.training.recording.telemetry import read_metrics
from tests import scripts_behind as commands
from tests.commands.train_test import tiny_config, write_reviews
from tests.fork_server import ForkServer, finish, start, wait_for

NUM_STEPS = 300


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A prepared experiment with dropout, evaluations and checkpoints every few steps, and its config file."""
    folder = tmp_path_factory.mktemp("killed")
    write_reviews(folder / "reviews.csv")
    config = tiny_config(folder)
    commands.prepare(config)
    training = config.training
    training.num_steps, training.checkpoint_every, training.evaluate_every, training.devices.steps_per_call = (
        NUM_STEPS,
        7,
        25,
        4,
    )
    training.optimizer.ema_decay = 0.9
    assert config.model.dropout > 0
    (folder / "config.json").write_text(to_json(config))
    return folder


@pytest.fixture(scope="module")
def server():
    with ForkServer() as started:
        yield started


def lines_of(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at_random(server, folder, name, *, times, workers, seed):
    """Kills a run again and again, each time after it has come further than it had before."""
    moments = random.Random(seed)
    for _ in range(times):
        trainings = start(server, folder, name, workers=workers)
        content = (folder / name / "metrics.jsonl").read_bytes() if lines_of(folder / name) else b""
        path = folder / name / "metrics.jsonl"
        wait_for(lambda: path.exists() and path.read_bytes() != content, "step", training=trainings[0])  # noqa: B023
        end = lines_of(folder / name) + moments.randrange(40)
        wait_for(lambda: lines_of(folder / name) >= end, "steps", training=trainings[0])  # noqa: B023
        for training in trainings:
            training.kill()
        assert [training.wait() for training in trainings] == [-signal.SIGKILL] * workers
    finish(start(server, folder, name, workers=workers))


def without_time(workdir):
    rows = [{tag: value for tag, value in row.items() if not tag.startswith("time/")} for row in read_metrics(workdir)]
    return [row for row in rows if len(row) > 1]


@pytest.mark.parametrize(("workers", "times"), [(1, 10), (2, 2)])
def test_a_run_killed_again_and_again_ends_as_if_it_never_was(experiment, server, workers, times, measure):
    whole, parts = f"whole-{workers}", f"parts-{workers}"
    finish(start(server, experiment, whole, workers=workers))
    kill_at_random(server, experiment, parts, times=times, workers=workers, seed=workers)
    expected, found = read_report(experiment / whole), read_report(experiment / parts)
    differs = int(found["weights_sha256"] != expected["weights_sha256"])
    differs += int(without_time(experiment / parts) != without_time(experiment / whole))
    measure(f"{times} times SIGKILL at random, {workers} process(es): weights or records that differ", differs, 0)
    assert found["metrics"] == expected["metrics"]
    assert found["steps"] == NUM_STEPS


def test_sigterm_writes_a_last_checkpoint_and_the_same_command_goes_on(experiment, server):
    training = start(server, experiment, "asked")[0]
    workdir = experiment / "asked"
    wait_for(lambda: lines_of(workdir) > 10, "step", training=training)
    training.kill(signal.SIGTERM)
    assert training.wait() == 143
    last = json.loads((workdir / "checkpoints" / "last.json").read_text())["step"]
    steps = [row["step"] for row in read_metrics(workdir) if "train/loss" in row]
    assert steps[-1] == last, "nothing that was done is lost"
    assert "error: Asked to end" in training.log.read_text()
    finish(start(server, experiment, "asked"))
    finish(start(server, experiment, "whole"))
    assert read_report(workdir)["weights_sha256"] == read_report(experiment / "whole")["weights_sha256"]
