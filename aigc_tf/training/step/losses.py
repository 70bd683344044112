"""Per-example and per-token losses in float32; the step weights, sums and divides them.

Shape letters: B rows, C classes or labels, T positions, V vocabulary.
"""

import tensorflow as tf


def classification_losses(
    labels: tf.Tensor, logits: tf.Tensor, *, problem_type: str, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tf.Tensor:
    """Returns the loss of every row.

    Args:
        labels: `(B,)` int32 for single_label, `(B, C)` float32 for multi_label, `(B,)` float32 for regression.
        logits: `(B, C)` any float; `(B, 1)` for regression.
        problem_type: One of config.PROBLEM_TYPES.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
        z_loss: For single_label only; see `z_losses`.
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
    if label_smoothing:
        classes = tf.shape(logits)[1]
        targets = tf.one_hot(labels, classes, 1.0 - label_smoothing) + label_smoothing / tf.cast(classes, tf.float32)
        losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    else:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return losses + z_losses(logits, z_loss) if z_loss else losses


def z_losses(logits: tf.Tensor, weight: float) -> tf.Tensor:
    """Returns `weight * log(Z) ** 2` of each softmax; it pulls the denominator Z to 1 and keeps logits small.

    Args:
        logits: `(..., C)` float32.
        weight: At least 0.
    Returns:
        `(...)` float32.
    Source: Chowdhery et al. 2022, section 5, with the weight 1e-4.
    """
    return weight * tf.square(tf.reduce_logsumexp(logits, axis=-1))


def class_weights(labels: tf.Tensor, table: tuple[float, ...]) -> tf.Tensor:
    """Returns `(B,)` float32: the weight of each row's class; ones if the table is empty."""
    if not table:
        return tf.ones(tf.shape(labels)[:1], tf.float32)
    return tf.gather(tf.constant(table, tf.float32), labels)


def token_losses(
    labels: tf.Tensor, logits: tf.Tensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tf.Tensor:
    """Returns the cross-entropy of every token in nats.

    Args:
        labels: `(B, T)` int32, the next tokens.
        logits: `(B, T, V)` any float.
        label_smoothing: Share of the target spread evenly over the vocabulary, in [0, 1).
        z_loss: See `z_losses`.
    Returns:
        `(B, T)` float32.
    """
    logits = tf.cast(logits, tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if label_smoothing:
        # Mean of -log p over the vocabulary, without a one-hot matrix: logsumexp minus the mean logit.
        spread = tf.reduce_logsumexp(logits, axis=-1) - tf.reduce_mean(logits, axis=-1)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * spread
    return losses + z_losses(logits, z_loss) if z_loss else losses
