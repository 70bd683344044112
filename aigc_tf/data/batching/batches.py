"""Batches of token ids: order + prepared data -> tf.data.

A batch is a dict of

    token_ids     (B, T) int32    start a' between b' end, padded
    segment_ids   (B, T) int32    1 from the first token of b' to the end, else 0
    padding_mask  (B, T) int32    1 for tokens, 0 for padding (int32: Keras averages a batch once, bool fails there)
    labels        (B,) int32 | (B, C) float32 | (B,) float32    by problem: single_label, multi_label, regression
    weights       (B,) float32    0 for rows that only fill up the last batch of an evaluation
    example_ids   (B,) int64

with B the rows of one replica and T the padded length of the step's bucket. `pack_rows` here and `pack_tokens` of
the exported graph follow one rule for truncation and special tokens (`kept_lengths`).
"""

import dataclasses
import threading
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from aigc_tf.data.batching.order import StepBatch
from aigc_tf.data.prepared.prepared import PreparedSplit
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """How token ids become one row of the model's input."""

    start_ids: tuple[int, ...]
    between_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    padding_id: int
    max_length: int
    """Positions of a row, special tokens included."""
    truncation: str
    """`head`, `tail` or `head_tail`: which tokens of too long a part are kept."""

    def room(self, is_pair: bool) -> int:
        """Positions left for the tokens of the text, or of both texts of a pair."""
        return self.max_length - self.num_special(is_pair)

    def num_special(self, is_pair: bool) -> int:
        return len(self.start_ids) + len(self.end_ids) + (len(self.between_ids) if is_pair else 0)


def build_packing(tokenizer: Tokenizer, *, max_length: int, truncation: str) -> Packing:
    """Returns how the tokenizer's ids become rows of the model's input."""
    return Packing(
        start_ids=tokenizer.start_ids,
        between_ids=tokenizer.between_ids,
        end_ids=tokenizer.end_ids,
        padding_id=tokenizer.padding_id,
        max_length=max_length,
        truncation=truncation,
    )


def kept_lengths(first: np.ndarray, second: np.ndarray, *, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many tokens of each part stay: the longer part is cut first, as Hugging Face's `longest_first`.

    Args:
        first: `(B,)` int, tokens of the first parts.
        second: `(B,)` int, tokens of the second parts; 0 for single texts.
        room: Positions for both.
    """
    kept_first = np.minimum(first, np.maximum(room - second, room - room // 2))
    return kept_first, np.minimum(second, room - kept_first)


def truncate(token_ids: np.ndarray, kept: int, truncation: str) -> np.ndarray:
    """Keeps `kept` tokens: the first, the last, or ceil(kept/2) first and floor(kept/2) last."""
    if len(token_ids) <= kept:
        return token_ids
    if truncation == "head":
        return token_ids[:kept]
    if truncation == "tail":
        return token_ids[len(token_ids) - kept :]
    head = kept - kept // 2
    return np.concatenate([token_ids[:head], token_ids[len(token_ids) - kept // 2 :]])


def model_lengths(lengths: np.ndarray, packing: Packing, *, is_pair: bool) -> np.ndarray:
    """Returns `(N,)` int64: positions each example takes, special tokens included, after truncation."""
    return np.minimum(lengths + packing.num_special(is_pair), packing.max_length).astype(np.int64)


def pack_rows(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], packing: Packing, *, length: int, is_pair: bool
) -> dict[str, np.ndarray]:
    """Packs the parts of examples into `(B, length)` int32 token_ids, segment_ids and padding_mask."""
    first = np.array([len(a) for a, _ in rows])
    second = np.array([len(b) for _, b in rows])
    kept = kept_lengths(first, second, room=packing.room(is_pair))
    token_ids = np.full((len(rows), length), packing.padding_id, np.int32)
    segment_ids = np.zeros((len(rows), length), np.int32)
    padding_mask = np.zeros((len(rows), length), np.int32)
    between = packing.between_ids if is_pair else ()
    for i, (a, b) in enumerate(rows):
        a = truncate(a, int(kept[0][i]), packing.truncation)
        b = truncate(b, int(kept[1][i]), packing.truncation)
        row = np.concatenate([packing.start_ids, a, between, b, packing.end_ids])
        token_ids[i, : len(row)] = row
        padding_mask[i, : len(row)] = 1
        if is_pair:
            segment_ids[i, len(packing.start_ids) + len(a) + len(between) : len(row)] = 1
    return {"token_ids": token_ids, "segment_ids": segment_ids, "padding_mask": padding_mask}


class BatchSource:
    """Makes the rows of any replica at any step of one split. What a row is, is a subclass's part.

    Args:
        batch_at: Step -> the global batch of that step.
        global_batch_size: Rows of a global batch.
    """

    def __init__(self, batch_at: Callable[[int], StepBatch], *, global_batch_size: int):
        self._batch_at = batch_at
        self.global_batch_size = global_batch_size
        self._lock = threading.Lock()  # the order's caches are shared by the threads of tf.data

    def _rows(self, batch: StepBatch, mine: slice) -> dict[str, np.ndarray]:
        """Returns the arrays of some rows of a global batch."""
        raise NotImplementedError

    def _signature(self, rows: int, length: int | None) -> dict[str, tf.TensorSpec]:
        """Returns shapes and types of what `_rows` gives; `length` None: it varies."""
        raise NotImplementedError

    def example(self, example_id: int) -> tuple[list[np.ndarray], np.ndarray | None]:
        """Returns the token ids of an example's parts, without special tokens, and its label where it has one."""
        raise NotImplementedError

    def rows(self, step: int, *, shard: int, num_shards: int) -> dict[str, np.ndarray]:
        """Returns shard `shard` of `num_shards` of the global batch of a step."""
        with self._lock:
            batch = self._batch_at(step)
        size = self.global_batch_size // num_shards
        return self._rows(batch, slice(shard * size, (shard + 1) * size))

    def dataset(
        self,
        first_step: int,
        *,
        first_shard: int,
        local_shards: int,
        num_shards: int,
        num_steps: int | None = None,
        length: int | None = None,
    ) -> tf.data.Dataset:
        """Returns the batches from `first_step` on: at each step one element for each local shard, in turn.

        Args:
            first_step: Global step of the first element.
            first_shard: Number of this worker's first replica among all.
            local_shards: Replicas of this worker.
            num_shards: Replicas of all workers.
            num_steps: After that many steps it starts again at `first_step`. None: it never does.
            length: The padded length of all these steps, where shapes must be known. None: it varies.
        Raises:
            InputError: If the global batch cannot be split evenly.
        """
        if self.global_batch_size % num_shards:
            raise InputError(
                f"A batch of {self.global_batch_size} examples cannot be split evenly over {num_shards} replicas; "
                f"take a multiple of {num_shards}."
            )
        signature = self._signature(self.global_batch_size // num_shards, length)

        def gather(index: tf.Tensor) -> dict[str, tf.Tensor]:
            def numpy_rows(index: np.ndarray) -> list[np.ndarray]:
                step, shard = divmod(int(index), local_shards)
                rows = self.rows(first_step + step, shard=first_shard + shard, num_shards=num_shards)
                return [np.ascontiguousarray(rows[name]) for name in signature]

            values = tf.numpy_function(numpy_rows, [index], [spec.dtype for spec in signature.values()])
            specs = signature.items()
            return {name: tf.ensure_shape(value, spec.shape) for value, (name, spec) in zip(values, specs, strict=True)}

        last = 2**62 if num_steps is None else num_steps * local_shards
        # Endless in name as well: for a finite data set tf.distribute asks all workers at every step who has more.
        return (
            tf.data.Dataset.range(last)
            .repeat()
            .map(gather, num_parallel_calls=2, deterministic=True)
            .prefetch(4 * local_shards)
        )


class ExampleSource(BatchSource):
    """Rows of examples with labels, as the module's docstring says.

    Args:
        split: The prepared examples.
        batch_at: Step -> the global batch of that step.
        packing: Special tokens and truncation.
        is_pair: Whether examples have two parts.
        global_batch_size: Rows of a global batch.
    """

    def __init__(
        self,
        split: PreparedSplit,
        batch_at: Callable[[int], StepBatch],
        packing: Packing,
        *,
        is_pair: bool,
        global_batch_size: int,
    ):
        super().__init__(batch_at, global_batch_size=global_batch_size)
        self._split, self._packing, self._is_pair = split, packing, is_pair
        labels = split.labels(np.arange(min(1, split.num_examples)))
        self._label_dtype = np.int32 if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) else np.float32
        self._label_shape = labels.shape[1:]

    def example(self, example_id: int) -> tuple[list[np.ndarray], np.ndarray | None]:
        ids = np.array([example_id])
        parts = self._split.rows(ids)[0]
        return list(parts[: 1 + self._is_pair]), self._split.labels(ids)[0]

    def _rows(self, batch: StepBatch, mine: slice) -> dict[str, np.ndarray]:
        ids = batch.example_ids[mine]
        packed = pack_rows(self._split.rows(ids), self._packing, length=batch.length, is_pair=self._is_pair)
        labels = self._split.labels(ids).astype(self._label_dtype)
        return {**packed, "labels": labels, "weights": batch.weights[mine], "example_ids": ids}

    def _signature(self, rows: int, length: int | None) -> dict[str, tf.TensorSpec]:
        matrix = tf.TensorSpec([rows, length], tf.int32)
        return {
            "token_ids": matrix,
            "segment_ids": matrix,
            "padding_mask": matrix,
            "labels": tf.TensorSpec([rows, *self._label_shape], tf.as_dtype(self._label_dtype)),
            "weights": tf.TensorSpec([rows], tf.float32),
            "example_ids": tf.TensorSpec([rows], tf.int64),
        }
