"""Tables in text files, CSV and TSV, each also gzipped: rows to records, in constant memory."""

import csv
import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from aigc_tf.data.sources.dialects import ROWS_SEEN, find_separator, is_quoted, named_separator
from aigc_tf.data.sources.records import (
    Reading,
    Record,
    SourceReport,
    column_twice,
    in_batches,
    lacks_value,
    no_such_column,
)
from aigc_tf.data.sources.text_files import MAX_RECORD_BYTES, is_text, read_lines, split_lines
from aigc_tf.errors import InputError

_Block = tuple[int, str]
"""The number of the first line, and the text of whole lines."""


class _Table:
    """The places of the needed cells in a row of a table, and the checks of a row."""

    def __init__(self, reading: Reading, names: list[str], hint: str = "") -> None:
        self._reading, self._width = reading, len(names)
        for column in reading.columns:
            if column.name not in names:
                error = no_such_column(reading.source.uri, column, names)
                raise InputError(f"{error}{hint}")
            if names.count(column.name) > 1:
                raise column_twice(reading.source.uri, column.name)
        self._places = [names.index(name) for name in reading.names]
        # Looked at in every row: those of which an empty cell says nothing.
        self._filled = [(number, column) for number, column in enumerate(reading.columns) if lacks_value(column, "")]

    def record(self, line: int, cells: list[str]) -> Record | None:
        """Returns the record of a row, or counts the row as broken. A blank line is not a row."""
        reading = self._reading
        if len(cells) != self._width or cells == [""]:
            if cells not in ([], [""]):
                reading.report.count_broken(line, "wrong number of columns", f"{len(cells)}, not {self._width}")
            return None
        chosen = tuple([cells[place] for place in self._places])
        if reading.tainted and not is_text(*chosen):
            reading.report.count_broken(line, f"not valid {reading.data.encoding}")
            return None
        for number, column in self._filled:
            if lacks_value(column, chosen[number]):
                reading.report.count_broken(line, f"no value in {column.name!r}")
                return None
        return Record(chosen, reading.index, line)


def read_csv(reading: Reading) -> Iterator[list[Record]]:
    """Comma-separated values (RFC 4180): cells may be quoted, and hold commas, newlines and doubled quotes."""
    return _read_table(reading, ",")


def read_tsv(reading: Reading) -> Iterator[list[Record]]:
    """Tab-separated lines. Quotes are text, and no cell contains a tab or a newline, unless the file is quoted."""
    return _read_table(reading, "\t")


def _read_table(reading: Reading, usual: str) -> Iterator[list[Record]]:
    csv.field_size_limit(MAX_RECORD_BYTES)  # for the whole process; the default of 128 kB is too short for documents
    blocks = read_lines(reading)
    head = next(blocks, None)
    if head is None:
        return
    separator = named_separator(head[1])
    if separator:
        head = (head[0] + 1, head[1].partition("\n")[2])
    else:
        lines = head[1].split("\n", ROWS_SEEN)[:ROWS_SEEN]
        separator = find_separator(lines, usual, needed=reading.names, names=reading.data.column_names)
    if separator != usual:
        reading.report.notes.append(f"its cells are separated by {separator!r}")  # errors quote it too
    blocks = itertools.chain([head], blocks)
    if separator == "\t":
        yield from _tab_records(reading, blocks, first_line=head[0])
    else:
        yield from in_batches(_csv_records(reading, blocks, separator))


def _table(reading: Reading, header: list[str]) -> _Table:
    seen = "".join(f" Note: {note}." for note in reading.report.notes)
    return _Table(reading, header, f"{seen} If its first line is not a header, set data.column_names.")


def _named_table(reading: Reading) -> _Table | None:
    return _Table(reading, list(reading.data.column_names)) if reading.data.column_names else None


def _tab_records(reading: Reading, blocks: Iterator[_Block], *, first_line: int) -> Iterator[list[Record]]:
    table = _named_table(reading)
    is_decided = False
    for first, text in blocks:
        if not is_decided and '"' in text:  # without a quote, a quoted file and a plain one read the same
            is_decided = True
            if is_quoted(_lines_again(reading, first_line), width=len(reading.data.column_names)):
                reading.report.notes.append("it is a quoted TSV: quotes around a cell are not part of it")
                rest = itertools.chain([(first, text)], blocks)
                yield from in_batches(_csv_records(reading, rest, "\t", table))
                return
        lines = split_lines(text)
        if table is None and lines:
            table = _table(reading, lines.pop(0).split("\t"))
            first += 1
        if table is not None:
            make = table.record
            yield [record for line, row in enumerate(lines, first) if (record := make(line, row.split("\t")))]


def _lines_again(reading: Reading, first_line: int) -> Iterator[str]:
    """Reads the lines of a file again, ends kept, without counting broken lines twice."""
    again = dataclasses.replace(reading, report=SourceReport(reading.source.uri))
    return itertools.islice(_CsvLines(read_lines(again)), first_line - 1, None)


class _CsvLines:
    """The lines of a file for the csv module. Ends are kept, since inside quotes they are part of the cell."""

    def __init__(self, blocks: Iterable[_Block]) -> None:
        self._blocks = blocks
        self.skipped = 0
        """Lines not passed on so far, such as too long ones; the csv module does not count them."""

    def __iter__(self) -> Iterator[str]:
        handed_out = 0
        for first, text in self._blocks:
            self.skipped = first - 1 - handed_out
            lines = text.split("\n")
            end = lines.pop()
            handed_out += len(lines)
            yield from [line + "\n" for line in lines]
            if end:
                handed_out += 1
                yield end


def _csv_records(
    reading: Reading, blocks: Iterable[_Block], separator: str, table: _Table | None = None
) -> Iterator[Record | None]:
    lines = _CsvLines(blocks)
    rows = csv.reader(lines, strict=True, delimiter=separator)
    table = table or _named_table(reading)
    while True:
        start = rows.line_num + 1
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            if table is None:
                raise InputError(f"The header line of {reading.source.uri} is broken CSV ({error}).") from error
            # A quote that is never closed swallows the following rows, so each of its lines counts as a broken row.
            swallowed = rows.line_num - start + 1
            reading.report.count_broken(start + lines.skipped, "broken quoting", str(error), rows=swallowed)
            yield None
            continue
        if table is None:
            table = _table(reading, cells)
        else:
            yield table.record(start + lines.skipped, cells)
