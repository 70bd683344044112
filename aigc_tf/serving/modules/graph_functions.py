"""Graph functions that other ones call, traced once however often those are."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def traced_once(body: Callable[..., Any], specs: Sequence[Any]) -> Callable[..., Any]:
    """Makes `body` a graph function that is traced when it is first called, and never again.

    A tf.function is traced anew where another one that calls it is, which saving does with all signatures.

    Args:
        body: A function of tensors, in any nesting.
        specs: tf.TensorSpecs of its arguments, nested like them.
    """
    function = tf.function(body, autograph=False, input_signature=specs)

    @functools.cache
    def concrete() -> Any:
        with tf.init_scope():  # of no other graph
            return function.get_concrete_function()

    return lambda *arguments: concrete()(*arguments)
