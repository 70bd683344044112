"""Beam search: the likeliest continuation that can be found by keeping a few of each length.

Shape letters: B rows, K beams, M candidates, V vocabulary, N new tokens at most, C positions of the cache.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from aigc_tf.generation.decoding import END_OF_TEXT, LENGTH, STOP_STRING, Cache, Generated, Step
from aigc_tf.generation.stopping import StopTable


class _Beams(NamedTuple):
    """Unfinished continuations; all have the same number of tokens."""

    cache: Cache
    """For B*K rows."""
    token_ids: tf.Tensor
    """`(B, K, N)` int32."""
    log_probability: tf.Tensor
    """`(B, K)` float32, the likeliest first; minus infinity for a beam that does not exist."""
    stop_state: tf.Tensor
    """`(B, K)` int32."""


class _Candidates(NamedTuple):
    """The likeliest extensions of all beams of a row by one token, `(B, M)`, the likeliest first."""

    log_probability: tf.Tensor
    parent: tf.Tensor
    token: tf.Tensor
    stop_state: tf.Tensor
    cut_bytes: tf.Tensor


class _Best(NamedTuple):
    """The best continuation of each row that has ended, and its `(B,)` score."""

    generated: Generated
    score: tf.Tensor


class _Rules(NamedTuple):
    limits: tf.Tensor
    """`(B,)` int32, the largest number of new tokens of each row."""
    num_beams: int
    end_id: int
    length_penalty: float
    stop: StopTable | None


def beam_search(
    step: Step,
    prompt_ids: tf.Tensor,
    prompt_lengths: tf.Tensor,
    cache: Cache,
    max_new_tokens: tf.Tensor,
    *,
    num_beams: int,
    capacity: int | tf.Tensor,
    end_id: int,
    length_penalty: float = 1.0,
    stop: StopTable | None = None,
) -> tuple[Generated, tf.Tensor]:
    """Returns, for each prompt, the continuation with the highest score that the search meets.

    The score is the sum of the log-probabilities of its tokens divided by `length ** length_penalty`; the end of text
    counts in both. At each length every beam of a row is extended by every token, and the `2 * num_beams` likeliest
    extensions are examined. Among the first `num_beams` of them, those that end (by the end of text, a stop string or
    the row's limit) compete for the best; the likeliest that do not end continue. A row is done when no beam can still
    reach the best score: transformers' `early_stopping="never"`.

    Args:
        step: The model; called with B rows once and with B*K rows after that.
        prompt_ids: `(B, P)` int32, each row padded on the right.
        prompt_lengths: `(B,)` int32, from 1 to the lesser of P and C.
        cache: Empty, for B rows of C positions, rows first in every tensor. It is repeated for the beams here.
        max_new_tokens: `(B,)` int32.
        num_beams: K, at least 1.
        capacity: C. Prompt and continuation together never exceed it.
        end_id: The end of text.
        length_penalty: 0: the likeliest continuation, which favours short ones. 1: the highest mean.
        stop: Stop strings.
    Returns:
        The continuations, and their `(B,)` float32 scores. A score is 0 if no token was requested. If the model gives
        no token a probability, it is minus infinity, and the continuation is empty with log-probability NaN.
    Source: Wu et al. 2016, section 7, for the search; the penalty is transformers' form of theirs.
    """
    batch_size = tf.shape(prompt_lengths)[0]
    prompt_ids = tf.pad(prompt_ids[:, :capacity], [[0, 0], [0, tf.maximum(0, 1 - tf.shape(prompt_ids)[1])]])
    logits, cache = step(prompt_ids, cache, tf.zeros([batch_size], tf.int32), prompt_lengths)
    limits = tf.maximum(0, tf.minimum(max_new_tokens, capacity - prompt_lengths))
    rules = _Rules(limits, num_beams, end_id, length_penalty, stop)
    cache, logits = _take_rows((cache, logits), tf.repeat(tf.range(batch_size), num_beams))

    def can_improve(num_tokens: tf.Tensor, beams: _Beams, best: _Best) -> tf.Tensor:
        # Log-probabilities only fall, so a beam's best possible score is that of ending now, counted at its best
        # length.
        best_length = limits if length_penalty >= 0.0 else tf.fill([batch_size], num_tokens + 1)
        reachable = beams.log_probability[:, 0] / tf.cast(best_length, tf.float32) ** length_penalty
        return tf.reduce_any((num_tokens < limits) & (reachable > best.score))

    def one_more(num_tokens: tf.Tensor, beams: _Beams, best: _Best) -> tuple[tf.Tensor, _Beams, _Best]:
        # A row beyond its limit still takes part in the step; it writes to a position that nobody reads.
        index = tf.repeat(tf.minimum(prompt_lengths + num_tokens, capacity) - 1, num_beams)
        token = tf.reshape(beams.token_ids[:, :, num_tokens - 1], [-1, 1])
        logits, cache = step(token, beams.cache, index, tf.ones_like(index))
        cache = tf.nest.map_structure(lambda new, old: tf.ensure_shape(new, old.shape), cache, beams.cache)
        return _extend(num_tokens, beams._replace(cache=cache), best, logits, rules)

    variables = _extend(tf.constant(0), _first_beams(cache, rules), _nothing_yet(rules), logits, rules)
    shapes = tf.nest.map_structure(lambda tensor: tf.TensorShape([None, *tensor.shape[1:]]), variables[1:])
    _, _, best = tf.while_loop(can_improve, one_more, variables, shape_invariants=(tf.TensorShape([]), *shapes))
    return best.generated, best.score


def _first_beams(cache: Cache, rules: _Rules) -> _Beams:
    """Returns one empty beam for each row. The other beams are equal to it, so they get minus infinity."""
    batch_size = tf.shape(rules.limits)[0]
    longest = tf.maximum(0, tf.reduce_max(rules.limits))  # the maximum over no rows is negative
    return _Beams(
        cache=cache,
        token_ids=tf.fill([batch_size, rules.num_beams, longest], tf.constant(rules.end_id, tf.int32)),
        log_probability=tf.where(tf.range(rules.num_beams) < 1, 0.0, -np.inf) + tf.zeros([batch_size, 1]),
        stop_state=tf.zeros([batch_size, rules.num_beams], tf.int32),
    )


def _nothing_yet(rules: _Rules) -> _Best:
    zeros = tf.zeros_like(rules.limits)
    longest = tf.maximum(0, tf.reduce_max(rules.limits))
    generated = Generated(
        token_ids=tf.fill([tf.shape(rules.limits)[0], longest], tf.constant(rules.end_id, tf.int32)),
        lengths=zeros,
        finish_reason=zeros + LENGTH,
        cut_bytes=zeros,
        log_probability=tf.where(rules.limits > 0, np.nan, 0.0),
    )
    return _Best(generated, tf.where(rules.limits > 0, -np.inf, 0.0))


def _extend(
    num_tokens: tf.Tensor, beams: _Beams, best: _Best, logits: tf.Tensor, rules: _Rules
) -> tuple[tf.Tensor, _Beams, _Best]:
    """Adds a token to all beams. Those that end compete with the best; the others continue."""
    candidates = _candidates(beams, logits, rules.stop)
    length = num_tokens + 1
    is_end = candidates.token == rules.end_id
    is_stop = (candidates.cut_bytes > 0) & ~is_end
    is_finished = is_end | is_stop | (length >= rules.limits)[:, tf.newaxis]

    scores = candidates.log_probability / tf.cast(length, tf.float32) ** rules.length_penalty
    is_first = tf.range(scores.shape[1]) < rules.num_beams
    competes = is_finished & is_first & (length <= rules.limits)[:, tf.newaxis]
    scores = tf.where(competes, scores, -np.inf)
    winner = tf.argmax(scores, axis=1, output_type=tf.int32)
    token_ids = _pick(beams.token_ids, _pick(candidates.parent, winner))
    reason = tf.where(is_end, END_OF_TEXT, tf.where(is_stop, STOP_STRING, LENGTH))
    generated = Generated(
        token_ids=_append(token_ids, num_tokens, candidates, winner),
        lengths=tf.where(_pick(is_end, winner), num_tokens, length),
        finish_reason=_pick(reason, winner),
        cut_bytes=_pick(tf.where(is_stop, candidates.cut_bytes, 0), winner),
        log_probability=_pick(candidates.log_probability, winner),
    )
    found = _Best(generated, _pick(scores, winner))
    is_better = found.score > best.score
    best = tf.nest.map_structure(lambda new, old: _where_rows(is_better, new, old), found, best)
    return length, _go_on(beams, candidates, is_finished, num_tokens), best


def _candidates(beams: _Beams, logits: tf.Tensor, stop: StopTable | None) -> _Candidates:
    num_beams, vocabulary_size = beams.log_probability.shape[1], logits.shape[1]
    total = tf.reshape(tf.nn.log_softmax(logits), [-1, num_beams, vocabulary_size])
    total += beams.log_probability[:, :, tf.newaxis]
    total = tf.where(tf.math.is_nan(total), -np.inf, total)
    width = min(2 * num_beams, num_beams * vocabulary_size)
    values, places = tf.math.top_k(tf.reshape(total, [-1, num_beams * vocabulary_size]), k=width)
    parent, token = places // vocabulary_size, places % vocabulary_size
    state = tf.gather(beams.stop_state, parent, axis=1, batch_dims=1)
    cut_bytes = tf.zeros_like(token)
    if stop is not None:
        flat_state, flat_cut = stop.follow(tf.reshape(state, [-1]), tf.reshape(token, [-1]))
        state, cut_bytes = tf.reshape(flat_state, tf.shape(token)), tf.reshape(flat_cut, tf.shape(token))
    return _Candidates(values, parent, token, state, cut_bytes)


def _go_on(beams: _Beams, candidates: _Candidates, is_finished: tf.Tensor, num_tokens: tf.Tensor) -> _Beams:
    """Returns the likeliest candidates that do not end, as beams."""
    num_beams = beams.log_probability.shape[1]
    values, places = tf.math.top_k(tf.where(is_finished, -np.inf, candidates.log_probability), k=num_beams)
    parent = _pick(candidates.parent, places)
    rows = tf.range(tf.shape(parent)[0])[:, tf.newaxis] * num_beams + parent
    return _Beams(
        cache=_take_rows(beams.cache, tf.reshape(rows, [-1])),
        token_ids=_append(_pick(beams.token_ids, parent), num_tokens, candidates, places),
        log_probability=values,
        stop_state=_pick(candidates.stop_state, places),
    )


def _append(token_ids: tf.Tensor, num_tokens: tf.Tensor, candidates: _Candidates, places: tf.Tensor) -> tf.Tensor:
    """Writes the tokens of the candidates at `places` into column `num_tokens` of `(..., N)` ids."""
    is_here = tf.range(tf.shape(token_ids)[-1]) == num_tokens
    return tf.where(is_here, _pick(candidates.token, places)[..., tf.newaxis], token_ids)


def _pick(values: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Gathers from each row of `(B, M, ...)` the values at `(B,)` or `(B, K)` places."""
    return tf.gather(values, places, axis=1, batch_dims=1)


def _take_rows(tensors: Cache, rows: tf.Tensor) -> Cache:
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), tensors)


def _where_rows(is_new: tf.Tensor, new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    return tf.where(is_new if new.shape.rank == 1 else is_new[:, tf.newaxis], new, old)
