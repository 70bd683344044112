"""The columns of one split of a prepared data set, by memory map: opening costs nothing, reading reads its pages.

    <split>/<column>-NNNNN.npy           values of the shard's examples end to end; for a dense column a row an example
    <split>/<column>.offsets-NNNNN.npy   int64 (n + 1,), ragged columns only: example i of the shard is the values
                                         [offsets[i]:offsets[i + 1]]

Example ids count from 0 within a split, through its shards.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aigc_tf.errors import InputError

OFFSETS = ".offsets"


def array_path(folder: Path, array: str, number: int) -> Path:
    """Returns the path of shard `number` of a column, or of its offsets, in the folder of a split."""
    return folder / f"{array}-{number:05}.npy"


class Shards:
    """The shard and the row of each example of a split."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._starts = np.cumsum([0, *counts])  # first id of each shard
        self.num_examples = int(self._starts[-1])

    def places(self, example_ids: np.ndarray) -> tuple[list[int], list[int]]:
        """Returns the shard of each example and its number there.

        Raises:
            IndexError: If an id is out of range.
        """
        ids = np.asarray(example_ids, np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.num_examples:
            raise IndexError(f"Example ids are in [0, {self.num_examples}), received {ids.min()} to {ids.max()}.")
        shards = np.searchsorted(self._starts, ids, side="right") - 1
        return shards.tolist(), (ids - self._starts[shards]).tolist()


class DenseColumn:
    """A column with one array of the same shape per example."""

    def __init__(self, arrays: list[np.ndarray], shards: Shards) -> None:
        self._arrays, self._shards = arrays, shards
        self.dtype, self.shape = arrays[0].dtype, arrays[0].shape[1:]

    def rows(self, example_ids: np.ndarray) -> np.ndarray:
        """Returns `(b, *shape)`.

        Raises:
            IndexError: If an id is out of range.
        """
        rows = np.empty((len(example_ids), *self.shape), self.dtype)
        for row, (shard, i) in enumerate(zip(*self._shards.places(example_ids), strict=True)):
            rows[row] = self._arrays[shard][i]
        return rows

    def all(self) -> np.ndarray:
        """Returns `(n, *shape)`, read into memory."""
        return np.concatenate(self._arrays)


class RaggedColumn:
    """A column with a varying number of values per example; it is also one stream of all values."""

    def __init__(self, values: list[np.ndarray], offsets: list[np.ndarray], shards: Shards) -> None:
        self._values, self._offsets, self._shards = values, offsets, shards
        self._starts = np.cumsum([0, *map(len, values)])  # of each shard in the stream
        self.dtype = values[0].dtype
        self.num_values = int(self._starts[-1])

    @property
    def lengths(self) -> np.ndarray:
        """`(n,)` int64: number of values of each example.

        Computed at each access, since its size grows with the examples.
        """
        return np.concatenate([np.diff(offsets) for offsets in self._offsets])

    @property
    def ends(self) -> np.ndarray:
        """`(n,)` int64: where each example ends in the stream of all values. Computed at each access."""
        pairs = zip(self._offsets, self._starts[:-1], strict=True)
        return np.concatenate([offsets[1:] + start for offsets, start in pairs])

    def rows(self, example_ids: np.ndarray) -> list[np.ndarray]:
        """Returns the values of several examples: read-only views of the files.

        Raises:
            IndexError: If an id is out of range.
        """
        rows = []
        for shard, i in zip(*self._shards.places(example_ids), strict=True):
            offsets = self._offsets[shard]
            rows.append(self._values[shard][offsets[i] : offsets[i + 1]])
        return rows

    def range(self, start: int, stop: int) -> np.ndarray:
        """Returns the values `[start, stop)` of all examples end to end, with nothing between them.

        A read-only view of the file; a copy if the range spans several shards.

        Raises:
            IndexError: If the range is not within the `num_values` of the split.
        """
        if not 0 <= start <= stop <= self.num_values:
            raise IndexError(f"Values are in [0, {self.num_values}), received {start} to {stop}.")
        first = max(0, int(np.searchsorted(self._starts, start, side="right")) - 1)
        first = min(first, len(self._values) - 1)
        parts: list[np.ndarray] = []
        for shard in range(first, len(self._values)):
            begin = int(self._starts[shard])
            if begin >= stop and parts:
                break
            parts.append(self._values[shard][max(0, start - begin) : max(0, stop - begin)])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def load_array(path: Path, dtype: Any, shape: tuple[int, ...], *, again: str) -> np.ndarray:
    """Maps an array, as a plain ndarray: slices of a memmap object cost ten times as much.

    Raises:
        InputError: If it is missing, or of another type or shape; `again` says what to do.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {again}") from error
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not an array file ({error}); {again}") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise InputError(f"{path} holds {found}, not {np.dtype(dtype)} {shape} as dataset.json says; {again}")
    return np.asarray(array)
