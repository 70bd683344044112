"""Writes a prepared data set (`prepared.py` shows its layout) with constant memory, batch by batch.

Labels are first written as codes, since their final order is known only at the end; then each file's codes are replaced
by places, a chunk at a time. dataset.json is written last, so a folder that has one is complete.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aigc_tf import storage
from aigc_tf.data.encoders.cells import CODE, CODES, VALUE
from aigc_tf.data.prepared.columns import OFFSETS, array_path
from aigc_tf.data.prepared.prepared import INFO_NAME, SCHEMA_VERSION, SPLIT_NAMES, describe_files
from aigc_tf.data.prepared.schema import Schema
from aigc_tf.errors import RunError

VALUES_PER_SHARD = 2**26
RAGGED = "ragged"
"""How the token ids of a text are stored; the others are those of `encoders.cells`."""

_CHUNK_ROWS = 2**16  # number of codes that are read and written at a time
_DTYPES = {VALUE: np.float32, CODE: np.int32, CODES: np.uint8}


class ColumnFormat(NamedTuple):
    """How a column is written."""

    storage: str
    """`RAGGED`, or one of `encoders.cells`: `VALUE`, `CODE`, `CODES`."""
    dtype: Any
    limit: int = 0
    """Ragged values are in [0, limit)."""

    @classmethod
    def of_tokens(cls, vocabulary_size: int) -> "ColumnFormat":
        """Returns the format of token ids, in the smallest type that holds all ids of a vocabulary."""
        return cls(RAGGED, token_type(vocabulary_size), vocabulary_size)

    @classmethod
    def of_cells(cls, storage: str) -> "ColumnFormat":
        """Returns the format of cells, of a storage of `encoders.cells`."""
        return cls(storage, _DTYPES[storage])


class FinalLabels(NamedTuple):
    """The meaning of codes, known after the pass."""

    names: Sequence[str]
    """The labels in their final order."""
    positions: np.ndarray
    """`(C,)` int: the place in `names` of each code."""


def token_type(vocabulary_size: int) -> type[np.unsignedinteger]:
    """Returns the smallest type that holds all ids of a vocabulary."""
    return np.uint16 if vocabulary_size <= 2**16 else np.uint32


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not an .npy file of version 1.0")
    return np.lib.format.read_array_header_1_0(file)


class _GrowingArray:
    """An .npy file that rows are appended to; its header is completed when it is closed."""

    def __init__(self, path: Path, dtype: Any, row_shape: tuple[int, ...] = ()) -> None:
        self.path, self.num_rows = path, 0
        self._dtype, self._row_shape = np.dtype(dtype), row_shape
        self._file = open(path, "wb")  # noqa: SIM115 - stays open until the shard is full
        self._write_header()
        self._start = self._file.tell()

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        self.num_rows += len(rows)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._start:  # NumPy leaves room in the header for the first axis to grow
            raise RunError(f"NumPy {np.__version__} moved the data of {self.path.name}; please report it.")
        self._file.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk, what is buffered cannot be written on closing either
            self._file.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.num_rows, *self._row_shape),
        }
        np.lib.format.write_array_header_1_0(self._file, header)


class _RaggedFiles:
    """The values of one shard's ragged column, and the end of each example."""

    def __init__(self, folder: Path, name: str, number: int, dtype: Any) -> None:
        self.num_values = 0
        self._values = _GrowingArray(array_path(folder, name, number), dtype)
        self._offsets = _GrowingArray(array_path(folder, name + OFFSETS, number), np.int64)
        self._offsets.append(np.zeros(1))

    def append(self, values: np.ndarray, lengths: np.ndarray) -> None:
        self._values.append(values)
        self._offsets.append(self.num_values + np.cumsum(lengths, dtype=np.int64))
        self.num_values += len(values)

    @property
    def arrays(self) -> list[_GrowingArray]:
        return [self._values, self._offsets]


class _DenseFiles:
    """The rows of one shard's column of values or of codes, whose codes become final places at the end."""

    def __init__(self, folder: Path, name: str, number: int, form: ColumnFormat) -> None:
        self._path = array_path(folder, name, number)
        self._codes = [array_path(folder, f"{name}.{part}", number) for part in ("codes", "counts")]
        self._is_set = form.storage == CODES
        paths = self._codes if self._is_set else [self._path]
        self.arrays = [_GrowingArray(path, np.int32 if self._is_set else form.dtype) for path in paths]

    def append(self, values: Sequence[Any]) -> None:
        if self._is_set:
            self.arrays[0].append(np.array([code for codes in values for code in codes], np.int32))
            self.arrays[1].append(np.array([len(codes) for codes in values]))
        else:
            self.arrays[0].append(np.asarray(values))

    def finish(self, final: FinalLabels | None) -> Iterator[np.ndarray]:
        """Replaces codes by places, and yields the column a chunk of rows at a time."""
        if self._is_set and final:
            yield from self._finish_sets(final)
            return
        with open(self._path, "r+b") as file:
            shape, _, dtype = _read_header(file)
            for start in range(0, shape[0], _CHUNK_ROWS):
                place = file.tell()
                values = np.fromfile(file, dtype, min(_CHUNK_ROWS, shape[0] - start))
                if final and dtype == np.int32:
                    values = final.positions[values].astype(dtype)
                    file.seek(place)
                    file.write(values.data)
                yield values

    def _finish_sets(self, final: FinalLabels) -> Iterator[np.ndarray]:
        num_labels = len(final.names)
        written = _GrowingArray(self._path, np.uint8, (num_labels,))
        try:
            codes, counts = (np.load(path, mmap_mode="r") for path in self._codes)
            start = 0
            rows_at_once = max(1, _CHUNK_ROWS * 16 // max(1, num_labels))
            for first in range(0, len(counts), rows_at_once):
                count = np.asarray(counts[first : first + rows_at_once])
                labels = np.zeros((len(count), num_labels), np.uint8)
                end = start + int(count.sum())
                labels[np.repeat(np.arange(len(count)), count), final.positions[codes[start:end]]] = 1
                written.append(labels)
                start = end
                yield labels
            written.close()
        finally:
            written.abandon()
        for path in self._codes:
            path.unlink()


class _ShardWriter:
    """The files of one shard."""

    def __init__(self, folder: Path, number: int, formats: Mapping[str, ColumnFormat]) -> None:
        self.num_examples, self.size = 0, 0
        self.ragged = {
            name: _RaggedFiles(folder, name, number, form.dtype)
            for name, form in formats.items()
            if form.storage == RAGGED
        }
        self.dense = {
            name: _DenseFiles(folder, name, number, form)
            for name, form in formats.items()
            if form.storage != RAGGED
        }

    @property
    def _arrays(self) -> Iterator[_GrowingArray]:
        for ragged in self.ragged.values():
            yield from ragged.arrays
        for dense in self.dense.values():
            yield from dense.arrays

    def close(self) -> None:
        for array in self._arrays:
            array.close()

    def abandon(self) -> None:
        for array in self._arrays:
            array.abandon()

    def describe(self) -> dict[str, Any]:
        sizes = {name: files.num_values for name, files in self.ragged.items()}
        return {"examples": self.num_examples, "sizes": sizes}


class PreparedWriter:
    """Writes a prepared data set with constant memory. A context manager; `finish` completes the data set.

    Args:
        folder: An empty folder, from `storage.staged_folder`.
        task: The name of the task that the data are for.
        schema: Its columns.
        formats: How each column is written, by its name.
        values_per_shard: A shard ends before the example with which the values of its ragged columns, or without such
            columns its examples, would exceed this number.
    """

    def __init__(
        self,
        folder: Path,
        *,
        task: str,
        schema: Schema,
        formats: Mapping[str, ColumnFormat],
        values_per_shard: int = VALUES_PER_SHARD,
    ) -> None:
        self._folder, self._limit = folder, values_per_shard
        self._task, self._schema, self._formats = task, schema, formats
        self._ragged = [column.name for column in schema.columns if formats[column.name].storage == RAGGED]
        self._shards: dict[str, list[_ShardWriter]] = {}
        self._num_empty: dict[str, int] = {}

    def __enter__(self) -> "PreparedWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for shards in self._shards.values():
            for shard in shards[-1:]:  # empty if the disk was full already
                shard.abandon()

    def add(self, split: str, **columns: Any) -> None:
        """Appends one example: for a ragged column its values, for any other its encoder's result."""
        ragged = {name: np.asarray(columns[name]) for name in self._ragged}
        self.add_batch(
            split,
            1,
            {name: (values, np.array([len(values)])) for name, values in ragged.items()}
            | {name: [value] for name, value in columns.items() if name not in ragged},
        )

    def add_batch(self, split: str, count: int, columns: Mapping[str, Any]) -> None:
        """Appends examples.

        Args:
            split: One of `SPLIT_NAMES`.
            count: n, their number.
            columns: For a ragged column `(sum(lengths),)` values, the examples end to end, and `(n,)` lengths; for any
                other n values, codes or tuples of codes.

        Raises:
            ValueError: If a token id is outside the vocabulary, or the split is unknown.
        """
        if split not in SPLIT_NAMES:
            raise ValueError(f"{split!r} is not a split; splits are {', '.join(SPLIT_NAMES)}.")
        for name in self._ragged:
            _check_ids(columns[name][0], self._formats[name].limit)
        lengths = {name: np.asarray(columns[name][1], np.int64) for name in self._ragged}
        sizes = sum(lengths.values(), np.zeros(count, np.int64)) if lengths else np.ones(count, np.int64)
        self._num_empty[split] = self._num_empty.get(split, 0) + int((sizes == 0).sum())
        ends = np.cumsum(sizes)
        value_ends = {name: np.concatenate([[0], np.cumsum(length)]) for name, length in lengths.items()}
        first, start = 0, 0  # the next example, and the size of all before it
        while first < count:
            shard = self._shard_for(split, int(sizes[first]))
            fitting = int(np.searchsorted(ends, start + self._limit - shard.size, side="right"))
            last = max(first + 1, fitting)  # an example longer than a shard gets its own
            for name, files in shard.ragged.items():
                begin, end = value_ends[name][[first, last]]
                files.append(columns[name][0][begin:end], lengths[name][first:last])
            for name, dense in shard.dense.items():
                dense.append(columns[name][first:last])
            shard.num_examples += last - first
            shard.size += int(ends[last - 1]) - start
            first, start = last, int(ends[last - 1])

    def _shard_for(self, split: str, size: int) -> _ShardWriter:
        """Returns the open shard, or a new one if an example of that size is too large for it."""
        shards = self._shards.setdefault(split, [])
        if shards and shards[-1].num_examples and shards[-1].size + size > self._limit:
            shards[-1].close()
        elif shards:
            return shards[-1]
        (self._folder / split).mkdir(exist_ok=True)
        shards.append(_ShardWriter(self._folder / split, len(shards), self._formats))
        return shards[-1]

    def finish(
        self,
        *,
        labels: Mapping[str, FinalLabels] | None = None,
        ledger: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Sorts the labels, hashes every file in the folder and finally writes dataset.json.

        Args:
            labels: The meaning of the codes of each column of codes.
            ledger: More entries of dataset.json; under "splits" for each split, under "columns" for each column.

        Returns:
            The content of dataset.json.
        """
        for shards in self._shards.values():
            shards[-1].close()
        labels, ledger = labels or {}, dict(ledger or {})
        more, facts = ledger.pop("splits", {}), ledger.pop("columns", {})
        splits = {
            split: self._describe(split, labels) | dict(more.get(split, {}))
            for split in SPLIT_NAMES
            if split in self._shards
        }
        info = {
            "schema_version": SCHEMA_VERSION,
            "task": self._task,
            "schema": self._schema.to_json(),
            "columns": {
                column.name: self._describe_column(column.name, labels) | dict(facts.get(column.name, {}))
                for column in self._schema.columns
            },
            "splits": splits,
            **ledger,
            "files": describe_files(self._folder),
        }
        storage.write_json(self._folder / INFO_NAME, info)
        return info

    def _describe_column(self, name: str, labels: Mapping[str, FinalLabels]) -> dict[str, Any]:
        form = self._formats[name]
        shape = {RAGGED: [None], CODES: [len(labels[name].names)] if name in labels else []}.get(form.storage, [])
        return {"dtype": np.dtype(form.dtype).name, "shape": shape}

    def _describe(self, split: str, labels: Mapping[str, FinalLabels]) -> dict[str, Any]:
        shards = self._shards[split]
        counts, ranges = {}, {}
        for name, form in self._formats.items():
            if form.storage == RAGGED:
                continue
            chunks = (chunk for shard in shards for chunk in shard.dense[name].finish(labels.get(name)))
            if form.storage == VALUE:
                ranges[name] = _range_of(chunks)
            else:
                counts[name] = _counts_of(chunks, labels[name].names)
        described = [shard.describe() for shard in shards]
        return {
            "examples": sum(shard["examples"] for shard in described),
            "sizes": {name: sum(shard["sizes"][name] for shard in described) for name in self._ragged},
            "empty_examples": self._num_empty[split],
            "counts": counts,
            "ranges": ranges,
            "shards": described,
        }


def _check_ids(ids: np.ndarray, limit: int) -> None:
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < limit:
        raise ValueError(
            f"Token ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {limit}; the tokenizer and its "
            "vocabulary_size differ."
        )


def _range_of(chunks: Iterable[np.ndarray]) -> dict[str, float]:
    """Summarises the numbers of a column."""
    number, total, smallest, greatest = 0, 0.0, np.inf, -np.inf
    for chunk in chunks:
        number, total = number + len(chunk), total + float(chunk.sum(dtype=np.float64))
        smallest, greatest = min(smallest, float(chunk.min())), max(greatest, float(chunk.max()))
    return {"min": smallest, "mean": total / number, "max": greatest}


def _counts_of(chunks: Iterable[np.ndarray], names: Sequence[str]) -> dict[str, int]:
    """Counts the labels of a column."""
    counts = np.zeros(len(names), np.int64)
    for chunk in chunks:
        counts += chunk.sum(axis=0, dtype=np.int64) if chunk.ndim == 2 else np.bincount(chunk, minlength=len(counts))
    return {name: int(count) for name, count in zip(names, counts, strict=True)}
