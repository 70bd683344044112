"""The index of variables is read as TensorFlow reads it, and damage is noticed."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.serving.gate.variable_index import read_file_sizes


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """The index of enough variables for several blocks, and the size of the file of their values."""
    folder = tmp_path_factory.mktemp("index")
    module = tf.Module()
    module.weights = [tf.Variable(np.zeros(number, np.float32)) for number in range(300)]
    module.names = [tf.Variable(["a", "bcd" * 100])]
    tf.saved_model.save(module, str(folder))
    [data] = folder.glob("variables/variables.data-*")
    return (folder / "variables/variables.index").read_bytes(), data.stat().st_size


def test_the_last_variable_ends_where_the_file_does(index):
    content, size = index
    assert len(content) > 2 * 4096
    assert read_file_sizes(content) == [size]


def test_a_damaged_index_is_told_wherever_it_is_cut(index):
    content, _ = index
    for length in (0, 5, len(content) // 2, len(content) - 1):
        with pytest.raises(ValueError, match="no footer"):
            read_file_sizes(content[:length])
    with pytest.raises(ValueError, match="cannot be read"):
        read_file_sizes(content[-48:])
