"""Graph functions that are traced once, even if their callers are traced often."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def traced_once(body: Callable[..., Any], specs: Sequence[Any]) -> Callable[..., Any]:
    """Makes `body` a graph function that is traced at its first call only.

    A plain tf.function is traced again whenever a caller is, and saving traces all signatures again.

    Args:
        body: A function of nested tensors.
        specs: tf.TensorSpecs of its arguments, nested like them.
    """
    function = tf.function(body, autograph=False, input_signature=specs)

    @functools.cache
    def concrete() -> Any:
        with tf.init_scope():  # outside of any graph that is being traced
            return function.get_concrete_function()

    return lambda *arguments: concrete()(*arguments)
