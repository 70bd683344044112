"""Which examples make global step k: a pure function of (lengths, seed, global batch, step).

There is no shuffle buffer and no iterator state, so a run resumes at any step, on any number of workers, with the
examples that it would have seen anyway. Set-up is O(n), each epoch costs one sort, a seek costs O(buckets).

How it works. Every example belongs to the bucket of the shortest padded length that holds it. A bucket is an
endless stream: its examples in the random order of epoch 0, then of epoch 1, and so on, cut into batches. A
batch belongs to the epoch in which it becomes full, so the rest of a bucket at the end of an epoch goes into its
first batch of the next one; nothing is dropped and no training batch is padded with empty rows. The batches of
an epoch are then shuffled among the buckets.

Random bits are raw SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
figure 17), not a library's generator, whose streams may change between versions.

Shape letters: N examples, B global batch, K buckets.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from aigc_tf.errors import InputError

POSITIONS = "positions"
"""The ragged dimension of rows of tokens."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MAX_CANDIDATES = 512  # bucket lengths the search considers; longer histograms are thinned by quantile


class StepBatch(NamedTuple):
    """The examples of one step: ids `(B,)` int64, weights `(B,)` float32 (0 marks padding), and their shape.

    Packed rows have `(B, M)` ids, -1 if a row has fewer, and also `(B, M)` `starts`.
    """

    example_ids: np.ndarray
    weights: np.ndarray
    shape: Mapping[str, int]
    """Name of each ragged dimension -> its padded length in this step; empty if all examples have one shape."""
    starts: np.ndarray | None = None
    """For packed rows: the position in its example at which each piece starts; 0 unless the example was cut."""


def split_mix(value: np.ndarray) -> np.ndarray:
    """SplitMix64's output function on `value + gamma`; uint64 in, uint64 out, any shape."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is the point
        z = np.asarray(value, np.uint64) + _GAMMA
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def random_keys(*parts: int | np.ndarray) -> np.ndarray:
    """Hashes integers in [0, 2**64) to uint64 keys; arrays broadcast, and the order of the parts matters."""
    key: np.ndarray | np.uint64 = np.uint64(0)
    for part in parts:
        key = split_mix(key ^ np.asarray(part, np.uint64))
    return np.asarray(key)


def choose_bucket_lengths(lengths: np.ndarray, *, num_buckets: int, smallest: int) -> np.ndarray:
    """Returns the padded lengths that waste the fewest positions.

    Exact, by dynamic programming over the histogram: the buckets are consecutive ranges of length, each with at least
    `smallest` examples, so that no batch spans three epochs.

    Args:
        lengths: `(N,)` int, tokens of each example as the model sees it, special tokens included.
        num_buckets: Largest number of buckets.
        smallest: Smallest number of examples in a bucket (the global batch), unless there are fewer in all.
    Returns:
        `(K,)` int64, ascending; the last is the largest length.
    """
    values, counts = np.unique(lengths, return_counts=True)
    if len(values) > _MAX_CANDIDATES:
        quantiles = np.linspace(0, len(lengths) - 1, _MAX_CANDIDATES).round().astype(int)
        values = np.unique(np.sort(lengths)[quantiles])
        counts = np.bincount(np.searchsorted(values, lengths), minlength=len(values))
    # The best last bucket among those that end at candidate j does not depend on how the candidates before it were cut,
    # so that one table over (start, end) and a pass for each further bucket find the best of all.
    total = np.concatenate([[0], np.cumsum(counts)])  # examples up to candidate i
    num_candidates = len(values)
    size = total[None, :] - total[:, None]  # [i, j]: examples of the bucket of candidates i+1 .. j
    padded = size[:, 1:] * values[None, :]
    # Also rules out empty and backward ranges, whose size is 0 or less.
    allowed = size[:, 1:] >= min(smallest, int(total[-1]))
    cost_of_bucket = np.where(allowed, padded, np.inf)  # (candidates + 1, candidates)
    best = np.full(num_candidates + 1, np.inf)
    best[0] = 0
    choices, costs = [], []
    for _ in range(max(1, min(num_buckets, num_candidates))):
        cost = best[:, None] + cost_of_bucket
        choices.append(cost.argmin(axis=0))
        best = np.concatenate([[np.inf], cost.min(axis=0)])
        costs.append(best[-1])
    chosen, j = [], num_candidates
    for k in range(int(np.argmin(costs)), -1, -1):
        chosen.append(int(values[j - 1]))
        j = int(choices[k][j - 1])
    return np.array(chosen[::-1], np.int64)


class TrainingOrder:
    """The endless sequence of training batches.

    Args:
        lengths: `(N,)` int, tokens of each example as the model sees it, at most the model's length; ones if every
            example has the same shape.
        seed: In [0, 2**63).
        global_batch_size: B, examples of a step over all workers.
        num_buckets: Largest number of padded lengths.
        run_length: Consecutive batches of one padded length, if the epoch has that many; for devices that take several
            steps of one shape in a call.
        dimension: Name of the ragged dimension that the lengths measure. None: there is none.
    Raises:
        InputError: If there are no examples.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        seed: int,
        global_batch_size: int,
        num_buckets: int,
        run_length: int = 1,
        dimension: str | None = POSITIONS,
    ):
        if not len(lengths):
            raise InputError("The training split has no example; look at the table that scripts/prepare.py printed.")
        self.bucket_lengths = choose_bucket_lengths(lengths, num_buckets=num_buckets, smallest=global_batch_size)
        self._bucket_of = np.searchsorted(self.bucket_lengths, lengths).astype(np.int16)  # (N,)
        self._sizes = np.bincount(self._bucket_of, minlength=len(self.bucket_lengths)).astype(np.int64)  # (K,)
        self._starts = np.concatenate([[0], np.cumsum(self._sizes)])
        self._seed, self._batch_size, self._run_length = seed, global_batch_size, run_length
        self._dimension = dimension
        # A batch spans two epochs at most, and the threads that prefetch may be in the one after.
        self._permutation = functools.lru_cache(maxsize=3)(self._compute_permutation)
        self._schedule = functools.lru_cache(maxsize=2)(self._compute_schedule)

    @property
    def num_examples(self) -> int:
        return len(self._bucket_of)

    def batch(self, step: int) -> StepBatch:
        """Returns the batch of global step `step`, counted from 0."""
        epoch = self._epoch_of(step)
        buckets, indices = self._schedule(epoch)
        place = step - self._first_step(epoch)
        bucket, index = int(buckets[place]), int(indices[place])
        size = int(self._sizes[bucket])
        positions = index * self._batch_size + np.arange(self._batch_size)  # in the bucket's endless stream
        epochs, ranks = positions // size, positions % size
        ids = np.empty(self._batch_size, np.int64)
        for spanned in np.unique(epochs):  # at most two, unless the data are smaller than a batch
            here = epochs == spanned
            ids[here] = self._permutation(int(spanned))[self._starts[bucket] + ranks[here]]
        shape = _shape(self._dimension, int(self.bucket_lengths[bucket]))
        return StepBatch(ids, np.ones(self._batch_size, np.float32), shape)

    def run_end(self, step: int) -> int:
        """Returns the first step after `step` whose padded length differs, looking no further than its epoch."""
        epoch = self._epoch_of(step)
        buckets, _ = self._schedule(epoch)
        place = step - self._first_step(epoch)
        changes = np.flatnonzero(buckets[place:] != buckets[place])
        return step + (int(changes[0]) if len(changes) else len(buckets) - place)

    def _first_step(self, epoch: int) -> int:
        """Returns the number of batches that are full before `epoch` begins."""
        # Rounded down for each bucket by itself: what an epoch leaves over waits in its own bucket for the next one.
        return int((epoch * self._sizes // self._batch_size).sum())

    def _epoch_of(self, step: int) -> int:
        # Epochs differ in length by what is left over, so there is no formula: doubled, then bisected.
        low, high = 0, 1
        while self._first_step(high) <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._first_step(middle) <= step else (low, middle)
        return low

    def _compute_permutation(self, epoch: int) -> np.ndarray:
        """`(N,)` int64: the ids bucket by bucket, each bucket in the random order of this epoch."""
        # By the example's id and not its place in the bucket, so that a key does not hang on how buckets were chosen.
        keys = random_keys(self._seed, epoch, np.arange(self.num_examples))
        return np.lexsort((keys, self._bucket_of))  # the last key counts first

    def _compute_schedule(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Bucket and index in the bucket's stream of every batch of an epoch, in the order of the steps."""
        first = epoch * self._sizes // self._batch_size
        counts = (epoch + 1) * self._sizes // self._batch_size - first  # (K,)
        buckets = np.repeat(np.arange(len(counts)), counts)
        offsets = np.arange(len(buckets)) - np.repeat(np.cumsum(counts) - counts, counts)
        indices = np.repeat(first, counts) + offsets
        runs = offsets // self._run_length  # batches of one run share a key and so stay together
        # 2**63 keeps these keys apart from those of the examples, whose epochs stay below it.
        keys = random_keys(self._seed, 2**63 + epoch, buckets, runs)
        order = np.lexsort((offsets, keys))  # batches of a run have equal keys: they follow each other in order
        return buckets[order], indices[order]


def _shape(dimension: str | None, length: int) -> dict[str, int]:
    return {dimension: length} if dimension else {}


def evaluation_batches(
    lengths: np.ndarray, *, batch_size: int, bucket_lengths: np.ndarray, dimension: str | None = POSITIONS
) -> list[StepBatch]:
    """Returns the batches of one pass over all examples, short ones first; the last is padded with rows of weight 0.

    Args:
        lengths: `(N,)` int, tokens of each example as the model sees it.
        batch_size: Examples of a batch.
        bucket_lengths: `(K,)` ascending padded lengths, as in training; a longer example is padded to its own length.
        dimension: As for `TrainingOrder`.
    """
    ids = np.argsort(lengths, kind="stable")  # so that equal lengths have one order everywhere
    batches = []
    for start in range(0, len(ids), batch_size):
        chosen = ids[start : start + batch_size]
        longest = int(lengths[chosen[-1]])
        place = int(np.searchsorted(bucket_lengths, longest))
        length = int(bucket_lengths[place]) if place < len(bucket_lengths) else longest
        missing = batch_size - len(chosen)
        # The padding rows repeat a real example, since networks may fail on a row without tokens.
        weights = np.repeat(np.array([1, 0], np.float32), [len(chosen), missing])
        batches.append(
            StepBatch(np.concatenate([chosen, np.repeat(chosen[:1], missing)]), weights, _shape(dimension, length))
        )
    return batches
