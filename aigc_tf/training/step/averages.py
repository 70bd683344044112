"""An exponential moving average of the weights, which often scores better than the last weights."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def build_averages(variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """Returns one average per variable, equal to it now. Call it under the model's strategy.

    An average's name is the path of its variable.
    """
    return [
        keras.Variable(variable.numpy(), dtype=variable.dtype, trainable=False, name=variable.path.replace("/", "|"))
        for variable in variables
    ]


def move_averages(
    averages: Sequence[keras.Variable], variables: Sequence[keras.Variable], *, decay: float, step: tf.Tensor
) -> None:
    """Moves each average towards its variable, in a replica of the strategy.

    Args:
        averages: From `build_averages`.
        variables: Their variables.
        decay: Share of the average that stays. At the beginning it is less, (1 + step) / (10 + step), so that the
            initial weights are soon forgotten.
        step: Integer scalar, counted from 0.
    Source: Polyak and Juditsky 1992; the beginning as in
    https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage.
    """
    position = tf.cast(step, tf.float32)
    share = 1.0 - tf.minimum(decay, (1.0 + position) / (10.0 + position))

    def move(average: Any, variable: Any) -> None:
        average.assign_add(tf.cast(share, average.dtype) * (variable - average))

    def move_all(distribution: tf.distribute.Strategy) -> None:
        for average, variable in zip(averages, variables, strict=True):
            distribution.extended.update(average.value, move, args=(variable.value,), group=False)

    tf.__internal__.distribute.interim.maybe_merge_call(move_all, tf.distribute.get_strategy())


@contextlib.contextmanager
def averaged(averages: Sequence[keras.Variable], variables: Sequence[keras.Variable]) -> Iterator[None]:
    """Within it, the weights are the averages; without averages nothing changes."""
    if not averages:
        yield
        return
    raw = [np.asarray(variable.numpy()) for variable in variables]
    for average, variable in zip(averages, variables, strict=True):
        variable.assign(average.numpy())
    try:
        yield
    finally:
        for value, variable in zip(raw, variables, strict=True):
            variable.assign(value)
