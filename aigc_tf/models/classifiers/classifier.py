"""Text classifiers: a KerasNLP backbone, its own classification head, float32 logits.

`build_classifier` starts from random weights, a KerasNLP preset, a Hugging Face folder or a run folder.
`describe_classifier` and `rebuild_classifier` carry an architecture, with an adapter, from one process to the next,
`load_weights_by_path` its weights: variables are known by their path, which is the same in every process.

Every function returns a `keras_nlp.models.TextClassifier` without preprocessor, optimizer or loss. Its inputs are
those of `token_ids`, `segment_ids` and `padding_mask`, each (B, T) int32, that the backbone takes; `model_inputs` picks
them from a batch. Shape letters: B rows, T positions, C outputs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import keras_nlp

from aigc_tf.config import ModelConfig
from aigc_tf.errors import InputError
from aigc_tf.models.adapters.adapters import adapter_of, describe_adapter, merged_weights, restore_adapter
from aigc_tf.models.building import (
    ARCHITECTURE_FILE,
    HUGGING_FACE,
    RUN,
    check_paths,
    check_preset,
    check_room,
    class_on,
    dtype_policy,
    find_folder,
    preset_class,
    read_architecture,
    read_backbone,
    read_folder_config,
    read_run_weights,
    seeded,
    short_reason,
    task_classes,
)
from aigc_tf.models.hugging_face.encoders import read_encoder
from aigc_tf.models.layer_settings import describe_layers, restore_layers
from aigc_tf.models.weights import load_weights_by_path, weights_by_path

__all__ = [
    "ARCHITECTURE_FILE",
    "build_classifier",
    "clone_classifier",
    "describe_classifier",
    "merge_classifier",
    "model_inputs",
    "rebuild_classifier",
]

_HEAD_ARGUMENTS = ("num_classes", "dropout", "hidden_dim")


def build_classifier(
    config: ModelConfig,
    *,
    num_outputs: int,
    vocabulary_size: int,
    max_length: int,
    dtype: str = "float32",
    seed: int = 0,
) -> keras.Model:
    """Builds a classifier whose weights are a function of the config and the seed.

    Args:
        config: Where the backbone's weights start, and the dropout. A `sample:` source must be resolved before.
        num_outputs: Classes, labels, or 1 for regression.
        vocabulary_size: Entries of the tokenizer's vocabulary.
        max_length: Positions of the longest row, special tokens included.
        dtype: One of `building.DTYPES`. Weights and logits are float32 in both.
        seed: Seed of the random weights; the head's are always random.
    Returns:
        A model that gives `(B, C)` float32 logits.
    Raises:
        InputError: If the source is not a readable model, or too small for the vocabulary or the length.
        RunError: If a preset is not on this machine and cannot be fetched.
    """
    policy = dtype_policy(dtype)
    with seeded(seed):
        if config.source:
            backbone = _load_backbone(config.source, policy)
        else:
            backbone = keras_nlp.models.BertBackbone(
                vocabulary_size=vocabulary_size,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                hidden_dim=config.hidden_dim,
                intermediate_dim=config.intermediate_dim,
                dropout=config.dropout,
                max_sequence_length=max_length,
                dtype=policy,
            )
        check_room(
            config.source,
            embedded=backbone.vocabulary_size,
            positions=getattr(backbone, "max_sequence_length", None),  # RoFormer has no end
            vocabulary_size=vocabulary_size,
            max_length=max_length,
        )
        cls = _classifier_class(type(backbone))
        return _attach_head(cls, backbone, num_classes=num_outputs, dropout=config.dropout)


def model_inputs(model: keras.Model, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns that the model takes; some backbones take no `segment_ids`, F-Net takes no `padding_mask`."""
    return {name: batch[name] for name in model.input}


def describe_classifier(model: keras.Model) -> dict[str, Any]:
    """Returns the architecture, ready for JSON: all that `rebuild_classifier` needs, without the model's source.

    Equal architectures have equal descriptions: numbered Keras names and the dtype are left out.
    """
    config, backbone = model.get_config(), model.backbone.get_config()
    return {
        "class": type(model).__name__,
        "head": {name: config[name] for name in _HEAD_ARGUMENTS if name in config},
        "backbone": {name: value for name, value in backbone.items() if name not in ("name", "dtype", "trainable")},
        **describe_layers(model.backbone),
        **describe_adapter(model),
    }


def rebuild_classifier(description: Mapping[str, Any], *, dtype: str = "float32", seed: int = 0) -> keras.Model:
    """Builds the described architecture with random weights.

    Args:
        description: What `describe_classifier` returned.
        dtype: One of `building.DTYPES`, whatever it was before.
        seed: Of the random weights.
    Raises:
        InputError: If the description is not one of this program's.
    """
    classes = {cls.__name__: cls for cls in _classifier_classes()}
    policy = dtype_policy(dtype)
    try:
        cls = classes[description["class"]]
        with seeded(seed):
            backbone = cls.backbone_cls.from_config({**description["backbone"], "dtype": policy})
            restore_layers(backbone, description)
            return restore_adapter(_attach_head(cls, backbone, **description["head"]), description)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The architecture of the model cannot be read ({short_reason(error)}); {ARCHITECTURE_FILE} is damaged "
            "or was written by another version of KerasNLP."
        ) from error


def clone_classifier(model: keras.Model, *, dtype: str) -> keras.Model:
    """Returns the same classifier with the same weights, computing in another dtype, outside any strategy."""
    clone = rebuild_classifier(describe_classifier(model), dtype=dtype)
    load_weights_by_path(clone, weights_by_path(model))
    return clone


def merge_classifier(model: keras.Model, *, dtype: str) -> keras.Model:
    """Returns a clone with its adapter, if it has one, merged into the weights: an ordinary classifier."""
    if adapter_of(model) is None:
        return clone_classifier(model, dtype=dtype)
    description = describe_classifier(model)
    del description["adapter"]
    plain = rebuild_classifier(description, dtype=dtype)
    # By order: without those of the adapter the weights are the plain model's, one by one.
    for weight, value in zip(plain.weights, merged_weights(model).values(), strict=True):
        weight.assign(value)
    return plain


def _classifier_classes() -> list[Any]:
    return task_classes(keras_nlp.models.TextClassifier)


def _classifier_class(backbone_class: type) -> Any:
    return class_on(backbone_class, _classifier_classes(), what="text classifier")


def _attach_head(cls: Any, backbone: keras.Model, **arguments: Any) -> keras.Model:
    # compile=False, or KerasNLP would give the model an optimizer with its own variables.
    model = cls(backbone=backbone, preprocessor=None, compile=False, name="classifier", **arguments)
    model.output_dense.dtype_policy = "float32"  # logits keep the bits that argmax and calibration need
    check_paths(model)
    return model


def _load_backbone(source: str, policy: keras.DTypePolicy) -> keras.Model:
    folder = find_folder(source, keras_nlp.models.TextClassifier.presets, example="bert_base_en_uncased")
    return read_backbone(source, policy) if folder is None else _load_folder(folder, policy)


def _load_folder(folder: Path, policy: keras.DTypePolicy) -> keras.Model:
    kind, config = read_folder_config(folder)
    if kind == RUN:
        model = rebuild_classifier(read_architecture(folder), dtype=policy.name)
        load_weights_by_path(model.backbone, read_run_weights(folder), source=f"the checkpoint of {folder}")
        return model.backbone if adapter_of(model) is None else merge_classifier(model, dtype=policy.name).backbone
    if kind == HUGGING_FACE:
        return read_encoder(folder, config, policy)
    _classifier_class(preset_class(folder, config))
    check_preset(folder)
    return read_backbone(folder, policy)
