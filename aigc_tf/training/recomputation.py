"""Recomputation: blocks of a network keep their input alone and are computed again in the backward pass.

Memory for what is inside them is then needed for one block at a time, for a forward pass more.

Source: Chen et al. 2016, Training deep nets with sublinear memory cost, section 4.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf


@contextlib.contextmanager
def recomputed(blocks: Sequence[keras.layers.Layer]) -> Iterator[None]:
    """Makes each block that is called inside recompute itself in the backward pass, with the same dropout masks.

    Args:
        blocks: Layers whose first argument and first result is the stream, `(B, T, D)`.
    """
    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_replaced(block, "call", _recomputing(block, block.call)))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of an instance for the time of a block."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)  # the class has it
        else:
            setattr(owner, name, before)


def _recomputing(block: keras.layers.Layer, call: Callable[..., Any]) -> Callable[..., Any]:
    generators = [generator for layer in block._flatten_layers() for generator in layer._seed_generators]

    def recomputing_call(x: tf.Tensor, *args: Any, **kwargs: Any) -> Any:
        seeds = [generator.next for generator in generators]
        drawn = [seed.draws for seed in seeds]

        def forward_again(x: tf.Tensor) -> Any:
            """Calls the block as from outside, since by now nobody else is inside it: its dtype is set up anew."""
            with contextlib.ExitStack() as stack:
                for generator, seed, draws in zip(generators, seeds, drawn, strict=True):
                    seed.draws = draws  # the masks of the first time
                    stack.enter_context(_replaced(generator, "next", seed))
                stack.enter_context(_replaced(block, "call", call))
                return block(x, *args, **kwargs)

        return _recompute_in_backward(lambda x: call(x, *args, **kwargs), forward_again, x)

    return recomputing_call


def _recompute_in_backward(
    forward: Callable[[tf.Tensor], Any], forward_again: Callable[[tf.Tensor], Any], x: tf.Tensor
) -> Any:
    """Returns `forward(x)`, of which only `x` is kept for the backward pass.

    Not `tf.recompute_grad`: nothing there keeps the second forward from being merged with the first, which it equals.
    """
    structure: Any = None

    @tf.custom_gradient
    def run(x: tf.Tensor) -> Any:
        def backward(*upstream: tf.Tensor, variables: Sequence[Any] = ()) -> Any:
            # Behind what comes from above, or graph optimisation would take it for the forward done already.
            with tf.control_dependencies(upstream):
                again = tf.identity(x)
            with tf.GradientTape() as tape:
                tape.watch(again)
                results = _tensors(forward_again(again))
            gradients = tape.gradient(
                results,
                [again, *variables],
                output_gradients=list(upstream),
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return gradients[0], gradients[1:]

        nonlocal structure
        structure = forward(x)
        return _tensors(structure), backward

    results = iter(run(x))
    parts = [None if part is None else next(results) for part in tf.nest.flatten(structure)]
    return tf.nest.pack_sequence_as(structure, parts)


def _tensors(structure: Any) -> list[tf.Tensor]:
    return [part for part in tf.nest.flatten(structure) if part is not None]
