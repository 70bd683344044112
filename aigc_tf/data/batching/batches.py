"""Batches of token ids: order + prepared data -> tf.data.

A batch is a dict of

    token_ids     (B, T) int32    start a' between b' end, padded
    segment_ids   (B, T) int32    1 from the first token of b' to the end, else 0
    padding_mask  (B, T) int32    1 for tokens, 0 for padding (int32: Keras averages a batch once, bool fails there)
    labels        (B,) int32 | (B, C) float32 | (B,) float32    by problem: single_label, multi_label, regression
    weights       (B,) float32    0 marks the rows that pad the last batch of an evaluation
    example_ids   (B,) int64

with B the rows of one replica and T the padded length of the step's bucket.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aigc_tf.data.batching.chance import Chance
from aigc_tf.data.batching.order import POSITIONS, StepBatch
from aigc_tf.data.batching.special_tokens import SpecialTokens, add_special_tokens
from aigc_tf.data.prepared.prepared import PreparedSplit
from aigc_tf.errors import InputError

_NO_TOKENS = np.zeros(0, np.uint16)


class BatchSource:
    """Makes the rows of any replica at any step of one split. A subclass decides what a row is.

    Args:
        batch_at: Step -> the global batch of that step.
        global_batch_size: Rows of a global batch.
        chance: Columns that are drawn by chance.
    """

    def __init__(self, batch_at: Callable[[int], StepBatch], *, global_batch_size: int, chance: Chance | None = None):
        self._batch_at, self._chance = batch_at, chance
        self.global_batch_size = global_batch_size
        self._lock = threading.Lock()  # the order's caches are shared by the threads of tf.data

    def _rows(self, batch: StepBatch, mine: slice) -> dict[str, np.ndarray]:
        """Returns the arrays of some rows of a global batch."""
        raise NotImplementedError

    def _signature(self, rows: int, shape: Mapping[str, int]) -> dict[str, tf.TensorSpec]:
        """Returns shapes and types of the result of `_rows`; a ragged dimension that `shape` lacks varies."""
        raise NotImplementedError

    def example(self, example_id: int) -> dict[str, np.ndarray]:
        """Returns the values of an example by column, for people to read."""
        raise NotImplementedError

    def rows(self, step: int, *, shard: int, num_shards: int) -> dict[str, np.ndarray]:
        """Returns shard `shard` of `num_shards` of the global batch of a step."""
        with self._lock:
            batch = self._batch_at(step)
        size = self.global_batch_size // num_shards
        mine = slice(shard * size, (shard + 1) * size)
        rows = self._rows(batch, mine)
        return rows | self._chance.columns(step, batch.example_ids[mine]) if self._chance else rows

    def dataset(
        self,
        first_step: int,
        *,
        first_shard: int,
        local_shards: int,
        num_shards: int,
        num_steps: int | None = None,
        shape: Mapping[str, int] | None = None,
    ) -> tf.data.Dataset:
        """Returns the batches from `first_step` on: at each step one element for each local shard, in turn.

        Args:
            first_step: Global step of the first element.
            first_shard: Number of this worker's first replica among all.
            local_shards: Replicas of this worker.
            num_shards: Replicas of all workers.
            num_steps: After that many steps it starts again at `first_step`. None: it never does.
            shape: `StepBatch.shape` of all these steps, if shapes must be known. None: it varies.
        Raises:
            InputError: If the global batch cannot be split evenly.
        """
        if self.global_batch_size % num_shards:
            raise InputError(
                f"A batch of {self.global_batch_size} examples cannot be split evenly over {num_shards} replicas; "
                f"take a multiple of {num_shards}."
            )
        signature = self._signature(self.global_batch_size // num_shards, shape or {})
        if self._chance:
            ids = np.zeros(signature["example_ids"].shape, np.int64)
            drawn = self._chance.columns(0, ids)
            signature |= {name: tf.TensorSpec(values.shape, values.dtype) for name, values in drawn.items()}

        def gather(index: tf.Tensor) -> dict[str, tf.Tensor]:
            def numpy_rows(index: np.ndarray) -> list[np.ndarray]:
                step, shard = divmod(int(index), local_shards)
                rows = self.rows(first_step + step, shard=first_shard + shard, num_shards=num_shards)
                return [np.ascontiguousarray(rows[name]) for name in signature]

            values = tf.numpy_function(numpy_rows, [index], [spec.dtype for spec in signature.values()])
            specs = signature.items()
            return {name: tf.ensure_shape(value, spec.shape) for value, (name, spec) in zip(values, specs, strict=True)}

        last = 2**62 if num_steps is None else num_steps * local_shards
        # Declared endless: for a finite data set tf.distribute would ask all workers at every step who has more.
        return (
            tf.data.Dataset.range(last)
            .repeat()
            .map(gather, num_parallel_calls=2, deterministic=True)
            .prefetch(4 * local_shards)
        )


class ColumnSource(BatchSource):
    """Dense columns unchanged, for examples that all have the same shape.

    A batch has each column, `(B, *shape)`, and `weights` and `example_ids` as the module's docstring says.

    Args:
        split: The prepared examples.
        batch_at: Step -> the global batch of that step.
        columns: Names of the columns.
        global_batch_size: Rows of a global batch.
        chance: Columns that are drawn by chance.
    """

    def __init__(
        self,
        split: PreparedSplit,
        batch_at: Callable[[int], StepBatch],
        *,
        columns: Sequence[str],
        global_batch_size: int,
        chance: Chance | None = None,
    ):
        super().__init__(batch_at, global_batch_size=global_batch_size, chance=chance)
        self._columns = {name: split.column(name) for name in columns}

    def example(self, example_id: int) -> dict[str, np.ndarray]:
        return {name: column.rows(np.array([example_id]))[0] for name, column in self._columns.items()}

    def _rows(self, batch: StepBatch, mine: slice) -> dict[str, np.ndarray]:
        ids = batch.example_ids[mine]
        rows = {name: column.rows(ids) for name, column in self._columns.items()}
        return {**rows, "weights": batch.weights[mine], "example_ids": ids}

    def _signature(self, rows: int, shape: Mapping[str, int]) -> dict[str, tf.TensorSpec]:
        return {
            **{name: tf.TensorSpec([rows, *column.shape], column.dtype) for name, column in self._columns.items()},
            "weights": tf.TensorSpec([rows], tf.float32),
            "example_ids": tf.TensorSpec([rows], tf.int64),
        }


class ExampleSource(BatchSource):
    """Rows of examples with labels, as the module's docstring says.

    Args:
        split: The prepared examples.
        batch_at: Step -> the global batch of that step.
        special: Special tokens and truncation.
        texts: Names of the columns of token ids, one or two.
        label: Name of the column of labels.
        global_batch_size: Rows of a global batch.
    """

    def __init__(
        self,
        split: PreparedSplit,
        batch_at: Callable[[int], StepBatch],
        special: SpecialTokens,
        *,
        texts: Sequence[str],
        label: str,
        global_batch_size: int,
    ):
        super().__init__(batch_at, global_batch_size=global_batch_size)
        self._texts, self._special, self._is_pair = tuple(texts), special, len(texts) == 2
        self._columns = {name: split.column(name) for name in (*texts, label)}
        self._labels = split.column(label)
        # Several labels are compared with probabilities, so they are float32, like a regression's values.
        self._label_dtype = np.int32 if self._labels.dtype == np.int32 else np.float32
        self._label_shape = self._labels.shape

    def example(self, example_id: int) -> dict[str, np.ndarray]:
        return {name: column.rows(np.array([example_id]))[0] for name, column in self._columns.items()}

    def _padded(self, ids: np.ndarray, length: int) -> dict[str, np.ndarray]:
        rows = text_rows([self._columns[name] for name in self._texts], ids)
        return add_special_tokens(rows, self._special, length=length, is_pair=self._is_pair)

    def _rows(self, batch: StepBatch, mine: slice) -> dict[str, np.ndarray]:
        ids = batch.example_ids[mine]
        rows = self._padded(ids, batch.shape[POSITIONS])
        labels = self._labels.rows(ids).astype(self._label_dtype)
        return {**rows, "labels": labels, "weights": batch.weights[mine], "example_ids": ids}

    def _signature(self, rows: int, shape: Mapping[str, int]) -> dict[str, tf.TensorSpec]:
        matrix = tf.TensorSpec([rows, shape.get(POSITIONS)], tf.int32)
        return {
            "token_ids": matrix,
            "segment_ids": matrix,
            "padding_mask": matrix,
            "labels": tf.TensorSpec([rows, *self._label_shape], tf.as_dtype(self._label_dtype)),
            "weights": tf.TensorSpec([rows], tf.float32),
            "example_ids": tf.TensorSpec([rows], tf.int64),
        }


def text_rows(columns: Sequence[Any], ids: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the token ids of both texts of examples; the second is empty if there is one column."""
    first, *rest = (column.rows(ids) for column in columns)
    second = rest[0] if rest else [_NO_TOKENS] * len(ids)
    return list(zip(first, second, strict=True))
