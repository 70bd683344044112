"""The prepared data set on disk: what the files hold, shards, damage, kills, full disks."""

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from aigc_tf import storage
from aigc_tf.errors import InputError, RunError
from aigc_tf.data.encoders.cells import CODE, CODES, VALUE
from aigc_tf.data.prepared import prepared_writer
from aigc_tf.data.prepared.prepared import open_prepared, verify_prepared
from aigc_tf.data.prepared.prepared_writer import ColumnFormat, FinalLabels, PreparedWriter
from aigc_tf.data.prepared.schema import Column, Schema


def ids(*values):
    return np.array(values, np.int32)


STORAGE = {"single_label": CODE, "multi_label": CODES, "regression": VALUE}


def writer_fields(*, problem_type="single_label", is_pair=False, vocabulary_size=100, **fields):
    """What `PreparedWriter` takes for texts, pairs or documents; without labels for problem_type None."""
    texts = [Column(name, name, "tokenizer") for name in ("text", "text_b")[: 1 + is_pair]]
    labels = [Column("label", "label", "label")] if problem_type else []
    names = tuple(column.name for column in texts)
    formats = {name: ColumnFormat.of_tokens(vocabulary_size) for name in names}
    if problem_type:
        formats["label"] = ColumnFormat.of_cells(STORAGE[problem_type])
    schema = Schema(columns=(*texts, *labels), split_by=names, size_columns=names)
    return dict(task="classify", schema=schema, formats=formats) | fields


def write(folder, rows, *, labels=("neg", "pos"), positions=None, **fields):
    """Writes rows of `(split, parts, label)` and returns the opened data set."""
    fields = writer_fields(**fields)
    names = [column.name for column in fields["schema"].columns]
    with storage.staged_folder(folder) as staging, PreparedWriter(staging, **fields) as writer:
        for split, parts, label in rows:
            writer.add(split, **dict(zip(names, [*parts, label], strict=False)))
        (staging / "encoders" / "text").mkdir(parents=True)
        (staging / "encoders" / "text" / "vocab.txt").write_text("[PAD]\n")
        writer.finish(labels=final_labels(labels, positions))
    return open_prepared(folder)


def final_labels(names, positions=None):
    return {"label": FinalLabels(names, np.arange(len(names)) if positions is None else positions)} if names else {}


def parts(split, example_id):
    names = [name for name in ("text", "text_b") if name in split._columns]
    return [split.column(name).rows(np.array([example_id]))[0] for name in names]


THREE = [("train", [ids(7, 8, 9)], 1), ("test", [ids(5)], 0), ("train", [ids(4)], 0)]


@pytest.fixture
def three(tmp_path):
    return write(tmp_path / "three", THREE)


# ---------------------------------------------------------------- what is written


def test_the_files_are_plain_numpy_as_documented(three):
    def array(path):
        return np.load(three.folder / path, allow_pickle=False)

    assert array("train/text-00000.npy").tolist() == [7, 8, 9, 4]
    assert array("train/text.offsets-00000.npy").tolist() == [0, 3, 4]
    assert array("train/label-00000.npy").tolist() == [1, 0]
    names = ("text", "text.offsets", "label")
    assert [array(f"test/{name}-00000.npy").dtype.name for name in names] == ["uint16", "int64", "int32"]


def test_dataset_json_describes_every_file(three):
    info = json.loads((three.folder / "dataset.json").read_text())
    assert info["splits"]["train"] == {
        "examples": 2,
        "sizes": {"text": 4},
        "empty_examples": 0,
        "counts": {"label": {"neg": 1, "pos": 1}},
        "ranges": {},
        "shards": [{"examples": 2, "sizes": {"text": 4}}],
    }
    assert info["columns"] == {
        "text": {"dtype": "uint16", "shape": [None]},
        "label": {"dtype": "int32", "shape": []},
    }
    assert Schema.from_json(info["schema"]) == three.schema
    assert list(info["splits"]) == ["train", "test"]
    files = {
        path.relative_to(three.folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in three.folder.rglob("*")
        if path.is_file() and path.name != "dataset.json"
    }
    assert info["files"] == files
    assert len(files) == 7
    assert three.sha256 == hashlib.sha256((three.folder / "dataset.json").read_bytes()).hexdigest()


def test_what_was_written_is_read(three):
    train = three.splits["train"]
    assert train.num_examples == 2
    assert train.sizes.tolist() == train.column("text").lengths.tolist() == [3, 1]
    assert train.sizes.dtype == np.int64
    assert [row.tolist() for row in train.column("text").rows(np.array([1, 0, 1]))] == [[4], [7, 8, 9], [4]]
    labels = train.column("label")
    assert labels.rows(np.array([1, 0, 1])).tolist() == [0, 1, 0]
    assert labels.rows(np.array([0])).dtype == labels.dtype == np.int32
    assert labels.all().tolist() == [1, 0]
    assert [train.count_longer(number) for number in (0, 1, 3)] == [2, 1, 0]
    assert (Path(three.facts.encoders_folder) / "text" / "vocab.txt").is_file()
    with pytest.raises(KeyError):
        train.column("text_b")
    assert verify_prepared(three.folder).sha256 == three.sha256


def test_arrays_are_mapped_not_loaded_and_cannot_be_written(three):
    row = three.splits["train"].column("text").rows(np.array([0]))[0]
    assert not row.flags.writeable
    assert not row.flags.owndata


def test_example_ids_outside_the_split_are_refused(three):
    for wrong in ([2], [0, -1]):
        with pytest.raises(IndexError, match=r"in \[0, 2\)"):
            three.splits["train"].column("text").rows(np.array(wrong))
        with pytest.raises(IndexError):
            three.splits["train"].column("label").rows(np.array(wrong))
    assert three.splits["train"].column("text").rows(np.array([], np.int64)) == []


def test_a_pair_is_two_columns(tmp_path):
    rows = [
        ("train", [ids(1, 2), ids(3)], 0),
        ("train", [ids(), ids(4, 5)], 1),
        ("train", [ids(6), ids()], 1),
        ("train", [ids(), ids()], 1),
    ]
    prepared = write(tmp_path / "pairs", rows, is_pair=True)
    train = prepared.splits["train"]
    assert [row.tolist() for row in train.column("text").rows(np.arange(4))] == [[1, 2], [], [6], []]
    assert [row.tolist() for row in train.column("text_b").rows(np.arange(4))] == [[3], [4, 5], [], []]
    assert train.sizes.tolist() == [3, 2, 1, 0]
    assert prepared.info["splits"]["train"]["sizes"] == {"text": 3, "text_b": 3}
    assert prepared.info["splits"]["train"]["empty_examples"] == 1


def test_codes_become_the_places_of_the_sorted_labels(tmp_path):
    rows = [("train", [ids(1)], code) for code in (0, 1, 2, 0)] + [("validation", [ids(1)], 2)]
    prepared = write(tmp_path / "a", rows, labels=("a", "b", "c"), positions=np.array([2, 0, 1]))
    assert prepared.splits["train"].column("label").all().tolist() == [2, 0, 1, 2]
    assert prepared.splits["validation"].column("label").all().tolist() == [1]
    assert prepared.info["splits"]["train"]["counts"]["label"] == {"a": 1, "b": 1, "c": 2}
    assert prepared.info["splits"]["validation"]["counts"]["label"] == {"a": 0, "b": 1, "c": 0}


def test_several_labels_are_rows_of_zeros_and_ones(tmp_path, monkeypatch):
    rows = [("train", [ids(1)], codes) for codes in ((0, 2), (), (1,), (0, 1, 2))]
    kinds = dict(labels=("a", "b", "c"), positions=np.array([2, 0, 1]), problem_type="multi_label")
    prepared = write(tmp_path / "multi", rows, **kinds)
    matrix = [[0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]]
    train = prepared.splits["train"]
    assert train.column("label").all().tolist() == matrix
    assert train.column("label").rows(np.array([3, 0])).tolist() == [matrix[3], matrix[0]]
    assert train.column("label").rows(np.array([0])).dtype == np.uint8
    assert prepared.info["splits"]["train"]["counts"]["label"] == {"a": 2, "b": 2, "c": 2}
    assert sorted(path.name for path in (tmp_path / "multi" / "train").iterdir())[0] == "label-00000.npy"
    monkeypatch.setattr(prepared_writer, "_CHUNK_ROWS", 0)  # a row at a time
    assert write(tmp_path / "again", rows, **kinds).sha256 == prepared.sha256


def test_numbers_are_float32_with_their_range(tmp_path):
    rows = [("train", [ids(1)], value) for value in (0.1, -2.0, 5.0)]
    prepared = write(tmp_path / "numbers", rows, labels=(), problem_type="regression")
    assert prepared.splits["train"].column("label").all().tolist() == np.float32([0.1, -2, 5]).tolist()
    assert prepared.splits["train"].column("label").all().dtype == np.float32
    label_range = prepared.info["splits"]["train"]["ranges"]["label"]
    assert label_range == {"min": -2.0, "mean": pytest.approx(3.1 / 3), "max": 5.0}


def test_a_vocabulary_over_65536_takes_four_bytes_a_token(tmp_path):
    small = write(tmp_path / "small", [("train", [ids(65535)], 0)], vocabulary_size=65536)
    large = write(tmp_path / "large", [("train", [ids(65536)], 0)], vocabulary_size=65537)
    assert parts(small.splits["train"], 0)[0].dtype == np.uint16
    assert parts(large.splits["train"], 0)[0].dtype == np.uint32
    assert parts(large.splits["train"], 0)[0].tolist() == [65536]


def test_texts_without_tokens_are_examples(tmp_path):
    prepared = write(tmp_path / "empty", [("train", [ids()], 0), ("train", [ids()], 1)])
    assert prepared.splits["train"].sizes.tolist() == [0, 0]
    assert parts(prepared.splits["train"], 1)[0].tolist() == []
    assert prepared.info["splits"]["train"]["empty_examples"] == 2
    verify_prepared(prepared.folder)


def test_token_ids_outside_the_vocabulary_and_unknown_splits_are_refused(tmp_path):
    for wrong in (100, -1):
        with pytest.raises(ValueError, match="do not fit a vocabulary of 100"):
            write(tmp_path / "a", [("train", [ids(3, wrong)], 0)])
    with pytest.raises(ValueError, match="'dev' is not a split"):
        write(tmp_path / "a", [("dev", [ids(3)], 0)])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- shards

LENGTHS = [2, 3, 1, 9, 0, 2]


def sharded(folder, **fields):
    rows = [("train", [np.arange(length) + 10 * i], i % 2) for i, length in enumerate(LENGTHS)]
    return write(folder, rows, values_per_shard=5, **fields)


def test_a_shard_ends_before_it_grows_too_long(tmp_path):
    prepared = sharded(tmp_path / "a")
    # 9 is longer than a shard and has one for itself, which even an empty example does not join.
    shards = [(shard["examples"], shard["sizes"]["text"]) for shard in prepared.info["splits"]["train"]["shards"]]
    assert shards == [(2, 5), (1, 1), (1, 9), (2, 2)]
    assert len(list((tmp_path / "a" / "train").glob("text-*.npy"))) == 4


def test_example_ids_run_through_the_shards(tmp_path):
    train = sharded(tmp_path / "a").splits["train"]
    order = np.array([5, 3, 0, 4, 2, 1])
    assert [row.tolist() for row in train.column("text").rows(order)] == [
        (np.arange(LENGTHS[i]) + 10 * i).tolist() for i in order.tolist()
    ]
    assert train.column("label").rows(order).tolist() == [1, 1, 0, 0, 0, 1]
    assert train.sizes.tolist() == LENGTHS
    assert train.column("label").all().tolist() == [0, 1, 0, 1, 0, 1]
    assert train.count_longer(1) == 4


def test_batches_are_written_as_single_examples_are(tmp_path):
    single = sharded(tmp_path / "single")
    with (
        storage.staged_folder(tmp_path / "batch") as staging,
        PreparedWriter(staging, values_per_shard=5, **writer_fields()) as writer,
    ):
        tokens = np.concatenate([np.arange(length) + 10 * i for i, length in enumerate(LENGTHS)])
        writer.add_batch("train", 6, {"text": (tokens, np.array(LENGTHS)), "label": [0, 1] * 3})
        shutil.copytree(single.facts.encoders_folder, staging / "encoders")
        writer.finish(labels=final_labels(("neg", "pos")))
    assert open_prepared(tmp_path / "batch").sha256 == single.sha256


def test_a_shard_of_several_labels_or_pairs_reads_alike(tmp_path):
    rows = [("train", [ids(i), ids(i, i)], (i % 3,)) for i in range(7)]
    kinds = dict(labels=("a", "b", "c"), problem_type="multi_label", is_pair=True)
    whole, split = write(tmp_path / "a", rows, **kinds), write(tmp_path / "b", rows, **kinds, values_per_shard=6)
    assert len(split.info["splits"]["train"]["shards"]) == 4
    for dataset in (whole, split):
        assert dataset.splits["train"].column("label").all().tolist() == np.eye(3, dtype=int)[np.arange(7) % 3].tolist()
        assert [part.tolist() for part in parts(dataset.splits["train"], 6)] == [[6], [6, 6]]


# ---------------------------------------------------------------- damage


def refuses(match, folder, open_it=open_prepared):
    """Expects one sentence, on one line."""
    with pytest.raises(InputError, match=match) as error:
        open_it(folder)
    assert "\n" not in str(error.value)


def test_a_data_set_that_is_not_there_is_made_by_a_command(tmp_path):
    command = r"with `python scripts/prepare.py --config=\.\.\.`"
    refuses(f"There is no prepared data set .*nowhere. Make it {command}", tmp_path / "nowhere")
    refuses(f"is not a prepared data set, since it has no dataset.json. Make one {command}", tmp_path)
    (tmp_path / "file").write_text("")
    refuses("There is no prepared data set", tmp_path / "file")


@pytest.mark.parametrize("name", ["train/text-00000.npy", "train/label-00000.npy", "encoders/text/vocab.txt"])
def test_a_truncated_or_missing_file_is_named(three, name):
    path = three.folder / name
    os.truncate(path, path.stat().st_size - 1)
    refuses(rf"{name} has \d+ bytes, \d+ were written; prepare the data again with .* --overwrite", three.folder)
    path.unlink()
    refuses(f"{name} is missing", three.folder)


@pytest.mark.parametrize("name", ["test/text-00000.npy", "train/label-00000.npy", "encoders/text/vocab.txt"])
def test_verify_names_the_file_in_which_one_bit_changed(three, name):
    content = bytearray((three.folder / name).read_bytes())
    content[-2] ^= 1
    (three.folder / name).write_bytes(content)
    refuses(f"{name} differs from what was written", three.folder, verify_prepared)


def test_verify_names_a_file_that_does_not_belong(three):
    (three.folder / "train" / "text-00001.npy").write_bytes(b"")
    open_prepared(three.folder)
    refuses("text-00001.npy does not belong to the data set", three.folder, verify_prepared)
    (three.folder / "train" / "text-00001.npy").rename(three.folder / ".nfs0001")
    verify_prepared(three.folder)  # what file systems leave behind is hidden and does not matter


def replace(three, name, content):
    """Puts other content in a file and into dataset.json what size it has."""
    (three.folder / name).write_bytes(content)
    edit(three, lambda info: info["files"][name].update(bytes=len(content)))


def edit(three, change):
    info = json.loads((three.folder / "dataset.json").read_text())
    change(info)
    (three.folder / "dataset.json").write_text(json.dumps(info))


def test_a_pickle_is_never_loaded(three, tmp_path):
    np.save(tmp_path / "evil.npy", np.array([print], object), allow_pickle=True)
    replace(three, "train/text-00000.npy", (tmp_path / "evil.npy").read_bytes())
    refuses("text-00000.npy is not an array file", three.folder)


def test_arrays_of_another_type_or_shape_are_refused(three, tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(4, np.float64))
    replace(three, "train/text-00000.npy", (tmp_path / "a.npy").read_bytes())
    refuses(r"text-00000.npy holds float64 \(4,\), not uint16 \(4,\)", three.folder)
    replace(three, "train/text-00000.npy", b"no array at all")
    refuses("text-00000.npy is not an array file", three.folder)
    np.savez(tmp_path / "a.npz", np.zeros(4))
    replace(three, "train/text-00000.npy", (tmp_path / "a.npz").read_bytes())
    refuses("text-00000.npy holds an archive", three.folder)
    np.save(tmp_path / "a.npy", np.array([0, 3, 9]))
    replace(three, "train/text.offsets-00000.npy", (tmp_path / "a.npy").read_bytes())
    np.save(tmp_path / "a.npy", np.zeros(4, np.uint16))
    replace(three, "train/text-00000.npy", (tmp_path / "a.npy").read_bytes())
    refuses(r"text\.offsets-00000.npy does not end where its values do", three.folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda info: info.update(schema_version=1), "schema version 1, and this version of aigc_tf reads 2; prepare the"),
        (lambda info: info.pop("schema_version"), "states no schema_version"),
        (lambda info: info.pop("splits"), "no valid 'splits'"),
        (lambda info: info.update(schema=1), "no valid 'schema'"),
        (lambda info: info["schema"].pop("columns"), "dataset.json is damaged"),
        (lambda info: info["schema"]["columns"][0].update(encoder="ranking"), "dataset.json is damaged"),
        (lambda info: info["columns"].pop("label"), "dataset.json is damaged"),
        (lambda info: info["columns"]["text"].update(dtype="words"), "dataset.json is damaged"),
        (lambda info: info["splits"].pop("train"), "not train, validation and test"),
        (lambda info: info["splits"].update(dev={}), "not train, validation and test"),
        (lambda info: info["splits"]["train"].pop("shards"), "dataset.json is damaged"),
        (
            lambda info: info["splits"]["train"].update(shards=[{"examples": "2", "sizes": {"text": 4}}]),
            "dataset.json is damaged",
        ),
        (lambda info: info["splits"]["train"]["shards"][0].update(examples=1), r"holds int64 \(3,\), not int64 \(2,\)"),
        (lambda info: info["files"].update({"../outside": {}}), "'../outside', which lies elsewhere"),
        (lambda info: info["files"].update({"/etc/passwd": {}}), "'/etc/passwd', which lies elsewhere"),
        (lambda info: info["files"].update({"a\0b": {}}), "dataset.json is damaged"),
        (lambda info: info["files"].update({"train/text-00000.npy": 5}), "dataset.json is damaged"),
    ],
)
def test_a_broken_description_is_one_sentence(three, change, match):
    edit(three, change)
    refuses(match, three.folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_description_that_is_no_json_is_one_sentence(three, content):
    (three.folder / "dataset.json").write_bytes(content)
    refuses("dataset.json is not valid JSON", three.folder)
    (three.folder / "dataset.json").write_text("[1]")
    refuses("states no schema_version", three.folder)


# ---------------------------------------------------------------- kills and full disks

WRITE_FOREVER = """
import sys
import numpy as np
from aigc_tf import storage
from aigc_tf.data.prepared.prepared_writer import PreparedWriter
from tests.data.prepared.prepared_test import final_labels, writer_fields

with storage.staged_folder(sys.argv[1], overwrite=True) as staging, PreparedWriter(staging, **writer_fields()) as writer:
    for _ in range(int(sys.argv[2])):
        writer.add_batch("train", 10, {"text": (np.ones(1000, np.int32), np.full(10, 100)), "label": [0] * 10})
    writer.finish(labels=final_labels(("a",)))
"""


def start_writing(folder, count, **options):
    root = str(Path(__file__).parents[3])
    command = [sys.executable, "-c", textwrap.dedent(WRITE_FOREVER), str(folder), str(count)]
    return subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": root}, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_killed_writer_leaves_the_old_data_set_and_no_other(three):
    child = start_writing(three.folder, 10**9)
    tokens = three.folder.with_name(".three.partial") / "train" / "text-00000.npy"
    deadline = time.monotonic() + 60
    while not (tokens.exists() and tokens.stat().st_size > 10_000):
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert verify_prepared(three.folder).sha256 == three.sha256
    shutil.rmtree(three.folder)
    refuses("There is no prepared data set", three.folder)  # what is left has no final name
    child = start_writing(three.folder, 1)  # and does not stand in the way
    assert child.wait(60) == 0, child.stderr.read()
    child.stderr.close()
    assert verify_prepared(three.folder).splits["train"].num_examples == 10
    assert [path.name for path in three.folder.parent.iterdir()] == ["three"]


def test_a_write_that_the_system_refuses_leaves_the_old_data_set(three):
    def allow_only_small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    child = start_writing(three.folder, 10**9, preexec_fn=allow_only_small_files)
    complaint = child.communicate(timeout=60)[1]
    assert child.returncode == 1
    assert "RunError: Cannot write" in complaint
    assert "File too large. What was there before is untouched." in complaint
    assert "Exception ignored" not in complaint
    assert verify_prepared(three.folder).sha256 == three.sha256
    assert [path.name for path in three.folder.parent.iterdir()] == ["three"]


def test_a_full_disk_while_finishing_leaves_nothing(tmp_path, monkeypatch):
    def no_space(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_json", no_space)
    with pytest.raises(RunError, match=r"No space left on device\. What was there before is untouched"):
        write(tmp_path / "a", THREE)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- one stream of tokens

DOCUMENTS = [[1, 2, 3], [], [4], [5, 6, 7, 8, 9], [], [10, 11]]


def write_documents(folder, **fields):
    rows = [("train", [ids(*document)], 0) for document in DOCUMENTS]
    return write(folder, rows, labels=(), task="generate", problem_type=None, **fields)


@pytest.mark.parametrize("values_per_shard", [1, 2, 4, 100])
def test_the_tokens_of_a_split_are_one_stream_whatever_the_shards(tmp_path, values_per_shard):
    split = write_documents(tmp_path / "d", values_per_shard=values_per_shard).splits["train"].column("text")
    stream = [token for document in DOCUMENTS for token in document]
    assert split.num_values == len(stream)
    for start in range(len(stream) + 1):
        for stop in range(start, len(stream) + 1):
            assert split.range(start, stop).tolist() == stream[start:stop]
    assert split.ends.tolist() == [3, 3, 4, 9, 9, 11]
    assert split.ends.dtype == np.int64
    assert split.range(0, 0).dtype == np.uint16


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 12), (3, 2), (12, 12)])
def test_a_range_outside_the_stream_is_refused(tmp_path, start, stop):
    split = write_documents(tmp_path / "d").splits["train"].column("text")
    with pytest.raises(IndexError, match=r"Values are in \[0, 11\), received"):
        split.range(start, stop)


def test_a_range_of_one_shard_is_a_view_of_the_file(tmp_path):
    split = write_documents(tmp_path / "d").splits["train"].column("text")
    tokens = split.range(2, 9)
    assert not tokens.flags.owndata
    assert not tokens.flags.writeable


def test_documents_have_no_labels_on_disk(tmp_path):
    prepared = write_documents(tmp_path / "d")
    assert sorted(path.name for path in (prepared.folder / "train").iterdir()) == [
        "text-00000.npy",
        "text.offsets-00000.npy",
    ]
    assert prepared.info["splits"]["train"]["counts"] == {}
    verify_prepared(prepared.folder)


# ---------------------------------------------------------------- examples without text


def write_points(folder, points, **fields):
    columns = tuple(Column(name, name, "number") for name in ("x", "y"))
    formats = {name: ColumnFormat.of_cells(VALUE) for name in ("x", "y")}
    schema = Schema(columns=columns, split_by=("x",), unit="point")
    with (
        storage.staged_folder(folder) as staging,
        PreparedWriter(staging, task="line", schema=schema, formats=formats, **fields) as writer,
    ):
        for x, y in points:
            writer.add("train", x=x, y=y)
        writer.finish()
    return open_prepared(folder)


def test_numbers_alone_are_columns_without_offsets_and_every_example_has_the_size_one(tmp_path):
    prepared = write_points(tmp_path / "points", [(0.5, 1), (2, -3), (4, 5)], values_per_shard=2)
    train = prepared.splits["train"]
    assert train.column("x").all().tolist() == [0.5, 2, 4]
    assert train.column("y").rows(np.array([2, 0])).tolist() == [5, 1]
    assert (train.sizes.tolist(), train.column("x").shape) == ([1, 1, 1], ())
    assert sorted(path.name for path in (prepared.folder / "train").iterdir()) == [
        "x-00000.npy",
        "x-00001.npy",
        "y-00000.npy",
        "y-00001.npy",
    ]
    split = prepared.info["splits"]["train"]
    assert split["ranges"]["y"] == {"min": -3.0, "mean": 1.0, "max": 5.0}
    assert (split["sizes"], split["empty_examples"]) == ({}, 0)
    verify_prepared(prepared.folder)
