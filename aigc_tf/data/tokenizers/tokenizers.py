"""Text to token ids: one tokenizer for prepare time and for the exported graph.

`build_tokenizer` finds or trains it, `Tokenizer.save` and `load_tokenizer` carry it along with the prepared data, and
`Tokenizer.tokenize` runs the same ops wherever it is called, so that no text gets other ids when it is served.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from aigc_tf import storage
from aigc_tf.config import TokenizerConfig
from aigc_tf.data.sources.samples import resolve_sample
from aigc_tf.data.tokenizers import vocabularies
from aigc_tf.data.tokenizers.byte_pair import BytePair, rows_of
from aigc_tf.data.tokenizers.byte_pair_files import find_byte_pairs, read_byte_pairs
from aigc_tf.data.tokenizers.preset_tokenizers import (
    PresetTokenizer,
    is_preset_name,
    load_preset,
    load_saved,
    unknown_preset,
)
from aigc_tf.data.tokenizers.sentence_piece import MODEL_FILE, SentencePiece, read_model, train_model
from aigc_tf.data.tokenizers.vocabularies import VOCABULARY_FILE, Vocabulary
from aigc_tf.data.tokenizers.wordpiece import WordPiece, batched, train_vocabulary
from aigc_tf.errors import InputError, RunError

INFO_FILE = "aigc_tf_tokenizer.json"
_VERSION = 1
"""Of the way text is split; a change that gives other ids makes it 2, so that `sha256` tells the two apart."""

Splitter = WordPiece | SentencePiece | BytePair | PresetTokenizer


class Tokenizer(tf.Module):
    """Splits text into token ids, and knows the special tokens around them.

    A tf.Module, so that a SavedModel keeps what it needs when it is held by the module that is saved.

    Attributes:
        kind: `wordpiece`, `sentencepiece`, `byte_pair` or `keras_nlp`.
        vocabulary_size: Number of ids.
        start_ids: Before the first text.
        between_ids: Between the texts of a pair.
        end_ids: After the last text.
        padding_id: Fills rows up.
        uses_segments: Whether the second text of a pair has segment id 1.
        end_of_text_id: Between documents, and where generation ends; None for kind `wordpiece`.
        start_of_text_id: What a model reads before a document's first token: the end of text, or for kind `keras_nlp`
            the token that such models have for it.
        in_graph: Whether `tokenize` can run in an exported graph.
    """

    def __init__(self, splitter: Splitter):
        super().__init__(name="tokenizer")
        self.splitter = splitter
        self.kind: str = splitter.kind
        self.vocabulary_size: int = splitter.vocabulary_size
        self.start_ids: tuple[int, ...] = splitter.start_ids
        self.between_ids: tuple[int, ...] = splitter.between_ids
        self.end_ids: tuple[int, ...] = splitter.end_ids
        self.padding_id: int = splitter.padding_id
        self.uses_segments: bool = splitter.uses_segments
        self.end_of_text_id: int | None = splitter.end_of_text_id
        has_own_start = splitter.kind == PresetTokenizer.kind and splitter.start_ids
        self.start_of_text_id = splitter.start_ids[0] if has_own_start else splitter.end_of_text_id
        self.in_graph: bool = splitter.in_graph
        split = splitter.tokenize_remembering if isinstance(splitter, PresetTokenizer) else splitter.tokenize
        tokenize = tf.function(split, input_signature=[tf.TensorSpec([None], tf.string)])
        rows = tf.RaggedTensorSpec([None, None], tf.int32)
        detokenize = tf.function(self._join_pieces, input_signature=[rows])
        # Hidden from SavedModels, which would save the functions as well.
        self._tokenize = lambda texts: tokenize(texts)
        self._detokenize = lambda token_ids: detokenize(token_ids)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The tokens in the order of their ids; of kind `wordpiece` alone."""
        return self.splitter.vocabulary.tokens if isinstance(self.splitter, WordPiece) else ()

    @property
    def lowercase(self) -> bool:
        """Whether WordPiece lower-cases text; False for other kinds."""
        return isinstance(self.splitter, WordPiece) and self.splitter.vocabulary.lowercase

    @property
    def strip_accents(self) -> bool:
        """Whether WordPiece drops accents; False for other kinds."""
        return isinstance(self.splitter, WordPiece) and self.splitter.vocabulary.strip_accents

    def tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """Splits texts into token ids, eagerly or in a graph, by the same ops.

        Args:
            texts: `(B,)` strings; bytes that are no UTF-8 are left out, or read as U+FFFD (SentencePiece, byte pairs).
        Returns:
            `(B, None)` int32, without special tokens. No text gives the id of [CLS], [SEP], [PAD] or [MASK].
        """
        return self.splitter.tokenize(texts) if tf.inside_function() else self._tokenize(texts)

    def detokenize(self, token_ids: tf.RaggedTensor) -> tf.Tensor:
        """Joins the bytes of pieces, eagerly or in a graph; for the kinds that have `piece_bytes`.

        Args:
            token_ids: `(B, None)` int32. Special tokens vanish.
        Returns:
            `(B,)` strings: the very bytes that were split, and no UTF-8 where the ids end within a character.
        """
        return self._join_pieces(token_ids) if tf.inside_function() else self._detokenize(token_ids)

    def _join_pieces(self, token_ids: tf.RaggedTensor) -> tf.Tensor:
        pieces = tf.gather(tf.constant(self.piece_bytes()), token_ids.values)
        rows = rows_of(token_ids.row_splits[1:], tf.size(pieces))
        return tf.strings.unsorted_segment_join(pieces, rows, tf.cast(token_ids.nrows(), tf.int32))

    def piece_bytes(self) -> list[bytes]:
        """Returns the bytes of each id, b"" for special tokens: the text of ids is what they make, joined.

        Raises:
            RunError: For kind `wordpiece`, whose pieces do not say where spaces were.
        """
        pieces: Sequence[bytes] = getattr(self.splitter, "pieces", ())
        if not pieces:
            raise RunError(
                f"A {self.kind} tokenizer does not keep all of a text, so that it cannot write any; set "
                "tokenizer.kind to 'sentencepiece', or tokenizer.source to another one."
            )
        return list(pieces)

    def encode(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Splits texts into one int32 array each. Threads may call it at once; the work is done outside of Python."""
        rows: list[np.ndarray] = []
        for batch in batched(texts):
            ragged = self.tokenize(tf.constant(batch))
            ids, splits = ragged.values.numpy(), ragged.row_splits.numpy().tolist()
            rows.extend(ids[start:end] for start, end in itertools.pairwise(splits))
        return rows

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text that the ids spell.

        It is the one they came from for the kinds that have `piece_bytes`, with U+FFFD for bytes that are no UTF-8;
        for the others it is to be read by people.

        Raises:
            ValueError: If an id is not in the vocabulary.
        """
        return self.splitter.decode(self._checked(token_ids))

    def decode_bytes(self, token_ids: Sequence[int] | np.ndarray) -> bytes:
        """Returns the bytes that the ids spell, for the kinds that have `piece_bytes`.

        Raises:
            ValueError: If an id is not in the vocabulary.
        """
        pieces = self.piece_bytes()
        return b"".join(pieces[index] for index in self._checked(token_ids))

    def _checked(self, token_ids: Sequence[int] | np.ndarray) -> list[int]:
        ids = [int(index) for index in token_ids]
        wrong = [index for index in ids if not 0 <= index < self.vocabulary_size]
        if wrong:
            raise ValueError(f"Token ids are in [0, {self.vocabulary_size}), received {wrong[0]}.")
        return ids

    def sha256(self) -> str:
        """Returns a hash of all that decides the ids; that of a saved and loaded tokenizer is the same."""
        settings = {"version": _VERSION, "kind": self.kind, **self.splitter.describe()}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for content in self.splitter.contents():
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns what is worth knowing of it, as JSON values."""
        return {"kind": self.kind, "vocabulary_size": self.vocabulary_size}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes vocabulary files and settings into a local folder; transformers can load it where it is WordPiece.

        Raises:
            RunError: If the disk is full or the place cannot be written.
        """
        storage.make_folder(folder)
        self.splitter.save(os.fspath(folder))
        special = {name: list(getattr(self, name)) for name in ("start_ids", "between_ids", "end_ids")}
        settings = {"version": _VERSION, "kind": self.kind, **self.splitter.describe()}
        info = {**settings, **special, "padding_id": self.padding_id, "sha256": self.sha256()}
        storage.write_json(Path(folder) / INFO_FILE, info)


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Loads what `Tokenizer.save` wrote.

    Raises:
        InputError: If the folder holds no such tokenizer, or it was changed since.
    """
    path = Path(folder) / INFO_FILE
    if not path.is_file():
        raise InputError(f"{os.fspath(folder)} holds no tokenizer: {INFO_FILE} is missing; prepare the data again.")
    info = storage.read_json(path)
    if not isinstance(info, dict) or info.get("kind") not in _LOADERS:
        raise InputError(f"{path} does not describe a tokenizer; prepare the data again.")
    tokenizer = Tokenizer(_LOADERS[info["kind"]](os.fspath(folder), info))
    if tokenizer.sha256() != info.get("sha256"):
        raise InputError(
            f"The tokenizer in {os.fspath(folder)} was changed since it was saved; prepare the data again."
        )
    return tokenizer


def _load_word_piece(folder: str, info: dict[str, Any]) -> WordPiece:
    path = Path(folder) / VOCABULARY_FILE
    flags = {name: bool(info.get(name)) for name in ("lowercase", "strip_accents")}
    return WordPiece(vocabularies.build_vocabulary(vocabularies.read_tokens(path), os.fspath(path), **flags))


def _load_sentence_piece(folder: str, _: dict[str, Any]) -> SentencePiece:
    return read_model(Path(folder) / MODEL_FILE)


def _load_byte_pair(folder: str, _: dict[str, Any]) -> BytePair:
    found = read_byte_pairs(folder)
    if found is None:
        raise InputError(f"The tokenizer in {folder} lacks vocab.json or merges.txt; prepare the data again.")
    return BytePair(found)


_LOADERS: dict[str, Callable[[str, dict[str, Any]], Splitter]] = {
    "wordpiece": _load_word_piece,
    "sentencepiece": _load_sentence_piece,
    "byte_pair": _load_byte_pair,
    "keras_nlp": load_saved,
}


def build_tokenizer(
    config: TokenizerConfig, model_source: str, texts: Callable[[], Iterable[str]], *, kind: str = "wordpiece"
) -> Tokenizer:
    """Finds or trains the tokenizer of an experiment.

    Args:
        config: Where it comes from; an empty source means that of the model.
        model_source: `model.source` of the experiment.
        texts: Gives the texts anew each time; called for source `train` only, once or twice.
        kind: `wordpiece` or `sentencepiece`, for source `train`.
    Raises:
        InputError: If the source is nothing that can be read as a tokenizer.
        RunError: If a preset or a sample is not on this machine and cannot be fetched.
    """
    source = config.source or model_source
    if not source:
        raise InputError(
            "tokenizer.source and model.source are both empty; set tokenizer.source to 'train' to learn a vocabulary "
            "from the texts, or to a vocabulary file, a Hugging Face folder or a KerasNLP preset."
        )
    if source == "train" and kind == "sentencepiece":
        return Tokenizer(SentencePiece(train_model(texts(), size=config.vocabulary_size), "The trained model"))
    if source == "train":
        return Tokenizer(WordPiece(train_vocabulary(texts, size=config.vocabulary_size, lowercase=config.lowercase)))
    return _load_source(resolve_sample(source), config)


def _load_source(source: str, config: TokenizerConfig) -> Tokenizer:
    path = Path(source).expanduser()
    if path.is_dir():
        return _load_folder(path, config)
    if path.is_file():
        return _load_file(os.fspath(path), config)
    if storage.is_remote(source) and source.endswith((".txt", ".model")):
        return _load_file(source, config)
    if is_preset_name(source):
        return _of(load_preset(source))
    if os.sep in source or source.endswith((".txt", ".json", ".model")):
        raise vocabularies.missing_path(source)
    raise unknown_preset(source)


def _load_file(path: str, config: TokenizerConfig) -> Tokenizer:
    if path.endswith(".model"):
        return Tokenizer(read_model(path))
    return _of(vocabularies.read_vocabulary_file(path, lowercase=config.lowercase))


def _load_folder(folder: Path, config: TokenizerConfig) -> Tokenizer:
    for own in (folder, *sorted(folder.glob("encoders/*"))):  # also the folder of a run, or of prepared data
        if (own / INFO_FILE).is_file():
            return load_tokenizer(own)  # columns of one data set share their tokenizer
    if vocabularies.holds_word_piece(folder):
        return _of(vocabularies.read_hugging_face_folder(folder, lowercase=config.lowercase))
    byte_pairs = find_byte_pairs(folder)
    if byte_pairs is not None:
        return Tokenizer(BytePair(byte_pairs))
    if (folder / "config.json").is_file():  # of KerasNLP, or of transformers where KerasNLP can convert it
        return _of(load_preset(os.fspath(folder)))
    raise InputError(
        f"The folder {os.fspath(folder)} holds no WordPiece tokenizer, no byte pairs of GPT-2 and no preset; a Hugging "
        f"Face folder has {VOCABULARY_FILE}, vocab.json and merges.txt, or tokenizer.json, and a preset config.json, "
        "tokenizer.json and assets."
    )


def _of(found: Vocabulary | BytePair | PresetTokenizer) -> Tokenizer:
    return Tokenizer(WordPiece(found) if isinstance(found, Vocabulary) else found)
