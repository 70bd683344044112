"""Law: XLA == graph == eager, for the loss and every gradient of a step.

With dropout too for generators of our own layers. In Keras' layers the masks of XLA are its own: TensorFlow picks
another generator there, which Keras leaves to it.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import ModelConfig
from aigc_tf.models.generators.generator import build_generator
from aigc_tf.training import checkpoints, loop, run_state
from aigc_tf.training.devices.strategy import build_devices
from aigc_tf.training.step.step import forward_key, seed_generators, stateless_seeds
from tests import tiny_task

BOUND = 1e-5


def test_forward_and_backward_agree_in_all_three_modes(measure):
    config = tiny_task.training_config()
    task = tiny_task.tiny_task(config)
    model = task.build_model()
    batch = {name: tf.constant(value) for name, value in task.train.rows(0, shard=0, num_shards=1).items()}

    def forward_backward(batch):
        with tf.GradientTape() as tape:
            losses = task.losses(model, batch)
            total = tf.reduce_sum(losses.values * losses.weights)
        found = tape.gradient(total, model.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [total, *map(tf.convert_to_tensor, found)]

    eager = forward_backward(batch)
    for mode in (tf.function(forward_backward), tf.function(forward_backward, jit_compile=True)):
        for expected, value in zip(eager, mode(batch), strict=True):
            difference = np.abs(np.asarray(value) - np.asarray(expected)).max()
            measure("XLA == graph == eager, loss and gradients", difference, BOUND)


def test_a_generator_agrees_in_all_three_modes_with_dropout(measure):
    config = ModelConfig(num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=64, dropout=0.3)
    model = build_generator(config, vocabulary_size=50, max_length=16, seed=1)
    generators = seed_generators(model)
    token_ids = tf.constant(np.random.default_rng(0).integers(0, 50, (3, 16)), tf.int32)

    def forward_backward(step):
        with tf.GradientTape() as tape, stateless_seeds(generators, forward_key(5, step, 0)):
            logits = model({"token_ids": token_ids}, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(token_ids, logits))
        return [loss, *map(tf.convert_to_tensor, tape.gradient(loss, model.trainable_variables))]

    for step in range(3):  # the masks of one could be the same by chance
        at = tf.constant(step, tf.int64)
        eager = forward_backward(at)
        for mode in (tf.function(forward_backward), tf.function(forward_backward, jit_compile=True)):
            for expected, value in zip(eager, mode(at), strict=True):
                difference = np.abs(np.asarray(value) - np.asarray(expected)).max()
                measure("XLA == graph == eager, generator with dropout, loss and gradients", difference, BOUND)


def test_a_step_draws_the_same_mask_again_in_each_mode():
    import keras

    model = keras.Sequential([keras.Input([32]), keras.layers.Dropout(0.5)])
    generators = seed_generators(model)

    def forward(step):
        with stateless_seeds(generators, forward_key(5, step, 0)):
            return model(tf.ones([2, 32]), training=True)

    step = tf.constant(3, tf.int64)
    eager = forward(step).numpy()
    assert 0 < (eager == 0).mean() < 1
    np.testing.assert_array_equal(tf.function(forward)(step), eager)
    compiled = tf.function(forward, jit_compile=True)
    np.testing.assert_array_equal(compiled(step), compiled(step))
    assert not np.array_equal(compiled(step), compiled(step + 1))


@pytest.mark.parametrize("strategy", ["none", "mirrored"])
def test_a_run_compiled_by_xla_trains_like_one_that_is_not(tmp_path, strategy, measure):
    def weights(jit):
        config = tiny_task.training_config(jit=jit, num_steps=4, strategy=strategy, evaluate_every=0)
        task = tiny_task.tiny_task(config, num_buckets=1)  # one shape, one compilation
        devices = build_devices(strategy)
        state = run_state.build_state(task, config, devices)
        loop.train(task, config, str(tmp_path / jit), state=state, devices=devices, watcher=tiny_task.ListWatcher())
        return checkpoints.to_host(state.model.variables)

    plain, compiled = weights("off"), weights("on")
    for path, value in plain.items():
        difference = np.abs(compiled[path] - value).max()
        measure("XLA == graph, weights after 4 steps", difference, BOUND)


def test_shapes_known_per_call_train_like_shapes_that_vary(tmp_path, measure):
    """On TPU a call takes steps of one padded length; the switch must change nothing but the speed."""

    def weights(static_shapes):
        config = tiny_task.training_config(num_steps=8, evaluate_every=0)
        task = tiny_task.tiny_task(config, dropout=0.1)
        devices = dataclasses.replace(build_devices("none"), static_shapes=static_shapes)
        state = run_state.build_state(task, config, devices)
        watcher = tiny_task.ListWatcher()
        loop.train(task, config, str(tmp_path / str(static_shapes)), state=state, devices=devices, watcher=watcher)
        return checkpoints.to_host(state.model.variables), len(watcher.records)

    varying, known = weights(False), weights(True)
    assert varying[1] == known[1] == 8
    for path, value in varying[0].items():
        difference = np.abs(known[0][path] - value).max()
        measure("shapes known per call == shapes that vary", difference, BOUND)
