"""Continues prompts token by token. Ids in, ids out; the model is a function.

`generate` is `start` and one `advance`. A caller that shows text as it comes calls `advance` repeatedly instead; a row
gets the same tokens either way. Everything runs eagerly, in a graph and in an exported graph.

Shape letters: B rows, P prompt positions, V vocabulary, N new tokens at most, C positions of the cache.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from aigc_tf.generation.sampling import Settings, sample
from aigc_tf.generation.stopping import Stop

Cache = Any  # tensors in any nesting, rows first
Step = Callable[[tf.Tensor, Cache, tf.Tensor, tf.Tensor], tuple[tf.Tensor, Cache]]
"""`step(token_ids (B, T), cache, index (B,), num_tokens (B,)) -> (logits (B, V) float32, cache)`: reads the first
`num_tokens` of each row as its positions from `index` on, and returns the logits after the last of them. All int32."""

STAGE = 64
"""Positions by which a cache grows. A step reads the whole cache, and growing copies it: larger stages copy less often
and read more."""

RUNNING, END_OF_TEXT, STOP_STRING, LENGTH = 0, 1, 2, 3
"""Values of `finish_reason`."""


class Growth(NamedTuple):
    """Which axis of a growing cache holds its positions. Such a cache is only as long as its rows are so far."""

    axis: int
    """The same in every tensor of the cache."""
    offset: int = 0
    """Entries of that axis before the first position."""


class State(NamedTuple):
    """Rows that are being continued: the variables of the loop, handed from one call to the next."""

    cache: Cache
    token: tf.Tensor
    """`(B,)` int32, the last token of each row, which the model has not read yet."""
    index: tf.Tensor
    """`(B,)` int32, the position of that token."""
    token_ids: tf.Tensor
    """`(B, N)` int32, the continuations, padded with the end of text."""
    lengths: tf.Tensor
    """`(B,)` int32, number of tokens of each continuation."""
    limits: tf.Tensor
    """`(B,)` int32, the largest number of new tokens: `max_new_tokens`, or what the cache has room for."""
    finish_reason: tf.Tensor
    """`(B,)` int32, `RUNNING` or why the row has ended."""
    cut_bytes: tf.Tensor
    """`(B,)` int32, bytes to cut off the end of the text, from a stop string's first byte on; 0 for other ends."""
    log_probability: tf.Tensor
    """`(B,)` float32, sum over the tokens of the continuation, and the end of text if it was chosen."""
    seen: tf.Tensor
    """`(B, V)` bool, tokens of prompt and continuation; updated only if a row has a repetition penalty."""
    stop_state: tf.Tensor
    """State of the stop strings' matcher, rows first; `(B,)` zeros without stop strings."""


class Generated(NamedTuple):
    """Continuations; the end-of-text token is not part of them."""

    token_ids: tf.Tensor
    """`(B, N)` int32, padded with the end of text."""
    lengths: tf.Tensor
    """`(B,)` int32."""
    finish_reason: tf.Tensor
    """`(B,)` int32: `END_OF_TEXT`, `STOP_STRING` or `LENGTH`."""
    cut_bytes: tf.Tensor
    """`(B,)` int32, bytes to cut off the end of the text: a stop string, and what its last token spells after it."""
    log_probability: tf.Tensor
    """`(B,)` float32, natural logarithm of the continuation's probability under the model, before penalty, temperature
    and cuts: the sum over its tokens, and over the end of text if the row ended by it."""


def generate(
    step: Step,
    prompt_ids: tf.Tensor,
    prompt_lengths: tf.Tensor,
    cache: Cache,
    settings: Settings,
    *,
    capacity: int | tf.Tensor,
    end_id: int,
    stop: Stop | None = None,
    growth: Growth | None = None,
) -> Generated:
    """Continues each prompt to its end. The arguments are those of `start` and `advance`."""
    state = start(step, prompt_ids, prompt_lengths, cache, settings, capacity=capacity, end_id=end_id, stop=stop)
    num_steps = tf.shape(state.token_ids)[1]  # `start` has chosen one token, unless no row wants any
    return collect(advance(step, state, settings, num_steps, end_id=end_id, stop=stop, growth=growth))


def start(
    step: Step,
    prompt_ids: tf.Tensor,
    prompt_lengths: tf.Tensor,
    cache: Cache,
    settings: Settings,
    *,
    capacity: int | tf.Tensor,
    end_id: int,
    stop: Stop | None = None,
) -> State:
    """Reads the prompts and chooses the first new token of each row.

    Args:
        step: The model.
        prompt_ids: `(B, P)` int32, each row padded on the right with any ids of the vocabulary.
        prompt_lengths: `(B,)` int32, from 1 to the lesser of P and C.
        cache: Empty, for B rows of C positions, or of `first_length` if `advance` lets it grow.
        settings: Of B rows.
        capacity: C. Prompt and continuation together never exceed it.
        end_id: The end of text.
        stop: Stop strings.
    """
    batch_size = tf.shape(prompt_lengths)[0]
    # A request without rows may come without columns, which the gather below needs.
    prompt_ids = tf.pad(prompt_ids[:, :capacity], [[0, 0], [0, tf.maximum(0, 1 - tf.shape(prompt_ids)[1])]])
    logits, cache = step(prompt_ids, cache, tf.zeros([batch_size], tf.int32), prompt_lengths)
    limits = tf.maximum(0, tf.minimum(settings.max_new_tokens, capacity - prompt_lengths))
    longest = tf.maximum(0, tf.reduce_max(limits))  # the maximum over no rows is negative
    zeros = tf.zeros([batch_size], tf.int32)
    state = State(
        cache=cache,
        # A row that gets no token reads the last token of its prompt again at the same position, which changes
        # nothing.
        token=tf.gather(prompt_ids, prompt_lengths - 1, axis=1, batch_dims=1),
        index=prompt_lengths - 1,
        token_ids=tf.fill([batch_size, longest], tf.constant(end_id, tf.int32)),
        lengths=zeros,
        limits=limits,
        finish_reason=tf.where(limits > 0, RUNNING, LENGTH),
        cut_bytes=zeros,
        log_probability=tf.zeros([batch_size], tf.float32),
        seen=_seen_in_prompt(prompt_ids, prompt_lengths, settings, logits.shape[1]),
        stop_state=zeros if stop is None else stop.first_state(batch_size),
    )
    return _extend(state, logits, settings, end_id=end_id, stop=stop)


def first_length(prompt_length: int | tf.Tensor, capacity: int | tf.Tensor) -> tf.Tensor:
    """Returns the first length of a growing cache: room for the longest prompt and a few tokens."""
    return tf.minimum((prompt_length // STAGE + 1) * STAGE, capacity)


def advance(
    step: Step,
    state: State,
    settings: Settings,
    num_steps: int | tf.Tensor,
    *,
    end_id: int,
    stop: Stop | None = None,
    growth: Growth | None = None,
) -> State:
    """Gives each unfinished row up to `num_steps` more tokens; returns sooner if all rows have ended.

    A row that has ended does not change.

    Args:
        step: This and the others not named here: as in `start`.
        state: What `start` or `advance` returned.
        num_steps: The largest number of tokens that a row gets.
        growth: Lets the cache grow by `STAGE` positions whenever a row has filled it. None: it has C positions
        already.
    """
    variables: tuple[tf.Tensor, State] = (tf.constant(0), state)

    def goes_on(count: tf.Tensor, state: State) -> tf.Tensor:
        return (count < num_steps) & tf.reduce_any(state.finish_reason == RUNNING)

    def one_more(count: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        logits, cache = step(state.token[:, tf.newaxis], state.cache, state.index, tf.ones_like(state.index))
        cache = tf.nest.map_structure(lambda new, old: tf.ensure_shape(new, old.shape), cache, state.cache)
        return count + 1, _extend(state._replace(cache=cache), logits, settings, end_id=end_id, stop=stop)

    def loop(condition: Any, body: Any, variables: Any) -> Any:
        # Some tensors know the number of rows statically and others do not; the loop needs one answer for all.
        shapes = tf.nest.map_structure(lambda tensor: tf.TensorShape([None, *tensor.shape[1:]]), state)
        cache_shapes = tf.nest.map_structure(lambda tensor: _growing_shape(tensor, growth), state.cache)
        return tf.while_loop(condition, body, variables, (tf.TensorShape([]), shapes._replace(cache=cache_shapes)))

    if growth is None:
        return loop(goes_on, one_more, variables)[1]

    def one_stage(count: tf.Tensor, state: State) -> tuple[tf.Tensor, State]:
        state = state._replace(cache=_with_room(state, growth))
        length = _cache_length(state.cache, growth)
        return loop(lambda *now: goes_on(*now) & (tf.reduce_max(now[1].index) < length), one_more, (count, state))

    return loop(goes_on, one_stage, variables)[1]


def _growing_shape(tensor: tf.Tensor, growth: Growth | None) -> tf.TensorShape:
    known = tensor.shape.as_list()
    if growth is not None:
        known[growth.axis] = None
    return tf.TensorShape(known)


def _cache_length(cache: Cache, growth: Growth) -> tf.Tensor:
    return tf.shape(tf.nest.flatten(cache)[0])[growth.axis] - growth.offset


def _with_room(state: State, growth: Growth) -> Cache:
    """Returns the cache with room for the next token of each row."""
    length = _cache_length(state.cache, growth)
    # The last position that any row writes: its last token is chosen but never read by the model.
    most = tf.reduce_max(state.index - state.lengths + state.limits)
    longer = tf.minimum(length + STAGE, most) - length

    def grow() -> Cache:
        def pad(tensor: tf.Tensor) -> tf.Tensor:
            after = tf.one_hot(growth.axis, tensor.shape.rank, on_value=longer, off_value=0)
            return tf.pad(tensor, tf.stack([tf.zeros_like(after), after], axis=1))

        return tf.nest.map_structure(pad, state.cache)

    return tf.cond(tf.reduce_max(state.index) < length, lambda: state.cache, grow)


def collect(state: State) -> Generated:
    """Returns the continuations so far."""
    return Generated(**{name: getattr(state, name) for name in Generated._fields})


def _extend(state: State, logits: tf.Tensor, settings: Settings, *, end_id: int, stop: Stop | None) -> State:
    """Chooses a token for each running row and appends it."""
    token, log_probability = sample(logits, settings, state.lengths, state.seen)
    is_running = state.finish_reason == RUNNING
    is_end = token == end_id
    is_added = is_running & ~is_end
    columns = tf.range(tf.shape(state.token_ids)[1])
    is_here = is_added[:, tf.newaxis] & tf.equal(columns, state.lengths[:, tf.newaxis])  # (B, N)
    lengths = state.lengths + tf.cast(is_added, tf.int32)

    stop_state, cut_bytes = state.stop_state, state.cut_bytes
    if stop is not None:
        stop_state, cut = stop.follow(stop_state, token)  # meaningless in a row that has ended
        cut_bytes = tf.where(is_added, cut, cut_bytes)

    reason = tf.where(lengths >= state.limits, LENGTH, RUNNING)
    reason = tf.where(cut_bytes > 0, STOP_STRING, reason)
    reason = tf.where(is_end, END_OF_TEXT, reason)
    return State(
        cache=state.cache,
        token=tf.where(is_added, token, state.token),
        index=state.index + tf.cast(is_added, tf.int32),
        token_ids=tf.where(is_here, token[:, tf.newaxis], state.token_ids),
        lengths=lengths,
        limits=state.limits,
        finish_reason=tf.where(is_running, reason, state.finish_reason),
        cut_bytes=cut_bytes,
        log_probability=state.log_probability + tf.where(is_running, log_probability, 0.0),
        seen=_note(state.seen, token, settings),
        stop_state=stop_state,
    )


def _uses_penalty(settings: Settings) -> tf.Tensor:
    return tf.reduce_any(settings.repetition_penalty != 1.0)


def _note(seen: tf.Tensor, token: tf.Tensor, settings: Settings) -> tf.Tensor:
    """Marks a token of each row as seen. Rows that have ended mark one too; nobody reads theirs."""
    return tf.cond(
        _uses_penalty(settings),
        lambda: seen | tf.one_hot(token, seen.shape[1], on_value=True, off_value=False),
        lambda: seen,
    )


def _seen_in_prompt(
    prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, settings: Settings, vocabulary_size: int
) -> tf.Tensor:
    """Returns `(B, V)` bool: which tokens are in the prompts."""
    shape = tf.stack([tf.shape(prompt_ids)[0], vocabulary_size])

    def mark() -> tf.Tensor:
        is_real = tf.sequence_mask(prompt_lengths, tf.shape(prompt_ids)[1], dtype=tf.float32)  # (B, P)
        rows = tf.range(shape[0])[:, tf.newaxis] + tf.zeros_like(prompt_ids)
        return tf.scatter_nd(tf.stack([rows, prompt_ids], axis=-1), is_real, shape) > 0.0

    return tf.ensure_shape(
        tf.cond(_uses_penalty(settings), mark, lambda: tf.zeros(shape, tf.bool)), [None, vocabulary_size]
    )
