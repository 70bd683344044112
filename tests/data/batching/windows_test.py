"""Windows over documents: every target once an epoch, with the token before it as input, on hand-written streams."""

import numpy as np
import pytest

from aigc_tf.data.batching.windows import WindowOrder, WindowSource, check_size, num_targets, window_batches
from aigc_tf.errors import InputError
from tests.memory_split import ragged

END = 9


THREE = ragged([1, 2, 3], [], [4, 5])  # the stream of targets: 1 2 3 9 9 4 5 9


def source(documents, batch_at, length, batch_size=2):
    return WindowSource(documents, batch_at, end_id=END, length=length, global_batch_size=batch_size)


def test_an_evaluation_reads_the_stream_from_its_start_with_the_token_before_as_input():
    assert num_targets(THREE) == 8
    batches = window_batches(8, length=3, batch_size=2)
    rows = source(THREE, batches.__getitem__, 3)
    first, second = (rows.rows(step, shard=0, num_shards=1) for step in range(2))
    assert first["token_ids"].tolist() == [[9, 1, 2], [3, 9, 9]]
    assert first["labels"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert second["token_ids"].tolist() == [[4, 5, 9]] * 2  # the last row only fills up
    assert second["labels"].tolist() == [[5, 9, 9]] * 2
    assert second["padding_mask"].tolist() == [[1, 1, 0]] * 2
    assert second["weights"].tolist() == [[1, 1, 0], [0, 0, 0]]
    assert second["example_ids"].tolist() == [6 + 8] * 2


def test_a_start_of_text_is_read_before_each_document_and_is_no_target():
    batches = window_batches(8, length=5, batch_size=2)
    rows = WindowSource(THREE, batches.__getitem__, end_id=END, start_id=8, length=5, global_batch_size=2)
    batch = rows.rows(0, shard=0, num_shards=1)
    assert batch["token_ids"].tolist() == [[8, 1, 2, 3, 8], [8, 4, 5, 8, 8]]
    assert batch["labels"].tolist() == [[1, 2, 3, 9, 9], [4, 5, 9, 9, 9]]
    assert batch["padding_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


@pytest.mark.parametrize("length", [1, 3, 4, 7, 8, 50])
def test_each_target_is_trained_on_once_an_epoch_after_the_token_before_it(length):
    stream = [1, 2, 3, 9, 9, 4, 5, 9]
    before = [9, *stream[:-1]]
    order = WindowOrder(8, length=length, seed=3, global_batch_size=1)
    rows = source(THREE, order.batch, length, batch_size=1)
    for epoch in range(4):
        seen = []
        for step in range(epoch * order.num_examples, (epoch + 1) * order.num_examples):
            batch = rows.rows(step, shard=0, num_shards=1)
            count = int(batch["padding_mask"].sum())
            assert batch["weights"].tolist() == batch["padding_mask"].tolist()
            start = int(batch["example_ids"][0]) % 8
            for place, (token, label) in enumerate(zip(batch["token_ids"][0], batch["labels"][0], strict=True)):
                if place < count:
                    at = (start + place) % 8
                    seen.append(at)
                    assert (token, label) == (before[at], stream[at])
        assert sorted(seen) == list(range(8))


def test_epochs_cut_at_other_places_and_in_another_order():
    order = WindowOrder(1000, length=10, seed=0, global_batch_size=100)
    first, second = (order.batch(step).example_ids for step in range(2))
    assert sorted(first % 10) == [first[0] % 10] * 100
    assert first[0] % 10 != second[0] % 10
    assert np.argsort(first).tolist() != np.argsort(second).tolist()


def test_a_step_is_the_same_whatever_was_asked_before():
    def ids(steps):
        order = WindowOrder(5003, length=16, seed=7, global_batch_size=24)
        return {step: order.batch(step).example_ids.tolist() for step in steps}

    forwards, backwards = ids(range(60)), ids(reversed(range(60)))
    assert forwards == backwards
    assert ids([59]) == {59: forwards[59]}


def test_the_order_is_the_one_it_has_always_been():
    """Golden: a run that is resumed with another version must see the same windows."""
    order = WindowOrder(100, length=16, seed=1, global_batch_size=4)
    assert [order.batch(step).example_ids.tolist() for step in range(3)] == GOLDEN


def test_shards_of_a_batch_are_its_rows():
    order = WindowOrder(8, length=2, seed=0, global_batch_size=4)
    rows = source(THREE, order.batch, 2, batch_size=4)
    whole = rows.rows(5, shard=0, num_shards=1)
    halves = [rows.rows(5, shard=shard, num_shards=2) for shard in range(2)]
    for name, values in whole.items():
        assert np.array_equal(values, np.concatenate([half[name] for half in halves]))


def test_the_data_set_gives_the_rows():
    order = WindowOrder(8, length=3, seed=0, global_batch_size=2)
    rows = source(THREE, order.batch, 3)
    batch = next(iter(rows.dataset(4, first_shard=0, local_shards=1, num_shards=1)))
    for name, value in rows.rows(4, shard=0, num_shards=1).items():
        assert np.array_equal(batch[name].numpy(), value)
        assert batch[name].dtype == value.dtype


def test_empty_documents_alone_are_refused():
    with pytest.raises(InputError, match="all empty"):
        check_size(ragged([], []), 1)
    check_size(THREE, 8)
    with pytest.raises(InputError, match=r"data\.max_length is 9, but the training documents are 8 tokens in all"):
        check_size(THREE, 9)


GOLDEN = [[22, 70, 6, 54], [186, 90, 38, 83], [51, 19, 35, 67]]
