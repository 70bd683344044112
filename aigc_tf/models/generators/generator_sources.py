"""Generators of other people: a preset of KerasNLP's, or a Hugging Face folder of GPT-2."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import keras_nlp
import numpy as np
import safetensors

from aigc_tf.errors import InputError
from aigc_tf.models.building import (
    check_paths,
    check_preset,
    check_safetensors,
    preset_class,
    read_backbone,
    read_json,
    short_reason,
)
from aigc_tf.models.gpt2 import gpt2_weights
from aigc_tf.models.gpt2.networks import Decoder, PresetModel
from aigc_tf.models.weights import load_weights_by_path, weights_by_path

_INPUTS = {"token_ids", "padding_mask"}
# All of them the tanh approximation.
_ACTIVATIONS = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
# Settings of a Hugging Face GPT-2 under which it is another network: name -> the value that it must have.
_SETTINGS = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "layer_norm_epsilon": 1e-5,
}
_NUMPY_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def causal_lm_class(name: str) -> Any:
    """Returns a class of KerasNLP's causal language models, by its name.

    Raises:
        KeyError: If there is none of that name.
    """
    return {cls.__name__: cls for cls in _causal_lm_classes()}[name]


def wrap_backbone(cls: Any, backbone: keras.Model) -> PresetModel:
    """Makes a generator of a backbone.

    Raises:
        InputError: If it needs more than tokens, such as images or a second text.
    """
    if not _INPUTS.issuperset(backbone.input):
        raise InputError(
            f"{cls.__name__} reads {', '.join(sorted(backbone.input))}; a generator reads tokens alone, so choose "
            "another preset."
        )
    # compile=False: KerasNLP would give the model an optimizer of its own, with variables of its own.
    model = PresetModel(cls(backbone=backbone, preprocessor=None, compile=False))
    check_paths(model)
    return model


def read_preset(source: str | Path, policy: keras.DTypePolicy, *, dropout: float) -> keras.Model:
    """Reads a preset of KerasNLP's: GPT-2 becomes our network, any other causal language model stays KerasNLP's.

    Args:
        source: A folder, or the name of a preset.
        policy: Of the model's layers.
        dropout: Of GPT-2.
    Raises:
        InputError: If it is no such model, or damaged.
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
        dropout: Whatever the folder's own are.
    Raises:
        InputError: If it is another network, or damaged.
    """
    _check_config(folder, config)
    check_safetensors(folder)
    try:
        width = int(config["n_embd"])
        model = Decoder(
            vocabulary_size=int(config["vocab_size"]),
            num_positions=int(config["n_positions"]),
            num_layers=int(config["n_layer"]),
            hidden_dim=width,
            num_heads=int(config["n_head"]),
            intermediate_dim=int(config.get("n_inner") or 4 * width),
            dropout=dropout,
            dtype=policy,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'} has no sizes of a GPT-2 ({short_reason(error)}).") from error
    tensors = _read_tensors(folder)
    names = gpt2_weights.hugging_face_names(model.sizes["num_layers"])
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise InputError(f"The model in {folder} has no tensor {missing[0]!r}; it is cut off or no GPT-2.")
    head = tensors.get("lm_head.weight")
    if head is not None and not np.array_equal(head, tensors["wte.weight"]):
        raise InputError(
            f"The model in {folder} has an output matrix of its own, lm_head.weight; GPT-2's is that of its embeddings."
        )
    load_weights_by_path(model, {path: tensors[name] for path, name in names.items()}, source=str(folder))
    return model


def _causal_lm_classes() -> list[Any]:
    known: list[Any] = [cls for cls in vars(keras_nlp.models).values() if inspect.isclass(cls)]
    causal, translating = keras_nlp.models.CausalLM, keras_nlp.models.Seq2SeqLM
    known = [cls for cls in known if issubclass(cls, causal) and not issubclass(cls, translating)]
    return [cls for cls in known if cls.backbone_cls is not None]


def _causal_lm_of(backbone_class: type) -> Any:
    for cls in _causal_lm_classes():
        if cls.backbone_cls is backbone_class:
            return cls
    known = ", ".join(sorted({cls.backbone_cls.__name__ for cls in _causal_lm_classes()}))
    raise InputError(f"KerasNLP has no causal language model on {backbone_class.__name__}; it has them on {known}.")


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config["model_type"]
    if kind != "gpt2":
        raise InputError(f"{folder} is a Hugging Face model of type {kind!r}; a generator can start from gpt2.")
    activation = config.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        raise InputError(f"{folder} computes with the activation {activation!r}; our GPT-2 has gelu_new only.")
    for name, value in _SETTINGS.items():
        if config.get(name, value) != value:
            raise InputError(f"{folder} has {name} {config[name]!r}, which is another network; our GPT-2 has {value}.")


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of a folder as float32, without the prefix of GPT2LMHeadModel."""
    index = folder / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if not (folder / files[0]).is_file():
        parts = read_json(index).get("weight_map")
        files = sorted({str(name) for name in parts.values()}) if isinstance(parts, dict) else []
        if not files or any(Path(name).name != name for name in files):
            raise InputError(f"{index} does not name the files of the weights; copy the whole folder again.")
    tensors: dict[str, np.ndarray] = {}
    for name in files:
        try:
            entries = safetensors.deserialize((folder / name).read_bytes())
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"{folder / name} cannot be read ({short_reason(error)}); copy it again.") from error
        for key, entry in entries:
            if not key.endswith((".attn.bias", ".attn.masked_bias")):  # causal masks, which old versions saved
                tensors[key.removeprefix("transformer.")] = _to_array(folder / name, key, entry)
    return tensors


def _to_array(path: Path, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    kind, data = entry["dtype"], entry["data"]
    if kind == "BF16":  # the upper half of a float32
        flat = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in _NUMPY_TYPES:
        flat = np.frombuffer(data, _NUMPY_TYPES[kind]).astype(np.float32)
    else:
        raise InputError(f"The tensor {name!r} of {path} is of type {kind}; weights are F64, F32, F16 or BF16.")
    return flat.reshape(entry["shape"])
