"""A language model whose next token depends on all tokens before it, with exact sums, and the same in NumPy.

Its cache holds the tokens themselves, so that what is written where, and what is read, shows in the logits.
"""

import numpy as np
import tensorflow as tf

_REACH = 8  # older tokens all count as much as the eighth


class ToyModel(tf.Module):
    """Logits are the sum of a row of a table for each token so far, halved with each step back."""

    def __init__(self, vocabulary_size, *, seed=0, scale=2.0):
        super().__init__()
        # RandomState: its numbers are promised never to change, and golden tests rest on them.
        table = np.random.RandomState(seed).normal(size=(vocabulary_size, vocabulary_size)) * scale
        self.numpy_table = (np.round(table * 16) / 16).astype(np.float32)  # so that no order of adding matters
        self.table = tf.Variable(self.numpy_table, trainable=False)
        self.vocabulary_size = vocabulary_size

    def empty_cache(self, batch_size, length):
        return (tf.zeros([batch_size, length], tf.int32), {"reads": tf.zeros([batch_size, length], tf.int32)})

    def step(self, token_ids, cache, index, num_tokens):
        """The step of `aigc_tf.generation.decoding`."""
        tokens, extra = cache
        offset = tf.range(tf.shape(tokens)[1]) - index[:, tf.newaxis]  # (B, C)
        width = tf.shape(token_ids)[1]
        is_new = (offset >= 0) & (offset < width)
        written = tf.gather(token_ids, tf.clip_by_value(offset, 0, width - 1), axis=1, batch_dims=1)
        tokens = tf.where(is_new, written, tokens)
        back = num_tokens[:, tf.newaxis] - 1 - offset  # steps back from the last real token
        factor = tf.where(back >= 0, 2.0 ** -tf.cast(tf.minimum(back, _REACH), tf.float32), 0.0)
        logits = tf.reduce_sum(tf.gather(self.table, tokens) * factor[:, :, tf.newaxis], axis=1)
        return tf.ensure_shape(logits, [None, self.vocabulary_size]), (tokens, {"reads": extra["reads"] + 1})

    def logits(self, tokens):
        """Returns `(V,)` float32 after a list of tokens."""
        back = np.minimum(np.arange(len(tokens))[::-1], _REACH)
        return (self.numpy_table[tokens] * 2.0 ** -back[:, np.newaxis]).sum(axis=0).astype(np.float32)

    def log_probabilities(self, tokens):
        logits = self.logits(tokens).astype(np.float64)
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def padded(prompts):
    """Returns `(B, P)` ids, filled up with tokens that must not matter, and `(B,)` lengths."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    ids = np.ones((len(prompts), max(lengths, default=0)), np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    return tf.constant(ids), tf.constant(lengths)
