"""metrics.jsonl and the event files tell the same story, also after kills, and tell it once."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aigc_tf import storage
from aigc_tf.errors import InputError, RunError
from aigc_tf.training.recording.telemetry import Telemetry, read_metrics


def records(first, last):
    """Records of steps in [first, last], as the loop hands them over."""
    return [
        {"step": step, "train/loss": np.float32(1 / step), "train/finite": True, "time/seconds": 0.1 + step}
        for step in range(first, last + 1)
    ]


def curves(workdir):
    """{(tag, step): value} of all event files; fails where one is there twice."""
    read = EventAccumulator(os.path.join(workdir, "logs"), size_guidance={"tensors": 0}).Reload()
    found = {}
    for tag in read.Tags()["tensors"]:
        for event in read.Tensors(tag):
            assert (tag, event.step) not in found
            found[tag, event.step] = tf.make_ndarray(event.tensor_proto)
    return found


def test_every_step_is_a_line_and_every_tenth_a_point(tmp_path):
    with Telemetry(tmp_path, resume_step=0, log_every=10) as telemetry:
        telemetry.record(records(1, 4))
        telemetry.record(records(5, 25))
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 26))
    assert rows[2] == {"step": 3, "train/loss": float(np.float32(1 / 3)), "train/finite": True, "time/seconds": 3.1}
    assert {step for _, step in curves(tmp_path)} == {1, 10, 20}


def test_event_files_hold_the_numbers_of_metrics_jsonl(tmp_path):
    with Telemetry(tmp_path, resume_step=0, log_every=5) as telemetry:
        telemetry.record(records(1, 20))
        telemetry.scalars(20, {"validation/accuracy": 0.875, "validation/loss": 0.3, "validation/num_examples": 40})
    lines = {(tag, row["step"]): value for row in read_metrics(tmp_path) for tag, value in row.items() if tag != "step"}
    drawn = curves(tmp_path)
    assert drawn == {key: np.float32(lines[key]) for key in drawn}
    assert len(drawn) == 3 * 5 + 3


def test_lines_are_json_with_the_step_first_and_the_tags_as_given(tmp_path):
    with Telemetry(tmp_path, resume_step=0) as telemetry:
        telemetry.scalars(7, {"b": np.int64(2), "a": np.float32(0.5), "ü": tf.constant(1.5), "d": np.bool_(True)})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 7, "b": 2, "a": 0.5, "ü": 1.5, "d": true}\n'


def test_bfloat16_is_a_number(tmp_path):
    with Telemetry(tmp_path, resume_step=0) as telemetry:
        telemetry.scalars(1, {"a": tf.constant(1.5, tf.bfloat16), "b": tf.constant(2.5, tf.bfloat16).numpy()})
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1.5, "b": 2.5}]


def test_what_is_not_finite_stays_valid_json_and_is_not_hidden(tmp_path):
    with Telemetry(tmp_path, resume_step=0) as telemetry:
        telemetry.record([{"step": 1, "loss": np.float32("nan"), "up": float("inf"), "down": -np.inf, "ok": 1}])
    line = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert row == {
        "step": 1,
        "loss": None,
        "up": None,
        "down": None,
        "ok": 1,
        "nonfinite": {"loss": "NaN", "up": "Infinity", "down": "-Infinity"},
    }
    (read,) = read_metrics(tmp_path)
    assert np.isnan(read.pop("loss"))
    assert read == {"step": 1, "up": np.inf, "down": -np.inf, "ok": 1}
    drawn = curves(tmp_path)
    assert np.isnan(drawn["loss", 1])
    assert drawn["up", 1] == np.inf


def test_an_undefined_metric_is_null_and_no_point(tmp_path):
    with Telemetry(tmp_path, resume_step=0) as telemetry:
        telemetry.scalars(3, {"validation/matthews": None, "validation/loss": 0.5})
    assert read_metrics(tmp_path) == [{"step": 3, "validation/matthews": None, "validation/loss": 0.5}]
    assert curves(tmp_path).keys() == {("validation/loss", 3)}


def test_images_and_the_config_reach_tensorboard(tmp_path):
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    with Telemetry(tmp_path, resume_step=0) as telemetry:
        telemetry.config('{\n  "name": "``` fence"\n}\n')
        telemetry.image(4, "validation/confusion_matrix", image)
        telemetry.text(4, "samples", "**bold**")
    drawn = curves(tmp_path)
    assert drawn["config", 0].item().decode() == '    {\n      "name": "``` fence"\n    }'  # indented: a code block
    np.testing.assert_array_equal(tf.io.decode_png(drawn["validation/confusion_matrix", 4][2]), image)
    assert drawn["samples", 4].item() == b"**bold**"


def test_a_run_killed_anywhere_and_resumed_equals_one_that_was_not(tmp_path):
    def life(workdir, resume_step, last, *, kill=False):
        telemetry = Telemetry(workdir, resume_step=resume_step, log_every=3)
        telemetry.config("{}")
        for step in range(resume_step + 1, last + 1):
            telemetry.record(records(step, step))
            if step % 5 == 0:
                telemetry.scalars(step, {"validation/accuracy": step / 100})
        if not kill:
            telemetry.close()

    life(tmp_path / "whole", 0, 30)
    life(tmp_path / "killed", 0, 14, kill=True)
    with open(tmp_path / "killed" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 15, "train/lo')
    life(tmp_path / "killed", 10, 23, kill=True)
    last = max((tmp_path / "killed" / "logs").iterdir())
    last.write_bytes(last.read_bytes()[:-3])
    life(tmp_path / "killed", 20, 30)
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    whole, resumed = curves(tmp_path / "whole"), curves(tmp_path / "killed")
    assert {key: value for key, value in resumed.items() if key[0] != "config"} == {
        key: value for key, value in whole.items() if key[0] != "config"
    }
    assert [step for tag, step in resumed if tag == "config"] == [0, 10, 20]


@pytest.mark.slow
def test_a_process_killed_without_warning_loses_nothing_it_recorded(tmp_path):
    script = f"""
        import os, signal
        from aigc_tf.training.recording.telemetry import Telemetry
        telemetry = Telemetry({str(tmp_path)!r}, resume_step=0)
        telemetry.record([{{"step": step, "train/loss": 0.5}} for step in range(1, 8)])
        telemetry.scalars(7, {{"validation/loss": 0.25}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, cwd=os.getcwd())
    assert process.returncode == -signal.SIGKILL
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 7]
    assert len(curves(tmp_path)) == 8
    Telemetry(tmp_path, resume_step=5).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    assert curves(tmp_path).keys() == {("train/loss", step) for step in range(1, 6)}


def test_an_evaluation_repeated_at_the_resumed_step_leaves_no_second_trace(tmp_path):
    image = np.zeros((2, 2, 3), np.uint8)
    for resume_step in (0, 5):
        with Telemetry(tmp_path, resume_step=resume_step) as telemetry:
            telemetry.record(records(resume_step + 1, 5))
            telemetry.scalars(5, {"validation/loss": 0.5, "time/seconds_of_evaluation": 1.0 + resume_step})
            telemetry.image(5, "confusions", image)
            telemetry.scalars(5, {"validation/loss": 0.5, "test/loss": 0.75})
    assert read_metrics(tmp_path)[5:] == [
        {"step": 5, "validation/loss": 0.5, "time/seconds_of_evaluation": 1.0},
        {"step": 5, "test/loss": 0.75},
    ]
    assert len([tag for tag, step in curves(tmp_path) if step == 5]) == 3 + 3 + 1


def test_a_new_start_forgets_what_lies_in_the_folder(tmp_path):
    with Telemetry(tmp_path, resume_step=0) as telemetry:
        telemetry.record(records(1, 3))
    with Telemetry(tmp_path, resume_step=0) as telemetry:
        telemetry.record(records(1, 2))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert {step for _, step in curves(tmp_path)} == {1, 2}


def test_a_whole_last_line_without_its_line_break_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "a": 1}\n{"step": 2, "a": 2}')
    with Telemetry(tmp_path, resume_step=2) as telemetry:
        telemetry.scalars(3, {"a": 3})
    assert [row["a"] for row in read_metrics(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("tail", [b'{"step": 2', b'{"step": 2, "a": 1.', b"\x00\x00\x00\x00", b'{"step": 2, "\xc3'])
def test_a_half_written_last_line_is_dropped(tmp_path, tail):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "a": 1}\n' + tail)
    assert read_metrics(tmp_path) == [{"step": 1, "a": 1}]
    Telemetry(tmp_path, resume_step=5).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1, "a": 1}\n'


@pytest.mark.parametrize("line", [b'{"step": 2', b"[]", b'{"a": 1}', b"", b"\xff"])
def test_a_broken_line_before_the_end_is_named_and_nothing_is_changed(tmp_path, line):
    content = b'{"step": 1, "a": 1}\n' + line + b'\n{"step": 3, "a": 1}\n'
    (tmp_path / "metrics.jsonl").write_bytes(content)
    for read in (lambda: read_metrics(tmp_path), lambda: Telemetry(tmp_path, resume_step=1)):
        with pytest.raises(InputError, match=r"metrics\.jsonl is broken: line 2"):
            read()
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_metrics_of_a_folder_that_is_no_run_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"There is no .*metrics\.jsonl"):
        read_metrics(tmp_path)


def test_a_gap_before_the_resumed_step_is_said(tmp_path, caplog):
    Telemetry(tmp_path, resume_step=50).close()
    assert "ends before step 50" in caplog.text


def test_a_running_log_can_be_followed(tmp_path):
    telemetry = Telemetry(tmp_path, resume_step=0)
    telemetry.record(records(1, 2))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert len(curves(tmp_path)) == 6
    telemetry.close()


def test_steps_that_go_backwards_are_a_mistake_of_the_caller(tmp_path):
    with Telemetry(tmp_path, resume_step=0) as telemetry:
        telemetry.scalars(5, {"a": 1})
        with pytest.raises(ValueError, match="steps must ascend"):
            telemetry.scalars(4, {"a": 1})
        telemetry.scalars(4, {"b": 1})


@pytest.mark.parametrize("values", [{"a": "1"}, {"a": [1, 2]}, {"a": {}}, {"step": 1}, {"nonfinite": 1}])
def test_what_is_no_number_is_refused_before_anything_is_written(tmp_path, values):
    with Telemetry(tmp_path, resume_step=0) as telemetry, pytest.raises(ValueError):
        telemetry.scalars(1, {"ok": 1, **values})
    assert read_metrics(tmp_path) == []


def test_an_array_that_is_no_image_is_refused(tmp_path):
    with Telemetry(tmp_path, resume_step=0) as telemetry, pytest.raises(ValueError, match="uint8"):
        telemetry.image(1, "confusions", np.zeros((2, 2, 3)))


def test_workers_other_than_the_chief_touch_nothing(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 9, "a": 1}\n{"st')
    with Telemetry(tmp_path, resume_step=0, enabled=False) as telemetry:
        telemetry.config("{}")
        telemetry.record(records(1, 3))
        telemetry.scalars(3, {"a": 1})
        telemetry.image(3, "b", np.zeros((2, 2, 3), np.uint8))
        telemetry.text(3, "c", "d")
        telemetry.flush()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 9, "a": 1}\n{"st'
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_object_store_gets_everything_at_each_flush_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "is_remote", lambda path: True)  # TensorFlow's file layer on a local folder
    telemetry = Telemetry(tmp_path, resume_step=0)
    telemetry.record(records(1, 3))
    assert not (tmp_path / "metrics.jsonl").exists()
    telemetry.flush()
    telemetry.record(records(4, 5))  # lost: killed before the next flush
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    with Telemetry(tmp_path, resume_step=2) as telemetry:
        telemetry.record(records(3, 4))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert {step for _, step in curves(tmp_path)} == {1, 2, 3, 4}


def test_an_object_store_is_written_by_url():
    with Telemetry("ram://telemetry/run", resume_step=0) as telemetry:
        telemetry.record(records(1, 3))
    assert [row["step"] for row in read_metrics("ram://telemetry/run")] == [1, 2, 3]
    assert len(storage.list_folder("ram://telemetry/run/logs")) == 1


def test_a_full_disk_is_one_sentence(tmp_path):
    telemetry = Telemetry(tmp_path, resume_step=0)
    telemetry._log._file = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(RunError, match=r"Cannot write .*metrics\.jsonl: No space left on device\."):
        telemetry.record(records(1, 3))


def test_a_full_disk_does_not_hide_the_error_that_ended_the_run(tmp_path):
    def diverge():
        with Telemetry(tmp_path, resume_step=0) as telemetry:
            telemetry._log._file = open("/dev/full", "wb")  # noqa: SIM115
            telemetry._log._file.write(b"x")
            raise RunError("the loss is NaN")

    with pytest.raises(RunError, match="the loss is NaN"):
        diverge()


def test_trouble_of_tensorflows_file_layer_is_one_sentence_too(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(RunError, match=r"Cannot write .*logs"):
        Telemetry(tmp_path, resume_step=0)


def test_closing_twice_does_nothing(tmp_path):
    telemetry = Telemetry(tmp_path, resume_step=0)
    telemetry.close()
    telemetry.close()
    telemetry.record(records(1, 1))
    assert read_metrics(tmp_path) == []
