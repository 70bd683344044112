"""Law: padding and the length of the bucket do not matter."""

import numpy as np
import tensorflow as tf

from aigc_tf.data.batching.batches import text_rows
from aigc_tf.data.batching.special_tokens import add_special_tokens
from tests import tiny_task

BOUND = 1e-5


def build_model(**options):
    """A network whose logits depend on its text, as those of new weights, which are small, hardly do."""
    model = tiny_task.build_model(**options)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(variable * 8)
    return model


def test_logits_are_the_same_at_any_padded_length_and_beside_any_neighbour(measure):
    model = build_model(dropout=0.3)
    rows = text_rows([tiny_task.tiny_split().column("text")], np.arange(8))

    def logits(rows, length):
        return model(
            add_special_tokens(rows, tiny_task.SPECIAL_TOKENS, length=length, is_pair=False), training=False
        ).numpy()

    together = logits(rows, 16)
    assert np.ptp(together, axis=0).min() > 1000 * BOUND, "other texts have other logits"
    for i, row in enumerate(rows):
        tight = min(len(row[0]) + 2, 16)
        difference = np.abs(logits([row], tight) - together[i : i + 1]).max()
        measure("padding and neighbours do not matter, logits", difference, BOUND)


def test_gradients_are_the_same_at_any_padded_length(measure):
    model = build_model()
    split = tiny_task.tiny_split()
    short = [i for i in range(split.num_examples) if split.sizes[i] <= 8][:4]

    def gradients(length):
        batch = add_special_tokens(
            text_rows([split.column("text")], short), tiny_task.SPECIAL_TOKENS, length=length, is_pair=False
        )
        batch |= {"labels": split.column("label").rows(short), "weights": np.ones(len(short), np.float32)}
        with tf.GradientTape() as tape:
            losses = tiny_task.tiny_losses(model, batch)
            total = tf.reduce_sum(losses.values * losses.weights)
        found = tape.gradient(total, model.trainable_variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(gradient).numpy() for gradient in found]

    for tight, loose in zip(gradients(10), gradients(16), strict=True):
        # The table of positions has a row for every position; those beyond the text must get no gradient at all.
        measure("padding does not matter, gradients", np.abs(tight - loose).max(), BOUND)
