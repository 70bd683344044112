"""The next token of each row: logits and the row's own settings in, a token out.

What a row draws depends only on its logits, its settings, its seed and its number of tokens: not on its neighbours in
the batch, nor on earlier draws. The random number is a hash, so no state is carried and every process draws the same.
Probabilities are computed as whole numbers, with `_ONE` for the likeliest token, so their sums are exact in any order
in which a device adds.

Shape letters: B rows, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from aigc_tf.errors import InputError

# Weights are whole numbers up to 2**32 in float64. Sums are exact up to 2**53, so for up to 2**21 tokens.
_ONE = 2.0**32
# exp differs in the last bit between full SIMD vectors and the rest at the end of an array, and which elements are in
# the rest depends on the other rows. If the row's length is a multiple of this, there is no rest.
_LANES = 64
_COLDEST = 1e-30  # lower temperatures give the same result, and some devices flush numbers below 1.2e-38 to 0
_FARTHEST = 0x7F800000  # bits of infinity, the largest non-negative float

_SHORT_LIST = 256  # tokens that top-k and top-p examine first
_ALL = np.inf

_GAMMA = np.uint64(0x9E3779B97F4A7C15).view(np.int64)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9).view(np.int64)
_MIX_2 = np.uint64(0x94D049BB133111EB).view(np.int64)


class Settings(NamedTuple):
    """How each row is continued; all tensors are `(B,)`. docs/generate.md defines the settings."""

    max_new_tokens: tf.Tensor
    """int32, at least 0."""
    temperature: tf.Tensor
    """float32, divides the logits. 0: always the likeliest token."""
    top_k: tf.Tensor
    """int32. 0: off."""
    top_p: tf.Tensor
    """float32 in (0, 1]. 1: off."""
    min_p: tf.Tensor
    """float32 in [0, 1]. 0: off."""
    repetition_penalty: tf.Tensor
    """float32, greater than 0. 1: off."""
    seed: tf.Tensor
    """int64, any value."""


_DTYPES = Settings(tf.int32, tf.float32, tf.int32, tf.float32, tf.float32, tf.float32, tf.int64)


def _is_count(value: Any) -> Any:
    return (value >= 0) & (value < 2**31) & (value % 1 == 0)


# The comparisons are written so that NaN fails all of them.
_RULES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "max_new_tokens": (_is_count, "a whole number from 0 to 2147483647"),
    "temperature": (lambda value: (value >= 0) & (value <= 1000), "from 0 (always the likeliest token) to 1000"),
    "top_k": (_is_count, "a whole number from 0 (off) to 2147483647"),
    "top_p": (lambda value: (value > 0) & (value <= 1), "greater than 0 and at most 1 (off)"),
    "min_p": (lambda value: (value >= 0) & (value <= 1), "from 0 (off) to 1"),
    "repetition_penalty": (lambda value: (value >= 0.01) & (value <= 100), "from 0.01 to 100, where 1 is off"),
}


def make_settings(
    batch_size: int | tf.Tensor,
    *,
    max_new_tokens: Any,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    repetition_penalty: Any = 1.0,
    seed: Any = 0,
) -> Settings:
    """Makes settings from one value for all rows, or from `(B,)` values, one per row.

    One seed gives row i the seed `seed + i`, so that rows with the same prompt differ.

    Args:
        batch_size: B.
        max_new_tokens: This and the others: a number, an array or a tensor. Tensors of a graph cannot be checked.
    Raises:
        InputError: If a value does not fit.
    """
    given = Settings(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    tensors = {}
    for name, value, dtype in zip(Settings._fields, given, _DTYPES, strict=True):
        if name in _RULES and not tf.is_symbolic_tensor(value):
            fits, text = _RULES[name]
            values = np.asarray(value)
            if not np.all(fits(values)):
                wrong = values[~fits(values)].flat[0]
                raise InputError(f"{name} is {wrong}; it must be {text}.")
        tensor = tf.cast(tf.convert_to_tensor(value), dtype)
        if name == "seed" and tensor.shape.rank == 0:
            tensor += tf.range(tf.cast(batch_size, tf.int64), dtype=tf.int64)
        tensors[name] = tensor + tf.zeros([batch_size], dtype)
    return Settings(**tensors)


def sample(
    logits: tf.Tensor, settings: Settings, num_generated: tf.Tensor, seen: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Chooses the next token of each row.

    In this order: repetition penalty on the logits; temperature; top-k; top-p of what remains; min-p of what remains;
    one draw. With temperature 0: repetition penalty, then the likeliest token, of equals the lowest id. NaN and minus
    infinity are never chosen, and plus infinity always is; a row without any other logit gets token 0.

    Args:
        logits: `(B, V)` float32, V static and at most 2**21.
        settings: Of B rows, in the ranges of docs/generate.md.
        num_generated: `(B,)` int32, tokens that the row already has; it selects the row's next random number.
        seen: `(B, V)` bool, tokens of the prompt and the continuation, for the repetition penalty.
    Returns:
        `(B,)` int32 token, and `(B,)` float32 natural logarithm of its probability under the model, that is, before
        penalty, temperature and cuts. It is NaN if the row's logits contain NaN or plus infinity, or only minus
        infinity.
    """
    penalised = tf.cond(
        tf.reduce_any(settings.repetition_penalty != 1.0),
        lambda: _penalise(logits, settings.repetition_penalty, seen),
        lambda: logits,
    )
    finite = tf.where(tf.math.is_nan(penalised), -np.inf, penalised)
    finite = tf.clip_by_value(finite, tf.float32.min, tf.float32.max)
    likeliest = tf.argmax(finite, axis=-1, output_type=tf.int32)  # argmax takes the first of equals
    is_drawn = settings.temperature > 0.0
    token = tf.cond(
        tf.reduce_any(is_drawn),
        lambda: tf.where(
            is_drawn, draw(token_weights(finite, settings), uniform(settings.seed, num_generated)), likeliest
        ),
        lambda: likeliest,
    )
    return token, log_probability(logits, token)


def token_weights(logits: tf.Tensor, settings: Settings) -> tf.Tensor:
    """Returns weights proportional to each token's chance to be drawn, after temperature, top-k, top-p and min-p.

    Args:
        logits: `(B, V)` float32, finite; the lowest finite number stands for minus infinity.
        settings: Of B rows.
    Returns:
        `(B, V)` float64 whole numbers, 2**32 for the likeliest token, padded with zeros to a multiple of 64 columns.
        A row without a logit above minus infinity has only zeros.
    """
    temperature = tf.maximum(settings.temperature, _COLDEST)[:, tf.newaxis]
    likeliest = tf.reduce_max(logits, axis=-1, keepdims=True)
    # At most 0, so no temperature can overflow to an infinity, which would always be chosen.
    scaled = tf.where(logits > tf.float32.min, (logits - likeliest) / temperature, -np.inf)
    distance = tf.abs(_pad(scaled))  # from the likeliest token's logit, 0 to infinity
    ratio = tf.exp(-distance)  # to the likeliest token's probability
    weights = tf.round(tf.cast(ratio, tf.float64) * _ONE)
    is_cut = tf.reduce_any(settings.top_k > 0) | tf.reduce_any(settings.top_p < 1.0)
    weights = tf.cond(is_cut, lambda: _keep_top(weights, distance, settings), lambda: weights)
    return tf.where(ratio >= settings.min_p[:, tf.newaxis], weights, 0.0)


def draw(weights: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Returns the `(B,)` int32 column at which each row's cumulative weight passes its number's share of the total.

    A column of weight 0 is never chosen, whatever the number; a row of zeros gives 0.

    Args:
        weights: `(B, V)` float64 whole numbers whose sum is below 2**53.
        numbers: `(B,)` float64 in [0, 1).
    """
    cumulative = tf.cumsum(weights, axis=-1)
    total = cumulative[:, -1]
    place = tf.minimum(tf.floor(numbers * total), total - 1.0)
    passed = tf.cast(cumulative <= place[:, tf.newaxis], tf.float32)  # float32, since a GPU does not sum int32
    return tf.cast(tf.reduce_sum(passed, axis=-1), tf.int32)


def log_probability(logits: tf.Tensor, token: tf.Tensor) -> tf.Tensor:
    """Returns the float32 natural logarithm of the softmax of `(B, V)` logits at `(B,)` or `(B, K)` tokens."""
    shifted = _pad(logits - tf.reduce_max(logits, axis=-1, keepdims=True))
    total = tf.reduce_sum(tf.cast(tf.exp(shifted), tf.float64), axis=-1, keepdims=token.shape.rank == 2)
    chosen = tf.gather(shifted, token, axis=1, batch_dims=1)
    return chosen - tf.cast(tf.math.log(total), tf.float32)


def uniform(seed: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Returns the random number of each (seed, index): float64 in [0, 1), a multiple of 2**-53.

    SplitMix64's output function (Steele, Lea and Flood 2014, figure 17), applied to the seed and then to its result
    xor the index. Integers wrap around.

    Args:
        seed: int64.
        index: int32 or int64, of the same shape.
    """
    bits = _split_mix(tf.bitwise.bitwise_xor(_split_mix(seed), tf.cast(index, tf.int64)))
    return tf.cast(_shift_right(bits, 11), tf.float64) * 2.0**-53


def _split_mix(value: tf.Tensor) -> tf.Tensor:
    z = value + _GAMMA
    z = tf.bitwise.bitwise_xor(z, _shift_right(z, 30)) * _MIX_1
    z = tf.bitwise.bitwise_xor(z, _shift_right(z, 27)) * _MIX_2
    return tf.bitwise.bitwise_xor(z, _shift_right(z, 31))


def _shift_right(value: tf.Tensor, bits: int) -> tf.Tensor:
    """Shifts in zeros, although int64 is signed. (Unsigned integers have fewer kernels.)"""
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(value, tf.cast(bits, tf.int64)), 2 ** (64 - bits) - 1)


def _penalise(logits: tf.Tensor, penalty: tf.Tensor, seen: tf.Tensor) -> tf.Tensor:
    penalty = penalty[:, tf.newaxis]
    return tf.where(seen, tf.where(logits < 0.0, logits * penalty, logits / penalty), logits)


def _pad(logits: tf.Tensor) -> tf.Tensor:
    """Pads `(B, V)` with tokens of probability 0 (see `_LANES`)."""
    return tf.pad(logits, [[0, 0], [0, -logits.shape[1] % _LANES]], constant_values=-np.inf)


class _Nearest(NamedTuple):
    """The likeliest tokens of each row, nearest first: `(B, _SHORT_LIST)` distances and int32 ids."""

    distance: tf.Tensor
    ids: tf.Tensor


def _keep_top(weights: tf.Tensor, distance: tf.Tensor, settings: Settings) -> tf.Tensor:
    """Sets to 0 the weights of tokens that top-k, then top-p, cut off. Equals of the last kept token are kept."""
    top_k, top_p = settings.top_k, tf.cast(settings.top_p, tf.float64)
    values, ids = tf.math.top_k(-distance, k=min(_SHORT_LIST, distance.shape[1]))
    nearest = _Nearest(-values, ids)

    ones = tf.ones_like(weights)
    wanted = tf.cast(tf.minimum(top_k, distance.shape[1]), tf.float64)
    weights = _keep_nearest(weights, distance, nearest, ones, tf.where(top_k > 0, wanted, _ALL))

    wanted = top_p * tf.reduce_sum(weights, axis=-1)
    return _keep_nearest(weights, distance, nearest, weights, tf.where(top_p < 1.0, wanted, _ALL))


def _keep_nearest(
    weights: tf.Tensor, distance: tf.Tensor, nearest: _Nearest, amounts: tf.Tensor, wanted: tf.Tensor
) -> tf.Tensor:
    """Keeps the weights up to the smallest distance within which the amounts sum to at least what is wanted.

    There are two ways to the same distance: by the few nearest tokens, if they suffice in all rows, else by bisection.

    Args:
        weights: `(B, V)` float64.
        distance: `(B, V)` float32, 0 or greater.
        nearest: The nearest tokens.
        amounts: `(B, V)` float64 whole numbers.
        wanted: `(B,)` float64, at most the sum of the amounts, or `_ALL`.
    """
    is_used = wanted < _ALL

    def by_few() -> tf.Tensor:
        return tf.gather(nearest.distance, position, axis=1, batch_dims=1)

    def by_bisection() -> tf.Tensor:
        return _bisect(
            lambda limit: tf.reduce_sum(tf.where(distance <= limit[:, tf.newaxis], amounts, 0.0), axis=-1) >= wanted,
            tf.shape(wanted),
        )

    def keep() -> tf.Tensor:
        limit = tf.where(is_used, tf.cond(tf.reduce_all(is_found), by_few, by_bisection), np.inf)
        return tf.where(distance <= limit[:, tf.newaxis], weights, 0.0)

    within = tf.cumsum(tf.gather(amounts, nearest.ids, axis=1, batch_dims=1), axis=-1)  # (B, nearest)
    is_less = tf.cast(within < wanted[:, tf.newaxis], tf.float32)
    position = tf.cast(tf.reduce_sum(is_less, axis=-1), tf.int32)
    is_found = (within[:, -1] >= wanted) | ~is_used
    position = tf.minimum(position, nearest.distance.shape[1] - 1)
    return tf.cond(tf.reduce_any(is_used), keep, lambda: weights)


def _bisect(is_enough: Callable[[tf.Tensor], tf.Tensor], shape: tf.Tensor) -> tf.Tensor:
    """Returns the smallest distance of each row that is enough; infinity must be enough.

    It bisects the bits of non-negative floats, which sort like their values. The result is exact after 31 halvings,
    costs several times less than sorting a vocabulary, and does not depend on the order of equal tokens.
    """

    def halve(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        middle = low + tf.bitwise.right_shift(high - low, tf.ones_like(low))
        enough = is_enough(tf.bitcast(tf.cast(middle, tf.int32), tf.float32))
        return tf.where(enough, low, middle), tf.where(enough, middle, high)

    low, high = tf.fill(shape, tf.constant(-1, tf.int64)), tf.fill(shape, tf.constant(_FARTHEST, tf.int64))
    rows = tf.TensorShape([None])
    _, high = tf.while_loop(
        lambda low, high: True, halve, (low, high), shape_invariants=(rows, rows), maximum_iterations=31
    )
    return tf.bitcast(tf.cast(high, tf.int32), tf.float32)
