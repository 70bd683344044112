"""Contiguous windows over documents, for language models: which windows make global step k, and their batches.

The documents of a split are one stream of targets: the tokens of document 0, the end-of-text token, the tokens of
document 1, the end-of-text token, and so on, M targets in all. The input of a target is the token before it; that of a
document's first target is the start-of-text token if there is one, else the end of text. A batch is a dict of

    token_ids     (B, T) int32    inputs, padded with the start of text
    labels        (B, T) int32    targets: label t follows token t
    padding_mask  (B, T) int32    1 for targets that count, 0 for padding
    weights       (B, T) float32  the same; 0 in rows that pad the last batch of an evaluation
    example_ids   (B,) int64      place of the row's first target in the stream; M is added if the row is cut short

In training the stream is a circle (the first document follows the last end of text). Each epoch starts to cut it at
another random place, so each target is trained on once per epoch, at another place of its window. An evaluation cuts at
0. Shape letters: B rows, T positions, M targets, N windows.
"""

import functools
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from aigc_tf.data.batching.batches import BatchSource
from aigc_tf.data.batching.order import POSITIONS, StepBatch, random_keys
from aigc_tf.data.prepared.columns import RaggedColumn
from aigc_tf.errors import InputError


class WindowOrder:
    """The endless sequence of training batches of windows: a pure function of (M, T, seed, global batch, step).

    Set-up of an epoch is one sort of its windows, a seek costs nothing.

    Args:
        num_targets: M, of `num_targets(documents)`.
        length: T, positions of a window.
        seed: In [0, 2**63).
        global_batch_size: B, windows of a step over all workers.
    """

    def __init__(self, num_targets: int, *, length: int, seed: int, global_batch_size: int):
        self._num_targets, self._length = num_targets, length
        self._seed, self._batch_size = seed, global_batch_size
        self.num_examples = -(-num_targets // length)
        self.bucket_lengths = np.array([length])
        self._permutation = functools.lru_cache(maxsize=3)(self._compute_permutation)

    def batch(self, step: int) -> StepBatch:
        """Returns the batch of global step `step`, counted from 0."""
        places = step * self._batch_size + np.arange(self._batch_size)
        epochs, ranks = np.divmod(places, self.num_examples)
        ids = np.empty(self._batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            ids[here] = self._permutation(int(epoch))[ranks[here]]
        return StepBatch(ids, np.ones(self._batch_size, np.float32), {POSITIONS: self._length})

    def run_end(self, step: int) -> int:
        """Returns a later step; up to it all batches have one shape, as all of them do."""
        return step + 2**40

    def _compute_permutation(self, epoch: int) -> np.ndarray:
        """Returns `(N,)` int64: the example ids of an epoch, shuffled."""
        start = int(random_keys(self._seed, 2**63 + epoch, 2**62)) % self._num_targets
        windows = np.arange(self.num_examples, dtype=np.int64)
        ids = (start + windows * self._length) % self._num_targets
        if self._num_targets % self._length:
            ids[-1] += self._num_targets
        return ids[np.argsort(random_keys(self._seed, epoch, windows), kind="stable")]


def window_batches(num_targets: int, *, length: int, batch_size: int) -> list[StepBatch]:
    """Returns the batches of one pass over all windows in order; the last is padded with rows of weight 0."""
    ids = np.arange(0, num_targets, length, dtype=np.int64)
    if num_targets % length:
        ids[-1] += num_targets
    batches = []
    for first in range(0, len(ids), batch_size):
        chosen = ids[first : first + batch_size]
        missing = batch_size - len(chosen)
        weights = np.repeat(np.array([1, 0], np.float32), [len(chosen), missing])
        batches.append(
            StepBatch(np.concatenate([chosen, np.repeat(chosen[:1], missing)]), weights, {POSITIONS: length})
        )
    return batches


def num_targets(documents: RaggedColumn) -> int:
    """Returns M: the tokens of all documents and one end of text for each."""
    return documents.num_values + len(documents.lengths)


class WindowSource(BatchSource):
    """Makes the rows of any replica at any step of one split, as the module's docstring says.

    Args:
        documents: The column of token ids.
        batch_at: Step -> the global batch of that step: `WindowOrder.batch`, or an item of `window_batches`.
        end_id: The end-of-text token.
        length: T.
        global_batch_size: B over all replicas.
        start_id: The start-of-text token. None: the end of text.
    """

    def __init__(
        self,
        documents: RaggedColumn,
        batch_at: Callable[[int], StepBatch],
        *,
        end_id: int,
        length: int,
        global_batch_size: int,
        start_id: int | None = None,
    ):
        super().__init__(batch_at, global_batch_size=global_batch_size)
        self._documents, self._end_id, self._length = documents, end_id, length
        self._start_id = end_id if start_id is None else start_id
        ends = np.asarray(documents.ends)
        self._end_places = ends + np.arange(len(ends))  # (D,) where in the stream the ends of text are
        self._num_targets = num_targets(documents)

    def example(self, example_id: int) -> dict[str, np.ndarray]:
        window = StepBatch(np.array([example_id]), np.ones(1, np.float32), {POSITIONS: self._length})
        rows = self._rows(window, slice(0, 1))
        return {"text": rows["labels"][rows["padding_mask"] > 0]}

    def _rows(self, batch: StepBatch, mine: slice) -> dict[str, np.ndarray]:
        ids = batch.example_ids[mine]
        token_ids = np.full((len(ids), self._length), self._end_id, np.int32)
        labels = token_ids.copy()
        mask = np.zeros((len(ids), self._length), np.int32)
        for row, example_id in enumerate(ids.tolist()):
            first = example_id % self._num_targets
            count = self._num_targets % self._length if example_id >= self._num_targets else self._length
            stream = self._read(first - 1, count + 1)
            token_ids[row, :count], labels[row, :count], mask[row, :count] = stream[:-1], stream[1:], 1
        token_ids[token_ids == self._end_id] = self._start_id  # no text has an end of text among its own tokens
        weights = mask.astype(np.float32) * batch.weights[mine, None]
        return {
            "token_ids": token_ids,
            "labels": labels,
            "padding_mask": mask,
            "weights": weights,
            "example_ids": ids,
        }

    def _read(self, first: int, count: int) -> np.ndarray:
        """Returns `(count,)` int32 targets from `first` on, around the circle; -1 is the last one."""
        parts = []
        first %= self._num_targets
        while count:
            stop = min(first + count, self._num_targets)
            parts.append(self._read_range(first, stop))
            count -= stop - first
            first = 0
        return np.concatenate(parts)

    def _read_range(self, first: int, stop: int) -> np.ndarray:
        # Ends of text before a place: tokens there are counted without them.
        ends = self._end_places[slice(*np.searchsorted(self._end_places, [first, stop]))]
        before = int(np.searchsorted(self._end_places, first))
        targets = np.full(stop - first, self._end_id, np.int32)
        is_token = np.ones(stop - first, bool)
        is_token[ends - first] = False
        targets[is_token] = self._documents.range(first - before, stop - before - len(ends))
        return targets

    def _signature(self, rows: int, shape: Mapping[str, int]) -> dict[str, tf.TensorSpec]:
        del shape  # known anyway
        matrix = tf.TensorSpec([rows, self._length], tf.int32)
        return {
            "token_ids": matrix,
            "labels": matrix,
            "padding_mask": matrix,
            "weights": tf.TensorSpec([rows, self._length], tf.float32),
            "example_ids": tf.TensorSpec([rows], tf.int64),
        }


def check_size(documents: RaggedColumn, length: int) -> None:
    """Refuses documents that are all empty, and windows longer than all documents together.

    Raises:
        InputError: If they are.
    """
    if not documents.num_values:
        raise InputError("The documents of the training split are all empty; prepare texts that are not empty.")
    found = num_targets(documents)
    if length > found:
        raise InputError(
            f"data.max_length is {length}, but the training documents are {found} tokens in all; lower it."
        )
