"""The quality that smaller weights cost, on data that the model was not trained on."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.training.task import Accumulator, Evaluation

_ROWS = 512

Batch = dict[str, tf.Tensor]


def compare_weights(
    models: tuple[keras.Model, keras.Model],
    split: Evaluation,
    *,
    logits_of: Callable[[keras.Model, Batch], tf.Tensor],
    observe: Callable[[tf.Tensor, Batch], dict[str, tf.Tensor]],
    accumulator: Callable[[], Accumulator],
    metric: str,
) -> dict[str, Any]:
    """Evaluates two models on the same rows of a split: up to 512, in batches spread over it.

    Args:
        models: With float32 weights, and with smaller ones.
        split: The split that the rows come from.
        logits_of: Returns the logits, `(B, ..., C)` float32.
        observe: Logits and their batch -> what the accumulator needs of each row.
        accumulator: Makes an accumulator, for each model.
        metric: The metric to return.
    Returns:
        `rows`, `values` of the two models, and the largest `logits_difference`.
    """

    @tf.function(reduce_retracing=True)
    def observe_both(batch: Batch) -> tuple[list[dict[str, tf.Tensor]], tf.Tensor]:
        logits = [logits_of(model, batch) for model in models]
        is_real = tf.reshape(batch["weights"] > 0, tf.concat([tf.shape(batch["weights"]), [1]], 0))
        difference = tf.where(is_real, tf.abs(logits[0] - logits[1]), 0.0)
        return [observe(one, batch) for one in logits], tf.reduce_max(difference)

    size = split.source.global_batch_size
    steps = np.unique(np.linspace(0, split.num_batches - 1, min(split.num_batches, -(-_ROWS // size))).astype(int))
    judges = (accumulator(), accumulator())
    differences, num_rows = [], 0
    for step in steps.tolist():
        batch = split.source.rows(step, shard=0, num_shards=1)
        is_row = np.asarray(batch["weights"]).reshape(size, -1).any(axis=1)
        rows, difference = observe_both({name: tf.constant(value) for name, value in batch.items()})
        differences.append(float(difference))
        num_rows += int(is_row.sum())
        for judge, one in zip(judges, rows, strict=True):
            judge.add({name: value.numpy()[is_row] for name, value in one.items()})
    return {
        "rows": num_rows,
        "values": [judge.result()[metric] for judge in judges],
        "logits_difference": max(differences),
    }
