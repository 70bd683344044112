"""A model over whole splits."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.errors import Preempted
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.feed import distribute
from aigc_tf.training.step.step import build_evaluate_step
from aigc_tf.training.task import Task


class Evaluator:
    """Runs the model over whole splits."""

    def __init__(
        self,
        model: keras.Model,
        task: Task,
        *,
        devices: Devices,
        jit: bool,
        stop_requested: Callable[[], bool] = lambda: False,
    ):
        self._task, self._devices, self._stop_requested = task, devices, stop_requested
        self._evaluate_step = build_evaluate_step(model, task.observe, strategy=devices.strategy, jit=jit)

    def evaluate(self, split: str) -> dict[str, Any]:
        """Returns the task's metrics of a split, the same on every worker.

        Raises:
            Preempted: If a worker was asked to end.
        """
        return self._task.evaluations[split].score(self.observe(split))

    def observe(self, split: str) -> dict[str, np.ndarray]:
        """Returns what the task observes of all rows of a split, in the order of its batches."""
        chosen = self._task.evaluations[split]
        iterator = iter(
            distribute(chosen.source, self._devices, first_step=0, num_steps=chosen.num_batches, shape=chosen.shape)
        )
        batches: list[dict[str, np.ndarray]] = []
        for _ in range(chosen.num_batches):
            observed, is_stopping = self._evaluate_step(iterator, tf.constant(self._stop_requested()))
            if is_stopping:
                raise Preempted
            results = {name: value.numpy() for name, value in observed.items()}
            real = results["weights"] > 0
            batches.append({name: values[real] for name, values in results.items()})
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
