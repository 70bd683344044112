"""GPT-2's byte-level byte pairs, by graph ops alone.

Text is cut into words by GPT-2's pattern,

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

and each word starts as its bytes, which the earliest learned merge that applies joins, until none applies. The pattern
has a look-ahead, which TensorFlow's regular expressions lack, so words are found by classes of characters instead. All
ops are of core TensorFlow and keep no state: KerasNLP's tokenizer of the same kind remembers all words in a table that
grows for as long as a server runs, and splits some spaces differently.

Shape letters: T texts, C characters of all of them, W words of all of them, U different words, S symbols of these.
"""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aigc_tf.data.tokenizers.byte_pair_files import END_OF_TEXT, BytePairs, byte_characters, spell, write_byte_pairs
from aigc_tf.data.tokenizers.character_classes import SPACE, class_borders
from aigc_tf.errors import InputError

_NOTHING = -1  # the class and code point beyond the ends of a text
_NO_MERGE = np.iinfo(np.int32).max
_ROUNDS = 16  # rounds of merging before finished words are set aside


class BytePair(tf.Module):
    """A vocabulary of byte pairs and the ops that split text by it.

    Args:
        found: Tokens, in GPT-2's characters for bytes, and merges in the order they were learned.
    Raises:
        InputError: If a byte, a merge or <|endoftext|> has no token, or ids are not 0, 1, 2, ...
    """

    kind = "byte_pair"
    uses_segments = False
    in_graph = True

    def __init__(self, found: BytePairs):
        super().__init__(name="byte_pair")
        vocabulary = found.vocabulary
        self.tokens = _ordered_tokens(vocabulary, found.source)
        self.merges = found.merges
        pairs = _merged_pairs(vocabulary, found.merges, found.source)
        self._byte_ids = np.array([vocabulary[character] for character in byte_characters()], np.int32)  # (256,)
        # Pairs are numbers, found by binary search, since constants of the graph are not state and a table would be.
        keys = np.array([left * len(vocabulary) + right for left, right in pairs], np.int64)
        order = np.argsort(keys)
        # Ascending keys of the merges; the two below are in the same order. The first is of no pair, so it is never
        # empty.
        self._keys = np.append(-1, keys[order])
        self._ranks = np.append(0, order).astype(np.int32)
        self._joined = np.append(0, np.array(list(pairs.values()), np.int32)[order]).astype(np.int32)
        self.vocabulary_size = len(vocabulary)
        self.end_of_text_id: int = vocabulary[END_OF_TEXT]
        self.start_ids: tuple[int, ...] = ()
        self.between_ids = self.end_ids = (self.end_of_text_id,)
        self.padding_id = self.end_of_text_id
        self._reach = _reach(pairs, self.tokens)
        spelled = {*self._byte_ids.tolist(), *pairs.values()}
        self.special_tokens = tuple(token for index, token in enumerate(self.tokens) if index not in spelled)
        self.pieces = spell(self.tokens, special=self.special_tokens)

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Splits `(T,)` strings into `(T, None)` int32 ids. Broken UTF-8 becomes U+FFFD."""
        with tf.device("CPU:0"):  # strings live on the CPU; otherwise the steps between would move to a GPU and back
            words, borders = split_words(texts)
            different, places = tf.unique(words)  # (U,), (W,): texts repeat their words, and each is merged once
            tokens = tf.gather(self._merge(different), places)  # (W, None)
            return tf.RaggedTensor.from_row_splits(tokens.values, tf.gather(tokens.row_splits, borders), validate=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        return b"".join(self.pieces[index] for index in token_ids).decode(errors="replace")

    def describe(self) -> dict[str, Any]:
        """Returns the settings besides the files: none."""
        return {}

    def contents(self) -> Iterator[bytes]:
        """Yields what decides every id."""
        yield json.dumps(self.tokens).encode()
        yield json.dumps(self.merges).encode()

    def save(self, folder: str) -> None:
        write_byte_pairs(self.tokens, self.merges, self.special_tokens, folder)

    def _merge(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Returns `(U, None)` ids of `(U,)` words."""
        num_words = tf.size(words)
        content = tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8)
        symbols = tf.gather(self._byte_ids, tf.cast(content, tf.int32))  # (S,)
        ends = tf.cumsum(tf.strings.length(words))
        owners = rows_of(ends, tf.size(symbols))  # (S,) the word of each, ascending
        vector = tf.TensorShape([None])

        def merge(round_, symbols, owners, _):
            return (round_ + 1, *self._merge_once(symbols, owners, num_words))

        def merge_and_set_aside(done, done_owners, symbols, owners):
            _, symbols, owners, is_open = tf.while_loop(
                lambda round_, _symbols, _owners, is_open: (round_ < _ROUNDS) & tf.reduce_any(is_open),
                merge,
                (0, symbols, owners, tf.ones_like(symbols, tf.bool)),
                shape_invariants=(tf.TensorShape([]), vector, vector, vector),
            )
            return (
                tf.concat([done, tf.boolean_mask(symbols, ~is_open)], 0),
                tf.concat([done_owners, tf.boolean_mask(owners, ~is_open)], 0),
                tf.boolean_mask(symbols, is_open),
                tf.boolean_mask(owners, is_open),
            )

        # A long word takes many rounds; finished words are not examined again in them.
        symbols, owners, _, _ = tf.while_loop(
            lambda _done, _done_owners, symbols, _owners: tf.size(symbols) > 0,
            merge_and_set_aside,
            (symbols[:0], owners[:0], symbols, owners),
            shape_invariants=(vector,) * 4,
        )
        # Words are in the order in which they finished; the symbols of a word must keep theirs.
        order = tf.argsort(owners, stable=True)
        symbols, owners = tf.gather(symbols, order), tf.cast(tf.gather(owners, order), tf.int64)
        return tf.RaggedTensor.from_value_rowids(symbols, owners, tf.cast(num_words, tf.int64), validate=False)

    def _merge_once(
        self, symbols: tf.Tensor, owners: tf.Tensor, num_words: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Applies the first merge of each word, from the left; in a long word, the first merge of each part.

        A merge may be applied before an earlier one if that is farther away than the longest token: the earlier merge
        can only lead to longer tokens around its own place.

        Returns:
            The remaining symbols and owners, and whether the word of each had a merge, `(S,)` bool.
        """
        left = tf.cast(symbols[:-1], tf.int64)
        keys = left * self.vocabulary_size + tf.cast(symbols[1:], tf.int64)  # (S - 1,) of pairs
        places = tf.searchsorted(self._keys[:-1], keys)  # without the last key, so a place is always in range
        fits = (tf.gather(self._keys, places) == keys) & (owners[:-1] == owners[1:])
        ranks = tf.where(fits, tf.gather(self._ranks, places), _NO_MERGE)
        first = tf.math.unsorted_segment_min(ranks, owners[:-1], num_words)  # (U,)
        is_open = tf.gather(first, owners) < _NO_MERGE
        hits = fits & (ranks == self._first_nearby(ranks, owners[:-1], num_words))
        # "aaaa" is a run of three pairs, of which the first and the third are taken.
        follows = tf.concat([tf.zeros_like(fits[:1]), fits[1:] & (ranks[1:] == ranks[:-1])], 0)
        run = tf.cumsum(tf.cast(~follows, tf.int32)) - 1
        position = tf.range(tf.size(run)) - tf.cast(tf.gather(tf.reshape(tf.where(~follows), [-1]), run), tf.int32)
        is_whole = tf.gather(tf.math.segment_min(tf.cast(hits, tf.int32), run), run) == 1
        taken = hits & is_whole & (position % 2 == 0)
        symbols = tf.where(_append(taken, False), tf.gather(self._joined, _append(places, 0)), symbols)
        stays = tf.concat([[True], ~taken], 0)
        return tf.boolean_mask(symbols, stays), tf.boolean_mask(owners, stays), tf.boolean_mask(is_open, stays)

    def _first_nearby(self, ranks: tf.Tensor, owners: tf.Tensor, num_words: tf.Tensor) -> tf.Tensor:
        """Returns the lowest rank within reach of each place, or a little farther in the same word, `(S - 1,)`."""
        index = tf.range(tf.size(ranks))
        position = index - tf.gather(tf.math.unsorted_segment_min(index, owners, num_words), owners)
        starts_part = position % self._reach == 0
        part = tf.cumsum(tf.cast(starts_part, tf.int32)) - 1
        lowest = tf.math.segment_min(ranks, part)
        owner = tf.boolean_mask(owners, starts_part)
        lowest_before = tf.where(_move(owner, -1) == owner, _move(lowest, -1), _NO_MERGE)
        lowest_after = tf.where(_move(owner, 1) == owner, _move(lowest, 1), _NO_MERGE)
        return tf.gather(tf.minimum(lowest, tf.minimum(lowest_before, lowest_after)), part)


def split_words(texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts texts into words by GPT-2's pattern.

    Args:
        texts: `(T,)` strings. Broken UTF-8 becomes U+FFFD.
    Returns:
        `(W,)` words of all texts, which joined give the texts, and `(T + 1,)` int64: where the words of each text
        start.
    """
    texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
    points = tf.strings.unicode_decode(texts, "UTF-8")  # (T, None)
    starts = _word_starts(points)
    borders = _append(tf.reshape(tf.where(starts), [-1]), points.row_splits[-1])
    words = tf.RaggedTensor.from_row_splits(points.values, borders, validate=False)
    words_before = tf.concat([[0], tf.cumsum(tf.cast(starts, tf.int64))], 0)  # (C + 1,)
    return tf.strings.unicode_encode(words, "UTF-8"), tf.gather(words_before, points.row_splits)


def _word_starts(points: tf.RaggedTensor) -> tf.Tensor:
    """Returns whether a word starts at each of the code points `(T, None)`, `(C,)` bool."""
    texts, points = rows_of(points.row_splits[1:], tf.size(points.values)), points.values  # (C,)
    borders, kinds = class_borders()
    kind = tf.gather(kinds, tf.searchsorted(borders, points, side="right") - 1)

    def neighbour(values, distance):
        """Returns the value `distance` characters later in the same text, `_NOTHING` beyond its ends."""
        return tf.where(_move(texts, distance) == texts, _move(values, distance), _NOTHING)

    before, after = neighbour(kind, -1), neighbour(kind, 1)
    # A run of spaces is one word, except for its last one before another character: that is a word, or, if U+0020, the
    # start of one.
    starts_spaces = (before != SPACE) | ((after != SPACE) & (after != _NOTHING))
    starts_other = (before != kind) & (neighbour(points, -1) != ord(" "))
    starts = tf.where(kind == SPACE, starts_spaces, starts_other)
    # 's and the like are words if the apostrophe starts a word.
    first, second = neighbour(points, 1), neighbour(points, 2)
    apostrophe = starts & (points == ord("'"))
    is_short = apostrophe & functools.reduce(tf.logical_or, [first == ord(letter) for letter in "stmd"])
    pairs = [(first == ord(one)) & (second == ord(two)) for one, two in ("re", "ve", "ll")]
    is_long = apostrophe & functools.reduce(tf.logical_or, pairs)
    starts &= neighbour(tf.cast(is_short | is_long, tf.int32), -1) != 1
    return starts | (neighbour(tf.cast(is_short, tf.int32), -2) == 1) | (neighbour(tf.cast(is_long, tf.int32), -3) == 1)


def rows_of(ends: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Returns the row of each of `size` values, `(size,)` int32, when rows end at `ends`.

    tf.repeat and RaggedTensor.value_rowids give the same, but build a table of all rows, padded to the longest.
    """
    return tf.cumsum(tf.math.unsorted_segment_sum(tf.ones_like(ends, tf.int32), ends, size + 1))[:size]


def _move(values: tf.Tensor, distance: int) -> tf.Tensor:
    """Returns `(C,)` int32 whose element i is `values[i + distance]`, `_NOTHING` beyond the ends."""
    size = tf.size(values)
    filling = tf.fill([tf.minimum(abs(distance), size)], _NOTHING)
    return tf.concat([values[distance:], filling] if distance > 0 else [filling, values[: size - tf.size(filling)]], 0)


def _append(values: tf.Tensor, last: Any) -> tf.Tensor:
    return tf.concat([values, [last]], 0)


def _ordered_tokens(vocabulary: Mapping[str, int], source: str) -> tuple[str, ...]:
    ids = list(vocabulary.values())
    if not all(isinstance(index, int) for index in ids) or sorted(ids) != list(range(len(ids))):
        raise InputError(f"The vocabulary of {source} must map tokens to the ids 0, 1, 2, ... without a gap.")
    missing = [token for token in (*byte_characters(), END_OF_TEXT) if token not in vocabulary]
    if missing:
        raise InputError(
            f"The vocabulary of {source} lacks {missing[0]!r}; GPT-2's has a token for each byte and {END_OF_TEXT}."
        )
    return tuple(sorted(vocabulary, key=vocabulary.__getitem__))


def _merged_pairs(vocabulary: Mapping[str, int], merges: Sequence[str], source: str) -> dict[tuple[int, int], int]:
    """Returns the ids of left, right and both joined, in the order of merging."""
    pairs: dict[tuple[int, int], int] = {}
    for number, merge in enumerate(merges, start=1):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise InputError(
                f"Merge {number} of {source}, {merge!r}, does not fit its vocabulary, which has no token for a part "
                "of it or for both joined; use both files of the same model."
            )
        pairs[vocabulary[left], vocabulary[right]] = vocabulary[left + right]
    return pairs


def _reach(pairs: Mapping[tuple[int, int], int], tokens: Sequence[str]) -> int:
    """Returns the distance in which an earlier merge matters: the longest token, if merges go from short to long."""
    learned = {index: rank for rank, index in enumerate(pairs.values())}
    in_order = all(learned.get(part, -1) < rank for rank, pair in enumerate(pairs) for part in pair)
    return max(map(len, tokens)) if in_order else _NO_MERGE
