"""Sweeps: what is tried, what is kept, and that a killed one goes on as if it had not been."""

import json
import os
import signal
import sys
import threading
import time

import optuna
import pytest

from aigc_tf import storage
from aigc_tf.commands import sweep
from aigc_tf.commands.search_space import parse_search
from aigc_tf.config import DataConfig, ExperimentConfig, TrainingConfig
from aigc_tf.config.fields import from_json
from aigc_tf.errors import InputError, Preempted, RunError
from aigc_tf.evaluation import report

SPACE = parse_search(["training.optimizer.learning_rate=log:1e-5..1e-1", "training.schedule.name=linear|cosine"])


@pytest.fixture
def config(tmp_path):
    config = ExperimentConfig(
        name="a",
        task="classify",
        data=DataConfig(sources=("a.csv",), prepared_dir=str(tmp_path / "prepared")),
        training=TrainingConfig(num_steps=10),
    )
    write_data(config)
    return config


def write_data(config, splits=("train", "validation")):
    info = {"config": {"data.text_column": "text", "task": "classify"}, "splits": {split: {} for split in splits}}
    storage.write_json(os.path.join(config.data.prepared_dir, "a", "dataset.json"), info)


class Trainer:
    """Stands in for scripts/train.py: the accuracy is best at a rate of 1e-3, and some trials end otherwise."""

    def __init__(self, endings=None, undefined=()):
        self.endings, self.undefined, self.tried = endings or {}, undefined, []

    def __call__(self, command, output):
        flags = dict(flag.lstrip("-").split("=", 1) for flag in command[2:])
        config = from_json(storage.read_bytes(flags["config"]).decode())
        number = int(flags["workdir"][-4:])
        self.tried.append((number, config.training.optimizer.learning_rate, config.training.schedule.name))
        ending = self.endings.get(number, 0)
        if isinstance(ending, BaseException):
            raise ending
        if ending:
            with open(output, "a") as file:
                file.write("loss 1.0\nerror: Step 3 gave a loss of nan.\n")
            return ending
        accuracy = 1.0 / (1.0 + abs(config.training.optimizer.learning_rate - 1e-3) * 1e3)
        metrics = {"accuracy": None if number in self.undefined else accuracy, "loss": 1 - accuracy}
        report.write_report(
            flags["workdir"],
            task="classify",
            config_sha256="",
            weights_sha256="",
            steps=10,
            train_seconds=1.0,
            examples_per_second=None,
            tokens_per_second=None,
            goodput=None,
            metrics={"validation": metrics},
        )
        return 0


def run(config, workdir, trainer, *, trials, space=SPACE):
    sweep.sweep(config, str(workdir), space=space, num_trials=trials, train_script="train.py", run=trainer)
    return json.loads((workdir / "results.json").read_text())


def test_trials_are_ranked_and_the_next_commands_are_told(config, tmp_path, capsys):
    trainer = Trainer({1: 1, 2: -9})
    results = run(config, tmp_path / "sweep", trainer, trials=5)
    assert [number for number, _, _ in trainer.tried] == [0, 1, 2, 3, 4]
    assert len({rate for _, rate, _ in trainer.tried}) == 5
    assert all(1e-5 <= rate <= 1e-1 and schedule in ("linear", "cosine") for _, rate, schedule in trainer.tried)
    values = [result["accuracy"] for result in results]
    assert values[:3] == sorted(values[:3], reverse=True)
    assert values[3:] == [None, None]
    assert {result["trial"] for result in results[3:]} == {1, 2}
    said = capsys.readouterr().out
    assert "trial 1: failed: Step 3 gave a loss of nan." in said
    assert "trial 2: failed: ended by SIGKILL" in said
    best = f"{tmp_path}/sweep/trial-{results[0]['trial']:04d}"
    assert f"Export the best:   python scripts/export.py --workdir={best}" in said
    assert f"tensorboard --logdir={tmp_path}/sweep" in said


def test_a_metric_that_should_be_low_is_made_low(config, tmp_path):
    config.evaluation.best_metric = "loss"
    values = [result["loss"] for result in run(config, tmp_path / "sweep", Trainer(), trials=4)]
    assert values == sorted(values)
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path}/sweep/study.db")
    assert study.best_value == values[0]


def test_a_killed_sweep_goes_on_as_if_it_had_not_been(config, tmp_path):
    whole = Trainer()
    expected = run(config, tmp_path / "whole", whole, trials=12)
    tried = []
    for kill in (3, 11):
        killed = Trainer({kill: KeyboardInterrupt()})
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "killed", killed, trials=12)
        tried += killed.tried[:-1]
    last = Trainer()
    assert run(config, tmp_path / "killed", last, trials=12) == expected
    assert tried + last.tried == whole.tried  # trials 3 and 11 were begun again with the same values, in their folders


def test_more_trials_go_on_and_no_more_are_done_again(config, tmp_path):
    first, second, third = Trainer(), Trainer(), Trainer()
    run(config, tmp_path / "sweep", first, trials=2)
    run(config, tmp_path / "sweep", second, trials=3)
    run(config, tmp_path / "sweep", third, trials=3)
    assert [[number for number, _, _ in trainer.tried] for trainer in (first, second, third)] == [[0, 1], [2], []]


def test_another_config_or_search_is_refused_by_name(config, tmp_path):
    run(config, tmp_path / "sweep", Trainer(), trials=1)
    config.training.recording.log_every = 5  # only changes how it is watched
    run(config, tmp_path / "sweep", Trainer(), trials=2)
    config.training.seed = 7
    with pytest.raises(InputError, match=r"began with another config: training.seed was 0 and is 7"):
        run(config, tmp_path / "sweep", Trainer(), trials=2)
    config.training.seed = 0
    with pytest.raises(
        InputError, match=r"--search was .*rate=log:1e-05..0.1 training.schedule.name=linear\|cosine and is"
    ):
        run(config, tmp_path / "sweep", Trainer(), trials=2, space=SPACE[:1])


def test_a_config_that_does_not_fit_stops_the_sweep(config, tmp_path):
    with pytest.raises(InputError, match=r"Trial 1 does not fit: Step 3 gave a loss of nan\."):
        run(config, tmp_path / "sweep", Trainer({1: 2}), trials=3)
    trainer = Trainer()
    run(config, tmp_path / "sweep", trainer, trials=2)  # mended: the trial is begun again
    assert [number for number, _, _ in trainer.tried] == [1]


def test_an_unfinished_trial_stops_the_sweep_and_stays_open(config, tmp_path):
    with pytest.raises(RunError, match="Trial 0 ended unfinished with status 143; the same command resumes it"):
        run(config, tmp_path / "sweep", Trainer({0: 143}), trials=1)
    assert len(run(config, tmp_path / "sweep", Trainer(), trials=1)) == 1


def test_without_any_result_the_sweep_has_failed(config, tmp_path):
    with pytest.raises(RunError, match=r"No trial of .* has a result. The last error: Step 3 gave a loss of nan\."):
        run(config, tmp_path / "sweep", Trainer({0: 1, 1: 1}), trials=2)


def test_a_trial_whose_metric_is_undefined_has_not_failed(config, tmp_path, capsys):
    run(config, tmp_path / "sweep", Trainer({1: 1}, undefined={0}), trials=3)
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert {row[1]: row[3] for row in table}.items() >= {("0", "undefined"), ("1", "failed")}
    with pytest.raises(RunError, match=r"has a result\. accuracy is undefined for the validation data; take another"):
        run(config, tmp_path / "none", Trainer(undefined={0}), trials=1)


def test_a_folder_in_use_is_left_alone(config, tmp_path):
    with storage.locked_file(tmp_path / "sweep" / ".lock", busy=""), pytest.raises(RunError, match="sweeps in"):
        run(config, tmp_path / "sweep", Trainer(), trials=1)
    trial_lock = storage.locked_file(tmp_path / "sweep" / "trial-0000" / ".lock", busy="")
    with trial_lock, pytest.raises(RunError, match=r"Trial 0 still trains in .* from an earlier start"):
        run(config, tmp_path / "sweep", Trainer(), trials=1)
    storage.write_json(tmp_path / "run" / "config.json", {})
    with pytest.raises(InputError, match="is a run; give the sweep another --workdir"):
        run(config, tmp_path / "run", Trainer(), trials=1)


def test_what_the_prepared_data_depend_on_is_not_searched(config, tmp_path):
    space = parse_search(["data.text_column=text|body"])
    with pytest.raises(InputError, match=r"names data.text_column, on which the prepared data depend"):
        run(config, tmp_path / "sweep", Trainer(), trials=1, space=space)
    write_data(config, splits=("train", "test"))
    with pytest.raises(InputError, match="have no validation split, and a sweep ranks trials by the metric on it"):
        run(config, tmp_path / "sweep", Trainer(), trials=1)


def test_without_optuna_the_package_to_install_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match="needs the package optuna; install it with `pip install optuna`"):
        run(config, tmp_path / "sweep", Trainer(), trials=1)


@pytest.mark.parametrize(
    ("number", "ended"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Preempted)], ids=["Ctrl-C", "SIGTERM"]
)
def test_a_signal_reaches_the_trial_once_and_then_ends_the_sweep(number, ended, tmp_path):
    script = (
        "import os, signal, sys, time\n"
        "assert os.getsid(0) == os.getpid()\n"  # out of reach of the terminal's own Ctrl-C
        "signal.signal(signal.SIGINT, lambda *_: (print('told'), sys.exit(130)))\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('told'), sys.exit(143)))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    output = tmp_path / "output.log"

    def interrupt():
        deadline = time.monotonic() + 20
        while not output.exists() or "ready" not in output.read_text():
            time.sleep(0.02)
            if time.monotonic() > deadline:
                return
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(ended):
        sweep._run([sys.executable, "-c", script], str(output))
    thread.join()
    assert signal.getsignal(number) is before
    assert output.read_text() == "ready\ntold\n"
