"""Settings of an encoder's layers that KerasNLP's backbones have no argument for: another epsilon, two dropouts.

A backbone of KerasNLP has the epsilon of its paper and one dropout. Models from elsewhere were trained with others.
These are set on the layers after the backbone is built; the backbone keeps them (`layer_settings`), so its description
carries them from process to process.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """None: the value of the backbone's own arguments and class."""

    layer_norm_epsilon: float | None = None
    """Epsilon of every layer norm."""
    hidden_dropout: float | None = None
    """Rate for embeddings and for what a layer adds to its input; at most the backbone's own dropout."""
    attention_dropout: float | None = None
    """Rate for attention weights; at most the backbone's own dropout."""


def settings_of(backbone: keras.Model) -> LayerSettings:
    """Returns the settings of a backbone's layers."""
    return getattr(backbone, "layer_settings", LayerSettings())


def epsilon_of(backbone: keras.Model) -> float:
    """Returns the epsilon of a backbone's layer norms; all have the same."""
    return float(next(layer.epsilon for layer in _layers(backbone, keras.layers.LayerNormalization)))


def set_layers(backbone: keras.Model, settings: LayerSettings) -> keras.Model:
    """Sets the layers of a backbone. A value equal to its own is neither set nor kept.

    Args:
        backbone: One of KerasNLP, with layers of the settings' kinds.
        settings: New values. Dropouts can only be lowered: a layer built without dropout cannot draw.
    Returns:
        The backbone.
    Raises:
        ValueError: If a dropout is above the backbone's own.
    """
    own = {"hidden_dropout": backbone.dropout, "attention_dropout": backbone.dropout}
    own["layer_norm_epsilon"] = epsilon_of(backbone)
    changes = {name: value for name, value in dataclasses.asdict(settings).items() if value not in (None, own[name])}
    if not changes:
        return backbone
    if max(changes.get("hidden_dropout", 0.0), changes.get("attention_dropout", 0.0)) > backbone.dropout:
        raise ValueError(f"A dropout is at most the backbone's own, {backbone.dropout}; received {settings}.")
    for layer in _layers(backbone, keras.layers.LayerNormalization):
        layer.epsilon = changes.get("layer_norm_epsilon", layer.epsilon)
    attentions = _layers(backbone, keras.layers.MultiHeadAttention)
    inner = {id(layer) for attention in attentions for layer in _layers(attention, keras.layers.Dropout)}
    for layer in _layers(backbone, keras.layers.Dropout):
        layer.rate = changes.get("attention_dropout" if id(layer) in inner else "hidden_dropout", layer.rate)
    backbone.layer_settings = LayerSettings(**changes)
    return backbone


def describe_layers(backbone: keras.Model) -> dict[str, Any]:
    """Returns `{"layers": settings}`, ready for JSON, or nothing for a backbone as KerasNLP builds it."""
    values = dataclasses.asdict(settings_of(backbone))
    changes = {name: value for name, value in values.items() if value is not None}
    return {"layers": changes} if changes else {}


def restore_layers(backbone: keras.Model, description: Mapping[str, Any]) -> keras.Model:
    """Sets the layers of a rebuilt backbone from its description.

    Raises:
        TypeError, ValueError: If the description is not what `describe_layers` returned.
    """
    return set_layers(backbone, LayerSettings(**description["layers"])) if "layers" in description else backbone


def _layers(layer: keras.layers.Layer, cls: type) -> list[Any]:
    return [inner for inner in layer._flatten_layers() if isinstance(inner, cls)]
