"""What a preparation shows: progress in a log and on a terminal, warnings, many labels."""

import collections
import csv
import io
from pathlib import Path

from rich.console import Console

from aigc_tf.data.preparing import terminal
from aigc_tf.data.preparing.terminal import Counts, ProgressBar, find_warnings

CASES = Path(__file__).parents[1] / "cases"


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def show(*moments, total_bytes=1_000_000, **options):
    """Returns what is shown for `(seconds, phase, bytes, records)`."""
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, width=200, **options)
    with ProgressBar(total_bytes=total_bytes, console=console, clock=clock) as progress:
        for clock.now, *counts in moments:
            progress(Counts(*counts))
    return output.getvalue()


def test_a_log_gets_a_line_every_ten_seconds_with_speed_and_time_left():
    moments = [(0, "preparing", 0, 0), (5, "preparing", 100_000, 10), (10, "preparing", 250_000, 2_500)]
    shown = show(*moments, (19, "preparing", 260_000, 2_600), (20, "preparing", 1_000_000, 9_000))
    assert shown.splitlines() == [
        "preparing: 250.0 kB of 1.0 MB (25 %), 2,500 records, 25.0 kB/s, 0:30 left",
        "preparing: 1.0 MB of 1.0 MB (100 %), 9,000 records, 50.0 kB/s, 0:00 left",
    ]


def test_a_second_phase_has_its_own_speed():
    shown = show((0, "first", 0, 0), (9, "first", 1_000_000, 9), (10, "second", 0, 0), (30, "second", 500_000, 5))
    assert shown.splitlines() == [
        "second: 0 bytes of 1.0 MB (0 %), 0 records",
        "second: 500.0 kB of 1.0 MB (50 %), 5 records, 25.0 kB/s, 0:20 left",
    ]


def test_empty_sources_do_not_divide_by_zero():
    assert "0 bytes of 0 bytes (0 %)" in show((11, "preparing", 0, 0), total_bytes=0)


def test_a_terminal_gets_a_bar_for_each_phase():
    shown = show((0, "first", 0, 0), (1, "first", 1_000_000, 77), (2, "second", 0, 0), force_terminal=True)
    assert "first" in shown
    assert "second" in shown
    assert "1.0/1.0 MB" in shown
    assert "77 records" in shown


def described(problem_type="single_label", **splits):
    return {"columns": {"label": {"problem_type": problem_type}}, "splits": splits}


def split(empty=0, **more):
    return {"examples": 10, "empty_examples": empty, **more}


def test_nothing_odd_gives_no_warning():
    fine = split(counts={"label": {"a": 5, "b": 5}})
    assert find_warnings(described(train=fine, validation=fine, test=fine)) == []
    numbers = split(ranges={"label": {"min": 0, "mean": 1, "max": 2}})
    assert find_warnings(described("regression", train=numbers, validation=numbers, test=numbers)) == []


def test_what_is_odd_is_said():
    train = split(empty=3, counts={"label": {"a": 10, "b": 0, "c": 0}})
    assert find_warnings(described(train=train, test=split(empty=1, counts={"label": {"a": 10}}))) == [
        "There is no validation split.",
        "Every example of the training split has the label 'a'; a model can learn nothing from it.",
        "The training split has no example of 'b', 'c'.",
        "4 examples have no token: their text is empty or white space.",
    ]
    constant = split(ranges={"label": {"min": 2.5, "mean": 2.5, "max": 2.5}})
    warnings = find_warnings(described("regression", train=constant, validation=constant, test=constant))
    assert warnings == ["Every example of the training split has the number 2.5."]
    everywhere = split(counts={"label": {"a": 10}})
    assert find_warnings(described("multi_label", train=everywhere, validation=everywhere, test=everywhere)) == []


def test_labels_that_look_like_the_same_are_named():
    with open(CASES / "lookalike_labels.csv", encoding="utf-8", newline="") as file:
        counts = collections.Counter(row["label"].strip() for row in csv.DictReader(file))
    named = split(counts={"label": dict(counts) | {"0": 1, "0.0": 1, "False": 1}})
    (warning,) = find_warnings(described(train=named, validation=named, test=named))
    assert warning.startswith(
        "These labels look alike, and each is a class of its own: 'caf\u00e9', 'cafe\\u0301'; "
        "'spam', 'spam\\u200b', 'Spam'; '0', '0.0', 'False'. If they mean the same"
    )


def test_a_table_that_is_read_as_one_text_is_said():
    fine = split(counts={"label": {"a": 5, "b": 5}})
    sources = [{"uri": "a.txt", "format": "document"}, {"uri": "b.jsonl.gz", "format": "document"}]
    info = described("none", train=fine, validation=fine, test=fine) | {"sources": sources}
    assert find_warnings(info) == [
        "With data.format 'document' a table is one text, commas and quotes included: b.jsonl.gz. "
        "Leave data.format at 'auto' to read its rows."
    ]


def test_of_many_labels_the_most_frequent_are_shown():
    counts = {f"label {i}": i for i in range(100)}
    lines = terminal._spread({"examples": 4950, "counts": {"label": counts}, "ranges": {}}, "label").splitlines()
    assert lines[0] == "label 99 99 (2.0%)"
    assert lines[-1] == "and 94 more"
    assert len(lines) == 7


def test_many_sources_are_summed_up():
    def shown(number):
        sources = [
            {"uri": f"{i}.txt", "format": "document", "records": 1, "bad": {"not valid utf-8": 1} if i % 2 else {}}
            for i in range(number)
        ]
        console = Console(file=io.StringIO(), width=100)
        console.print(terminal._sources_table({"sources": sources}))
        return [line.split() for line in console.file.getvalue().splitlines()][3:]

    assert len(shown(20)) == 20
    assert shown(30)[9:] == [["9.txt", "document", "1", "1"], ["and", "20", "more", "20", "10"]]
