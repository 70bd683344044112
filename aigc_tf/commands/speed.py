"""Estimates the time of a run on this machine from a few of its training steps."""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence

import keras
import tensorflow as tf

from aigc_tf.commands.runs import door_of, open_prepared_of, resolve
from aigc_tf.config import ExperimentConfig, TrainingConfig
from aigc_tf.training.devices import strategy
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.feed import Feed
from aigc_tf.training.optimizers import optimizers
from aigc_tf.training.run_state import build_state
from aigc_tf.training.step.step import LossHistory, build_run_steps
from aigc_tf.training.task import Task

_TIMED_STEPS = 5
_FORWARD_SHARE = 1 / 3
"""Cost of an evaluated position relative to a trained one: per forward product, backward computes two."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured times of one experiment."""

    start_seconds: float
    """Seconds to build the model and trace its step."""
    position_seconds: float
    """Seconds to train on one position of a batch, padding included."""


def run_seconds(configs: Sequence[ExperimentConfig]) -> list[float]:
    """Measures the speed of the first config and returns the seconds that each run would take, evaluations included.

    Args:
        configs: Configs of one experiment with prepared data; they differ only in their schedules.
    """
    devices = strategy.build_devices("none")
    config = resolve(configs[0], None, devices)
    keras.utils.set_random_seed(config.training.seed % 2**32)
    started = time.perf_counter()
    task = door_of(config).build(config, open_prepared_of(config), devices)
    speed = measure_speed(task, config.training, devices, started=started)
    return [estimate_seconds(speed, task, other) for other in configs]


def measure_speed(task: Task, config: TrainingConfig, devices: Devices, *, started: float) -> Speed:
    """Times the first steps of a run, and discards their result.

    Args:
        task: The task to train.
        config: How to train it.
        devices: Where to train it.
        started: `time.perf_counter()` when the work on `task` began.
    """
    state = build_state(task, config, devices)
    run_steps = build_run_steps(
        state.model,
        state.optimizer,
        task.losses,
        strategy=devices.strategy,
        learning_rate=functools.partial(optimizers.learning_rate, config=config),
        config=config,
    )
    feed = Feed(task, devices, 0)

    def run(first_step: int, num_steps: int) -> None:
        iterator, num_steps = feed.take(first_step, num_steps)
        history = LossHistory(*(tf.constant(0.0) for _ in LossHistory._fields))
        columns, _, _ = run_steps(
            iterator, tf.constant(first_step, tf.int64), tf.constant(num_steps), history, tf.constant(False)
        )
        columns["loss"].numpy()  # waits for the steps, since calls return before the device is done

    run(0, 1)  # traces the step
    traced = time.perf_counter()
    run(1, _TIMED_STEPS)
    # Per position, since steps have different lengths and padding costs as much as tokens.
    positions = _positions(task, config, range(1, 1 + _TIMED_STEPS))
    return Speed(start_seconds=traced - started, position_seconds=(time.perf_counter() - traced) / positions)


def estimate_seconds(speed: Speed, task: Task, config: ExperimentConfig) -> float:
    """Returns the seconds of a run: its start, its steps, and its evaluations."""
    training = config.training
    trained = _positions(task, training, range(training.num_steps))
    example_positions = trained / (training.num_steps * training.global_batch_size)
    passes = -(-training.num_steps // (training.evaluate_every or training.num_steps))
    batches = {name: split.num_batches for name, split in task.evaluations.items()}
    judged = batches.get("validation", 0) * passes + sum(batches.values())  # the best weights are judged on every split
    evaluated = judged * config.evaluation.batch_size * example_positions
    return speed.start_seconds + speed.position_seconds * (trained + _FORWARD_SHARE * evaluated)


def _positions(task: Task, config: TrainingConfig, steps: range) -> int:
    """Returns the positions of some steps, padding included.

    Batches are grouped by length, so a few timed steps may all be short; the order has the lengths of all steps.
    """
    return config.global_batch_size * sum(math.prod(task.order.batch(step).shape.values()) for step in steps)
