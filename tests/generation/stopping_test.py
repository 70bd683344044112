"""A stop string is found wherever the borders of tokens lie, and the text is cut in the same place either way."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.errors import InputError
from aigc_tf.generation.stopping import build_pieces, build_stop_table, cut_at_stop, row_stops

PIECES = [
    b"",
    b"a",
    b"b",
    b"ab",
    b"\n",
    b"\n\n",
    b"x",
    b"</",
    b"s>",
    b"a\n\nUser: b",
    "é".encode()[:1],
    "é".encode()[1:],
]


def table_of(stops, pieces):
    return build_stop_table(stops, pieces)


def row_of(stops, pieces):
    return row_stops(tf.constant([[*stops, b""]]), build_pieces(pieces))


@pytest.fixture(params=[table_of, row_of], ids=["known", "of the row"])
def matcher(request):
    return request.param


def read(matcher, stops, token_ids, pieces=PIECES):
    """Follows one row and returns how many tokens it read, and its text after cutting; None if it never stops."""
    stop = matcher(stops, pieces)
    state, text = stop.first_state(1), b""
    for count, token in enumerate(token_ids, start=1):
        text += pieces[token]
        state, cut = stop.follow(state, tf.constant([token]))
        if cut[0] > 0:
            return count, text[: len(text) - int(cut[0])]
    return None


def spell(*pieces):
    return [PIECES.index(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("stops", "tokens", "expected"),
    [
        ([b"b"], [b"a", b"b", b"x"], (2, b"a")),
        ([b"abx"], [b"a", b"ab", b"x"], (3, b"a")),  # across three tokens, after a false start
        ([b"User"], [b"x", b"a\n\nUser: b"], (2, b"xa\n\n")),  # a token that holds more than it
        ([b"\n\n"], [b"\n", b"x", b"\n", b"\n"], (4, b"\n" + b"x")),
        ([b"\n\n", b"\n"], [b"x", b"\n\n"], (2, b"x")),
        ([b"aab", b"b"], [b"a", b"a", b"b"], (3, b"")),  # both end here: the longest is cut off
        ([b"aabx", b"ab"], [b"a", b"a", b"b", b"x"], (3, b"a")),  # the one that is complete first
        ([b"</s>"], [b"</", b"", b"s>"], (3, b"")),  # a token that spells nothing changes nothing
        (["é".encode()], [b"a", *PIECES[-2:]], (3, b"a")),  # half a character each
        ([b"abab"], [b"ab", b"x", b"ab"], None),
        ([b"ababx"], [b"ab", b"ab", b"ab", b"x"], (4, b"ab")),
    ],
)
def test_a_row_stops_with_the_token_that_completes_a_stop_string(matcher, stops, tokens, expected):
    assert read(matcher, stops, spell(*tokens)) == expected


@pytest.mark.parametrize("seed", range(40))
def test_it_stops_and_cuts_as_a_plain_search_of_the_text_does(matcher, seed):
    rng = np.random.default_rng(seed)

    def words(count, longest):
        return [bytes(rng.choice([97, 98, 255], rng.integers(1, longest + 1)).astype(np.uint8)) for _ in range(count)]

    pieces = [b"", *words(12, 4)]
    stops = words(rng.integers(1, 5), 6)
    tokens = rng.integers(0, len(pieces), 60)
    texts = [b"".join(pieces[token] for token in tokens[:count]) for count in range(61)]
    complete = [count for count, text in enumerate(texts) if any(stop in text for stop in stops)]
    found = read(matcher, stops, tokens, pieces)
    if not complete:
        assert found is None
    else:
        assert found == (complete[0], cut_at_stop(texts[complete[0]], stops))
        assert cut_at_stop(texts[-1], stops) == found[1]  # what comes after it changes nothing


def test_rows_have_states_of_their_own():
    table = build_stop_table([b"ab"], PIECES)
    state, cut = table.follow(tf.zeros([3], tf.int32), tf.constant(spell(b"a", b"b", b"ab")))
    assert cut.numpy().tolist() == [0, 0, 2]
    _, cut = table.follow(state, tf.constant(spell(b"b", b"b", b"x")))
    assert cut.numpy().tolist()[:2] == [2, 0]


def test_each_row_of_a_request_has_its_own_stop_strings_or_none():
    stops = [[b"ab", b""], [b"", b""], [b"b", b"x" * 300], ["é".encode(), b"bx"]]
    stop = row_stops(tf.constant(stops), build_pieces(PIECES))
    state, cuts = stop.first_state(4), []
    for pieces in ([b"a", b"ab", b"ab", PIECES[-2]], [b"b", b"ab", b"a", PIECES[-1]], [b"", b"x", b"", b""]):
        state, cut = stop.follow(state, tf.constant(spell(*pieces)))
        cuts.append(cut.numpy().tolist())
    assert cuts == [[0, 0, 1, 0], [2, 0, 0, 2], [0, 0, 0, 0]]


def test_a_stop_string_is_looked_for_in_a_token_longer_than_itself_and_one_longer_than_all_tokens(matcher):
    pieces = [b"-" * 200 + b"stop" + b"-" * 100, b"st", b"op", b"abc" * 30]
    assert read(matcher, [b"stop"], [1, 0], pieces) == (2, b"st" + b"-" * 200)
    long = b"abc" * 70 + b"st"
    assert read(matcher, [long], [3, 3, 3, 1], pieces) == (4, b"abc" * 20)


def test_without_a_stop_string_in_any_row_nothing_is_compared():
    stop = row_stops(tf.constant([[b"", b""]] * 3), build_pieces(PIECES))
    state, cut = stop.follow(stop.first_state(3), tf.constant(spell(b"ab", b"x", b"")))
    assert (state.numpy().tolist(), cut.numpy().tolist()) == (stop.first_state(3).numpy().tolist(), [0, 0, 0])
    none = row_stops(tf.zeros([0, 2], tf.string), build_pieces(PIECES))
    assert [value.shape[0] for value in none.follow(none.first_state(0), tf.zeros([0], tf.int32))] == [0, 0]


def test_text_without_a_stop_string_is_not_cut():
    assert cut_at_stop(b"abc", [b"d", b"ac"]) == b"abc"
    assert cut_at_stop(b"", [b"d"]) == b""
    assert cut_at_stop(b"abc", []) == b"abc"


def test_tokens_that_do_the_same_share_a_column():
    pieces = [b"%d" % number for number in range(10_000)] + [b"END"]
    table = build_stop_table([b"END"], pieces)
    assert table.next_states.shape == (4, 2)
    assert table.kinds.shape == (10_001,)


def test_no_stop_strings_make_no_table():
    assert build_stop_table([], PIECES) is None


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InputError, match="empty"):
        build_stop_table([b"a", b""], PIECES)


def test_stop_strings_of_a_page_are_refused():
    with pytest.raises(InputError, match="1025 bytes; 1024 is the most"):
        build_stop_table([b"a" * 1025], PIECES)
