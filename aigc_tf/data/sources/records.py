"""What a source gives: records, and a report of what it held. Values of any format become records here.

A row that cannot be used is counted by reason in its file's `SourceReport`, never dropped in silence; what makes the
whole file unusable is an InputError.
"""

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from aigc_tf.config import DataConfig
from aigc_tf.errors import InputError, nearest

CHECK_AFTER_ROWS = 1000
"""The share of broken rows is checked after this many rows, so that a wrong format is found early."""

BATCH_ROWS = 1000
"""Rows that a reader yields together if the file itself has no blocks."""

_EXAMPLES_KEPT = 5
_KEYS_KEPT = 100


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file of records, or one split of a TFDS data set."""

    uri: str
    """As the user named it; it goes into the ledger."""
    format: str
    """A key of `READERS`, or `tfds`."""
    split: str = ""
    """`train`, `validation` or `test` if the sources decide it; empty if the hash rule does."""
    path: str = ""
    """Its path on disk. Empty: `uri` is the path."""
    part_of: str = ""
    """The folder or glob that it was found by. Some of its parts may have no rows, as Spark and Beam write them."""


class SourceColumn(NamedTuple):
    """A column that is read of every source."""

    name: str
    """Its name in the sources."""
    is_text: bool
    """Whether it holds text, which is taken as it is. Any other value is a cell: a class, a number, a list of them."""
    field: str
    """Who names it, for errors, such as `data.text_column`."""
    may_be_empty: bool = False
    """Whether an empty cell says something; of text it always does."""


Cell = str | tuple[str, ...]
"""A text, or a raw cell: of a number the shortest decimal that is it in its own type, of a list a tuple."""


class Record(NamedTuple):
    """One example, before anything is done to it."""

    cells: tuple[Cell, ...]
    """A value for each `SourceColumn`, in their order. Plain text has a first column only; the others are empty."""
    source: int
    """Index of its file in the list of sources."""
    line: int
    """Line of the file on which it starts, from 1; for Parquet, TFRecord and TFDS the number of the record."""


@dataclasses.dataclass
class SourceReport:
    """What reading one file gave: a row of the data set's ledger."""

    uri: str
    sha256: str = ""
    """Of the file on disk, compressed or not; set when the file is read to its end."""
    bytes_read: int = 0
    """Bytes read of the file on disk so far; 0 for formats that are not read as a stream."""
    records: int = 0
    bad: dict[str, int] = dataclasses.field(default_factory=dict)
    """Broken rows by reason."""
    examples: list[str] = dataclasses.field(default_factory=list)
    """`file:line: reason` of the first broken rows."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """How the file is read if its ending suggests otherwise, such as `its cells are separated by ';'`."""

    def count_broken(self, line: int, reason: str, detail: str = "", rows: int = 1) -> None:
        """Counts a broken row that starts at `line`; `detail` shows in the examples only."""
        self.bad[reason] = self.bad.get(reason, 0) + rows
        if len(self.examples) < _EXAMPLES_KEPT:
            self.examples.append(f"{self.uri}:{line}: {reason}{f' ({detail})' if detail else ''}")

    @property
    def num_bad(self) -> int:
        return sum(self.bad.values())

    @property
    def num_rows(self) -> int:
        return self.records + self.num_bad

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as plain JSON values, without `bytes_read`, which matters only during reading."""
        facts = dataclasses.asdict(self)
        del facts["bytes_read"]
        return facts


@dataclasses.dataclass
class Reading:
    """One file while it is read: what its reader needs to know and to note."""

    source: SourceFile
    index: int
    data: DataConfig
    columns: tuple[SourceColumn, ...]
    """What is read, in the order of a record's cells."""
    report: SourceReport
    tainted: bool = False
    """Whether a byte of the file could not be decoded; then each following row is checked."""
    keys: set[str] = dataclasses.field(default_factory=set)
    """Names seen in rows that lack a column: the only way to know the columns of a format without a header."""

    @property
    def path(self) -> str:
        return self.source.path or self.source.uri

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return [column.name for column in self.columns]

    def check(self) -> None:
        """Stops when too many rows are broken.

        Raises:
            InputError: If no row has a needed column, or more than `data.max_bad_share` of the rows are broken.
        """
        report, share = self.report, self.data.max_bad_share
        if self.keys and not report.records:
            for column in self.columns:
                if column.name not in self.keys:
                    raise no_such_column(self.source.uri, column, self.keys)
        if report.num_bad and report.num_bad / report.num_rows > share:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in report.bad.items())
            raise InputError(
                f"{report.num_bad} of {report.num_rows} rows read from {report.uri} are broken, more than "
                f"data.max_bad_share {share:g} allows ({reasons}; the first is {report.examples[0]})."
            )

    def record(self, line: int, values: Iterable[Any]) -> Record | None:
        """Makes a record of typed values, one for each column; a broken one is counted and gives None."""
        cells: list[Cell] = []
        try:
            for column, value in zip(self.columns, values, strict=True):
                # A str, by far the most frequent, passes without a call, since this runs for each row.
                if type(value) is str and (column.is_text or (value and not value.isspace())):
                    cells.append(value)
                else:
                    cells.append(_as_text(value, column.name) if column.is_text else _as_raw(value, column))
        except _BrokenRow as error:
            self.report.count_broken(line, *error.args)
            return None
        return Record(tuple(cells), self.index, line)

    def plain_text(self, line: int, text: str) -> Record:
        """Makes the record of a text from a source without columns."""
        return Record((text, *("" for _ in self.columns[1:])), self.index, line)

    def note_columns(self, names: Iterable[str]) -> None:
        """Notes the columns of a row that lacks one."""
        if len(self.keys) < _KEYS_KEPT:
            self.keys.update(names)


class _BrokenRow(ValueError):
    """Arguments: the reason, and perhaps a detail."""


def lacks_value(column: SourceColumn, cell: str) -> bool:
    """Whether a cell says nothing."""
    return not (column.is_text or column.may_be_empty or cell.strip())


def _as_raw(value: Any, column: SourceColumn) -> Cell:
    if isinstance(value, list):
        return tuple(_as_cell(item, column.name) for item in value)
    cell = _as_cell(value, column.name)
    if lacks_value(column, cell):
        raise _BrokenRow(f"no value in {column.name!r}")
    return cell


def _as_text(value: Any, column: str) -> str:
    if isinstance(value, bytes):
        return _decode(value)
    if isinstance(value, str):
        return value
    if value is None:
        raise _BrokenRow(f"no value in {column!r}")
    raise _BrokenRow(f"{column!r} is not text", f"a {type(value).__name__}")


def _as_cell(value: Any, column: str) -> str:
    if isinstance(value, (int, float)) and value == value:
        return str(value)
    if isinstance(value, (str, bytes)):
        return _as_text(value, column)
    if value is None or value != value:  # NaN is how tables write a missing number
        raise _BrokenRow(f"no value in {column!r}")
    if isinstance(value, (dict, list)):
        raise _BrokenRow(f"{column!r} is not a single value", f"a {type(value).__name__}")
    if isinstance(value, Decimal):
        return _decimal_cell(value)
    if getattr(value, "dtype", None) is not None and value.dtype.kind == "f":
        # A narrow float: NumPy writes the shortest decimal that equals it in its own type; Python writes more digits.
        return str(float(str(value)))
    return str(value)


def _decimal_cell(value: Decimal) -> str:
    """Returns 0.1 for 0.10: trailing zeros come from the column's type, not from the row."""
    digits = format(value, "f")  # not normalize(), which rounds to 28 digits
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _decode(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise _BrokenRow("not valid utf-8", error.reason) from error


def no_such_column(uri: str, column: SourceColumn, columns: Collection[str]) -> InputError:
    """Returns the error for a column that a file does not have: the columns there are, and the nearest."""
    known = sorted(columns) if isinstance(columns, set) else list(columns)
    shown = ", ".join(repr(name[:40]) for name in known[:20]) + (", ..." if len(known) > 20 else "")
    return InputError(
        f"{uri} has no column {column.name!r}, which {column.field} names; its columns are {shown}."
        f"{nearest(column.name, known)}"
    )


def column_twice(uri: str, name: str) -> InputError:
    """Returns the error for a needed column whose name occurs more than once."""
    return InputError(f"{uri} has several columns named {name!r}; rename all but one.")


def in_batches(rows: Iterator[Record | None]) -> Iterator[list[Record]]:
    """Yields the records of every `BATCH_ROWS` rows, counting broken rows (None), so that a caller can stop early."""
    while batch := list(itertools.islice(rows, BATCH_ROWS)):
        yield [record for record in batch if record]


def first_line(error: Any) -> str:
    """Returns the first line of an error, for a sentence of ours."""
    return str(error).strip().split("\n")[0].rstrip(".")
