"""Per-example and per-token losses in float32; the step weights, sums and divides them.

Shape letters: B rows, C classes or labels, T positions, V vocabulary.
"""

import tensorflow as tf


def classification_losses(
    labels: tf.Tensor, logits: tf.Tensor, *, problem_type: str, label_smoothing: float = 0.0
) -> tf.Tensor:
    """Returns the loss of every row.

    Args:
        labels: `(B,)` int32 for single_label, `(B, C)` float32 for multi_label, `(B,)` float32 for regression.
        logits: `(B, C)` any float; `(B, 1)` for regression.
        problem_type: One of config.PROBLEM_TYPES.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
    Returns:
        `(B,)` float32: cross-entropy; binary cross-entropy, mean over labels; squared error.
    Source: Szegedy et al. 2016, section 7 (label smoothing).
    """
    logits = tf.cast(logits, tf.float32)
    if problem_type == "regression":
        return tf.square(logits[:, 0] - labels)
    if problem_type == "multi_label":
        targets = labels * (1.0 - label_smoothing) + 0.5 * label_smoothing
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits), axis=1)
    if not label_smoothing:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    classes = tf.shape(logits)[1]
    targets = tf.one_hot(labels, classes, 1.0 - label_smoothing) + label_smoothing / tf.cast(classes, tf.float32)
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def class_weights(labels: tf.Tensor, table: tuple[float, ...]) -> tf.Tensor:
    """Returns `(B,)` float32: the weight of each row's class; ones where the table is empty."""
    if not table:
        return tf.ones(tf.shape(labels)[:1], tf.float32)
    return tf.gather(tf.constant(table, tf.float32), labels)


def token_losses(labels: tf.Tensor, logits: tf.Tensor, *, label_smoothing: float = 0.0) -> tf.Tensor:
    """Returns the cross-entropy of every token in nats.

    Args:
        labels: `(B, T)` int32, the tokens to come.
        logits: `(B, T, V)` any float.
        label_smoothing: Share of the target spread evenly over the vocabulary, in [0, 1).
    Returns:
        `(B, T)` float32.
    """
    logits = tf.cast(logits, tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if not label_smoothing:
        return losses
    # Mean of -log p over the vocabulary, without a one-hot matrix: logsumexp minus the mean logit.
    spread = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
    return (1.0 - label_smoothing) * losses + label_smoothing * spread
