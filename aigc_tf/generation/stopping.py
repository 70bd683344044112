"""Stop strings: a continuation ends as soon as its text contains one, even across the borders of its tokens.

The text is what the continuation's tokens spell. The prompt is not searched, and tokens that spell nothing change
nothing. Two matchers give the same result. `StopTable` is for strings that are known when the graph is built: an
automaton over bytes (Aho and Corasick 1975), lifted to tokens, so one look-up moves a row's state over all bytes of a
token. `RowStops` is for strings that come with each row; it compares them with the last bytes of the row's text.

Shape letters: S states, V vocabulary, K kinds of tokens, B rows, M stop strings of a row, W bytes of the longest,
L bytes of the longest token of this step.
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from aigc_tf.errors import InputError

_MAX_BYTES = 1024  # of all stop strings; building the table takes memory for this times V numbers
_ANY, _NONE = -1, -2  # in a stop string: any byte matches; in a text: no byte


class StopTable(NamedTuple):
    """The automaton.

    Tokens that act alike in every state are of one kind, such as all tokens without a byte of a stop string.
    """

    kinds: np.ndarray
    """`(V,)` int32, the kind of each token."""
    next_states: np.ndarray
    """`(S, K)` int32."""
    cut_bytes: np.ndarray
    """`(S, K)` int32: if a stop string is complete, the bytes from its first to the end of the token; else 0."""

    def first_state(self, batch_size: tf.Tensor) -> tf.Tensor:
        """Returns the `(B,)` int32 states before the first token."""
        return tf.zeros([batch_size], tf.int32)

    def follow(self, state: tf.Tensor, token: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Moves each row over a token.

        Args:
            state: `(B,)` int32.
            token: `(B,)` int32.
        Returns:
            The states after it, and `(B,)` int32 bytes to cut off the end of the text: 0 as long as no stop string is
            complete. After a complete one the state has no meaning.
        """
        place = state * self.next_states.shape[1] + tf.gather(self.kinds, token)
        return tf.gather(self.next_states.reshape(-1), place), tf.gather(self.cut_bytes.reshape(-1), place)


class Pieces(NamedTuple):
    """The bytes of each token."""

    buffer: np.ndarray
    """All of them, end to end; uint8, with one extra byte at the end."""
    starts: np.ndarray
    """`(V,)` int32."""
    lengths: np.ndarray
    """`(V,)` int32."""


class RowStops(NamedTuple):
    """Stop strings of each row."""

    strings: tf.Tensor
    """`(B, M, W)` int32 bytes, each string aligned right, `_ANY` before it."""
    lengths: tf.Tensor
    """`(B, M)` int32. 0: no stop string."""
    pieces: Pieces

    def first_state(self, batch_size: tf.Tensor) -> tf.Tensor:
        """Returns the `(B, W)` int32 last bytes of each row's text before the first token: all `_NONE`."""
        return tf.fill([batch_size, tf.shape(self.strings)[2]], _NONE)

    def follow(self, state: tf.Tensor, token: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Moves each row over a token, as `StopTable.follow`. If no row has a stop string, nothing is computed."""
        return tf.cond(
            tf.reduce_any(self.lengths > 0),
            lambda: self._compare(state, token),
            lambda: (state, tf.zeros_like(token)),
        )

    def _compare(self, state: tf.Tensor, token: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        count = tf.gather(self.pieces.lengths, token)  # (B,)
        width, longest = tf.shape(state)[1], tf.maximum(1, tf.reduce_max(count))
        places = tf.gather(self.pieces.starts, token)[:, tf.newaxis] + tf.range(longest)  # (B, L)
        new = tf.gather(self.pieces.buffer, tf.minimum(places, len(self.pieces.buffer) - 1))
        new = tf.where(tf.sequence_mask(count, longest), tf.cast(new, tf.int32), _NONE)
        text = tf.concat([state, new], axis=1)  # (B, W + L)
        ends = tf.range(longest)[:, tf.newaxis] + 1 + tf.range(width)  # (L, W): the W bytes up to each new one
        windows = tf.gather(text, ends, axis=1)[:, :, tf.newaxis]  # (B, L, 1, W)
        strings = self.strings[:, tf.newaxis]  # (B, 1, M, W)
        is_found = tf.reduce_all((windows == strings) | (strings == _ANY), axis=-1) & (self.lengths > 0)[:, tf.newaxis]
        length = tf.reduce_max(tf.where(is_found, self.lengths[:, tf.newaxis], 0), axis=-1)  # (B, L), the longest
        first = tf.argmax(length > 0, axis=1, output_type=tf.int32)  # the byte that completes one, if any does
        length = tf.gather(length, first, axis=1, batch_dims=1)
        cut_bytes = tf.where(length > 0, length + count - 1 - first, 0)
        last = count[:, tf.newaxis] + tf.range(width)
        return tf.gather(text, last, axis=1, batch_dims=1), cut_bytes


Stop = StopTable | RowStops


def build_stop_table(stops: Sequence[bytes], piece_bytes: Sequence[bytes]) -> StopTable | None:
    """Builds the automaton of the stop strings, or returns None if there are none.

    Args:
        stops: UTF-8.
        piece_bytes: The bytes that each token id spells.
    Raises:
        InputError: If a stop string is empty, or they are too long.
    """
    if not stops:
        return None
    goto, matched = _byte_automaton(stops)  # (S, 256), (S,)
    lengths = np.array([len(piece) for piece in piece_bytes])  # (V,)
    buffer = np.frombuffer(b"".join(piece_bytes), np.uint8)
    starts = np.cumsum(lengths) - lengths
    num_states = len(goto)
    states = np.repeat(np.arange(num_states, dtype=np.int32)[:, np.newaxis], len(lengths), axis=1)  # (S, V)
    cut_bytes = np.zeros_like(states)
    for position in range(lengths.max(initial=0)):
        (longer,) = np.nonzero(lengths > position)
        reached = goto[states[:, longer], buffer[starts[longer] + position]]
        new = (matched[reached] > 0) & (cut_bytes[:, longer] == 0)  # bytes after a complete stop string are cut too
        rest = lengths[longer] - position - 1
        cut_bytes[:, longer] = np.where(new, matched[reached] + rest, cut_bytes[:, longer])
        states[:, longer] = reached
    columns = np.ascontiguousarray(np.concatenate([states, cut_bytes]).T)  # (V, 2 S)
    known: dict[bytes, int] = {}  # a dict, since np.unique sorts and is several times slower
    kinds = np.array([known.setdefault(column.tobytes(), len(known)) for column in columns], np.int32)
    first = np.unique(kinds, return_index=True)[1]
    return StopTable(kinds, columns[first, :num_states].T, columns[first, num_states:].T)


def build_pieces(piece_bytes: Sequence[bytes]) -> Pieces:
    """Builds the table of the bytes that each token id spells."""
    lengths = np.array([len(piece) for piece in piece_bytes], np.int32)
    buffer = np.frombuffer(b"".join(piece_bytes) + b"\0", np.uint8)
    return Pieces(buffer, np.cumsum(lengths, dtype=np.int32) - lengths, lengths)


def row_stops(stops: tf.Tensor, pieces: Pieces) -> RowStops:
    """Builds the matcher of `(B, M)` byte strings; empty ones are ignored."""
    lengths = tf.strings.length(stops)
    width = tf.maximum(1, tf.reduce_max(lengths))  # the maximum over no rows is negative
    padded = tf.cast(tf.io.decode_raw(stops, tf.uint8, fixed_length=width), tf.int32)  # (B, M, W)
    places = tf.range(width) - (width - lengths[:, :, tf.newaxis])
    moved = tf.gather(padded, tf.maximum(0, places), axis=2, batch_dims=2)
    return RowStops(tf.where(places >= 0, moved, _ANY), lengths, pieces)


def cut_at_stop(text: bytes, stops: Sequence[bytes]) -> bytes:
    """Returns the text before the stop string that is complete first; of several, before the longest.

    It cuts where the automaton does, whichever tokens spelled the text.

    >>> cut_at_stop(b"one two three", [b"three", b"two"])
    b'one '
    """
    found = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if not found:
        return text
    end, negative_length = min(found)
    return text[: end + negative_length]


def _byte_automaton(stops: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the `(S, 256)` next states, and `(S,)` the length of the longest stop string that ends in each state."""
    if b"" in stops:
        raise InputError("A stop string is empty, which is in every text; leave it out.")
    if sum(map(len, stops)) > _MAX_BYTES:
        raise InputError(f"The stop strings have {sum(map(len, stops))} bytes; {_MAX_BYTES} is the most.")
    children: list[dict[int, int]] = [{}]
    matched = [0]
    for stop in stops:
        state = 0
        for byte in stop:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                matched.append(0)
            state = children[state][byte]
        matched[state] = len(stop)
    goto = np.zeros((len(children), 256), np.int32)
    fallback = [0] * len(children)  # the state of the longest proper suffix that starts a stop string
    queue = collections.deque([0])
    while queue:  # breadth first: a state's fallback is nearer to the start, so it is complete already
        state = queue.popleft()
        goto[state] = goto[fallback[state]]
        matched[state] = max(matched[state], matched[fallback[state]])
        for byte, child in children[state].items():
            fallback[child] = goto[fallback[state], byte] if state else 0
            goto[state, byte] = child
            queue.append(child)
    return goto, np.array(matched, np.int32)
