"""The prepared data set: plain NumPy files and one JSON file, written once and read by memory map.

    <folder>/
      dataset.json                   what is in it, where it comes from, and the size and sha256 of every file
      tokenizer/                     vocabulary files, as prepare time and the exported graph read them
      <split>/tokens-NNNNN.npy       uint16, uint32 for large vocabularies; examples end to end, no special tokens
      <split>/offsets-NNNNN.npy      int64 (n + 1,); example i of the shard is tokens[offsets[i]:offsets[i + 1]]
      <split>/boundaries-NNNNN.npy   int32 (n,); where the second part of a pair starts, for a generator the response;
                                     0 for single texts
      <split>/labels-NNNNN.npy       single_label int32 (n,), multi_label uint8 (n, C), regression float32 (n,); with
                                     problem type "none", that of a generator's documents, there are none

Example ids count from 0 within a split, through its shards. A split without examples is not there.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from aigc_tf import storage
from aigc_tf.config import PROBLEM_TYPES
from aigc_tf.errors import InputError

SCHEMA_VERSION = 1
INFO_NAME = "dataset.json"
TOKENIZER_FOLDER = "tokenizer"
SPLIT_NAMES = ("train", "validation", "test")

NO_LABELS = "none"
"""Problem type of documents and of pairs of prompt and response, which a generator learns from."""

LABEL_TYPES = {"single_label": np.int32, "multi_label": np.uint8, "regression": np.float32}

_COMMAND = "python scripts/prepare.py --config=..."
_AGAIN = f"prepare the data again with `{_COMMAND} --overwrite`."
_FIELDS: dict[str, type] = {  # of dataset.json, as far as reading depends on them
    "task": str,
    "problem_type": str,
    "is_pair": bool,
    "label_names": list,
    "vocabulary_size": int,
    "splits": dict,
    "files": dict,
}


def token_type(vocabulary_size: int) -> type[np.unsignedinteger]:
    """Returns the smallest type that holds all ids of a vocabulary."""
    return np.uint16 if vocabulary_size <= 2**16 else np.uint32


def array_path(folder: Path, array: str, number: int) -> Path:
    """Returns the path of shard `number` of `tokens`, `offsets`, `boundaries` or `labels` in the folder of a split."""
    return folder / f"{array}-{number:05}.npy"


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the size and sha256 of every file but dataset.json, by its path with slashes."""
    paths = sorted(_files(folder))
    with ThreadPoolExecutor(2) as pool:
        hashes = pool.map(storage.sha256_file, (folder / path for path in paths))
        return {
            path: {"bytes": (folder / path).stat().st_size, "sha256": digest}
            for path, digest in zip(paths, hashes, strict=True)
        }


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and path.name != INFO_NAME and not path.name.startswith("."):
            yield path.relative_to(folder).as_posix()


class PreparedSplit:
    """The examples of one split, by memory map: opening costs nothing, and reading an example reads its pages."""

    def __init__(self, folder: Path, info: Mapping[str, Any]) -> None:
        """Opens the shards and compares their types and shapes with what dataset.json says.

        Args:
            folder: Of the split; its name is the split's.
            info: What dataset.json holds.

        Raises:
            InputError: If a file is not as dataset.json says.
        """
        self._folder, self._is_pair = folder, bool(info["is_pair"])
        self._tokens, self._offsets, self._boundaries, self._labels = [], [], [], []
        tokens, labels = token_type(info["vocabulary_size"]), LABEL_TYPES.get(info["problem_type"])
        row = (len(info["label_names"]),) if info["problem_type"] == "multi_label" else ()
        shards = info["splits"][folder.name]["shards"]
        for number, shard in enumerate(shards):
            count, num_tokens = shard["examples"], shard["tokens"]
            self._tokens.append(_load(folder, "tokens", number, tokens, (num_tokens,)))
            self._offsets.append(_load(folder, "offsets", number, np.int64, (count + 1,)))
            self._boundaries.append(_load(folder, "boundaries", number, np.int32, (count,)))
            if labels is not None:
                self._labels.append(_load(folder, "labels", number, labels, (count, *row)))
            if self._offsets[-1][0] != 0 or self._offsets[-1][-1] != num_tokens:
                raise InputError(f"{array_path(folder, 'offsets', number)} does not end where its tokens do; {_AGAIN}")
        self._starts = np.cumsum([0] + [shard["examples"] for shard in shards])  # first id of each shard
        self._token_starts = np.cumsum([0] + [shard["tokens"] for shard in shards])  # of each shard in the stream
        self.num_examples: int = int(self._starts[-1])
        self.num_tokens: int = int(self._token_starts[-1])

    @property
    def lengths(self) -> np.ndarray:
        """`(n,)` int64: tokens of each example, both parts of a pair together, without special tokens.

        Computed at each access, since it is the one thing here whose size grows with the examples.
        """
        return np.concatenate([np.diff(offsets) for offsets in self._offsets])

    @property
    def boundaries(self) -> np.ndarray:
        """`(n,)` int32: tokens of the first part of a pair; 0 for single texts. Computed at each access."""
        return np.concatenate(self._boundaries)

    def count_longer(self, num_tokens: int) -> int:
        """Returns how many examples have more tokens than that."""
        count = 0
        for number in range(len(self._offsets)):  # by maps of their own, so that what is read does not stay in memory
            offsets = np.load(array_path(self._folder, "offsets", number), mmap_mode="r", allow_pickle=False)
            count += int((np.diff(offsets) > num_tokens).sum())
        return count

    def parts(self, example_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the token ids of an example: the text and the second text, which is empty for single texts."""
        return self.rows(np.array([example_id]))[0]

    def rows(self, example_ids: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the parts of several examples: read-only views of the files, uint16 or uint32.

        Raises:
            IndexError: If there is no such example.
        """
        rows = []
        for shard, i in zip(*self._places(example_ids), strict=True):
            offsets = self._offsets[shard]
            start, end = offsets[i], offsets[i + 1]
            middle = start + self._boundaries[shard][i] if self._is_pair else end
            rows.append((self._tokens[shard][start:middle], self._tokens[shard][middle:end]))
        return rows

    @property
    def document_ends(self) -> np.ndarray:
        """`(n,)` int64: where each example ends in the stream of all tokens. Computed at each access."""
        return np.concatenate(
            [offsets[1:] + start for offsets, start in zip(self._offsets, self._token_starts[:-1], strict=True)]
        )

    def token_range(self, start: int, stop: int) -> np.ndarray:
        """Returns the tokens `[start, stop)` of all examples end to end, with nothing between them.

        A read-only view of the file, uint16 or uint32; a copy where the range is in several shards.

        Raises:
            IndexError: If the range is not within the `num_tokens` of the split.
        """
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"Tokens are in [0, {self.num_tokens}), received {start} to {stop}.")
        first = max(0, int(np.searchsorted(self._token_starts, start, side="right")) - 1)
        first = min(first, len(self._tokens) - 1)
        parts: list[np.ndarray] = []
        for shard in range(first, len(self._tokens)):
            begin = int(self._token_starts[shard])
            if begin >= stop and parts:
                break
            parts.append(self._tokens[shard][max(0, start - begin) : max(0, stop - begin)])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def labels(self, example_ids: np.ndarray) -> np.ndarray:
        """Returns `(b,)` int32, `(b, C)` uint8 or `(b,)` float32 by problem type.

        Raises:
            IndexError: If there is no such example.
            ValueError: If the examples are documents, which have no labels.
        """
        if not self._labels:
            raise ValueError(f"The examples of {self._folder} are documents, which have no labels.")
        first = self._labels[0]
        labels = np.empty((len(example_ids), *first.shape[1:]), first.dtype)
        for row, (shard, i) in enumerate(zip(*self._places(example_ids), strict=True)):
            labels[row] = self._labels[shard][i]
        return labels

    def all_labels(self) -> np.ndarray:
        """Returns the labels of all examples, in order. They are read into memory.

        Raises:
            ValueError: If the examples are documents, which have no labels.
        """
        if not self._labels:
            raise ValueError(f"The examples of {self._folder} are documents, which have no labels.")
        return np.concatenate(self._labels)

    def _places(self, example_ids: np.ndarray) -> tuple[list[int], list[int]]:
        """Returns the shard of each example and its number there."""
        ids = np.asarray(example_ids, np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.num_examples:
            raise IndexError(f"Example ids are in [0, {self.num_examples}), received {ids.min()} to {ids.max()}.")
        shards = np.searchsorted(self._starts, ids, side="right") - 1
        return shards.tolist(), (ids - self._starts[shards]).tolist()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedDataset:
    """An open prepared data set."""

    folder: Path
    info: dict[str, Any]
    """What dataset.json holds."""
    splits: dict[str, PreparedSplit]
    """Those that have examples; `train` always has."""
    sha256: str
    """Of dataset.json, which holds the sha256 of every file; so it stands for the whole data set."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels, sorted; empty for regression and for documents."""
        return tuple(self.info["label_names"])

    @property
    def problem_type(self) -> str:
        return str(self.info["problem_type"])

    @property
    def is_pair(self) -> bool:
        return bool(self.info["is_pair"])

    def utf8_bytes(self, split: str) -> int:
        """Returns the size of a split's texts as UTF-8."""
        return int(self.info["splits"][split]["utf8_bytes"])

    def scored_utf8_bytes(self, split: str) -> int:
        """Returns the size of what a generator learns to write, by which losses per token become bits per byte.

        Of pairs that is the responses, of documents all of their text.
        """
        return int(self.info["splits"][split].get("response_utf8_bytes", self.utf8_bytes(split)))

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / TOKENIZER_FOLDER


def open_prepared(folder: str | os.PathLike[str]) -> PreparedDataset:
    """Opens a prepared data set. Sizes, types and shapes of all files are checked, their content is not.

    Raises:
        InputError: If it is not there, is written by another version, or a file is missing or not as it was written.
    """
    folder = Path(folder)
    content = _read_info_file(folder)
    info = _parse_info(folder, content)
    try:
        _check_sizes(folder, info["files"])
        splits = {name: PreparedSplit(folder / name, info) for name in SPLIT_NAMES if name in info["splits"]}
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise InputError(f"{folder / INFO_NAME} is damaged ({type(error).__name__}: {error}); {_AGAIN}") from error
    return PreparedDataset(folder=folder, info=info, splits=splits, sha256=hashlib.sha256(content).hexdigest())


def verify_prepared(folder: str | os.PathLike[str]) -> PreparedDataset:
    """Opens a prepared data set and hashes every file of it.

    Raises:
        InputError: As `open_prepared`; or if a file's content has changed, or a file is there that was not written
            with the data set. The file is named.
    """
    prepared = open_prepared(folder)
    files = prepared.info["files"]
    for path in _files(prepared.folder):
        if path not in files:
            raise InputError(f"{prepared.folder / path} does not belong to the data set; move it elsewhere.")
    try:
        found_files = describe_files(prepared.folder)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read to its end: {error.strerror}; {_AGAIN}") from error
    for path, found in found_files.items():
        if found["sha256"] != files[path]["sha256"]:
            raise InputError(f"{prepared.folder / path} is not what was written (its sha256 differs); {_AGAIN}")
    return prepared


def _read_info_file(folder: Path) -> bytes:
    try:
        return (folder / INFO_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder.is_dir():
            raise InputError(f"There is no prepared data set {folder}. Make it with `{_COMMAND}`.") from error
        raise InputError(
            f"{folder} is no prepared data set, since it has no {INFO_NAME}. Make one with `{_COMMAND}`."
        ) from error
    except OSError as error:
        raise InputError(f"{folder / INFO_NAME} cannot be read: {error.strerror}.") from error


def _parse_info(folder: Path, content: bytes) -> dict[str, Any]:
    path = folder / INFO_NAME
    try:
        info = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); {_AGAIN}") from error
    version = info.get("schema_version") if isinstance(info, dict) else None
    if version is None:
        raise InputError(f"{path} does not describe a prepared data set, since it states no schema_version; {_AGAIN}")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {version!r}, and this version of aigc_tf reads {SCHEMA_VERSION}; {_AGAIN}"
        )
    for name, kind in _FIELDS.items():
        if type(info.get(name)) is not kind:
            raise InputError(f"{path} has no valid {name!r}; {_AGAIN}")
    if not all(isinstance(name, str) for name in info["label_names"]):
        raise InputError(f"{path} has no valid 'label_names'; {_AGAIN}")
    if info["problem_type"] not in (*PROBLEM_TYPES, NO_LABELS):
        raise InputError(f"{path} has the unknown problem_type {info['problem_type']!r}; {_AGAIN}")
    if "train" not in info["splits"] or not set(info["splits"]) <= set(SPLIT_NAMES):
        raise InputError(f"{path} has the splits {sorted(info['splits'])}, not train, validation and test; {_AGAIN}")
    return info


def _check_sizes(folder: Path, files: Mapping[str, Any]) -> None:
    for path, file in files.items():
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise InputError(f"{folder / INFO_NAME} names the file {path!r}, which lies elsewhere; {_AGAIN}")
        try:
            size = (folder / path).stat().st_size
        except OSError as error:
            raise InputError(f"{folder / path} is missing; {_AGAIN}") from error
        if size != file["bytes"]:
            raise InputError(f"{folder / path} has {size} bytes, {file['bytes']} were written; {_AGAIN}")


def _load(folder: Path, name: str, number: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Maps an array; as a plain ndarray, since slices of a memmap object cost ten times as much."""
    path = array_path(folder, name, number)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {_AGAIN}") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is no array file ({error}); {_AGAIN}") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"{path} holds {found}, not {np.dtype(dtype)} {shape} as {INFO_NAME} says; {_AGAIN}")
    return np.asarray(array)
