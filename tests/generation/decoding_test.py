"""A row's continuation depends on its own prompt, settings and seed alone, and not on how the loop is called."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.generation import decoding
from aigc_tf.generation.decoding import (
    END_OF_TEXT,
    LENGTH,
    RUNNING,
    STOP_STRING,
    Growth,
    advance,
    collect,
    first_length,
    generate,
    start,
)
from aigc_tf.generation.sampling import make_settings
from aigc_tf.generation.stopping import build_stop_table
from tests.toy_language_model import ToyModel, padded

VOCABULARY, CAPACITY, END = 23, 24, 2
PROMPTS = [[5], [7, 8, 9], [3, 3, 3, 3, 3, 3], [10, 4], [6, 2, 11], [1], [22, 21, 20, 19]]
NUM_ROWS = len(PROMPTS)


@pytest.fixture(scope="module")
def model():
    return ToyModel(VOCABULARY)


def mixed_settings():
    return make_settings(
        NUM_ROWS,
        max_new_tokens=[6, 30, 3, 0, 12, 9, 1],
        temperature=[0.0, 1.0, 0.7, 1.0, 2.0, 0.0, 1.0],
        top_k=[0, 0, 5, 0, 0, 0, 2],
        top_p=[1.0, 0.9, 1.0, 1.0, 0.8, 1.0, 1.0],
        min_p=[0.0, 0.0, 0.0, 0.0, 0.05, 0.0, 0.0],
        repetition_penalty=[1.0, 1.2, 1.0, 1.0, 1.0, 1.5, 1.0],
        seed=[1, 2, 3, 4, 5, 6, 7],
    )


def run(model, prompts, settings, *, end_id=END, stop=None, capacity=CAPACITY, step=None):
    ids, lengths = padded(prompts)
    cache = model.empty_cache(len(prompts), capacity)
    return generate(step or model.step, ids, lengths, cache, settings, capacity=capacity, end_id=end_id, stop=stop)


def rows(generated):
    """The continuations as lists."""
    lengths = generated.lengths.numpy()
    return [ids[:length].tolist() for ids, length in zip(generated.token_ids.numpy(), lengths, strict=True)]


def one_row(settings, row):
    return tf.nest.map_structure(lambda tensor: tensor[row : row + 1], settings)


def assert_equal(one, other):
    tf.nest.map_structure(lambda a, b: np.testing.assert_array_equal(a, b), one, other)


def test_greedy_tokens_are_the_likeliest_after_the_whole_text_so_far(model):
    found = run(model, PROMPTS, make_settings(NUM_ROWS, max_new_tokens=10, temperature=0.0), end_id=-1)
    for prompt, continuation, log_probability in zip(PROMPTS, rows(found), found.log_probability, strict=True):
        text, expected = list(prompt), 0.0
        for token in continuation:
            assert token == model.logits(text).argmax()
            expected += model.log_probabilities(text)[token]
            text.append(token)
        assert len(continuation) == 10
        np.testing.assert_allclose(log_probability, expected, rtol=1e-5)


def test_a_row_alone_is_the_row_in_a_batch(model):
    settings = mixed_settings()
    together = run(model, PROMPTS, settings)
    for row in range(NUM_ROWS):
        alone = run(model, PROMPTS[row : row + 1], one_row(settings, row))
        assert rows(alone)[0] == rows(together)[row]
        assert alone.finish_reason[0] == together.finish_reason[row]
        np.testing.assert_allclose(alone.log_probability[0], together.log_probability[row], rtol=1e-6)
    order = [4, 0, 6, 2, 5, 1, 3]
    shuffled = run(
        model, [PROMPTS[row] for row in order], tf.nest.map_structure(lambda t: tf.gather(t, order), settings)
    )
    assert rows(shuffled) == [rows(together)[row] for row in order]


@pytest.fixture
def short_stages(monkeypatch):
    monkeypatch.setattr(decoding, "STAGE", 3)


@pytest.mark.parametrize("growth", [None, Growth(axis=1)])
@pytest.mark.parametrize("strides", [[1] * 30, [3] * 10, [1, 5, 2, 30], [0, 30]])
def test_token_by_token_is_all_at_once(model, strides, growth, short_stages):
    settings = mixed_settings()
    stop = build_stop_table([b"\x05", b"\x0b\x0c"], [bytes([token]) for token in range(VOCABULARY)])
    whole = run(model, PROMPTS, settings, stop=stop)
    ids, lengths = padded(PROMPTS)

    @tf.function(reduce_retracing=True)
    def begin(ids, lengths):
        length = first_length(tf.shape(ids)[1], CAPACITY) if growth else CAPACITY
        cache = model.empty_cache(NUM_ROWS, length)
        return start(model.step, ids, lengths, cache, settings, capacity=CAPACITY, end_id=END, stop=stop)

    @tf.function(reduce_retracing=True)
    def more(state, num_steps):
        return advance(model.step, state, settings, num_steps, end_id=END, stop=stop, growth=growth)

    state = begin(ids, lengths)
    for stride in strides:
        shown = rows(state)
        state = more(state, tf.constant(stride))
        assert [row[: len(before)] for row, before in zip(rows(state), shown, strict=True)] == shown
        assert all(len(row) <= len(before) + stride for row, before in zip(rows(state), shown, strict=True))
    assert_equal(collect(state), whole)
    reached = int(tf.reduce_max(state.index))  # the last token of a row is not read
    assert state.cache[0].shape[1] == (-(-reached // 3) * 3 if growth else CAPACITY)
    assert more.experimental_get_tracing_count() <= 2


def test_a_cache_grows_with_the_longest_row_and_no_further_than_it_may_get(model, short_stages):
    lengths_read = []

    def watched(token_ids, cache, index, num_tokens):
        used = int((index + num_tokens).numpy().max())
        lengths_read.append((used, cache[0].shape[1]))
        return model.step(token_ids, cache, index, num_tokens)

    ids, lengths = padded([[5], [7] * 4])
    settings = make_settings(2, max_new_tokens=[14, 1], temperature=0.0)
    cache = model.empty_cache(2, first_length(4, CAPACITY))
    options = {"capacity": CAPACITY, "end_id": -1, "growth": Growth(axis=1)}
    found = generate(watched, ids, lengths, cache, settings, **options)
    assert rows(found) == rows(run(model, [[5], [7] * 4], settings, end_id=-1))
    # The longer prompt stays at its one token, the fifth position; the other row reads 14 in the end.
    assert lengths_read == [(4, 6), *[(max(n, 5), min(max(6, -(-n // 3) * 3), 14)) for n in range(2, 15)]]


def test_eager_and_graph_give_the_same(model):
    settings = mixed_settings()
    ids, lengths = padded(PROMPTS)
    specs = [tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)]

    @tf.function(input_signature=[*specs, tf.nest.map_structure(lambda t: tf.TensorSpec([None], t.dtype), settings)])
    def in_graph(ids, lengths, settings):
        cache = model.empty_cache(tf.shape(ids)[0], CAPACITY)
        return generate(model.step, ids, lengths, cache, settings, capacity=CAPACITY, end_id=END)

    found = in_graph(ids, lengths, settings)
    eager = run(model, PROMPTS, settings)
    assert rows(found) == rows(eager)
    assert_equal(found.finish_reason, eager.finish_reason)


def test_tokens_are_counted_to_the_limit_and_to_the_room_there_is(model):
    prompts = [[5], [7] * 20, [9] * 24, [8, 8]]
    indices = []

    def watched(token_ids, cache, index, num_tokens):
        indices.append((index + num_tokens - 1).numpy().max())
        return model.step(token_ids, cache, index, num_tokens)

    settings = make_settings(4, max_new_tokens=[7, 100, 100, 0], temperature=0.0)
    found = run(model, prompts, settings, end_id=-1, step=watched)
    assert found.lengths.numpy().tolist() == [7, 4, 0, 0]
    assert found.finish_reason.numpy().tolist() == [LENGTH] * 4
    assert found.token_ids.shape == (4, 7)
    assert found.log_probability.numpy()[2:].tolist() == [0.0, 0.0]
    assert max(indices) == CAPACITY - 1
    assert len(indices) == 7  # the prompt and six tokens; the last is not read


def test_no_new_tokens_read_the_prompt_only(model):
    found = run(model, PROMPTS, make_settings(NUM_ROWS, max_new_tokens=0))
    assert found.token_ids.shape == (NUM_ROWS, 0)
    assert found.finish_reason.numpy().tolist() == [LENGTH] * NUM_ROWS


def test_no_rows_give_no_rows(model):
    found = run(model, [], make_settings(0, max_new_tokens=5))
    assert found.token_ids.shape == (0, 0)
    in_graph = tf.function(lambda: run(model, [], make_settings(0, max_new_tokens=5, top_k=3)))()
    assert in_graph.finish_reason.shape == (0,)


def test_an_end_of_text_ends_a_row_and_is_not_part_of_it(model):
    free = run(model, PROMPTS, make_settings(NUM_ROWS, max_new_tokens=10, temperature=0.0), end_id=-1)
    end = rows(free)[0][4]  # what the first row says fifth is made the end of text
    found = run(model, PROMPTS, make_settings(NUM_ROWS, max_new_tokens=10, temperature=0.0), end_id=end)
    ended = 0
    for row, (before, after) in enumerate(zip(rows(free), rows(found), strict=True)):
        if end in before:
            ended += 1
            place = before.index(end)
            assert after == before[:place]
            assert found.finish_reason[row] == END_OF_TEXT
            assert found.token_ids.numpy()[row, place:].tolist() == [end] * (found.token_ids.shape[1] - place)
            text, expected = list(PROMPTS[row]), 0.0
            for token in before[: place + 1]:  # the end of text is part of the probability
                expected += model.log_probabilities(text)[token]
                text.append(token)
            np.testing.assert_allclose(found.log_probability[row], expected, rtol=1e-5)
        else:
            assert after == before
            assert found.finish_reason[row] == LENGTH
    assert ended


def test_an_end_of_text_in_place_of_the_last_token_is_an_end_of_text(model):
    first = int(model.logits([5]).argmax())
    found = run(model, [[5]], make_settings(1, max_new_tokens=1, temperature=0.0), end_id=first)
    assert (found.lengths[0], found.finish_reason[0]) == (0, END_OF_TEXT)


def test_rows_that_have_ended_stay_as_they_are(model):
    settings = mixed_settings()
    ids, lengths = padded(PROMPTS)
    cache = model.empty_cache(NUM_ROWS, CAPACITY)
    state = start(model.step, ids, lengths, cache, settings, capacity=CAPACITY, end_id=END)
    while np.any(state.finish_reason == RUNNING):
        has_ended = state.finish_reason.numpy() != RUNNING
        later = advance(model.step, state, settings, 1, end_id=END)
        for name in set(state._fields) - {"cache", "seen"}:
            before, after = getattr(state, name).numpy(), getattr(later, name).numpy()
            np.testing.assert_array_equal(after[has_ended], before[has_ended], err_msg=name)
        state = later
    assert_equal(advance(model.step, state, settings, 100, end_id=END), state)


def test_the_loop_ends_with_the_last_row(model):
    reads = []

    def counted(*arguments):
        reads.append(1)
        return model.step(*arguments)

    settings = make_settings(NUM_ROWS, max_new_tokens=23, temperature=0.0)
    found = run(model, PROMPTS, settings, end_id=int(model.logits([5]).argmax()), step=counted)
    drawn = found.lengths.numpy() + (found.finish_reason.numpy() == END_OF_TEXT)
    assert len(reads) == drawn.max()


def test_the_repetition_penalty_counts_prompt_and_continuation_and_no_padding(model):
    prompts, penalty = [[5], [7, 8, 9, 10], [3, 3]], 1.7
    found = run(
        model, prompts, make_settings(3, max_new_tokens=12, temperature=0.0, repetition_penalty=penalty), end_id=-1
    )
    for prompt, continuation in zip(prompts, rows(found), strict=True):
        text = list(prompt)
        for token in continuation:
            logits = model.logits(text)
            seen = np.isin(np.arange(VOCABULARY), text)
            penalised = np.where(logits < 0, logits * np.float32(penalty), logits / np.float32(penalty))
            assert token == np.where(seen, penalised, logits).argmax()
            text.append(token)


def test_a_stop_string_ends_a_row_with_its_last_token(model):
    pieces = [bytes([97 + token]) for token in range(VOCABULARY)]
    settings = make_settings(NUM_ROWS, max_new_tokens=10, temperature=0.0)
    free = rows(run(model, PROMPTS, settings, end_id=-1))
    stops = [pieces[free[0][3]] + pieces[free[0][4]], pieces[free[1][9]]]  # one in row 0, one at the limit of row 1
    found = run(model, PROMPTS, settings, end_id=-1, stop=build_stop_table(stops, pieces))
    for row, (before, after) in enumerate(zip(free, rows(found), strict=True)):
        text = b"".join(pieces[token] for token in before)
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        assert after == before[: min(ends, default=10)]
        assert found.finish_reason[row] == (STOP_STRING if ends else LENGTH)
        assert found.cut_bytes[row] == (0 if not ends else max(len(s) for s in stops if text[: min(ends)].endswith(s)))
    assert found.finish_reason.numpy()[:2].tolist() == [STOP_STRING, STOP_STRING]


def test_an_end_of_text_before_the_stop_string_is_complete_wins(model):
    settings = make_settings(1, max_new_tokens=10, temperature=0.0)
    first, second = rows(run(model, [[5]], settings, end_id=-1))[0][:2]
    pieces = [b"" if token == second else b"ab" for token in range(VOCABULARY)]
    stop = build_stop_table([b"abab"], pieces)
    found = run(model, [[5]], settings, end_id=second, stop=stop)
    assert (rows(found)[0], found.finish_reason[0], found.cut_bytes[0]) == ([first], END_OF_TEXT, 0)


def test_seeds_give_other_texts_and_the_same_seed_the_same(model):
    settings = make_settings(8, max_new_tokens=12, seed=[1, 2, 3, 4, 1, 2, 3, 4])
    found = rows(run(model, [[5]] * 8, settings, end_id=-1))
    assert found[:4] == found[4:]
    assert len({tuple(row) for row in found}) == 4


GOLDEN = [
    [12, 16, 20, 5, 5, 12],
    [11, 19, 14, 17, 8, 5, 14, 5, 18, 5, 12, 3, 16, 20, 16, 20, 5, 20, 5, 12, 16],
    [16, 20, 5],
    [],
    [21, 19, 1, 1, 20, 16, 20, 14, 5, 8, 5, 4],
    [20, 5, 12, 16, 20, 5, 21, 11, 19],
    [18],
]


def test_what_is_drawn_is_held_by_golden_numbers(model):
    # Any change of these is a change of what users get for their seeds.
    assert rows(run(model, PROMPTS, mixed_settings(), end_id=-1)) == GOLDEN


def test_finish_reasons_keep_their_numbers():
    assert (decoding.RUNNING, decoding.END_OF_TEXT, decoding.STOP_STRING, decoding.LENGTH) == (0, 1, 2, 3)
