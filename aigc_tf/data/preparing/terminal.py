"""Shows a preparation and its result: progress on standard error, tables from dataset.json."""

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from aigc_tf.data.encoders.labels import find_look_alikes, show_exactly
from aigc_tf.data.prepared.prepared import SPLIT_NAMES, PreparedDataset
from aigc_tf.errors import some_of

_LABELS_SHOWN = 6
_BROKEN_SHOWN = 5
_SOURCES_SHOWN = 20


class Counts(NamedTuple):
    """The progress of a preparation."""

    phase: str
    """The current phase, such as `preparing`."""
    bytes_read: int
    """Bytes read of the source files in this phase."""
    records: int


class ProgressBar:
    """Shows bytes read, speed and time left. A context manager; call it with `Counts`.

    On a terminal it is one bar for each phase; elsewhere, such as in a log file, a line at most every `line_seconds`.
    """

    def __init__(
        self,
        *,
        total_bytes: int,
        console: Console | None = None,
        line_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepares the bar.

        Args:
            total_bytes: Size of the source files; each phase reads all of them.
            console: Where to write; standard error by default.
            line_seconds: Without a terminal, seconds between two lines.
            clock: Returns the time in seconds; tests pass their own.
        """
        self._total, self._line_seconds, self._clock = total_bytes, line_seconds, clock
        self._console = console or Console(stderr=True)
        self._phase, self._began, self._next_line = "", clock(), clock() + line_seconds
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[records]} records"),
                console=self._console,
            )

    def __enter__(self) -> "ProgressBar":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, counts: Counts) -> None:
        if counts.phase != self._phase:
            self._phase, self._began = counts.phase, self._clock()
            if self._bar is not None:
                self._task = self._bar.add_task(counts.phase, total=self._total, records="0")
        if self._bar is not None:
            self._bar.update(self._task, completed=counts.bytes_read, records=f"{counts.records:,}")
        elif self._clock() >= self._next_line:
            self._next_line = self._clock() + self._line_seconds
            self._console.print(self._line(counts), markup=False, highlight=False, soft_wrap=True)

    def _line(self, counts: Counts) -> str:
        seconds, done = self._clock() - self._began, counts.bytes_read
        share = f"{100 * done // max(1, self._total)} %"
        facts = [f"{counts.phase}: {_size(done)} of {_size(self._total)} ({share})", f"{counts.records:,} records"]
        if seconds >= 1 and done:  # a phase that has just begun has no speed yet
            left = round(seconds / done * max(0, self._total - done))
            facts += [f"{_size(round(done / seconds))}/s", f"{left // 60}:{left % 60:02} left"]
        return ", ".join(facts)


def print_ledger(prepared: PreparedDataset, *, max_length: int, num_special: int, console: Console) -> None:
    """Prints the input, what each stage dropped and why, the result, warnings, and the next command.

    Args:
        prepared: The data set.
        max_length: `data.max_length`, to which batches truncate.
        num_special: Special tokens of one example.
        console: Where to print.
    """
    info = prepared.info
    console.print(_sources_table(info))
    console.print(_stages_table(info))
    console.print(_splits_table(prepared, max_length=max_length, num_special=num_special))
    for line in [*_notes(info), *(f"Warning: {warning}" for warning in find_warnings(info))]:
        print_line(console, line)
    files = sum(file["bytes"] for file in info["files"].values())
    sizes = {column["vocabulary_size"] for column in info["columns"].values() if "vocabulary_size" in column}
    vocabulary = "".join(f", vocabulary of {size:,}" for size in sizes)
    print_line(console, f"\nPrepared data: {prepared.folder} ({_size(files)}{vocabulary}).")


def find_warnings(info: Mapping[str, Any]) -> list[str]:
    """Returns warnings of what is seldom intended: one label, labels without examples, missing splits, empty texts.

    Args:
        info: The content of dataset.json.
    """
    splits = info["splits"]
    warnings = [f"There is no {split} split." for split in SPLIT_NAMES if split not in splits]
    tables = [source["uri"] for source in info.get("sources", []) if _is_table_as_text(source)]
    if tables:
        warnings.append(
            f"With data.format 'document' a table is one text, commas and quotes included: {some_of(tables, 5)}. "
            "Leave data.format at 'auto' to read its rows."
        )
    for name, counts in splits["train"].get("counts", {}).items():
        warnings += _label_warnings(counts, is_one_of=info["columns"][name]["problem_type"] == "single_label")
    for name, found in splits["train"].get("ranges", {}).items():
        if found["min"] == found["max"]:
            of_column = "" if "problem_type" in info["columns"][name] else f" {name} ="
            warnings.append(f"Every example of the training split has the number{of_column} {found['min']:g}.")
    empty = sum(split["empty_examples"] for split in splits.values())
    if empty:
        warnings.append(f"{empty:,} examples have no token: their text is empty or white space.")
    return warnings


def _label_warnings(counts: Mapping[str, int], *, is_one_of: bool) -> list[str]:
    """Returns warnings about a column of labels.

    Args:
        counts: Examples of the training split by label.
        is_one_of: Whether each example has exactly one label.
    """
    warnings = []
    missing = [name for name, count in counts.items() if not count]
    if is_one_of and len(counts) - len(missing) == 1:
        only = next(name for name, count in counts.items() if count)
        warnings.append(
            f"Every example of the training split has the label {only!r}; a model can learn nothing from it."
        )
    if missing:
        warnings.append(f"The training split has no example of {some_of([repr(name) for name in missing], 5)}.")
    alike = find_look_alikes(counts)
    if alike:
        groups = some_of([", ".join(map(show_exactly, group)) for group in alike], 5, separator="; ")
        warnings.append(
            f"These labels look alike, and each is a class of its own: {groups}. If they mean the same, "
            "unify them in the sources, or name the right ones in data.label_names."
        )
    return warnings


def _is_table_as_text(source: Mapping[str, Any]) -> bool:
    name = source["uri"].removesuffix(".gz")
    return source["format"] == "document" and name.endswith((".csv", ".tsv", ".jsonl", ".ndjson"))


def _sources_table(info: Mapping[str, Any]) -> Table:
    table = _table("source", "format", ">records", ">broken", title="What went in")
    sources = info.get("sources", [])
    num_shown = len(sources) if len(sources) <= _SOURCES_SHOWN else _SOURCES_SHOWN // 2
    for source in sources[:num_shown]:
        _add(table, source["uri"], source["format"], f"{source['records']:,}", f"{_num_broken([source]):,}")
    if rest := sources[num_shown:]:
        records = sum(source["records"] for source in rest)
        _add(table, f"and {len(rest):,} more", "", f"{records:,}", f"{_num_broken(rest):,}")
    return table


def _num_broken(sources: list[Mapping[str, Any]]) -> int:
    return sum(sum(source["bad"].values()) for source in sources)


def _stages_table(info: Mapping[str, Any]) -> Table:
    table = _table("stage", ">kept", ">dropped", "why", title="What each stage did")
    for stage in info.get("stages", []):
        dropped = stage["dropped"]
        why = ", ".join(f"{reason}: {count:,}" for reason, count in dropped.items())
        _add(table, stage["name"], f"{stage['kept']:,}", f"{sum(dropped.values()):,}", why)
    return table


def _splits_table(prepared: PreparedDataset, *, max_length: int, num_special: int) -> Table:
    schema = prepared.schema
    if schema.learnt:
        return _documents_table(prepared)
    of_texts = [">tokens", f">over {max_length} tokens"] if schema.text_columns else []
    heads = ["labels" if column.encoder == "label" else column.name for column in schema.cell_columns]
    table = _table("split", f">{schema.unit}s", *of_texts, *heads, title="What came out")
    for name, split in prepared.info["splits"].items():
        cells = [name, f"{split['examples']:,}"]
        if schema.text_columns:
            longer = prepared.splits[name].count_longer(max_length - num_special)
            cells += [f"{_num_tokens(split):,}", f"{longer / split['examples']:.1%}"]
        _add(table, *cells, *(_spread(split, column.name) for column in schema.cell_columns))
    return table


def _documents_table(prepared: PreparedDataset) -> Table:
    schema = prepared.schema
    is_part = len(schema.learnt) < len(schema.text_columns)
    of_part = [f">bytes of {' and '.join(schema.learnt)}s"] if is_part else []
    table = _table("split", f">{schema.unit}s", ">tokens", ">bytes", ">bytes a token", *of_part, title="What came out")
    for name, split in prepared.info["splits"].items():
        num_bytes, tokens = prepared.utf8_bytes(name), _num_tokens(split)
        share = f"{num_bytes / tokens:.2f}" if tokens else "-"
        cells = [f"{prepared.learnt_utf8_bytes(name):,}"] if is_part else []
        _add(table, name, f"{split['examples']:,}", f"{tokens:,}", f"{num_bytes:,}", share, *cells)
    return table


def _num_tokens(split: Mapping[str, Any]) -> int:
    return sum(split["sizes"].values())


def _spread(split: Mapping[str, Any], column: str) -> str:
    """Returns a column's labels or numbers."""
    if column in split["ranges"]:
        found = split["ranges"][column]
        return f"{found['min']:g} to {found['max']:g}, mean {found['mean']:.4g}"
    counts = split["counts"][column]
    shown = dict(sorted(counts.items(), key=lambda item: -item[1])[:_LABELS_SHOWN]) if len(counts) > 8 else counts
    lines = [f"{name} {count:,} ({count / split['examples']:.1%})" for name, count in shown.items()]
    return "\n".join(lines + ([f"and {len(counts) - len(shown)} more"] if len(counts) > len(shown) else []))


def _notes(info: Mapping[str, Any]) -> list[str]:
    notes = [f"Stage {stage['name']}: {note}." for stage in info.get("stages", []) for note in stage["notes"]]
    notes += [f"{source['uri']}: {note}." for source in info.get("sources", []) for note in source.get("notes", [])]
    broken = [example for source in info.get("sources", []) for example in source["examples"]]
    if broken:
        notes.append(f"Broken rows, {min(len(broken), _BROKEN_SHOWN)} of {_num_broken(info['sources']):,}:")
        notes += [f"  {example}" for example in broken[:_BROKEN_SHOWN]]
    return notes


def _table(*columns: str, title: str) -> Table:
    """Returns an empty table; a column whose name begins with > is aligned right."""
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(
            column.removeprefix(">"), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))  # Text, since a label may be called [red]


def print_line(console: Console, line: str) -> None:
    """Prints a line without wrapping, colours or markup, since a label may be called [red]."""
    console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _size(num_bytes: int) -> str:
    for unit, power in (("GB", 9), ("MB", 6), ("kB", 3)):
        if num_bytes >= 10**power:
            return f"{num_bytes / 10**power:.1f} {unit}"
    return f"{num_bytes} bytes"
