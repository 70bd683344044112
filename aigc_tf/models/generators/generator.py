"""Text generators: GPT-2 of our own layers, or another network of KerasNLP; ids in, float32 logits out.

`build_generator` starts from random weights, a KerasNLP preset, a Hugging Face folder of GPT-2 or a run folder.
`describe_generator` and `rebuild_generator` carry an architecture, with an adapter, from one process to the next,
`load_weights_by_path` its weights.

A model takes what `model_inputs` picks from a batch. Our own take `token_ids` (B, T) int32 and, for packed rows,
`positions` and `document_ids`. Logits are causal, so padding on the right needs no mask.
Shape letters: B rows, T positions, S positions of a cache, V vocabulary, P prompt positions, N new tokens.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import keras_nlp
import numpy as np
import tensorflow as tf

from aigc_tf.config import ModelConfig
from aigc_tf.errors import InputError
from aigc_tf.models.adapters.adapters import adapter_of, describe_adapter, merged_weights, restore_adapter
from aigc_tf.models.building import (
    ARCHITECTURE_FILE,
    HUGGING_FACE,
    RUN,
    check_room,
    dtype_policy,
    find_folder,
    other_vocabulary,
    read_architecture,
    read_folder_config,
    read_run_weights,
    seeded,
    short_reason,
)
from aigc_tf.models.generators.generator_sources import causal_lm_class, read_hugging_face, read_preset, wrap_backbone
from aigc_tf.models.gpt2.networks import Cache, Decoder
from aigc_tf.models.weights import load_weights_by_path

__all__ = [
    "Cache",
    "build_generator",
    "cache_positions",
    "clone_generator",
    "computing_in",
    "decoder_logits",
    "decoder_read",
    "decoder_step",
    "describe_generator",
    "empty_cache",
    "is_own",
    "keras_generate",
    "merge_generator",
    "model_inputs",
    "rebuild_generator",
]
_GENERATED_WIDTH = 64
"""Lengths that KerasNLP generates are rounded up to a multiple of this, since each is a compilation."""
_SPARE_IDS = 1024
"""Embeddings that a model may have beyond the tokenizer's ids, since their number is often rounded up."""


def build_generator(
    config: ModelConfig, *, vocabulary_size: int, max_length: int, dtype: str = "float32", seed: int = 0
) -> keras.Model:
    """Builds a generator whose weights are a function of the config and the seed.

    Args:
        config: Where the weights start. A `sample:` source must be resolved before. The dropout is that of GPT-2 from
        any
            source; other networks of KerasNLP keep their own.
        vocabulary_size: Entries of the tokenizer's vocabulary.
        max_length: Positions of the longest row. A model with a source keeps all positions that it has.
        dtype: One of `building.DTYPES`. Weights and logits are float32 in both.
        seed: Seed of the random weights.
    Returns:
        A model that gives `(B, T, V)` float32 logits.
    Raises:
        InputError: If the source is not a readable model, or does not fit the vocabulary or the length.
        RunError: If a preset is not on this machine and cannot be fetched.
    """
    policy = dtype_policy(dtype)
    with seeded(seed):
        if config.source:
            model = _load(config.source, policy, dropout=config.dropout)
            _check_size(model, config.source, vocabulary_size=vocabulary_size, max_length=max_length)
            return model
        return Decoder(
            vocabulary_size=vocabulary_size,
            num_positions=max_length,
            num_layers=config.num_layers,
            hidden_dim=config.hidden_dim,
            num_heads=config.num_heads,
            intermediate_dim=config.intermediate_dim,
            dropout=config.dropout,
            dtype=policy,
        )


def model_inputs(model: keras.Model, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the columns that the model takes. A `padding_mask` that KerasNLP needs may be missing."""
    if is_own(model):
        return {name: batch[name] for name in ("token_ids", "positions", "document_ids") if name in batch}
    inputs = {name: batch[name] for name in model.input_names if name in batch}
    if "padding_mask" in model.input_names and "padding_mask" not in inputs:
        inputs["padding_mask"] = tf.ones_like(batch["token_ids"])
    return inputs


def describe_generator(model: keras.Model) -> dict[str, Any]:
    """Returns the architecture, ready for JSON: all that `rebuild_generator` needs, without the model's source.

    Equal architectures have equal descriptions: numbered Keras names and the dtype are left out.
    """
    if is_own(model):
        return {"class": "Decoder", "sizes": dict(model.sizes), **describe_adapter(model)}
    backbone = model.causal_lm.backbone.get_config()
    return {
        "class": type(model.causal_lm).__name__,
        "backbone": {name: value for name, value in backbone.items() if name not in ("name", "dtype", "trainable")},
        **describe_adapter(model),
    }


def rebuild_generator(description: Mapping[str, Any], *, dtype: str = "float32", seed: int = 0) -> keras.Model:
    """Builds the described architecture with random weights.

    Args:
        description: What `describe_generator` returned.
        dtype: One of `building.DTYPES`, whatever it was before.
        seed: Of the random weights.
    Raises:
        InputError: If the description is not one of this program's.
    """
    policy = dtype_policy(dtype)
    try:
        with seeded(seed):
            if description["class"] == "Decoder":
                return restore_adapter(Decoder(**description["sizes"], dtype=policy), description)
            cls = causal_lm_class(description["class"])
            model = wrap_backbone(cls, cls.backbone_cls.from_config({**description["backbone"], "dtype": policy}))
            return restore_adapter(model, description)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The architecture of the generator cannot be read ({short_reason(error)}); {ARCHITECTURE_FILE} is "
            "damaged, of another task, or was written by another version of KerasNLP."
        ) from error


def clone_generator(model: keras.Model, *, dtype: str) -> keras.Model:
    """Returns the same generator with the same weights, computing in another dtype, outside any strategy."""
    clone = rebuild_generator(describe_generator(model), dtype=dtype)
    # By order, not by path: KerasNLP numbers some layers by how many of them the process has built.
    for ours, theirs in zip(clone.weights, model.weights, strict=True):
        ours.assign(np.asarray(theirs))
    return clone


def merge_generator(model: keras.Model, *, dtype: str) -> keras.Model:
    """Returns a clone with its LoRA, if it has one, merged into the weights; a prefix stays part of the model."""
    adapter = adapter_of(model)
    if adapter is None or adapter.kind == "prefix":
        return clone_generator(model, dtype=dtype)
    description = describe_generator(model)
    del description["adapter"]
    plain = rebuild_generator(description, dtype=dtype)
    # By order, as in `clone_generator`: without those of the adapter the weights are the plain model's, one by one.
    for weight, value in zip(plain.weights, merged_weights(model).values(), strict=True):
        weight.assign(value)
    return plain


def is_own(model: keras.Model) -> bool:
    """Whether the model is built from our layers, so that `decoder_step` works."""
    return isinstance(model, Decoder)


def empty_cache(model: keras.Model, batch_size: int | tf.Tensor, length: int | tf.Tensor) -> Cache:
    """Returns a cache of one of our models, for `length` positions of each row, in its current compute dtype."""
    return model.empty_cache(batch_size, length)


def cache_positions(model: keras.Model) -> tuple[int, int]:
    """Returns the axis of positions in every tensor of a cache, and how many entries come before the first of them."""
    return 2, model.prefix_length


def decoder_step(
    model: keras.Model, token_ids: tf.Tensor, cache: Cache, index: tf.Tensor, num_tokens: tf.Tensor
) -> tuple[tf.Tensor, Cache]:
    """Reads tokens behind those in the cache, and returns the logits of what follows.

    Args:
        model: One of ours.
        token_ids: `(B, T)` int32, padded on the right.
        cache: Of S positions per row, at most the model's.
        index: `(B,)` int32: the position of each row's first token here; `index + T` is at most S.
        num_tokens: `(B,)` int32: tokens of each row without padding, at least 1.
    Returns:
        `(B, V)` float32 logits after each row's last token, and the cache. The entries that padding wrote are
        overwritten by the next tokens before anything can see them.
    """
    return model.step(token_ids, cache, index, num_tokens)


def decoder_read(model: keras.Model, token_ids: tf.Tensor, cache: Cache, index: tf.Tensor) -> tuple[tf.Tensor, Cache]:
    """As `decoder_step`, for logits at any place: returns the input of `decoder_logits`, and the cache.

    Args:
        model: One of ours.
        token_ids: `(B, T)` int32, padded on the right.
        cache: Of S positions per row.
        index: `(B,)` int32: the position of each row's first token here; `index + T` is at most S. Only padding may be
            beyond the model's positions.
    Returns:
        `(B, T, D)` float32, and the cache.
    """
    return model.read(token_ids, cache, index)


def decoder_logits(model: keras.Model, features: tf.Tensor) -> tf.Tensor:
    """Returns `(N, V)` float32 logits of the tokens after `(N, D)` places that `decoder_read` has read."""
    return model.logits(features)


@contextlib.contextmanager
def computing_in(model: keras.Model, dtype: str) -> Iterator[None]:
    """Within it, calls and traces of the model compute in another dtype, with the same variables."""
    policy = dtype_policy(dtype)
    layers = list(model._flatten_layers())
    before = [layer.dtype_policy for layer in layers]
    for layer in layers:
        layer.dtype_policy = policy
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.dtype_policy = own


def keras_generate(
    model: keras.Model,
    prompt_ids: np.ndarray,
    prompt_lengths: np.ndarray,
    *,
    max_new_tokens: int,
    max_length: int,
    end_id: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Continues prompts by KerasNLP's own `generate`, for models that are not ours.

    What it compiles is kept for later calls with the same sampler, and serves all prompts whose length plus N rounds up
    to the same multiple of 64 tokens.

    Args:
        model: A network of KerasNLP.
        prompt_ids: `(B, P)` int32, padded on the right with any ids.
        prompt_lengths: `(B,)` int32, at least 1.
        max_new_tokens: N.
        max_length: At most the model's positions, at least those of the longest prompt and N.
        end_id: The end of text.
        temperature: 0: always the likeliest token; top_k and top_p then have no effect.
        top_k: Draw from that many likeliest tokens. 0: from all.
        top_p: Draw from the fewest likeliest tokens that have this share of the probability.
        seed: Seed of the draws. Unlike in our own decoding, a row's tokens depend on the other rows of the batch.
    Returns:
        `(B, N)` int32 continuations without the end of text, padded with it, and their `(B,)` int32 lengths.
    """
    lengths = np.asarray(prompt_lengths, np.int32)
    longest = int(lengths.max())
    width = min(-(-(longest + max_new_tokens) // _GENERATED_WIDTH) * _GENERATED_WIDTH, max_length)
    is_prompt = np.arange(width) < lengths[:, None]
    # Padding must not be the end of text, which KerasNLP would mistake for a generated one.
    ids = np.full(is_prompt.shape, 0 if end_id else 1, np.int32)
    ids[is_prompt] = np.asarray(prompt_ids)[:, :longest][is_prompt[:, :longest]]
    causal_lm = model.causal_lm
    _set_sampler(model, temperature, top_k=top_k, top_p=top_p)
    if temperature:
        causal_lm.sampler.seed_generator.state.assign([seed, 0])
    found = causal_lm.generate({"token_ids": ids, "padding_mask": is_prompt}, stop_token_ids=(end_id,))["token_ids"]
    rows = [row[length : length + max_new_tokens] for row, length in zip(np.asarray(found), lengths, strict=True)]
    new_ids = np.stack(rows).astype(np.int32)
    is_after_end = np.cumsum(new_ids == end_id, axis=1) > 0
    return np.where(is_after_end, end_id, new_ids), np.count_nonzero(~is_after_end, axis=1).astype(np.int32)


def _set_sampler(model: keras.Model, temperature: float, *, top_k: int, top_p: float) -> None:
    """Does what `compile` would, without an optimizer; does nothing if the sampler is that of the last call."""
    key = (temperature, top_k, top_p, model.dtype_policy.name)
    if model.sampler_key == key:
        return
    if not temperature:
        sampler = keras_nlp.samplers.GreedySampler()
    elif top_p < 1:
        sampler = keras_nlp.samplers.TopPSampler(p=top_p, k=top_k or None, temperature=temperature)
    elif top_k:
        sampler = keras_nlp.samplers.TopKSampler(k=top_k, temperature=temperature)
    else:
        sampler = keras_nlp.samplers.RandomSampler(temperature=temperature)
    model.causal_lm.sampler, model.causal_lm.generate_function = sampler, None
    model.sampler_key = key


def _load(source: str, policy: keras.DTypePolicy, *, dropout: float) -> keras.Model:
    folder = find_folder(source, keras_nlp.models.CausalLM.presets, example="gpt2_base_en")
    if folder is None:
        return read_preset(source, policy, dropout=dropout)
    kind, config = read_folder_config(folder)
    if kind == HUGGING_FACE:
        return read_hugging_face(folder, config, policy, dropout=dropout)
    if kind != RUN:
        return read_preset(folder, policy, dropout=dropout)
    description = read_architecture(folder)
    if isinstance(description.get("sizes"), dict):
        description["sizes"] |= {"dropout": dropout}
    model = rebuild_generator(description, dtype=policy.name)
    load_weights_by_path(model, read_run_weights(folder), source=f"the checkpoint of {folder}")
    adapter = adapter_of(model)
    if adapter is None:
        return model
    if adapter.kind == "prefix":
        raise InputError(
            f"model.source {source!r} is a run with a prefix, which cannot be merged; use the model.source of "
            "that run, and the adapter folder of its export as adapter.source."
        )
    return merge_generator(model, dtype=policy.name)


def _check_size(model: keras.Model, source: str, *, vocabulary_size: int, max_length: int) -> None:
    if is_own(model):
        embedded, positions = model.sizes["vocabulary_size"], model.sizes["num_positions"]
    else:
        backbone = model.causal_lm.backbone
        embedded, positions = backbone.vocabulary_size, getattr(backbone, "max_sequence_length", None)
    check_room(source, embedded=embedded, positions=positions, vocabulary_size=vocabulary_size, max_length=max_length)
    if embedded >= vocabulary_size + _SPARE_IDS:  # what is drawn of ids that the tokenizer lacks could not be read
        raise other_vocabulary(source, embedded=embedded, vocabulary_size=vocabulary_size)
