"""Law: no forward changes a variable; a network that would is refused before its first step."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.errors import InputError
from aigc_tf.models.freezing import freeze
from aigc_tf.training.devices.strategy import build_devices
from aigc_tf.training.planning.preflight import plan_run, trace_step
from aigc_tf.training.step.batch_losses import Losses
from tests import tiny_task


class Counter(keras.layers.Layer):
    """Counts how often it was computed, in training or not, inside of a branch."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = self.add_weight(shape=(), trainable=False, initializer="zeros", name="count")

    def call(self, x):
        tf.cond(tf.reduce_sum(x) > 0.0, lambda: self.count.assign_add(1.0), lambda: tf.constant(0.0))
        return x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def network(layer):
    ids = keras.Input([None], dtype="int32", name="token_ids")
    hidden = keras.layers.Embedding(tiny_task.VOCABULARY, 8, name="embedding")(ids)
    hidden = keras.layers.GlobalAveragePooling1D()(hidden)
    return keras.Model(ids, keras.layers.Dense(2, name="head")(layer(hidden)))


def task_of(build_model, *, observe=None):
    def losses(model, batch):
        values = keras.ops.sum(model(batch["token_ids"], training=True) ** 2, axis=1)
        return Losses(values, batch["weights"])

    def plain(model, batch):
        return {"outputs": model(batch["token_ids"], training=False), "weights": batch["weights"]}

    task = tiny_task.tiny_task(tiny_task.training_config())
    validation = dataclasses.replace(task.evaluations["validation"], observe=observe or plain)
    return dataclasses.replace(task, build_model=build_model, losses=losses, evaluations={"validation": validation})


def normalized():
    return network(keras.layers.BatchNormalization(name="norm"))


@pytest.mark.parametrize("strategy", ["none", "mirrored"])
def test_batch_statistics_are_refused_by_the_name_of_their_layer(strategy):
    devices = build_devices(strategy)
    with devices.strategy.scope():
        model = normalized()
    with pytest.raises(InputError, match=r"forward changes moving_mean, moving_variance of the layers norm, .*norm/\*"):
        trace_step(task_of(normalized), model, devices)
    assert np.all(model.get_layer("norm").moving_mean.numpy() == 0.0)


def test_a_plan_refuses_them_too():
    with pytest.raises(InputError, match="of the layers norm"):
        plan_run(task_of(normalized), tiny_task.training_config(), build_devices("none"))


def test_a_layer_that_is_frozen_by_its_name_computes_with_what_it_has():
    model = normalized()
    freeze(model, ["norm/*"])
    trace_step(task_of(normalized), model, build_devices("none"))
    before = [variable.numpy() for variable in model.variables]
    model(np.ones([2, 5], np.int32), training=True)
    assert all(np.array_equal(one, other.numpy()) for one, other in zip(before, model.variables, strict=True))


def test_a_variable_that_an_evaluation_changes_is_refused_too():
    def observe(model, batch):
        model.get_layer("head").bias.assign_add([1.0, 1.0])
        return {"weights": batch["weights"]}

    task = task_of(lambda: network(keras.layers.Identity()), observe=observe)
    with pytest.raises(InputError, match="changes bias of the layers head"):
        trace_step(task, task.build_model(), build_devices("none"))


def test_a_change_inside_of_a_branch_is_found():
    task = task_of(lambda: network(Counter(name="counter")))
    with pytest.raises(InputError, match="changes count of the layers counter"):
        trace_step(task, task.build_model(), build_devices("none"))


def test_dropout_changes_nothing():
    task = task_of(lambda: network(keras.layers.Dropout(0.5, name="dropout")))
    trace_step(task, task.build_model(), build_devices("none"))
