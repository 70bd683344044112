"""Batches for every replica, from any step on."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from aigc_tf.data.batching.batches import BatchSource
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.task import Task


def distribute(
    source: BatchSource,
    devices: Devices,
    *,
    first_step: int,
    num_steps: int | None = None,
    shape: Mapping[str, int] | None = None,
) -> Any:
    """Returns the distributed data set of a source: each replica gets its rows of each global batch."""

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        del context  # Devices knows this worker's place under every strategy
        return source.dataset(
            first_step,
            first_shard=devices.first_replica,
            local_shards=devices.local_replicas,
            num_shards=devices.num_replicas,
            num_steps=num_steps,
            shape=shape,
        )

    return devices.strategy.distribute_datasets_from_function(dataset)


class Feed:
    """Gives the iterator for the next call, and the number of steps that the call may take."""

    def __init__(self, task: Task, devices: Devices, first_step: int):
        self._task, self._devices = task, devices
        self._iterator = None
        if not devices.static_shapes:
            self._iterator = iter(distribute(task.train, devices, first_step=first_step))

    def take(self, step: int, limit: int) -> tuple[Any, int]:
        if self._iterator is not None:
            return self._iterator, limit
        num_steps = min(limit, self._task.order.run_end(step) - step)  # steps of one shape
        shape = self._task.order.batch(step).shape
        batches = distribute(self._task.train, self._devices, first_step=step, num_steps=num_steps, shape=shape)
        return iter(batches), num_steps

    def drop(self, step: int) -> None:
        """Skips the batch of a step."""
        if self._iterator is not None:
            next(self._iterator)
