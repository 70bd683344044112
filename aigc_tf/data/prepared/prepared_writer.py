"""Writes a prepared data set (`prepared.py` says what it looks like) with constant memory, batch by batch.

Labels are written as codes, since their final order is known only at the end; then each file's codes are replaced by
places, a chunk at a time. dataset.json is written last of all, so that a folder with one is complete.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aigc_tf import storage
from aigc_tf.errors import RunError
from aigc_tf.data.prepared.prepared import INFO_NAME, LABEL_TYPES, NO_LABELS, SCHEMA_VERSION, SPLIT_NAMES, array_path, describe_files, token_type

TOKENS_PER_SHARD = 2**26
_CHUNK_ROWS = 2**16  # labels are read and written this many at a time


def _read_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not an .npy file of version 1.0")
    return np.lib.format.read_array_header_1_0(file)


class _GrowingArray:
    """An .npy file that rows are appended to; its header is set right when it is closed."""

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


class _ShardWriter:
    """The files of one shard. Labels are written as codes, since the labels' order is known only at the end."""

    def __init__(self, folder: Path, number: int, *, dtype: Any, problem_type: str) -> None:
        self.num_tokens = 0
        self._folder, self._number, self._is_ragged = folder, number, problem_type == "multi_label"
        self._arrays = {
            "tokens": _GrowingArray(self.path("tokens"), dtype),
            "offsets": _GrowingArray(self.path("offsets"), np.int64),
            "boundaries": _GrowingArray(self.path("boundaries"), np.int32),
        }
        if self._is_ragged:
            self._arrays["codes"] = _GrowingArray(self.path("codes"), np.int32)
            self._arrays["counts"] = _GrowingArray(self.path("counts"), np.int32)
        elif problem_type != NO_LABELS:
            self._arrays["labels"] = _GrowingArray(self.path("labels"), LABEL_TYPES[problem_type])
        self._arrays["offsets"].append(np.zeros(1))

    def path(self, array: str) -> Path:
        return array_path(self._folder, array, self._number)

    @property
    def num_examples(self) -> int:
        return self._arrays["boundaries"].num_rows

    def append(self, token_ids: np.ndarray, ends: np.ndarray, boundaries: np.ndarray, labels: Sequence[Any]) -> None:
        self._arrays["tokens"].append(token_ids)
        self._arrays["offsets"].append(self.num_tokens + ends)
        self._arrays["boundaries"].append(boundaries)
        if self._is_ragged:
            self._arrays["codes"].append(np.array([code for codes in labels for code in codes], np.int32))
            self._arrays["counts"].append(np.array([len(codes) for codes in labels]))
        elif "labels" in self._arrays:
            self._arrays["labels"].append(np.asarray(labels))
        self.num_tokens += len(token_ids)

    def close(self) -> None:
        for array in self._arrays.values():
            array.close()

    def abandon(self) -> None:
        for array in self._arrays.values():
            array.abandon()

    def finish_labels(self, positions: np.ndarray, num_labels: int) -> Iterator[np.ndarray]:
        """Replaces the codes by the labels' places, and yields the labels a chunk of rows at a time."""
        if self._is_ragged:
            yield from self._finish_ragged(positions, num_labels)
            return
        if "labels" not in self._arrays:
            return
        with open(self.path("labels"), "r+b") as file:
            shape, _, dtype = _read_header(file)
            for start in range(0, shape[0], _CHUNK_ROWS):
                place = file.tell()
                labels = np.fromfile(file, dtype, min(_CHUNK_ROWS, shape[0] - start))
                if dtype == np.int32:
                    labels = positions[labels].astype(dtype)
                    file.seek(place)
                    file.write(labels.data)
                yield labels

    def _finish_ragged(self, positions: np.ndarray, num_labels: int) -> Iterator[np.ndarray]:
        written = _GrowingArray(self.path("labels"), np.uint8, (num_labels,))
        try:
            counts = np.load(self.path("counts"), mmap_mode="r")
            codes = np.load(self.path("codes"), mmap_mode="r")
            start = 0
            rows_at_once = max(1, _CHUNK_ROWS * 16 // max(1, num_labels))
            for first in range(0, len(counts), rows_at_once):
                count = np.asarray(counts[first : first + rows_at_once])
                labels = np.zeros((len(count), num_labels), np.uint8)
                end = start + int(count.sum())
                labels[np.repeat(np.arange(len(count)), count), positions[codes[start:end]]] = 1
                written.append(labels)
                start = end
                yield labels
            written.close()
        finally:
            written.abandon()
        self.path("codes").unlink()
        self.path("counts").unlink()


class PreparedWriter:
    """Writes a prepared data set with constant memory. A context manager; `finish` completes the data set.

    Args:
        folder: An empty folder, from `storage.staged_folder`.
        task: A key of `tasks.TASKS`.
        problem_type: One of `config.PROBLEM_TYPES`, or `prepared.NO_LABELS`.
        is_pair: Whether examples have two parts.
        vocabulary_size: Token ids are below it.
        tokens_per_shard: A shard ends before the example that would lift it above this number.
    """

    def __init__(
        self,
        folder: Path,
        *,
        task: str,
        problem_type: str,
        is_pair: bool,
        vocabulary_size: int,
        tokens_per_shard: int = TOKENS_PER_SHARD,
    ) -> None:
        self._folder, self._limit, self._vocabulary_size = folder, tokens_per_shard, vocabulary_size
        self._facts = {
            "task": task,
            "problem_type": problem_type,
            "is_pair": is_pair,
            "vocabulary_size": vocabulary_size,
        }
        self._shards: dict[str, list[_ShardWriter]] = {}
        self._num_empty: dict[str, int] = {}

    def __enter__(self) -> "PreparedWriter":
        return self

    def __exit__(self, *error: object) -> None:
        for shards in self._shards.values():
            for shard in shards[-1:]:  # there is none where the disk was full already
                shard.abandon()

    def add(self, split: str, parts: Sequence[np.ndarray], label: Any) -> None:
        """Appends one example.

        Args:
            split: One of `SPLIT_NAMES`.
            parts: One array of token ids, or two for a pair.
            label: A code, a tuple of codes (multi_label) or a number (regression); ignored where there are no labels.
        """
        lengths = np.array([len(part) for part in parts])
        boundary = lengths[0] if len(parts) == 2 else 0
        self.add_batch(
            split, np.concatenate(parts), lengths.sum(keepdims=True), boundaries=np.array([boundary]), labels=[label]
        )

    def add_batch(
        self, split: str, token_ids: np.ndarray, lengths: np.ndarray, *, boundaries: np.ndarray, labels: Sequence[Any]
    ) -> None:
        """Appends examples.

        Args:
            split: One of `SPLIT_NAMES`.
            token_ids: `(sum(lengths),)` int, the examples end to end, without special tokens.
            lengths: `(n,)` int.
            boundaries: `(n,)` int, tokens of the first part of a pair; 0 for single texts.
            labels: n codes, tuples of codes (multi_label) or numbers (regression); ignored where there are no labels.

        Raises:
            ValueError: If a token id is outside the vocabulary, or the split is none.
        """
        if split not in SPLIT_NAMES:
            raise ValueError(f"{split!r} is no split; there are {', '.join(SPLIT_NAMES)}.")
        if len(token_ids) and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < self._vocabulary_size:
            raise ValueError(
                f"Token ids from {token_ids.min()} to {token_ids.max()} do not fit a vocabulary of "
                f"{self._vocabulary_size}; the tokenizer and its vocabulary_size differ."
            )
        self._num_empty[split] = self._num_empty.get(split, 0) + int((lengths == 0).sum())
        ends = np.cumsum(lengths, dtype=np.int64)
        first, start = 0, 0  # the next example, and its first token
        while first < len(lengths):
            shard = self._shard_for(split, int(lengths[first]))
            fitting = int(np.searchsorted(ends, start + self._limit - shard.num_tokens, side="right"))
            last = max(first + 1, fitting)  # an example longer than a shard has one for itself
            stop = int(ends[last - 1])
            shard.append(token_ids[start:stop], ends[first:last] - start, boundaries[first:last], labels[first:last])
            first, start = last, stop

    def _shard_for(self, split: str, length: int) -> _ShardWriter:
        """Returns the open shard, or a new one where an example of that length is too long for it."""
        shards = self._shards.setdefault(split, [])
        if shards and shards[-1].num_examples and shards[-1].num_tokens + length > self._limit:
            shards[-1].close()
        elif shards:
            return shards[-1]
        (self._folder / split).mkdir(exist_ok=True)
        dtype, problem_type = token_type(self._vocabulary_size), self._facts["problem_type"]
        shards.append(_ShardWriter(self._folder / split, len(shards), dtype=dtype, problem_type=problem_type))  # type: ignore[arg-type]
        return shards[-1]

    def finish(
        self,
        *,
        label_names: Sequence[str],
        positions: np.ndarray | None = None,
        ledger: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Puts the labels in order, hashes every file in the folder and writes dataset.json, the last of all.

        Args:
            label_names: The labels in their final order; empty for regression.
            positions: `(C,)` int, the place in `label_names` of each code. None: a code is the place.
            ledger: More entries of dataset.json; of "splits", entries for each split.

        Returns:
            What dataset.json holds.
        """
        for shards in self._shards.values():
            shards[-1].close()
        positions = np.arange(len(label_names)) if positions is None else positions
        ledger = dict(ledger or {})
        more = ledger.pop("splits", {})
        splits = {
            split: self._describe(split, positions, label_names) | dict(more.get(split, {}))
            for split in SPLIT_NAMES
            if split in self._shards
        }
        info = {
            "schema_version": SCHEMA_VERSION,
            **self._facts,
            "label_names": list(label_names),
            "splits": splits,
            **ledger,
            "files": describe_files(self._folder),
        }
        storage.write_json(self._folder / INFO_NAME, info)
        return info

    def _describe(self, split: str, positions: np.ndarray, label_names: Sequence[str]) -> dict[str, Any]:
        shards = self._shards[split]
        chunks = (chunk for shard in shards for chunk in shard.finish_labels(positions, len(label_names)))
        return {
            "examples": sum(shard.num_examples for shard in shards),
            "tokens": sum(shard.num_tokens for shard in shards),
            "empty_examples": self._num_empty[split],
            **({} if self._facts["problem_type"] == NO_LABELS else _describe_labels(chunks, label_names)),
            "shards": [{"examples": shard.num_examples, "tokens": shard.num_tokens} for shard in shards],
        }


def _describe_labels(chunks: Iterable[np.ndarray], label_names: Sequence[str]) -> dict[str, Any]:
    """Counts the labels, or sums up the numbers where there are no labels."""
    counts = np.zeros(len(label_names), np.int64)
    number, total, smallest, greatest = 0, 0.0, np.inf, -np.inf
    for chunk in chunks:
        if chunk.dtype == np.float32:
            number, total = number + len(chunk), total + float(chunk.sum(dtype=np.float64))
            smallest, greatest = min(smallest, float(chunk.min())), max(greatest, float(chunk.max()))
        else:
            counts += (
                chunk.sum(axis=0, dtype=np.int64) if chunk.ndim == 2 else np.bincount(chunk, minlength=len(counts))
            )
    if number:
        return {"label_range": {"min": smallest, "mean": total / number, "max": greatest}}
    return {"label_counts": {name: int(count) for name, count in zip(label_names, counts, strict=True)}}
