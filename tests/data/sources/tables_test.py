"""Tables in text files: quoted and plain TSV, and separators other than the usual one."""

import csv
import io
from pathlib import Path

import pytest

from aigc_tf.config import DataConfig
from aigc_tf.data.sources import text_files
from aigc_tf.data.sources.sources import Record, find_sources, read_records
from aigc_tf.errors import InputError
from tests.source_columns import columns_of

CASES = Path(__file__).parents[1] / "cases"

TEXTS = ["plain", 'say "hi"', "two\nlines", "a\ttab", '"all of it"', "", "ends in \\", 'half a "quote', "one, two"]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(*sources, reports=None, **fields):
    """Returns the records of sources."""
    data = DataConfig(sources=sources, **fields)
    return list(read_records(find_sources(data), data, [] if reports is None else reports, columns=columns_of(data)))


def pairs(found):
    return [(record.cells[0], record.cells[-1] if len(record.cells) > 1 else "") for record in found]


def table(rows, **dialect):
    file = io.StringIO()
    csv.writer(file, **dialect).writerows(rows)
    return file.getvalue()


def notes(path, **fields):
    reports = []
    read(path, reports=reports, **fields)
    return reports[0].notes


# ---------------------------------------------------------------- quoted TSV


def test_a_tsv_that_pandas_wrote_holds_the_texts_of_the_csv():
    reports = []
    found, expected = read(f"{CASES}/quoted.tsv", reports=reports), read(f"{CASES}/quoted.csv")
    assert len(found) == 200
    assert pairs(found) == pairs(expected)
    assert [record.line for record in found] == [record.line for record in expected]
    assert reports[0].num_bad == 0
    assert reports[0].notes == ["it is a quoted TSV: quotes around a cell are not part of it"]


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quoted_tsv_gives_back_what_was_written(tmp_path, monkeypatch, block, quoting, end):
    monkeypatch.setattr(text_files, "_BLOCK_BYTES", block)
    rows = [(text, "x") for text in ["no quote before"] * 3 + TEXTS]
    dialect = dict(delimiter="\t", quoting=quoting, lineterminator=end)
    with_header = write(tmp_path / "a.tsv", table([("text", "label"), *rows], **dialect))
    without = write(tmp_path / "b.tsv", table(rows, **dialect))
    assert pairs(read(with_header)) == rows
    assert pairs(read(without, column_names=("text", "label"))) == rows


def test_a_spreadsheet_quotes_commas_in_a_tsv(tmp_path):
    rows = 'text\tlabel\n"no, thanks"\tx\nno\ty\n"well, well"\tx\n'
    path = write(tmp_path / "a.tsv", rows)
    assert pairs(read(path)) == [("no, thanks", "x"), ("no", "y"), ("well, well", "x")]
    path = write(tmp_path / "b.tsv", rows + "a bare, comma\tx\n")
    assert pairs(read(path))[0] == ('"no, thanks"', "x")


@pytest.mark.parametrize(
    "texts",
    [
        ['"a', 'say ""hi""', '"b"'],
        ['"all of it"', '"and this"'],
        ['"a text that begins with a quote', 'and one that ends with it"'],
        ['5" pipe', "plain"],
        ['"one" and "two"', '"say ""hi"" to one quoted cell among plain ones"', '"', 'ends"'],
        ['""', '""""'][:1],
    ],
)
def test_quotes_of_a_plain_tsv_are_text(tmp_path, texts):
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{text}\tx\n" for text in texts))
    assert pairs(read(path)) == [(text, "x") for text in texts]
    assert notes(path) == []


def test_a_broken_row_does_not_make_a_quoted_tsv_a_plain_one(tmp_path):
    rows = table([("text", "label"), *([('say "hi"', "x")] * 30)], delimiter="\t")
    path = write(tmp_path / "a.tsv", rows + 'a "bad" row\n')
    reports = []
    assert pairs(read(path, reports=reports, max_bad_share=0.1)) == [('say "hi"', "x")] * 30
    assert reports[0].bad == {"wrong number of columns": 1}


def test_rows_before_the_first_quote_keep_their_line(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_BLOCK_BYTES", 8)
    path = write(tmp_path / "a.tsv", 'text\tlabel\na\tx\nb\ty\n"c ""d"""\tx\n"e\nf"\ty\ng\tx\n')
    assert [(record.cells[0], record.line) for record in read(path)] == [
        ("a", 2),
        ("b", 3),
        ('c "d"', 4),
        ("e\nf", 5),
        ("g", 7),
    ]


def test_a_quote_that_is_never_closed_is_not_looked_for_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("aigc_tf.data.sources.dialects._MAX_CELL_CHARACTERS", 100)
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"a\tx\n' + "b\tx\n" * 1000)
    assert len(read(path)) == 1001


# ---------------------------------------------------------------- separators


def test_a_semicolon_is_recognised_and_noted():
    reports = []
    found = read(f"{CASES}/semicolon.csv", reports=reports)
    with open(CASES / "semicolon.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file, delimiter=";"))[1:]
    assert pairs(found) == [tuple(row) for row in rows]
    assert reports[0].notes == ["its cells are separated by ';'"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "|", "\t"])
def test_any_separator_is_found_by_the_header_or_the_names(tmp_path, name, separator):
    rows = [("plain", "x"), ('say "hi"' + separator + " and go", "y"), ("two\nlines", "x")]
    usual = "," if name == "a.csv" else "\t"
    path = write(tmp_path / name, table([("text", "label"), *rows], delimiter=separator))
    assert pairs(read(path)) == rows
    assert (f"its cells are separated by {separator!r}" in notes(path)) == (separator != usual)
    path = write(tmp_path / name, table([("a", "x"), ("b", "y")], delimiter=separator))
    assert pairs(read(path, column_names=("text", "label"))) == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize("line", ["sep=;\n", '"sep=;"\r\n', "SEP=;\n"])
def test_a_first_line_that_names_the_separator_is_no_row(tmp_path, line):
    path = write(tmp_path / "a.csv", line + "text;label\na, b;x\n")
    assert read(path) == [Record(("a, b", "x"), 0, 3)]
    path = write(tmp_path / "b.csv", line.replace(";", ",") + "text,label\na;x\n".replace(";", ","))
    assert read(path) == [Record(("a", "x"), 0, 3)]
    path = write(tmp_path / "c.tsv", line.replace(";", "\t") + 'text\tlabel\n"a ""b"""\tx\n')
    assert read(path) == [Record(('a "b"', "x"), 0, 3)]


def test_a_missing_column_is_named_with_the_separator_that_was_seen(tmp_path):
    path = write(tmp_path / "a.csv", "text;lable\na;x\n")
    with pytest.raises(InputError, match=r"are 'text', 'lable'\. Did .*'lable'\? Note: its cells are .*by ';'"):
        read(path)
    path = write(tmp_path / "b.csv", "review|stars\na|1\n")
    with pytest.raises(InputError, match=r"no column 'text'.* are 'review', 'stars'\. Note: its cells are .* by '\|'"):
        read(path)


def test_the_usual_separator_is_kept_where_it_fits(tmp_path):
    assert pairs(read(write(tmp_path / "a.csv", "text,label,a;b|c\nd;e,x,f\n"))) == [("d;e", "x")]
    path = write(tmp_path / "b.csv", "d;e,x\nf;g\n")
    assert pairs(read(path, column_names=("text", "label"), max_bad_share=0.5)) == [("d;e", "x")]
    path = write(tmp_path / "c.csv", "a;b\nc;d\n")
    assert [record.cells[0] for record in read(path, column_names=("text",), label_column="")] == ["a;b", "c;d"]
