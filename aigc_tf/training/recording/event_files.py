"""TensorBoard's event files: written record by record, and cut back to the step a run resumes from.

It does not use `tf.summary`, whose writer flushes after every `with` block. On an object store that uploads the whole
file during training, and later records lose their own time.
"""

import itertools
import os
import socket
import time
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError
from tensorflow.core.framework import summary_pb2
from tensorflow.core.util import event_pb2

from aigc_tf import storage

_VERSION = "brain.Event:2"
_HISTOGRAM_RANGES = 30
_FILE_NUMBERS = itertools.count()


class EventWriter:
    """Writes one new event file. A disk error is a `tf.errors.OpError` of the call that meets it."""

    def __init__(self, logs: str, *, first_step: int) -> None:
        """Opens a new file in the folder `logs` for values of `first_step` and later."""
        self._records = tf.io.TFRecordWriter(storage.join(logs, _new_name()))
        for event in _header(first_step=first_step, wall_time=time.time()):
            self._records.write(event.SerializeToString())

    def scalar(self, step: int, tag: str, value: float) -> None:
        """Adds a number, NaN and infinities too, as float32."""
        with np.errstate(over="ignore"):  # numbers beyond float32 become infinite
            self._add(step, tag, np.float32(value), plugin="scalars")

    def image(self, step: int, tag: str, image: np.ndarray) -> None:
        """Adds a `(H, W, 3)` uint8 image."""
        height, width, _ = image.shape
        png = tf.io.encode_png(image).numpy()
        content = np.array([str(width).encode(), str(height).encode(), png], dtype=object)
        self._add(step, tag, content, plugin="images")

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Adds a text in Markdown."""
        self._add(step, tag, np.array(markdown.encode(), dtype=object), plugin="text")

    def histogram(self, step: int, tag: str, values: np.ndarray) -> None:
        """Adds a histogram of numbers of any shape over 30 equal ranges; numbers that are not finite are left out."""
        # Not TensorBoard's own histogram_pb, which makes an array 30 times as large as the numbers.
        finite = np.asarray(values, np.float64).ravel()
        finite = finite[np.isfinite(finite)]
        counts, edges = np.histogram(finite, _HISTOGRAM_RANGES) if finite.size else ((), (0.0,))
        rows = np.stack([edges[:-1], edges[1:], counts], axis=1)  # (ranges, 3): from, to, how many
        self._add(step, tag, rows.astype(np.float64), plugin="histograms")

    def summary(self, step: int, summary: Any) -> None:
        """Adds the output of a TensorBoard plugin: a Summary proto of its own package."""
        own = summary_pb2.Summary.FromString(summary.SerializeToString())
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=own)
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _add(self, step: int, tag: str, content: Any, *, plugin: str) -> None:
        metadata = summary_pb2.SummaryMetadata(plugin_data={"plugin_name": plugin})
        value = summary_pb2.Summary.Value(tag=tag, tensor=tf.make_tensor_proto(content), metadata=metadata)
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=[value]))
        self._records.write(event.SerializeToString())


def _header(*, first_step: int, wall_time: float) -> list[Any]:
    """The first events of a file. A watching TensorBoard drops what it has of `first_step` and later."""
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return [
        event_pb2.Event(wall_time=wall_time, file_version=_VERSION),
        event_pb2.Event(wall_time=wall_time, step=first_step, session_log=start),
    ]


def _new_name() -> str:
    """TensorBoard reads the files of a folder in the order of their names, so they begin with the time."""
    return f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_FILE_NUMBERS):03d}"


def cut_event_files(
    logs: str, *, last_step: int, superseded: str = "", dropped: Collection[str] = ()
) -> dict[str, int]:
    """Replaces the event files of a folder by one that holds each (tag, step) up to `last_step` once.

    The new file is complete before an old one is removed. A kill in between leaves both, and the next cut drops
    duplicates. Half-written records of a killed process are left out.

    Args:
        logs: Folder of the event files, local or an object store; other files and folders in it stay.
        last_step: Last step that is kept.
        superseded: Tag whose value at `last_step` itself is dropped too, because it will be written anew.
        dropped: Tags that are dropped altogether, since TensorBoard uses only their first value.

    Returns:
        The last step of each tag that was kept.

    Raises:
        OSError, tf.errors.OpError: If the folder cannot be written.
    """
    paths = [storage.join(logs, name) for name in storage.list_folder(logs) if "tfevents" in name]
    paths = [path for path in paths if not tf.io.gfile.isdir(path)]
    if not paths:
        return {}
    steps: dict[str, set[int]] = {}
    events = (event for path in paths for event in _read_events(path) if event.step <= last_step)
    kept = (
        event for event in events if _keep_new_values(event, steps, superseded=(superseded, last_step), dropped=dropped)
    )
    first = next(kept, None)
    began = time.time() if first is None else first.wall_time
    partial = storage.join(logs, ".events.partial")  # a name that TensorBoard does not read
    with tf.io.TFRecordWriter(partial) as writer:
        for event in itertools.chain(_header(first_step=0, wall_time=began), [] if first is None else [first], kept):
            writer.write(event.SerializeToString())
    if not storage.is_remote(logs):
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
    tf.io.gfile.rename(partial, storage.join(logs, _new_name()))
    for path in paths:
        tf.io.gfile.remove(path)
    return {tag: max(of_tag) for tag, of_tag in steps.items() if of_tag}


def _read_events(path: str) -> Iterator[Any]:
    """Yields the summary events of a file up to its end or its first damaged record."""
    number = 0
    try:
        for record in tf.data.TFRecordDataset(path, buffer_size=2**20).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            number += 1
            if event.WhichOneof("what") == "summary":
                yield event
    except (tf.errors.DataLossError, DecodeError):
        logging.warning("%s breaks off after %d records, as after a kill; metrics.jsonl has all values.", path, number)


def _keep_new_values(
    event: Any, steps: dict[str, set[int]], *, superseded: tuple[str, int], dropped: Collection[str]
) -> bool:
    """Removes from an event the values whose (tag, step) occurred before; returns whether any are left."""
    new = []
    for value in event.summary.value:
        if value.tag in dropped:
            continue
        of_tag = steps.setdefault(value.tag, set())
        if event.step not in of_tag and (value.tag, event.step) != superseded:
            of_tag.add(event.step)
            new.append(value)
    if len(new) < len(event.summary.value):
        copies = [type(value).FromString(value.SerializeToString()) for value in new]
        del event.summary.value[:]
        event.summary.value.extend(copies)
    return bool(new)
