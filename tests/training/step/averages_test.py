import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.errors import InputError
from aigc_tf.training import checkpoints, loop, run_state
from aigc_tf.training.devices.strategy import build_devices
from aigc_tf.training.step.averages import averaged, build_averages, move_averages
from tests import tiny_task

pytestmark = pytest.mark.slow


def test_an_average_moves_by_hand_computed_shares():
    weight = keras.Variable([4.0, 8.0], name="weight")
    averages = build_averages([weight])
    weight.assign([0.0, 0.0])

    @tf.function
    def move(step):
        move_averages(averages, [weight], decay=0.5, step=step)

    move(tf.constant(0, tf.int64))  # (1 + 0) / (10 + 0) = 0.1 stays
    np.testing.assert_allclose(averages[0].numpy(), [0.4, 0.8], rtol=1e-6)
    move(tf.constant(100, tf.int64))  # 101 / 110 is more than the decay, so 0.5 stays
    np.testing.assert_allclose(averages[0].numpy(), [0.2, 0.4], rtol=1e-6)


def test_averages_stand_in_for_the_weights_and_go_again():
    weight = keras.Variable([1.0], name="weight")
    averages = build_averages([weight])
    weight.assign([3.0])
    with averaged(averages, [weight]):
        assert weight.numpy().tolist() == [1.0]
    assert weight.numpy().tolist() == [3.0]


def train(workdir, **changes):
    config = tiny_task.training_config(num_steps=12, ema_decay=0.9, **changes)
    task = tiny_task.tiny_task(config, dropout=0.1)
    devices = build_devices("none")
    state = run_state.build_state(task, config, devices)
    newest, _ = checkpoints.load_newest(str(workdir))
    if newest:
        run_state.restore(state, newest)
    watcher = tiny_task.ListWatcher()
    loop.train(task, config, str(workdir), state=state, devices=devices, watcher=watcher)
    return state, watcher


def test_training_with_an_average_is_the_same_training(tmp_path):
    """The average follows the weights step by step; the weights are those of a run without one."""
    with_average, _ = train(tmp_path / "a")
    config = tiny_task.training_config(num_steps=12)
    task = tiny_task.tiny_task(config, dropout=0.1)
    plain = run_state.build_state(task, config, build_devices("none"))
    watcher = tiny_task.ListWatcher()
    loop.train(task, config, str(tmp_path / "b"), state=plain, devices=build_devices("none"), watcher=watcher)
    weights = checkpoints.to_host(plain.model.variables)
    for path, value in checkpoints.to_host(with_average.model.variables).items():
        np.testing.assert_array_equal(value, weights[path])
    saved = checkpoints.load_named(str(tmp_path / "a"), "last")
    assert saved.averages.keys() == saved.weights.keys()
    path = max(saved.weights, key=lambda path: saved.weights[path].size)
    assert np.abs(saved.averages[path] - saved.weights[path]).max() > 1e-5
    assert saved.weights_of("auto")[path] is saved.averages[path]
    assert saved.weights_of("raw")[path] is saved.weights[path]
    with pytest.raises(InputError, match="keeps no averaged weights"):
        checkpoints.load_named(str(tmp_path / "b"), "last").weights_of("averaged")


def test_a_resumed_run_has_the_averages_of_one_that_was_not_stopped(tmp_path):
    whole, _ = train(tmp_path / "whole")
    train(tmp_path / "parts", checkpoint_every=5)
    for name in ("step-00000012", "last.json", "best.json"):
        path = tmp_path / "parts" / "checkpoints" / name
        if path.is_dir():
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
        elif path.exists():
            path.unlink()
    resumed, watcher = train(tmp_path / "parts", checkpoint_every=5)
    assert watcher.started == [10]
    for ours, theirs in zip(resumed.averages, whole.averages, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_two_replicas_average_like_one(tmp_path):
    config = tiny_task.training_config(num_steps=6, ema_decay=0.9, evaluate_every=0)
    results = []
    for strategy in ("none", "mirrored"):
        task, devices = tiny_task.tiny_task(config), build_devices(strategy)
        state = run_state.build_state(task, config, devices)
        watcher = tiny_task.ListWatcher()
        loop.train(task, config, str(tmp_path / strategy), state=state, devices=devices, watcher=watcher)
        results.append([average.numpy() for average in state.averages])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)  # the bound of the law on replicas


def test_the_averages_are_judged_unless_raw_weights_are_asked_for(tmp_path):
    def seen_while_judging(kind):
        seen = []

        def score(rows):
            seen.append(float(np.abs(rows["outputs"]).sum()))
            return tiny_task.accuracy(rows)

        config = tiny_task.training_config(num_steps=12, ema_decay=0.9)
        task = dataclasses.replace(tiny_task.tiny_task(config, score=score), judged_weights=kind)
        devices = build_devices("none")
        state = run_state.build_state(task, config, devices)
        watcher = tiny_task.ListWatcher()
        loop.train(task, config, str(tmp_path / kind), state=state, devices=devices, watcher=watcher)
        return seen, checkpoints.to_host(state.model.variables)

    averaged_scores, averaged_weights = seen_while_judging("auto")
    raw_scores, raw_weights = seen_while_judging("raw")
    assert averaged_scores[-1] != raw_scores[-1]
    for path, value in averaged_weights.items():
        np.testing.assert_array_equal(value, raw_weights[path])
