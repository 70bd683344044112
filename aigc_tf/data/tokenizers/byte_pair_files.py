"""Reads and writes the byte pairs of GPT-2: vocab.json and merges.txt, or tokenizer.json."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from aigc_tf import storage
from aigc_tf.data.tokenizers.vocabularies import GENERIC_CLASSES, read_settings
from aigc_tf.errors import InputError

END_OF_TEXT = "<|endoftext|>"

_VOCABULARY_FILE, _MERGES_FILE = "vocab.json", "merges.txt"
_FILES = ((_VOCABULARY_FILE, _MERGES_FILE), ("encoder.json", "vocab.bpe"))  # of transformers, and of OpenAI
# transformers' classes that split like GPT-2; others with the same files have patterns of their own.
_CLASSES = GENERIC_CLASSES | {"GPT2Tokenizer", "GPT2TokenizerFast"}


@dataclasses.dataclass(frozen=True)
class BytePairs:
    """A vocabulary and merges, unchecked; `source` is where they come from, for messages."""

    vocabulary: dict[str, int]
    merges: tuple[str, ...]
    source: str


def find_byte_pairs(folder: str | os.PathLike[str]) -> BytePairs | None:
    """Reads the byte pairs of a folder of GPT-2, of transformers or of OpenAI; None if it has none.

    Raises:
        InputError: If a file is broken, or has settings that change ids.
    """
    folder = Path(folder)
    settings, pipeline = read_settings(folder / "tokenizer_config.json"), read_settings(folder / "tokenizer.json")
    if settings.get("tokenizer_class", "GPT2Tokenizer") not in _CLASSES:
        return None
    found = read_byte_pairs(folder) or _read_pipeline(folder, pipeline)
    if found is None:
        return None
    added = dict(added_tokens(folder, settings, pipeline))
    # Byte pairs of a model of another kind, such as RoBERTa.
    if END_OF_TEXT not in {**found.vocabulary, **added} and (folder / "config.json").is_file():
        return None
    _check_settings(folder, settings, pipeline)
    return dataclasses.replace(found, vocabulary={**found.vocabulary, **added})


def read_byte_pairs(folder: str | os.PathLike[str]) -> BytePairs | None:
    """Reads vocab.json and merges.txt, or encoder.json and vocab.bpe; None if the folder has neither pair.

    Raises:
        InputError: If a file is broken.
    """
    for names in _FILES:
        vocabulary_path, merges_path = (Path(folder) / name for name in names)
        if vocabulary_path.is_file() and merges_path.is_file():
            vocabulary = storage.read_json(vocabulary_path)
            if not isinstance(vocabulary, dict):
                raise InputError(f"{vocabulary_path} is not a JSON object of tokens and ids.")
            return BytePairs(vocabulary, tuple(_read_merges(merges_path)), os.fspath(folder))
    return None


def merges_of(lines: Iterable[str]) -> Iterator[str]:
    """Yields the merges from the lines of a merges file; the first line may be a version."""
    return (line for line in lines if line and not line.startswith("#version"))


def write_byte_pairs(
    tokens: Sequence[str], merges: Sequence[str], special: Sequence[str], folder: str | os.PathLike[str]
) -> None:
    """Writes files with which transformers' GPT2Tokenizer gives the same ids, in old and new versions."""
    folder = Path(folder)
    storage.write_json(folder / _VOCABULARY_FILE, {token: index for index, token in enumerate(tokens)})
    storage.write_bytes(folder / _MERGES_FILE, "".join(f"{line}\n" for line in ("#version: 0.2", *merges)).encode())
    pipeline = hugging_face_tokenizer(tokens, merges, special).to_str()
    storage.write_bytes(folder / "tokenizer.json", pipeline.encode())
    names = ("bos_token", "eos_token", "unk_token")
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **dict.fromkeys(names, END_OF_TEXT)}
    storage.write_json(folder / "tokenizer_config.json", settings)


def hugging_face_tokenizer(
    tokens: Sequence[str], merges: Sequence[str], special: Sequence[str]
) -> tokenizers.Tokenizer:
    """Returns the reference: the tokenizer of Hugging Face's `tokenizers` for these byte pairs."""
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = tokenizers.Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, pairs))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@functools.cache
def byte_characters() -> tuple[str, ...]:
    """Returns the character that GPT-2 writes for each byte: the byte itself if printable, else one after U+0100."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = itertools.count(256)
    return tuple(chr(byte if byte in visible else next(others)) for byte in range(256))


def spell(tokens: Iterable[str], *, special: Collection[str]) -> tuple[bytes, ...]:
    """Returns the bytes of tokens, b"" for special ones and those with characters that stand for no byte."""
    bytes_of = {character: bytes([byte]) for byte, character in enumerate(byte_characters())}
    left_out = set(special)
    return tuple(
        b"" if token in left_out or not bytes_of.keys() >= set(token) else b"".join(map(bytes_of.__getitem__, token))
        for token in tokens
    )


def _read_merges(path: Path) -> list[str]:
    try:
        return list(merges_of(storage.read_bytes(path).decode().replace("\r\n", "\n").split("\n")))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid UTF-8; save the merges as UTF-8.") from error


def _read_pipeline(folder: Path, pipeline: dict[str, Any]) -> BytePairs | None:
    model = pipeline.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or "merges" not in model:
        return None
    merges = tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    return BytePairs(model["vocab"], merges, os.fspath(folder / "tokenizer.json"))


def added_tokens(folder: Path, settings: dict[str, Any], pipeline: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields the special tokens that were added to the vocabulary, and their ids.

    Args:
        folder: Of transformers.
        settings: Its tokenizer_config.json.
        pipeline: Its tokenizer.json.
    Raises:
        InputError: If other tokens were added: they are searched in the text, which no op can do.
    """
    tokens = [token for token in pipeline.get("added_tokens") or [] if isinstance(token, dict)]
    decoder = settings.get("added_tokens_decoder") or {}
    tokens += [{**token, "id": int(index)} for index, token in decoder.items()]
    tokens += [{"content": name, "id": id_} for name, id_ in read_settings(folder / "added_tokens.json").items()]
    named = [value.get("content") if isinstance(value, dict) else value for value in settings.values()]
    special = {token["content"] for token in tokens if token.get("special")} | {END_OF_TEXT}
    special.update(name for name in named if isinstance(name, str))
    for token in tokens:
        if token["content"] not in special:
            raise InputError(
                f"The tokenizer of {folder} adds tokens such as {token['content']!r}, which only transformers can find "
                "in a text; give a folder with the files of its vocabulary alone to do without them."
            )
        yield token["content"], token["id"]


def _check_settings(folder: Path, settings: dict[str, Any], pipeline: dict[str, Any]) -> None:
    if settings.get("add_prefix_space"):
        raise InputError(f"The tokenizer of {folder} has add_prefix_space, which changes texts; set it to false.")
    found = [pipeline.get("normalizer"), *(pipeline.get("pre_tokenizer") or {}).items()]
    expected = [None, ("type", "ByteLevel"), ("add_prefix_space", False), ("trim_offsets", True), ("use_regex", True)]
    wrong = [item for item in found if item not in expected and item != ("trim_offsets", False)] if pipeline else []
    if wrong:
        raise InputError(
            f"{folder} does not split text as GPT-2 does: its tokenizer.json has {wrong[0]!r}; use a model whose "
            "tokenizer is GPT-2's, or a KerasNLP preset."
        )
