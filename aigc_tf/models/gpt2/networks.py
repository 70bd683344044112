"""The networks of generators: GPT-2 of our own layers, and any causal language model of KerasNLP.

Shape letters: B rows, T positions, S positions of a cache, V vocabulary, D width, H heads.
"""

import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from aigc_tf.models.gpt2.layers import DecoderBlock, Embeddings, FinalNorm, LayerCache, visibility_bias

Cache = tuple[LayerCache, ...]
"""Keys and values of every block. Each tensor has the rows of the batch first."""


class Decoder(keras.Model):
    """GPT-2.

    Args:
        vocabulary_size: V.
        num_positions: Longest row.
        num_layers: Number of blocks.
        hidden_dim: Width.
        num_heads: Attention heads.
        intermediate_dim: Width of the feed-forward layers.
        dropout: Rate for embeddings, attention weights and what blocks add to the stream.
        dtype: A dtype policy; weights are always float32.
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
        if num_heads < 1 or hidden_dim % num_heads:
            raise ValueError(f"hidden_dim is a multiple of num_heads, received {hidden_dim} and {num_heads}.")
        super().__init__(dtype=dtype, name="generator")
        self.sizes: dict[str, Any] = {
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
                output_stddev=0.02 / math.sqrt(2 * num_layers),  # 2 sums a block: the stream keeps its size
                dtype=policy,
                name=f"block_{index}",
            )
            for index in range(num_layers)
        ]
        self.final_norm = FinalNorm(hidden_dim=hidden_dim, dtype=policy, name="final_norm")
        self.prefix_length = 0  # P, see aigc_tf.models.adapters.adapters
        self.built = True  # so are all layers; nothing is called to find shapes

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Returns `(B, T, V)` float32 logits of `model_inputs`."""
        token_ids, positions = inputs["token_ids"], inputs.get("positions")
        length = tf.shape(token_ids)[1]
        places = tf.range(length)
        visible = (places <= places[:, None])[None]  # (1, T, T)
        if "document_ids" in inputs:
            visible &= inputs["document_ids"][:, None] == inputs["document_ids"][:, :, None]
        if self.prefix_length:
            visible = tf.pad(visible, [[0, 0], [0, 0], [self.prefix_length, 0]], constant_values=True)  # (..., P + T)
        bias = visibility_bias(visible)
        x = self.embeddings(token_ids, positions, training=training)
        for block in self.blocks:
            x, _ = block(x, bias, training=training)
        logits = self.logits(tf.reshape(x, [-1, self.sizes["hidden_dim"]]))
        return tf.reshape(logits, [tf.shape(token_ids)[0], length, self.sizes["vocabulary_size"]])

    def empty_cache(self, batch_size: int | tf.Tensor, length: int | tf.Tensor) -> Cache:
        """Returns zeros for `length` positions of each row, in the dtype that the model computes in now.

        A prefix comes before them, so a decoding step reads it like tokens.
        """
        heads, width = self.sizes["num_heads"], self.sizes["hidden_dim"]
        zeros = tf.zeros([batch_size, heads, length, width // heads], self.embeddings.compute_dtype)
        return tuple(block.behind_prefix(zeros, zeros) for block in self.blocks)

    def step(
        self, token_ids: tf.Tensor, cache: Cache, index: tf.Tensor, num_tokens: tf.Tensor
    ) -> tuple[tf.Tensor, Cache]:
        """Reads tokens behind those in the cache; see `generator.decoder_step`."""
        x, cache = self.read(token_ids, cache, index)
        return self.logits(tf.gather(x, num_tokens - 1, axis=1, batch_dims=1)), cache

    def read(self, token_ids: tf.Tensor, cache: Cache, index: tf.Tensor) -> tuple[tf.Tensor, Cache]:
        """Reads tokens behind those in the cache; see `generator.decoder_read`."""
        positions = index[:, None] + tf.range(tf.shape(token_ids)[1])  # (B, T)
        first = self.prefix_length  # the first place in the cache that belongs to a token
        bias = visibility_bias(tf.range(tf.shape(cache[0][0])[2]) <= first + positions[:, :, None])
        x = self.embeddings(token_ids, tf.minimum(positions, self.sizes["num_positions"] - 1))  # padding may go beyond
        written = []
        for block, block_cache in zip(self.blocks, cache, strict=True):
            x, block_cache = block(x, bias, block_cache, first + index)
            written.append(block_cache)
        return x, tuple(written)

    def logits(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `(N, V)` float32 logits for `(N, D)`."""
        return self.embeddings.logits(self.final_norm(x))


class PresetModel(keras.Model):
    """A causal language model of KerasNLP, with float32 logits.

    Args:
        causal_lm: Without preprocessor.
    """

    def __init__(self, causal_lm: Any):
        super().__init__(name="generator", dtype=causal_lm.backbone.dtype_policy)
        self.causal_lm = causal_lm
        self.input_names = tuple(causal_lm.backbone.input)
        self.sampler_key: tuple[Any, ...] | None = None
        self.built = True

    def call(self, inputs: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Returns `(B, T, V)` float32 logits of `model_inputs`."""
        return tf.cast(self.causal_lm(inputs, training=training), tf.float32)
