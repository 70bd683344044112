"""Law: the number of replicas or workers changes nothing but rounding.

1 == 2 replicas and 1 == 2 worker processes: the same example ids at every step, weights within 1e-5 (dropout 0,
float32). This also holds that the optimizer does not sum gradients a second time.
"""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import OPTIMIZERS, OptimizerConfig, TrainingConfig
from aigc_tf.training import checkpoints, loop, run_state
from aigc_tf.training.devices.strategy import build_devices
from aigc_tf.training.optimizers.optimizers import build_optimizer
from tests import tiny_task
from tests.fork_server import free_ports

BOUND = 1e-5


def train(strategy, tmp_path, **changes):
    config = tiny_task.training_config(strategy=strategy, **changes)
    task = tiny_task.tiny_task(config)
    devices = build_devices(strategy)
    state = run_state.build_state(task, config, devices)
    watcher = tiny_task.ListWatcher()
    loop.train(task, config, str(tmp_path), state=state, devices=devices, watcher=watcher)
    return checkpoints.to_host(state.model.variables), watcher


def largest_difference(first, second):
    assert first.keys() == second.keys()
    return float(np.max([np.abs(first[path] - second[path]).max() for path in first]))


def test_two_replicas_train_like_one(tmp_path, measure):
    one, watcher_one = train("none", tmp_path / "one")
    two, watcher_two = train("mirrored", tmp_path / "two")
    measure("1 == 2 replicas, weights after 12 steps", largest_difference(one, two), BOUND)
    for a, b in zip(watcher_one.records, watcher_two.records, strict=True):
        assert a["train/tokens"] == b["train/tokens"]
        assert a["train/loss"] == pytest.approx(b["train/loss"], abs=BOUND)
        assert a["train/gradient_norm"] == pytest.approx(b["train/gradient_norm"], abs=1e-4)
    assert [step for step, _, _ in watcher_two.evaluations] == [6, 12]
    assert watcher_one.evaluations[-1][2]["count"] == watcher_two.evaluations[-1][2]["count"] == 13


@pytest.fixture(scope="module")
def strategies():
    return tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def apply_twice(name, strategy, layer_decay):
    """Weights, and slots, after two steps of an optimizer whose gradients are summed already; of each replica."""
    with strategy.scope():
        variables = []
        for layer, shape in {"embeddings": (2, 4), "block_0": (4, 6), "block_1": (4,)}.items():
            with keras.name_scope(layer):
                variables.append(keras.Variable(np.linspace(-1, 1, np.prod(shape)).reshape(shape), dtype="float32"))
        optimizer = build_optimizer(
            TrainingConfig(
                optimizer=OptimizerConfig(name=name, layer_decay=layer_decay),
            ),
            variables,
        )

    @tf.function
    def step(rate):
        def apply(rate):
            optimizer.learning_rate = rate
            optimizer.apply([tf.cos(3.0 * variable) for variable in variables], variables)

        strategy.run(apply, args=(rate,))

    for rate in (0.1, 0.05):
        step(tf.constant(rate))
    kept = [variable.value for variable in [*variables, *optimizer.variables]]
    rows = [[one.numpy() for one in strategy.experimental_local_results(value)] for value in kept]
    return [list(values) for values in zip(*rows, strict=True)]


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_sums_gradients_again(name, layer_decay, strategies, measure):
    [one], two = (apply_twice(name, strategy, layer_decay) for strategy in strategies)
    assert len(two) == 2
    difference = np.max([np.abs(a - b).max() for values in two for a, b in zip(one, values, strict=True)])
    measure("an optimizer on 2 replicas == on 1, weights and slots", difference, BOUND)


WORKER = """
import json, os, sys
import numpy as np
sys.path.insert(0, os.getcwd())
from tests.laws.replicas_test import train
weights, watcher = train("multi_worker", sys.argv[1])
if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
    np.savez(sys.argv[2], **{path.replace("/", "|"): value for path, value in weights.items()})
    print(json.dumps([watcher.records[-1]["train/tokens"], [s for s, _, _ in watcher.evaluations]]))
"""


def test_two_worker_processes_train_like_one(tmp_path, measure):
    one, watcher = train("none", tmp_path / "one")
    hosts = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = []
    for index in range(2):
        cluster = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(tmp_path / "workers"), str(tmp_path / "weights.npz")],
                env={**os.environ, "TF_CONFIG": json.dumps(cluster)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs[0][1][-3000:] + outputs[1][1][-3000:]
    with np.load(tmp_path / "weights.npz", allow_pickle=False) as saved:
        two = {name.replace("|", "/"): saved[name] for name in saved.files}
    measure("1 == 2 worker processes, weights after 12 steps", largest_difference(one, two), BOUND)
    tokens, evaluated = json.loads(outputs[0][0].strip().splitlines()[-1])
    assert tokens == watcher.records[-1]["train/tokens"]
    assert evaluated == [6, 12]


def test_replicas_draw_different_dropout_masks():
    from aigc_tf.training.step.step import forward_key, seed_generators, stateless_seeds

    model = keras.Sequential([keras.Input([64]), keras.layers.Dropout(0.5), keras.layers.Dropout(0.5)])
    generators = seed_generators(model)

    @tf.function
    def forward(step, replica):
        with stateless_seeds(generators, forward_key(7, step, replica)):
            return model(tf.ones([1, 64]), training=True)

    def mask(step, replica):
        return tuple(forward(tf.constant(step, tf.int64), tf.constant(replica)).numpy()[0].tolist())

    assert mask(3, 0) == mask(3, 0)
    assert len({mask(3, 0), mask(3, 1), mask(4, 0)}) == 3
