"""The thread that writes checkpoints: order, errors, what a full disk leaves."""

import threading

import numpy as np
import pytest

from aigc_tf import storage
from aigc_tf.errors import RunError
from aigc_tf.training import checkpoints, loop, run_state
from aigc_tf.training.devices.strategy import build_devices
from tests import tiny_task

pytestmark = pytest.mark.slow


def checkpoint(step, **changes):
    parts = {"weights": {"w": np.full(3, step, np.float32)}, "slots": {"s": np.zeros(2, np.float32)}, "progress": {}}
    return checkpoints.Checkpoint(step=step, **(parts | changes))


def test_checkpoints_are_written_while_the_caller_goes_on(tmp_path, monkeypatch):
    may_write = threading.Event()
    write = storage.write_bytes

    def slow(path, content):
        assert may_write.wait(30)
        write(path, content)

    monkeypatch.setattr(storage, "write_bytes", slow)
    with checkpoints.Writer(tmp_path) as writer:
        assert writer.submit(checkpoint(5), best=checkpoints.Best("accuracy", 0.5)) == []
        assert writer.poll() == [], "it cannot be done yet, and here we are"
        may_write.set()
        assert [written.step for written in writer.submit(checkpoint(6))] == [5]
        assert [written.step for written in writer.wait()] == [6]
    assert checkpoints.load_named(tmp_path, "last").step == 6
    assert checkpoints.load_named(tmp_path, "best").step == 5


def test_what_fails_in_the_thread_is_raised_by_the_next_call(tmp_path, monkeypatch):
    def broken(path):
        return "0" * 64

    with checkpoints.Writer(tmp_path) as writer:
        writer.submit(checkpoint(5))
        writer.wait()
        monkeypatch.setattr(storage, "sha256_read_back", broken)
        writer.submit(checkpoint(6))
        with pytest.raises(RunError, match="back gives something else than was written"):
            writer.wait()
    assert checkpoints.load_named(tmp_path, "last").step == 5
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-00000005"]


def test_frozen_variables_are_written_once_and_found_by_every_checkpoint(tmp_path):
    frozen = {"f": np.arange(4, dtype=np.float32)}
    with checkpoints.Writer(tmp_path) as writer:
        writer.submit(checkpoint(1, frozen=frozen))
        writer.wait()
        assert writer.frozen_file.startswith("frozen-")
        writer.submit(checkpoint(2, frozen_file=writer.frozen_file))
        writer.submit(checkpoint(3, frozen=frozen))  # of a process that goes on
    assert len(list((tmp_path / "checkpoints").glob("frozen-*"))) == 1
    newest, _ = checkpoints.load_newest(tmp_path)
    assert newest.weights["f"].tolist() == [0, 1, 2, 3]
    file = next((tmp_path / "checkpoints").glob("frozen-*"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"frozen-.* differs from what was written"):
        checkpoints.load(str(tmp_path / "checkpoints" / "step-00000003"))


@pytest.mark.parametrize("strategy", ["none", "mirrored"])
def test_later_steps_change_nothing_of_what_was_taken(tmp_path, strategy):
    config = tiny_task.training_config(num_steps=4, evaluate_every=0, ema_decay=0.9, strategy=strategy)
    task, devices = tiny_task.tiny_task(config), build_devices(strategy)
    state = run_state.build_state(task, config, devices)
    taken = state.checkpoint()
    parts = (taken.weights, taken.slots, taken.averages)
    copies = [{path: array.copy() for path, array in part.items()} for part in parts]
    loop.train(task, config, str(tmp_path), state=state, devices=devices, watcher=tiny_task.ListWatcher())
    now = state.checkpoint()
    for part, copied, later in zip(parts, copies, (now.weights, now.slots, now.averages), strict=True):
        assert all(np.array_equal(part[path], copied[path]) for path in part)
        assert any(not np.array_equal(part[path], later[path]) for path in part)


def test_a_disk_that_fills_up_ends_the_run_with_the_last_good_checkpoint_intact(tmp_path, monkeypatch):
    config = tiny_task.training_config(num_steps=30, evaluate_every=0, checkpoint_every=5)
    task, devices = tiny_task.tiny_task(config), build_devices("none")
    state = run_state.build_state(task, config, devices)
    watcher = tiny_task.ListWatcher()
    write = storage.write_bytes

    def full(path, content):
        if "step-00000015" in str(path):
            raise RunError(f"Cannot write {path}: No space left on device.")
        write(path, content)

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(RunError, match="No space left on device"):
        loop.train(task, config, str(tmp_path), state=state, devices=devices, watcher=watcher)
    assert 15 <= watcher.records[-1]["step"] <= 20, "it stops at the next checkpoint at the latest"
    newest, complaints = checkpoints.load_newest(tmp_path)
    assert (newest.step, complaints) == (10, [])
    assert not [path for path in (tmp_path / "checkpoints").iterdir() if "00000015" in path.name]


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_broken(tmp_path, monkeypatch):
    for step in (5, 10):
        checkpoints.save(tmp_path, checkpoint(step))
    read = storage.read_bytes

    def failing(path):
        if "step-00000010/weights" in str(path):
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(storage, "read_bytes", failing)
    with pytest.raises(RunError, match="cannot be read now"):
        checkpoints.load_newest(tmp_path)
    monkeypatch.undo()
    assert checkpoints.load_newest(tmp_path)[0].step == 10


def test_a_run_that_may_go_back_keeps_a_checkpoint_from_before_its_reach(tmp_path):
    with checkpoints.Writer(tmp_path, reach=4) as writer:
        for step in (1, 6, 8, 9, 10):
            writer.submit(checkpoint(step))
    there = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step-*"))
    assert there == [6, 8, 9, 10], "from the newest of 10 - 4 or before on"
