"""Draws are a function of logits, settings, seed and number; the numbers are hand-made or those of transformers."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.data.batching.order import random_keys
from aigc_tf.errors import InputError
from aigc_tf.generation import sampling
from aigc_tf.generation.sampling import draw, make_settings, sample, token_weights, uniform

LOGITS = [2.0, 1.5, 1.5, 0.25, -0.5, -1.0, 3.0, 0.0]
PROMPT = [6, 4, 6, 0]
NAN, INF = np.nan, np.inf


def settings_of(batch_size=1, **values):
    return make_settings(batch_size, **{"max_new_tokens": 1, **values})


def choose(logits, seen=None, number=0, **values):
    logits = tf.constant(np.atleast_2d(logits), tf.float32)
    seen = tf.zeros(logits.shape, tf.bool) if seen is None else seen
    numbers = tf.fill([logits.shape[0]], number)
    return sample(logits, settings_of(logits.shape[0], **values), numbers, seen)


def probabilities(logits, seen=None, **values):
    """The distribution that `sample` draws from, by the same functions."""
    logits = tf.constant(np.atleast_2d(logits), tf.float32)
    settings = settings_of(logits.shape[0], **values)
    seen = tf.zeros(logits.shape, tf.bool) if seen is None else seen
    weights = token_weights(sampling._penalise(logits, settings.repetition_penalty, seen), settings).numpy()
    assert weights.shape[1] % 64 == 0
    assert not weights[:, logits.shape[1] :].any()
    return weights[:, : logits.shape[1]] / weights.sum(axis=1, keepdims=True)


def one_row(settings, row):
    return tf.nest.map_structure(lambda tensor: tensor[row : row + 1], settings)


# Random numbers.


def mix_of_python_integers(value):
    mask = 2**64 - 1
    z = (value + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@pytest.mark.parametrize(
    ("seed", "numbers"),
    [
        (0, [5876733520225071, 306350170640982, 2496980484439137]),
        (1, [3316356330981164, 8232782446381918, 8349008717788876]),
        (-1, [3298815481631822, 3672796978599346, 6916082049524017]),
        (2**63 - 1, [3722101090474169, 7362956549513596, 6012679697007789]),
        (-(2**63), [4744883860829720, 497008178783847, 7811718917956428]),
        (1234567, [4740974018348385, 3185388209779313, 936626481638756]),
    ],
)
def test_the_random_numbers_never_change(seed, numbers):
    index = [0, 1, 1000]
    found = uniform(tf.constant([seed] * 3, tf.int64), tf.constant(index))
    assert found.dtype == tf.float64
    assert (found.numpy() * 2**53).tolist() == numbers
    key = mix_of_python_integers(seed % 2**64)
    assert [mix_of_python_integers(key ^ i) >> 11 for i in index] == numbers


def test_the_hash_is_split_mix_64_as_in_the_order_of_the_data():
    assert mix_of_python_integers(0) == 0xE220A8397B1DCDAF  # the first number of the published generator with seed 0
    seeds = np.random.default_rng(0).integers(-(2**63), 2**63, 10_000)
    index = np.arange(10_000) % 777
    keys = random_keys(seeds.view(np.uint64), index)
    np.testing.assert_array_equal(
        uniform(tf.constant(seeds), tf.constant(index, tf.int32)).numpy(), (keys >> np.uint64(11)) * 2.0**-53
    )


@pytest.mark.parametrize("seeds", [np.arange(2000), np.arange(2000) * 2**32, -np.arange(2000) * 7919])
def test_random_numbers_are_uniform_over_seeds_and_over_tokens(seeds):
    seed, index = np.meshgrid(seeds, np.arange(50), indexing="ij")
    numbers = uniform(tf.constant(seed, tf.int64), tf.constant(index, tf.int32)).numpy()  # (2000, 50)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 150  # chi-square, 99 degrees of freedom: 148 is 1 in 1000
    for one, other in [
        (numbers[1:], numbers[:-1]),
        (numbers[:, 1:], numbers[:, :-1]),
        (numbers[1:, :-1], numbers[:-1, 1:]),
    ]:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.015
    low_bits = (numbers * 2**53).astype(np.int64) % 16
    counts = np.bincount(low_bits.ravel(), minlength=16)
    assert ((counts - 6250.0) ** 2 / 6250).sum() < 38  # 15 degrees of freedom


# The distribution.


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [0.186139, 0.112899, 0.112899, 0.032346, 0.015279, 0.009267, 0.505979, 0.025191]),
        ({"temperature": 0.5}, [0.108902, 0.040063, 0.040063, 0.003289, 0.000734, 0.00027, 0.804685, 0.001995]),
        ({"top_k": 3}, [0.202785, 0.122995, 0.122995, 0, 0, 0, 0.551225, 0]),
        ({"top_k": 3, "top_p": 0.6}, [0.268941, 0, 0, 0, 0, 0, 0.731059, 0]),
        ({"top_p": 0.9}, [0.202785, 0.122995, 0.122995, 0, 0, 0, 0.551225, 0]),
        ({"min_p": 0.2}, [0.202785, 0.122995, 0.122995, 0, 0, 0, 0.551225, 0]),
        (
            {"repetition_penalty": 1.5},
            [0.163026, 0.192592, 0.192592, 0.055179, 0.020299, 0.015809, 0.317531, 0.042973],
        ),
        (
            {"repetition_penalty": 0.5, "temperature": 2.0},
            [0.209139, 0.059919, 0.059919, 0.032073, 0.024978, 0.017167, 0.5685, 0.028304],
        ),
        (
            {"repetition_penalty": 1.5, "temperature": 0.7, "top_k": 6, "top_p": 0.95, "min_p": 0.05},
            [0.157672, 0.200059, 0.200059, 0.033545, 0, 0, 0.408665, 0],
        ),
        ({"top_k": 100, "top_p": 1e-6}, [0, 0, 0, 0, 0, 0, 1, 0]),
    ],
)
def test_the_distribution_is_that_of_transformers(values, expected):
    # Made with transformers 5.23: RepetitionPenaltyLogitsProcessor, then TemperatureLogitsWarper, TopKLogitsWarper,
    # TopPLogitsWarper, MinPLogitsWarper, then softmax, on LOGITS and PROMPT.
    seen = np.isin(np.arange(8), PROMPT)[np.newaxis]
    found = probabilities(LOGITS, seen, **values)[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(found > 0, np.array(expected) > 0)


def test_the_fewest_tokens_that_reach_top_p_are_kept():
    share = np.log([0.4, 0.3, 0.2, 0.1])
    assert [(probabilities(share, top_p=p) > 0).sum() for p in (0.01, 0.39, 0.41, 0.69, 0.71, 0.91, 1.0)] == [
        *(1, 1, 2, 2, 3, 4, 4)
    ]


def test_tokens_as_likely_as_the_last_one_kept_are_kept_too():
    logits = [1.0, 0.0, 0.0, 0.0, -1.0]
    assert (probabilities(logits, top_k=2) > 0).tolist() == [[True, True, True, True, False]]
    assert (probabilities(logits, top_p=0.6) > 0).tolist() == [[True, True, True, True, False]]
    assert (probabilities(logits, min_p=np.exp(-1.0)) > 0).tolist() == [[True, True, True, True, False]]


def test_more_than_there_is_cuts_nothing():
    np.testing.assert_array_equal(probabilities(LOGITS, top_k=2**31 - 1), probabilities(LOGITS))
    np.testing.assert_array_equal(probabilities(LOGITS, top_k=8, min_p=1e-30), probabilities(LOGITS))


@pytest.mark.parametrize("values", [{"top_k": 1}, {"top_p": 1e-30}, {"min_p": 1.0}, {"temperature": 1e-38}])
def test_the_likeliest_token_is_always_kept(values):
    assert probabilities(LOGITS, **values)[0].tolist() == [0, 0, 0, 0, 0, 0, 1, 0]


def test_the_next_float_below_the_likeliest_is_not_as_likely():
    logits = [np.nextafter(np.float32(1), np.float32(0)), 1.0, 1.0]
    assert probabilities(logits, top_k=1)[0].tolist() == [0, 0.5, 0.5]
    assert probabilities(logits, temperature=1e-38)[0].tolist() == [0, 0.5, 0.5]


@pytest.mark.parametrize("vocabulary_size", [1, 3, 255, 256, 257, 1000])
@pytest.mark.parametrize("short_list", [1, 16, 256])
def test_cutting_equals_sorting(monkeypatch, vocabulary_size, short_list):
    # A short list of 1 is left for the bisection at once.
    monkeypatch.setattr(sampling, "_SHORT_LIST", short_list)
    rng = np.random.default_rng(vocabulary_size)
    logits = (rng.normal(size=(6, vocabulary_size)) * 2).astype(np.float32)
    logits[3:] = np.round(logits[3:])  # many equal ones
    top_k = np.array([0, 2, 40, 300, 7, 0])
    top_p = np.array([0.9, 1.0, 0.5, 0.99, 0.7, 0.3], np.float32)
    found = probabilities(logits, top_k=top_k, top_p=top_p)
    for row, k, p in zip(range(6), top_k, top_p, strict=True):
        share = np.exp(logits[row].astype(np.float64))
        if k:
            share[share < np.sort(share)[::-1][min(k, vocabulary_size) - 1]] = 0
        share /= share.sum()
        if p < 1:
            values = np.sort(share)[::-1]
            share[share < values[np.searchsorted(np.cumsum(values), p)]] = 0
        np.testing.assert_allclose(found[row], share / share.sum(), atol=1e-6)
        np.testing.assert_array_equal(found[row] > 0, share > 0)


# The draw.


def test_no_token_of_probability_zero_is_drawn():
    weights = tf.constant([[0, 0, 5, 0, 1, 0, 2.0**32, 0]] * 5, tf.float64)
    total = 2.0**32 + 6
    numbers = tf.constant([0.0, 5 / total, 6 / total, 1 - 2.0**-53, 4.999 / total], tf.float64)
    assert draw(weights, numbers).numpy().tolist() == [2, 4, 6, 6, 2]


def test_the_greatest_number_draws_the_last_possible_token_of_a_large_vocabulary():
    weights = tf.concat(
        [tf.fill([1, 2**21 - 100], tf.constant(2.0**32, tf.float64)), tf.zeros([1, 100], tf.float64)], 1
    )
    assert draw(weights, tf.constant([1 - 2.0**-53], tf.float64)).numpy().tolist() == [2**21 - 101]


@pytest.mark.parametrize("values", [{}, {"temperature": 0.6, "top_k": 5}, {"top_p": 0.8}, {"min_p": 0.05}])
def test_what_is_drawn_has_its_probability(values):
    draws = 20_000
    logits = np.tile(np.array(LOGITS, np.float32), (draws, 1))
    token, _ = choose(logits, seed=5, number=3, **values)  # seeds 5, 6, 7, ...
    expected = probabilities(LOGITS, **values)[0] * draws
    counts = np.bincount(token.numpy(), minlength=8)
    assert not counts[expected == 0].any()
    kept = expected > 0
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < 25  # chi-square, 7 degrees of freedom or fewer


def test_a_row_draws_the_same_alone_and_in_any_batch():
    rng = np.random.default_rng(3)
    for vocabulary_size in (7, 64, 1001):  # no multiple of a vector's length, so that rows begin anywhere in one
        logits = tf.constant(rng.normal(size=(16, vocabulary_size)) * 3, tf.float32)
        seen = tf.constant(rng.random((16, vocabulary_size)) < 0.3)
        settings = make_settings(
            16,
            max_new_tokens=1,
            temperature=rng.choice([0.0, 0.5, 1.0, 1.7], 16),
            top_k=rng.choice([0, 5, 400], 16),
            top_p=rng.choice([1.0, 0.9, 0.3], 16),
            min_p=rng.choice([0.0, 0.02], 16),
            repetition_penalty=rng.choice([1.0, 1.3], 16),
            seed=rng.integers(-(2**63), 2**63, 16),
        )
        numbers = tf.constant(rng.integers(0, 1000, 16), tf.int32)
        together, log_together = sample(logits, settings, numbers, seen)
        weights = token_weights(logits, settings).numpy()
        for row in range(16):
            here, place = one_row(settings, row), slice(row, row + 1)
            token, log_probability = sample(logits[place], here, numbers[place], seen[place])
            assert token[0] == together[row]
            np.testing.assert_allclose(log_probability[0], log_together[row], rtol=1e-6)
            np.testing.assert_array_equal(token_weights(logits[place], here).numpy()[0], weights[row])


def test_eager_and_graph_draw_the_same():
    rng = np.random.default_rng(4)
    logits, seen = tf.constant(rng.normal(size=(32, 300)), tf.float32), tf.zeros([32, 300], tf.bool)
    settings = settings_of(32, top_k=[0, 20] * 16, top_p=0.9, seed=1)
    numbers = tf.zeros([32], tf.int32)
    np.testing.assert_array_equal(
        sample(logits, settings, numbers, seen)[0], tf.function(sample)(logits, settings, numbers, seen)[0]
    )


def test_temperature_zero_takes_the_first_of_the_likeliest():
    token, log_probability = choose([[0.0, 2.0, 2.0], [5.0, 5.0, 5.0], [-1.0, -3.0, -0.5]], temperature=0.0)
    assert token.numpy().tolist() == [1, 0, 2]
    np.testing.assert_allclose(log_probability[1], np.log(1 / 3), rtol=1e-6)


def test_the_repetition_penalty_changes_the_greedy_choice_and_no_log_probability():
    seen = tf.constant([[True, False, False], [False, True, True]])
    logits = [[3.0, 2.5, 0.0], [-3.0, -2.0, -2.5]]
    token, log_probability = choose(logits, seen, temperature=0.0, repetition_penalty=2.0)
    assert token.numpy().tolist() == [1, 0]  # 1.5, 2.5, 0 and -3, -4, -5
    expected = np.array(logits) - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(log_probability, [expected[0, 1], expected[1, 0]], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_have_defined_tokens_and_no_probability(temperature):
    rows = {
        "not a number is never chosen": ([NAN, NAN, 1.0, NAN], 2),
        "nor is minus infinity": ([-INF, 1.0, -INF, -INF], 1),
        "plus infinity is always": ([7.0, 9.0, -INF, INF], 3),
        "no choice at all": ([-INF, -INF, -INF, -INF], 0),
        "nor any number": ([NAN, NAN, NAN, NAN], 0),
    }
    tokens, log_probability = choose([logits for logits, _ in rows.values()], temperature=temperature, seed=9)
    assert tokens.numpy().tolist() == [token for _, token in rows.values()]
    assert np.isnan(log_probability).tolist() == [True, False, True, True, True]
    assert log_probability[1] == 0.0


def test_the_log_probability_is_that_of_the_model_whatever_the_settings():
    logits = np.random.default_rng(0).normal(size=(64, 50)).astype(np.float32) * 4
    token, found = choose(logits, temperature=0.7, top_k=10, top_p=0.8, min_p=0.01)
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected[np.arange(64), token.numpy()], atol=1e-5)


def test_no_rows_draw_nothing():
    token, log_probability = choose(np.zeros((0, 5)), top_k=2, top_p=0.5)
    assert token.shape == log_probability.shape == (0,)


# Settings.


def test_one_value_is_for_all_rows_and_one_seed_is_counted_up():
    settings = make_settings(3, max_new_tokens=5, temperature=[0, 1, 2], seed=7)
    assert settings.max_new_tokens.numpy().tolist() == [5, 5, 5]
    assert settings.temperature.numpy().tolist() == [0, 1, 2]
    assert settings.seed.numpy().tolist() == [7, 8, 9]
    assert make_settings(2, max_new_tokens=1, seed=[4, 4]).seed.numpy().tolist() == [4, 4]
    assert [tensor.dtype for tensor in settings] == list(sampling._DTYPES)


WRONG = [
    ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be a whole number from 0 to"),
    ({"max_new_tokens": 2**31}, "max_new_tokens is 2147483648"),
    ({"top_k": 2.5}, "top_k is 2.5"),
    ({"temperature": -0.1}, "temperature is -0.1"),
    ({"temperature": NAN}, "temperature is nan"),
    ({"temperature": INF}, "temperature is inf"),
    ({"top_k": [1, -2]}, "top_k is -2"),
    ({"top_p": 0.0}, "top_p is 0.0; it must be greater than 0 and at most 1"),
    ({"top_p": 1.5}, "top_p is 1.5"),
    ({"min_p": 1.01}, "min_p is 1.01"),
    ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_value_that_does_not_fit_is_named(values, message):
    with pytest.raises(InputError, match=message):
        settings_of(2, **values)
