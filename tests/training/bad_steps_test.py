"""Steps whose loss or gradient is not finite, or a spike: stop, skip, roll back; and what is written of them."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.errors import InputError, Preempted, RunError
from aigc_tf.training import checkpoints, loop, run_state, skipping
from aigc_tf.training.devices.strategy import build_devices
from aigc_tf.training.step.batch_losses import Losses
from aigc_tf.training.step.step import LossHistory, extend_history, spike_limit
from tests import tiny_task

pytestmark = pytest.mark.slow

BAD = 21
"""The example whose label is infinite."""


def regression(model, batch, *, scale=1.0):
    logits = tiny_task.tiny_logits(model, batch, training=True)
    targets = tf.where(batch["example_ids"] == BAD, float("inf") if scale == 1.0 else scale, 0.1)
    return Losses(tf.square(logits[:, 0] - targets), batch["weights"])


def spiking(model, batch):
    return regression(model, batch, scale=1e4)


def train(workdir, *, losses=regression, strategy="none", until=None, stop_after=None, omit=(), **changes):
    defaults = dict(num_steps=24, evaluate_every=0, checkpoint_every=5, learning_rate=1e-3, strategy=strategy)
    config = tiny_task.training_config(**(defaults | changes))
    task = dataclasses.replace(tiny_task.tiny_task(config, dropout=0.1), losses=losses)
    devices = build_devices(strategy)
    state = run_state.build_state(task, config, devices)
    newest, _ = checkpoints.load_newest(str(workdir))
    if newest:
        run_state.restore(state, newest)
        run_state.repair_folder(str(workdir), state, newest, task)
    if omit:
        record = {"step": max(omit), "train/loss": 0.0, "train/gradient_norm": 0.0, "train/finite": True}
        skipping.append(str(workdir), record, policy="rollback", omitted=omit)
    watcher = tiny_task.ListWatcher()
    if until:
        collect = watcher.on_steps

        def die(records):
            collect(records)
            if records[-1]["step"] >= until:
                raise KeyboardInterrupt

        watcher.on_steps = die
    loop.train(
        task,
        config,
        str(workdir),
        state=state,
        devices=devices,
        watcher=watcher,
        stop_requested=lambda: stop_after is not None and state.step >= stop_after,
    )
    return state, watcher, task


def bytes_of(state):
    variables = checkpoints.to_host([*state.model.variables, *state.optimizer.variables])
    return {path: value.tobytes() for path, value in variables.items() if path != "adamw/learning_rate"}


def bad_steps(task):
    """Steps, counted from 1, whose batch holds the bad example."""
    return [step + 1 for step in range(24) if BAD in task.order.batch(step).example_ids]


def test_stop_names_the_step_and_leaves_the_weights_from_before(tmp_path):
    with pytest.raises(RunError, match="gave a loss of inf") as error:
        train(tmp_path)
    config = tiny_task.training_config()
    step = bad_steps(tiny_task.tiny_task(config))[0]
    assert f"Step {step} " in str(error.value)
    assert "inspect_examples.py" in str(error.value)
    found, rows = skipping.read_examples(str(tmp_path))
    assert found == step
    assert rows[0] == {"example_ids": [BAD], "loss": "inf", "weight": 1.0}
    assert len(rows) == 8
    assert all(row["loss"] < 10 for row in rows[1:])
    newest, _ = checkpoints.load_newest(str(tmp_path))
    assert all(np.isfinite(value).all() for value in newest.weights.values())


def test_a_rollback_leaves_the_batch_out_and_equals_a_skip(tmp_path):
    """What is bad is never applied, so to go back and leave out that one batch is to skip it."""
    skipped, _, _ = train(tmp_path / "skip", on_bad_step="skip")
    rolled, watcher, task = train(tmp_path / "back", on_bad_step="rollback")
    assert bytes_of(rolled) == bytes_of(skipped)
    steps = bad_steps(task)
    assert watcher.rollbacks == [(step - 1) // 5 * 5 for step in steps]
    assert [record for record in watcher.records if record["step"] in steps] == [
        {"step": step, "train/skipped": True} for step in steps
    ]


def left_out(watcher):
    return [record["step"] for record in watcher.records if record == {"step": record["step"], "train/skipped": True}]


def test_a_rollback_of_several_batches_leaves_those_before_out_too(tmp_path):
    whole, watcher, task = train(tmp_path / "back", on_bad_step="rollback", rollback_batches=3)
    wanted = sorted({step for bad in bad_steps(task) for step in range(max(bad - 2, 1), bad + 1)})
    assert left_out(watcher) == wanted
    lines = [json.loads(line) for line in (tmp_path / "back" / "skipped.jsonl").read_text().splitlines()]
    assert sorted({step for line in lines for step in line["omitted"]}) == wanted
    # A checkpoint at another place, as SIGTERM writes one, changes nothing.
    changes = dict(on_bad_step="rollback", rollback_batches=3)
    with pytest.raises(Preempted):
        train(tmp_path / "asked", stop_after=bad_steps(task)[0] - 2, **changes)
    resumed, _, _ = train(tmp_path / "asked", **changes)
    assert bytes_of(resumed) == bytes_of(whole)


def test_a_rollback_to_several_replicas_is_the_same(tmp_path):
    one, _, _ = train(tmp_path / "one", on_bad_step="rollback", strategy="mirrored")
    two, _, _ = train(tmp_path / "two", on_bad_step="skip", strategy="mirrored")
    assert bytes_of(one) == bytes_of(two)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_killed_after_a_bad_step_ends_as_if_it_had_not_been(tmp_path, policy):
    whole, _, task = train(tmp_path / "whole", on_bad_step=policy)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", on_bad_step=policy, until=bad_steps(task)[0] + 1)
    resumed, _, _ = train(tmp_path / "parts", on_bad_step=policy)
    assert bytes_of(resumed) == bytes_of(whole)
    logs = [(tmp_path / name / "skipped.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_a_spike_is_skipped_once_there_is_a_history(tmp_path):
    changes = dict(losses=spiking, num_steps=90, on_bad_step="skip", checkpoint_every=30)
    _, watcher, task = train(tmp_path / "watched", spike_threshold=2.0, **changes)
    bad = [step + 1 for step in range(90) if BAD in task.order.batch(step).example_ids]
    # One batch in eight has the loss L, so mean and deviation are 0.125 L and 0.33 L, and L is 2.6 deviations above.
    flagged = [record["step"] for record in watcher.records if record.get("train/skipped")]
    assert flagged
    assert set(flagged) <= set(bad)
    assert min(flagged) > 50
    assert all(watcher.records[step - 1]["train/finite"] for step in flagged)
    _, unwatched, _ = train(tmp_path / "not", **changes)
    assert not [record for record in unwatched.records if record.get("train/skipped")]


def test_the_history_of_the_loss_is_hand_computed():
    history = LossHistory(*(tf.constant(value) for value in (0.0, 0.0, 0.0)))
    for loss in (1.0, 3.0, 2.0):
        history = extend_history(history, tf.constant(loss))
    assert [float(value) for value in history] == pytest.approx([3.0, 2.0, 2 / 3])  # the plain mean and variance
    assert float(spike_limit(history, 3.0)) == float("inf")  # of three steps one knows nothing
    long = LossHistory(tf.constant(50.0), tf.constant(2.0), tf.constant(0.25))
    assert float(spike_limit(long, 3.0)) == pytest.approx(3.5)
    assert float(spike_limit(long, 0.0)) == float("inf")
    longer = extend_history(long, tf.constant(3.0))
    assert [float(value) for value in longer] == pytest.approx([51.0, 2.02, 0.98 * (0.25 + 0.02)])


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_run_that_only_gives_bad_steps_stops(tmp_path, policy):
    def hopeless(model, batch):
        losses = regression(model, batch)
        return losses._replace(values=losses.values * float("nan"))

    with pytest.raises(RunError, match="10th bad step in a row") as error:
        train(tmp_path / policy, losses=hopeless, on_bad_step=policy)
    assert "on_bad_step=skip" not in str(error.value)


def test_rows_of_tokens_and_of_packs_are_ranked():
    ids = np.array([[3, 4, -1], [5, -1, -1], [-1, -1, -1]])
    per_example = np.array([[1.0, np.nan, 9.0], [2.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    weights = (ids >= 0).astype(np.float32)
    assert skipping.rank_examples(ids, per_example, weights) == [
        {"example_ids": [4], "loss": "nan", "weight": 1.0},
        {"example_ids": [5], "loss": 2.0, "weight": 1.0},
        {"example_ids": [3], "loss": 1.0, "weight": 1.0},
    ]
    tokens = np.array([[1.0, 2.0], [4.0, np.inf], [1.0, 1.0]])
    token_weights = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    assert skipping.rank_examples(ids, tokens, token_weights) == [
        {"example_ids": [5], "loss": 4.0, "weight": 1.0},
        {"example_ids": [3, 4], "loss": 1.5, "weight": 2.0},
    ]


def test_losses_near_the_end_of_float32_leave_a_history_that_is_finite():
    history = LossHistory(*(tf.constant(value) for value in (0.0, 0.0, 0.0)))
    for loss in (3e38, 1.0, 3e38):
        history = extend_history(history, tf.constant(loss))
        assert all(np.isfinite(float(value)) for value in history)


def test_a_run_without_bad_steps_has_none_to_show(tmp_path):
    with pytest.raises(InputError, match="had no bad step"):
        skipping.read_examples(str(tmp_path))
    skipping.write_examples(str(tmp_path), 7, [])
    with pytest.raises(InputError, match="bad were 7"):
        skipping.read_examples(str(tmp_path), 8)
