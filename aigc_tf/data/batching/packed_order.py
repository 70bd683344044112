"""Several examples in one row: which of them make global step k, a pure function of (lengths, seed, batch, step).

An example longer than a row is cut into pieces of the row's length and a rest; nothing is dropped. Pieces are packed by
best-fit decreasing: from the longest to the shortest, each goes to the fullest row that has room for it. The result
depends on the lengths alone, so every epoch has the same R rows of lengths. An epoch deals out the pieces of one length
at random to the places of that length, and shuffles the rows: each piece is seen once per epoch, beside others each
time. The rows of the epochs follow one another without a gap, so all batches are full.

Set-up is one sort and O(distinct lengths of pieces and of room) steps in Python, an epoch costs one sort of its pieces,
a seek nothing. Random bits are those of order.py.

Source: Johnson et al. 1974, "Worst-case performance bounds for simple one-dimensional packing algorithms", section 4.

Shape letters: N examples, P pieces, R rows of an epoch, B rows of a batch, M segments (places for pieces) of a row.
"""

import bisect
import functools

import numpy as np

from aigc_tf.data.batching.order import POSITIONS, StepBatch, random_keys
from aigc_tf.errors import InputError


def cut_pieces(lengths: np.ndarray, *, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts examples that are longer than a row.

    Args:
        lengths: `(N,)` int, positions of each example, at least 1.
        length: Positions of a row.
    Returns:
        `(P,)` int64 each: the example of each piece, the position in it where the piece starts, and its length. The
        pieces of an example are consecutive; all except the last have `length` positions.

    >>> [array.tolist() for array in cut_pieces(np.array([2, 5]), length=4)]
    [[0, 1, 1], [0, 0, 4], [2, 4, 1]]
    """
    lengths = np.asarray(lengths, np.int64)
    counts = -(-lengths // length)
    example_ids = np.repeat(np.arange(len(lengths)), counts)
    starts = (np.arange(len(example_ids)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    return example_ids, starts, np.minimum(lengths[example_ids] - starts, length)


def best_fit_rows(lengths: np.ndarray, *, length: int) -> np.ndarray:
    """Packs pieces into rows by best-fit decreasing, those of one length together.

    A row that takes a piece has less room than the others that could, so it also takes the next pieces of that length
    while they fit. So whole groups of rows are filled at once.

    Args:
        lengths: `(P,)` int, descending, in [1, length].
        length: Positions of a row.
    Returns:
        `(P,)` int64: the row of each piece; rows count from 0.

    >>> best_fit_rows(np.array([6, 5, 4, 3, 2]), length=10).tolist()
    [0, 1, 0, 1, 1]
    """
    values, counts = np.unique(np.asarray(lengths, np.int64), return_counts=True)
    rows_with: dict[int, list[int]] = {}  # room -> rows that have it left
    rooms: list[int] = []  # its keys, ascending
    num_rows = 0
    parts: list[np.ndarray] = []

    def leave(rows: list[int], room: int) -> None:
        if room and rows:
            if room not in rows_with:
                bisect.insort(rooms, room)
            rows_with.setdefault(room, []).extend(rows)

    for value, count in zip(values[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:  # each iteration uses up a room size or places all pieces, so there are few
            place = bisect.bisect_left(rooms, value)
            room = rooms[place] if place < len(rooms) else length
            fit = min(room // value, count)  # pieces that one such row takes
            if place < len(rooms):
                there = rows_with[room]
                taken = there[-(count // fit) :]  # from the end, where removing from a list is cheap
                del there[-len(taken) :]
                if not there:
                    del rows_with[room], rooms[place]
            else:
                taken = list(range(num_rows, num_rows + count // fit))
                num_rows += len(taken)
            parts.append(np.repeat(np.array(taken, np.int64), fit))
            leave(taken, room - fit * value)
            count -= fit * len(taken)
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


class PackedOrder:
    """The endless sequence of training batches of packed rows.

    Args:
        lengths: `(N,)` int, positions of each example, at least 1.
        length: T, positions of a row; longer examples are cut.
        seed: In [0, 2**63).
        global_batch_size: B, rows of a step over all workers.
    Raises:
        InputError: If there are no examples.
    """

    def __init__(self, lengths: np.ndarray, *, length: int, seed: int, global_batch_size: int):
        if not len(lengths):
            raise InputError("The training split has no example; look at the table that scripts/prepare.py printed.")
        self.bucket_lengths = np.array([length])
        self._length, self._seed, self._batch_size = length, seed, global_batch_size
        self._example_ids, self._starts, self._piece_lengths = cut_pieces(lengths, length=length)
        # Of lengths alone, not of pieces: pieces of one length may change places, and each epoch deals them out anew.
        row_of = best_fit_rows(np.sort(self._piece_lengths)[::-1], length=length)
        self._places = np.argsort(row_of, kind="stable")  # (P,) places in the descending order, row by row
        self._bounds = np.concatenate([[0], np.cumsum(np.bincount(row_of))])  # (R + 1,) of the rows in it
        self._deal = functools.lru_cache(maxsize=3)(self._compute_deal)

    @property
    def num_examples(self) -> int:
        """R: rows of an epoch, which are what a batch counts."""
        return len(self._bounds) - 1

    @property
    def num_segments(self) -> int:
        """M: pieces of the fullest row."""
        return int(np.diff(self._bounds).max())

    @property
    def useful_share(self) -> float:
        """Share of an epoch's positions that are not padding."""
        return float(self._piece_lengths.sum() / (self.num_examples * self._length))

    def batch(self, step: int) -> StepBatch:
        """Returns the batch of global step `step`, counted from 0; `example_ids` is `(B, M)`, padded with -1."""
        places = step * self._batch_size + np.arange(self._batch_size)
        epochs, ranks = np.divmod(places, self.num_examples)
        pieces = np.concatenate(
            [self._row_pieces(*self._deal(int(epoch)), ranks[epochs == epoch]) for epoch in np.unique(epochs)]
        )
        return self._step_batch(pieces, np.ones(self._batch_size, np.float32))

    def run_end(self, step: int) -> int:
        """Returns a later step; up to it all batches have one shape, as all of them do."""
        return step + 2**40

    def one_pass(self) -> list[StepBatch]:
        """Returns the batches of one pass over all rows, not shuffled; the last is padded with rows of weight 0."""
        deal = np.argsort(-self._piece_lengths, kind="stable")[self._places], np.arange(self.num_examples)
        batches = []
        for first in range(0, self.num_examples, self._batch_size):
            ranks = np.arange(first, first + self._batch_size)
            is_real = ranks < self.num_examples
            pieces = self._row_pieces(*deal, np.where(is_real, ranks, first))
            batches.append(self._step_batch(pieces, is_real.astype(np.float32)))
        return batches

    def _step_batch(self, pieces: np.ndarray, weights: np.ndarray) -> StepBatch:
        is_piece = pieces >= 0  # -1 reads the last piece below, which is thrown away
        ids, starts = np.where(is_piece, self._example_ids[pieces], -1), np.where(is_piece, self._starts[pieces], 0)
        return StepBatch(ids, weights, {POSITIONS: self._length}, starts)

    def _row_pieces(self, pieces: np.ndarray, rows: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Returns `(len(ranks), M)` int64: the pieces of the rows of these ranks, padded with -1."""
        # Always M places wide, so that every batch has one shape; what is beyond the row's last piece reads place 0.
        first = self._bounds[rows[ranks]][:, None]
        places = first + np.arange(self.num_segments)
        is_place = places < self._bounds[rows[ranks] + 1][:, None]
        return np.where(is_place, pieces[np.where(is_place, places, 0)], -1)

    def _compute_deal(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns `(P,)` int64, the pieces row by row, and `(R,)` int64, the rows in the order of the epoch."""
        keys = random_keys(self._seed, epoch, np.arange(len(self._piece_lengths)))
        descending = np.lexsort((keys, -self._piece_lengths))  # by length as `row_of` is, at random within a length
        # 2**63 keeps the keys of rows apart from those of pieces, which have the same numbers.
        row_keys = random_keys(self._seed, 2**63 + epoch, np.arange(self.num_examples))
        return descending[self._places], np.argsort(row_keys, kind="stable")
