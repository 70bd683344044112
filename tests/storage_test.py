"""Files are whole or not there, also when the disk is full or the process dies; object stores by TensorFlow's ram://."""

import os
import signal
import subprocess
import sys
import time

import pytest

from aigc_tf import storage
from aigc_tf.errors import InputError, RunError


def test_a_file_is_replaced_as_a_whole(tmp_path):
    storage.write_bytes(tmp_path / "new" / "file", b"first")
    storage.write_bytes(tmp_path / "new" / "file", b"second")
    assert (tmp_path / "new" / "file").read_bytes() == b"second"
    assert os.listdir(tmp_path / "new") == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    storage.write_bytes(tmp_path / "file", b"good")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"Cannot write .*file: No space left on device\."):
        storage.write_bytes(tmp_path / "file", b"never")
    assert (tmp_path / "file").read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["file"]


def test_a_place_that_is_no_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="Cannot write"):
        storage.write_bytes(tmp_path / "file" / "below", b"")


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with storage.staged_folder(tmp_path / "folder") as staging:
        (staging / "part").write_text("x")
        assert not (tmp_path / "folder").exists()
    assert os.listdir(tmp_path) == ["folder"]


def test_an_error_leaves_the_old_folder(tmp_path):
    with storage.staged_folder(tmp_path / "folder") as staging:
        (staging / "old").write_text("x")

    def fail_half_way():
        with storage.staged_folder(tmp_path / "folder", overwrite=True) as staging:
            (staging / "new").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert os.listdir(tmp_path / "folder") == ["old"]
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_is_not_overwritten_unasked(tmp_path):
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(InputError, match="is there already; nothing was overwritten"),
        storage.staged_folder(tmp_path / "folder"),
    ):
        pass
    with storage.staged_folder(tmp_path / "folder", overwrite=True) as staging:
        (staging / "new").write_text("x")
    assert os.listdir(tmp_path / "folder") == ["new"]


KILLED = """
import sys, time
from aigc_tf import storage
with storage.staged_folder(sys.argv[1], overwrite=True) as staging:
    (staging / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_the_old_folder_and_the_next_one_cleans_up(tmp_path):
    with storage.staged_folder(tmp_path / "folder") as staging:
        (staging / "old").write_text("x")
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "folder")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert os.listdir(tmp_path / "folder") == ["old"]
    assert sorted(os.listdir(tmp_path)) == [".folder.partial", "folder"]
    with storage.staged_folder(tmp_path / "folder", overwrite=True) as staging:
        (staging / "new").write_text("x")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder") == ["new"]


def test_json_that_is_none_or_missing_is_one_sentence(tmp_path):
    (tmp_path / "broken").write_text("{")
    with pytest.raises(InputError, match="broken is not valid JSON"):
        storage.read_json(tmp_path / "broken")
    for missing in (str(tmp_path / "missing"), "ram://nowhere/missing"):
        with pytest.raises(InputError, match="There is no file"):
            storage.read_json(missing)
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(tmp_path / "nan", {"loss": float("nan")})


def test_an_object_store_holds_files_folders_and_copies(tmp_path):
    store = f"ram://storage-{time.monotonic_ns()}"
    (tmp_path / "inner").mkdir()
    (tmp_path / "file").write_text("文")
    (tmp_path / "inner" / "file").write_bytes(b"\x00\xff")
    storage.copy_folder(tmp_path, f"{store}/copy")
    assert storage.exists(f"{store}/copy/inner/file")
    assert storage.list_folder(f"{store}/copy") == ["file", "inner"]
    assert storage.read_bytes(f"{store}/copy/inner/file") == b"\x00\xff"
    local = storage.as_local_folder(f"{store}/copy")
    assert (local / "file").read_text() == "文"
    assert (local / "inner" / "file").read_bytes() == b"\x00\xff"
    assert storage.as_local_folder(tmp_path) == tmp_path
    storage.remove_folder(f"{store}/copy")
    assert storage.list_folder(f"{store}/copy") == []


def test_a_folder_killed_between_its_two_renames_comes_back(tmp_path):
    (tmp_path / ".folder.retired").mkdir()
    (tmp_path / ".folder.retired" / "old").write_text("x")

    def fail():
        with storage.staged_folder(tmp_path / "folder", overwrite=True):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert os.listdir(tmp_path / "folder") == ["old"]


def test_an_object_that_is_not_there_is_a_missing_file():
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("ram://nowhere/at/all")
