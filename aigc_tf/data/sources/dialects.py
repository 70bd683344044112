"""How a table in a text file is written: which character separates its cells, and whether its TSV is quoted.

A TSV says neither. Many are plain: a quote is a quote, and a text may begin with one. pandas, Python's csv module and
spreadsheets write quoted ones: a cell with a tab, a newline or a quote in it stands in quotes, its own quotes doubled.
"""

import collections
import csv
import re
from collections.abc import Collection, Iterable, Sequence

ROWS_SEEN = 20
"""Lines that are looked at for the separator of a table without a header."""

_SEPARATORS = (",", ";", "\t", "|")

_QUOTED_ROWS_SEEN = 1000
"""So many rows with a quote in them decide whether a TSV is quoted."""

_MAX_CELL_CHARACTERS = 1 << 20
"""A cell that holds newlines is looked for no further; a plain text with an only quote would be read to its end."""

_CELL = re.compile(r'"[^"]*(?:""[^"]*)*"|[^"\t\n]*')


def named_separator(text: str) -> str:
    """Returns the separator that a first line `sep=;` names, as spreadsheets read and write it; else nothing."""
    match = re.match(r'"?sep=([^\w"\r\n])"?\r?(?:\n|$)', text, re.IGNORECASE)
    return match[1] if match else ""


def find_separator(lines: Sequence[str], usual: str, *, needed: Collection[str], names: Sequence[str]) -> str:
    """Returns the separator of a table: the usual one, unless only another one gives the columns that are needed.

    Args:
        lines: The first lines of the file, at least one.
        usual: The one of the file's format, `,` or a tab.
        needed: The columns that are read.
        names: `data.column_names`: the file has no header, and so many cells in each row.
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
        return max(separators, key=lambda separator: len(headers[separator]))  # so that the error names the columns
    return max(separators, key=found.__getitem__)


def _split(line: str, separator: str) -> list[str]:
    try:
        return next(csv.reader([line.removesuffix("\r")], delimiter=separator), [])
    except csv.Error:
        return []


def is_quoted(lines: Iterable[str], *, width: int) -> bool:
    """Whether a TSV is quoted; its rows with a quote in them decide it, 1000 at most.

    It is if all cells of its header are in quotes. It is if, of the rows that tell, more than nine of ten are such as
    only a writer of quotes makes (a cell in quotes holds a tab, a newline or a doubled quote), and the rest are not (a
    quote stands elsewhere). Where no row tells, it is if just those cells are in quotes that hold a comma, as
    spreadsheets write them.

    Args:
        lines: The lines of the file, ends kept.
        width: Cells of a row; 0 if the first line is a header.
    """
    evidence, rows = _Evidence(width), _Rows(lines)
    while evidence.num_seen < _QUOTED_ROWS_SEEN and (row := rows.next()):
        if not evidence.add(row):
            rows.give_back(row[1:])  # only the first line is judged
    return evidence.is_quoted


class _Rows:
    """Lines taken together as long as a cell in quotes would go on in the next one."""

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
        self._with_comma = self._without_comma = self._bare_comma = 0  # cells: in quotes with and without; not in them
        self.num_seen = 0
        """Rows with a quote in them."""

    def add(self, row: list[str]) -> bool:
        """Looks at the lines of a row; False: they are not one row, if the file is a quoted one."""
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
    """Returns the cells of a row of a quoted TSV, quotes kept; empty if the row is none of such a file."""
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
