"""The table of ops is that of the libraries, and the libraries are fetched whole or not at all."""

import itertools

import pytest
import tensorflow as tf

from aigc_tf.config import SERVERS
from aigc_tf.errors import InputError
from aigc_tf.serving.gate.server_ops import load_server_ops
from aigc_tf.serving.process.runtimes import fetch_runtime


def test_there_is_a_table_of_every_server_and_newer_ones_have_more():
    tables = [load_server_ops(target) for target in SERVERS]
    for older, newer in itertools.pairwise(tables):
        assert set(older.ops) < set(newer.ops)
        assert older.graph_def_version < newer.graph_def_version
        assert not set(older.lacking) & set(older.ops)
    with pytest.raises(
        InputError, match=r"no table of ops for TensorFlow Serving '2\.18'; there are 2\.19, 2\.20, 2\.21"
    ):
        load_server_ops("2.18")


def test_the_ops_are_those_of_the_tensorflow_that_runs_here():
    server = load_server_ops(tf.__version__.rpartition(".")[0])
    public = {name for name in dir(tf.raw_ops) if not name.startswith("_")}
    assert len(public) > 1000
    assert public <= set(server.ops)


@pytest.mark.parametrize(
    ("target", "tensorflow", "text", "has_trimmer"),
    [("2.19", "2.19.1", "2.12.1", False), ("2.20", "2.20.0", "2.20.0", True), ("2.21", "2.21.0", "2.21.1", True)],
)
def test_a_server_has_the_ops_of_its_own_packages(target, tensorflow, text, has_trimmer):
    server = load_server_ops(target)
    assert (server.versions["tensorflow-cpu"], server.versions["tensorflow-text"]) == (tensorflow, text)
    assert ("TFText>RoundRobinTrim" in server.ops) == has_trimmer
    assert {"MatMul", "FastWordpieceTokenizeWithOffsets", "SentencepieceTokenizeOp", "SimpleMLInferenceOp"} <= set(
        server.ops
    )
    assert server.ops["MatMul"][:3] == ("transpose_a", "transpose_b", "T")
    assert {"PyFunc", "CudnnRNNV3"} <= server.without_cpu_kernel
    assert not {"MatMul", "While", "FastWordpieceTokenizeWithOffsets"} & server.without_cpu_kernel


def test_an_unknown_runtime_is_told():
    with pytest.raises(InputError, match=r"no runtime '2\.11'; there are 2\.12"):
        fetch_runtime("2.11")
