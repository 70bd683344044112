"""Adapters: a few new weights that train while the model's own stay fixed. LoRA, and prefixes for GPT-2.

`add_adapter` adds one to a built model. The model keeps its settings (`model.adapter`), and `describe_adapter` and
`restore_adapter` carry them from process to process with the architecture. An adapter's weights are among the model's
and are recognised by the ends of their paths (`is_adapter_path`). They train; of the other weights only a classifier's
head does.

A prefix is learned keys and values of P positions, in every block, that every position of a text sees. They start from
the keys and values of P tokens of the vocabulary (section 7.4: far better than random numbers) and are trained
directly, not through the network of section 4.3, which would multiply the trained weights and be thrown away
afterwards. The positions of the text do not change.

A saved adapter is `adapter.safetensors` (by variable path, with a classifier's head) and `adapter.json`.
Sources: aigc_tf/models/adapters/low_rank.py; Li and Liang 2021, Prefix-Tuning, sections 4 and 7.4.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import keras_nlp
import numpy as np
import safetensors.numpy
import tensorflow as tf

from aigc_tf import storage
from aigc_tf.config import AdapterConfig
from aigc_tf.errors import InputError
from aigc_tf.models.adapters import low_rank
from aigc_tf.models.building import read_json
from aigc_tf.models.gpt2.networks import Decoder
from aigc_tf.models.weights import match_paths, read_safetensors, weights_by_path, weights_sha256

ADAPTER_FILE, SETTINGS_FILE = "adapter.safetensors", "adapter.json"
DEFAULT_TARGETS = ("*/query/kernel", "*/value/kernel", "*/attention_inputs_kernel")
"""Queries and values, the best use of few weights in Hu et al. 2021, section 7.1. Used as far as a model has them."""
_PREFIX = ("prefix_keys", "prefix_values")
_FIELDS = {"lora": ("kind", "rank", "alpha", "targets"), "prefix": ("kind", "prefix_length")}


def is_adapter_path(path: str) -> bool:
    """Whether a variable of this path belongs to an adapter."""
    return path.endswith((*low_rank.SUFFIXES, *_PREFIX))


def add_adapter(model: keras.Model, config: AdapterConfig, *, seed: int = 0) -> keras.Model:
    """Adds an adapter to a built model; then only the adapter and a classifier's head train.

    Args:
        model: What `build_classifier` or `build_generator` returned, without an adapter.
        config: Its settings. If it is not enabled, the model is returned unchanged.
        seed: Seed of the new weights.
    Returns:
        The model.
    Raises:
        InputError: If the model cannot have it, or the saved adapter to start from does not fit.
    """
    if not config.enabled:
        return model
    if adapter_of(model):
        raise InputError("The model has an adapter already; merge it first, or continue with it.")
    if config.kind == "lora":
        config = _add_low_ranks(model, config, seed)
    else:
        _add_prefix(model, config, seed)
    model.adapter = dataclasses.replace(config, source="")
    kept = base_paths(model)
    for weight in model.weights:
        if weight.path in kept:
            weight.trainable = False
    if config.source:
        load_adapter(model, config.source)
    return model


def adapter_of(model: keras.Model) -> AdapterConfig | None:
    """Returns the settings of a model's adapter."""
    return getattr(model, "adapter", None)


def describe_adapter(model: keras.Model) -> dict[str, Any]:
    """Returns `{"adapter": settings}`, ready for JSON, or nothing for a model without one."""
    config = adapter_of(model)
    if config is None:
        return {}
    values = {name: getattr(config, name) for name in _FIELDS[config.kind]}
    return {"adapter": {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}}


def restore_adapter(model: keras.Model, description: Mapping[str, Any]) -> keras.Model:
    """Adds to a rebuilt model the adapter of its description, if it has one; its weights are loaded afterwards.

    Raises:
        KeyError, TypeError, InputError: If the description is not what `describe_adapter` returned.
    """
    return add_adapter(model, _read_settings(description["adapter"])) if "adapter" in description else model


def merged_weights(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns the weights of the plain model by path, in their order, with LoRA merged into them.

    Raises:
        InputError: If the model has a prefix, which cannot be merged.
    """
    if (config := adapter_of(model)) and config.kind == "prefix":
        raise InputError("A model with a prefix has no weights of a plain GPT-2 that compute the same.")
    added = low_rank.deltas(model)
    weights = {path: value for path, value in weights_by_path(model).items() if not is_adapter_path(path)}
    return weights | {path: weights[path] + delta for path, delta in added.items()}


def base_paths(model: keras.Model) -> set[str]:
    """Returns the paths of the weights that are neither an adapter's nor a classifier's head."""
    body = model.backbone if isinstance(model, keras_nlp.models.TextClassifier) else model
    return {weight.path for weight in body.weights if not is_adapter_path(weight.path)}


def save_adapter(model: keras.Model, folder: str | os.PathLike[str]) -> None:
    """Writes a model's adapter, and a classifier's head with it.

    Args:
        model: With an adapter.
        folder: An existing folder.
    Raises:
        InputError: If the model has no adapter.
    """
    if adapter_of(model) is None:
        raise InputError("The model has no adapter to save; all of its weights were trained.")
    weights = weights_by_path(model)
    base = base_paths(model)
    own = {path: value for path, value in weights.items() if path not in base}
    content = {
        **describe_adapter(model)["adapter"],
        "base_sha256": weights_sha256({path: weights[path] for path in base}),
        "weights_sha256": weights_sha256(own),
    }
    (Path(folder) / ADAPTER_FILE).write_bytes(safetensors.numpy.save(own))
    storage.write_json(Path(folder) / SETTINGS_FILE, content)


def load_adapter(model: keras.Model, folder: str | os.PathLike[str]) -> keras.Model:
    """Adds a saved adapter to a model; if it has an adapter of the same settings, only the weights are loaded.

    Args:
        model: With exactly the base weights that the adapter was trained beside.
        folder: A folder that `save_adapter` wrote.
    Returns:
        The model.
    Raises:
        InputError: If the base or the adapter differs, or the folder is damaged.
    """
    folder = Path(folder)
    content = read_json(folder / SETTINGS_FILE)
    try:
        saved, base_sha256, sha256 = _read_settings(content), content["base_sha256"], content["weights_sha256"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / SETTINGS_FILE} is not what an export writes ({error}).") from error
    weights, base = weights_by_path(model), base_paths(model)
    if weights_sha256({path: weights[path] for path in base}) != base_sha256:
        raise InputError(
            f"The adapter in {folder} was trained beside other weights than this model's; use the model.source that "
            "it was trained with."
        )
    arrays = read_safetensors(folder / ADAPTER_FILE)
    if weights_sha256(arrays) != sha256:
        raise InputError(f"{folder / ADAPTER_FILE} is not what was written beside {SETTINGS_FILE}; copy it again.")
    if adapter_of(model) is None:
        add_adapter(model, saved)
    _check_same(adapter_of(model), saved, folder)
    _assign(model, arrays, folder)
    return model


def _add_low_ranks(model: keras.Model, config: AdapterConfig, seed: int) -> AdapterConfig:
    """Returns the config with its targets, the default ones filled in."""
    body = model.backbone if isinstance(model, keras_nlp.models.TextClassifier) else model
    kernels = {kernel.path: kernel for kernel in low_rank.find_kernels(body)}
    targets = config.targets or tuple(_fitting(DEFAULT_TARGETS, list(kernels)))
    if not targets:
        raise InputError(
            "adapter.targets is empty, and this model has no queries and values by their usual names; name kernels, "
            f"such as {', '.join(list(kernels)[:3])}."
        )
    paths = match_paths(targets, list(kernels), field="adapter.targets")
    for path in paths:
        if config.rank > kernels[path].largest_rank:
            raise InputError(
                f"adapter.rank is {config.rank}, but {path!r} has rank {kernels[path].largest_rank} at most; lower it."
            )
    for path in paths:
        kernels[path].attach(config.rank, config.alpha, seed)
    return dataclasses.replace(config, targets=targets)


def _fitting(patterns: tuple[str, ...], paths: list[str]) -> list[str]:
    return [pattern for pattern in patterns if any(path.endswith(pattern.removeprefix("*")) for path in paths)]


def _add_prefix(model: keras.Model, config: AdapterConfig, seed: int) -> None:
    if not isinstance(model, Decoder):
        raise InputError(
            "adapter.kind 'prefix' puts keys and values into the layers of GPT-2, and this model is not a GPT-2; "
            "use 'lora'."
        )
    length, positions = config.prefix_length, model.sizes["num_positions"]
    if length > positions:
        raise InputError(f"adapter.prefix_length is {length}, but the model has {positions} positions; lower it.")
    ids = np.random.default_rng(seed).integers(0, model.sizes["vocabulary_size"], (1, length)).astype(np.int32)
    count = tf.constant([length], tf.int32)
    _, cache = model.step(tf.constant(ids), model.empty_cache(1, length), tf.zeros_like(count), count)
    for block, read in zip(model.blocks, cache, strict=True):
        _add_prefix_variables(block, read)
    model.prefix_length = length


def _add_prefix_variables(block: Any, read: tuple[tf.Tensor, tf.Tensor]) -> None:
    kernel = block.attention_inputs[0]
    block.prefix = tuple(
        low_rank.add_variable(
            block,
            name,
            tuple(values.shape[1:]),
            beside=kernel,
            initializer=lambda shape, dtype=None, values=values: tf.cast(values[0], tf.float32),
        )
        for name, values in zip(_PREFIX, read, strict=True)
    )


def _read_settings(values: Mapping[str, Any]) -> AdapterConfig:
    kind = values["kind"]
    settings = {name: values[name] for name in _FIELDS[kind]}
    if "targets" in settings:
        settings["targets"] = tuple(settings["targets"])
    return AdapterConfig(enabled=True, **settings)


def _check_same(config: AdapterConfig | None, saved: AdapterConfig, folder: Path) -> None:
    for name in _FIELDS[saved.kind]:
        there, here = getattr(saved, name), getattr(config, name)
        if there != here:
            raise InputError(
                f"The adapter in {folder} has {name} {there!r}, this model's has {here!r}; set adapter.{name} to that."
            )


def _assign(model: keras.Model, arrays: Mapping[str, np.ndarray], folder: Path) -> None:
    base = base_paths(model)
    own = {weight.path: weight for weight in model.weights if weight.path not in base}
    found = {path: tuple(array.shape) for path, array in arrays.items()}
    wanted = {path: tuple(weight.shape) for path, weight in own.items()}
    for path in sorted(found.keys() | wanted.keys()):
        if found.get(path) != wanted.get(path):
            raise InputError(
                f"The adapter in {folder} has {path!r} of shape {found.get(path, 'none')}, this model of shape "
                f"{wanted.get(path, 'none')}; it belongs to another model, or a head of other labels."
            )
    for path, weight in own.items():
        weight.assign(arrays[path])
