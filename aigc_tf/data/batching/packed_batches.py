"""Batches of packed rows: several examples per row, which never see each other.

A batch is a dict of

    token_ids     (B, T) int32
    positions     (B, T) int32    place within its own example, from 0 on in each; 0 for padding
    document_ids  (B, T) int32    1, 2, ... the example of the row that a token belongs to; 0 for padding
    padding_mask  (B, T) int32    1 for tokens, 0 for padding
    example_ids   (B, M) int64    the examples of the row, in this order; -1 for missing ones

and for a classifier, whose examples are `start a' between b' end` as in batches.py,

    segment_ids   (B, T) int32    1 from the first token of b' to the end of its example, else 0
    starts        (B, M) int32    the position in the row of each example's first token, which its label goes with
    labels        (B, M) int32 | (B, M, C) float32 | (B, M) float32    by problem, as in batches.py; 0 for missing ones
    weights       (B, M) float32  0 for missing examples

or for a generator, whose examples are the targets `prompt response end-of-text` or `document end-of-text`,

    labels        (B, T) int32    targets: label t follows token t
    weights       (B, T) float32  1 for targets that count: for pairs those of the response and its end of text

with B the rows of one replica, T the positions of a row, M the largest number of examples in a row. The input of an
example's first target is the start of text if the tokenizer has one, else the end of text; that of the first target
after a cut is the token before it. Rows that pad the last batch of an evaluation have the weight 0.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from aigc_tf.data.batching.batches import BatchSource, ExampleSource, text_rows
from aigc_tf.data.batching.order import POSITIONS, StepBatch
from aigc_tf.data.batching.special_tokens import SpecialTokens
from aigc_tf.data.prepared.prepared import PreparedSplit


class PackedDocumentSource(BatchSource):
    """Packed rows for a generator, as the module's docstring says.

    Args:
        split: The prepared documents, or pairs of prompt and response.
        batch_at: Step -> the global batch of that step: `PackedOrder.batch`, or an item of `PackedOrder.one_pass`.
        end_id: The end-of-text token.
        texts: Names of the columns of token ids: one of documents, or those of prompts and responses.
        length: T.
        num_segments: M.
        global_batch_size: B over all replicas.
        start_id: The start-of-text token. None: the end of text.
    """

    def __init__(
        self,
        split: PreparedSplit,
        batch_at: Callable[[int], StepBatch],
        *,
        end_id: int,
        texts: Sequence[str],
        length: int,
        num_segments: int,
        global_batch_size: int,
        start_id: int | None = None,
    ):
        super().__init__(batch_at, global_batch_size=global_batch_size)
        self._columns, self._is_pair = {name: split.column(name) for name in texts}, len(texts) == 2
        self._end_id, self._start_id = end_id, end_id if start_id is None else start_id
        self._length, self._num_segments = length, num_segments

    def example(self, example_id: int) -> dict[str, np.ndarray]:
        return {name: column.rows(np.array([example_id]))[0] for name, column in self._columns.items()}

    def _rows(self, batch: StepBatch, mine: slice) -> dict[str, np.ndarray]:
        ids = batch.example_ids[mine]
        starts = np.zeros_like(ids) if batch.starts is None else batch.starts[mine]
        rows = _empty_rows(len(ids), self._length)
        rows["token_ids"] += self._start_id
        labels = np.full_like(rows["token_ids"], self._end_id)
        weights = np.zeros(labels.shape, np.float32)
        row, segment = np.nonzero(ids >= 0)
        pieces = zip(row.tolist(), segment.tolist(), starts[row, segment].tolist(), strict=True)
        place = 0
        texts = text_rows(list(self._columns.values()), ids[row, segment])
        for (r, s, start), (first, second) in zip(pieces, texts, strict=True):
            inputs, targets = self._piece(np.concatenate([first, second]) if self._is_pair else first, start)
            place = place if s else 0
            stop = place + len(targets)
            rows["token_ids"][r, place:stop], labels[r, place:stop] = inputs, targets
            _mark(rows, r, s, place, stop)
            prompt = max(0, len(first) - start) if self._is_pair else 0
            weights[r, place + prompt : stop] = batch.weights[mine][r]
            place = stop
        return {**rows, "labels": labels, "weights": weights, "example_ids": ids}

    def _piece(self, token_ids: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs and targets of an example's piece that starts at the given target."""
        stop = min(start + self._length, len(token_ids) + 1)
        targets = np.append(token_ids[start:stop], np.repeat(self._end_id, max(0, stop - len(token_ids))))
        before = token_ids[start - 1] if start else self._start_id
        return np.append(before, targets[:-1]), targets

    def _signature(self, rows: int, shape: Mapping[str, int]) -> dict[str, tf.TensorSpec]:
        del shape  # known anyway
        matrix = tf.TensorSpec([rows, self._length], tf.int32)
        return {
            **dict.fromkeys(("token_ids", "positions", "document_ids", "padding_mask", "labels"), matrix),
            "weights": tf.TensorSpec([rows, self._length], tf.float32),
            "example_ids": tf.TensorSpec([rows, self._num_segments], tf.int64),
        }


class PackedExampleSource(ExampleSource):
    """Packed rows for a classifier, as the module's docstring says.

    Args:
        split: The prepared examples.
        batch_at: Step -> the global batch of that step: `PackedOrder.batch`.
        special: Special tokens and truncation; its `max_length` is T.
        texts: Names of the columns of token ids, one or two.
        label: Name of the column of labels.
        num_segments: M.
        global_batch_size: B over all replicas.
    """

    def __init__(
        self,
        split: PreparedSplit,
        batch_at: Callable[[int], StepBatch],
        special: SpecialTokens,
        *,
        texts: Sequence[str],
        label: str,
        num_segments: int,
        global_batch_size: int,
    ):
        super().__init__(split, batch_at, special, texts=texts, label=label, global_batch_size=global_batch_size)
        self._num_segments = num_segments

    def _rows(self, batch: StepBatch, mine: slice) -> dict[str, np.ndarray]:
        ids = batch.example_ids[mine]
        rows = _empty_rows(len(ids), batch.shape[POSITIONS])
        rows["token_ids"] += self._special.padding_id
        segment_ids, starts = np.zeros_like(rows["token_ids"]), np.zeros(ids.shape, np.int32)
        row, segment = np.nonzero(ids >= 0)
        chosen = ids[row, segment]
        alone = self._padded(chosen, batch.shape[POSITIONS])
        counts = alone["padding_mask"].sum(axis=1)
        place = 0
        for i, (r, s, count) in enumerate(zip(row.tolist(), segment.tolist(), counts.tolist(), strict=True)):
            place = place if s else 0
            stop = place + count
            rows["token_ids"][r, place:stop] = alone["token_ids"][i, :count]
            segment_ids[r, place:stop] = alone["segment_ids"][i, :count]
            _mark(rows, r, s, place, stop)
            starts[r, s] = place
            place = stop
        labels = np.zeros((*ids.shape, *self._label_shape), self._label_dtype)
        labels[row, segment] = self._labels.rows(chosen)
        weights = (ids >= 0) * batch.weights[mine, None]
        return {
            **rows,
            "segment_ids": segment_ids,
            "starts": starts,
            "labels": labels,
            "weights": weights,
            "example_ids": ids,
        }

    def _signature(self, rows: int, shape: Mapping[str, int]) -> dict[str, tf.TensorSpec]:
        del shape  # known anyway
        segments = [rows, self._num_segments]
        matrix = tf.TensorSpec([rows, self._special.max_length], tf.int32)
        return {
            **dict.fromkeys(("token_ids", "positions", "document_ids", "padding_mask", "segment_ids"), matrix),
            "starts": tf.TensorSpec(segments, tf.int32),
            "labels": tf.TensorSpec([*segments, *self._label_shape], tf.as_dtype(self._label_dtype)),
            "weights": tf.TensorSpec(segments, tf.float32),
            "example_ids": tf.TensorSpec(segments, tf.int64),
        }


def _empty_rows(count: int, length: int) -> dict[str, np.ndarray]:
    names = ("token_ids", "positions", "document_ids", "padding_mask")
    return {name: np.zeros((count, length), np.int32) for name in names}


def _mark(rows: dict[str, np.ndarray], row: int, segment: int, place: int, stop: int) -> None:
    """Marks the positions from `place` to `stop` of a row as those of one example."""
    rows["positions"][row, place:stop] = np.arange(stop - place)
    rows["document_ids"][row, place:stop] = segment + 1
    rows["padding_mask"][row, place:stop] = 1
