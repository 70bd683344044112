"""The fullest moment of graphs whose tensors can be counted by hand. A tensor of 1,024 float32 is one unit, 4 KiB."""

import pytest
import tensorflow as tf

from aigc_tf.training.planning.liveness import peak_memory, tensor_bytes
from aigc_tf.training.step.traced_step import StepGraph, folded_constants, needed_operations

UNIT = 4096
SQUARE = tf.TensorSpec([32, 32], tf.float32)


def peak(function, *specs):
    """Units at the fullest moment; the arguments themselves are not counted."""
    graph = tf.function(function).get_concrete_function(*specs).graph
    constants = folded_constants(graph)
    needed = needed_operations([tensor.op for tensor in graph.outputs], constants)
    operations = [operation for operation in graph.get_operations() if operation in needed]
    found = peak_memory(StepGraph(operations=operations, fetches=graph.outputs, constants=constants))
    assert sum(found.by_operation.values()) == found.num_bytes
    return found.num_bytes / UNIT


def test_a_product_needs_its_output_and_what_is_still_read():
    assert peak(lambda x: x @ x, SQUARE) == 1
    assert peak(lambda x: (x @ x) @ x, SQUARE) == 2  # the first product is read while the second is written
    assert peak(lambda x: ((x @ x) @ x) @ x, SQUARE) == 2  # the first is gone by then


def test_elementwise_operations_write_over_what_nobody_else_reads():
    assert peak(lambda x: tf.tanh(tf.exp(x @ x)), SQUARE) == 1
    assert peak(lambda x: tf.exp(x), SQUARE) == 1  # an argument is not written over
    assert peak(lambda x: (lambda y: tf.exp(y) * y)(x @ x), SQUARE) == 2  # y is read again


def test_another_type_takes_memory_of_its_own():
    assert peak(lambda x: tf.cast(x @ x, tf.bfloat16), SQUARE) == 1.5
    assert peak(lambda x: tf.cast(x @ x, tf.float32) @ x, SQUARE) == 2  # to its own type it is no copy


def test_reshapes_and_rows_share_and_keep_the_whole_alive():
    assert peak(lambda x: tf.reshape(x @ x, [1024]) * 2.0, SQUARE) == 1
    assert peak(lambda x: tf.unstack(tf.reshape(x @ x, [2, 512]))[0], SQUARE) == 1
    assert peak(lambda x: tf.transpose(x @ x) * 2.0, SQUARE) == 2


def test_a_gradient_keeps_what_its_backward_needs():
    def chain(x, w):
        with tf.GradientTape() as tape:
            tape.watch(w)
            first = tf.tanh(x @ w)
            second = tf.tanh(first @ w)
            loss = tf.reduce_sum(second)
        return tape.gradient(loss, w)

    # Both activations wait for their gradients; with them are alive, when the second product's gradients are made: its
    # own gradient and the two that come of it, of which the weight's waits to be summed.
    assert peak(chain, SQUARE, SQUARE) == pytest.approx(4, abs=0.1)


def test_constants_and_what_follows_from_them_take_nothing():
    assert peak(lambda x: x @ tf.zeros([32, 32]), SQUARE) == 1


def test_random_numbers_of_the_steps_seed_take_memory_as_soon_as_they_can_be_drawn():
    def drawn(x, seed):
        noise = [tf.random.stateless_uniform([32, 32], seed + i) for i in range(3)]
        for one in noise:
            x = x @ one
        return x

    assert peak(drawn, SQUARE, tf.TensorSpec([2], tf.int32)) >= 3


def test_a_tensor_of_unknown_size_has_that_of_the_reshape_behind_it():
    with tf.Graph().as_default():
        axes = tf.compat.v1.placeholder(tf.int32, [None])  # as in the gradient of a sum that was broadcast
        unknown = tf.reduce_sum(tf.compat.v1.placeholder(tf.float32, [8, 1024]), axes)
        tf.reshape(unknown, [1024])
        assert not unknown.shape.is_fully_defined()
        assert tensor_bytes(unknown) == UNIT
