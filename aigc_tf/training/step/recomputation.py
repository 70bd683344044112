"""Recomputation: blocks of a network keep only their input and are computed again in the backward pass.

The memory for activations inside blocks is then needed for one block at a time; the price is one more forward pass.

Source: Chen et al. 2016, Training deep nets with sublinear memory cost, section 4.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state

_CONTEXT = "current_call_ctx"  # where Keras 3.15 keeps it, in layers/layer.py


@contextlib.contextmanager
def recomputed(blocks: Sequence[keras.layers.Layer]) -> Iterator[None]:
    """Within it, each called block is recomputed in the backward pass, with the same dropout masks.

    Args:
        blocks: Layers whose first argument and first result is the stream, `(B, T, D)`.
    """
    with contextlib.ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_replaced(block, "call", _recomputing(block, block.call)))
        yield


@contextlib.contextmanager
def _call_context(context: Any) -> Iterator[None]:
    """Makes Keras believe that it is inside a model's call; some layers know only from there whether they train."""
    before = global_state.get_global_attribute(_CONTEXT)
    global_state.set_global_attribute(_CONTEXT, context)
    try:
        yield
    finally:
        global_state.set_global_attribute(_CONTEXT, before)


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of an instance within a `with` block."""
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
        context = global_state.get_global_attribute(_CONTEXT)

        def forward_again(parts: list[Any]) -> Any:
            """Calls the block like the network does, which sets up its dtype and whether it trains."""
            with contextlib.ExitStack() as stack:
                for generator, seed, draws in zip(generators, seeds, drawn, strict=True):
                    seed.draws = draws  # so that it draws the masks of the first forward
                    stack.enter_context(_replaced(generator, "next", seed))
                stack.enter_context(_replaced(block, "call", call))
                stack.enter_context(_call_context(context))
                all_args, all_kwargs = tf.nest.pack_sequence_as(given, parts)
                return block(*all_args, **all_kwargs)

        given = ((x, *args), kwargs)
        return _recompute_in_backward(lambda: call(x, *args, **kwargs), forward_again, tf.nest.flatten(given))

    return recomputing_call


def _recompute_in_backward(
    forward: Callable[[], Any], forward_again: Callable[[list[Any]], Any], parts: list[Any]
) -> Any:
    """Returns `forward()`, and keeps only its inputs for the backward pass.

    Args:
        forward: Calls the block.
        forward_again: Calls it with other values of `parts`.
        parts: All inputs of the block; the floating-point tensors get gradients.

    `tf.recompute_grad` is not used: it does not prevent TensorFlow from merging the second forward with the equal
    first.
    """
    structure: Any = None
    places = [place for place, part in enumerate(parts) if tf.is_tensor(part) and part.dtype.is_floating]

    @tf.custom_gradient
    def run(*given: tf.Tensor) -> Any:
        def backward(*upstream: tf.Tensor, variables: Sequence[Any] = ()) -> Any:
            # It must wait for the gradient from above, or graph optimisation would merge it with the first forward.
            with tf.control_dependencies(upstream):
                again = [tf.identity(part) for part in given]
            with tf.GradientTape() as tape:
                tape.watch(again)
                replaced = dict(zip(places, again, strict=True))
                results = _tensors(forward_again([replaced.get(place, part) for place, part in enumerate(parts)]))
            gradients = tape.gradient(
                results,
                [*again, *variables],
                output_gradients=list(upstream),
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            return gradients[: len(again)], gradients[len(again) :]

        nonlocal structure
        structure = forward()
        return _tensors(structure), backward

    results = iter(run(*(parts[place] for place in places)))
    found = [None if part is None else next(results) for part in tf.nest.flatten(structure)]
    return tf.nest.pack_sequence_as(structure, found)


def _tensors(structure: Any) -> list[tf.Tensor]:
    return [part for part in tf.nest.flatten(structure) if part is not None]
