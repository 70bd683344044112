"""Reads and writes WordPiece vocabularies: vocabulary files and Hugging Face folders.

A vocabulary is a list of tokens, one per line, whose ids are the line numbers from 0, and two settings that say how
text is normalised before matching. Everything is checked here, once, so that the C++ op never gets a broken vocabulary.
"""

import codecs
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from aigc_tf import storage
from aigc_tf.errors import InputError, nearest

VOCABULARY_FILE = "vocab.txt"
REQUIRED_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SPECIAL_TOKENS = (*REQUIRED_TOKENS, "[MASK]")
MAX_WORD_CHARACTERS = 100
"""A longer word is [UNK], as in transformers (`max_input_chars_per_word`)."""

_MAX_TOKEN_BYTES = 256  # the limit of the op's trie
# The op ends strings at the first and marks states with the second; the others end a line of vocab.txt.
_FORBIDDEN = {"\0": "U+0000", "\x11": "U+0011", "\n": "U+000A", "\r": "U+000D"}

# transformers' names for "whatever tokenizer.json says": that of version 4, and that of version 5, which writes it for
# most models.
GENERIC_CLASSES = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})
# Its classes that are plain BERT WordPiece; others with a vocab.txt split words differently.
_BERT_CLASSES = GENERIC_CLASSES | {
    *("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"),
    *("BertTokenizerFast", "DistilBertTokenizerFast", "ElectraTokenizerFast", "MobileBertTokenizerFast"),
}
# Settings of transformers that are not computed here, with the only value that is supported.
_FIXED_SETTINGS = {
    "do_basic_tokenize": True,
    "tokenize_chinese_chars": True,
    "handle_chinese_chars": True,
    "clean_text": True,
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": MAX_WORD_CHARACTERS,
}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of a WordPiece vocabulary in the order of their ids, and how text is normalised for them."""

    tokens: tuple[str, ...]
    lowercase: bool
    strip_accents: bool

    def ids(self, *tokens: str) -> tuple[int, ...]:
        """Returns the ids of tokens that are in the vocabulary."""
        return tuple(self.tokens.index(token) for token in tokens)


def build_vocabulary(tokens: Sequence[str], source: str, *, lowercase: bool, strip_accents: bool) -> Vocabulary:
    """Checks tokens and returns them as a vocabulary.

    Args:
        tokens: In the order of their ids.
        source: Their origin, for the messages.
        lowercase: Lower-case text before matching.
        strip_accents: Decompose characters and drop their accents before matching.
    Raises:
        InputError: If a token is empty, repeated or impossible for the op, or a special token is missing.
    """
    if not any(tokens):
        raise InputError(f"{source} has no tokens; a vocabulary file has one token per line.")
    first_lines: dict[str, int] = {}
    for line, token in enumerate(tokens, start=1):
        if not token:
            raise InputError(f"Line {line} of {source} is empty; a vocabulary file has one token per line.")
        if token in first_lines:
            raise InputError(f"Line {line} of {source} repeats the token {token!r} of line {first_lines[token]}.")
        first_lines[token] = line
        _check_token(token, line, source)
    missing = [token for token in REQUIRED_TOKENS if token not in first_lines]
    if missing:
        raise InputError(
            f"{source} lacks {', '.join(missing)}; a WordPiece vocabulary has {', '.join(REQUIRED_TOKENS)}."
        )
    return Vocabulary(tuple(tokens), lowercase, strip_accents)


def _check_token(token: str, line: int, source: str) -> None:
    for character, name in _FORBIDDEN.items():
        if character in token:
            raise InputError(f"Line {line} of {source} contains the control character {name}; no token may.")
    if len(token.encode(errors="surrogatepass")) > _MAX_TOKEN_BYTES:
        raise InputError(f"Line {line} of {source} is longer than the {_MAX_TOKEN_BYTES} bytes a token can have.")


def read_vocabulary_file(path: str | os.PathLike[str], *, lowercase: bool) -> Vocabulary:
    """Reads a file with one token per line, such as BERT's vocab.txt. Line ends may be those of Windows.

    Raises:
        InputError: If the file is missing, not UTF-8 or not a WordPiece vocabulary, or has capital letters that
            lower-cased text can never match.
    """
    tokens = read_tokens(path)
    vocabulary = build_vocabulary(tokens, os.fspath(path), lowercase=lowercase, strip_accents=lowercase)
    capitals = [token for token in tokens if token != token.lower() and token[:1] != "["]
    if lowercase and len(capitals) > max(len(tokens) // 20, 20):
        raise InputError(
            f"{os.fspath(path)} has {len(capitals)} tokens with capital letters, such as {capitals[0]!r}, which "
            "lower-cased text never matches; set tokenizer.lowercase to False."
        )
    return vocabulary


def read_tokens(path: str | os.PathLike[str]) -> list[str]:
    """Reads the lines of a vocabulary file, unchecked."""
    if not storage.exists(path):
        raise InputError(f"There is no file {os.fspath(path)}.")
    try:
        content = storage.read_bytes(path)
    except OSError as error:
        raise InputError(f"Cannot read {os.fspath(path)}: {error.strerror or error}.") from error
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"Line {line} of {os.fspath(path)} is not valid UTF-8; save the vocabulary as UTF-8."
        ) from error
    # Not splitlines(), which also splits at U+2028 and U+0085; both may be tokens.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def holds_word_piece(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder has a vocab.txt, or a tokenizer.json of transformers with a WordPiece model."""
    folder = Path(folder)
    if (folder / VOCABULARY_FILE).is_file():
        return True
    return _model_type(_section(read_settings(folder / "tokenizer.json"), "model", folder)) == "WordPiece"


def read_hugging_face_folder(folder: str | os.PathLike[str], *, lowercase: bool) -> Vocabulary:
    """Reads the WordPiece vocabulary of a model folder of transformers: vocab.txt, else tokenizer.json.

    Args:
        folder: With vocab.txt or tokenizer.json, and usually tokenizer_config.json.
        lowercase: Used if neither tokenizer_config.json nor tokenizer.json says it.
    Raises:
        InputError: If the tokenizer is not WordPiece, or has settings that change ids.
    """
    folder = Path(folder)
    settings, pipeline = read_settings(folder / "tokenizer_config.json"), read_settings(folder / "tokenizer.json")
    normalizer, model = (_section(pipeline, name, folder) for name in ("normalizer", "model"))
    if "lowercase" in normalizer:  # under tokenizer_config.json's name for it
        normalizer = {**normalizer, "do_lower_case": normalizer["lowercase"]}
    _check_is_word_piece(folder, settings, pipeline)
    _check_settings(folder, {**normalizer, **model, **settings})
    if (folder / VOCABULARY_FILE).is_file():
        source, tokens = os.fspath(folder / VOCABULARY_FILE), read_tokens(folder / VOCABULARY_FILE)
    else:
        source = os.fspath(folder / "tokenizer.json")
        tokens = _ordered(model.get("vocab"), source)
    _check_added_tokens(folder, pipeline, tokens)
    # As in transformers, tokenizer_config.json overrides tokenizer.json, except for the classes that use the latter
    # alone.
    is_generic = settings.get("tokenizer_class") in GENERIC_CLASSES
    merged = {**settings, **normalizer} if is_generic and pipeline else {**normalizer, **settings}
    lowercase = bool(merged.get("do_lower_case", lowercase))
    strip_accents = merged.get("strip_accents")
    return build_vocabulary(
        tokens, source, lowercase=lowercase, strip_accents=lowercase if strip_accents is None else bool(strip_accents)
    )


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a settings file of transformers; a missing file has no settings.

    Raises:
        InputError: If it is not a JSON object.
    """
    if not path.is_file():
        return {}
    settings = storage.read_json(path)
    if not isinstance(settings, dict):
        raise InputError(f"{path} is not a JSON object.")
    return settings


def _section(pipeline: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    section = pipeline.get(name) or {}
    if not isinstance(section, dict):
        raise InputError(f"{name!r} of {folder / 'tokenizer.json'} is not a JSON object.")
    return section


def _check_is_word_piece(folder: Path, settings: dict[str, Any], pipeline: dict[str, Any]) -> None:
    name = settings.get("tokenizer_class")
    if name is not None and name not in _BERT_CLASSES:
        raise InputError(f"{folder} holds a {name}, which is not BERT's WordPiece; use a model whose tokenizer is.")
    expected = {"model": "WordPiece", "normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
    for part, kind in expected.items() if pipeline else ():
        section = _section(pipeline, part, folder)
        found = _model_type(section) if part == "model" else section.get("type")
        if found != kind:
            raise InputError(
                f"{folder} is not BERT's WordPiece: {part} of its tokenizer.json is {found}, not {kind}; "
                "use a model whose tokenizer is WordPiece, or a KerasNLP preset."
            )


def _model_type(model: dict[str, Any]) -> str | None:
    # Files of old versions do not name it; only WordPiece has this setting.
    return model.get("type", "WordPiece" if "max_input_chars_per_word" in model else None)


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    for name, value in _FIXED_SETTINGS.items():
        found = settings.get(name, value)
        found = found.get("content") if isinstance(found, dict) else found
        if found is not None and found != value:
            raise InputError(f"The tokenizer of {folder} has {name} {found!r}; only {value!r} is supported.")
    if settings.get("never_split"):
        raise InputError(f"The tokenizer of {folder} has never_split, which is not supported; remove it.")


def _check_added_tokens(folder: Path, pipeline: dict[str, Any], tokens: Sequence[str]) -> None:
    """Refuses tokens added on top of WordPiece: transformers searches them in the raw text, which no op here can do."""
    added = [token.get("content", "") for token in pipeline.get("added_tokens") or [] if isinstance(token, dict)]
    added += list(read_settings(folder / "added_tokens.json"))
    unknown = sorted(set(added) - set(SPECIAL_TOKENS))
    if unknown:
        raise InputError(
            f"The tokenizer of {folder} adds {len(unknown)} tokens to WordPiece, such as {unknown[0]!r}, which only "
            f"transformers can find in a text; give its {VOCABULARY_FILE} alone to do without them."
        )


def _ordered(vocabulary: Any, source: str) -> list[str]:
    ids = vocabulary.values() if isinstance(vocabulary, dict) else [None]
    if not all(isinstance(index, int) for index in ids) or set(ids) != set(range(len(ids))):
        raise InputError(f"The vocabulary of {source} must map tokens to the ids 0, 1, 2, ... without a gap.")
    return sorted(vocabulary, key=vocabulary.__getitem__)


def write_vocabulary(vocabulary: Vocabulary, folder: str | os.PathLike[str]) -> None:
    """Writes vocab.txt, and tokenizer.json and tokenizer_config.json with which transformers gives the same ids."""
    folder = Path(folder)
    storage.write_bytes(folder / VOCABULARY_FILE, "".join(f"{token}\n" for token in vocabulary.tokens).encode())
    storage.write_bytes(folder / "tokenizer.json", hugging_face_tokenizer(vocabulary).to_str().encode())
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if "[MASK]" in vocabulary.tokens:
        special["mask_token"] = "[MASK]"
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": vocabulary.lowercase,
        "strip_accents": vocabulary.strip_accents,
        "tokenize_chinese_chars": True,
        **special,
    }
    storage.write_json(folder / "tokenizer_config.json", settings)


def hugging_face_tokenizer(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """Returns the reference: the tokenizer of Hugging Face's `tokenizers` for this vocabulary."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    model = models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARACTERS)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in ids])
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=vocabulary.lowercase, strip_accents=vocabulary.strip_accents
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def missing_path(path: str) -> InputError:
    """Returns the error for a missing path, with the nearest name in its folder."""
    parent = Path(path).expanduser().parent
    if not parent.is_dir():
        return InputError(f"There is no file or folder {path!r}; the folder {os.fspath(parent)!r} is missing too.")
    return InputError(f"There is no file or folder {path!r}.{nearest(Path(path).name, os.listdir(parent))}")
