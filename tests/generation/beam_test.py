"""Beam search finds what trying everything finds where the beams hold everything, and else what a plain search does."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.generation.beam import beam_search
from aigc_tf.generation.decoding import END_OF_TEXT, LENGTH, STOP_STRING
from aigc_tf.generation.stopping import build_stop_table
from tests.toy_language_model import ToyModel, padded

END = 0
PROMPTS = [[1], [2, 3, 1], [3, 3]]


def search(model, prompts, max_new_tokens, *, num_beams, capacity=16, end_id=END, **options):
    ids, lengths = padded(prompts)
    limits = tf.broadcast_to(tf.constant(max_new_tokens, tf.int32), [len(prompts)])
    cache = model.empty_cache(len(prompts), capacity)
    best, score = beam_search(
        model.step, ids, lengths, cache, limits, num_beams=num_beams, capacity=capacity, end_id=end_id, **options
    )
    rows = [ids[:length].tolist() for ids, length in zip(best.token_ids.numpy(), best.lengths.numpy(), strict=True)]
    return rows, best, score.numpy()


def log_probability(model, prompt, continuation):
    return sum(
        model.log_probabilities([*prompt, *continuation[:count]])[token] for count, token in enumerate(continuation)
    )


def best_of_all(model, prompt, limit, penalty):
    """Tries every sequence that ends by the end of text, and every one of full length."""
    tokens = range(model.vocabulary_size)
    found = []
    for length in range(1, limit + 1):
        for sequence in itertools.product(tokens, repeat=length):
            if END in sequence[:-1] or (length < limit and sequence[-1] != END):
                continue
            found.append((log_probability(model, prompt, sequence) / length**penalty, sequence))
    score, sequence = max(found)
    return score, [token for token in sequence if token != END]


def plain_search(model, prompt, limit, num_beams, penalty):
    """Beam search with Python lists, without ending early."""
    beams, best = [(0.0, [])], (-math.inf, [])
    for length in range(1, limit + 1):
        candidates = [
            (total + value, [*tokens, token])
            for total, tokens in beams
            for token, value in enumerate(model.log_probabilities([*prompt, *tokens]))
        ]
        candidates = sorted(candidates, key=lambda candidate: -candidate[0])[: 2 * num_beams]
        for total, tokens in candidates[:num_beams]:
            if tokens[-1] == END or length == limit:
                best = max(best, (total / length**penalty, tokens))
        beams = [(total, tokens) for total, tokens in candidates if tokens[-1] != END][:num_beams]
    return best[0], [token for token in best[1] if token != END]


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beams_for_everything_find_the_best_of_everything(penalty, seed):
    model = ToyModel(4, seed=seed, scale=1.0)
    rows, best, score = search(model, PROMPTS, 4, num_beams=64, length_penalty=penalty)
    for row, prompt in enumerate(PROMPTS):
        expected_score, expected = best_of_all(model, prompt, 4, penalty)
        assert rows[row] == expected
        np.testing.assert_allclose(score[row], expected_score, rtol=1e-5)
        length = len(expected) + int(best.finish_reason[row] == END_OF_TEXT)
        np.testing.assert_allclose(best.log_probability[row], expected_score * length**penalty, rtol=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("num_beams", [1, 2, 3, 5])
def test_few_beams_find_what_a_plain_search_finds(num_beams, penalty):
    for seed in range(4):
        model = ToyModel(6, seed=seed, scale=1.2)
        rows, _, score = search(model, PROMPTS, 8, num_beams=num_beams, length_penalty=penalty)
        for row, prompt in enumerate(PROMPTS):
            expected_score, expected = plain_search(model, prompt, 8, num_beams, penalty)
            assert rows[row] == expected
            np.testing.assert_allclose(score[row], expected_score, rtol=1e-5)


def test_a_row_alone_is_the_row_in_a_batch():
    model = ToyModel(9, seed=5, scale=1.0)
    limits = [7, 0, 3]
    together, best, score = search(model, PROMPTS, limits, num_beams=3)
    for row in range(3):
        alone, best_alone, score_alone = search(model, PROMPTS[row : row + 1], limits[row], num_beams=3)
        assert alone[0] == together[row]
        assert best_alone.finish_reason[0] == best.finish_reason[row]
        np.testing.assert_allclose(score_alone[0], score[row], rtol=1e-6)
    assert (together[1], score[1], best.log_probability[1]) == ([], 0.0, 0.0)


def test_the_room_of_the_cache_is_the_limit():
    model = ToyModel(9, seed=5, scale=1.0)
    prompts = [[3] * 16, [3] * 14, [3]]
    rows, best, _ = search(model, prompts, [5, 5, 20], num_beams=2, end_id=-1)
    assert [len(row) for row in rows] == [0, 2, 15]
    assert best.finish_reason.numpy().tolist() == [LENGTH] * 3


def test_no_rows_give_no_rows():
    rows, _, score = search(ToyModel(9), [], [], num_beams=2)
    assert rows == []
    assert score.shape == (0,)


def test_more_beams_than_tokens_there_are():
    model = ToyModel(4, seed=1)
    assert search(model, PROMPTS, 1, num_beams=10)[0] == [best_of_all(model, prompt, 1, 1.0)[1] for prompt in PROMPTS]


def test_it_ends_when_no_beam_can_win_any_more():
    model = ToyModel(6)
    reads = []

    def sure_of_the_end(token_ids, cache, index, num_tokens):
        reads.append(1)
        logits, cache = model.step(token_ids, cache, index, num_tokens)
        return logits * 0.0 + tf.one_hot(END, 6) * 20.0, cache

    ids, lengths = padded([[1]])
    best, _ = beam_search(
        sure_of_the_end, ids, lengths, model.empty_cache(1, 60), tf.constant([50]), num_beams=2, capacity=60, end_id=END
    )
    assert best.finish_reason.numpy().tolist() == [END_OF_TEXT]
    assert len(reads) < 5  # of 50


def test_a_stop_string_ends_a_beam():
    model = ToyModel(6, seed=3, scale=1.0)
    pieces = [bytes([97 + token]) for token in range(6)]
    free = search(model, [[1]], 6, num_beams=2, end_id=-1, length_penalty=0.0)[0][0]
    [first, second] = free[1:3]
    stops = [pieces[first] + pieces[second]]
    rows, best, score = search(
        model, [[1]], 6, num_beams=40, end_id=-1, length_penalty=0.0, stop=build_stop_table(stops, pieces)
    )
    found = []
    for length in range(2, 6):  # shorter than the limit, so only those that stop end
        for sequence in itertools.product(range(6), repeat=length):
            text = b"".join(pieces[token] for token in sequence)
            if text.find(stops[0]) == length - 2:
                found.append((log_probability(model, [1], sequence), list(sequence)))
    assert best.finish_reason[0] == STOP_STRING
    assert best.cut_bytes[0] == 2
    assert (rows[0], pytest.approx(score[0], rel=1e-5)) == (max(found)[1], max(found)[0])


def test_eager_and_graph_find_the_same():
    model = ToyModel(9, seed=2)
    specs = [tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int32)]

    @tf.function(input_signature=specs)
    def in_graph(ids, lengths, limits):
        cache = model.empty_cache(tf.shape(ids)[0], 16)
        return beam_search(model.step, ids, lengths, cache, limits, num_beams=3, capacity=16, end_id=END)

    best, score = in_graph(*padded(PROMPTS), tf.constant([6, 6, 6]))
    _, expected, expected_score = search(model, PROMPTS, 6, num_beams=3)
    np.testing.assert_array_equal(best.token_ids, expected.token_ids)
    np.testing.assert_allclose(score, expected_score, rtol=1e-6)


def test_a_model_without_a_probability_says_so():
    model = ToyModel(5)

    def broken(*arguments):
        logits, cache = model.step(*arguments)
        return logits + np.nan, cache

    ids, lengths = padded(PROMPTS)
    best, score = beam_search(
        broken, ids, lengths, model.empty_cache(3, 9), tf.constant([4, 4, 0]), num_beams=2, capacity=9, end_id=END
    )
    assert best.lengths.numpy().tolist() == [0, 0, 0]
    assert np.isnan(best.log_probability).tolist() == [True, True, False]
    assert score.numpy().tolist() == [-math.inf, -math.inf, 0.0]
