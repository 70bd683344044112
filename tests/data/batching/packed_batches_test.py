"""Packed rows, computed by hand: documents with cuts, prompts with responses, classifier examples."""

import numpy as np

from aigc_tf.data.batching.order import POSITIONS, StepBatch
from aigc_tf.data.batching.packed_batches import PackedDocumentSource, PackedExampleSource
from aigc_tf.data.batching.packed_order import PackedOrder
from aigc_tf.data.batching.special_tokens import SpecialTokens
from tests.memory_split import MemorySplit, dense, ragged

END = 9


def pairs(*rows, labels=()):
    """Pairs of texts, with labels where there are some."""
    first, second = zip(*rows, strict=True)
    columns = {"text": ragged(*first), "second": ragged(*second)}
    return MemorySplit(**columns, **({"label": dense(labels)} if len(labels) else {}))


def batch_of(ids, starts, length, weights=None):
    weights = np.ones(len(ids), np.float32) if weights is None else np.array(weights, np.float32)
    return StepBatch(np.array(ids, np.int64), weights, {POSITIONS: length}, np.array(starts, np.int64))


def documents(split, batch, *, texts=("text", "second"), start_id=None):
    source = PackedDocumentSource(
        split,
        [batch].__getitem__,
        end_id=END,
        start_id=start_id,
        texts=texts,
        length=batch.shape[POSITIONS],
        num_segments=batch.example_ids.shape[1],
        global_batch_size=len(batch.example_ids),
    )
    rows = source.rows(0, shard=0, num_shards=1)
    return {name: values.tolist() for name, values in rows.items()}


def test_documents_are_read_from_their_start_and_a_piece_after_a_cut_from_the_token_before_it():
    split = pairs(([1, 2, 3, 4, 5, 6, 7], []), ([8], []), ([], []))
    batch = batch_of([[0, -1], [0, 2], [1, -1]], [[0, 0], [5, 0], [0, 0]], 5, weights=[1, 1, 0])
    rows = documents(split, batch, texts=("text",))
    assert rows == {
        "token_ids": [[9, 1, 2, 3, 4], [5, 6, 7, 9, 9], [9, 8, 9, 9, 9]],
        "labels": [[1, 2, 3, 4, 5], [6, 7, 9, 9, 9], [8, 9, 9, 9, 9]],
        "positions": [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0], [0, 1, 0, 0, 0]],
        "document_ids": [[1, 1, 1, 1, 1], [1, 1, 1, 2, 0], [1, 1, 0, 0, 0]],
        "padding_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]],
        "weights": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0]],
        "example_ids": [[0, -1], [0, 2], [1, -1]],
    }


def test_a_cut_right_before_the_end_of_text_leaves_it_to_the_next_piece():
    split = pairs(([1, 2, 3, 4], []))
    rows = documents(split, batch_of([[0], [0]], [[0], [4]], 4), texts=("text",))
    assert rows["labels"] == [[1, 2, 3, 4], [9, 9, 9, 9]]
    assert rows["token_ids"] == [[9, 1, 2, 3], [4, 9, 9, 9]]
    assert rows["weights"] == [[1, 1, 1, 1], [1, 0, 0, 0]]


def test_the_loss_counts_responses_and_their_end_alone_also_after_a_cut():
    split = pairs(([1, 2], [3]), ([], [4]), ([5, 6, 7], [8, 8]))
    batch = batch_of([[0, 1], [2, -1], [2, -1]], [[0, 0], [0, 0], [2, 0]], 6)
    rows = documents(split, batch, start_id=10)
    assert rows["token_ids"] == [[10, 1, 2, 3, 10, 4], [10, 5, 6, 7, 8, 8], [6, 7, 8, 8, 10, 10]]
    assert rows["labels"] == [[1, 2, 3, 9, 4, 9], [5, 6, 7, 8, 8, 9], [7, 8, 8, 9, 9, 9]]
    assert rows["weights"] == [[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]]
    assert rows["document_ids"] == [[1, 1, 1, 1, 2, 2], [1] * 6, [1] * 4 + [0] * 2]


def test_each_target_of_an_epoch_counts_once():
    rng = np.random.default_rng(0)
    split = pairs(
        *((rng.integers(1, 9, rng.integers(0, 30)), rng.integers(1, 9, rng.integers(1, 9))) for _ in range(50))
    )
    order = PackedOrder(split.sizes + 1, length=16, seed=0, global_batch_size=1)
    source = PackedDocumentSource(
        split,
        order.batch,
        end_id=END,
        texts=("text", "second"),
        length=16,
        num_segments=order.num_segments,
        global_batch_size=1,
    )
    rows = [source.rows(step, shard=0, num_shards=1) for step in range(order.num_examples)]
    targets = np.concatenate([row["labels"][row["weights"] > 0] for row in rows])
    wanted = np.concatenate([np.append(response, END) for response in split.column("second").rows(range(50))])
    assert sorted(targets) == sorted(wanted)
    assert sum(row["padding_mask"].sum() for row in rows) == (split.sizes + 1).sum()


SPECIAL_TOKENS = SpecialTokens(
    start_ids=(1,), between_ids=(2,), end_ids=(3,), padding_id=0, max_length=9, truncation="head"
)
PAIRS = pairs(([5], []), ([6], [7]), ([4, 5, 6, 7, 8, 8], [6, 6]), labels=np.int32([1, 2, 3]))


def examples(split, batch_at, *, num_segments=2, batch_size=3):
    return PackedExampleSource(
        split,
        batch_at,
        SPECIAL_TOKENS,
        texts=("text", "second"),
        label="label",
        num_segments=num_segments,
        global_batch_size=batch_size,
    )


def test_classifier_examples_have_a_label_each_and_long_ones_are_truncated():
    batch = batch_of([[0, -1], [1, 0], [2, -1]], np.zeros((3, 2)), 9, weights=[1, 1, 0])
    rows = examples(PAIRS, [batch].__getitem__).rows(0, shard=0, num_shards=1)
    assert {name: values.tolist() for name, values in rows.items()} == {
        "token_ids": [[1, 5, 2, 3, 0, 0, 0, 0, 0], [1, 6, 2, 7, 3, 1, 5, 2, 3], [1, 4, 5, 6, 7, 2, 6, 6, 3]],
        "segment_ids": [[0, 0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1, 1, 1]],
        "positions": [[0, 1, 2, 3, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8]],
        "document_ids": [[1, 1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 2, 2, 2, 2], [1] * 9],
        "padding_mask": [[1, 1, 1, 1, 0, 0, 0, 0, 0], [1] * 9, [1] * 9],
        "starts": [[0, 0], [0, 5], [0, 0]],
        "labels": [[1, 0], [2, 1], [3, 0]],
        "weights": [[1, 0], [1, 1], [0, 0]],
        "example_ids": [[0, -1], [1, 0], [2, -1]],
    }


def test_several_labels_and_numbers_keep_their_shape():
    batch = batch_of([[0, -1], [1, 0]], np.zeros((2, 2)), 9)
    several = pairs(([5], []), ([6], [7]), labels=np.array([[1, 0, 1], [0, 1, 0]], np.uint8))
    rows = examples(several, [batch].__getitem__, batch_size=2).rows(0, shard=0, num_shards=1)
    assert rows["labels"].tolist() == [[[1, 0, 1], [0, 0, 0]], [[0, 1, 0], [1, 0, 1]]]
    assert rows["labels"].dtype == np.float32
    numbers = pairs(([5], []), ([6], [7]), labels=np.array([0.5, -2], np.float32))
    rows = examples(numbers, [batch].__getitem__, batch_size=2).rows(0, shard=0, num_shards=1)
    assert rows["labels"].tolist() == [[0.5, 0], [-2, 0.5]]


def sources():
    """A source of each kind over the same texts."""
    order = PackedOrder(np.array([4, 5, 9]), length=9, seed=0, global_batch_size=4)
    yield examples(PAIRS, order.batch, num_segments=order.num_segments, batch_size=4)
    order = PackedOrder(PAIRS.sizes + 1, length=9, seed=0, global_batch_size=4)
    yield PackedDocumentSource(
        PAIRS,
        order.batch,
        end_id=END,
        texts=("text", "second"),
        length=9,
        num_segments=order.num_segments,
        global_batch_size=4,
    )


def test_shards_of_a_batch_are_its_rows():
    for source in sources():
        whole = source.rows(3, shard=0, num_shards=1)
        halves = [source.rows(3, shard=shard, num_shards=2) for shard in range(2)]
        for name, values in whole.items():
            assert np.array_equal(values, np.concatenate([half[name] for half in halves])), name


def test_the_data_set_gives_the_rows_in_shapes_known_beforehand():
    for source in sources():
        dataset = source.dataset(4, first_shard=0, local_shards=1, num_shards=1)
        batch = next(iter(dataset))
        for name, value in source.rows(4, shard=0, num_shards=1).items():
            assert dataset.element_spec[name].shape == value.shape
            assert np.array_equal(batch[name].numpy(), value), name
            assert batch[name].dtype == value.dtype
