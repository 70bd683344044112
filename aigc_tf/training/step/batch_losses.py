"""The result of a task for a batch: the losses of its rows, and named parts that are recorded beside their mean."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import keras
import tensorflow as tf

Batch = dict[str, tf.Tensor]

MAX_PARTS = 16
"""Largest number of parts. The step sums them in a vector of this size, since a loop over micro-batches, and XLA, must
know its shape before a forward is traced."""
RECORDED_NAMES = (
    "loss",
    "weight",
    "gradient_norm",
    "learning_rate",
    "finite",
    "tokens",
    "useful_share",
    "skipped",
)
"""Names that the loop records of every step as `train/<name>`; a part cannot have them."""


class Losses(NamedTuple):
    """The losses of a micro-batch. The step differentiates the sum of `values * weights`."""

    values: tf.Tensor
    """float32: `(B,)` for examples, `(B, T)` for tokens."""
    weights: tf.Tensor
    """float32, of the same shape; 0 marks padding."""
    parts: Mapping[str, tf.Tensor] = {}
    """Name -> float32 of the same shape. Recorded as its weighted mean over the global batch, like the loss, so it
    does not depend on micro-batches or replicas. Not differentiated."""


LossFunction = Callable[[keras.Model, Batch], Losses]
"""`losses(model, batch)`, traced into the step."""


class PartSums:
    """Sums the parts of batches; their names are known once a forward was traced."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()

    def __call__(self, losses: Losses) -> tf.Tensor:
        """Returns `(MAX_PARTS,)` float32: the weighted sum of each part, in the order of `names`, then zeros.

        Raises:
            ValueError: If a name or a shape does not fit.
        """
        self.names = tuple(losses.parts)
        if len(self.names) > MAX_PARTS:
            raise ValueError(f"A loss has at most {MAX_PARTS} parts, received {len(self.names)}.")
        sums = [_weighted_sum(name, part, losses) for name, part in losses.parts.items()]
        return tf.stack([*sums, *[tf.zeros([])] * (MAX_PARTS - len(sums))])


def _weighted_sum(name: str, part: tf.Tensor, losses: Losses) -> tf.Tensor:
    if name in RECORDED_NAMES:
        raise ValueError(f"A part of the loss is called {name!r}, a name that every step records; rename it.")
    if part.shape.rank != losses.values.shape.rank or not part.shape.is_compatible_with(losses.values.shape):
        raise ValueError(
            f"The part {name!r} of the loss has the shape {part.shape}, but the losses have {losses.values.shape}; "
            "give one number for each loss, for instance by tf.broadcast_to."
        )
    return tf.reduce_sum(tf.cast(part, tf.float32) * losses.weights)
