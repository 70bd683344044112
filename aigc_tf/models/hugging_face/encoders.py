"""Encoders of Hugging Face folders as KerasNLP's backbones, both ways: BERT, RoBERTa, XLM-R, DistilBERT and ALBERT.

KerasNLP converts these folders too, but drops settings (`settings.py` has all of them), the token types of RoBERTa, and
models without a pooler. One table of names serves reading and writing, so that a written folder can be read again.
Hugging Face's kernels are (out, in); attention heads are side by side.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import keras_nlp
import numpy as np
from absl import logging

from aigc_tf.errors import InputError
from aigc_tf.models.building import short_reason
from aigc_tf.models.hugging_face.settings import check_network, read_settings
from aigc_tf.models.hugging_face.tensors import check_safetensors, open_tensors
from aigc_tf.models.layer_settings import LayerSettings, set_layers

_BACKBONES = {
    "albert": keras_nlp.models.AlbertBackbone,
    "bert": keras_nlp.models.BertBackbone,
    "distilbert": keras_nlp.models.DistilBertBackbone,
    "roberta": keras_nlp.models.RobertaBackbone,
    "xlm-roberta": keras_nlp.models.XLMRobertaBackbone,
}
ENCODER_TYPES = tuple(_BACKBONES)
"""The values of `model_type` that can be read."""
_ARGUMENTS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_dim": "hidden_size",
    "intermediate_dim": "intermediate_size",
    "embedding_dim": "embedding_size",
    "num_groups": "num_hidden_groups",
    "num_inner_repetitions": "inner_group_num",
}
_WORDS, _POSITIONS = "embeddings.word_embeddings", "embeddings.position_embeddings"
_TYPES = "embeddings.token_type_embeddings"
# Parts of a layer: KerasNLP's name -> Hugging Face's.
_BERT_LAYER = {
    "self_attention_layer/query": "attention.self.query",
    "self_attention_layer/key": "attention.self.key",
    "self_attention_layer/value": "attention.self.value",
    "self_attention_layer/attention_output": "attention.output.dense",
    "self_attention_layer_norm": "attention.output.LayerNorm",
    "feedforward_intermediate_dense": "intermediate.dense",
    "feedforward_output_dense": "output.dense",
    "feedforward_layer_norm": "output.LayerNorm",
}
_DISTIL_BERT_LAYER = {
    "self_attention_layer/query": "attention.q_lin",
    "self_attention_layer/key": "attention.k_lin",
    "self_attention_layer/value": "attention.v_lin",
    "self_attention_layer/attention_output": "attention.out_lin",
    "self_attention_layer_norm": "sa_layer_norm",
    "feedforward_intermediate_dense": "ffn.lin1",
    "feedforward_output_dense": "ffn.lin2",
    "feedforward_layer_norm": "output_layer_norm",
}
_ALBERT_LAYER = {
    "self_attention_layer/query": "attention.query",
    "self_attention_layer/key": "attention.key",
    "self_attention_layer/value": "attention.value",
    "self_attention_layer/attention_output": "attention.dense",
    "self_attention_layer_norm": "attention.LayerNorm",
    "feedforward_intermediate_dense": "ffn",
    "feedforward_output_dense": "ffn_output",
    "feedforward_layer_norm": "full_layer_layer_norm",
}
# The place of a layer, with the numbers of KerasNLP's name for it, and the names of its parts.
_LAYERS = {
    "albert": ("encoder.albert_layer_groups.{}.albert_layers.{}", _ALBERT_LAYER),
    "bert": ("encoder.layer.{}", _BERT_LAYER),
    "distilbert": ("transformer.layer.{}", _DISTIL_BERT_LAYER),
    "roberta": ("encoder.layer.{}", _BERT_LAYER),
    "xlm-roberta": ("encoder.layer.{}", _BERT_LAYER),
}
# Every token has the first type. KerasNLP has no weight for its embedding, so it is added to those of the positions.
_ONE_TYPE = ("roberta", "xlm-roberta")
_POOLERS = {"bert": "pooler.dense", "albert": "pooler"}
_OUTSIDE = {
    "token_embedding": _WORDS,
    "position_embedding": _POSITIONS,
    "segment_embedding": _TYPES,
    "embeddings_layer_norm": "embeddings.LayerNorm",
    "embedding_projection": "encoder.embedding_hidden_mapping_in",
}
_ENDS = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "embeddings": "weight"}


def tensor_names(kind: str, paths: Iterable[str]) -> dict[str, str]:
    """Returns `{variable path: tensor name}` of a backbone's weights, without the prefix of a model with a head.

    Args:
        kind: One of `ENCODER_TYPES`.
        paths: Paths of the weights of KerasNLP's backbone of that kind.
    """
    place, parts = _LAYERS[kind]
    outside = {**_OUTSIDE, "pooled_dense": _POOLERS.get(kind, "")}
    names = {}
    for path in paths:
        owner, _, end = path.rpartition("/")
        name = outside.get(owner.rpartition("/")[2])  # some backbones have one layer for both embeddings
        if name is None:
            layer, _, part = owner.partition("/")
            name = f"{place.format(*re.findall('[0-9]+', layer))}.{parts[part]}"
        names[path] = f"{name}.{_ENDS[end]}"
    return names


def to_tensor(path: str, value: np.ndarray) -> np.ndarray:
    """Returns a backbone's weight as Hugging Face stores it."""
    shape = _tensor_shape(path, value.shape)
    return np.ascontiguousarray(value.reshape(shape[::-1]).T if path.endswith("/kernel") else value.reshape(shape))


def _tensor_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path.endswith("/bias"):
        return (math.prod(shape),)
    if path.endswith("/kernel"):
        num_inputs = len(shape) - 1 if path.endswith("attention_output/kernel") else 1  # (H, E, D), (D, H, E), (I, O)
        return math.prod(shape[num_inputs:]), math.prod(shape[:num_inputs])
    return shape


def read_encoder(folder: Path, config: Mapping[str, Any], policy: keras.DTypePolicy) -> keras.Model:
    """Reads the encoder of a Hugging Face folder. If it has no pooler, the pooler keeps its random weights.

    Args:
        folder: With safetensors files.
        config: Its config.json.
        policy: Of the backbone's layers.
    Raises:
        InputError: If its network cannot be computed here, or it is damaged.
    """
    kind = config["model_type"]
    if kind not in _BACKBONES:
        known = ", ".join(ENCODER_TYPES)
        raise InputError(f"{folder} is a Hugging Face model of type {kind!r}; a classifier can start from {known}.")
    check_network(folder, config)
    check_safetensors(folder)
    settings = read_settings(folder, config)
    backbone = _build(folder, kind, settings, policy)
    with open_tensors(folder) as tensors:
        _load(backbone, folder, kind, settings, tensors)
    return backbone


def _build(folder: Path, kind: str, settings: Mapping[str, Any], policy: keras.DTypePolicy) -> keras.Model:
    dropouts = settings["hidden_dropout_prob"], settings["attention_probs_dropout_prob"]
    arguments = {ours: settings[theirs] for ours, theirs in _ARGUMENTS.items() if theirs in settings}
    arguments["max_sequence_length"] = settings["max_position_embeddings"] - _first_position(settings)
    if "type_vocab_size" in settings:
        arguments["num_segments"] = max(settings["type_vocab_size"], 2)  # the texts of a pair are two segments
    try:
        backbone = _BACKBONES[kind](**arguments, dropout=float(max(dropouts)), dtype=policy)
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"The sizes in {folder / 'config.json'} do not fit {kind} ({short_reason(error)}).") from error
    return set_layers(
        backbone,
        LayerSettings(
            layer_norm_epsilon=settings.get("layer_norm_eps"),
            hidden_dropout=float(dropouts[0]),
            attention_dropout=float(dropouts[1]),
        ),
    )


def _load(
    backbone: keras.Model, folder: Path, kind: str, settings: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    stored = _without_prefix(folder, tensors)
    names = tensor_names(kind, [weight.path for weight in backbone.weights])
    pooler = f"{_POOLERS[kind]}." if kind in _POOLERS else None
    if pooler and not any(name.startswith(pooler) for name in stored):  # masked-language-model training saves none
        logging.warning("The model in %s has no pooler; here it starts from random weights.", folder)
        names = {path: name for path, name in names.items() if not name.startswith(pooler)}
    for weight in backbone.weights:
        path, shape = weight.path, tuple(weight.shape)
        if path not in names:
            continue
        if names[path] not in stored:
            raise InputError(f"The model in {folder} has no tensor {names[path]!r}; it is truncated or not a {kind}.")
        value = tensors[stored[names[path]]]
        if names[path] == f"{_POSITIONS}.weight":
            value = value[_first_position(settings) :]
            if kind in _ONE_TYPE and f"{_TYPES}.weight" in stored:
                value = value + tensors[stored[f"{_TYPES}.weight"]][0]
        if names[path] == f"{_TYPES}.weight" and len(value) == 1:
            value = np.repeat(value, 2, axis=0)  # a network with one type treats both texts of a pair alike
        if value.shape != _tensor_shape(path, shape):
            raise InputError(
                f"The tensor {names[path]!r} of {folder} has shape {value.shape}, but config.json requires "
                f"{_tensor_shape(path, shape)}; the two do not belong together."
            )
        weight.assign((value.T if path.endswith("/kernel") else value).reshape(shape))


def _first_position(settings: Mapping[str, Any]) -> int:
    """RoBERTa's positions are numbered from its padding id plus 1; the rows before are never used."""
    return settings["pad_token_id"] + 1 if "pad_token_id" in settings else 0


def _without_prefix(folder: Path, tensors: Iterable[str]) -> dict[str, str]:
    """Returns `{name in the encoder: name in the file}`: models with a head have a prefix such as `bert.`."""
    words = f"{_WORDS}.weight"
    found = [name for name in tensors if name.endswith(words)]
    if not found:
        raise InputError(f"The model in {folder} has no tensor {words!r}; it is truncated or not an encoder.")
    prefix = min(found, key=len).removesuffix(words)
    # The first BERTs call the scale of a layer norm gamma, and its offset beta.
    old_ends = {"gamma": "weight", "beta": "bias"}
    stored = {}
    for name in tensors:
        owner, _, end = name.removeprefix(prefix).rpartition(".")
        if name.startswith(prefix):
            stored[f"{owner}.{old_ends.get(end, end)}"] = name
    return stored
