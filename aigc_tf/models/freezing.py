"""Freezing by name: which weights of a model do not train."""

from collections.abc import Sequence

import keras

from aigc_tf.errors import InputError
from aigc_tf.models.weights import match_paths


def freeze(model: keras.Model, patterns: Sequence[str]) -> None:
    """Makes the weights whose paths match a pattern untrainable; only the others get gradients and slots.

    Args:
        model: Any model. Weights that do not train already stay so.
        patterns: Globs on whole paths, such as `embeddings/*`; `*` matches slashes too.
    Raises:
        InputError: If a pattern matches no weight, or nothing would be left to train. The model is then unchanged.
    """
    if not patterns:
        return
    frozen = set(match_paths(patterns, [weight.path for weight in model.weights], field="training.optimizer.freeze"))
    if all(weight.path in frozen or not weight.trainable for weight in model.weights):
        raise InputError(
            f"training.optimizer.freeze {', '.join(map(repr, patterns))} leaves no weight to train; remove a pattern."
        )
    for weight in model.weights:
        if weight.path in frozen:
            weight.trainable = False
    for layer in model._flatten_layers(recursive=True):
        # A layer that is frozen as a whole says so: BatchNormalization then computes with its statistics as they are.
        own = layer._trainable_variables + layer._non_trainable_variables
        if own and all(weight.path in frozen for weight in own):
            layer.trainable = False
