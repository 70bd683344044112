"""Label cells: codes, several labels, numbers, ranges, and what is broken."""

import numpy as np
import pytest

from aigc_tf.config import DataConfig
from aigc_tf.data.encoders.cells import BrokenCellError
from aigc_tf.data.encoders.labels import (
    MAX_FOUND_LABELS,
    LabelEncoder,
    find_look_alikes,
    load_labels,
    show_exactly,
)
from aigc_tf.errors import InputError


def encoder(**fields):
    return LabelEncoder(DataConfig(**fields))


def broken(match, cell, **fields):
    with pytest.raises(BrokenCellError, match=match) as error:
        encoder(**fields).encode(cell)
    return error.value.args


def test_labels_get_codes_as_they_are_found_and_places_as_they_sort():
    found = encoder()
    assert [found.encode(cell) for cell in ("pos", " neg ", "pos", "Mid", ("neg",))] == [0, 1, 0, 2, 1]
    assert found.names == ("pos", "neg", "Mid")
    assert found.positions().tolist() == [2, 1, 0]  # Mid, neg, pos
    assert encoder().positions().shape == (0,)


def test_labels_that_are_all_numbers_are_ordered_as_numbers():
    found = encoder()
    for cell in ("2", "10", "0", "-1", "11", "1e1", "1.5"):
        found.encode(cell)
    assert found.ordered_names == ("-1", "0", "1.5", "2", "10", "1e1", "11")
    assert [found.ordered_names[place] for place in found.positions()] == list(found.names)
    assert found.encode("nan") == 7  # a name, as any other; so all go by their characters
    assert found.ordered_names == tuple(sorted(found.names))


@pytest.mark.parametrize(
    "names",
    [
        ("spam", "Spam", "spam\u200b", "sp\u00adam"),
        ("caf\u00e9", "cafe\u0301", "CAFE\u0301"),
        ("very good", "very  good", "very\u00a0good", "very\tgood"),
        ("0", "0.0", "False", "-0", "0e0", "false"),
        ("1", "1.0", "True", "+1", "\uff11", "01"),
        ("\u2764", "\u2764\ufe0f"),
        ("\uac00", "\u1100\u1161"),
        ("Stra\u00dfe", "STRASSE"),
    ],
)
def test_labels_that_look_alike_are_found_and_shown_apart(names):
    assert find_look_alikes(["other", *names, "another"]) == [names]
    assert len({show_exactly(name) for name in names}) == len(names)


def test_labels_that_differ_do_not_look_alike():
    names = [
        "a",
        "b",
        "1",
        "10",
        "1.5",
        "-1",
        "nan",
        "1_0",
        "yes",
        "very good",
        "verygood",
        "\u597d",
        "\u574f",
        "\u200b",
    ]
    assert find_look_alikes(names) == []
    assert show_exactly("cafe\u0301 \u597d\u200b 'x'") == "\"cafe\\u0301 \u597d\\u200b 'x'\""
    assert show_exactly("caf\u00e9") == "'caf\u00e9'"


def test_labels_that_are_named_are_the_only_ones():
    named = encoder(label_names=("yes", "no"))
    assert [named.encode(cell) for cell in ("no", "yes")] == [1, 0]
    assert named.positions().tolist() == [1, 0]
    assert broken("unknown label", "noo", label_names=("yes", "no"))[1] == "'noo'. Did you mean 'no'?"
    assert broken("unknown label", "\t?", label_names=("yes", "no"))[1] == "'?'. Known: no, yes."
    for name in (" no", "", "no\n"):
        with pytest.raises(InputError, match="white space at its ends"):
            encoder(label_names=("yes", name))


def test_a_single_label_is_one_label():
    broken("empty label", "  ")
    assert broken("2 labels in one row, where 1 fits", ("a", "b"))[1] == "a, b"
    broken("0 labels in one row", ())


def test_too_many_labels_are_numbers_or_text():
    found = encoder(label_column="stars")
    for i in range(MAX_FOUND_LABELS):
        found.encode(str(i))
    with pytest.raises(InputError, match=r"'stars' has more than 1000 different labels, such as '1000'\. .*regression"):
        found.encode("1000")
    assert found.encode("999") == 999
    assert encoder(label_names=tuple(map(str, range(2000)))).encode("1999") == 1999


@pytest.mark.parametrize(
    ("cell", "codes"),
    [
        ("a|c", (0, 2)),
        ("c|a|c", (0, 2)),
        (" b | a |", (0, 1)),
        ("", ()),
        ("[]", ()),
        (' ["c", "b"]', (1, 2)),
        (("c", " b"), (1, 2)),
        ((), ()),
    ],
)
def test_several_labels_are_separated_or_listed(cell, codes):
    assert encoder(problem_type="multi_label", label_names=("a", "b", "c")).encode(cell) == codes


def test_a_broken_list_of_labels_is_a_broken_row():
    multi = dict(problem_type="multi_label")
    assert broken("not valid JSON", '["a",', **multi)[1] == '["a",'
    broken("more than labels", '["a", ["b"]]', **multi)
    broken("more than labels", "[null]", **multi)
    broken("not valid JSON", "[" * 100_000, **multi)
    broken("unknown label", "a|x", **multi, label_names=("a",))
    broken("empty label", ("a", ""), **multi)


def test_numbers_of_a_json_list_are_labels_and_other_separators_work():
    assert encoder(problem_type="multi_label").encode("[3, 1]") == (0, 1)
    assert encoder(problem_type="multi_label", label_separator=", ").encode("a, b") == (0, 1)
    assert encoder(problem_type="multi_label", label_separator="").encode("a|b") == (0,)


def test_numbers_are_finite_float32():
    number = encoder(problem_type="regression")
    assert [number.encode(cell) for cell in ("1.5", " -2 ", "1e3", ("7",))] == [1.5, -2.0, 1000.0, 7.0]
    assert number.encode("3.4028234e38") == 3.4028234e38
    for cell in ("one", "1,5", "", "0x10", "1 2"):
        broken("label is not a number", cell, problem_type="regression")
    for cell in ("nan", "inf", "-Infinity", "1e39", "-1e999", "1_000"):
        broken("label is not a finite number", cell, problem_type="regression")
    assert number.names == ()
    assert number.positions().dtype == np.int64


def test_thresholds_cut_numbers_into_ranges():
    stars = encoder(label_thresholds=(2.0, 3.5), label_names=("low", "mid", "high"))
    assert [stars.encode(cell) for cell in ("-9", "2", "2.01", "3.5", "3.6", "1e30")] == [0, 0, 1, 1, 2, 2]
    assert stars.positions().tolist() == [1, 2, 0]  # high, low, mid
    broken("label is not a number", "high", label_thresholds=(0.0,), label_names=("low", "high"))
    broken("not a finite number", "nan", label_thresholds=(0.0,), label_names=("low", "high"))


def test_numbers_near_a_threshold_are_left_out_to_both_sides_alike():
    near = encoder(label_thresholds=(0.3,), label_margin=0.1, label_names=("low", "high"))
    # In binary 0.3 - 0.2 < 0.1 < 0.4 - 0.3; the cells are decimals.
    assert [near.encode(cell) for cell in ("0.2", "0.21", "0.3", "0.39", "0.4")] == [0, None, None, None, 1]


@pytest.mark.parametrize(
    ("fields", "cells", "values", "shown"),
    [
        ({}, ["pos", "neg", "pos"], [0, 1], ["neg", "pos"]),
        ({"problem_type": "multi_label"}, ["b|a", ""], [[1, 0], [0, 0], [1, 1]], ["a", "none", "a|b"]),
        ({"problem_type": "regression"}, ["0.5"], [np.float32(0.25), -2.0], ["0.25", "-2"]),
        ({"label_thresholds": (0.0,), "label_names": ("low", "high")}, ["1"], [0, 1], ["high", "low"]),
    ],
)
def test_a_saved_encoder_knows_the_labels_in_their_final_order(tmp_path, fields, cells, values, shown):
    first = encoder(**fields)
    codes = [first.encode(cell) for cell in cells]
    first.save(tmp_path / "label")
    loaded = load_labels(tmp_path / "label")
    assert loaded.names == first.ordered_names
    assert (loaded.problem_type, loaded.describe()) == (first.problem_type, first.describe())
    assert loaded.sha256() == first.sha256()
    if first.problem_type == "single_label":
        assert [loaded.encode(cell) for cell in cells] == first.positions()[codes].tolist()
    assert [loaded.decode(np.asarray(value)) for value in values] == shown


def test_an_encoder_that_was_changed_is_refused(tmp_path):
    made = encoder()
    made.encode("pos")
    made.save(tmp_path)
    path = tmp_path / "encoder.json"
    path.write_text(path.read_text().replace("pos", "neg"))
    with pytest.raises(InputError, match="was changed since it was saved"):
        load_labels(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"encoder\.json is missing; prepare the data again"):
        load_labels(tmp_path)
