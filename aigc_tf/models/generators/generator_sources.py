"""Generators from elsewhere: a preset of KerasNLP, or a Hugging Face folder of GPT-2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import keras_nlp
import numpy as np

from aigc_tf.errors import InputError
from aigc_tf.models.building import (
    check_paths,
    check_preset,
    class_on,
    preset_class,
    read_backbone,
    read_json,
    task_classes,
)
from aigc_tf.models.gpt2 import gpt2_weights
from aigc_tf.models.gpt2.networks import Decoder, PresetModel
from aigc_tf.models.hugging_face.settings import check_network, read_settings
from aigc_tf.models.hugging_face.tensors import Tensors, check_safetensors, open_tensors
from aigc_tf.models.weights import load_weights_by_path, weights_by_path

_INPUTS = {"token_ids", "padding_mask"}


def causal_lm_class(name: str) -> Any:
    """Returns a class of KerasNLP's causal language models, by its name.

    Raises:
        KeyError: If there is none of that name.
    """
    return {cls.__name__: cls for cls in _causal_lm_classes()}[name]


def wrap_backbone(cls: Any, backbone: keras.Model) -> PresetModel:
    """Builds a generator from a backbone.

    Raises:
        InputError: If it needs more than tokens, such as images or a second text.
    """
    if not _INPUTS.issuperset(backbone.input):
        raise InputError(
            f"{cls.__name__} reads {', '.join(sorted(backbone.input))}; a generator reads only tokens; choose "
            "another preset."
        )
    # compile=False, or KerasNLP would give the model an optimizer with its own variables.
    model = PresetModel(cls(backbone=backbone, preprocessor=None, compile=False))
    check_paths(model)
    return model


def read_preset(source: str | Path, policy: keras.DTypePolicy, *, dropout: float) -> keras.Model:
    """Reads a preset of KerasNLP: GPT-2 becomes our network, any other causal language model stays KerasNLP's.

    Args:
        source: A folder, or the name of a preset.
        policy: Of the model's layers.
        dropout: Of GPT-2.
    Raises:
        InputError: If it is not such a model, or damaged.
        RunError: If it cannot be fetched.
    """
    if isinstance(source, Path):
        _causal_lm_of(preset_class(source, read_json(source / "config.json")))
        check_preset(source)
    backbone = read_backbone(source, policy)
    cls = _causal_lm_of(type(backbone))
    if cls is not keras_nlp.models.GPT2CausalLM:
        return wrap_backbone(cls, backbone)
    model = Decoder(
        vocabulary_size=backbone.vocabulary_size,
        num_positions=backbone.max_sequence_length,
        num_layers=backbone.num_layers,
        hidden_dim=backbone.hidden_dim,
        num_heads=backbone.num_heads,
        intermediate_dim=backbone.intermediate_dim,
        dropout=dropout,
        dtype=policy,
    )
    weights = gpt2_weights.from_keras_nlp(weights_by_path(backbone), num_layers=backbone.num_layers)
    load_weights_by_path(model, weights, source=str(source))
    return model


def read_hugging_face(
    folder: Path, config: Mapping[str, Any], policy: keras.DTypePolicy, *, dropout: float
) -> keras.Model:
    """Reads a Hugging Face folder of GPT-2 into our network.

    Args:
        folder: With model.safetensors, whole or in parts.
        config: Its config.json.
        policy: Of the model's layers.
        dropout: Replaces the folder's own.
    Raises:
        InputError: If it is another network, or damaged.
    """
    if config["model_type"] != "gpt2":
        kind = config["model_type"]
        raise InputError(f"{folder} is a Hugging Face model of type {kind!r}; a generator can start from gpt2.")
    check_network(folder, config)
    check_safetensors(folder)
    settings = read_settings(folder, config)
    model = Decoder(
        vocabulary_size=settings["vocab_size"],
        num_positions=settings["max_position_embeddings"],
        num_layers=settings["num_hidden_layers"],
        hidden_dim=settings["hidden_size"],
        num_heads=settings["num_attention_heads"],
        intermediate_dim=settings["n_inner"] or 4 * settings["hidden_size"],
        dropout=dropout,
        dtype=policy,
    )
    with open_tensors(folder) as stored:
        tensors = _read_tensors(folder, stored, num_layers=model.sizes["num_layers"])
    load_weights_by_path(model, tensors, source=str(folder))
    return model


def _read_tensors(folder: Path, stored: Tensors, *, num_layers: int) -> dict[str, np.ndarray]:
    """The weights of our network by path. GPT2LMHeadModel has the prefix `transformer.`, GPT2Model none."""
    in_file = {name.removeprefix("transformer."): name for name in stored}
    names = gpt2_weights.hugging_face_names(num_layers)
    missing = [name for name in names.values() if name not in in_file]
    if missing:
        raise InputError(f"The model in {folder} has no tensor {missing[0]!r}; it is truncated or not a GPT-2.")
    tensors = {path: stored[in_file[name]] for path, name in names.items()}
    head = in_file.get("lm_head.weight")
    if head is not None and not np.array_equal(stored[head], tensors["embeddings/tokens"]):
        raise InputError(
            f"The model in {folder} has an output matrix of its own, lm_head.weight; GPT-2's is that of its embeddings."
        )
    return tensors


def _causal_lm_classes() -> list[Any]:
    # Those that translate read a second text.
    return task_classes(keras_nlp.models.CausalLM, but=keras_nlp.models.Seq2SeqLM)


def _causal_lm_of(backbone_class: type) -> Any:
    return class_on(backbone_class, _causal_lm_classes(), what="causal language model")
