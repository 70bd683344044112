"""What a run records while it trains, seen from its folder."""

import functools
import json
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aigc_tf.commands import runs, watching
from aigc_tf.commands.watching import RunWatcher, count_step_flops, goodput
from aigc_tf.config import DataConfig, ExperimentConfig
from aigc_tf.data.encoders.labels import LabelEncoder
from aigc_tf.data.prepared.facts import DataFacts
from aigc_tf.data.prepared.schema import Column, Schema
from aigc_tf.errors import RunError
from aigc_tf.training import run_state
from aigc_tf.training.devices.hardware import MachinePeak
from aigc_tf.training.devices.strategy import build_devices
from aigc_tf.training.planning.preflight import length_of, trace_step
from aigc_tf.training.recording.telemetry import read_metrics
from aigc_tf.training.task import Shown
from tests import tiny_task

LABEL = Schema(columns=(Column("label", "label", "label"),), split_by=())
FACTS = DataFacts(sha256="", schema=LABEL, encoders_folder="")
FACTS._loaded["label"] = LabelEncoder(DataConfig(label_names=("a", "b")))  # as if it had been read from a folder
PEAK = MachinePeak(flops_per_second=1e9, origin="1 x CPU at 0.001 TFLOP/s, measured")


@functools.cache
def built():
    """Task, state and FLOPs by padded length of a tiny model, once for all tests."""
    training = tiny_task.training_config()
    task, devices = tiny_task.tiny_task(training), build_devices("none")
    state = run_state.build_state(task, training, devices)
    return task, state, count_step_flops(trace_step(task, state.model, devices), task)


class Clockwork:
    """A run whose calls take a second for each step; the loop is left out."""

    def __init__(self, workdir, monkeypatch, flops=None, **changes):
        training = tiny_task.training_config(**changes)
        self.task, self.state, counted = built()
        monkeypatch.setattr(watching, "machine_peak", lambda devices, precision: PEAK)
        self.state.progress = run_state.Progress()
        self.rows = training.global_batch_size
        config = ExperimentConfig(name="tiny", task="classify", training=training)
        self.watcher = RunWatcher(
            config,
            str(workdir),
            task=self.task,
            state=self.state,
            devices=build_devices("none"),
            facts=FACTS,
            flops=flops or counted,
            started=time.time() - 40,
        )

    def call(self, first, last, *, waited=0.25, **parts):
        """Steps `first` to `last`, in one call: a second each."""
        self.watcher.on_steps(
            [
                {
                    "step": step,
                    "train/loss": 0.5,
                    **parts,
                    "time/input_seconds": waited,
                    "time/examples_per_second": float(self.rows),
                }
                for step in range(first, last + 1)
            ]
        )
        self.state.progress.train_seconds += last - first + 1


def test_speeds_are_shares_of_what_the_machine_could_do(tmp_path, monkeypatch):
    run = Clockwork(tmp_path, monkeypatch)
    with run.watcher as watcher:
        watcher.on_start(0)
        run.call(1, 4)
        run.call(5, 5)
        watcher.on_checkpoint(5, 0.5)
        watcher.on_written(5, 1.5)
    *rows, copied, written = read_metrics(tmp_path)
    rows = {row["step"]: row for row in rows}
    _, _, flops = built()
    lengths = [length_of(run.task.order.batch(step).shape) for step in range(5)]
    assert rows[1]["time/flops_utilisation"] == pytest.approx(sum(map(flops, lengths[:4])) / 4e9)
    assert rows[5]["time/flops_utilisation"] == pytest.approx(flops(lengths[4]) / 1e9)
    assert flops(8) < flops(16)
    assert rows[1]["time/input_stall_share"] == 0.25
    assert rows[1]["time/host_peak_memory_bytes"] >= rows[1]["time/host_memory_bytes"] > 2**27
    assert written == {"step": 5, "time/checkpoint_seconds": 1.5}
    assert copied["time/checkpoint_blocked_seconds"] == 0.5
    assert copied["time/goodput"] == pytest.approx(5 / 40, rel=0.2)


def test_tensorboard_is_told_the_peak_the_settings_and_the_end(tmp_path, monkeypatch):
    run = Clockwork(tmp_path, monkeypatch)

    def interrupted():
        with run.watcher as watcher:
            watcher.on_start(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    read = EventAccumulator(str(tmp_path / "logs"), size_guidance={"tensors": 0}).Reload()
    (peak,) = read.Tensors("time/peak_flops")
    assert peak.tensor_proto.string_val[0].decode() == PEAK.origin
    content = read.PluginTagToContent("hparams")
    assert set(content) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    start = content["_hparams_/session_start_info"]
    assert b"training.optimizer.learning_rate" in start
    assert b"training.recording.log_every" not in start  # operational: it changes nothing that is computed


def test_after_a_rollback_the_records_go_on_from_there(tmp_path, monkeypatch):
    run = Clockwork(tmp_path, monkeypatch)
    with run.watcher as watcher:
        watcher.on_start(0)
        run.call(1, 4)
        watcher.on_rollback(2)
        run.call(3, 3)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    read = EventAccumulator(str(tmp_path / "logs"), size_guidance={"tensors": 0}).Reload()
    assert len(read.PluginTagToContent("hparams")) == 2


def test_parts_of_the_loss_reach_the_records_tensorboard_and_the_bar(tmp_path, monkeypatch, capsys):
    run = Clockwork(tmp_path, monkeypatch)
    with run.watcher as watcher:
        watcher.on_start(0)
        run.call(1, 1, **{"train/kl": 0.125})
    assert read_metrics(tmp_path)[0]["train/kl"] == 0.125
    read = EventAccumulator(str(tmp_path / "logs"), size_guidance={"tensors": 0}).Reload()
    assert [event.step for event in read.Tensors("train/kl")] == [1]
    assert "loss 0.5000  kl 0.125  " in capsys.readouterr().err


def test_samples_are_shown_by_their_kind(tmp_path, monkeypatch, capsys):
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    run = Clockwork(tmp_path, monkeypatch)
    with run.watcher as watcher:
        watcher.on_start(0)
        watcher.on_samples(
            3, [Shown(kind="text", value=" mat.", caption="The"), Shown(kind="picture", value=picture, caption="a cat")]
        )
        with pytest.raises(RunError, match="kind 'smell' cannot be shown; the task may show text, picture"):
            watcher.on_samples(4, [Shown(kind="smell", value=1)])
    read = EventAccumulator(str(tmp_path / "logs"), size_guidance={"tensors": 0}).Reload()
    assert read.Tensors("samples/1")[0].tensor_proto.string_val[0].decode() == "    The⟩ mat."
    assert read.Tensors("samples/2")[0].tensor_proto.string_val[:2] == [b"4", b"2"]  # width and height
    said = capsys.readouterr().err
    assert "sample 1 after step 3:\n    The⟩ mat.\n" in said
    assert "    a cat⟩a picture of 4 x 2, in TensorBoard as samples/2" in said


def test_an_undefined_metric_is_explained_once(tmp_path, monkeypatch, capsys):
    run = Clockwork(tmp_path, monkeypatch)
    with run.watcher as watcher:
        for step in (1, 2):
            watcher.on_evaluation(step, "validation", {"accuracy": None}, 0.5)
        watcher.on_early_stop(2, "stopped early after step 2: accuracy 0.5000 was best at step 1")
    said = capsys.readouterr().err
    assert said.count("validation accuracy undefined, judged in") == 2
    assert said.count("does not count for early stopping") == 1
    assert "stopped early after step 2: accuracy 0.5000 was best at step 1" in said


def test_what_computes_nothing_has_no_speed(tmp_path, monkeypatch):
    run = Clockwork(tmp_path, monkeypatch)
    with run.watcher as watcher:
        watcher.on_start(0)
        watcher.on_steps([{"step": 1, "train/skipped": True}])
    (row,) = read_metrics(tmp_path)
    assert not {"time/input_stall_share", "time/flops_utilisation"} & set(row)


def test_a_model_whose_flops_are_not_known_trains_without_them(tmp_path, monkeypatch, capsys):
    run = Clockwork(tmp_path, monkeypatch, flops="The shape of x is not known")
    with run.watcher as watcher:
        watcher.on_start(0)
        run.call(1, 1)
    assert "no FLOPs utilisation: The shape of x is not known" in capsys.readouterr().err
    assert "time/flops_utilisation" not in read_metrics(tmp_path)[0]


def test_histograms_are_drawn_at_their_steps_alone(tmp_path, monkeypatch):
    run = Clockwork(tmp_path, monkeypatch, histograms_every=2)
    with run.watcher:
        for step in range(1, 5):
            run.call(step, step)
    read = EventAccumulator(str(tmp_path / "logs"), size_guidance={"tensors": 0}).Reload()
    tags = list(read.PluginTagToContent("histograms"))
    assert len(tags) == len(run.state.model.trainable_variables)
    assert [event.step for event in read.Tensors(tags[0])] == [2, 4]
    first = run.state.model.trainable_variables[0]
    (event, _) = read.Tensors(f"weights/{first.path}")
    counts = np.frombuffer(event.tensor_proto.tensor_content).reshape(30, 3)[:, 2]
    assert counts.sum() == np.prod(first.shape)


def test_goodput_counts_from_the_first_start_and_is_no_more_than_all():
    assert goodput(30.0, time.time() - 60.0) == pytest.approx(0.5, rel=0.01)
    assert goodput(30.0, time.time() + 5.0) == 1.0  # a clock that was set back
    assert goodput(30.0, None) is None


def test_a_runs_first_start_is_kept_until_it_starts_anew(tmp_path):
    first = runs.first_start(str(tmp_path), goes_on=False)
    assert time.time() - 5 < first <= time.time()
    assert runs.first_start(str(tmp_path), goes_on=True) == first
    assert json.loads((tmp_path / "started.json").read_text()) == {"seconds_since_1970": first}
    assert runs.first_start(str(tmp_path), goes_on=False) > first
    assert runs.first_start(str(tmp_path / "older"), goes_on=True) is None
