"""The order of examples: golden values, and what must hold for any data."""

import collections

import numpy as np
import pytest

from aigc_tf.data.batching.order import (
    POSITIONS,
    TrainingOrder,
    choose_bucket_lengths,
    evaluation_batches,
    random_keys,
    split_mix,
)
from aigc_tf.errors import InputError


def _lengths(count=1000, seed=0):
    return np.clip(np.random.default_rng(seed).lognormal(3, 0.6, count).astype(int) + 2, 3, 128)


def test_split_mix_gives_the_published_values_of_seed_zero():
    # The first outputs of SplitMix64 seeded with 0, as in the reference implementation of Vigna.
    counter = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(value) for value in split_mix(counter)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_keys_depend_on_every_part_and_on_their_order():
    assert len({int(random_keys(1, 2)), int(random_keys(2, 1)), int(random_keys(1, 3)), int(random_keys(1, 2, 0))}) == 4


def test_the_order_is_held_by_a_golden_value():
    order = TrainingOrder(np.array([3, 9, 4, 8, 5, 7, 6, 3, 9, 4]), seed=7, global_batch_size=2, num_buckets=2)
    assert order.bucket_lengths.tolist() == GOLDEN_BUCKETS
    assert [order.batch(step).example_ids.tolist() for step in range(6)] == GOLDEN_IDS


GOLDEN_BUCKETS = [4, 9]
GOLDEN_IDS = [[2, 9], [1, 4], [3, 6], [8, 5], [7, 0], [7, 2]]


def test_bucket_lengths_waste_the_fewest_positions():
    # By hand: {4, 4, 10, 10} in two buckets pads nothing; one bucket of {4, 5} and one of {9, 10} wastes 1 + 1.
    assert choose_bucket_lengths(np.array([4, 4, 10, 10]), num_buckets=2, smallest=1).tolist() == [4, 10]
    assert choose_bucket_lengths(np.array([4, 5, 9, 10]), num_buckets=2, smallest=2).tolist() == [5, 10]
    assert choose_bucket_lengths(np.array([4, 5, 9, 10]), num_buckets=2, smallest=3).tolist() == [10]
    assert choose_bucket_lengths(np.array([6]), num_buckets=8, smallest=32).tolist() == [6]


def test_bucket_lengths_equal_an_exhaustive_search():
    import itertools

    lengths = _lengths(200)
    values = np.unique(lengths)

    def wasted(bounds):
        bounds = np.array(bounds)
        return int((bounds[np.searchsorted(bounds, lengths)] - lengths).sum())

    best = min(wasted([*chosen, values[-1]]) for chosen in itertools.combinations(values[:-1], 2))
    assert wasted(choose_bucket_lengths(lengths, num_buckets=3, smallest=1)) == best


def test_very_many_different_lengths_are_thinned_and_still_hold_every_example():
    lengths = np.arange(1, 5001)
    bounds = choose_bucket_lengths(lengths, num_buckets=8, smallest=1)
    assert len(bounds) == 8
    assert bounds[-1] == 5000
    assert (np.diff(bounds) > 500).all()


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_every_epoch_shows_every_example_and_leftovers_come_first_in_the_next(batch_size):
    lengths = _lengths()
    order = TrainingOrder(lengths, seed=3, global_batch_size=batch_size, num_buckets=8)
    num_buckets = len(order.bucket_lengths)
    for epochs in (1, 2, 5):
        steps = epochs * len(lengths) // batch_size
        seen = collections.Counter()
        for step in range(steps):
            batch = order.batch(step)
            assert (lengths[batch.example_ids] <= batch.shape[POSITIONS]).all()
            assert (batch.weights == 1).all()
            seen.update(batch.example_ids.tolist())
        # At most one unfinished batch a bucket is outstanding.
        shortfall = sum(max(0, epochs - seen[i]) for i in range(len(lengths)))
        assert shortfall <= num_buckets * batch_size


def test_the_stream_of_a_bucket_is_whole_epochs_one_after_the_other():
    order = TrainingOrder(np.full(10, 5), seed=1, global_batch_size=4, num_buckets=4)
    stream = np.concatenate([order.batch(step).example_ids for step in range(10)])  # 40 ids: 4 epochs
    # One bucket: its batches keep their order within an epoch only up to a shuffle, so compare epochs as multisets
    # over the least common multiple of 10 and 4, where nothing is left over.
    assert sorted(stream[:20].tolist()) == sorted([*range(10)] * 2)
    assert sorted(stream[20:].tolist()) == sorted([*range(10)] * 2)
    assert stream[:20].tolist() != stream[20:].tolist()


def test_a_seek_gives_what_walking_there_gives():
    lengths = _lengths()
    walked = TrainingOrder(lengths, seed=5, global_batch_size=16, num_buckets=8)
    batches = [walked.batch(step) for step in range(400)]
    for step in (399, 0, 123, 62, 63):
        fresh = TrainingOrder(lengths, seed=5, global_batch_size=16, num_buckets=8)
        assert fresh.batch(step).example_ids.tolist() == batches[step].example_ids.tolist()
    far = walked.batch(10**9)
    assert len(far.example_ids) == 16


def test_another_seed_gives_another_order():
    first, second = (TrainingOrder(_lengths(), seed=s, global_batch_size=16, num_buckets=8) for s in (1, 2))
    assert first.batch(0).example_ids.tolist() != second.batch(0).example_ids.tolist()


def test_fewer_examples_than_a_batch_still_make_full_batches():
    order = TrainingOrder(np.array([5, 6, 7]), seed=0, global_batch_size=8, num_buckets=4)
    stream = np.concatenate([order.batch(step).example_ids for step in range(3)])
    assert np.bincount(stream).tolist() == [8, 8, 8]
    one = TrainingOrder(np.array([5]), seed=0, global_batch_size=2, num_buckets=4)
    assert one.batch(41).example_ids.tolist() == [0, 0]


def test_no_example_at_all_is_refused():
    with pytest.raises(InputError, match="no example"):
        TrainingOrder(np.array([], int), seed=0, global_batch_size=2, num_buckets=4)


def test_runs_keep_batches_of_one_length_together_and_show_the_same_examples():
    lengths = _lengths()
    plain = TrainingOrder(lengths, seed=0, global_batch_size=8, num_buckets=4)
    runs = TrainingOrder(lengths, seed=0, global_batch_size=8, num_buckets=4, run_length=5)
    steps = len(lengths) // 8
    step = switches = 0
    while step < steps:
        end = runs.run_end(step)
        assert len({runs.batch(s).shape[POSITIONS] for s in range(step, end)}) == 1
        step, switches = end, switches + 1
    assert switches <= steps / 5 + 2 * len(runs.bucket_lengths)
    epoch = range(int((plain._sizes // 8).sum()))
    ids = [sorted(np.concatenate([o.batch(s).example_ids for s in epoch]).tolist()) for o in (plain, runs)]
    assert ids[0] == ids[1]


def test_an_evaluation_shows_every_example_once_and_pads_only_its_last_batch():
    lengths = _lengths(101)
    bounds = choose_bucket_lengths(lengths, num_buckets=4, smallest=8)
    batches = evaluation_batches(lengths, batch_size=8, bucket_lengths=bounds)
    real = np.concatenate([batch.example_ids[batch.weights > 0] for batch in batches])
    assert sorted(real.tolist()) == list(range(101))
    assert [batch.weights.min() for batch in batches] == [1.0] * 12 + [0.0]
    assert all((lengths[batch.example_ids] <= batch.shape[POSITIONS]).all() for batch in batches)
    assert {len(batch.example_ids) for batch in batches} == {8}


def test_an_evaluation_longer_than_training_pads_to_itself():
    batches = evaluation_batches(np.array([3, 50]), batch_size=1, bucket_lengths=np.array([10]))
    assert [batch.shape[POSITIONS] for batch in batches] == [10, 50]


def test_examples_without_a_ragged_column_are_batches_without_a_shape():
    order = TrainingOrder(np.ones(5, int), seed=3, global_batch_size=2, num_buckets=8, dimension=None)
    assert [order.batch(step).shape for step in range(3)] == [{}] * 3
    assert sorted(np.concatenate([order.batch(step).example_ids for step in range(5)]).tolist()) == sorted(
        [*range(5)] * 2
    )
    batches = evaluation_batches(np.ones(5, int), batch_size=2, bucket_lengths=order.bucket_lengths, dimension=None)
    assert [(batch.example_ids.tolist(), batch.shape) for batch in batches] == [
        ([0, 1], {}),
        ([2, 3], {}),
        ([4, 4], {}),
    ]
