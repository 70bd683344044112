"""Special tokens and truncation in the graph of an export, by the rule of `data.batching.special_tokens`.

Shape letters: B rows, T positions.
"""

import tensorflow as tf

from aigc_tf.data.batching.special_tokens import SpecialTokens


def add_special_tokens_in_graph(
    first: tf.RaggedTensor, second: tf.RaggedTensor | None, special: SpecialTokens, *, length: int | None = None
) -> dict[str, tf.Tensor]:
    """Adds special tokens, truncates and pads.

    Args:
        first: `(B, None)` int32 token ids of the texts.
        second: The same of the second texts of pairs; None for single texts.
        special: Special tokens, maximum length and truncation.
        length: Positions of the result. None: the length of the batch's longest row.
    Returns:
        `token_ids`, `segment_ids` and `padding_mask`, each `(B, T)` int32.
    """
    is_pair = second is not None
    room, num_special = special.room(is_pair), special.num_special(is_pair)
    first = first.with_row_splits_dtype(tf.int64)
    kept = tf.minimum(first.row_lengths(), room)
    kept_b = tf.zeros_like(kept)
    if second is not None:
        second = second.with_row_splits_dtype(tf.int64)
        kept = tf.minimum(first.row_lengths(), tf.maximum(room - second.row_lengths(), room - room // 2))
        kept_b = tf.minimum(second.row_lengths(), room - kept)
    num_rows = first.nrows()
    parts = [_repeat(special.start_ids, num_rows), _keep(first, kept, special.truncation)]
    if second is not None:
        parts += [_repeat(special.between_ids, num_rows), _keep(second, kept_b, special.truncation)]
    rows = tf.concat([*parts, _repeat(special.end_ids, num_rows)], axis=1)  # (B, None)
    lengths = num_special + kept + kept_b
    # A batch without rows has no longest one, but the model still reads position 0.
    longest = tf.constant(length, tf.int64) if length else tf.reduce_max(tf.concat([[max(num_special, 1)], lengths], 0))
    token_ids = rows.to_tensor(special.padding_id, shape=tf.stack([tf.constant(-1, tf.int64), longest]))
    mask = tf.sequence_mask(lengths, longest, tf.int32)  # (B, T)
    if is_pair:
        first_part = len(special.start_ids) + kept + len(special.between_ids)
        segments = mask - tf.sequence_mask(first_part, longest, tf.int32)
    else:
        segments = tf.zeros_like(mask)
    batch = {"token_ids": token_ids, "segment_ids": segments, "padding_mask": mask}
    return {key: tf.ensure_shape(value, [None, length]) for key, value in batch.items()}


def _repeat(ids: tuple[int, ...], num_rows: tf.Tensor) -> tf.RaggedTensor:
    values = tf.tile(tf.constant(ids, tf.int32, shape=[len(ids)]), [num_rows])
    return tf.RaggedTensor.from_uniform_row_length(values, len(ids), nrows=num_rows)


def _keep(part: tf.RaggedTensor, kept: tf.Tensor, truncation: str) -> tf.RaggedTensor:
    """Keeps `kept` (B,) tokens of each row: the first, the last, or ceil(k/2) first and floor(k/2) last."""
    head = {"head": kept, "tail": tf.zeros_like(kept), "head_tail": kept - kept // 2}[truncation]
    first_of_tail = part.row_lengths() - (kept - head)
    rows = part.value_rowids()
    positions = tf.range(tf.size(rows, tf.int64)) - tf.gather(part.row_starts(), rows)
    wanted = (positions < tf.gather(head, rows)) | (positions >= tf.gather(first_of_tail, rows))
    return tf.RaggedTensor.from_row_lengths(tf.boolean_mask(part.values, wanted), kept, validate=False)
