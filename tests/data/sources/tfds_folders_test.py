"""TFDS data sets on disk: found by their folders within a moment, read with the names of their labels."""

import hashlib
import json
import shutil
import time

import pytest

from aigc_tf.config import DataConfig
from aigc_tf.data.sources import tfds_folders
from aigc_tf.data.sources.sources import Record, find_sources, read_records
from aigc_tf.errors import InputError, RunError
from tests.source_columns import columns_of

LABELS = ["neg", "pos"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Stores `reviews` with the splits train, test and unsupervised, as TFDS itself writes them."""
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "text": tfds.features.Text(),
            "second": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=LABELS),
            "tags": tfds.features.Sequence(tfds.features.ClassLabel(names=["a", "b", "c"])),
            "score": tf.float32,
            "half": tf.float16,
            "sure": tf.bool,
        }
    )

    def examples(count, offset):
        for i in range(count):
            yield {
                "text": f"{offset + i} grüße\n汉字",
                "second": f"s{i}",
                "label": -1 if i == 4 else i % 2,
                "tags": [0, 1, 2][: i % 4],
                "score": i / 10,
                "half": i / 10,
                "sure": i == 1,
            }

    signature = {name: tf.TensorSpec([None] if name == "tags" else [], spec.dtype) for name, spec in features.items()}

    def split(count, offset=0):
        return tf.data.Dataset.from_generator(lambda: examples(count, offset), output_signature=signature)

    folder = tmp_path_factory.mktemp("tfds")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="reviews",
        version="1.10.0",
        features=features,
        split_datasets={"train": split(4), "test": split(5, 100), "unsupervised": split(2)},
        data_dir=str(folder),
        disable_shuffling=True,
    )
    return folder


def read(folder, source="tfds:reviews", reports=None, **fields):
    data = DataConfig(sources=(source,), tfds_data_dir=str(folder), **fields)
    return list(read_records(find_sources(data), data, [] if reports is None else reports, columns=columns_of(data)))


def refuses(match, folder, source="tfds:reviews", kind=InputError, **fields):
    with pytest.raises(kind, match=match) as error:
        read(folder, source, **fields)
    assert "\n" not in str(error.value)


def lay_out(folder, *names, splits=("train",)):
    """Makes folders such as TFDS makes, with nothing in them but the list of splits."""
    for name in names:
        (folder / name).mkdir(parents=True)
        info = {"splits": [{"name": split, "shardLengths": ["1"]} for split in splits]}
        (folder / name / "dataset_info.json").write_text(json.dumps(info))


def found(folder, source, **fields):
    files = find_sources(DataConfig(sources=(source,), tfds_data_dir=str(folder), **fields))
    return [file.uri for file in files]


def test_given_splits_are_those_of_the_data_set(stored, capsys):
    data = DataConfig(sources=("tfds:reviews",), split="given", tfds_data_dir=str(stored))
    files = find_sources(data)
    assert [(file.uri, file.split) for file in files] == [
        ("tfds:reviews:1.10.0#train", "train"),
        ("tfds:reviews:1.10.0#test", "test"),
    ]
    assert "tfds:reviews: left out the splits unsupervised." in capsys.readouterr().err
    data.max_bad_share = 0.2
    reports = []
    records = list(read_records(files, data, reports, columns=columns_of(data)))
    assert records[:2] == [Record(("0 grüße\n汉字", "neg"), 0, 1), Record(("1 grüße\n汉字", "pos"), 0, 2)]
    assert [record.cells[0].split()[0] for record in records] == ["0", "1", "2", "3", "100", "101", "102", "103"]
    assert [report.records for report in reports] == [4, 4]
    assert reports[1].bad == {"no value in 'label'": 1}
    shard = "reviews-train.tfrecord-00000-of-00001"
    inner = hashlib.sha256((stored / "reviews/1.10.0" / shard).read_bytes()).hexdigest()
    assert reports[0].sha256 == hashlib.sha256(f"{inner}  {shard}\n".encode()).hexdigest()


def test_other_splits_go_by_the_config(stored):
    def splits(**fields):
        data = DataConfig(tfds_data_dir=str(stored), **fields)
        return [(file.uri.rpartition("#")[2], file.split) for file in find_sources(data)]

    assert splits(sources=("tfds:reviews",)) == [("train", ""), ("test", "")]
    named = splits(sources=("tfds:reviews",), split="files", test_files=("te*",))
    assert named == [("train", "train"), ("test", "test")]
    with pytest.raises(InputError, match=r"twice; its examples would count twice"):
        splits(sources=("tfds:reviews",), split="given", test_sources=("tfds:reviews",))
    with pytest.raises(InputError, match=r"has no split 'validation', which data.validation_sources needs"):
        splits(sources=("tfds:reviews",), split="given", validation_sources=("tfds:reviews",))


def test_numbers_lists_and_pairs_are_read(stored):
    fields = dict(split="files", test_files=("test",), text_b_column="second")
    scores = read(stored, label_column="score", problem_type="regression", **fields)
    assert [record.cells[-1] for record in scores[:4]] == ["0.0", "0.1", "0.2", "0.3"]
    halves = read(stored, label_column="half", **fields)
    assert [record.cells[-1] for record in halves[:4]] == ["0.0", "0.1", "0.2", "0.3"]
    assert [record.cells[-1] for record in read(stored, label_column="sure", **fields)[:2]] == ["False", "True"]
    assert [record.cells[1] for record in scores[:4]] == ["s0", "s1", "s2", "s3"]
    tags = read(stored, label_column="tags", problem_type="multi_label", **fields)
    assert [record.cells[-1] for record in tags[:4]] == [(), ("a",), ("a", "b"), ("a", "b", "c")]


def test_a_column_that_does_not_fit_is_refused(stored):
    refuses(r"has no column 'txt', which data.text_column names.*Did you mean 'text'", stored, text_column="txt")
    refuses("'score' is not text: 4", stored, text_column="score")


def test_a_damaged_data_set_is_one_sentence(stored, tmp_path):
    def damaged(name):
        shutil.copytree(stored, tmp_path / name)
        return tmp_path / name, tmp_path / name / "reviews/1.10.0"

    folder, files = damaged("a")
    (files / "features.json").write_text("{")
    refuses("cannot be opened .*build the data set anew", folder)
    folder, files = damaged("b")
    shard = files / "reviews-train.tfrecord-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:-7])
    refuses("cannot be read .*build the data set anew", folder)
    shard.unlink()
    refuses("is incomplete: .*train.tfrecord-00000-of-00001 cannot be read", folder)
    folder, files = damaged("c")
    (files / "dataset_info.json").write_text('{"name": "reviews"}')
    refuses("does not list its splits", folder)
    (files / "dataset_info.json").write_text("{")
    refuses("is not valid JSON", folder)


def test_the_newest_version_and_the_only_config_are_taken(tmp_path):
    lay_out(tmp_path, "plain/1.2.0", "plain/1.10.0", "plain/2.0.0.incompleteX7", "one/small/0.1.0")
    (tmp_path / "plain/3.0.0").mkdir()  # interrupted: it has no dataset_info.json
    assert found(tmp_path, "tfds:plain") == ["tfds:plain:1.10.0#train"]
    assert found(tmp_path, "tfds:plain:1.2.0") == ["tfds:plain:1.2.0#train"]
    assert found(tmp_path, "tfds:one") == ["tfds:one/small:0.1.0#train"]
    assert found(tmp_path, "tfds:one/small:0.1.0") == ["tfds:one/small:0.1.0#train"]
    refuses(r"'plain:3.0.0' is on disk in the versions 1.2.0, 1.10.0 only", tmp_path, "tfds:plain:3.0.0")


def test_of_several_configs_one_must_be_named_unless_the_data_set_has_a_default(tmp_path):
    lay_out(tmp_path, "glue/cola/2.0.0", "glue/sst2/2.0.0")
    refuses("'glue' has the configs cola, sst2; name one: tfds:NAME/CONFIG", tmp_path, "tfds:glue")
    (tmp_path / "glue/.config").mkdir()
    (tmp_path / "glue/.config/metadata.json").write_text('{"default_config_name": "cola"}')
    assert found(tmp_path, "tfds:glue") == ["tfds:glue/cola:2.0.0#train"]
    assert found(tmp_path, "tfds:glue/sst2") == ["tfds:glue/sst2:2.0.0#train"]
    refuses(r"'glue/sst' is not on disk in .*Did you mean 'sst2'", tmp_path, "tfds:glue/sst")


def test_what_is_not_on_disk_is_said_at_once_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_folders, "_import_tfds", lambda: pytest.fail("imported"))
    lay_out(tmp_path, "reviews/1.0.0")
    start = time.monotonic()
    refuses(
        r"'revews' is not on disk in .*Did you mean 'reviews'\? Set data.tfds_download=True, "
        r"or run `tfds build revews --data_dir=.*`, or set data.tfds_data_dir",
        tmp_path,
        "tfds:revews",
    )
    refuses("is not on disk", tmp_path / "nowhere", "tfds:imdb_reviews/plain_text:1.0.0")
    assert time.monotonic() - start < 1


def test_the_folder_comes_from_the_config_the_environment_or_the_home(tmp_path, monkeypatch):
    for place in ("config", "variable", "home/tensorflow_datasets"):
        lay_out(tmp_path / place, "reviews/1.0.0")
        (tmp_path / place / "reviews/1.0.0").rename(tmp_path / place / f"reviews/{len(place)}.0.0")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "variable"))
    assert found(tmp_path / "config", "tfds:reviews") == ["tfds:reviews:6.0.0#train"]
    assert found("", "tfds:reviews") == ["tfds:reviews:8.0.0#train"]
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert found("", "tfds:reviews") == ["tfds:reviews:24.0.0#train"]
    refuses("are read from a POSIX path, not from gs://bucket/data", "gs://bucket/data")


def test_a_data_set_without_a_usable_split_is_refused(tmp_path):
    lay_out(tmp_path, "mnli/1.0.0", splits=("test_matched", "all"))
    refuses("none of the splits train, validation, test; it has .'test_matched', 'all'.", tmp_path, "tfds:mnli")
    lay_out(tmp_path, "heldout/1.0.0", splits=("test",))
    refuses("No source is left for the split 'train'", tmp_path, "tfds:heldout", split="given")


@pytest.mark.parametrize("source", ["tfds:", "tfds:a b", "tfds:../x", "tfds:a/b/c", "tfds:a:1", "tfds:a:1.*.*"])
def test_a_name_that_cannot_be_one_is_refused(tmp_path, source):
    refuses("is not of the form tfds:NAME", tmp_path, source)


def test_a_data_set_is_fetched_when_the_config_allows_it(tmp_path):
    import tensorflow_datasets as tfds

    class TinyReviews(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=LABELS)}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((i, {"text": f"t{i}", "label": i % 2}) for i in range(3))

    refuses("is not on disk", tmp_path, "tfds:tiny_reviews")
    labels = {r.cells[0]: r.cells[-1] for r in read(tmp_path, "tfds:tiny_reviews", tfds_download=True)}
    assert labels == {"t0": "neg", "t1": "pos", "t2": "neg"}
    builder = TinyReviews(data_dir=str(tmp_path / "array"), file_format="array_record")
    builder.download_and_prepare()
    assert {r.cells[0]: r.cells[-1] for r in read(tmp_path / "array", "tfds:tiny_reviews")} == labels
    near = "TFDS knows no data set 'imdb_revews'. Did you mean 'imdb_reviews'"
    refuses(near, tmp_path, "tfds:imdb_revews", tfds_download=True)


def test_a_download_that_fails_is_a_failed_run(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def offline(*_, **__):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(tfds, "builder", offline)
    match = "could not fetch 'imdb_reviews' into .*: no route to host"
    refuses(match, tmp_path, "tfds:imdb_reviews", kind=RunError, tfds_download=True)
