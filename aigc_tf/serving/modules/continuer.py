"""How a model and its tokenizer continue prompts: prompt -> token ids -> new ids -> text, in plain TensorFlow ops.

What an export publishes (`serving.modules.generator_signatures`) and what runs a live model
(`serving.local.text_generator`) are made of the very same `Continuer`. Shape letters: B rows, P prompt positions, N new
tokens.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from aigc_tf.config import GenerationConfig
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.errors import InputError
from aigc_tf.generation.beam import beam_search
from aigc_tf.generation.decoding import (
    END_OF_TEXT,
    LENGTH,
    STOP_STRING,
    Cache,
    Generated,
    Growth,
    State,
    first_length,
    start,
)
from aigc_tf.generation.decoding import advance as advance_rows
from aigc_tf.generation.decoding import generate as generate_rows
from aigc_tf.generation.sampling import Settings
from aigc_tf.generation.stopping import Stop, build_pieces, build_stop_table, row_stops
from aigc_tf.models.generators.generator import cache_positions, decoder_step, empty_cache, is_own

SETTINGS = {
    "max_new_tokens": tf.int32,
    "temperature": tf.float32,
    "top_k": tf.int32,
    "top_p": tf.float32,
    "min_p": tf.float32,
    "repetition_penalty": tf.float32,
    "seed": tf.int64,
}
"""Inputs of a signature besides the prompt, each `(B,)`; `generation.sampling.Settings` explains them."""
FINISH_REASONS = {END_OF_TEXT: "end", STOP_STRING: "stop", LENGTH: "length"}
"""Why a continuation ended: the end of the text, a stop string, or the limit or the end of the context."""
REFUSED = "refused"
"""The reason in a row that was refused, not computed."""
NUM_ROW_STOPS = 4
"""The most stop strings that a row of a request may add."""
MAX_ROW_STOP_BYTES = 256
"""The most bytes of such a stop string: each step compares this many bytes at each place of a new token."""

_RANGES = {
    "temperature": (0.0, 1000.0),
    "top_p": (1e-6, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}


def request_settings(inputs: Mapping[str, tf.Tensor], generation: GenerationConfig) -> Settings:
    """Returns the settings of a request.

    A request must name all of them, so a negative value (or NaN) selects the export's own setting; every seed is valid.
    Too large values become the largest allowed, since an error would fail the whole batch.

    Args:
        inputs: `SETTINGS`, each `(B,)`.
        generation: The export's own settings.
    """
    values = {name: inputs[name] for name in SETTINGS}
    for name in ("max_new_tokens", "top_k"):
        values[name] = tf.where(values[name] < 0, getattr(generation, name), values[name])
    for name, (low, high) in _RANGES.items():
        given = tf.where(values[name] >= 0.0, values[name], getattr(generation, name))  # false for NaN too
        # Bounded, since a penalty of 0 or infinity would turn the row's logits into NaN.
        values[name] = tf.clip_by_value(given, low, high)
    return Settings(**values)


def cut_prompts(
    prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, *, room: int | tf.Tensor, end_id: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Keeps the last tokens of each prompt, so that the continuation fits.

    Args:
        prompt_ids: `(B, P)` int32, padded on the right.
        prompt_lengths: `(B,)` int32; an empty prompt becomes the end of text alone, after which a new text starts.
        room: The most tokens of a prompt, or `(B,)` int32; at least 1.
        end_id: The end of text.
    Returns:
        `(B, P')` int32 ids, where P' is the length of the longest row and at least 1; `(B,)` int32 lengths, at least 1;
        `(B,)` int32 numbers of tokens cut off.
    """
    # A client may send any length, but a prompt has no more ids than the batch has columns.
    lengths = tf.clip_by_value(prompt_lengths, 0, tf.shape(prompt_ids)[1])
    kept = tf.minimum(lengths, room)
    cut = lengths - kept
    width = longest(kept, least=1)
    places = cut[:, tf.newaxis] + tf.range(width)  # (B, P')
    # Places after a row's end read one extra column, so that the gather also works for P = 0 columns.
    padded = tf.pad(prompt_ids, [[0, 0], [0, 1]])
    moved = tf.gather(padded, tf.minimum(places, tf.shape(prompt_ids)[1]), axis=1, batch_dims=1)
    # An empty row keeps nothing, so its first id is the end of text and its length counts as 1.
    return tf.where(tf.sequence_mask(kept, width), moved, end_id), tf.maximum(kept, 1), cut


def longest(lengths: tf.Tensor, *, least: int) -> tf.Tensor:
    """Returns the largest of int32 lengths, and at least `least`."""
    return tf.maximum(tf.reduce_max(lengths), least)  # without rows the maximum is negative


class _Batch(NamedTuple):
    """Prompts that fit, and the settings to continue them with."""

    ids: tf.Tensor
    """`(B, P)` int32."""
    lengths: tf.Tensor
    """`(B,)` int32, at least 1."""
    cut: tf.Tensor
    """`(B,)` int32 numbers of tokens cut off the prompts."""
    refused: tf.Tensor
    """`(B,)` bool; refused rows, computed as an empty prompt without new tokens."""
    settings: Settings
    capacity: tf.Tensor
    """The most positions of any row."""


class Continuer:
    """Continues prompts with one model and its tokenizer, inside graph functions.

    Args:
        model: A model of this toolkit.
        tokenizer: A tokenizer with an end of text.
        max_length: Positions of prompt and continuation together.
        stop: Stop strings.
        long_prompt: One of `config.LONG_PROMPTS`: what happens to a prompt of `max_length` tokens or more.
    Raises:
        InputError: If the model is KerasNLP's, the tokenizer has no end of text, or a stop string does not fit.
    """

    def __init__(
        self,
        model: keras.Model,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        stop: Sequence[str] = (),
        long_prompt: str = "cut",
    ):
        if not is_own(model):
            raise InputError(
                f"{type(model).__name__} is KerasNLP's own network, whose generation needs XLA ops that a stock server "
                "and this program's decoding do not run; GPT-2 is the architecture that is served."
            )
        self._model, self._tokenizer = model, tokenizer
        self.end_id, self._max_length, self._long_prompt = end_of_text(tokenizer), max_length, long_prompt
        self._stops = [text.encode("utf-8", "replace") for text in stop]
        self._growth = Growth(*cache_positions(model))
        self._stop = build_stop_table(self._stops, tokenizer.piece_bytes() if stop else [])

    def step(
        self, token_ids: tf.Tensor, cache: Cache, index: tf.Tensor, num_tokens: tf.Tensor
    ) -> tuple[tf.Tensor, Cache]:
        """Computes one step of the model, as `aigc_tf.generation` calls it."""
        logits, cache = decoder_step(self._model, token_ids, cache, index, num_tokens)
        return logits[:, : self._tokenizer.vocabulary_size], cache  # a model may have more ids than its vocabulary

    def tokenize(self, prompts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the `(B, P)` int32 ids and `(B,)` int32 lengths of `(B,)` strings."""
        rows = self._tokenizer.tokenize(prompts)
        # Padding is never read as a prompt, but the embedding looks it up, so it must be a valid id.
        return rows.to_tensor(self.end_id), tf.cast(rows.row_lengths(), tf.int32)

    def generate(self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, settings: Settings) -> dict[str, tf.Tensor]:
        """Continues prompts to their end.

        Args:
            prompt_ids: `(B, P)` int32, padded on the right, of any length.
            prompt_lengths: `(B,)` int32.
            settings: Settings of B rows.
        Returns:
            The outputs of the signatures, see `GeneratorModule`.
        """
        return self._generate(self._prepare(prompt_ids, prompt_lengths, settings), self._stop)

    def generate_until(
        self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, settings: Settings, stop: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """As `generate`, with additional stop strings in each row.

        Args:
            prompt_ids: As `prompt_lengths` and `settings`, those of `generate`.
            stop: `(B, NUM_ROW_STOPS)` strings, where empty ones are ignored. A row with one of more than
                `MAX_ROW_STOP_BYTES` is refused.
        """
        is_long = tf.reduce_any(tf.strings.length(stop) > MAX_ROW_STOP_BYTES, axis=1)
        # Emptied, not only refused: the longest string of any row sets the cost of each step for every row.
        stop = tf.where(is_long[:, tf.newaxis], "", stop)
        # The export's stop strings join each row: a common table would be a second lookup in each step.
        always = tf.constant(self._stops, tf.string, shape=[1, len(self._stops)])
        stop = tf.concat([stop, tf.repeat(always, tf.shape(stop)[0], axis=0)], axis=1)
        batch = self._prepare(prompt_ids, prompt_lengths, settings, refused=is_long)
        return self._generate(batch, row_stops(stop, build_pieces(self._tokenizer.piece_bytes())))

    def _generate(self, batch: _Batch, stop: Stop | None) -> dict[str, tf.Tensor]:
        done = generate_rows(
            self.step,
            batch.ids,
            batch.lengths,
            # The cache starts small and grows: a step reads all of it, and most rows end early.
            self._cache(batch, first_length(tf.shape(batch.ids)[1], batch.capacity)),
            batch.settings,
            capacity=batch.capacity,
            end_id=self.end_id,
            stop=stop,
            growth=self._growth,
        )
        return self._outputs(done, batch)

    def search(
        self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, settings: Settings, *, num_beams: int
    ) -> dict[str, tf.Tensor]:
        """As `generate`, by beam search, which of the settings reads only `max_new_tokens`."""
        batch = self._prepare(prompt_ids, prompt_lengths, settings)
        done, _ = beam_search(
            self.step,
            batch.ids,
            batch.lengths,
            self._cache(batch, batch.capacity),  # full size, since the beam loop cannot grow it
            batch.settings.max_new_tokens,
            num_beams=num_beams,
            capacity=batch.capacity,
            end_id=self.end_id,
            stop=self._stop,
        )
        return self._outputs(done, batch)

    def start(self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, settings: Settings) -> State:
        """Reads the prompts and chooses their first new tokens; `advance` continues."""
        batch = self._prepare(prompt_ids, prompt_lengths, settings)
        return start(
            self.step,
            batch.ids,
            batch.lengths,
            self._cache(batch, first_length(tf.shape(batch.ids)[1], batch.capacity)),
            batch.settings,
            capacity=batch.capacity,
            end_id=self.end_id,
            stop=self._stop,
        )

    def advance(self, state: State, settings: Settings, num_steps: int) -> State:
        """Generates up to `num_steps` more tokens for each row."""
        return advance_rows(
            self.step, state, settings, num_steps, end_id=self.end_id, stop=self._stop, growth=self._growth
        )

    def _cache(self, batch: _Batch, length: tf.Tensor) -> Cache:
        return empty_cache(self._model, tf.shape(batch.ids)[0], length)

    def _prepare(
        self,
        prompt_ids: tf.Tensor,
        prompt_lengths: tf.Tensor,
        settings: Settings,
        *,
        refused: tf.Tensor | bool = False,
    ) -> _Batch:
        # A refused row stays in the batch as an empty prompt without new tokens: a graph cannot leave out rows, and an
        # error would also fail the other clients' rows, which the server put into the same batch.
        refused |= self._has_unknown_ids(prompt_ids, prompt_lengths)
        # One position is kept for a new token, so that there is an answer.
        too_many = tf.maximum(0, tf.minimum(prompt_lengths, tf.shape(prompt_ids)[1]) - (self._max_length - 1))
        if self._long_prompt == "refuse":
            refused |= too_many > 0
        kept = tf.where(refused, 0, prompt_lengths)
        ids, lengths, _ = cut_prompts(prompt_ids, kept, room=self._max_length - 1, end_id=self.end_id)
        wanted = tf.where(refused, 0, settings.max_new_tokens)
        room = tf.minimum(wanted, self._max_length - lengths)  # before the sum, which may overflow
        # The largest final length of a row, and at least the width of the prompts, which reading them fills.
        capacity = tf.maximum(longest(lengths + room, least=1), tf.shape(ids)[1])
        return _Batch(
            ids=ids,
            lengths=lengths,
            cut=too_many,
            refused=refused,
            settings=settings._replace(max_new_tokens=wanted),
            capacity=capacity,
        )

    def _has_unknown_ids(self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor) -> tf.Tensor:
        """Returns `(B,)` bool: whether a prompt has ids outside the vocabulary, which would fail all rows."""
        is_unknown = (prompt_ids < 0) | (prompt_ids >= self._tokenizer.vocabulary_size)
        # After a prompt's end any id may stand, since clients and the server's batching choose the padding.
        is_prompt = tf.sequence_mask(prompt_lengths, tf.shape(prompt_ids)[1])
        return tf.reduce_any(is_unknown & is_prompt, axis=1)

    def _outputs(self, done: Generated, batch: _Batch) -> dict[str, tf.Tensor]:
        # The loop has room for the capacity; clients get only as many columns as the longest answer.
        token_ids = done.token_ids[:, : longest(done.lengths, least=0)]
        spelled = self._tokenizer.detokenize(tf.RaggedTensor.from_tensor(token_ids, lengths=done.lengths))
        # The bytes up to a stop string; all bytes if there is none.
        text_bytes = tf.strings.substr(
            spelled, tf.zeros_like(done.cut_bytes), tf.strings.length(spelled) - done.cut_bytes
        )
        # The loop works with numbers, since a GPU cannot hold strings; this table maps them to names.
        reasons = tf.constant([FINISH_REASONS.get(reason, "") for reason in range(max(FINISH_REASONS) + 1)])
        return {
            "text": tf.strings.unicode_transcode(text_bytes, "UTF-8", "UTF-8", errors="replace"),
            "text_bytes": text_bytes,
            "token_ids": token_ids,
            "num_tokens": done.lengths,
            "finish_reason": tf.where(batch.refused, REFUSED, tf.gather(reasons, done.finish_reason)),
            "log_probability": done.log_probability,
            "prompt_cut": batch.cut,
        }


def end_of_text(tokenizer: Tokenizer) -> int:
    """Returns the id that ends a text.

    Raises:
        InputError: If the tokenizer has no end of text.
    """
    if tokenizer.end_of_text_id is None:
        raise InputError(
            f"The tokenizer is of kind {tokenizer.kind!r}, which has no end of text; a generator needs a SentencePiece "
            "tokenizer or GPT-2's."
        )
    return tokenizer.end_of_text_id
