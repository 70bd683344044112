"""A task that no line of the package knows goes the whole way: from a table to a server that answers."""

import json
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aigc_tf.commands.runs import config_of_run
from aigc_tf.config.fields import replace_fields
from aigc_tf.evaluation.report import read_report
from aigc_tf.serving.double.served_models import single_model
from aigc_tf.serving.double.server import Double
from aigc_tf.tasks import TASKS
from aigc_tf.training import checkpoints
from aigc_tf.training.recording.telemetry import read_metrics
from tests import scripts_behind as commands
from tests.line.task import SPEC, register

ROOT = Path(__file__).parents[2]
CONFIG = """
from aigc_tf.config import *


def get_config():
    return ExperimentConfig(
        name="line",
        task="line",
        data=DataConfig(sources=({source!r},), prepared_dir={prepared!r}),
        training=TrainingConfig(
            num_steps=120,
            global_batch_size=16,
            evaluate_every=40,
            checkpoint_every=20,
            optimizer=OptimizerConfig(learning_rate=0.1, weight_decay=0.0),
            schedule=ScheduleConfig(warmup_steps=5),
            devices=DevicesConfig(precision="float32", steps_per_call=4),
        ),
        evaluation=EvaluationConfig(batch_size=16),
        export=ExportConfig(directory={exports!r}),
    )
"""


@pytest.fixture(scope="module", autouse=True)
def line_is_known():
    register()
    yield
    del TASKS[SPEC.name]


def script(name, *arguments):
    """Runs a script in this process; returns its exit status."""
    before = sys.argv
    sys.argv = [str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared data set of y = 2 x + 1, and its config file."""
    folder = tmp_path_factory.mktemp("line")
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 2, 200)
    rows = [f"{x:.4f},{2 * x + 1 + rng.normal(0, 0.01):.4f}" for x in points]
    (folder / "points.csv").write_text("x,y\n" + "\n".join(rows) + "\nseven,1.0\n")
    text = CONFIG.format(
        source=str(folder / "points.csv"), prepared=str(folder / "prepared"), exports=str(folder / "saved_models")
    )
    (folder / "line.py").write_text(text)
    assert script("prepare", f"--config={folder / 'line.py'}") == 0
    return folder


@pytest.fixture(scope="module")
def run(folder):
    assert script("train", f"--config={folder / 'line.py'}", f"--workdir={folder / 'run'}") == 0
    return folder / "run"


def test_the_page_that_walks_through_it_shows_it_as_it_is():
    page, source = ((ROOT / path).read_text() for path in ("docs/new_task.md", "tests/line/task.py"))
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    assert len(blocks) > 4
    for block in blocks:
        assert block in source


def test_what_is_prepared_are_its_columns_and_broken_rows_are_counted(folder):
    info = json.loads((folder / "prepared" / "line" / "dataset.json").read_text())
    assert info["schema_version"] == 2
    x = np.load(folder / "prepared" / "line" / "train" / "x-00000.npy")
    assert x.dtype == np.float32
    assert x.shape == (info["splits"]["train"]["examples"],)
    assert sum(info["sources"][0]["bad"].values()) == 1
    assert not list((folder / "prepared" / "line").rglob("*.offsets-*"))


def test_a_dry_run_says_what_it_would_do_without_sections_that_the_task_does_not_read(folder, capsys):
    status = script("train", f"--config={folder / 'line.py'}", f"--workdir={folder / 'none'}", "--dry_run")
    shown = capsys.readouterr().out
    assert status == 0
    assert "points" in shown
    assert "training.optimizer" in shown
    assert "tokenizer" not in shown
    assert not (folder / "none").exists()


def test_a_section_that_it_does_not_read_is_refused(folder, capsys):
    flag = "--config.tokenizer.vocabulary_size=200"
    assert script("prepare", f"--config={folder / 'line.py'}", flag, "--dry_run") == 2
    assert "tokenizer.vocabulary_size" in capsys.readouterr().err


def test_it_learns_the_line_and_its_parts_and_samples_are_recorded(run):
    report = read_report(run)
    assert report["metrics"]["test"]["mse"] < 0.01
    rows = read_metrics(run)
    steps = [row for row in rows if "train/loss" in row]
    assert len(steps) == 120
    assert all(row["train/absolute"] > 0 for row in steps)
    assert "train/tokens" not in steps[0]
    assert any("validation/mae" in row for row in rows)


def test_killed_and_resumed_it_ends_as_if_it_never_was(folder, run):
    workdir = folder / "killed"
    command = [sys.executable, str(ROOT / "tests/line/train.py"), f"--config={folder / 'line.py'}"]
    training = subprocess.Popen([*command, f"--workdir={workdir}"], cwd=ROOT, stderr=subprocess.DEVNULL)
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") > 30):
        assert training.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    training.send_signal(signal.SIGKILL)
    training.wait()
    assert script("train", f"--config={folder / 'line.py'}", f"--workdir={workdir}") == 0
    found, expected = read_report(workdir), read_report(run)
    assert found["weights_sha256"] == expected["weights_sha256"]
    assert found["metrics"] == expected["metrics"]

    def records(of):
        rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in read_metrics(of)]
        return [row for row in rows if len(row) > 1]  # a checkpoint leaves times alone

    assert records(workdir) == records(run)


@pytest.mark.parametrize(
    ("name", "changes", "bound"),
    [
        ("K micro-batches == one batch", {"training.devices.micro_batches": 4}, 1e-6),
        ("2 replicas == 1", {"training.devices.strategy": "mirrored"}, 1e-5),
    ],
)
def test_with_its_noise_on_it_does_not_matter_how_a_batch_is_cut(folder, run, name, changes, bound, record_property):
    config = replace_fields(config_of_run(str(run), None), {"training.devices.strategy": "none"} | changes)
    other = folder / name.replace(" ", "_")
    commands.train(config, str(other))
    weights, others = (checkpoints.load_named(str(path), "last").weights for path in (run, other))
    difference = max(float(np.abs(weights[path] - others[path]).max()) for path in weights)
    record_property("law", (f"{name}, noise on, weights after 120 steps", difference, bound))
    assert difference <= bound


def test_it_is_judged_again_with_the_same_numbers(run):
    before = read_report(run)["metrics"]
    assert script("evaluate", f"--workdir={run}") == 0
    assert read_report(run)["metrics"] == before


@pytest.fixture(scope="module")
def exported(folder, run):
    assert script("export", f"--workdir={run}") == 0  # with the op gate, the warm-up and parity in another process
    return folder / "saved_models" / "line"


def test_its_export_says_how_it_is_asked_and_passes_the_gate(exported, capsys):
    manifest = json.loads((exported / "1" / "manifest.json").read_text())
    assert manifest["task"] == "line"
    assert manifest["ask"]["inputs"] == ["x"]
    assert manifest["signatures"]["serving_default"]["inputs"] == {"x": ["float32", [None]]}
    assert (exported / "1" / "assets.extra" / "tf_serving_warmup_requests").exists()
    assert script("check_servable", exported) == 0


def test_run_and_export_answer_alike(run, exported, capsys):
    answers = []
    for model in (run, exported):
        assert script("predict", f"--model={model}", "--x=3", "--x=-1.5") == 0
        answers.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert [answer["x"] for answer in answers[0]] == ["3", "-1.5"]
    assert answers[0][0]["y"] == pytest.approx(7, abs=0.1)
    np.testing.assert_allclose([a["y"] for a in answers[0]], [a["y"] for a in answers[1]], atol=1e-5)


def test_a_value_that_is_no_number_gets_one_sentence(run, exported, capsys):
    for model in (run, exported):
        assert script("predict", f"--model={model}", "--x=three") == 2
        assert "x is 'three'; a number fits here." in capsys.readouterr().err


def test_a_server_of_it_answers_alike(exported, capsys):
    with Double(single_model("line", str(exported)), rest_port=0) as double:
        address = f"--server=http://127.0.0.1:{double.rest_port}"
        assert script("ask", address, "--model=line", "--x=3") == 0
        [answer] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert script("ask", address, "--model=line", "--x=three") == 2
    assert answer == {"x": "3", "y": pytest.approx(7, abs=0.1)}
    assert "x is 'three'; a number fits here." in capsys.readouterr().err


def test_a_deployment_takes_its_latency_and_timeout(exported, folder):
    assert script("render_deployment", f"--model={exported}", f"--output={folder / 'deploy'}") == 0
    assert any("line" in path.read_text() for path in (folder / "deploy").rglob("*") if path.is_file())


def test_a_sweep_tries_it(folder, run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "tests/line/sweep.py")])
    from aigc_tf.cli import running, scripts

    sys.argv += [
        f"--config={folder / 'line.py'}",
        f"--workdir={folder / 'sweep'}",
        "--search=training.optimizer.learning_rate=0.01|0.1",
        "--trials=2",
    ]
    with pytest.raises(SystemExit) as end:
        running.run(scripts.sweep, flags=("config", "workdir", "search", "trials", "dry_run"), description="Sweeps.")
    assert not end.value.code
    assert "mse" in capsys.readouterr().out
