"""The probability of a text after another, and the likeliest of several: signatures `score` and `choose`.

A prompt is read once. Choices are read one after another, each behind the keys and values of the prompt, and logits are
computed for a few positions at a time, so that the memory is that of one choice, however many there are.
Shape letters: B rows, P prompt positions, N tokens of a continuation, K choices of a row, D width, V vocabulary.
"""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.generation.sampling import log_probability
from aigc_tf.models.generators.generator import Cache, decoder_logits, decoder_read, empty_cache
from aigc_tf.serving.modules.continuer import cut_prompts, end_of_text, longest

MAX_CHOICES = 1024
"""The most choices of a row."""
_LOGITS = 2**22
"""The most logits that are computed at the same time."""


class _Read(NamedTuple):
    """Prompts that have been read, with room in the cache for what follows."""

    cache: Cache
    lengths: tf.Tensor
    """`(B,)` int32."""
    logits: tf.Tensor
    """`(B, V)` float32, logits of the next token."""


class _Choices(NamedTuple):
    """The choices of each prompt."""

    texts: tf.Tensor
    """`(B, K)` strings, padded with empty ones."""
    token_ids: tf.Tensor
    """`(B, K, N)` int32, N at least 1."""
    lengths: tf.Tensor
    """`(B, K)` int32; 0 for a missing choice, or one that does not fit."""
    are_many: tf.Tensor
    """`(B,)` bool: rows with more than `MAX_CHOICES`; the others are left out."""


class Scorer:
    """Scores texts after prompts.

    Args:
        model: A model of this toolkit.
        tokenizer: A tokenizer with an end of text.
        max_length: Positions of prompt and continuation together.
        long_prompt: One of `config.LONG_PROMPTS`: what happens to a prompt that leaves no room for what follows it.
    """

    def __init__(self, model: keras.Model, tokenizer: Tokenizer, *, max_length: int, long_prompt: str):
        self._model, self._tokenizer = model, tokenizer
        self._max_length, self._refuses, self._end_id = max_length, long_prompt == "refuse", end_of_text(tokenizer)

    def score(self, prompts: tf.Tensor, continuations: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns how likely each continuation is after its prompt.

        Args:
            prompts: `(B,)` strings.
            continuations: `(B,)` strings.
        Returns:
            The outputs of the signature, see `GeneratorModule`.
        """
        rows = self._tokenizer.tokenize(continuations)
        counts = tf.cast(rows.row_lengths(), tf.int32)
        kept = tf.minimum(counts, self._max_length - 1)
        prompt_ids, prompt_lengths, prompt_cut = self._prompts(prompts, kept)
        refused = self._refuses & ((prompt_cut > 0) | (kept < counts))
        kept = tf.where(refused, 0, kept)
        width = longest(kept, least=1)
        ids = self._to_columns(rows, width)
        ids = tf.where(tf.sequence_mask(kept, width), ids, self._end_id)
        read = self._read(prompt_ids, prompt_lengths, refused, width)
        first, rest = log_probability(read.logits, ids[:, :1]), self._score_rest(read, ids, kept)[0]
        tokens = tf.where(tf.sequence_mask(kept, width), tf.concat([first, rest], axis=1), 0.0)
        num_columns = longest(kept, least=0)
        return {
            "log_probability": tf.where(refused, float("nan"), tf.reduce_sum(tokens, axis=1)),
            "num_tokens": kept,
            "token_ids": ids[:, :num_columns],
            "token_log_probabilities": tokens[:, :num_columns],
            "prompt_cut": prompt_cut,
            "continuation_cut": tf.maximum(0, counts - (self._max_length - 1)),
        }

    def choose(self, prompts: tf.Tensor, choices: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the likeliest of several continuations of each prompt.

        Args:
            prompts: `(B,)` strings.
            choices: `(B,)` strings, one choice per line; empty lines are ignored.
        Returns:
            The outputs of the signature, see `GeneratorModule`.
        """
        given = self._choices(choices)
        room_taken = tf.reduce_max(tf.pad(given.lengths, [[0, 0], [0, 1]]), axis=1)
        prompt_ids, prompt_lengths, prompt_cut = self._prompts(prompts, room_taken)
        refused = given.are_many | (self._refuses & (prompt_cut > 0))
        lengths = tf.where(refused[:, tf.newaxis], 0, given.lengths)
        read = self._read(prompt_ids, prompt_lengths, refused, tf.shape(given.token_ids)[2])
        totals = log_probability(read.logits, given.token_ids[:, :, 0]) + self._score_each(read, given, lengths)
        totals = tf.where(lengths > 0, totals, -np.inf)
        best = tf.argmax(tf.pad(totals, [[0, 0], [0, 1]], constant_values=-np.inf), axis=1, output_type=tf.int32)
        is_any = tf.reduce_any(lengths > 0, axis=1)
        shares = tf.where(is_any[:, tf.newaxis], tf.nn.softmax(totals), 0.0)
        texts = tf.pad(given.texts, [[0, 0], [0, 1]], constant_values="")
        return {
            "choice": tf.where(is_any, tf.gather(texts, best, axis=1, batch_dims=1), ""),
            "choice_id": tf.where(is_any, best, -1),
            "log_probabilities": totals,
            "probabilities": shares,
            "prompt_cut": prompt_cut,
        }

    def _choices(self, choices: tf.Tensor) -> _Choices:
        texts = tf.strings.split(tf.strings.regex_replace(choices, "\r\n", "\n"), "\n")  # (B, None)
        is_choice = tf.strings.length(texts) > 0
        are_many = tf.reduce_sum(tf.cast(is_choice, tf.int32), axis=1) > MAX_CHOICES
        is_wanted = is_choice.values & tf.gather(~are_many, texts.value_rowids())
        texts = tf.ragged.boolean_mask(texts, texts.with_values(is_wanted))
        rows = self._tokenizer.tokenize(texts.values)
        counts = tf.cast(rows.row_lengths(), tf.int32)
        counts = tf.where(counts < self._max_length, counts, 0)
        ids = self._to_columns(rows, longest(counts, least=1))
        splits = texts.row_splits
        return _Choices(
            texts=texts.to_tensor(""),
            token_ids=tf.RaggedTensor.from_row_splits(ids, splits, validate=False).to_tensor(self._end_id),
            lengths=tf.RaggedTensor.from_row_splits(counts, splits, validate=False).to_tensor(0),
            are_many=are_many,
        )

    def _to_columns(self, rows: tf.RaggedTensor, width: tf.Tensor) -> tf.Tensor:
        return rows.to_tensor(self._end_id, shape=tf.stack([-1, width]))

    def _prompts(self, prompts: tf.Tensor, taken: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns ids, lengths and numbers of cut tokens, leaving `taken` `(B,)` positions for what follows."""
        rows = self._tokenizer.tokenize(prompts)
        lengths = tf.cast(rows.row_lengths(), tf.int32)
        return cut_prompts(rows.to_tensor(self._end_id), lengths, room=self._max_length - taken, end_id=self._end_id)

    def _read(self, prompt_ids: tf.Tensor, lengths: tf.Tensor, refused: tf.Tensor, width: tf.Tensor) -> _Read:
        """Reads prompts (one token in refused rows), with room for `width` more tokens."""
        lengths = tf.where(refused, 1, lengths)
        prompt_ids = prompt_ids[:, : longest(lengths, least=1)]
        cache = empty_cache(self._model, tf.shape(prompt_ids)[0], tf.shape(prompt_ids)[1] + width)
        features, cache = decoder_read(self._model, prompt_ids, cache, tf.zeros_like(lengths))
        return _Read(cache, lengths, self._logits(tf.gather(features, lengths - 1, axis=1, batch_dims=1)))

    def _logits(self, features: tf.Tensor) -> tf.Tensor:
        return decoder_logits(self._model, features)[:, : self._tokenizer.vocabulary_size]

    def _score_each(self, read: _Read, choices: _Choices, lengths: tf.Tensor) -> tf.Tensor:
        """Returns `(B, K)` log-probabilities of all tokens of each choice except its first."""
        numbers = tf.range(tf.shape(lengths)[1])

        def one(number: tf.Tensor, cache: Cache, totals: tf.Tensor) -> tuple[tf.Tensor, Cache, tf.Tensor]:
            # Keys of the previous choice are overwritten, or lie after all positions that are read.
            rest, cache = self._score_rest(read._replace(cache=cache), choices.token_ids[:, number], lengths[:, number])
            total = tf.reduce_sum(rest, axis=1, keepdims=True)
            return number + 1, cache, tf.where(numbers == number, total, totals)

        variables = (0, read.cache, tf.zeros_like(lengths, tf.float32))
        return tf.while_loop(lambda number, *_: number < tf.size(numbers), one, variables, parallel_iterations=1)[2]

    def _score_rest(self, read: _Read, ids: tf.Tensor, lengths: tf.Tensor) -> tuple[tf.Tensor, Cache]:
        """Returns `(B, N - 1)` log-probabilities of `(B, N)` tokens except the first, 0 beyond `(B,)` lengths."""
        width = longest(lengths, least=1) - 1
        columns = tf.shape(ids)[1] - 1

        def score() -> tuple[tf.Tensor, Cache]:
            features, cache = decoder_read(self._model, ids[:, :width], read.cache, read.lengths)
            is_token = tf.sequence_mask(lengths - 1, width)
            found = self._log_probabilities(features[is_token], ids[:, 1 : width + 1][is_token])
            places = tf.where(tf.sequence_mask(lengths - 1, columns))
            return tf.scatter_nd(places, found, tf.shape(ids[:, 1:], tf.int64)), cache

        return tf.cond(width > 0, score, lambda: (tf.zeros_like(ids[:, 1:], tf.float32), read.cache))

    def _log_probabilities(self, features: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        """Returns `(M,)` log-probabilities of targets after `(M, D)` features, some at a time."""
        num_rows, width = tf.shape(features)[0], features.shape[1]
        block = tf.clip_by_value(num_rows, 1, max(1, _LOGITS // self._tokenizer.vocabulary_size))
        missing = -num_rows % block
        features = tf.reshape(tf.pad(features, [[0, missing], [0, 0]]), [-1, block, width])
        targets = tf.reshape(tf.pad(targets, [[0, missing]]), [-1, block])
        found = tf.map_fn(
            lambda one: log_probability(self._logits(one[0]), one[1]),
            (features, targets),
            fn_output_signature=tf.TensorSpec([None], tf.float32),
            parallel_iterations=1,
        )
        return tf.reshape(found, [-1])[:num_rows]
