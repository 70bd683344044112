"""From records to examples: their split, their values, and which records are left out."""

import collections
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aigc_tf.config import DataConfig
from aigc_tf.data.cleaning.duplicates import KEPT, REASONS, DuplicateFinder
from aigc_tf.data.encoders import ENCODERS
from aigc_tf.data.encoders.cells import BrokenCellError
from aigc_tf.data.prepared.schema import Schema
from aigc_tf.data.preparing.terminal import Counts
from aigc_tf.data.sources import sources
from aigc_tf.data.sources.records import CHECK_AFTER_ROWS, Cell, Record, SourceFile, SourceReport
from aigc_tf.data.sources.splits import split_of
from aigc_tf.errors import InputError


class Example(NamedTuple):
    """One example before it is tokenised."""

    split: str
    texts: tuple[bytes, ...]
    """The value of each text column of the schema, as UTF-8."""
    values: tuple[Any, ...] = ()
    """The encoded value of each cell column of the schema."""
    key: tuple[bytes, ...] = ()
    """The raw bytes of the columns that decide the split."""


class ExampleReader:
    """Reads records, encodes their cells, assigns splits, and counts the records that are left out.

    Args:
        found: The source files.
        data: The config's section.
        schema: The schema. An example is left out if all of its learnt texts are empty.
        verdicts: `(n,)` uint8, the result of `find_duplicates` for the same sources; it decides what is kept.
    """

    def __init__(
        self,
        found: list[SourceFile],
        data: DataConfig,
        schema: Schema,
        *,
        verdicts: np.ndarray | None = None,
    ) -> None:
        self._sources, self._data, self._schema, self._verdicts = found, data, schema, verdicts
        self._sizes = [source_size(source) for source in found]
        self._splits = [source.split for source in found]
        if len(found) == 1 and found[0].format == "document":
            self._splits = [found[0].split or "train"]  # regardless of the hash
        self.validation_from_train = data.split != "hash" and _lacks_validation(found)
        self.encoders = {
            column.name: build(data, column.source)
            for column in schema.cell_columns
            if (build := ENCODERS[column.encoder].build)
        }
        """The encoder of each cell column; that of labels knows the labels read so far."""
        names = [column.name for column in schema.columns]
        self._texts = [names.index(column.name) for column in schema.text_columns]
        self._cells = [(names.index(name), encoder) for name, encoder in self.encoders.items()]
        self._learnt = [names.index(name) for name in schema.learnt]
        self._key = [names.index(name) for name in schema.split_by]
        self.reports: list[SourceReport] = []
        self.broken: collections.Counter[str] = collections.Counter()
        """Rows with a broken cell, by reason. The reports count them too."""
        self.left_out: collections.Counter[str] = collections.Counter()
        """Rows that are correct but not wanted, by reason."""
        self.duplicates: collections.Counter[str] = collections.Counter()
        """Examples left out because of other examples, by reason."""
        self.kept = 0
        """Number of examples before duplicates are left out."""

    def __iter__(self) -> Iterator[Example]:
        """Yields the examples in the order of the sources.

        Raises:
            InputError: As `sources.read_records`; or if too many cells are broken.
        """
        source, row, broken_before = -1, 0, 0
        columns = self._schema.source_columns(self._data)
        for record in sources.read_records(self._sources, self._data, self.reports, columns=columns):
            if record.source != source:
                source, row, broken_before = record.source, 0, self.broken.total()
            row += 1
            values = self._values(record)
            if row == CHECK_AFTER_ROWS:
                self._check_cells(self.reports[source], self.broken.total() - broken_before)
            if values is None:
                continue
            verdict = self._verdict()
            self.kept += 1
            if verdict != KEPT:
                self.duplicates[REASONS[verdict]] += 1
                continue
            raw = [_raw(cell) for cell in record.cells]
            key = tuple([raw[place] for place in self._key])
            split = split_of(key, self._splits[source], validation_from_train=self.validation_from_train)
            yield Example(split, tuple([raw[place] for place in self._texts]), values, key)

    def _verdict(self) -> int:
        if self._verdicts is None:
            return KEPT
        if self.kept >= len(self._verdicts):
            raise sources.changed(self.reports[-1].uri)
        return int(self._verdicts[self.kept])

    def _values(self, record: Record) -> tuple[Any, ...] | None:
        """Returns a record's encoded cells; None: the record is counted and left out."""
        if self._learnt and not any(record.cells[place] for place in self._learnt):
            self.left_out[f"empty {self._named_learnt()}"] += 1
            return None
        values = []
        for place, encoder in self._cells:
            try:
                value = encoder.encode(record.cells[place])
            except BrokenCellError as error:
                reason, detail = error.args
                report = self.reports[record.source]
                report.records -= 1  # its reader has counted it as a good one
                report.count_broken(record.line, reason, detail)
                self.broken[reason] += 1
                return None
            if value is None:
                self.left_out[f"within {self._data.label_margin:g} of a threshold"] += 1
                return None
            values.append(value)
        return tuple(values)

    def _named_learnt(self) -> str:
        """Returns the word for the learnt texts in messages: the whole example, or one of its texts."""
        return self._schema.unit if len(self._learnt) == len(self._texts) else " and ".join(self._schema.learnt)

    def _check_cells(self, report: SourceReport, num_broken: int) -> None:
        """Checks the first cells of a file, so that a wrong column is found early; the reader checks at its end."""
        if num_broken > self._data.max_bad_share * CHECK_AFTER_ROWS:
            what = "labels" if self._schema.encoded_by("label") else "cells"
            raise InputError(
                f"{num_broken} of the first {CHECK_AFTER_ROWS} {what} of {report.uri} are broken, more than "
                f"data.max_bad_share {self._data.max_bad_share:g} allows (the first is {report.examples[0]})."
            )

    def counts(self, phase: str) -> Counts:
        """Returns the progress of the reading."""
        done = sum(self._sizes[: max(0, len(self.reports) - 1)])
        if self.reports:
            done += min(self.reports[-1].bytes_read, self._sizes[len(self.reports) - 1])
        return Counts(phase, done, sum(report.num_rows for report in self.reports))

    @property
    def total_bytes(self) -> int:
        return sum(self._sizes)


def _lacks_validation(found: list[SourceFile]) -> bool:
    """Whether validation data must come from the training data; an only document stays in it."""
    training = [source for source in found if source.split == "train"]
    only = len(training) == 1 and training[0].format == "document"
    return not only and all(source.split != "validation" for source in found)


def _raw(cell: Cell) -> bytes:
    return (cell if isinstance(cell, str) else "\0".join(cell)).encode()


def find_duplicates(examples: Iterable[Example]) -> np.ndarray:
    """Reads all examples and returns `(n,)` uint8, the result of `cleaning.judge`."""
    finder = DuplicateFinder()
    for example in examples:
        finder.add(example.key, example.values, example.split)
    return finder.verdicts()


def source_size(source: SourceFile) -> int:
    """Returns the bytes of a source on disk, for the progress bar."""
    path = Path(source.path or source.uri)
    if source.format == "tfds":  # one split: <name>-<split>.<format>-00000-of-00001
        split = source.uri.rpartition("#")[2]
        return sum(file.stat().st_size for file in path.glob(f"*-{split}.*"))
    return path.stat().st_size
