"""Numbers: a cell is one float32."""

import numpy as np
import pytest

from aigc_tf.data.encoders import ENCODERS
from aigc_tf.data.encoders.cells import BrokenCellError
from aigc_tf.data.encoders.numbers import NumberEncoder


def test_a_cell_is_its_number_and_anything_else_is_broken():
    encoder = NumberEncoder("x")
    assert [encoder.encode(cell) for cell in ("1.5", " -2 ", "1e3")] == [1.5, -2, 1000]
    for cell, reason in (
        ("one", "'x' is not a number"),
        ("nan", "'x' is not a finite number"),
        ("1e39", "not a finite"),
    ):
        with pytest.raises(BrokenCellError, match=reason):
            encoder.encode(cell)
    with pytest.raises(BrokenCellError, match="2 values in 'x', where 1 fits"):
        encoder.encode(("1", "2"))


def test_what_is_saved_is_loaded(tmp_path):
    encoder = ENCODERS["number"].build(None, "x")
    encoder.save(tmp_path / "x")
    loaded = ENCODERS["number"].load(tmp_path / "x")
    assert loaded.sha256() == encoder.sha256()
    assert loaded.decode(np.float32(0.25)) == "0.25"


def test_a_decoded_number_is_the_shortest_that_gives_the_same_float32():
    encoder = NumberEncoder("x")
    for cell in ("0.1", "16777217", "1.2345678e-08", "-3.4028235e+38"):
        value = np.float32(encoder.encode(cell))
        assert np.float32(encoder.encode(encoder.decode(value))) == value
    assert encoder.decode(np.float32("0.1")) == "0.1"
