"""Stop strings: a continuation ends as soon as its text holds one, wherever the borders of its tokens lie.

An automaton reads the bytes of the text (Aho and Corasick 1975). Here it is lifted to tokens: one look-up moves a row
from its state over all bytes of a token. Text is what the continuation's tokens spell; the prompt is not looked at, and
tokens that spell nothing change nothing.

Shape letters: S states, V vocabulary, K kinds of tokens, B rows.
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from aigc_tf.config import InputError

_MAX_BYTES = 1024  # of all stop strings; the table is made in memory of that times V numbers


class StopTable(NamedTuple):
    """The automaton. A row starts in state 0.

    Tokens that do the same in every state are of one kind, such as all those without a byte of a stop string.
    """

    kinds: np.ndarray
    """`(V,)` int32, the kind of each token."""
    next_states: np.ndarray
    """`(S, K)` int32."""
    cut_bytes: np.ndarray
    """`(S, K)` int32, where a stop string is complete: bytes from its first to the end of the token. Else 0."""


def build_stop_table(stops: Sequence[bytes], piece_bytes: Sequence[bytes]) -> StopTable | None:
    """Makes the automaton of stop strings, or None without any.

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
        new = (matched[reached] > 0) & (cut_bytes[:, longer] == 0)  # what follows a complete stop string is cut too
        rest = lengths[longer] - position - 1
        cut_bytes[:, longer] = np.where(new, matched[reached] + rest, cut_bytes[:, longer])
        states[:, longer] = reached
    columns = np.ascontiguousarray(np.concatenate([states, cut_bytes]).T)  # (V, 2 S)
    known: dict[bytes, int] = {}  # several times faster than np.unique, which sorts
    kinds = np.array([known.setdefault(column.tobytes(), len(known)) for column in columns], np.int32)
    first = np.unique(kinds, return_index=True)[1]
    return StopTable(kinds, columns[first, :num_states].T, columns[first, num_states:].T)


def follow(table: StopTable, state: tf.Tensor, token: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Moves each row over a token.

    Args:
        table: The automaton.
        state: `(B,)` int32.
        token: `(B,)` int32.
    Returns:
        `(B,)` int32 states, and `(B,)` int32 bytes to cut off the end of the text: 0 as long as no stop string is
        complete. After one the state means nothing.
    """
    place = state * table.next_states.shape[1] + tf.gather(table.kinds, token)
    return tf.gather(table.next_states.reshape(-1), place), tf.gather(table.cut_bytes.reshape(-1), place)


def cut_at_stop(text: bytes, stops: Sequence[bytes]) -> bytes:
    """Returns the text before the stop string that is complete first, or before the longest of those.

    It cuts where the automaton does, whatever tokens spelled the text.

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
    while queue:  # a state comes after those nearer to the start, among them its fallback
        state = queue.popleft()
        goto[state] = goto[fallback[state]]
        matched[state] = max(matched[state], matched[fallback[state]])
        for byte, child in children[state].items():
            fallback[child] = goto[fallback[state], byte] if state else 0
            goto[state, byte] = child
            queue.append(child)
    return goto, np.array(matched, np.int32)
