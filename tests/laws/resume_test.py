"""Law: a run that is killed and started again ends bit-equal to one that never was, dropout on."""

import numpy as np
import pytest

from aigc_tf.training import checkpoints, loop, run_state
from aigc_tf.training.devices.strategy import build_devices
from tests import tiny_task


def train(workdir, *, until=None, **changes):
    """Trains or continues; with `until`, dies as a killed process does: at that step, without a last checkpoint."""
    config = tiny_task.training_config(num_steps=14, **changes)
    task = tiny_task.tiny_task(config, dropout=0.2)
    devices = build_devices("none")
    state = run_state.build_state(task, config, devices)
    newest, _ = checkpoints.load_newest(str(workdir))
    if newest:
        run_state.restore(state, newest)
        run_state.repair_folder(str(workdir), state, newest, task)
    watcher = tiny_task.ListWatcher()
    if until:
        watcher.on_steps = lambda records: _die_at(until, records)
    loop.train(task, config, str(workdir), state=state, devices=devices, watcher=watcher)
    return state, watcher


class Killed(Exception):
    pass


def _die_at(step, records):
    if records[-1]["step"] >= step:
        raise Killed


def bytes_of(state):
    return {
        **{f"weights {path}": value.tobytes() for path, value in checkpoints.to_host(state.model.variables).items()},
        **{f"slots {path}": value.tobytes() for path, value in checkpoints.to_host(state.optimizer.variables).items()},
    }


def without_time(records):
    return [{name: value for name, value in record.items() if not name.startswith("time/")} for record in records]


@pytest.mark.parametrize("died_at", [3, 7, 11])
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, died_at, measure):
    whole, whole_watcher = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "parts", until=died_at)
    resumed, watcher = train(tmp_path / "parts")
    differing = [name for name, value in bytes_of(whole).items() if bytes_of(resumed)[name] != value]
    measure("killed and resumed == never interrupted, variables that differ in any bit", len(differing), 0)
    first = watcher.started[0]
    assert first == {3: 0, 7: 6, 11: 10}[died_at]  # the first evaluation is the best so far, so step 6 is kept too
    assert without_time(watcher.records) == without_time(whole_watcher.records)[first:]
    assert resumed.progress.best_step == whole.progress.best_step


def test_other_intervals_on_resume_change_no_weight(tmp_path):
    whole, _ = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "parts", until=7)
    resumed, _ = train(tmp_path / "parts", steps_per_call=3, checkpoint_every=4)
    assert bytes_of(resumed) == bytes_of(whole)


def test_the_masks_of_dropout_do_change_the_weights(tmp_path):
    """Else the law above would hold for the wrong reason."""
    with_dropout, _ = train(tmp_path / "a")
    config = tiny_task.training_config(num_steps=14)
    task = tiny_task.tiny_task(config, dropout=0.0)
    devices = build_devices("none")
    state = run_state.build_state(task, config, devices)
    loop.train(task, config, str(tmp_path / "b"), state=state, devices=devices, watcher=tiny_task.ListWatcher())
    path, value = next(iter(checkpoints.to_host(state.model.variables).items()))
    assert not np.array_equal(value, checkpoints.to_host(with_dropout.model.variables)[path])
