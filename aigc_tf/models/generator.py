"""Text generators: GPT-2 as our own layers, or another network of KerasNLP's, ids in and float32 logits out.

`build_generator` starts from random weights. `describe_generator` and `rebuild_generator` carry an architecture from
one process to the next, `load_weights_by_path` its weights.

A model takes what `model_inputs` picks from a batch. For our own these are `token_ids` (B, T) int32 and, where
documents are packed, `positions` and `document_ids`. Logits are causal, so padding on the right needs no mask.
Shape letters: B rows, T positions, S positions of a cache, V vocabulary.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from aigc_tf.config import InputError, ModelConfig
from aigc_tf.models.layers import DecoderBlock, Embeddings, FinalNorm, LayerCache, visibility_bias
from aigc_tf.models.sources import ARCHITECTURE_FILE, dtype_policy, seeded, short_reason
from aigc_tf.models.weights import load_weights_by_path, weights_by_path

Cache = tuple[LayerCache, ...]
"""Keys and values of every block. Each tensor has the rows of the batch first."""


class Decoder(keras.Model):
    """GPT-2.

    Args:
        vocabulary_size: V.
        num_positions: Longest row.
        num_layers: Blocks.
        hidden_dim: Width.
        num_heads: Attention heads.
        intermediate_dim: Width of the feed-forward layers.
        dropout: Of embeddings, attention weights and what is added to the stream.
        dtype: A dtype policy; weights are float32 whatever it is.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        num_positions: int,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        dropout: float,
        dtype: Any = None,
    ):
        super().__init__(dtype=dtype, name="generator")
        self.sizes = {
            "vocabulary_size": vocabulary_size,
            "num_positions": num_positions,
            "num_layers": num_layers,
            "hidden_dim": hidden_dim,
            "num_heads": num_heads,
            "intermediate_dim": intermediate_dim,
            "dropout": dropout,
        }
        policy = self.dtype_policy
        self.embeddings = Embeddings(
            vocabulary_size=vocabulary_size,
            num_positions=num_positions,
            hidden_dim=hidden_dim,
            dropout=dropout,
            dtype=policy,
            name="embeddings",
        )
        self.blocks = [
            DecoderBlock(
                hidden_dim=hidden_dim,
                num_heads=num_heads,
                intermediate_dim=intermediate_dim,
                dropout=dropout,
                output_stddev=0.02 / math.sqrt(2 * num_layers),
                dtype=policy,
                name=f"block_{index}",
            )
            for index in range(num_layers)
        ]
        self.final_norm = FinalNorm(hidden_dim=hidden_dim, dtype=policy, name="final_norm")
        self.built = True

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Returns `(B, T, V)` float32 logits of `model_inputs`."""
        token_ids, positions = inputs["token_ids"], inputs.get("positions")
        length = tf.shape(token_ids)[1]
        places = tf.range(length)
        visible = (places <= places[:, None])[None]  # (1, T, T)
        if "document_ids" in inputs:
            visible &= inputs["document_ids"][:, None] == inputs["document_ids"][:, :, None]
        bias = visibility_bias(visible)
        x = self.embeddings(token_ids, positions, training=training)
        for block in self.blocks:
            x, _ = block(x, bias, training=training)
        logits = self.embeddings.logits(tf.reshape(self.final_norm(x), [-1, self.sizes["hidden_dim"]]))
        return tf.reshape(logits, [tf.shape(token_ids)[0], length, self.sizes["vocabulary_size"]])


def build_generator(
    config: ModelConfig, *, vocabulary_size: int, max_length: int, dtype: str = "float32", seed: int = 0
) -> keras.Model:
    """Builds a generator whose weights are a function of the config and the seed.

    Args:
        config: Where the weights start, and the dropout. A `sample:` source must be resolved before.
        vocabulary_size: Entries of the tokenizer's vocabulary.
        max_length: Positions of the longest row. A model with a source keeps all positions that it has.
        dtype: One of `sources.DTYPES`. Weights and logits are float32 in both.
        seed: Of the random weights.
    Returns:
        A model that gives `(B, T, V)` float32 logits.
    """
    sizes: dict[str, Any] = {
        "vocabulary_size": vocabulary_size,
        "num_positions": max_length,
        "num_layers": config.num_layers,
        "hidden_dim": config.hidden_dim,
        "num_heads": config.num_heads,
        "intermediate_dim": config.intermediate_dim,
        "dropout": config.dropout,
    }
    with seeded(seed):
        return Decoder(**sizes, dtype=dtype_policy(dtype))


def model_inputs(model: keras.Model, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the model takes of a batch."""
    return {name: batch[name] for name in ("token_ids", "positions", "document_ids") if name in batch}


def describe_generator(model: keras.Model) -> dict[str, Any]:
    """Returns the architecture, ready for JSON: all that `rebuild_generator` needs, without the model's source."""
    return {"class": "Decoder", "sizes": dict(model.sizes)}


def rebuild_generator(description: Mapping[str, Any], *, dtype: str = "float32", seed: int = 0) -> keras.Model:
    """Builds the described architecture with random weights.

    Args:
        description: What `describe_generator` returned.
        dtype: One of `sources.DTYPES`, whatever it was before.
        seed: Of the random weights.
    Raises:
        InputError: If the description is not one of this program's.
    """
    policy = dtype_policy(dtype)
    try:
        with seeded(seed):
            return Decoder(**description["sizes"], dtype=policy)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The architecture of the model cannot be read ({short_reason(error)}); {ARCHITECTURE_FILE} is damaged "
            "or was written by another version."
        ) from error


def clone_generator(model: keras.Model, *, dtype: str) -> keras.Model:
    """Returns the same generator with the same weights, computing in another dtype, outside of any strategy."""
    clone = rebuild_generator(describe_generator(model), dtype=dtype)
    load_weights_by_path(clone, weights_by_path(model))
    return clone


def is_own(model: keras.Model) -> bool:
    """Whether the model is made of our layers, so that `decoder_step` works."""
    return isinstance(model, Decoder)


def empty_cache(model: keras.Model, batch_size: int | tf.Tensor, length: int | tf.Tensor) -> Cache:
    """Returns a cache for `length` positions of each row, in the dtype that the model computes in now."""
    heads, width = model.sizes["num_heads"], model.sizes["hidden_dim"]
    zeros = tf.zeros([batch_size, heads, length, width // heads], model.embeddings.compute_dtype)
    return tuple((zeros, zeros) for _ in model.blocks)


def decoder_step(
    model: keras.Model, token_ids: tf.Tensor, cache: Cache, index: tf.Tensor, num_tokens: tf.Tensor
) -> tuple[tf.Tensor, Cache]:
    """Reads tokens after those in the cache, and returns the logits of what follows.

    Args:
        model: One of ours.
        token_ids: `(B, T)` int32, padded on the right.
        cache: Of S positions a row.
        index: `(B,)` int32: the position of each row's first token here.
        num_tokens: `(B,)` int32: tokens of each row that are no padding, at least 1.
    Returns:
        `(B, V)` float32 logits after each row's last token, and the cache. What padding wrote into it is written over
        by the tokens that come next, before anything can see it. Tokens beyond S share its last place.
    """
    length = tf.shape(cache[0][0])[2]
    positions = index[:, None] + tf.range(tf.shape(token_ids)[1])  # (B, T)
    positions = tf.minimum(positions, length - 1)
    bias = visibility_bias(tf.range(length) <= positions[:, :, None])
    x = model.embeddings(token_ids, tf.minimum(positions, model.sizes["num_positions"] - 1))
    written = []
    for block, block_cache in zip(model.blocks, cache, strict=True):
        x, block_cache = block(x, bias, block_cache, positions)
        written.append(block_cache)
    last = tf.gather(x, tf.maximum(num_tokens - 1, 0), axis=1, batch_dims=1)  # (B, D)
    return model.embeddings.logits(model.final_norm(last)), tuple(written)


@contextlib.contextmanager
def computing_in(model: keras.Model, dtype: str) -> Iterator[None]:
    """Makes what is called or traced inside compute in another dtype, with the same variables."""
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
