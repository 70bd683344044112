"""Event files survive kills, are cut to a step, and are read by TensorBoard's own reader."""

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorflow.core.util import event_pb2

from aigc_tf.training.recording.event_files import EventWriter, cut_event_files


def write(logs, steps, tag="train/loss"):
    logs.mkdir(exist_ok=True)
    writer = EventWriter(str(logs), first_step=min(steps))
    for step in steps:
        writer.scalar(step, tag, float(step))
    writer.close()


def events(logs):
    """All (step, tag) in the files of a folder, in the order TensorBoard reads them."""
    found = []
    for path in sorted(logs.glob("*tfevents*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            found += [(event.step, value.tag) for value in event.summary.value]
    return found


def test_tensorboard_reads_scalars_images_and_texts(tmp_path):
    writer = EventWriter(str(tmp_path), first_step=1)
    writer.scalar(1, "train/loss", float("nan"))
    writer.scalar(2, "train/loss", 1e300)
    writer.image(3, "confusions", np.full((2, 4, 3), 7, np.uint8))
    writer.text(4, "config", "    größe: 1")
    writer.close()
    read = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert set(read.Tags()["tensors"]) == {"train/loss", "confusions", "config"}
    values = [float(tf.make_ndarray(event.tensor_proto)) for event in read.Tensors("train/loss")]
    assert np.isnan(values[0])
    assert values[1] == np.inf
    width, height, png = tf.make_ndarray(read.Tensors("confusions")[0].tensor_proto)
    assert (width, height) == (b"4", b"2")
    assert tf.io.decode_png(png).numpy().tolist() == np.full((2, 4, 3), 7).tolist()
    assert tf.make_ndarray(read.Tensors("config")[0].tensor_proto).item().decode() == "    größe: 1"


def test_an_event_file_looks_like_one_of_tf_summary(tmp_path):
    """Same fields but for the time, so that whatever reads TensorFlow's files reads ours."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write(ours, [5])
    with tf.summary.create_file_writer(str(theirs)).as_default():
        tf.summary.scalar("train/loss", 5.0, step=5)
    pair = []
    for folder in (ours, theirs):
        records = tf.data.TFRecordDataset([str(path) for path in folder.iterdir()]).as_numpy_iterator()
        version, *_, event = map(event_pb2.Event.FromString, records)
        assert version.file_version == "brain.Event:2"
        pair.append((event.step, event.summary.value[0].metadata, tf.make_ndarray(event.summary.value[0].tensor)))
    assert pair[0] == pair[1]


def test_two_writers_of_one_second_have_files_of_their_own(tmp_path):
    write(tmp_path, [1])
    write(tmp_path, [2])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_cut_keeps_each_tag_and_step_once_in_one_file(tmp_path):
    write(tmp_path, [1, 2, 3, 4])
    write(tmp_path, [3, 4, 5])
    write(tmp_path, [3], tag="validation/loss")
    assert cut_event_files(str(tmp_path), last_step=4) == {"train/loss": 4, "validation/loss": 3}
    once = [(1, "train/loss"), (2, "train/loss"), (3, "train/loss"), (3, "validation/loss"), (4, "train/loss")]
    assert sorted(events(tmp_path)) == once
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cut_keeps_the_time_of_each_event(tmp_path):
    write(tmp_path, [1, 2])
    before = [event.wall_time for event in EventAccumulator(str(tmp_path)).Reload().Tensors("train/loss")]
    cut_event_files(str(tmp_path), last_step=2)
    assert [event.wall_time for event in EventAccumulator(str(tmp_path)).Reload().Tensors("train/loss")] == before


@pytest.mark.parametrize("missing", [1, 5, 20])
def test_a_half_written_last_record_is_dropped(tmp_path, missing):
    write(tmp_path, [1, 2, 3])
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-missing])
    assert cut_event_files(str(tmp_path), last_step=3) == {"train/loss": 2}
    assert events(tmp_path) == [(1, "train/loss"), (2, "train/loss")]


def test_a_tail_of_zeros_as_after_a_power_loss_is_dropped(tmp_path):
    write(tmp_path, [1, 2])
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes() + bytes(500))
    assert cut_event_files(str(tmp_path), last_step=9) == {"train/loss": 2}


def test_a_file_that_is_no_event_file_counts_as_empty(tmp_path):
    write(tmp_path, [1])
    (tmp_path / "events.out.tfevents.1.empty").write_bytes(b"")
    (tmp_path / "events.out.tfevents.2.text").write_bytes(b"this is no record file at all, but long enough")
    with tf.io.TFRecordWriter(str(tmp_path / "events.out.tfevents.3.records")) as writer:
        writer.write(b"\xff\xff\xff a record, but no event")
    assert cut_event_files(str(tmp_path), last_step=1) == {"train/loss": 1}


def test_a_cut_to_zero_leaves_no_value(tmp_path):
    write(tmp_path, [1, 2])
    assert cut_event_files(str(tmp_path), last_step=0) == {}
    assert events(tmp_path) == []


def test_a_folder_without_event_files_is_left_alone(tmp_path):
    (tmp_path / "plugins").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert cut_event_files(str(tmp_path), last_step=5) == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "plugins"]


def test_a_kill_before_the_old_file_went_doubles_nothing(tmp_path):
    write(tmp_path, [1, 2, 3])
    old = next(tmp_path.iterdir())
    content = old.read_bytes()
    cut_event_files(str(tmp_path), last_step=2)
    old.write_bytes(content)  # as if the kill had come before the removal
    (tmp_path / ".events.partial").write_bytes(b"half")
    cut_event_files(str(tmp_path), last_step=2)
    assert events(tmp_path) == [(1, "train/loss"), (2, "train/loss")]
    assert len(list(tmp_path.iterdir())) == 1


def test_only_the_superseded_tag_loses_its_last_step(tmp_path):
    write(tmp_path, [1, 2], tag="config")
    write(tmp_path, [1, 2])
    assert cut_event_files(str(tmp_path), last_step=2, superseded="config") == {"config": 1, "train/loss": 2}


def test_a_tensorboard_that_is_watching_forgets_the_dead_steps(tmp_path):
    write(tmp_path, range(1, 11))
    watching = plugin_event_accumulator.EventAccumulator(str(tmp_path), {"tensors": 0}).Reload()
    assert watching.Tensors("train/loss")[-1].step == 10
    cut_event_files(str(tmp_path), last_step=4)
    write(tmp_path, [5, 6])
    afresh = plugin_event_accumulator.EventAccumulator(str(tmp_path), {"tensors": 0})
    for reader in (watching, afresh):
        assert [event.step for event in reader.Reload().Tensors("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_histogram_is_ranges_with_counts_and_leaves_out_what_is_not_finite(tmp_path):
    writer = EventWriter(str(tmp_path), first_step=1)
    writer.histogram(3, "weights/kernel", np.array([[0.0, 1.0, np.nan], [30.0, 30.0, np.inf]], np.float32))
    writer.histogram(3, "weights/none", np.zeros([0], np.float32))
    writer.histogram(3, "weights/same", np.full([4], 2.0))
    writer.close()
    read = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0}).Reload()
    assert set(read.PluginTagToContent("histograms")) == {"weights/kernel", "weights/none", "weights/same"}
    (event,) = read.Tensors("weights/kernel")
    rows = tf.make_ndarray(event.tensor_proto)
    assert (event.step, rows.shape, rows.dtype) == (3, (30, 3), np.float64)
    np.testing.assert_allclose(rows[[0, 1, 29]], [[0, 1, 1], [1, 2, 1], [29, 30, 2]], atol=1e-12)
    assert rows[:, 2].sum() == 4
    (same,) = read.Tensors("weights/same")
    assert tf.make_ndarray(same.tensor_proto)[:, 2].sum() == 4
