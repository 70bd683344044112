"""How long a run is said to take."""

import time
from types import SimpleNamespace

import pytest

from aigc_tf.commands.speed import Speed, estimate_seconds, measure_speed
from aigc_tf.config import EvaluationConfig, ExperimentConfig
from aigc_tf.training.devices.strategy import build_devices
from tests import tiny_task


def lengths(*lengths):
    """A task of these padded lengths, one a step, with 3 validation batches and 5 test batches."""
    order = SimpleNamespace(batch=lambda step: SimpleNamespace(shape={"length": lengths[step]}))
    return SimpleNamespace(
        order=order,
        evaluations={"validation": SimpleNamespace(num_batches=3), "test": SimpleNamespace(num_batches=5)},
    )


@pytest.mark.parametrize(("evaluate_every", "passes"), [(0, 1), (4, 1), (3, 2), (2, 2), (9, 1)])
def test_the_time_of_a_run_is_its_start_its_steps_and_its_evaluations(evaluate_every, passes):
    training = tiny_task.training_config(num_steps=4, global_batch_size=8, evaluate_every=evaluate_every)
    config = ExperimentConfig(
        name="tiny", task="classify", training=training, evaluation=EvaluationConfig(batch_size=6)
    )
    speed = Speed(start_seconds=100.0, position_seconds=0.5)
    trained = 8 * (10 + 20 + 30 + 40)
    evaluated = (3 * passes + 3 + 5) * 6 * 25
    seconds = estimate_seconds(speed, lengths(10, 20, 30, 40), config)
    assert seconds == pytest.approx(100.0 + 0.5 * (trained + evaluated / 3))


def test_speed_is_measured_by_steps_of_the_run():
    config = tiny_task.training_config()
    started = time.perf_counter()
    speed = measure_speed(tiny_task.tiny_task(config), config, build_devices("none"), started=started)
    whole = time.perf_counter() - started
    assert 0.0 < speed.start_seconds < whole
    assert 0.0 < speed.position_seconds < whole / (5 * 8)  # five steps of eight rows of more than one position
