"""The prepared data set: plain NumPy files and one JSON file, written once and read by memory map.

    <folder>/
      dataset.json          schema, columns, where it comes from, and the size and sha256 of every file
      encoders/<column>/    the column's encoder: a vocabulary, the names of labels
      <split>/              the columns of its examples, in shards; see `columns`

A split without examples has no folder.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from aigc_tf import storage
from aigc_tf.data.prepared.columns import OFFSETS, DenseColumn, RaggedColumn, Shards, array_path, load_array
from aigc_tf.data.prepared.facts import ENCODERS_FOLDER, DataFacts
from aigc_tf.data.prepared.schema import Schema
from aigc_tf.errors import InputError

SCHEMA_VERSION = 2
INFO_NAME = "dataset.json"
SPLIT_NAMES = ("train", "validation", "test")

_COMMAND = "python scripts/prepare.py --config=..."
_AGAIN = f"prepare the data again with `{_COMMAND} --overwrite`."
_FIELDS: dict[str, type] = {  # the entries of dataset.json that reading needs
    "task": str,
    "schema": dict,
    "columns": dict,
    "splits": dict,
    "files": dict,
}


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the size and sha256 of every file except dataset.json, by its path with slashes."""
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
    """The columns of one split."""

    def __init__(self, folder: Path, info: Mapping[str, Any], schema: Schema) -> None:
        """Opens the shards and compares their types and shapes with what dataset.json says.

        Args:
            folder: The split's folder, named like the split.
            info: The content of dataset.json.
            schema: The schema that it states.

        Raises:
            InputError: If a file differs from what dataset.json says.
        """
        self._folder, self._schema = folder, schema
        self._shards = info["splits"][folder.name]["shards"]
        places = Shards([shard["examples"] for shard in self._shards])
        self.num_examples: int = places.num_examples
        self._columns: dict[str, Any] = {
            column.name: self._open(column.name, info["columns"][column.name], places) for column in schema.columns
        }

    def _open(self, name: str, column: Mapping[str, Any], places: Shards) -> DenseColumn | RaggedColumn:
        dtype, row = np.dtype(column["dtype"]), tuple(column["shape"])
        numbers = range(len(self._shards))
        if row != (None,):
            counts = [(shard["examples"], *row) for shard in self._shards]
            return DenseColumn([self._load(name, number, dtype, counts[number]) for number in numbers], places)
        values, offsets = [], []
        for number, shard in enumerate(self._shards):
            size = shard["sizes"][name]
            values.append(self._load(name, number, dtype, (size,)))
            offsets.append(self._load(name + OFFSETS, number, np.int64, (shard["examples"] + 1,)))
            if offsets[-1][0] != 0 or offsets[-1][-1] != size:
                path = array_path(self._folder, name + OFFSETS, number)
                raise InputError(f"{path} does not end where its values do; {_AGAIN}")
        return RaggedColumn(values, offsets, places)

    def _load(self, array: str, number: int, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
        return load_array(array_path(self._folder, array, number), dtype, shape, again=_AGAIN)

    def column(self, name: str) -> Any:
        """Returns a `RaggedColumn` or a `DenseColumn`.

        Raises:
            KeyError: If the schema has no such column.
        """
        return self._columns[name]

    @property
    def sizes(self) -> np.ndarray:
        """`(n,)` int64: the size of each example, by the schema's size columns. Computed at each access."""
        if not self._schema.size_columns:
            return np.ones(self.num_examples, np.int64)
        return functools.reduce(np.add, (self._columns[name].lengths for name in self._schema.size_columns))

    def count_longer(self, size: int) -> int:
        """Returns the number of examples that are larger."""
        count = 0
        for number, shard in enumerate(self._shards):  # by separate maps, so that the pages read are freed again
            sizes = np.zeros(shard["examples"], np.int64)
            for name in self._schema.size_columns:
                path = array_path(self._folder, name + OFFSETS, number)
                sizes += np.diff(np.load(path, mmap_mode="r", allow_pickle=False))
            count += int((sizes > size).sum())
        return count


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedDataset:
    """An open prepared data set."""

    folder: Path
    info: dict[str, Any]
    """The content of dataset.json."""
    splits: dict[str, PreparedSplit]
    """The splits that have examples; `train` is always one."""
    facts: DataFacts
    """The facts that a model trained on it must know."""

    @property
    def sha256(self) -> str:
        """Hash of dataset.json. It identifies the whole data set, since dataset.json has the hash of every file."""
        return self.facts.sha256

    @property
    def schema(self) -> Schema:
        """Its columns and their use."""
        return self.facts.schema

    def utf8_bytes(self, split: str) -> int:
        """Returns the size of a split's texts as UTF-8."""
        return sum(self.info["splits"][split]["utf8_bytes"].values())

    def learnt_utf8_bytes(self, split: str) -> int:
        """Returns the size of the texts that a model learns to write; it turns losses per token into bits per byte."""
        return sum(self.info["splits"][split]["utf8_bytes"][name] for name in self.schema.learnt)


def open_prepared(folder: str | os.PathLike[str]) -> PreparedDataset:
    """Opens a prepared data set. Sizes, types and shapes of all files are checked, their content is not.

    Raises:
        InputError: If it is missing or of another version, or a file is missing or differs from what was written.
    """
    folder = Path(folder)
    content = _read_info_file(folder)
    info = _parse_info(folder, content)
    try:
        _check_sizes(folder, info["files"])
        schema = Schema.from_json(info["schema"])
        splits = {name: PreparedSplit(folder / name, info, schema) for name in SPLIT_NAMES if name in info["splits"]}
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise InputError(f"{folder / INFO_NAME} is damaged ({type(error).__name__}: {error}); {_AGAIN}") from error
    facts = DataFacts(
        sha256=hashlib.sha256(content).hexdigest(), schema=schema, encoders_folder=str(folder / ENCODERS_FOLDER)
    )
    return PreparedDataset(folder=folder, info=info, splits=splits, facts=facts)


def verify_prepared(folder: str | os.PathLike[str]) -> PreparedDataset:
    """Opens a prepared data set and hashes every file of it.

    Raises:
        InputError: As `open_prepared`; or if a file's content has changed, or a file does not belong to the data set.
            The file is named.
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
            raise InputError(f"{prepared.folder / path} differs from what was written (by its sha256); {_AGAIN}")
    return prepared


def _read_info_file(folder: Path) -> bytes:
    try:
        return (folder / INFO_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not folder.is_dir():
            raise InputError(f"There is no prepared data set {folder}. Make it with `{_COMMAND}`.") from error
        raise InputError(
            f"{folder} is not a prepared data set, since it has no {INFO_NAME}. Make one with `{_COMMAND}`."
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
