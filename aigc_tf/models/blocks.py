"""The blocks of a network: the repeated layers of one class that hold most of its weights."""

from collections import defaultdict

import keras

from aigc_tf.errors import InputError
from aigc_tf.models.gpt2.networks import Decoder, PresetModel


def repeated_blocks(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the blocks of a classifier or a generator, in their order.

    For a network of KerasNLP: of the classes with at least two layers in its backbone, the one that holds the most
    weights, such as the `TransformerEncoder` of BERT.

    Raises:
        InputError: If no class has two layers.
    """
    if isinstance(model, Decoder):
        return list(model.blocks)
    backbone = model.causal_lm.backbone if isinstance(model, PresetModel) else model.backbone
    groups: dict[type, list[keras.layers.Layer]] = defaultdict(list)
    for layer in backbone.layers:
        groups[type(layer)].append(layer)
    repeated = [group for group in groups.values() if len(group) > 1 and group[0].count_params()]
    if not repeated:
        raise InputError(
            f"training.devices.recompute needs a network of repeated blocks; {type(backbone).__name__} has none "
            "here, so leave "
            "it out."
        )
    return max(repeated, key=lambda group: sum(layer.count_params() for layer in group))
