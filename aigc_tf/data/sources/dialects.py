"""How a table in a text file is written: the separator of its cells, and whether a TSV is quoted.

A TSV does not say whether it is quoted. Many are plain: a quote is text, and a text may begin with one. pandas,
Python's csv module and spreadsheets write quoted ones: a cell that contains a tab, a newline or a quote is enclosed in
quotes, and its own quotes are doubled.
"""

import collections
import csv
import re
from collections.abc import Collection, Iterable, Sequence

ROWS_SEEN = 20
"""Lines that are examined to find the separator of a table without a header."""

_SEPARATORS = (",", ";", "\t", "|")

_QUOTED_ROWS_SEEN = 1000
"""Number of rows containing a quote that decide whether a TSV is quoted."""

_MAX_CELL_CHARACTERS = 1 << 20
"""The most characters of a quoted cell over several lines; else one quote in a plain file would read it to its end."""

_CELL = re.compile(r'"[^"]*(?:""[^"]*)*"|[^"\t\n]*')


def named_separator(text: str) -> str:
    """Returns the separator that a first line `sep=;` names, as spreadsheets write it; empty without such a line."""
    match = re.match(r'"?sep=([^\w"\r\n])"?\r?(?:\n|$)', text, re.IGNORECASE)
    return match[1] if match else ""


def find_separator(lines: Sequence[str], usual: str, *, needed: Collection[str], names: Sequence[str]) -> str:
    """Returns the separator of a table: the usual one, unless only another one yields the needed columns.

    Args:
        lines: The first lines of the file, at least one.
        usual: The one of the file's format, `,` or a tab.
        needed: The columns that are read.
        names: `data.column_names`; if given, the file has no header, and each row has as many cells.
    """
    separators = (usual, *(other for other in _SEPARATORS if other != usual))  # max() and next() prefer the first
    if names:
        rows = [line for line in lines if line.strip()]
        widths = {separator: {len(_split(row, separator)) for row in rows} for separator in separators}
        if len(names) == 1 or len(names) in widths[usual]:
            return usual
        return next((separator for separator in separators if widths[separator] == {len(names)}), usual)
    headers = {separator: _split(lines[0], separator) for separator in separators}
    found = {separator: len(set(needed) & set(header)) for separator, header in headers.items()}
    if not any(found.values()) and len(headers[usual]) == 1:
        return max(separators, key=lambda separator: len(headers[separator]))  # for the error, which names them
    return max(separators, key=found.__getitem__)


def _split(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line.removesuffix("\r")], delimiter=separator), [])
    except csv.Error:
        return []


def is_quoted(lines: Iterable[str], *, width: int) -> bool:
    """Whether a TSV is quoted. Its rows that contain a quote decide, at most 1000 of them.

    It is quoted if all cells of its header are in quotes. Otherwise two kinds of rows count: rows that only a quoting
    writer makes (a cell in quotes holds a tab, a newline or a doubled quote), and rows that no quoting writer makes (a
    quote stands elsewhere). The file is quoted if more than nine of ten such rows are of the first kind. Without such
    rows it is quoted if exactly the cells with a comma are in quotes, as spreadsheets write them.

    Args:
        lines: The lines of the file, ends kept.
        width: Number of cells of a row; 0 if the first line is a header.
    """
    evidence, rows = _Evidence(width), _Rows(lines)
    while evidence.num_seen < _QUOTED_ROWS_SEEN and (row := rows.next()):
        if not evidence.add(row):
            rows.give_back(row[1:])  # not a quoted row, so its other lines are rows of their own
    return evidence.is_quoted


class _Rows:
    """Rows of a quoted table: a cell in quotes may continue on the next line."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self._waiting = iter(lines), collections.deque[str]()

    def _next_line(self) -> str:
        return self._waiting.popleft() if self._waiting else next(self._lines, "")

    def next(self) -> list[str]:
        """Returns the lines of the next row; empty at the end of the file."""
        row, size, num_quotes = [], 0, 0
        while line := self._next_line():
            row.append(line)
            size += len(line)
            num_quotes += line.count('"')
            if num_quotes % 2 == 0 or size > _MAX_CELL_CHARACTERS:
                break
        return row

    def give_back(self, lines: list[str]) -> None:
        self._waiting.extendleft(reversed(lines))


class _Evidence:
    """What the rows of a TSV say about its quotes."""

    def __init__(self, width: int) -> None:
        self._width, self._has_header = width, not width
        self._fits = self._breaks = 0
        self._is_first, self._is_header_quoted = True, False
        self._with_comma = self._without_comma = self._bare_comma = 0  # cells: quoted with and without one; not quoted
        self.num_seen = 0
        """Rows with a quote in them."""

    def add(self, row: list[str]) -> bool:
        """Counts a row. Returns False if its lines cannot be one row of a quoted file."""
        text = "".join(row).removesuffix("\n").removesuffix("\r")
        cells = _cells(text) if '"' in text else text.split("\t")
        if self._is_first:
            self._is_first = False
            self._width = self._width or len(cells) or len(text.split("\t"))
            is_all = bool(cells) and all(cell.startswith('"') for cell in cells)
            self._is_header_quoted = is_all and (self._has_header or self._width > 1)
        if '"' not in text:
            self._bare_comma += "," in text
            return True
        self.num_seen += 1
        if len(cells) != self._width:
            self._breaks += 1
            return False
        quoted = [cell[1:-1] for cell in cells if cell.startswith('"')]
        is_plain_too = all(line.count("\t") == self._width - 1 for line in row)
        self._fits += any('""' in cell for cell in quoted) or not is_plain_too
        with_comma = sum("," in cell for cell in quoted)
        self._with_comma += with_comma
        self._without_comma += len(quoted) - with_comma
        self._bare_comma += any("," in cell for cell in cells if not cell.startswith('"'))
        return True

    @property
    def is_quoted(self) -> bool:
        if self._is_header_quoted:
            return True
        if self._fits or self._breaks:
            return self._fits > 9 * self._breaks
        return bool(self._with_comma) and not self._without_comma and not self._bare_comma


def _cells(row: str) -> list[str]:
    """Returns the cells of a row of a quoted TSV, quotes kept; empty if it cannot be such a row."""
    cells, at = [], 0
    while match := _CELL.match(row, at):
        cells.append(match[0])
        at = match.end()
        if at == len(row):
            return cells
        if row[at] != "\t":
            break
        at += 1
    return []
