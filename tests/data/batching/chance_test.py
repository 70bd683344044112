"""What is drawn by chance: golden values, its distribution, and that it belongs to the example alone."""

import functools

import numpy as np

from aigc_tf.data.batching.batches import BatchSource
from aigc_tf.data.batching.chance import Chance, chance_keys, integers, normal, uniform
from aigc_tf.data.batching.order import StepBatch, random_keys


def test_keys_and_draws_are_held_by_golden_values():
    keys = chance_keys(7, 3, np.array([0, 5]))
    assert keys.tolist() == GOLDEN_KEYS
    assert chance_keys(7, None, np.array([0, 5])).tolist() == GOLDEN_EVALUATION_KEYS
    assert uniform(keys).tolist() == GOLDEN_UNIFORM
    assert integers(keys, (3,), high=10).tolist() == GOLDEN_INTEGERS
    np.testing.assert_allclose(normal(keys, (2,)), GOLDEN_NORMAL, atol=1e-6)


GOLDEN_KEYS = [18132488963014150197, 16701416399032855438]
GOLDEN_EVALUATION_KEYS = [11093485502313776761, 14399997559038266429]
GOLDEN_UNIFORM = [0.4579275846481323, 0.9972560405731201]
GOLDEN_INTEGERS = [[4, 6, 2], [9, 6, 2]]
GOLDEN_NORMAL = [[1.2149555683135986, 0.9680873155593872], [-0.07182123512029648, -0.12902607023715973]]


def test_keys_differ_by_seed_step_example_and_from_those_of_the_order():
    ids = np.arange(4)
    keys = [chance_keys(1, 2, ids), chance_keys(2, 1, ids), chance_keys(1, 3, ids), chance_keys(1, None, ids)]
    keys.append(random_keys(1, 2, ids))  # the order's
    assert len(set(np.concatenate(keys).tolist())) == 5 * 4


def test_draws_have_the_shape_of_the_keys_and_their_distribution():
    keys = chance_keys(0, 0, np.arange(20_000).reshape(2, 10_000))
    flat, gauss, whole = uniform(keys), normal(keys, (2,)), integers(keys, high=4)
    assert (flat.shape, gauss.shape, whole.shape) == ((2, 10_000), (2, 10_000, 2), (2, 10_000))
    assert (flat.dtype, gauss.dtype, whole.dtype) == (np.float32, np.float32, np.int32)
    assert 0 <= flat.min() < 0.001 < 0.999 < flat.max() < 1
    assert abs(flat.mean() - 0.5) < 0.01
    assert abs(gauss.mean()) < 0.02
    assert abs(gauss.std() - 1) < 0.02
    assert abs(np.corrcoef(gauss[0, :, 0], gauss[0, :, 1])[0, 1]) < 0.03
    assert abs(np.bincount(whole.ravel()) / whole.size - 0.25).max() < 0.02
    assert np.isfinite(normal(np.zeros(1, np.uint64))).all()


class _Ids(BatchSource):
    def _rows(self, batch, mine):
        return {"example_ids": batch.example_ids[mine]}

    def _signature(self, rows, shape):
        import tensorflow as tf

        return {"example_ids": tf.TensorSpec([rows], tf.int64)}


def _source(**chance):
    draws = {"noise": functools.partial(normal, shape=(2,)), "time": uniform, "other": uniform}

    def batch_at(step):
        return StepBatch((np.arange(4) + step) % 5, np.ones(4, np.float32), {})

    return _Ids(batch_at, global_batch_size=4, chance=Chance(seed=9, draws=draws, **chance))


def test_a_draw_belongs_to_its_example_however_the_batch_is_cut():
    source = _source()
    whole = source.rows(3, shard=0, num_shards=1)
    halves = [source.rows(3, shard=shard, num_shards=2) for shard in range(2)]
    for name in ("noise", "time"):
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), whole[name])
    assert (whole["time"] != whole["other"]).all()  # columns of one example are apart
    assert not np.isin(source.rows(4, shard=0, num_shards=1)["time"], whole["time"]).any()  # another step, other noise


def test_an_evaluation_judges_an_example_with_the_same_noise_at_every_step():
    source = _source(is_evaluation=True)
    first, second = (source.rows(step, shard=0, num_shards=1) for step in (0, 1))
    np.testing.assert_array_equal(first["noise"][1:], second["noise"][:-1])


def test_a_data_set_knows_the_shapes_of_what_is_drawn():
    batch = next(iter(_source().dataset(2, first_shard=0, local_shards=1, num_shards=1)))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "example_ids": (4,),
        "noise": (4, 2),
        "time": (4,),
        "other": (4,),
    }
