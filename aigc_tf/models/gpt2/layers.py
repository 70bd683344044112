"""The decoder of GPT-2: blocks of causal self-attention. The same code trains, reads packed rows and decodes.

A layer casts its float32 weights to its compute dtype itself. Products use that dtype; the residual stream, norms,
softmax and GELU are always float32, which costs nothing on CPU and keeps small updates.
Shape letters: B rows, T positions of this call, S positions of the keys, D width, H heads, E = D / H.

Source: Radford et al. 2019, section 2.3, and the initialisation of https://github.com/openai/gpt-2.
"""

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

EPSILON = 1e-5
"""Epsilon of every layer norm."""
_HIDDEN = -1e9
"""Score of a key that must not count: its exp is exactly 0, and unlike -inf it makes no NaN in any dtype."""

LayerCache = tuple[tf.Tensor, tf.Tensor]
"""Keys and values of one block, each (B, H, S, E) in the compute dtype."""


class LowRank(NamedTuple):
    """The update of a kernel (I, O): `scale * down @ up`."""

    down: keras.Variable
    """(I, R) float32."""
    up: keras.Variable
    """(R, O) float32."""
    scale: float


def layer_norm(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Normalises the last axis, in float32.

    Args:
        x: `(..., D)` any float.
        scale: `(D,)` float32.
        offset: `(D,)` float32.
    Returns:
        `(..., D)` float32.
    Source: Ba et al. 2016, equation 4.
    """
    x = tf.cast(x, tf.float32)
    centered = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(tf.square(centered), axis=-1, keepdims=True)
    return centered * tf.math.rsqrt(variance + EPSILON) * scale + offset


def gelu(x: tf.Tensor) -> tf.Tensor:
    """Returns GELU by GPT-2's tanh approximation, computed in float32, since bfloat16 is slower on CPU.

    Source: Hendrycks and Gimpel 2016, section 2.
    """
    return tf.cast(tf.nn.gelu(tf.cast(x, tf.float32), approximate=True), x.dtype)


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor) -> tf.Tensor:
    """Sets a share of `x` to 0 and scales the rest up.

    An element takes 16 random bits, so the rate is a multiple of 2**-16. `keras.random.dropout` takes 32, which makes a
    training step on CPU a tenth longer.

    Args:
        x: Any shape.
        rate: In [0, 1).
        seed: `(2,)` integers, of which the lower 31 bits count.
    Source: Srivastava et al. 2014, section 10 (scaled while training).
    """
    threshold = round(rate * 2**16)
    size = tf.size(x)
    seed = tf.bitwise.bitwise_and(tf.cast(seed, tf.int64), 2**31 - 1)  # with more bits XLA would draw other numbers
    bits = tf.random.stateless_uniform([(size + 1) // 2], seed, None, None, tf.uint32)
    draws = tf.reshape(tf.reshape(tf.bitcast(bits, tf.uint16), [-1])[:size], tf.shape(x))
    kept = tf.cast(draws >= tf.constant(threshold, tf.uint16), x.dtype)
    return x * (kept * tf.cast(2**16 / (2**16 - threshold), x.dtype))


def dense(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, low_rank: LowRank | None = None) -> tf.Tensor:
    """Returns `x @ kernel + bias` in the dtype of `x`, by one matrix product; a low rank adds two more."""
    inputs, outputs = kernel.shape
    rows = tf.reshape(x, [-1, inputs])
    product = tf.matmul(rows, tf.cast(kernel, x.dtype))
    if low_rank is not None:
        product += tf.matmul(
            low_rank.scale * tf.matmul(rows, tf.cast(low_rank.down, x.dtype)), tf.cast(low_rank.up, x.dtype)
        )
    flat = tf.nn.bias_add(product, tf.cast(bias, x.dtype))
    return tf.reshape(flat, tf.concat([tf.shape(x)[:-1], [outputs]], axis=0))


def attend(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, bias: tf.Tensor, drop: Any) -> tf.Tensor:
    """Scaled dot-product attention; the softmax is computed in float32.

    Args:
        queries: `(B, H, T, E)`.
        keys: `(B, H, S, E)`.
        values: `(B, H, S, E)`.
        bias: `(1 or B, 1, T, S)` float32, added to the scores.
        drop: Applied to the attention weights.
    Returns:
        `(B, H, T, E)`.
    Source: Vaswani et al. 2017, section 3.2.1.
    """
    queries *= tf.cast(1.0 / math.sqrt(queries.shape[-1]), queries.dtype)
    scores = tf.cast(tf.matmul(queries, keys, transpose_b=True), tf.float32)
    # Not scores + bias: TensorFlow on CPU fuses that sum with a float32 product into an op measured 100 times slower.
    weights = tf.cast(tf.nn.softmax(tf.where(bias < 0.0, bias, scores)), values.dtype)
    return tf.matmul(drop(weights), values)


def visibility_bias(visible: tf.Tensor) -> tf.Tensor:
    """Returns `(B, 1, T, S)` float32 for `(B, T, S)` bool: 0 where a position sees a key."""
    return tf.where(visible, 0.0, _HIDDEN)[:, None]


def write_cache(cache: LayerCache, keys: tf.Tensor, values: tf.Tensor, index: tf.Tensor) -> LayerCache:
    """Returns the cache with new keys and values in it. It does not copy a cache that nothing else holds.

    `tf.tensor_scatter_nd_update` would be one op, but on CPU it always copies: 4 ms more per step at 8 rows, 1024
    positions, 4 layers of width 256.

    Args:
        cache: Keys and values, `(B, H, S, E)` each.
        keys: `(B, H, T, E)`.
        values: `(B, H, T, E)`.
        index: `(B,)` int32: the first position of each row's new entries; `index + T` is at most S.
    """
    batch, heads, length, width = (tf.shape(keys)[axis] for axis in range(4))

    def write(first: tf.Tensor, last: tf.Tensor, cache: LayerCache) -> LayerCache:
        begin, end = [first, 0, index[first], 0], [last, heads, index[first] + length, width]
        return tuple(
            tf.ensure_shape(
                tf.raw_ops.TensorStridedSliceUpdate(
                    input=old, begin=begin, end=end, strides=[1, 1, 1, 1], value=new[first:last]
                ),
                old.shape,
            )
            for old, new in zip(cache, (keys, values), strict=True)
        )

    def write_each() -> LayerCache:
        def write_one(row: tf.Tensor, cache: LayerCache) -> tuple[tf.Tensor, LayerCache]:
            return row + 1, write(row, row + 1, cache)

        return tf.while_loop(lambda row, _: row < batch, write_one, (0, cache), parallel_iterations=1)[1]

    is_one_place = (batch > 0) & tf.reduce_all(index == index[:1])  # without rows there is no first index
    return tf.cond(is_one_place, lambda: write(0, batch, cache), write_each)


class Embeddings(keras.layers.Layer):
    """Token and learned position embeddings; the token table is also the output matrix."""

    def __init__(
        self, *, vocabulary_size: int, num_positions: int, hidden_dim: int, dropout: float, dtype: Any, name: str
    ):
        # Not cast by Keras: it would round the float32 stream to the compute dtype at every layer.
        super().__init__(dtype=dtype, autocast=False, name=name)
        self.num_positions, self.rate = num_positions, dropout
        self.seed_generator = keras.random.SeedGenerator()
        self.tokens = _weight(self, "tokens", [vocabulary_size, hidden_dim], 0.02)
        self.positions = _weight(self, "positions", [num_positions, hidden_dim], 0.02)
        self.built = True  # the variables are there; Keras would call the layer once to find their shapes

    def call(self, token_ids: tf.Tensor, positions: tf.Tensor | None = None, training: bool = False) -> tf.Tensor:
        """Returns `(B, T, D)` float32 for `(B, T)` ids, at `(B, T)` positions, or from position 0 on."""
        if positions is None:
            at = self.positions[: tf.shape(token_ids)[1]]
        else:
            at = tf.gather(self.positions, positions)
        tokens = tf.gather(self.tokens, token_ids)
        # The tables may be stored in a smaller dtype (serving.modules.quantization), hence the casts.
        return _dropout(self, tf.cast(tokens, tf.float32) + tf.cast(at, tf.float32), training)

    def logits(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `(N, V)` float32 logits for `(N, D)`."""
        x = tf.cast(x, self.compute_dtype)
        return tf.cast(tf.matmul(x, tf.cast(self.tokens, x.dtype), transpose_b=True), tf.float32)


class DecoderBlock(keras.layers.Layer):
    """Self-attention and a feed-forward layer; each reads a normalised input and adds to the residual stream."""

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        dropout: float,
        output_stddev: float,
        dtype: Any,
        name: str,
    ):
        super().__init__(dtype=dtype, autocast=False, name=name)  # see Embeddings
        self.num_heads, self.rate = num_heads, dropout
        self.prefix: tuple[keras.Variable, keras.Variable] | None = None  # see aigc_tf.models.adapters.adapters
        self.seed_generator = keras.random.SeedGenerator()
        self.attention_norm = _norm_weights(self, "attention_norm", hidden_dim)
        self.attention_inputs = _dense_weights(self, "attention_inputs", hidden_dim, 3 * hidden_dim, 0.02)
        self.attention_output = _dense_weights(self, "attention_output", hidden_dim, hidden_dim, output_stddev)
        self.feed_forward_norm = _norm_weights(self, "feed_forward_norm", hidden_dim)
        self.feed_forward_input = _dense_weights(self, "feed_forward_input", hidden_dim, intermediate_dim, 0.02)
        self.feed_forward_output = _dense_weights(
            self, "feed_forward_output", intermediate_dim, hidden_dim, output_stddev
        )
        self.built = True

    def call(
        self,
        x: tf.Tensor,
        bias: tf.Tensor,
        cache: LayerCache | None = None,
        index: tf.Tensor | None = None,
        training: bool = False,
    ) -> tuple[tf.Tensor, LayerCache | None]:
        """Returns the stream, and the cache, if there is one, with this call's keys and values.

        Args:
            x: `(B, T, D)` float32: the stream, which every block adds to.
            bias: `(1 or B, 1, T, S)` float32: 0 where a position sees a key.
            cache: Keys and values of S positions, a prefix first. None: the keys are the prefix and those of this call.
            index: `(B,)` int32, with a cache: the first position in it of this call's entries.
            training: Whether to drop out.
        """
        normed = tf.cast(layer_norm(x, *self.attention_norm), self.compute_dtype)
        queries, keys, values = self._split_heads(dense(normed, *self.attention_inputs))
        if cache is not None:
            cache = write_cache(cache, keys, values, index)
            keys, values = cache
        else:
            keys, values = self.behind_prefix(keys, values)
        attended = attend(queries, keys, values, bias, lambda weights: _dropout(self, weights, training))
        attended = tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), tf.shape(x))
        x += tf.cast(_dropout(self, dense(attended, *self.attention_output), training), x.dtype)
        normed = tf.cast(layer_norm(x, *self.feed_forward_norm), self.compute_dtype)
        hidden = gelu(dense(normed, *self.feed_forward_input))
        return x + tf.cast(_dropout(self, dense(hidden, *self.feed_forward_output), training), x.dtype), cache

    def behind_prefix(self, keys: tf.Tensor, values: tf.Tensor) -> LayerCache:
        """Returns keys and values `(B, H, S, E)` with the learned ones of P positions before them, if there are any."""
        if self.prefix is None:
            return keys, values
        first_keys, first_values = (tf.cast(learned, keys.dtype) for learned in self.prefix)  # (H, P, E)
        shape = tf.concat([tf.shape(keys)[:1], tf.shape(first_keys)], axis=0)
        keys = tf.concat([tf.broadcast_to(first_keys, shape), keys], axis=2)
        return keys, tf.concat([tf.broadcast_to(first_values, shape), values], axis=2)

    def _split_heads(self, x: tf.Tensor) -> list[tf.Tensor]:
        """Queries, keys and values, `(B, H, T, E)` each, of `(B, T, 3 D)`."""
        shape = tf.shape(x)
        heads = tf.reshape(x, [shape[0], shape[1], 3, self.num_heads, x.shape[-1] // (3 * self.num_heads)])
        return tf.unstack(tf.transpose(heads, [2, 0, 3, 1, 4]))


class FinalNorm(keras.layers.Layer):
    """The layer norm before the output matrix."""

    def __init__(self, *, hidden_dim: int, dtype: Any, name: str):
        super().__init__(dtype=dtype, autocast=False, name=name)
        self.norm = _norm_weights(self, "norm", hidden_dim)
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `(..., D)` float32."""
        return layer_norm(x, *self.norm)


def _weight(layer: keras.layers.Layer, name: str, shape: list[int], stddev: float) -> keras.Variable:
    initializer = keras.initializers.RandomNormal(stddev=stddev) if stddev else "zeros"
    return layer.add_weight(name=name, shape=shape, initializer=initializer, dtype="float32", autocast=False)


def _dense_weights(layer: keras.layers.Layer, name: str, inputs: int, outputs: int, stddev: float) -> tuple[Any, Any]:
    return _weight(layer, f"{name}_kernel", [inputs, outputs], stddev), _weight(layer, f"{name}_bias", [outputs], 0)


def _norm_weights(layer: keras.layers.Layer, name: str, width: int) -> tuple[Any, Any]:
    scale = layer.add_weight(name=f"{name}_scale", shape=[width], initializer="ones", dtype="float32", autocast=False)
    return scale, _weight(layer, f"{name}_offset", [width], 0)


def _dropout(layer: Any, x: tf.Tensor, training: bool) -> tf.Tensor:
    return dropout(x, layer.rate, layer.seed_generator.next()) if training and layer.rate else x
