"""BERT's WordPiece, by graph ops alone, and the training of a WordPiece vocabulary.

Preparing and the exported graph both use `WordPiece.tokenize`. It gives the ids of transformers'
BertTokenizer: tf_text's own FastBertTokenizer normalises by NFKC instead (a half becomes 1⁄2, a circled or fullwidth
letter a plain one), turns control characters into spaces instead of removing them and makes any word of over 100 bytes
[UNK], which is 34 letters of Thai. The remaining differences are characters newer than the Unicode tables of either
library; `tests/laws/token_ids_test.py` counts and lists them.

All ops are of core TensorFlow, except two of tf_text, NormalizeUTF8 and FastWordpieceTokenizeWithOffsets, which
TensorFlow Serving has linked since 2.16.
"""

import bisect
import collections
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from aigc_tf.data.tokenizers.vocabularies import (
    MAX_WORD_CHARACTERS,
    SPECIAL_TOKENS,
    Vocabulary,
    build_vocabulary,
    write_vocabulary,
)
from aigc_tf.errors import InputError

# BERT's cleaning removes control, format and private use characters and U+FFFD. They are listed, not \p{C}, so that the
# result does not depend on the version of a server's or the trainer's Unicode tables.
_REMOVED = (
    r"\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x{9f}\x{ad}\x{600}-\x{605}\x{61c}\x{6dd}\x{70f}\x{180e}\x{200b}-\x{200f}"
    r"\x{202a}-\x{202e}\x{2060}-\x{2064}\x{2066}-\x{206f}\x{e000}-\x{f8ff}\x{feff}\x{fff9}-\x{fffb}\x{fffd}\x{110bd}"
    r"\x{1bca0}-\x{1bca3}\x{1d173}-\x{1d17a}\x{e0001}\x{e0020}-\x{e007f}\x{f0000}-\x{ffffd}\x{100000}-\x{10fffd}"
)
_SPACES = r"[\t\n\r\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
# Characters that are words of their own: punctuation (in ASCII also $ + < = > ^ ` | ~) and Chinese characters.
_ISOLATED = (
    r"[\p{P}$+<=>^`|~\x{3400}-\x{4dbf}\x{4e00}-\x{9fff}\x{f900}-\x{faff}"
    r"\x{20000}-\x{2a6df}\x{2a700}-\x{2ceaf}\x{2f800}-\x{2fa1f}]"
)
_LONG_WORD = f"[^ ]{{{MAX_WORD_CHARACTERS + 1},}}"

# The lower-casing op ends a text at U+0000. It also depends on the context (a sigma at the end of a word differs) and
# on the locale of the process: in Turkish, I is not the capital of i, and in Lithuanian the dot of an i stays under an
# accent. BERT does none of this, so these characters are replaced first.
_BEFORE_LOWER_CASE = ((r"\x00", ""), ("I", "i"), ("Σ", "σ"))
_WITH_ACCENTS_BEFORE_LOWER_CASE = (("İ", "i\u0307"), ("J", "j"), ("Į", "į"), ("Ì", "ì"), ("Í", "í"), ("Ĩ", "ĩ"))

_MAX_WORD_BYTES = 4 * MAX_WORD_CHARACTERS  # never reached: longer words are replaced before the op sees them
_TEXTS_PER_BATCH = 4096
_MIN_COVERAGE = 0.995  # share of all characters of the text that a trained vocabulary can spell
_MIN_FREQUENCY = 2  # a piece that occurs once teaches nothing


class WordPiece(tf.Module):
    """A vocabulary and the ops that split text by it.

    Args:
        vocabulary: Checked by `build_vocabulary`.
    """

    kind = "wordpiece"
    uses_segments = True
    end_of_text_id = None
    in_graph = True

    def __init__(self, vocabulary: Vocabulary):
        super().__init__(name="wordpiece")
        self.vocabulary = vocabulary
        self.vocabulary_size = len(vocabulary.tokens)
        self.start_ids = vocabulary.ids("[CLS]")
        self.between_ids = self.end_ids = vocabulary.ids("[SEP]")
        (self.padding_id,) = vocabulary.ids("[PAD]")
        self._unknown_word = _unused_character(vocabulary.tokens)
        # The op would match a token with a space across two words. A private-use character, which text never has,
        # prevents it.
        tokens = [
            f"{self._unknown_word}{index}" if " " in token else token for index, token in enumerate(vocabulary.tokens)
        ]
        with tf.device("CPU:0"):  # the op runs there; a buffer on a GPU would be copied at each call
            self._matcher = tf_text.FastWordpieceTokenizer(
                tokens, token_out_type=tf.int32, unknown_token="[UNK]", max_bytes_per_word=_MAX_WORD_BYTES
            )

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Splits `(B,)` strings into `(B, None)` int32 ids, without special tokens.

        A text that spells "[SEP]" gives the ids of "[", "sep" and "]": text never becomes a special token. Bytes that
        are not UTF-8 are left out.
        """
        words = separate_words(texts, self.vocabulary, unknown_word=self._unknown_word)
        return self._matcher.tokenize(words)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Joins pieces to words and words by spaces. Special tokens except [UNK] are left out."""
        left_out = set(SPECIAL_TOKENS) - {"[UNK]"}
        tokens = [self.vocabulary.tokens[index] for index in token_ids]
        return " ".join(token for token in tokens if token not in left_out).replace(" ##", "")

    def describe(self) -> dict[str, Any]:
        """Returns the settings that `WordPiece` needs besides vocab.txt."""
        return {"lowercase": self.vocabulary.lowercase, "strip_accents": self.vocabulary.strip_accents}

    def contents(self) -> Iterator[bytes]:
        """Yields everything that, with `describe`, decides the ids."""
        yield "\n".join(self.vocabulary.tokens).encode()

    def save(self, folder: str) -> None:
        write_vocabulary(self.vocabulary, folder)


def separate_words(texts: tf.Tensor, vocabulary: Vocabulary, *, unknown_word: str) -> tf.Tensor:
    """Normalises `(B,)` texts as BERT does, with spaces around words; too long words become `unknown_word`."""
    replace = tf.strings.regex_replace
    removed = _REMOVED
    if vocabulary.strip_accents:
        texts = tf_text.normalize_utf8(texts, "NFD")
        removed += r"\p{Mn}"
    if vocabulary.lowercase:
        texts = lower_case(texts, strip_accents=vocabulary.strip_accents)
    else:
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace", replacement_char=0xFFFD)
    texts = replace(texts, f"[{removed}]+", "")
    texts = replace(texts, _SPACES, " ")
    texts = replace(texts, _ISOLATED, r" \0 ")
    return replace(texts, _LONG_WORD, unknown_word)


def lower_case(texts: tf.Tensor, *, strip_accents: bool) -> tf.Tensor:
    """Lower-cases `(B,)` texts, each character by itself; bytes that are not UTF-8 become U+FFFD, U+0000 is removed.

    Args:
        texts: In decomposed form if accents are stripped.
        strip_accents: Whether accents are removed before or after.
    """
    kept = () if strip_accents else _WITH_ACCENTS_BEFORE_LOWER_CASE
    for pattern, replacement in (*_BEFORE_LOWER_CASE, *kept):
        texts = tf.strings.regex_replace(texts, pattern, replacement)
    return tf.strings.lower(texts, encoding="utf-8")


def _unused_character(tokens: Iterable[str]) -> str:
    """Returns a private-use character that no token has, so that it becomes [UNK]."""
    used = set(itertools.chain.from_iterable(tokens))
    return next(character for character in map(chr, range(0xE000, 0x110000)) if character not in used)


def train_vocabulary(texts: Callable[[], Iterable[str]], *, size: int, lowercase: bool) -> Vocabulary:
    """Learns a WordPiece vocabulary: the same one for the same texts in any order, on any number of threads.

    The trainer of Hugging Face's `tokenizers` learns the pieces. It numbers characters inside words in the order of a
    hash table and breaks ties by these numbers, so two runs would differ. So the characters are counted first and given
    to it in sorted order.

    Args:
        texts: Returns an iterator over all texts; it is called twice.
        size: Entries of the vocabulary, special tokens included; fewer if the text has no more pieces.
        lowercase: Lower-case and strip accents, like BERT's uncased models.
    Returns:
        Special tokens, then characters, then characters inside words, then pieces in learned order.
    Raises:
        InputError: If there is no text, or `size` is too small for its characters.
    """
    settings = Vocabulary((), lowercase, strip_accents=lowercase)
    first, inner = _count_characters(_word_lists(texts(), settings))
    characters = _choose_characters(first + inner, inner, size)
    alphabet = sorted(characters) + [f"##{character}" for character in sorted(characters & inner.keys())]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=[*SPECIAL_TOKENS, *alphabet],
        limit_alphabet=0,  # all of it is given above
        show_progress=False,
    )
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    spellable = re.compile(f"[{re.escape(''.join(sorted(characters)))}]+")
    words = _word_lists(texts(), settings)
    lines = (" ".join(word for word in line if spellable.fullmatch(word)) for line in words)
    tokenizer.train_from_iterator(lines, trainer)
    ids = tokenizer.get_vocab()
    source = f"The vocabulary of {size} tokens"
    return build_vocabulary(sorted(ids, key=ids.__getitem__), source, lowercase=lowercase, strip_accents=lowercase)


def _word_lists(texts: Iterable[str], settings: Vocabulary) -> Iterator[list[str]]:
    for batch in batched(texts):
        for line in separate_words(tf.constant(batch), settings, unknown_word=" ").numpy():
            yield line.decode().split()


def batched(texts: Iterable[str]) -> Iterator[list[bytes]]:
    """Yields lists of texts as UTF-8. Lone surrogates, which a Python string may contain, are left out."""
    iterator = iter(texts)
    while batch := [text.encode(errors="ignore") for text in itertools.islice(iterator, _TEXTS_PER_BATCH)]:
        yield batch


def _count_characters(lines: Iterable[list[str]]) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Counts characters at the start of words, and those inside words."""
    first: collections.Counter[str] = collections.Counter()
    inner: collections.Counter[str] = collections.Counter()
    for words in lines:
        first.update([word[0] for word in words])
        inner.update("".join([word[1:] for word in words]))
    return first, inner


def _choose_characters(counts: collections.Counter[str], inner: collections.Counter[str], size: int) -> set[str]:
    """Returns the most frequent characters that fit into half the vocabulary; the other half is for longer pieces."""
    if not counts:
        raise InputError("There is no text to train a vocabulary on; check data.sources and data.text_column.")
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    entries = list(itertools.accumulate(1 + (character in inner) for character in ranked))
    covered = list(itertools.accumulate(counts[character] for character in ranked))
    room = size // 2 - len(SPECIAL_TOKENS)
    fitting = bisect.bisect_right(entries, room)
    needed = bisect.bisect_left(covered, _MIN_COVERAGE * covered[-1]) + 1
    if fitting < needed:
        raise InputError(
            f"tokenizer.vocabulary_size is {size}, too small for the {len(ranked)} characters of the text; "
            f"set it to {2 * (entries[needed - 1] + len(SPECIAL_TOKENS))} or more."
        )
    return set(ranked[:fitting])
