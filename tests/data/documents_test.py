"""Preparing for a generator: a file or a row is a document, labels are not read, the tokens are one stream."""

import codecs
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from rich.console import Console

from aigc_tf.config import DataConfig, ExperimentConfig, TokenizerConfig
from aigc_tf.data.prepared.prepared import verify_prepared
from aigc_tf.data.preparing import token_batches
from aigc_tf.data.preparing.preparation import check_matches
from aigc_tf.data.sources.splits import hash_bucket
from aigc_tf.errors import InputError
from aigc_tf.tasks import check_config
from tests.prepare_data import prepare, tokens_of

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "night", "a", "##s", "!", "日", "本", "b"]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def make_config(tmp_path, *sources, task="generate", name="task", **fields):
    vocabulary = write(tmp_path / "vocab.txt", "\n".join(TOKENS))
    config = ExperimentConfig(
        name=name,
        task=task,
        data=DataConfig(**dict(sources=sources, prepared_dir=str(tmp_path / "prepared"), max_length=8) | fields),
        tokenizer=TokenizerConfig(source=vocabulary),
    )
    check_config(config)
    return config


def run(config, **arguments):
    output = io.StringIO()
    prepared = prepare(config, console=Console(file=output, width=200), **arguments)
    verify_prepared(prepared.folder)
    return prepared, output.getvalue()


def write_files(tmp_path, **files):
    for name, content in files.items():
        write(tmp_path / "data" / f"{name}.txt", content)
    return str(tmp_path / "data")


def split_files(tmp_path, source, **fields):
    """A config for documents: those of `test_files` are for testing, or all are for training."""
    return make_config(
        tmp_path, source, format="document", split="files" if "test_files" in fields else "given", **fields
    )


def documents(prepared, split):
    return tokens_of(prepared.splits[split])


# ---------------------------------------------------------------- a file is a document


def test_files_become_the_documents_one_computes_by_hand(tmp_path):
    source = write_files(tmp_path, a="good day\n\nbad\r\n", b="日本", c="a bad night!", d="good")
    prepared, printed = run(split_files(tmp_path, source, test_files=("b.*",), validation_files=("c.*",)))
    info = prepared.info
    assert documents(prepared, "train") == [[5, 7, 6], [5]]
    assert documents(prepared, "validation") == [[9, 6, 8, 11]]
    assert documents(prepared, "test") == [[12, 13]]
    assert (info["task"], list(info["columns"]), prepared.schema.learnt) == ("generate", ["text"], ("text",))
    assert [prepared.utf8_bytes(split) for split in ("train", "validation", "test")] == [15 + 4, 12, 6]
    assert info["splits"]["train"] == {
        "examples": 2,
        "sizes": {"text": 4},
        "empty_examples": 0,
        "counts": {},
        "ranges": {},
        "shards": [{"examples": 2, "sizes": {"text": 4}}],
        "utf8_bytes": {"text": 19},
    }
    assert not [path for path in info["files"] if "label" in path]
    assert [stage["name"] for stage in info["stages"]] == ["read", "documents", "split", "tokenise"]
    lines = [line.split() for line in printed.splitlines()]
    assert ["split", "documents", "tokens", "bytes", "bytes", "a", "token"] in lines
    assert ["train", "2", "4", "19", "4.75"] in lines


def test_documents_have_no_labels_to_give(tmp_path):
    prepared = run(split_files(tmp_path, write_files(tmp_path, a="good")))[0]
    with pytest.raises(KeyError, match="label"):
        prepared.splits["train"].column("label")


def test_the_bytes_of_a_document_stay_as_they_are_but_for_a_byte_order_mark(tmp_path):
    text = " \r\n good\tday \x0b\u2028\n\n\n\x00 日本 \ufeff\r"
    source = write_files(tmp_path, a=codecs.BOM_UTF8 + text.encode(), b=gzip.compress(text.encode()))
    prepared = run(split_files(tmp_path, source))[0]
    assert prepared.utf8_bytes("train") == 2 * len(text.encode())
    other = write(tmp_path / "other" / "a.txt", text.encode("utf-16"))
    config = split_files(tmp_path, other, encoding="utf-16", name="other")
    assert run(config)[0].utf8_bytes("train") == len(text.encode())


def test_an_empty_file_is_counted_and_left_out(tmp_path):
    source = write_files(tmp_path, a="good", b="", c=codecs.BOM_UTF8, d="  \n", e=gzip.compress(b""))
    prepared, printed = run(split_files(tmp_path, source, test_files=("a.txt",), max_bad_share=0.0))
    assert prepared.info["stages"][1] == {
        "name": "documents",
        "kept": 2,
        "dropped": {"empty document": 3},
        "notes": [],
    }
    assert documents(prepared, "train") == [[]]  # white space, for which this vocabulary has no token
    assert "empty document: 3" in printed


def test_nothing_but_empty_files_is_refused(tmp_path):
    source = write_files(tmp_path, a="", b="")
    with pytest.raises(InputError, match=r"of 2 rows, 0 are broken, 2 are left out \(empty document\), and 0 are in"):
        prepare(split_files(tmp_path, source))


def test_broken_files_are_a_share_of_all_files(tmp_path):
    files = {f"f{i}": f"good {i}" for i in range(8)}
    source = write_files(tmp_path, **files, latin=b"good\n\xe9t\xe9", cut="日本".encode()[:-1])
    sentence = (
        r"2 of 10 documents are broken, more than data\.max_bad_share 0\.01 allows \(the first is "
        r".*cut\.txt:1: not valid utf-8 \(unexpected end of data at byte 3\)\)"
    )
    with pytest.raises(InputError, match=sentence) as error:
        prepare(split_files(tmp_path, source))
    assert "\n" not in str(error.value)
    prepared, printed = run(split_files(tmp_path, source, max_bad_share=0.2, test_files=("f0.*",)))
    assert prepared.info["stages"][0]["dropped"] == {"not valid utf-8": 2}
    assert prepared.splits["train"].num_examples == 7
    assert "latin.txt:1: not valid utf-8" in printed


def test_many_broken_files_stop_it_early(tmp_path):
    for i in range(1000):
        write(tmp_path / "data" / f"{i:04}.txt", b"\xff" if i < 20 else b"good")
    write(tmp_path / "data" / "last.txt", "good")
    (tmp_path / "data" / "last.txt").chmod(0o644)
    with pytest.raises(InputError, match="20 of 1000 documents are broken"):
        prepare(split_files(tmp_path, str(tmp_path / "data")))


@pytest.mark.parametrize("text", ["good", "日本", "a"])
def test_one_file_is_enough_to_train_on(tmp_path, text):
    assert hash_bucket("日本".encode()) == 1  # which is where validation data come from
    source = write_files(tmp_path, a=text, held_out="bad night")
    prepared, printed = run(split_files(tmp_path, source, test_files=("held_out.txt",)))
    assert list(prepared.splits) == ["train", "test"]
    assert prepared.splits["train"].num_examples == 1
    assert "Warning: There is no validation split." in printed
    alone = run(split_files(tmp_path, str(tmp_path / "data" / "a.txt"), name="alone"))[0]
    assert list(alone.splits) == ["train"]


def test_several_files_give_validation_by_the_hash(tmp_path):
    source = write_files(tmp_path, a="日本", b="good", c="day")
    prepared, printed = run(split_files(tmp_path, source))
    assert documents(prepared, "validation") == [[12, 13]]
    assert "a tenth of the training split, by hash, is it" in printed


def test_one_document_is_trained_on_wherever_the_hash_would_put_it(tmp_path):
    source = write_files(tmp_path, a="a")
    assert hash_bucket(b"a") == 0  # testing
    data = prepare(make_config(tmp_path, source, format="document"))
    assert {name: split.num_examples for name, split in data.splits.items()} == {"train": 1}


def test_one_row_that_the_hash_gives_to_testing_is_one_sentence(tmp_path):
    source = write_files(tmp_path, a="a")
    with pytest.raises(InputError, match=r"of 1 rows, 0 are broken, and 1 are in the splits test; add data or change"):
        prepare(make_config(tmp_path, source, format="text"))


def test_a_file_that_is_no_text_is_named(tmp_path):
    source = write_files(tmp_path, a="good", b=b"\x89PNG\r\n\x1a\n\x00\x00")
    with pytest.raises(InputError, match=r"b\.txt is an image; text is needed"):
        prepare(split_files(tmp_path, source))


def test_documents_cannot_be_classified(tmp_path):
    config = make_config(tmp_path, write_files(tmp_path, a="good"), task="classify", format="document")
    with pytest.raises(InputError, match=r"plain text, which has no column for data\.label_column"):
        prepare(config)


# ---------------------------------------------------------------- a row is a document


def test_a_line_or_a_row_is_a_document_and_labels_are_not_looked_at(tmp_path):
    lines = write(tmp_path / "a.txt", "good\n\nbad day\n")
    rows = [{"story": "day\nnight"}, {"story": "", "label": {"x": 1}}, {"story": "good", "label": None}]
    json_lines = write(tmp_path / "b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    prepared = run(make_config(tmp_path, json_lines, text_column="story", split="given", max_bad_share=0.0))[0]
    assert documents(prepared, "train") == [[7, 8], [5]]
    assert prepared.info["stages"][1]["dropped"] == {"empty document": 1}
    prepared = run(make_config(tmp_path, lines, split="given", name="lines"))[0]
    assert documents(prepared, "train") == [[5], [6, 7]]
    table = write(tmp_path / "c.tsv", "text\nbad\n")
    assert documents(run(make_config(tmp_path, table, split="given", name="table"))[0], "train") == [[6]]


# ---------------------------------------------------------------- long documents


def test_a_long_document_gives_the_same_tokens_however_it_is_cut(tmp_path, monkeypatch):
    long = "".join(f"{'good bad day night! 日本'[: i % 17]}\n" for i in range(500))
    source = write_files(tmp_path, a=long, b="good", c=long[:700], d="day")
    whole = run(split_files(tmp_path, source, test_files=("d.txt",)))[0]
    monkeypatch.setattr(token_batches, "_PIECE_BYTES", 64)
    monkeypatch.setattr(token_batches, "_BATCH_RECORDS", 1)
    cut = run(split_files(tmp_path, source, test_files=("d.txt",)), overwrite=True)[0]
    assert cut.sha256 == whole.sha256
    assert cut.utf8_bytes("train") == len((long + long[:700] + "good").encode())


@pytest.mark.slow
def test_a_large_document_takes_few_times_its_size_of_memory(tmp_path):
    num_bytes = 100_000_000
    with open(tmp_path / "large.txt", "wb") as file:
        for _ in range(100):
            file.write(b"good day\n" * (num_bytes // 900))
    config = split_files(tmp_path, str(tmp_path / "large.txt"))
    code = f"""
        import io, resource
        from rich.console import Console
        from aigc_tf.config.fields import from_json
        from tests.prepare_data import prepare
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        experiment = from_json({json.dumps(config_json(config))})
        before = peak()
        prepared = prepare(experiment, console=Console(file=io.StringIO()))
        print(prepared.splits["train"].column("text").num_values, peak() - before)
    """
    output = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, stdout=subprocess.PIPE).stdout
    tokens, grown = map(int, output.split())
    assert tokens == num_bytes // 900 * 200
    assert grown < 6 * num_bytes


def config_json(config):
    from aigc_tf.config.fields import to_json

    return to_json(config)


# ---------------------------------------------------------------- duplicates


def test_documents_that_are_there_twice_are_learnt_once(tmp_path):
    source = write_files(tmp_path, a="good", b="bad", c="good", d="day", e="good\n", f="day")
    fields = dict(validation_files=("d.txt",), test_files=("c.txt", "f.txt"), drop_duplicates=True)
    prepared, printed = run(split_files(tmp_path, source, **fields))
    assert documents(prepared, "train") == [[6], [5]]  # "bad", and "good" with a newline
    assert documents(prepared, "test") == [[5], [7]]  # what is tested on is not trained on
    assert "validation" not in prepared.splits
    assert prepared.info["stages"][2:] == [
        {"name": "split", "kept": 6, "dropped": {}, "notes": []},
        {"name": "duplicates", "kept": 4, "dropped": {"duplicate": 2}, "notes": []},
        {"name": "tokenise", "kept": 4, "dropped": {}, "notes": []},
    ]
    assert "duplicate: 2" in printed


def test_without_the_field_duplicates_stay(tmp_path):
    prepared = run(split_files(tmp_path, write_files(tmp_path, a="good", b="good"), test_files=("a.txt",)))[0]
    assert documents(prepared, "train") == documents(prepared, "test") == [[5]]
    assert [stage["name"] for stage in prepared.info["stages"]] == ["read", "documents", "split", "tokenise"]


def test_another_cleaning_is_another_data_set(tmp_path):
    source = write_files(tmp_path, a="good", b="good")
    prepared = run(split_files(tmp_path, source))[0]
    with pytest.raises(InputError, match=r"data\.drop_duplicates was False and is True"):
        check_matches(prepared, split_files(tmp_path, source, drop_duplicates=True))


def test_data_prepared_before_a_field_existed_count_as_made_with_its_default(tmp_path):
    config = split_files(tmp_path, write_files(tmp_path, a="good", b="day"))
    prepared = run(config)[0]
    del prepared.info["config"]["data.drop_duplicates"]
    check_matches(prepared, config)
    config.data.drop_duplicates = True
    with pytest.raises(InputError, match=r"data\.drop_duplicates was False and is True"):
        check_matches(prepared, config)


# ---------------------------------------------------------------- killed in the middle


def test_a_killed_preparation_leaves_nothing_half_done(tmp_path):
    source = write_files(tmp_path, **{f"f{i}": "good bad day\n" * 20_000 for i in range(40)})
    config = split_files(tmp_path, source, drop_duplicates=True)
    code = "import sys; from aigc_tf.config.fields import from_json; from tests.prepare_data import prepare;"
    code += "prepare(from_json(sys.argv[1]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, config_json(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "prepared").glob(".*/train/text*")) and time.monotonic() < deadline:
            if process.poll() is not None:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    left = [name for name in os.listdir(tmp_path / "prepared") if not name.startswith(".")]
    assert left in ([], ["task"])
    if left:
        verify_prepared(tmp_path / "prepared" / "task")
    prepared = run(config, overwrite=bool(left))[0]
    assert prepared.info["stages"][3]["dropped"] == {"duplicate": 39}
    assert [name for name in os.listdir(tmp_path / "prepared") if not name.endswith(".lock")] == ["task"]
