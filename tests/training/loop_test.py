"""The loop: it learns, stops, and refuses what does not fit."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from aigc_tf.errors import InputError, Preempted, RunError
from aigc_tf.training import checkpoints, loop, run_state
from aigc_tf.training.devices.strategy import build_devices, resolve_jit, resolve_precision
from tests import tiny_task

pytestmark = pytest.mark.slow


def run(tmp_path, task=None, watcher=None, **changes):
    config = tiny_task.training_config(**changes)
    task = task or tiny_task.tiny_task(config)
    devices = build_devices("none")
    state = run_state.build_state(task, config, devices)
    newest, complaints = checkpoints.load_newest(str(tmp_path))
    if newest:
        run_state.restore(state, newest)
    watcher = watcher or tiny_task.ListWatcher()
    loop.train(task, config, str(tmp_path), state=state, devices=devices, watcher=watcher)
    return state, watcher, complaints


def test_it_overfits_64_examples(tmp_path):
    _, watcher, _ = run(tmp_path, num_steps=120, learning_rate=5e-3, evaluate_every=0, checkpoint_every=120)
    losses = [record["train/loss"] for record in watcher.records]
    assert np.mean(losses[:8]) > 0.6
    assert np.mean(losses[-8:]) < 0.1
    assert [record["step"] for record in watcher.records] == list(range(1, 121))


def test_events_fall_on_exactly_their_steps(tmp_path):
    _, watcher, _ = run(tmp_path, num_steps=13, evaluate_every=6, checkpoint_every=5, steps_per_call=4)
    assert [step for step, _, _ in watcher.evaluations] == [6, 12, 13]
    assert {5, 10, 13} <= set(watcher.checkpoints)


def test_best_and_last_are_kept_and_the_rest_removed(tmp_path):
    _, watcher, _ = run(tmp_path, num_steps=24, evaluate_every=3, checkpoint_every=3)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    values = {step: metrics["accuracy"] for step, _, metrics in watcher.evaluations}
    assert best["value"] == max(values.values()) == values[best["step"]]
    assert best["step"] == min(step for step, value in values.items() if value == best["value"])
    assert set(names) == {"best.json", "last.json", "step-00000021", "step-00000024", best["folder"]}


def test_it_stops_early_and_stays_stopped(tmp_path):
    config = tiny_task.training_config(num_steps=100, evaluate_every=2, early_stopping_patience=3)
    scores = iter([0.5, 0.7, 0.7, 0.6, 0.7, 0.9])
    task = tiny_task.tiny_task(config, score=lambda rows: {"accuracy": next(scores)})
    state, watcher, _ = run(tmp_path, task, num_steps=100, evaluate_every=2, early_stopping_patience=3)
    assert state.step == 10
    assert state.progress.best_step == 4
    assert watcher.early_stops == [(10, "stopped early after step 10: accuracy 0.7000 was best at step 4")]
    again, watcher, _ = run(tmp_path, task, num_steps=100, evaluate_every=2, early_stopping_patience=3)
    assert again.step == 10
    assert watcher.records == []
    assert len(watcher.early_stops) == 1


def test_an_undefined_metric_is_never_the_best_and_no_reason_to_stop(tmp_path):
    config = tiny_task.training_config()
    task = tiny_task.tiny_task(config, score=lambda rows: {"accuracy": None})
    state, watcher, _ = run(tmp_path, task, evaluate_every=3, early_stopping_patience=1)
    assert state.progress.best_value is None
    assert (state.step, len(watcher.evaluations), watcher.early_stops) == (12, 4, [])
    assert not (tmp_path / "checkpoints" / "best.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    with pytest.raises(RunError, match=r"Step \d+ gave a loss of"):
        run(tmp_path, num_steps=200, learning_rate=1e30, evaluate_every=0, checkpoint_every=1, steps_per_call=1)
    newest, _ = checkpoints.load_newest(str(tmp_path))
    assert all(np.isfinite(value).all() for value in newest.weights.values())


def test_class_weights_weight_the_mean(tmp_path):
    """With weight 0 for class 0 the loss is the mean over class 1 alone."""
    config = tiny_task.training_config(num_steps=1, learning_rate=0.0, evaluate_every=0)
    task = tiny_task.tiny_task(config, class_weights=(0.0, 2.0))
    state, watcher, _ = run(tmp_path, task, num_steps=1, learning_rate=0.0, evaluate_every=0)
    batch = task.train.rows(0, shard=0, num_shards=1)
    values = tiny_task.tiny_losses(state.model, batch).values
    ones = batch["labels"] == 1
    assert watcher.records[0]["train/loss"] == pytest.approx(float(values.numpy()[ones].mean()), rel=1e-5)
    assert watcher.records[0]["train/weight"] == 2.0 * ones.sum()


def test_a_broken_newest_checkpoint_is_named_and_the_one_before_is_taken(tmp_path):
    run(tmp_path, num_steps=10, evaluate_every=0)
    broken = tmp_path / "checkpoints" / "step-00000010" / "weights.safetensors"
    broken.write_bytes(broken.read_bytes()[:-7])
    state, watcher, complaints = run(tmp_path, num_steps=10, evaluate_every=0)
    assert watcher.started == [5]
    assert state.step == 10
    assert len(complaints) == 1
    assert "step-00000010 is broken" in complaints[0]


def test_other_data_under_an_old_run_is_refused(tmp_path):
    run(tmp_path)
    task = dataclasses.replace(tiny_task.tiny_task(tiny_task.training_config()), data_sha256="other")
    with pytest.raises(InputError, match="data set has changed"):
        run(tmp_path, task)


def test_the_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    state, _, _ = run(tmp_path, num_steps=1, evaluate_every=0)
    weights = checkpoints.to_host(state.model.variables)
    path = next(iter(weights))
    with pytest.raises(InputError, match=f"lacks '{path}'"):
        checkpoints.assign(state.model.variables, {p: w for p, w in weights.items() if p != path}, what="weights")
    with pytest.raises(InputError, match="another model"):
        checkpoints.assign(state.model.variables, weights | {path: weights[path][:1]}, what="weights")


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(tmp_path, monkeypatch):
    state, _, _ = run(tmp_path, num_steps=5, evaluate_every=0)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    state.step = 6
    with pytest.raises(RunError, match="No space left on device"):
        checkpoints.save(str(tmp_path), state.checkpoint())
    monkeypatch.undo()
    newest, complaints = checkpoints.load_newest(str(tmp_path))
    assert (newest.step, complaints) == (5, [])


def test_a_strategy_the_machine_does_not_offer_is_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {}}')
    with pytest.raises(InputError, match="TF_CONFIG"):
        build_devices("multi_worker")


def test_auto_becomes_what_a_cpu_does_best():
    assert resolve_jit("auto") == "off"
    assert resolve_precision("auto") in ("float32", "bfloat16")
    assert resolve_precision("bfloat16") == "bfloat16"


def test_a_run_on_an_object_store_goes_on_where_it_was(tmp_path):
    import time

    workdir = f"ram://run-{time.monotonic_ns()}"

    def run_there(num_steps):
        config = tiny_task.training_config(num_steps=num_steps, evaluate_every=0)
        task = tiny_task.tiny_task(config, dropout=0.1)
        devices = build_devices("none")
        state = run_state.build_state(task, config, devices)
        newest, _ = checkpoints.load_newest(workdir)
        if newest:
            run_state.restore(state, newest)
        watcher = tiny_task.ListWatcher()
        loop.train(task, config, workdir, state=state, devices=devices, watcher=watcher)
        return watcher

    assert len(run_there(10).records) == 10
    assert run_there(12).started == [10]
    assert checkpoints.load_named(workdir, "last").step == 12


def test_a_run_killed_between_checkpoint_and_pointers_finds_its_best_and_last(tmp_path):
    """`best.json` and `last.json` are written after the folder they name; a kill in between must not hide it."""
    state, _, _ = run(tmp_path, num_steps=12, evaluate_every=6, checkpoint_every=6)
    best = state.progress.best_step
    folder = tmp_path / "checkpoints"
    (folder / "last.json").write_text('{"folder": "step-00000006", "step": 6}')
    (folder / "best.json").unlink()
    config = tiny_task.training_config(num_steps=12)
    again = tiny_task.tiny_task(config)
    restored = run_state.build_state(again, config, build_devices("none"))
    newest, _ = checkpoints.load_newest(str(tmp_path))
    run_state.restore(restored, newest)
    run_state.repair_folder(str(tmp_path), restored, newest, again)
    assert checkpoints.load_named(str(tmp_path), "last").step == 12
    assert checkpoints.load_named(str(tmp_path), "best").step == best
    assert json.loads((folder / "best.json").read_text())["value"] == pytest.approx(state.progress.best_value)


def test_broken_newer_checkpoints_go_and_a_best_one_that_is_gone_is_forgotten(tmp_path):
    state, _, _ = run(tmp_path, num_steps=12, evaluate_every=0, checkpoint_every=6)
    newest, _ = checkpoints.load_newest(str(tmp_path))
    state.progress.best_step, state.progress.best_value = 3, 0.5
    (tmp_path / "checkpoints" / "step-00000015").mkdir()
    (tmp_path / "checkpoints" / ".step-00000015.partial").mkdir()
    (tmp_path / "checkpoints" / "frozen-0.safetensors.partial-0123").write_bytes(b"half")
    run_state.forget_lost_best(str(tmp_path), state)
    run_state.repair_folder(str(tmp_path), state, newest, tiny_task.tiny_task(tiny_task.training_config()))
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if "partial" in path.name]
    assert not (tmp_path / "checkpoints" / "step-00000015").exists()
    assert not (tmp_path / "checkpoints" / "best.json").exists()
    assert state.progress.best_value is None


def test_an_unfinished_upload_to_an_object_store_is_no_checkpoint(tmp_path):
    import time

    from aigc_tf import storage

    workdir = f"ram://upload-{time.monotonic_ns()}"
    storage.write_bytes(checkpoints.folder_of(workdir, "step-00000005", "weights.safetensors"), b"half")
    assert checkpoints.load_newest(workdir) == (None, [])


def test_batches_without_a_mask_have_neither_tokens_nor_a_useful_share():
    columns = {name: np.ones(1) for name in ("loss", "weight", "gradient_norm", "learning_rate", "input_seconds")}
    columns |= {"finite": np.array([True]), "good": np.array([True]), "tokens": np.zeros(1), "positions": np.zeros(1)}
    (record,) = loop._records(columns, {"kl": np.array([0.5])}, 6)
    assert record["step"] == 7
    assert record["train/kl"] == 0.5
    assert not {"train/tokens", "train/useful_share"} & record.keys()


def test_frozen_weights_stay_and_are_written_once(tmp_path):
    before = checkpoints.to_host(tiny_task.build_model().variables)
    frozen = {path for path in before if "embedding" in path}
    state, _, _ = run(tmp_path, num_steps=10, evaluate_every=0, freeze=("*embedding*",))
    after = checkpoints.to_host(state.model.variables)
    assert {path for path, value in after.items() if np.array_equal(value, before[path])} == frozen != set()
    files = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert [name[:7] for name in files] == ["best.js", "frozen-", "last.js", "step-00", "step-00"]
    newest, _ = checkpoints.load_newest(str(tmp_path))
    assert newest.weights.keys() == after.keys()
    saved = safetensors.numpy.load_file(tmp_path / "checkpoints" / "step-00000010" / "weights.safetensors")
    assert saved.keys() == after.keys() - frozen
    assert not [path for path in newest.slots if "embedding" in path]


def test_a_run_asked_to_end_in_an_evaluation_makes_it_when_it_goes_on(tmp_path):
    """Also that what the evaluation decides, here to stop early, is in a checkpoint then."""

    def never_better(rows):
        return tiny_task.accuracy(rows) | {"accuracy": 0.5}

    changes = dict(num_steps=24, evaluate_every=6, checkpoint_every=5, early_stopping_patience=1)
    config = tiny_task.training_config(**changes)
    task, devices = tiny_task.tiny_task(config, score=never_better), build_devices("none")
    whole, _, _ = run(tmp_path / "whole", task, **changes)
    assert (whole.step, whole.progress.stopped_early) == (12, True)

    state = run_state.build_state(task, config, devices)
    watcher, asked = tiny_task.ListWatcher(), []

    def stop_requested():
        asked.append(state.step)
        return asked.count(12) == 2  # within the evaluation after step 12

    with pytest.raises(Preempted):
        loop.train(
            task,
            config,
            str(tmp_path / "asked"),
            state=state,
            devices=devices,
            watcher=watcher,
            stop_requested=stop_requested,
        )
    assert [step for step, _, _ in watcher.evaluations] == [6]
    assert checkpoints.load_named(tmp_path / "asked", "last").progress["evaluated_step"] == 6
    _, watcher, _ = run(tmp_path / "asked", task, **changes)
    assert [step for step, _, _ in watcher.evaluations] == [12]
    last = checkpoints.load_named(tmp_path / "asked", "last")
    assert (last.step, last.progress["stopped_early"], last.progress["evaluated_step"]) == (12, True, 12)
    for path, value in checkpoints.to_host(whole.model.variables).items():
        assert np.array_equal(value, last.weights[path])
