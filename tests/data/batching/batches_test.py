"""Rows of token ids: special tokens, truncation, pairs, shards."""

import numpy as np
import pytest

from aigc_tf.data.batching.batches import ColumnSource, ExampleSource
from aigc_tf.data.batching.order import POSITIONS, StepBatch
from aigc_tf.data.batching.special_tokens import (
    SpecialTokens,
    add_special_tokens,
    kept_lengths,
    model_lengths,
    truncate,
)
from aigc_tf.errors import InputError
from tests.memory_split import MemorySplit, dense, ragged

SPECIAL_TOKENS = SpecialTokens(
    start_ids=(101,), between_ids=(102,), end_ids=(102,), padding_id=0, max_length=8, truncation="head"
)


def _row(*parts):
    parts = [np.array(part, np.int32) for part in parts]
    return parts[0], parts[1] if len(parts) > 1 else np.array([], np.int32)


def test_a_single_text_stands_between_the_special_tokens():
    packed = add_special_tokens([_row([7, 8]), _row([])], SPECIAL_TOKENS, length=5, is_pair=False)
    assert packed["token_ids"].tolist() == [[101, 7, 8, 102, 0], [101, 102, 0, 0, 0]]
    assert packed["padding_mask"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]
    assert packed["segment_ids"].tolist() == [[0] * 5] * 2
    assert {array.dtype for array in packed.values()} == {np.dtype(np.int32)}


def test_the_second_text_of_a_pair_is_segment_one_with_its_end():
    packed = add_special_tokens([_row([7, 8], [9])], SPECIAL_TOKENS, length=8, is_pair=True)
    assert packed["token_ids"].tolist() == [[101, 7, 8, 102, 9, 102, 0, 0]]
    assert packed["segment_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]]


def test_a_pair_with_empty_texts_keeps_its_separators():
    packed = add_special_tokens([_row([], [])], SPECIAL_TOKENS, length=4, is_pair=True)
    assert packed["token_ids"].tolist() == [[101, 102, 102, 0]]
    assert packed["segment_ids"].tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("rule", "kept", "expected"),
    [
        ("head", 3, [1, 2, 3]),
        ("tail", 3, [3, 4, 5]),
        ("head_tail", 3, [1, 2, 5]),
        ("head_tail", 1, [1]),
        ("tail", 0, []),
        ("head", 9, [1, 2, 3, 4, 5]),
    ],
)
def test_truncation_keeps_what_its_rule_says(rule, kept, expected):
    assert truncate(np.array([1, 2, 3, 4, 5]), kept, rule).tolist() == expected


def test_the_longer_part_is_cut_first_as_longest_first_does():
    def one_by_one(first, second, room):
        """The reference: drop a token of the longer part until it fits; a tie takes it from the second."""
        while first + second > room:
            if first > second:
                first -= 1
            else:
                second -= 1
        return first, second

    for room in (5, 6):
        for first in range(12):
            for second in range(12):
                kept = kept_lengths(np.array([first]), np.array([second]), room=room)
                assert (int(kept[0][0]), int(kept[1][0])) == one_by_one(first, second, room)


def test_too_long_texts_fill_the_row_exactly():
    packed = add_special_tokens([_row(range(20)), _row([1])], SPECIAL_TOKENS, length=8, is_pair=False)
    assert packed["padding_mask"].sum(axis=1).tolist() == [8, 3]
    pair = add_special_tokens([_row(range(20), range(20, 40))], SPECIAL_TOKENS, length=8, is_pair=True)
    assert pair["token_ids"].tolist() == [[101, 0, 1, 2, 102, 20, 21, 102]]
    assert model_lengths(np.array([0, 5, 6, 7, 500]), SPECIAL_TOKENS, is_pair=False).tolist() == [2, 7, 8, 8, 8]
    assert model_lengths(np.array([0, 5, 6]), SPECIAL_TOKENS, is_pair=True).tolist() == [3, 8, 8]


SPLIT = MemorySplit(text=ragged(*(range(i) for i in range(8))), label=dense(np.arange(8, dtype=np.int32) % 2))


def _source(batch_size=4):
    def batch_at(step):
        ids = (np.arange(batch_size) + step) % 8
        return StepBatch(ids, np.ones(batch_size, np.float32), {POSITIONS: 8})

    return ExampleSource(SPLIT, batch_at, SPECIAL_TOKENS, texts=("text",), label="label", global_batch_size=batch_size)


def _ids(dataset, count):
    return [element["example_ids"].numpy().tolist() for element in dataset.take(count)]


def test_shards_make_up_the_global_batch_whatever_their_number():
    source = _source()
    whole = _ids(source.dataset(3, first_shard=0, local_shards=1, num_shards=1), 2)
    assert whole == [[3, 4, 5, 6], [4, 5, 6, 7]]
    # Two replicas on one worker take turns; two workers with one replica each get their own rows.
    assert _ids(source.dataset(3, first_shard=0, local_shards=2, num_shards=2), 4) == [[3, 4], [5, 6], [4, 5], [6, 7]]
    assert _ids(source.dataset(3, first_shard=1, local_shards=1, num_shards=2), 2) == [[5, 6], [6, 7]]


def test_a_batch_that_cannot_be_split_evenly_is_refused():
    with pytest.raises(InputError, match="batch of 4 examples cannot be split evenly over 3 replicas"):
        _source().dataset(0, first_shard=0, local_shards=3, num_shards=3)


def test_a_batch_has_the_documented_dtypes_and_shapes():
    element = next(iter(_source().dataset(0, first_shard=0, local_shards=1, num_shards=1)))
    assert {name: (tensor.dtype.name, tensor.shape.as_list()) for name, tensor in element.items()} == {
        "token_ids": ("int32", [4, 8]),
        "segment_ids": ("int32", [4, 8]),
        "padding_mask": ("int32", [4, 8]),
        "labels": ("int32", [4]),
        "weights": ("float32", [4]),
        "example_ids": ("int64", [4]),
    }


def test_an_example_is_shown_by_its_columns():
    shown = _source().example(3)
    assert (shown["text"].tolist(), int(shown["label"])) == ([0, 1, 2], 1)


def test_dense_columns_are_batches_as_they_are():
    split = MemorySplit(x=dense(np.float32([0.5, 1, 2])), picture=dense(np.arange(12, dtype=np.uint8).reshape(3, 2, 2)))

    def batch_at(step):
        return StepBatch((np.arange(2) + step) % 3, np.ones(2, np.float32), {})

    source = ColumnSource(split, batch_at, columns=("x", "picture"), global_batch_size=2)
    batch = next(iter(source.dataset(1, first_shard=0, local_shards=1, num_shards=1)))
    assert batch["x"].numpy().tolist() == [1, 2]
    assert batch["picture"].numpy().tolist() == [[[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert {name: value.dtype.name for name, value in batch.items()} == {
        "x": "float32",
        "picture": "uint8",
        "weights": "float32",
        "example_ids": "int64",
    }
    assert source.example(2)["picture"].tolist() == [[8, 9], [10, 11]]
