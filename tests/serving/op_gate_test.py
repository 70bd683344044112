"""What a stock server cannot run is named before anything is published."""

import pytest
import tensorflow as tf

from aigc_tf.config import RunError
from aigc_tf.serving.op_gate import check_ops, graph_ops


def save(function, folder, **options):
    module = tf.Module()
    module.serve = tf.function(function, input_signature=[tf.TensorSpec([None], tf.float32)], **options)
    tf.saved_model.save(module, str(folder), signatures=module.serve)
    return folder


def test_plain_ops_pass_and_those_of_inner_functions_are_found(tmp_path):
    inner = tf.function(lambda x: tf.math.erf(x))
    ops = check_ops(save(lambda x: inner(x) + 1.0, tmp_path))
    assert {"AddV2", "Erf", "Placeholder"} <= set(ops)
    assert ops == graph_ops(tmp_path) == sorted(set(ops))


def test_a_python_op_is_refused(tmp_path):
    save(lambda x: tf.numpy_function(lambda value: value, [x], tf.float32), tmp_path)
    with pytest.raises(RunError, match="PyFunc"):
        check_ops(tmp_path)


def test_what_xla_must_compile_is_refused(tmp_path):
    compiled = tf.function(lambda x: x * 2.0, jit_compile=True)
    save(lambda x: compiled(x), tmp_path)
    with pytest.raises(RunError, match="_XlaMustCompile"):
        check_ops(tmp_path)
