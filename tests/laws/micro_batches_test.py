"""Law: K micro-batches == one batch, with unequal weights in each, 20 AdamW steps at epsilon 1e-6."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.training import checkpoints, loop, run_state
from aigc_tf.training.devices.strategy import build_devices
from tests import tiny_task

BOUND = 1e-6


def train(tmp_path, *, dropout=0.0, strategy="none", losses=None, **changes):
    config = tiny_task.training_config(**(dict(num_steps=20, evaluate_every=0, strategy=strategy) | changes))
    task = tiny_task.tiny_task(config, dropout=dropout, class_weights=(1.0, 3.0))  # so slices differ in weight
    if losses is not None:
        task = dataclasses.replace(task, losses=losses)
    devices = build_devices(strategy)
    state = run_state.build_state(task, config, devices)
    watcher = tiny_task.ListWatcher()
    loop.train(task, config, str(tmp_path), state=state, devices=devices, watcher=watcher)
    return checkpoints.to_host(state.model.variables), watcher.records


def largest_difference(first, second):
    return float(np.max([np.abs(first[path] - second[path]).max() for path in first]))


@pytest.mark.parametrize(("parts", "jit"), [(8, "off"), (4, "on")])
def test_micro_batches_train_like_one_batch(tmp_path, parts, jit, measure):
    whole, records = train(tmp_path / "whole")
    split, split_records = train(tmp_path / "split", micro_batches=parts, jit=jit)
    measure("K micro-batches == one batch, weights after 20 AdamW steps", largest_difference(whole, split), BOUND)
    for one, other in zip(records, split_records, strict=True):
        assert one["train/tokens"] == other["train/tokens"]
        assert one["train/weight"] == other["train/weight"]
        assert one["train/loss"] == pytest.approx(other["train/loss"], abs=1e-6)


def with_parts(model, batch):
    losses = tiny_task.tiny_losses(model, batch, class_weights=(1.0, 3.0))
    length = tf.reduce_sum(tf.cast(batch["padding_mask"], tf.float32), axis=1)
    return losses._replace(parts={"squared": losses.values**2, "length": length})


def test_parts_of_the_loss_are_the_same_for_micro_batches_and_replicas(tmp_path, measure):
    changes = dict(num_steps=4, losses=with_parts)
    _, whole = train(tmp_path / "whole", **changes)
    _, micro = train(tmp_path / "micro", micro_batches=4, **changes)
    _, two = train(tmp_path / "two", strategy="mirrored", **changes)
    assert whole[0]["train/squared"] != whole[1]["train/squared"]
    assert 2 < whole[0]["train/length"] <= 16
    for name in ("train/squared", "train/length"):
        for other, bound in ((micro, BOUND), (two, 1e-5)):
            differences = [abs(a[name] - b[name]) for a, b in zip(whole, other, strict=True)]
            measure(f"parts of the loss, {'micro-batches' if other is micro else 'replicas'}", max(differences), bound)


def test_two_micro_batches_drop_out_what_two_replicas_do(tmp_path, measure):
    replicas, _ = train(tmp_path / "replicas", dropout=0.3, strategy="mirrored")
    micro_batches, _ = train(tmp_path / "micro", dropout=0.3, micro_batches=2)
    difference = largest_difference(replicas, micro_batches)
    measure("2 micro-batches == 2 replicas, dropout on, weights after 20 steps", difference, 1e-5)
    whole, _ = train(tmp_path / "whole", dropout=0.3)
    assert largest_difference(whole, micro_batches) > 1e-4, "one batch draws other masks: dropout was on"
