"""Records: text comes through unchanged, every broken row is counted, every unusable file is one sentence."""

import codecs
import csv
import decimal
import gzip
import hashlib
import io
import json
import os
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from aigc_tf.config import DataConfig
from aigc_tf.data.encoders.labels import LabelEncoder
from aigc_tf.data.sources import text_files
from aigc_tf.data.sources.sources import Record, SourceFile, find_sources, read_records
from aigc_tf.errors import InputError, RunError
from tests.source_columns import columns_of

CASES = Path(__file__).parents[1] / "cases"

HOSTILE_TEXTS = [
    "plain",
    "",
    " leading and trailing ",
    "quotes \" and '",
    "emoji 👩‍👩‍👧‍👦 🇩🇪 \U0001f600",
    "汉字テスト 한국어 العربية עברית",
    "not a line end: \u2028 \u2029 \x0b \x0c \x1c \x85 end",
    "nul \x00 inside",
    "combining e\u0301 and \ufeff inside",
    "a \r inside",
    "\\n is not a newline",
]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(*sources, reports=None, **fields):
    """Returns the records of sources."""
    data = DataConfig(sources=sources, **fields)
    return list(read_records(find_sources(data), data, [] if reports is None else reports, columns=columns_of(data)))


def pairs(found):
    return [(record.cells[0], record.cells[-1] if len(record.cells) > 1 else "") for record in found]


def refuses(match, *sources, kind=InputError, **fields):
    """Expects one sentence, on one line."""
    with pytest.raises(kind, match=match) as error:
        read(*sources, **fields)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- text comes through unchanged


def test_plain_text_gives_a_record_a_line(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\n  two \nthree")
    assert read(path) == [
        Record(("one", ""), 0, 1),
        Record(("", ""), 0, 2),
        Record(("  two ", ""), 0, 3),
        Record(("three", ""), 0, 4),
    ]


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_any_text_comes_through_every_format_unchanged(tmp_path, text):
    row = {"text": text, "label": "x"}
    table = io.StringIO()
    csv.writer(table, quoting=csv.QUOTE_ALL).writerows([row.keys(), row.values()])
    files = {
        "a.tsv": f"text\tlabel\n{text}\tx\n",
        "a.csv": table.getvalue(),
        "a.jsonl": json.dumps(row, ensure_ascii=False) + "\n",
        "b.jsonl": json.dumps(row, ensure_ascii=True) + "\n",
        "c.csv.gz": gzip.compress(table.getvalue().encode()),
    }
    for name, content in files.items():
        assert pairs(read(write(tmp_path / name, content))) == [(text, "x")], name
    assert read(write(tmp_path / "a.txt", text + "\n"))[0].cells[0] == text


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 16, 64])
def test_where_a_block_is_cut_does_not_matter(tmp_path, block, monkeypatch):
    texts = [*HOSTILE_TEXTS, "x" * 50]
    table = io.StringIO()
    csv.writer(table).writerows([["text", "label"], *([text + "\n2nd", "x"] for text in texts)])
    jsonl = "".join(json.dumps({"text": text, "label": 1}) + "\n" for text in texts)
    monkeypatch.setattr(text_files, "_BLOCK_BYTES", block)
    tsv = write(tmp_path / "a.tsv", "\ufefftext\tlabel\r\n" + "".join(f"{text}\tx\r\n" for text in texts))
    assert pairs(read(tsv)) == [(text, "x") for text in texts]
    assert pairs(read(write(tmp_path / "a.csv", table.getvalue()))) == [(text + "\n2nd", "x") for text in texts]
    assert pairs(read(write(tmp_path / "a.jsonl", jsonl))) == [(text, "1") for text in texts]


def test_windows_line_ends_and_a_byte_order_mark_are_removed(tmp_path):
    bom = codecs.BOM_UTF8
    assert pairs(read(write(tmp_path / "a.csv", bom + b"text,label\r\na,x\r\nb,y"))) == [("a", "x"), ("b", "y")]
    assert pairs(read(write(tmp_path / "a.tsv", bom + b"text\tlabel\r\na\tx\r\nb\ty\r\n"))) == [("a", "x"), ("b", "y")]
    assert pairs(read(write(tmp_path / "a.jsonl", bom + b'{"text": "a", "label": "x"}\r\n'))) == [("a", "x")]
    assert pairs(read(write(tmp_path / "a.txt", bom + b"a\r\nb\r\n"))) == [("a", ""), ("b", "")]
    assert pairs(read(write(tmp_path / "a.txt", bom + b"a"), encoding="utf-8-sig")) == [("a", "")]


def test_csv_cells_hold_commas_quotes_and_newlines(tmp_path):
    path = write(tmp_path / "a.csv", 'label,text\nx,"a, ""b""\r\nc"\n\ny,"d\n"\nz,5" pipe\n')
    assert read(path) == [
        Record(('a, "b"\r\nc', "x"), 0, 2),
        Record(("d\n", "y"), 0, 5),
        Record(('5" pipe', "z"), 0, 7),
    ]


def test_tsv_quotes_are_text(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"a\tx\nsay ""hi""\ty\n"b"\tz\n')
    assert pairs(read(path)) == [('"a', "x"), ('say ""hi""', "y"), ('"b"', "z")]


def test_column_names_stand_for_a_header(tmp_path):
    path = write(tmp_path / "a.txt", "7\t-0.5\tgood\n8\t1.0\tbad\n")
    found = read(path, format="tsv", column_names=("id", "rating", "text"), label_column="rating")
    assert pairs(found) == [("good", "-0.5"), ("bad", "1.0")]
    path = write(tmp_path / "a.csv", "good,1\nbad,0\n")
    assert pairs(read(path, column_names=("text", "label"))) == [("good", "1"), ("bad", "0")]


def test_pairs_of_texts_are_read(tmp_path):
    fields = dict(text_column="premise", text_b_column="hypothesis")
    expected = [("a", "b", "x"), ("c", "", "y")]
    tsv = write(tmp_path / "a.tsv", "premise\thypothesis\tlabel\na\tb\tx\nc\t\ty\n")
    rows = [dict(zip(("premise", "hypothesis", "label"), row, strict=True)) for row in expected]
    jsonl = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for path in (tsv, jsonl):
        assert [record.cells for record in read(path, **fields)] == expected


def test_json_labels_become_strings_and_lists_tuples(tmp_path):
    labels = ["x", 5, 0.25, True, -0.0, ["a", 2], [], 1e300]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"text": "t", "label": label}) + "\n" for label in labels))
    assert [r.cells[-1] for r in read(path)] == ["x", "5", "0.25", "True", "-0.0", ("a", "2"), (), "1e+300"]


def test_an_empty_cell_is_no_label_with_multi_label_and_missing_otherwise(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\na\t\nb\tx\n")
    assert pairs(read(path, problem_type="multi_label")) == [("a", ""), ("b", "x")]
    refuses("no value in 'label': 1", path)


def test_other_encodings_are_decoded(tmp_path):
    rows = "text\tlabel\nça va\tx\nnaïve\ty\n"
    expected = [("ça va", "x"), ("naïve", "y")]
    for encoding in ("latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "cp500"):
        path = write(tmp_path / f"{encoding}.tsv", rows.encode(encoding))
        assert pairs(read(path, encoding=encoding)) == expected, encoding
    for encoding in ("gb18030", "shift_jis", "big5", "euc_jp", "iso2022_jp", "utf-7", "hz"):
        path = write(tmp_path / f"{encoding}.tsv", "text\tlabel\n中\t一\n文\t二\n".encode(encoding))
        assert pairs(read(path, encoding=encoding)) == [("中", "一"), ("文", "二")], encoding


def test_a_utf_16_file_with_a_byte_order_mark_given_as_little_endian_is_read(tmp_path):
    content = codecs.BOM_UTF16_LE + "text,label\r\na,x\r\n".encode("utf-16-le")
    assert pairs(read(write(tmp_path / "a.csv", content), encoding="utf-16-le")) == [("a", "x")]


# ---------------------------------------------------------------- the ledger


def test_a_report_has_the_hash_of_the_file_as_it_lies_on_disk(tmp_path):
    plain = b"text\tlabel\na\tx\n"
    zipped = gzip.compress(plain[:10], mtime=0) + gzip.compress(
        plain[10:], mtime=0
    )  # two members, as log rotation and pigz write
    reports = []
    sources = write(tmp_path / "a.tsv", plain), write(tmp_path / "b.tsv.gz", zipped)
    assert [record.source for record in read(*sources, reports=reports)] == [0, 1]
    assert [report.sha256 for report in reports] == [hashlib.sha256(content).hexdigest() for content in (plain, zipped)]
    assert [report.bytes_read for report in reports] == [len(plain), len(zipped)]
    assert reports[0].as_dict() == {
        "uri": sources[0],
        "sha256": hashlib.sha256(plain).hexdigest(),
        "records": 1,
        "bad": {},
        "examples": [],
        "notes": [],
    }


def test_broken_rows_are_counted_with_their_place(tmp_path):
    rows = ["text\tlabel", "a\tx", "b", "c\tx\ty", "", "d\t ", "e\tx", "\tx"]
    path = write(tmp_path / "a.tsv", "\n".join(rows).encode() + b"\nbad \xff\xfe\tx\nf\tx\n")
    reports = []
    assert [r.cells[0] for r in read(path, reports=reports, max_bad_share=0.5)] == ["a", "e", "", "f"]
    assert reports[0].bad == {"wrong number of columns": 2, "no value in 'label'": 1, "not valid utf-8": 1}
    assert reports[0].examples == [
        f"{path}:3: wrong number of columns (1, not 2)",
        f"{path}:4: wrong number of columns (3, not 2)",
        f"{path}:6: no value in 'label'",
        f"{path}:9: not valid utf-8",
    ]


def test_undecodable_bytes_break_only_their_own_row(tmp_path):
    for name, head, row in (("a.txt", b"", b"%s\n"), ("a.csv", b"text,label\n", b'"%s",x\n')):
        content = head + b"".join(row % text for text in (b"one", b"tw\xc3", b"\xed\xa0\x80", b"thr\xc3\xa9e", b"\xff"))
        reports = []
        found = read(write(tmp_path / name, content), reports=reports, max_bad_share=0.9)
        assert [record.cells[0] for record in found] == ["one", "thrée"]
        assert reports[0].bad == {"not valid utf-8": 3}
    path = write(tmp_path / "gbk.tsv", "text\tlabel\n中\tx\n".encode("gbk") + b"\x81\tx\n" + "文\tx\n".encode("gbk"))
    assert [r.cells[0] for r in read(path, encoding="gbk", max_bad_share=0.9)] == ["中", "文"]


def test_broken_json_is_counted_by_reason(tmp_path):
    rows = [
        '{"text": "a", "label": 1}',
        '{"text": "b", "label": 1',
        "[1]",
        "null",
        "   ",
        '{"text": null, "label": 1}',
        '{"text": 5, "label": 1}',
        '{"label": 1}',
        '{"text": "c"}',
        '{"text": "d", "label": null}',
        '{"text": "e", "label": NaN}',
        '{"text": "f", "label": {"a": 1}}',
        '{"text": "g", "label": ["a", null]}',
        '{"text": "h", "label": "\u3000"}',
        '{"text": "\\ud800", "label": 1}',
        '{"text": "i", "label": "\\udfff"}',
        '{"text": "\\ud83d\\ude00", "label": 1}',
        "[" * 100_000,
        '{"text": "j", "label": 1}{"text": "k", "label": 1}',
    ]
    reports = []
    path = write(tmp_path / "a.jsonl", "\n".join(rows))
    assert [r.cells[0] for r in read(path, reports=reports, max_bad_share=0.99)] == ["a", "\U0001f600"]
    assert reports[0].bad == {
        "not valid JSON": 3,
        "not a JSON object": 2,
        "no value in 'text'": 2,
        "'text' is not text": 1,
        "no value in 'label'": 5,
        "'label' is not a single value": 1,
        "not valid Unicode text": 2,
    }


def test_two_broken_json_lines_never_make_a_good_one(tmp_path):
    """The lines of a block are parsed together: neither pair below may pass as the object that it makes if joined."""
    rows = ['{"text": "a", "label": ["x"', '"y"]}', '{"text": "b", "label": 1}, {"text": "c", "label": 1}']
    rows += ['{"text": "d", "label": ["x"', '"y"]}', '{"text": "e", "label": 1}']
    reports = []
    found = read(write(tmp_path / "a.jsonl", "\n".join(rows)), reports=reports, max_bad_share=0.99)
    assert found == [Record(("e", "1"), 0, 6)]
    assert reports[0].bad == {"not valid JSON": 5}


def test_an_unclosed_quote_counts_every_line_it_swallows(tmp_path):
    rows = ["text,label", "a,x", '"b,x', "c,x", "d,x"]
    reports = []
    path = write(tmp_path / "a.csv", "\n".join(rows) + "\n")
    assert pairs(read(path, reports=reports, max_bad_share=0.9)) == [("a", "x")]
    assert reports[0].bad == {"broken quoting": 3}
    assert reports[0].examples == [f"{path}:3: broken quoting (unexpected end of data)"]


def test_reading_goes_on_after_broken_quoting(tmp_path):
    reports = []
    path = write(tmp_path / "a.csv", 'text,label\n"a"b,x\n"c\nd,x\n"e",x\nf,x\ng,x\n')
    assert pairs(read(path, reports=reports, max_bad_share=0.9)) == [("f", "x"), ("g", "x")]
    assert reports[0].bad == {"broken quoting": 4}
    assert [example.split(":")[1] for example in reports[0].examples] == ["2", "3"]


@pytest.mark.parametrize(("name", "row"), [("a.txt", "{}"), ("a.tsv", "{}\tx"), ("a.csv", '"{}",x'), ("a.csv", "{},x")])
def test_a_huge_line_is_broken_and_does_not_fill_the_memory(tmp_path, monkeypatch, name, row):
    monkeypatch.setattr(text_files, "MAX_RECORD_BYTES", 2 << 20)
    texts = ["a", "h" * (20 << 20), "b", "k" * (1 << 20), "c"]
    rows = [row.format(text) for text in texts]
    head = [] if name == "a.txt" else ["text,label" if name == "a.csv" else "text\tlabel"]
    path = write(tmp_path / name, "\n".join(head + rows))
    reports = []
    tracemalloc.start()
    found = read(path, reports=reports, max_bad_share=0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [record.cells[0][:1] for record in found] == ["a", "b", "k", "c"]
    assert [record.line for record in found] == [1 + len(head), 3 + len(head), 4 + len(head), 5 + len(head)]
    assert reports[0].bad == {"line over 2 MB": 1}
    assert peak < 16 << 20


def test_a_file_that_is_one_huge_line_is_refused_without_filling_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_RECORD_BYTES", 2 << 20)
    path = write(tmp_path / "a.txt.gz", gzip.compress(b"h" * (50 << 20)))
    tracemalloc.start()
    refuses("line over 2 MB", path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + f"{'some words ' * 20}\tx\n" * 100_000)  # 22 MB
    data = DataConfig(sources=(path,))
    tracemalloc.start()
    assert sum(1 for _ in read_records(find_sources(data), data, [], columns=columns_of(data))) == 100_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20


def test_too_many_broken_rows_stop_the_reading(tmp_path):
    rows = ["text\tlabel", *["a\tx"] * 98, "b", "c"]
    path = write(tmp_path / "a.tsv", "\n".join(rows))
    refuses(
        r"2 of 100 rows read from .*a\.tsv are broken, more than data\.max_bad_share 0\.01 allows "
        r"\(wrong number of columns: 2; the first is .*a\.tsv:100: wrong number of columns \(1, not 2\)\)",
        path,
    )
    assert len(read(path, max_bad_share=0.02)) == 98
    refuses("2 of 100", path, max_bad_share=0.0)


@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.csv", "a.jsonl"])
def test_any_bytes_are_records_or_counted(tmp_path, name, monkeypatch):
    monkeypatch.setattr(text_files, "_BLOCK_BYTES", 97)
    pieces = [
        b'"',
        b",",
        b"\t",
        b"\n",
        b"\r\n",
        b" ",
        b"\\u",
        b"{",
        b"}",
        b"[",
        b":",
        b"\xff",
        b"\xe6",
        b"\xe6\xb1\x89",
    ]
    pieces += [b'{"text": "a"}', b"\n", b"word"]
    generator = random.Random(0)
    for _ in range(200):
        content = b"word\n" + b"".join(generator.choices(pieces, k=generator.randrange(1, 200)))
        reports = []
        fields = dict(column_names=("text",), label_column="", max_bad_share=1.0)
        found = read(write(tmp_path / name, content), reports=reports, **fields)
        assert all(record.cells[0].encode() for record in found if record.cells[0])
        lines = content.removesuffix(b"\n").split(b"\n")
        if name == "a.txt":
            assert reports[0].num_rows == len(lines)
        elif name == "a.tsv":
            assert reports[0].num_rows == sum(line not in (b"", b"\r") for line in lines)
        elif name == "a.jsonl":
            assert reports[0].num_rows == sum(bool(line.strip()) for line in lines)


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_a_wrong_format_shows_long_before_the_end(tmp_path, monkeypatch, name):
    monkeypatch.setattr(text_files, "_BLOCK_BYTES", 1 << 12)
    head = {"a.tsv": "text\tlabel\n", "a.csv": "text,label\n", "a.jsonl": ""}[name]
    path = write(tmp_path / name, head + "a b c\n" * 100_000)
    refuses(r"^1\d\d\d of 1\d\d\d rows", path)


def test_a_share_of_broken_rows_that_is_just_allowed_is_allowed(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\n" + "a\tx\n" * 71 + "b\n" * 29)
    assert len(read(path, max_bad_share=0.29)) == 71  # 0.29 * 100 is below 29 in binary
    refuses("29 of 100", path, max_bad_share=0.289)


# ---------------------------------------------------------------- files that cannot be used


def test_a_missing_column_is_named_with_those_there_are(tmp_path):
    csv_file = write(tmp_path / "a.csv", "id,text,lable\n1,a,x\n")
    refuses(r"has no column 'label', which data.label_column names; its columns are 'id', 'text', 'lable'\.", csv_file)
    refuses("Did you mean 'lable'. If its first line is not a header, set data.column_names", csv_file)
    jsonl = write(tmp_path / "a.jsonl", '{"txt": "a", "label": 1}\n')
    refuses(r"has no column 'text', which data.text_column names; its columns are 'label', 'txt'.*mean 'txt'", jsonl)
    refuses("no column 'b', which data.text_b_column names", csv_file, label_column="id", text_b_column="b")
    named = dict(column_names=("a", "b", "label"))
    refuses(r"has no column 'text'.* its columns are 'a', 'b', 'label'\.$", csv_file, **named)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    refuses("several columns named 'text'", write(tmp_path / "a.csv", "text,text,label\na,b,x\n"))
    found = read(write(tmp_path / "b.csv", "text,id,id,label\na,b,c,x\n"))
    assert pairs(found) == [("a", "x")]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.tsv", b"text\tlabel", "has no rows"),
        ("a.jsonl", b"\n\n", "has no rows"),
        ("a.txt", codecs.BOM_UTF8, "has no rows"),
        ("a.tsv.gz", gzip.compress(os.urandom(5000).hex().encode())[:-500], "is damaged gzip"),
        ("a.tsv.gz", gzip.compress(b"text\tlabel\na\tb\n", mtime=0) + b"trailing", "is damaged gzip"),
        ("a.tsv.gz", gzip.compress(b"text\tlabel\na\tb\n", mtime=0)[:-8] + b"\0" * 8, "is damaged gzip"),
        ("a.tsv.gz", b"text\tlabel\na\tb\n", "is not gzip, though its name ends in .gz"),
        ("a.tsv.gz", gzip.compress(gzip.compress(b"a", mtime=0), mtime=0), "compressed twice"),
        ("a.csv", b"PK\x03\x04\x00", "is a ZIP archive .or a spreadsheet."),
        ("a.csv", b"PAR1\x15\x00", "is a Parquet file; set data.format"),
        ("a.txt", b"\x89PNG\r\n\x1a\n", "is an image"),
        ("a.csv", b"a" * 257 + b"ustar\x0000", "is a tar archive"),
        ("a.txt", bytes(range(256)), "looks like a binary file"),
        ("a.txt", "text".encode("utf-16"), "starts like UTF-16; set data.encoding to 'utf-16'"),
        ("a.csv", b"text,label\ra,x\rb,y\r", "ends its lines with .r alone"),
        ("a.jsonl", b'[{"text": "a", "label": 1}]', "is one JSON list"),
        ("a.json", b'\n [\n{"text": "a", "label": 1}]', "is one JSON list"),
        ("a.csv", b'"text,label\na,x\n', "header line of .* is broken CSV"),
        ("a.parquet", b"PAR1 no parquet at all PAR1", "is not a readable Parquet file"),
        ("a.parquet", b"x", "is not a readable Parquet file"),
        ("a.parquet", b"", "is empty"),
        ("a.tfrecord", b"neither a record nor anything else", "is not a whole TFRecord file"),
        ("a.doc", b"x", "ending of .*a.doc is that of no known format"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, name, content, sentence):
    refuses(sentence, write(tmp_path / name, content))


def test_text_that_starts_like_another_kind_of_file_is_text(tmp_path):
    for text in ("PAR1 is a gene", "%PDF is no comment", "BZh", "SQLite format 3"):
        assert read(write(tmp_path / "a.txt", text))[0].cells[0] == text


def test_a_wrong_encoding_is_one_sentence(tmp_path):
    path = write(tmp_path / "a.tsv", "text\tlabel\nça\tx\n".encode("latin-1"))
    refuses("not valid utf-8: 1", path)
    for encoding in ("utf8x", "base64", "rot13", "punycode", "undefined", "", "a\x00b"):
        refuses("is not an encoding of text files", path, encoding=encoding)
    refuses(r"is not valid utf-16 .*set data.encoding", write(tmp_path / "b.txt", b"\xff\xfe\x00"), encoding="utf-16")


def test_what_changes_between_finding_and_reading_is_one_sentence(tmp_path):
    data = DataConfig()
    for format_name in ("csv", "parquet", "tfrecord"):
        for path, sentence in ((tmp_path / "gone", "There is no file"), (tmp_path, "is a folder")):
            with pytest.raises(InputError, match=sentence):
                list(read_records([SourceFile(str(path), format_name)], data, [], columns=columns_of(data)))


def test_a_disk_that_fails_is_a_failed_run():
    with pytest.raises(RunError, match="could not be read to its end: Input/output error"):
        list(read_records([SourceFile("/proc/self/mem", "text")], DataConfig(), [], columns=columns_of(DataConfig())))


# ---------------------------------------------------------------- Parquet and TFRecord


def write_parquet(path, **columns):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=700)
    return str(path)


def test_parquet_is_read_in_order_with_its_types(tmp_path):
    import pyarrow

    texts = [f"t{number} 汉" for number in range(2500)]
    path = write_parquet(tmp_path / "a.parquet", text=texts, label=[number % 3 for number in range(2500)], other=texts)
    reports = []
    found = read(path, reports=reports)
    assert [record.cells[0] for record in found] == texts
    assert [record.line for record in found] == list(range(1, 2501))
    assert [record.cells[-1] for record in found[:4]] == ["0", "1", "2", "0"]
    with open(path, "rb") as file:
        assert reports[0].sha256 == hashlib.file_digest(file, "sha256").hexdigest()
    columns = dict(
        text=pyarrow.array(["a", "b", "a"]).dictionary_encode(),
        text_b=pyarrow.array([b"c", "ü".encode(), b""]),
        label=[["x", "y"], [], ["z"]],
    )
    path = write_parquet(tmp_path / "b.parquet", **columns)
    found = read(path, text_b_column="text_b", problem_type="multi_label")
    assert [r.cells for r in found] == [("a", "c", ("x", "y")), ("b", "ü", ()), ("a", "", ("z",))]


def test_the_same_scores_are_the_same_labels_in_csv_and_in_a_parquet_of_float32():
    fields = dict(label_column="score")
    found, expected = (read(f"{CASES}/{name}", **fields) for name in ("scores_float32.parquet", "scores.csv"))
    assert pairs(found) == pairs(expected)
    assert {record.cells[-1] for record in found} == {f"0.{tenth}" for tenth in range(1, 10)}


@pytest.mark.parametrize(("threshold", "margin", "kept"), [(0.5, 0.2, [60, 60]), (0.3, 0.0, [60, 120])])
@pytest.mark.parametrize("name", ["scores.csv", "scores_float32.parquet"])
def test_thresholds_cut_the_scores_of_every_format_alike(name, threshold, margin, kept):
    fields = dict(label_column="score", label_thresholds=(threshold,), label_margin=margin)
    encoder = LabelEncoder(DataConfig(label_names=("low", "high"), **fields))
    codes = [encoder.encode(record.cells[-1]) for record in read(f"{CASES}/{name}", **fields)]
    assert [codes.count(0), codes.count(1)] == kept


def test_a_number_of_a_narrow_type_is_its_shortest_decimal(tmp_path):
    import pyarrow

    numbers = [0.1, None, 1 / 3, 2.0, 1e4]
    thirds = {"float16": "0.3333", "float32": "0.33333334", "float64": "0.3333333333333333"}
    for name, third in thirds.items():
        column = pyarrow.array([None if number is None else np.dtype(name).type(number) for number in numbers])
        for label in (column, column.dictionary_encode()) if name != "float16" else (column,):
            path = write_parquet(tmp_path / "a.parquet", text=list("abcde"), label=label)
            reports = []
            found = read(path, reports=reports, max_bad_share=0.5)
            assert [record.cells[-1] for record in found] == ["0.1", third, "2.0", "10000.0"], name
            assert reports[0].bad == {"no value in 'label'": 1}
    lists = pyarrow.array([[0.1, 0.2], []], pyarrow.list_(pyarrow.float32()))
    path = write_parquet(tmp_path / "b.parquet", text=["a", "b"], label=lists)
    assert [record.cells[-1] for record in read(path, problem_type="multi_label")] == [("0.1", "0.2"), ()]


def test_a_decimal_loses_the_zeros_that_only_its_column_has(tmp_path):
    import pyarrow

    values = ["0.10", "5.00", "-12.34", "0.00", "100.00", "12345678901234567890123456789.01"]
    column = pyarrow.array([decimal.Decimal(value) for value in values], pyarrow.decimal128(38, 2))
    path = write_parquet(tmp_path / "a.parquet", text=values, label=column)
    expected = ["0.1", "5", "-12.34", "0", "100", "12345678901234567890123456789.01"]
    assert [record.cells[-1] for record in read(path)] == expected


def test_broken_parquet_values_are_counted(tmp_path):
    import pyarrow

    ends = b"".join(end.to_bytes(4, "little") for end in (0, 2, 3, 4))
    buffers = [None, pyarrow.py_buffer(ends), pyarrow.py_buffer(b"ok\xffz")]
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 3, buffers)  # the second string is no UTF-8
    path = write_parquet(tmp_path / "a.parquet", text=broken, label=[1.5, 1.0, None])
    reports = []
    assert pairs(read(path, reports=reports, max_bad_share=0.9)) == [("ok", "1.5")]
    assert reports[0].bad == {"not valid utf-8": 1, "no value in 'label'": 1}
    path = write_parquet(tmp_path / "b.parquet", text=["a", None], label=[float("nan"), 1.0])
    refuses("no value in 'label': 1, no value in 'text': 1", path)


def test_parquet_columns_that_do_not_fit_are_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", text=[1, 2], lable=["x", "y"])
    refuses("has no column 'label'.*Did you mean 'lable'", path)
    refuses("The column 'text' of .* holds int64, not text", path, label_column="lable")


def write_tfrecord(path, examples, compression=""):
    import tensorflow as tf

    def feature(value):
        values = value if isinstance(value, list) else [value]
        if isinstance(values[0], bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        if isinstance(values[0], float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for example in examples:
            if isinstance(example, dict):
                features = {name: feature(value) for name, value in example.items()}
                example = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
            writer.write(example)
    return str(path)


def test_tfrecords_of_examples_are_read(tmp_path):
    examples = [
        {"text": "grüße".encode(), "label": b"x", "more": 1},
        {"text": b"b", "label": 5},
        {"text": b"c", "label": 0.1},
        {"text": b"d", "label": [b"x", b"y"]},
    ]
    expected = [("grüße", "x"), ("b", "5"), ("c", "0.1"), ("d", ("x", "y"))]
    assert pairs(read(write_tfrecord(tmp_path / "a.tfrecord", examples))) == expected
    assert pairs(read(write_tfrecord(tmp_path / "b.tfrecord.gz", examples, "GZIP"))) == expected


def test_broken_tfrecords_are_counted_or_refused(tmp_path):
    examples = [{"text": b"a", "label": 1}, b"no example", {"text": b"\xff", "label": 1}, {"label": 1}]
    examples += [{"text": [b"a", b"b"], "label": 1}]
    path = write_tfrecord(tmp_path / "a.tfrecord", examples)
    reports = []
    assert pairs(read(path, reports=reports, max_bad_share=0.9)) == [("a", "1")]
    assert reports[0].bad == {
        "no tf.train.Example": 1,
        "not valid utf-8": 1,
        "no value in 'text'": 1,
        "'text' is not text": 1,
    }
    refuses("has no column 'txt'.*its columns are 'label', 'text'", path, text_column="txt", max_bad_share=0.9)
    with open(path, "rb") as file:
        whole = file.read()
    refuses("is not a whole TFRecord file", write(tmp_path / "b.tfrecord", whole[:-3]), max_bad_share=0.9)
    changed = whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]
    refuses("is not a whole TFRecord file", write(tmp_path / "c.tfrecord", changed), max_bad_share=0.9)


# ---------------------------------------------------------------- a file as one text


@pytest.mark.parametrize("text", [*HOSTILE_TEXTS, "a\r\nb\n\n", "\r", "\n", "x" * 3_000_000])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_document_is_all_of_its_file(tmp_path, text, zipped):
    content = gzip.compress(text.encode()) if zipped else text.encode()
    path = write(tmp_path / ("a.md.gz" if zipped else "a.md"), content)
    reports = []
    assert read(path, format="document", reports=reports) == [Record((text, ""), 0, 1)]
    assert reports[0].sha256 == hashlib.sha256(content).hexdigest()
    assert (reports[0].records, reports[0].bytes_read) == (1, len(content))


def test_a_document_loses_only_a_byte_order_mark_at_its_start(tmp_path):
    text = "\ufeffa\ufeff\n"
    (record,) = read(write(tmp_path / "a.txt", codecs.BOM_UTF8 + text.encode()), format="document")
    assert record.cells[0] == text  # one of the two
    for encoding in ("utf-16", "utf-32", "gb18030", "iso2022_jp"):
        (record,) = read(write(tmp_path / encoding, "日本\n".encode(encoding)), format="document", encoding=encoding)
        assert record.cells[0] == "日本\n"


def test_a_broken_document_is_counted_with_the_byte_that_breaks_it(tmp_path):
    paths = [write(tmp_path / f"{i}.txt", b"ab\xff" if i == 3 else b"ab") for i in range(5)]
    refuses(
        r"1 of 5 documents are broken, .*3\.txt:1: not valid utf-8 \(invalid start byte at byte 2\)",
        *paths,
        format="document",
    )
    assert len(read(*paths, format="document", max_bad_share=0.2)) == 4
    refuses("is damaged gzip", write(tmp_path / "a.gz", gzip.compress(b"abc" * 99, mtime=0)[:-9]), format="document")
    refuses("starts like UTF-16", write(tmp_path / "b.txt", "abc".encode("utf-16")), format="document")


def test_a_document_over_the_limit_is_broken_and_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_DOCUMENT_BYTES", 2_000_000)
    path = write(tmp_path / "a.gz", gzip.compress(bytes([97]) * 50_000_000))
    reports = []
    tracemalloc.start()
    assert read(path, format="document", max_bad_share=1.0, reports=reports) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(reports[0].bad.values()) == [1]
    assert peak < 10_000_000


def test_a_document_takes_twice_its_size_of_memory(tmp_path):
    path = write(tmp_path / "a.txt", b"abc\n" * 5_000_000)
    tracemalloc.start()
    (record,) = read(path, format="document")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(record.cells[0]) == 20_000_000
    assert peak < 2.5 * 20_000_000
