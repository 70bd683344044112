"""Duplicates: texts that came before, and texts that occur with two different labels.

A text is identified by 16 bytes of its hash, so the search takes 25 bytes of memory per text, and briefly twice that,
however long the texts are.
"""

import array
import hashlib
from typing import Any

import numpy as np

KEPT, DUPLICATE, TWO_LABELS = 0, 1, 2
REASONS = {DUPLICATE: "duplicate", TWO_LABELS: "two labels"}
"""Verdict -> why an example is left out."""

_RANKS = {"test": 0, "validation": 1, "train": 2}
"""Of equal texts the one in the split of the lowest rank stays, so that no test data are trained on."""


class DuplicateFinder:
    """Notes the examples of a data set one by one, then judges all."""

    def __init__(self) -> None:
        self._keys, self._labels, self._ranks = bytearray(), array.array("q"), bytearray()

    def add(self, texts: tuple[bytes, ...], labels: tuple[Any, ...], split: str) -> None:
        """Notes an example.

        Args:
            texts: The text, or the two of a pair, which are equal to another pair's only both together.
            labels: As the encoders of its cells give them; none, one or several.
            split: One of `prepared.SPLIT_NAMES`.
        """
        self._keys += text_key(texts)
        is_code = len(labels) == 1 and isinstance(labels[0], int)
        self._labels.append(labels[0] if is_code else _short_hash(repr(labels)))
        self._ranks.append(_RANKS[split])

    def verdicts(self) -> np.ndarray:
        """Returns `(n,)` uint8: `KEPT`, `DUPLICATE` or `TWO_LABELS` for each example, in the order they came."""
        return judge(
            np.frombuffer(self._keys, np.uint64).reshape(-1, 2),
            np.frombuffer(self._labels, np.int64),
            np.frombuffer(self._ranks, np.uint8),
        )


def judge(keys: np.ndarray, labels: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Judges examples: of each text one stays, the first of the lowest rank; none if its labels differ.

    Args:
        keys: `(n, 2)` uint64, equal for equal texts.
        labels: `(n,)` int64, equal for equal labels.
        ranks: `(n,)` uint8.

    Returns:
        `(n,)` uint8: `KEPT`, `DUPLICATE` or `TWO_LABELS`. All examples of a text with two labels have the latter.

    >>> judge(np.array([[7, 7], [7, 7], [1, 7]], np.uint64), np.array([0, 0, 1]), np.array([2, 0, 2])).tolist()
    [1, 0, 0]
    """
    verdicts = np.empty(len(keys), np.uint8)
    if not len(keys):
        return verdicts
    order = np.lexsort((ranks, keys[:, 1], keys[:, 0]))  # stable, so that the first of equals comes first
    in_order, labels = keys[order], labels[order]
    is_first = np.ones(len(keys), bool)
    is_first[1:] = (in_order[1:] != in_order[:-1]).any(axis=1)
    differs = np.zeros(len(keys), bool)
    differs[1:] = ~is_first[1:] & (labels[1:] != labels[:-1])
    starts = np.flatnonzero(is_first)
    has_two_labels = np.repeat(np.logical_or.reduceat(differs, starts), np.diff(np.append(starts, len(keys))))
    verdicts[order] = np.where(has_two_labels, TWO_LABELS, np.where(is_first, KEPT, DUPLICATE))
    return verdicts


def text_key(texts: tuple[bytes, ...]) -> bytes:
    """Returns 16 bytes that identify a text, or both texts of a pair and the end of the first."""
    digest = hashlib.blake2b(digest_size=16)
    for text in texts[:-1]:
        digest.update(len(text).to_bytes(8, "big"))
        digest.update(text)
    digest.update(texts[-1])
    return digest.digest()


def _short_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
