"""A model over whole splits."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from aigc_tf.errors import Preempted
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.feed import distribute
from aigc_tf.training.step.step import Observe, build_evaluate_step
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
        self._model, self._task, self._devices, self._jit = model, task, devices, jit
        self._stop_requested = stop_requested
        self._steps: dict[Observe, Callable[..., Any]] = {}

    def evaluate(self, split: str) -> dict[str, Any]:
        """Returns the task's metrics of a split, the same on every worker.

        Raises:
            Preempted: If a worker was asked to end.
        """
        chosen = self._task.evaluations[split]
        step, accumulator = self._step(chosen.observe), chosen.accumulator()
        iterator = iter(
            distribute(chosen.source, self._devices, first_step=0, num_steps=chosen.num_batches, shape=chosen.shape)
        )
        for _ in range(chosen.num_batches):
            observed, is_stopping = step(iterator, tf.constant(self._stop_requested()))
            if is_stopping:
                raise Preempted
            results = {name: value.numpy() for name, value in observed.items()}
            is_real = results["weights"] > 0
            accumulator.add({name: values[is_real] for name, values in results.items()})
        return accumulator.result()

    def _step(self, observe: Observe) -> Callable[..., Any]:
        # Splits with the same `observe` share one graph.
        if observe not in self._steps:
            self._steps[observe] = build_evaluate_step(
                self._model, observe, strategy=self._devices.strategy, jit=self._jit
            )
        return self._steps[observe]
