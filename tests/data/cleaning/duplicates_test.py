"""Duplicates by hand: which one stays, what two labels do, how much memory it takes."""

import tracemalloc

import numpy as np
import pytest

from aigc_tf.data.cleaning.duplicates import DUPLICATE, KEPT, TWO_LABELS, DuplicateFinder, text_key


def judge(*examples):
    """Judges examples `(text, label)` or `(text, label, split)`; a text may be a tuple."""
    finder = DuplicateFinder()
    for text, label, *split in examples:
        texts = text if isinstance(text, tuple) else (text,)
        finder.add(tuple(part.encode() for part in texts), (label,), *(split or ("train",)))
    return finder.verdicts().tolist()


def test_the_first_of_equal_texts_stays():
    assert judge(("b", 0), ("a", 1), ("b", 0), ("a", 1), ("c", 0), ("b", 0)) == [
        KEPT,
        KEPT,
        DUPLICATE,
        DUPLICATE,
        KEPT,
        DUPLICATE,
    ]


def test_a_text_with_two_labels_goes_with_all_its_copies():
    assert judge(("a", 0), ("b", 0), ("a", 1), ("a", 0)) == [TWO_LABELS, KEPT, TWO_LABELS, TWO_LABELS]
    assert judge(("a", 0, "test"), ("a", 1, "train")) == [TWO_LABELS, TWO_LABELS]


@pytest.mark.parametrize(("one", "other"), [((0, 2), (0, 1)), ((), (0,)), (0.5, 0.25), (1, 2)])
def test_labels_of_every_problem_are_compared(one, other):
    assert judge(("a", one), ("a", one)) == [KEPT, DUPLICATE]
    assert judge(("a", one), ("a", other)) == [TWO_LABELS, TWO_LABELS]


def test_test_wins_over_validation_and_validation_over_train():
    both = [("a", 0, "train"), ("a", 0, "validation"), ("b", 0, "train"), ("b", 0, "test"), ("b", 0, "validation")]
    assert judge(*both) == [DUPLICATE, KEPT, DUPLICATE, KEPT, DUPLICATE]
    assert judge(("a", 0, "test"), ("a", 0, "test"), ("a", 0, "train")) == [KEPT, DUPLICATE, DUPLICATE]


def test_a_pair_is_equal_only_as_a_whole():
    assert judge((("a", "b"), 0), (("a", "c"), 0), (("b", "a"), 1), (("a", "b"), 0)) == [KEPT, KEPT, KEPT, DUPLICATE]
    assert judge((("a\0b", "c"), 0), (("a", "b\0c"), 0), (("ab", "c"), 0), (("a", "bc"), 0)) == [KEPT] * 4


def test_texts_that_look_alike_are_not_equal():
    assert judge(("a", 0), ("a ", 0), ("A", 0), ("", 0), ("\0", 0), ("é", 0), ("e\u0301", 0), ("a\n", 0)) == [KEPT] * 8


def test_nothing_gives_nothing():
    assert judge() == []


def test_a_key_does_not_change_over_time():
    assert text_key((b"a",)).hex() == "27c35e6e9373877f29e562464e46497e"


def test_a_brute_force_search_agrees():
    generator = np.random.default_rng(0)
    splits = ("train", "validation", "test")
    examples = [(f"text {generator.integers(40)}", int(generator.random() < 0.1), splits[i % 3]) for i in range(300)]
    expected = []
    for i, (text, _, split) in enumerate(examples):
        same = [(splits[::-1].index(other[2]), j) for j, other in enumerate(examples) if other[0] == text]
        if len({label for other, label, _ in examples if other == text}) == 2:
            expected.append(TWO_LABELS)
        else:
            expected.append(KEPT if min(same) == (splits[::-1].index(split), i) else DUPLICATE)
    assert judge(*examples) == expected
    assert set(expected) == {KEPT, DUPLICATE, TWO_LABELS}


def test_a_text_takes_few_bytes_however_long_it_is():
    number = 20_000
    text = b"x" * 1_000
    tracemalloc.start()
    finder = DuplicateFinder()
    for i in range(number):
        finder.add((text + str(i).encode(),), (0,), "train")
    held = tracemalloc.get_traced_memory()[0]
    verdicts = finder.verdicts()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(verdicts) == number
    assert held < 32 * number
    assert peak < 100 * number
