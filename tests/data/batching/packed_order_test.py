"""The order of packed rows: golden values, rows as by the plain algorithm, and what must hold for any data."""

import collections

import numpy as np
import pytest

from aigc_tf.data.batching.packed_order import PackedOrder, best_fit_rows, cut_pieces
from aigc_tf.errors import InputError


def _lengths(count=1000, seed=0, longest=300):
    return np.clip(np.random.default_rng(seed).lognormal(3, 0.9, count).astype(int), 1, longest)


def _pieces(lengths, batch, length):
    """`(example, start, length)` of each piece of a batch, row by row."""
    rows = []
    for ids, starts in zip(batch.example_ids, batch.starts, strict=True):
        there = ids >= 0
        assert not there[there.sum() :].any()  # -1 only fills up
        rows.append(
            [
                (int(i), int(start), int(min(length, lengths[i] - start)))
                for i, start in zip(ids[there], starts[there], strict=True)
            ]
        )
    return rows


def test_long_examples_are_cut_with_nothing_dropped():
    ids, starts, sizes = cut_pieces(np.array([4, 9, 1, 8]), length=4)
    assert ids.tolist() == [0, 1, 1, 1, 2, 3, 3]
    assert starts.tolist() == [0, 0, 4, 8, 0, 0, 4]
    assert sizes.tolist() == [4, 4, 4, 1, 1, 4, 4]


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_those_of_best_fit_one_piece_after_another(seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(5, 40))
    lengths = np.sort(rng.integers(1, length + 1, rng.integers(1, 80)))[::-1]
    rooms: list[int] = []
    for size in lengths:
        fitting = [room for room in rooms if room >= size]
        if fitting:
            rooms[rooms.index(min(fitting))] -= size
        else:
            rooms.append(length - size)
    used = np.bincount(best_fit_rows(lengths, length=length), weights=lengths)
    assert sorted((length - used).tolist()) == sorted(rooms)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_every_epoch_sees_every_piece_once_in_rows_that_hold_them(batch_size):
    lengths, length = _lengths(200), 64
    order = PackedOrder(lengths, length=length, seed=3, global_batch_size=batch_size)
    num_rows = order.num_examples
    steps = -(-3 * num_rows // batch_size)
    rows = [row for step in range(steps) for row in _pieces(lengths, order.batch(step), length)]
    wanted = {(i, start): 1 for i, size in enumerate(lengths) for start in range(0, size, length)}
    for epoch in range(3):
        seen = rows[epoch * num_rows : (epoch + 1) * num_rows]
        assert collections.Counter((i, start) for row in seen for i, start, _ in row) == wanted
        assert all(0 < sum(size for _, _, size in row) <= length for row in seen)
        assert max(map(len, seen)) == order.num_segments
    first, second = rows[:num_rows], rows[num_rows : 2 * num_rows]
    assert sorted(map(sorted, first)) != sorted(map(sorted, second))  # other neighbours
    assert [len(row) for row in first] != [len(row) for row in second]  # in another order


def test_a_batch_has_one_shape_and_says_what_fills_up():
    order = PackedOrder(np.array([3, 2, 2, 9]), length=4, seed=0, global_batch_size=2)
    batch = order.batch(5)
    assert (batch.example_ids.shape, batch.starts.shape, batch.shape) == ((2, 2), (2, 2), {"positions": 4})
    assert batch.weights.tolist() == [1, 1]
    assert (order.num_segments, order.num_examples, order.bucket_lengths.tolist()) == (2, 4, [4])
    assert order.useful_share == 1.0
    assert order.run_end(5) > 10**6


def test_one_pass_sees_every_piece_once_and_fills_the_last_batch_up_with_weight_zero():
    lengths, length = _lengths(100), 64
    order = PackedOrder(lengths, length=length, seed=0, global_batch_size=7)
    batches = order.one_pass()
    seen = collections.Counter()
    for batch in batches:
        assert batch.example_ids.shape == (7, order.num_segments)
        for row, weight in zip(_pieces(lengths, batch, length), batch.weights, strict=True):
            seen.update({(i, start): int(weight) for i, start, _ in row})
    assert seen == {(i, start): 1 for i, size in enumerate(lengths) for start in range(0, size, length)}
    assert 0 in batches[-1].weights
    assert batches[-1].weights.sum() + 7 * (len(batches) - 1) == order.num_examples


def test_a_seek_gives_what_walking_there_gives_and_another_seed_something_else():
    def ids(steps, seed=5):
        order = PackedOrder(_lengths(), length=300, seed=seed, global_batch_size=16)
        return {step: order.batch(step).example_ids.tolist() for step in steps}

    walked = ids(range(40))
    assert ids(reversed(range(40))) == walked
    assert ids([39]) == {39: walked[39]}
    assert ids([0], seed=6)[0] != walked[0]
    assert len(ids([10**9])[10**9]) == 16


def test_the_order_is_the_one_it_has_always_been():
    """Golden: a run that is resumed with another version must see the same rows."""
    order = PackedOrder(np.array([3, 9, 4, 8, 5, 7, 6, 3, 9, 4, 21]), length=10, seed=7, global_batch_size=2)
    assert [order.batch(step).example_ids.tolist() for step in range(4)] == GOLDEN_IDS
    assert [order.batch(step).starts.tolist() for step in range(4)] == GOLDEN_STARTS


def test_chat_is_packed_with_hardly_any_padding():
    lengths = _lengths(20_000, longest=512)
    assert PackedOrder(lengths, length=512, seed=0, global_batch_size=16).useful_share > 0.995


def test_fewer_rows_than_a_batch_still_make_full_batches():
    order = PackedOrder(np.array([2, 3]), length=5, seed=0, global_batch_size=3)
    for step in range(4):
        assert [sorted(row) for row in order.batch(step).example_ids.tolist()] == [[0, 1]] * 3


def test_no_example_is_refused():
    with pytest.raises(InputError, match="no example"):
        PackedOrder(np.zeros(0, int), length=8, seed=0, global_batch_size=1)


GOLDEN_IDS = [
    [[6, 2, -1], [8, -1, -1]],
    [[5, 7, -1], [4, 9, 10]],
    [[10, -1, -1], [10, -1, -1]],
    [[3, -1, -1], [0, -1, -1]],
]
GOLDEN_STARTS = [[[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 20]], [[0, 0, 0], [10, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
