"""Batches requests as TensorFlow Serving does (batching_session.cc, shared_batch_scheduler.h).

Requests of one signature wait in a queue; a thread takes a batch once it is full or its first request has waited
long enough. All queues share the threads. It does not split large requests.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from aigc_tf.errors import InputError
from aigc_tf.serving.stand_in.status import StatusError, invalid

Arrays = Mapping[str, np.ndarray]
Run = Callable[[Arrays, float], dict[str, np.ndarray]]
"""Computes outputs from inputs within the given seconds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
    """The parameters of a batching file, with the server's defaults."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False


def batching_of(message: Any, *, num_cpus: int) -> Batching:
    """Returns the parameters of a `server_configs.read_batching` message.

    Raises:
        InputError: If it needs something that the double does not do.
    """
    if message.enable_large_batch_splitting.value:
        raise InputError("enable_large_batch_splitting is not supported by the protocol double; leave it out.")
    given = {
        name: getattr(message, name).value
        for name in ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
        if message.HasField(name)
    }
    return Batching(
        **{"num_batch_threads": num_cpus, **given},
        allowed_batch_sizes=tuple(message.allowed_batch_sizes),
        pad_variable_length_inputs=message.pad_variable_length_inputs,
    )


@dataclasses.dataclass(eq=False)
class _Task:
    inputs: Arrays
    size: int
    deadline: float
    is_done: threading.Event = dataclasses.field(default_factory=threading.Event)
    outputs: dict[str, np.ndarray] | None = None
    error: StatusError | None = None


@dataclasses.dataclass(eq=False)
class _Batch:
    started: float = 0.0
    tasks: list[_Task] = dataclasses.field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(task.size for task in self.tasks)


@dataclasses.dataclass(eq=False)
class _Queue:
    run: Run
    batches: list[_Batch] = dataclasses.field(default_factory=lambda: [_Batch()])
    """Only the last one still takes requests."""


class Batcher:
    """The queues of all signatures of all models, and the threads that compute their batches.

    Args:
        batching: How requests are batched.
    """

    def __init__(self, batching: Batching):
        self.batching = batching
        self.batch_sizes: list[int] = []
        """Rows, padding included, of the last thousand batches that were computed."""
        self._queues: dict[Hashable, _Queue] = {}
        self._changed, self._is_closed = threading.Condition(), False
        for _ in range(batching.num_batch_threads):
            threading.Thread(target=self._work, daemon=True).start()

    def run(self, key: Hashable, inputs: Arrays, run: Run, *, timeout: float) -> dict[str, np.ndarray]:
        """Waits for the outputs of some rows.

        Args:
            key: Only requests with the same key share a batch.
            inputs: Arrays of equally many rows.
            run: Computes a batch.
            timeout: Seconds from now.
        Raises:
            StatusError: As the server raises it.
        """
        task = _Task(inputs, _count_rows(inputs), time.monotonic() + timeout)
        with self._changed:
            self._add(self._queues.setdefault(key, _Queue(run)), task)
            self._changed.notify()
        task.is_done.wait()
        if task.error is not None:
            raise task.error
        return task.outputs or {}

    def _add(self, queue: _Queue, task: _Task) -> None:
        limit = self.batching.max_batch_size
        if task.size > limit:
            raise invalid(f"Task size {task.size} is larger than maximum input batch size {limit}")
        if queue.batches[-1].size + task.size > limit:
            if len(queue.batches) >= self.batching.max_enqueued_batches:
                raise StatusError("UNAVAILABLE", "The batch scheduling queue to which this task was submitted is full")
            queue.batches.append(_Batch())
        if not queue.batches[-1].tasks:
            queue.batches[-1].started = time.monotonic()
        queue.batches[-1].tasks.append(task)

    def _work(self) -> None:
        while True:
            with self._changed:
                queue, batch = self._take()
                while batch is None or queue is None:
                    if self._is_closed:
                        return
                    self._changed.wait(self._seconds_to_next())
                    queue, batch = self._take()
            self._process(queue, batch)

    def _take(self) -> tuple[_Queue | None, _Batch | None]:
        ready = [key for key, queue in self._queues.items() if self._is_ready(queue)]
        if not ready:
            return None, None
        key = min(ready, key=lambda key: self._queues[key].batches[0].started)  # so that no queue waits forever
        queue = self._queues[key]
        batch = queue.batches.pop(0)
        if not queue.batches:  # removing it also releases the version, which may be unloaded
            del self._queues[key]
        return queue, batch

    def _is_ready(self, queue: _Queue) -> bool:
        first = queue.batches[0]
        is_full = len(queue.batches) > 1 or first.size >= self.batching.max_batch_size
        return bool(first.tasks) and (is_full or self._opens_at(first) <= time.monotonic())

    def _opens_at(self, batch: _Batch) -> float:
        return batch.started + self.batching.batch_timeout_micros / 1e6

    def _seconds_to_next(self) -> float | None:
        times = [self._opens_at(queue.batches[0]) for queue in self._queues.values() if queue.batches[0].tasks]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _process(self, queue: _Queue, batch: _Batch) -> None:
        now = time.monotonic()
        left = max(task.deadline for task in batch.tasks) - now
        try:
            if left <= 0:
                raise StatusError("RESOURCE_EXHAUSTED", "Run() timeout exceeded while waiting in batching queue")
            merged, num_rows = self._merge(batch)
            self.batch_sizes = [*self.batch_sizes[-999:], num_rows]
            outputs = queue.run(merged, left)
            _split(batch.tasks, outputs, num_rows)
        except Exception as error:  # any error: this thread also computes all other requests
            if not isinstance(error, StatusError):
                error = StatusError("INTERNAL", f"{type(error).__name__}: {error}")
            for task in batch.tasks:
                task.error = error
        finally:
            for task in batch.tasks:
                task.is_done.set()

    def _merge(self, batch: _Batch) -> tuple[dict[str, np.ndarray], int]:
        num_rows = next((size for size in self.batching.allowed_batch_sizes if size >= batch.size), batch.size)
        merged = {}
        for name in batch.tasks[0].inputs:
            parts = [task.inputs[name] for task in batch.tasks]
            if len({part.dtype for part in parts}) > 1:
                raise StatusError(
                    "INTERNAL",
                    "Tensor concat operation failed: INVALID_ARGUMENT: Cannot concatenate tensors that have different "
                    "data types.",
                )
            if self.batching.pad_variable_length_inputs:
                parts = _pad(parts)
            elif len({part.shape[1:] for part in parts}) > 1:
                raise StatusError(
                    "FAILED_PRECONDITION",
                    f"Tensors with name '{name}' from different tasks have different shapes and padding is turned off. "
                    "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name have equal "
                    "dimensions starting with the first dim.",
                )
            # The padding repeats the first row of the last request.
            merged[name] = np.concatenate([*parts, *[parts[-1][:1]] * (num_rows - batch.size)])
        return merged, num_rows

    def close(self) -> None:
        """Ends the threads once their work is done."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def _count_rows(inputs: Arrays) -> int:
    if not inputs:
        raise invalid("Batching Run() must have at least one input tensor")
    if any(value.ndim == 0 for value in inputs.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    if len({len(value) for value in inputs.values()}) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return len(next(iter(inputs.values())))


def _pad(parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Pads arrays to the largest sizes, each with its first element, as the server does (batching_util.cc)."""
    if len({part.ndim for part in parts}) > 1:
        raise invalid("Tensors of several ranks cannot be padded to one shape.")
    sizes = np.max([part.shape for part in parts], axis=0)
    padded = []
    for part in parts:
        if part.shape[1:] == tuple(sizes[1:]):
            padded.append(part)
        elif part.size == 0:
            raise invalid("Got empty tensor in batch of non-empty tensors.")
        else:
            full = np.full([len(part), *sizes[1:]], part.flat[0], part.dtype)
            full[tuple(slice(size) for size in part.shape)] = part
            padded.append(full)
    return padded


def _split(tasks: Sequence[_Task], outputs: Arrays, num_rows: int) -> None:
    for value in outputs.values():
        if value.ndim == 0:
            raise StatusError("FAILED_PRECONDITION", "Batched output tensor has 0 dimensions")
        if len(value) != num_rows:
            raise StatusError(
                "FAILED_PRECONDITION",
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                "tensors",
            )
    first = 0
    for task in tasks:
        task.outputs = {name: value[first : first + task.size] for name, value in outputs.items()}
        first += task.size
