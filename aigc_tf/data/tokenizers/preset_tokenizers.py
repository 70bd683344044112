"""Tokenizers of KerasNLP presets: WordPiece and GPT-2's byte pairs as our own, others through KerasNLP's class.

KerasNLP splits text by Python libraries when called eagerly and by TensorFlow ops inside a graph. Only the ops are used
here, at prepare time too, so that both give the same ids.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import kagglehub.exceptions
import keras_nlp
import tensorflow as tf

from aigc_tf.data.tokenizers.byte_pair import BytePair
from aigc_tf.data.tokenizers.byte_pair_files import BytePairs, merges_of, spell
from aigc_tf.data.tokenizers.converted import AS_IT_IS, Spelling, read_spelling
from aigc_tf.data.tokenizers.sentence_piece import spell_pieces
from aigc_tf.data.tokenizers.vocabularies import REQUIRED_TOKENS, Vocabulary, build_vocabulary
from aigc_tf.errors import InputError, RunError, nearest

_ASSETS = "assets"
# While a graph is traced, `_forgetful` swaps an attribute of a layer that every thread shares.
_TRACED_ALONE = threading.RLock()
_CLASSIFIES, _GENERATES = keras_nlp.models.TextClassifierPreprocessor, keras_nlp.models.CausalLMPreprocessor
# Errors of requests, and Kaggle's and Hugging Face's errors for a server's answer, are OSErrors.
_FETCH_ERRORS = (OSError, kagglehub.exceptions.BackendError, kagglehub.exceptions.DataCorruptionError)
# The settings that a saved layer is rebuilt from; the rest of its config is Keras' own and may differ between
# processes.
_KERAS_FIELDS = ("name", "trainable", "dtype", "config_file", "unsplittable_tokens")


class PresetTokenizer(tf.Module):
    """A KerasNLP tokenizer that is neither BERT's nor GPT-2's, such as RoBERTa's byte pairs or Gemma's SentencePiece.

    In a graph KerasNLP's byte-pair tokenizers keep a table of all words, which grows for as long as a server runs. Only
    preparing uses it (`tokenize_remembering`); exported graphs split every word anew, with the same ids.

    Args:
        layer: With its vocabulary.
        source: Its origin, for the messages.
        spelling: Changes a text before it is split.
    Raises:
        InputError: If KerasNLP has no text classifier and no causal language model with such a tokenizer.
    """

    kind = "keras_nlp"
    in_graph = True

    def __init__(self, layer: Any, source: str, spelling: Spelling = AS_IT_IS):
        super().__init__(name="preset_tokenizer")
        self.spelling = spelling
        if isinstance(layer, keras_nlp.tokenizers.BytePairTokenizer):
            layer.unsplittable_tokens = []  # a text that spells "</s>" must not become the special token
        self.layer = layer
        self.vocabulary_size = int(layer.vocabulary_size())
        special = _find_special_tokens(layer, source)
        self.start_ids, self.between_ids, self.end_ids = special.start_ids, special.between_ids, special.end_ids
        self.padding_id, self.uses_segments = special.padding_id, special.uses_segments
        self.end_of_text_id: int | None = getattr(layer, "end_token_id", None)
        self.pieces = _pieces(layer, source)

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Splits `(B,)` strings into `(B, None)` int32 ids, without special tokens. For graphs only."""
        with _forgetful(self.layer):
            return self.tokenize_remembering(texts)

    def tokenize_remembering(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """The same, but words that were seen before are not split again."""
        # Some of the ops refuse bytes that are not UTF-8, so they are left out, as WordPiece does.
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="ignore")
        texts = self.spelling.apply(texts)
        with _TRACED_ALONE:
            return tf.cast(self.layer.tokenize(texts), tf.int32)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the text that the ids spell. Special tokens are left out."""
        if self.pieces:
            return b"".join(self.pieces[index] for index in token_ids).decode(errors="replace")
        special = {*self.start_ids, *self.between_ids, *self.end_ids, self.padding_id}
        (text,) = self.layer.detokenize([[int(index) for index in token_ids if index not in special]])
        return str(text)

    def describe(self) -> dict[str, Any]:
        """Returns the class and the settings that `load_saved` needs besides the files of `save`."""
        config = self.layer.get_config()
        spelling = {"spelling": self.spelling._asdict()} if any(self.spelling) else {}
        return {
            **spelling,
            "class": type(self.layer).__name__,
            "config": {name: config[name] for name in sorted(config) if name not in _KERAS_FIELDS},
        }

    def contents(self) -> Iterator[bytes]:
        """Yields everything that, with `describe`, decides the ids."""
        layer = self.layer
        if isinstance(layer, keras_nlp.tokenizers.SentencePieceTokenizer):
            yield bytes(layer.proto)
        elif isinstance(layer, keras_nlp.tokenizers.BytePairTokenizer):
            yield repr(sorted(layer.vocabulary.items())).encode()
            yield repr(list(layer.merges)).encode()
        else:
            yield repr(list(layer.get_vocabulary())).encode()

    def save(self, folder: str | os.PathLike[str]) -> None:
        assets = Path(folder) / _ASSETS
        assets.mkdir(parents=True, exist_ok=True)
        self.layer.save_assets(os.fspath(assets))


class _NoMemory:
    """Replaces KerasNLP's table of words: it returns what was just put into it, within the same graph."""

    def __init__(self) -> None:
        self._words: tf.Tensor | None = None

    def insert(self, words: tf.Tensor, split_words: tf.Tensor) -> None:
        self._words = split_words

    def lookup(self, words: tf.Tensor) -> tf.Tensor:
        found, self._words = self._words, None
        return tf.fill(tf.shape(words), "") if found is None else found


@contextlib.contextmanager
def _forgetful(layer: Any) -> Iterator[None]:
    """Within it, a byte-pair layer is traced without its table of words."""
    if not isinstance(layer, keras_nlp.tokenizers.BytePairTokenizer):
        yield
        return
    with _TRACED_ALONE:
        layer._maybe_initialized_tf()  # it would make another table if it found none
        table, layer.cache = layer.cache, _NoMemory()
        try:
            yield
        finally:
            layer.cache = table


def load_saved(folder: str | os.PathLike[str], description: dict[str, Any]) -> PresetTokenizer:
    """Rebuilds a `PresetTokenizer` from the files of `save` and the dictionary of `describe`.

    Raises:
        InputError: If the folder is incomplete, or its class is unknown to this KerasNLP.
    """
    name, assets = description.get("class", ""), Path(folder) / _ASSETS
    known = _preprocessors(_GENERATES) | _preprocessors(_CLASSIFIES)
    if name not in known:  # a name is looked up, never imported: a folder is data
        raise InputError(f"{folder} has a {name}, which no text model of KerasNLP {keras_nlp.__version__} uses.")
    try:
        layer = known[name].tokenizer_cls(**description.get("config", {}))
        layer.load_assets(os.fspath(assets))
        spelling = Spelling(**description.get("spelling", {}))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"The {name} of {folder} cannot be loaded: {_first_line(error)}.") from error
    return PresetTokenizer(layer, os.fspath(folder), spelling)


def load_preset(source: str) -> Vocabulary | BytePair | PresetTokenizer:
    """Loads the tokenizer of a KerasNLP preset.

    Args:
        source: The name of a preset, a handle such as `hf://user/model`, or a folder.
    Returns:
        A vocabulary if the tokenizer is BERT's WordPiece, byte pairs if it is GPT-2's; this package splits by these
        itself. Else the tokenizer.
    Raises:
        InputError: If there is no such preset, or its tokenizer is for neither classification nor generation.
        RunError: If it is not on this machine and cannot be fetched.
    """
    layer = _load(source)
    spelling = read_spelling(source) if os.path.isdir(source) else AS_IT_IS
    return _as_vocabulary(layer, source) or _as_byte_pairs(layer, source) or PresetTokenizer(layer, source, spelling)


def is_preset_name(source: str) -> bool:
    """Whether KerasNLP knows a preset of this name, or `source` is a handle such as `kaggle://...`."""
    return "://" in source or source in keras_nlp.models.Backbone.presets


def unknown_preset(source: str) -> InputError:
    """Returns the error for an unknown preset, with the nearest known name."""
    hint = nearest(source, ["train", *keras_nlp.tokenizers.Tokenizer.presets, *os.listdir()])
    return InputError(f"{source!r} is not a file, a folder or a KerasNLP preset.{hint}")


def _load(source: str) -> Any:
    local = os.path.isdir(source)
    if not local and "://" not in source and source not in keras_nlp.tokenizers.Tokenizer.presets:
        raise InputError(f"The KerasNLP preset {source!r} has no tokenizer; it is not a text model.")
    try:
        return keras_nlp.tokenizers.Tokenizer.from_preset(source)
    except FileNotFoundError as error:
        raise InputError(f"{source!r} has no KerasNLP tokenizer: {_first_line(error)}.") from error
    except _FETCH_ERRORS as error:
        raise RunError(
            f"The KerasNLP preset {source!r} is not in this machine's cache and cannot be fetched "
            f"({type(error).__name__}); connect to the network, or give a folder."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{source!r} cannot be loaded as a KerasNLP tokenizer: {_first_line(error)}.") from error


def _as_vocabulary(layer: Any, source: str) -> Vocabulary | None:
    """Returns the vocabulary of a tokenizer that splits like BERT's, None for any other."""
    if not isinstance(layer, keras_nlp.tokenizers.WordPieceTokenizer):
        return None
    plain = (layer.split, layer.split_on_cjk, layer.suffix_indicator, layer.oov_token) == (True, True, "##", "[UNK]")
    tokens = layer.get_vocabulary()
    if not plain or not set(REQUIRED_TOKENS) <= set(tokens):
        return None
    # KerasNLP's uncased presets keep accents; the original models were trained without.
    strip_accents = bool(layer.strip_accents or layer.lowercase)
    return build_vocabulary(tokens, source, lowercase=bool(layer.lowercase), strip_accents=strip_accents)


def _as_byte_pairs(layer: Any, source: str) -> BytePair | None:
    if not isinstance(layer, keras_nlp.tokenizers.GPT2Tokenizer) or layer.add_prefix_space:
        return None
    vocabulary = {str(token): int(index) for token, index in layer.vocabulary.items()}
    return BytePair(BytePairs(vocabulary, tuple(merges_of(layer.merges)), source))


class _SpecialTokens(NamedTuple):
    start_ids: tuple[int, ...]
    between_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    padding_id: int
    uses_segments: bool


def _find_special_tokens(layer: Any, source: str) -> _SpecialTokens:
    """Returns the special tokens around the texts of the classifier of this tokenizer, else of its generator."""
    name = type(layer).__name__
    if name in _preprocessors(_CLASSIFIES):
        preprocessor = _preprocessors(_CLASSIFIES)[name](layer, sequence_length=8)
        takes_segments = "segment_ids" in preprocessor("a")
        packer = preprocessor.packer
        start, between, end = (
            tuple(int(index) for index in ids) for ids in (packer.start_value, packer.sep_value, packer.end_value)
        )
        return _SpecialTokens(start, between, end, int(packer.pad_value), takes_segments)
    if name in _preprocessors(_GENERATES) and isinstance(getattr(layer, "end_token_id", None), int):
        start = () if layer.start_token_id is None else (int(layer.start_token_id),)
        padding = layer.end_token_id if layer.pad_token_id is None else int(layer.pad_token_id)
        return _SpecialTokens(start, (layer.end_token_id,), (layer.end_token_id,), padding, False)
    known = ", ".join(sorted({*_preprocessors(_CLASSIFIES), *_preprocessors(_GENERATES)}))
    raise InputError(
        f"KerasNLP has no text classifier and no causal language model for the {name} of {source!r}; "
        f"it has them for {known}."
    )


def _pieces(layer: Any, source: str) -> tuple[bytes, ...]:
    """Returns the bytes of each id, b"" for special tokens; empty if the tokenizer is not a generator's.

    Other tokenizers may number SentencePiece's pieces in their own way, like XLM-RoBERTa's, or leave spaces out.
    """
    if type(layer).__name__ not in _preprocessors(_GENERATES):
        return ()
    if isinstance(layer, keras_nlp.tokenizers.SentencePieceTokenizer):
        return spell_pieces(bytes(layer.proto), source)
    if isinstance(layer, keras_nlp.tokenizers.BytePairTokenizer):
        tokens = sorted(layer.vocabulary, key=layer.vocabulary.__getitem__)
        return spell(tokens, special=layer.special_tokens)
    return ()


@functools.cache
def _preprocessors(base: Any) -> dict[str, Any]:
    """Returns KerasNLP's preprocessors of one kind by the name of their tokenizer's class."""
    found: dict[str, Any] = {}
    classes = [base]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        if cls.tokenizer_cls is not None:
            found[cls.tokenizer_cls.__name__] = cls
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
