"""Two models on the same rows: those that only fill up are left out, and rows are from all over the split."""

import numpy as np
import tensorflow as tf

from aigc_tf.tasks.weights_cost import compare_weights
from aigc_tf.training.task import Evaluation


class Total:
    def __init__(self):
        self.total = 0.0

    def add(self, rows):
        self.total += float(np.sum(rows["value"]))

    def result(self):
        return {"total": self.total}


class Source:
    """Batch i has 256 rows of the number i; of the last one only two count."""

    global_batch_size = 256

    def __init__(self):
        self.asked = []

    def rows(self, step, *, shard, num_shards):
        assert (shard, num_shards) == (0, 1)
        self.asked.append(step)
        count = 2 if step == 9 else 256
        return {"x": np.full(256, step, np.float32), "weights": (np.arange(256) < count).astype(np.float32)}


def test_the_metric_and_the_largest_difference_are_those_of_the_rows_that_count():
    source = Source()
    split = Evaluation(source=source, num_batches=10, observe=None, accumulator=None)

    def logits_of(model, batch):
        wild = 1000.0 * (1.0 - batch["weights"])  # what is computed of rows that only fill up means nothing
        return (batch["x"] * model + wild * model)[:, tf.newaxis]

    compared = compare_weights(
        (1.0, 1.5),
        split,
        logits_of=logits_of,
        observe=lambda logits, batch: {"value": logits[:, 0]},
        accumulator=Total,
        metric="total",
    )
    assert source.asked == [0, 9]  # two batches are 512 rows
    assert compared == {"rows": 258, "values": [18.0, 27.0], "logits_difference": 4.5}


def test_a_row_of_many_positions_counts_where_one_of_them_does():
    class Windows:
        global_batch_size = 2

        def rows(self, step, **_):
            return {"x": np.ones((2, 3), np.float32), "weights": np.array([[1, 0, 0], [0, 0, 0]], np.float32)}

    compared = compare_weights(
        (1.0, 3.0),
        Evaluation(source=Windows(), num_batches=1, observe=None, accumulator=None),
        logits_of=lambda model, batch: tf.stack([batch["x"] * model, batch["x"]], axis=-1),
        observe=lambda logits, batch: {"value": tf.reduce_sum(logits[..., 0] * batch["weights"], axis=1)},
        accumulator=Total,
        metric="total",
    )
    assert compared == {"rows": 1, "values": [1.0, 3.0], "logits_difference": 2.0}
