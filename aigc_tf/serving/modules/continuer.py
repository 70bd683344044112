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
"""Inputs of a signature besides the prompt, each `(B,)`; `generation.sampling.Settings` says what they mean."""
FINISH_REASONS = {END_OF_TEXT: "end", STOP_STRING: "stop", LENGTH: "length"}
"""Why a continuation ended: the end of the text, a stop string, or nothing more was wanted or fits the context."""
REFUSED = "refused"
"""Stands for the reason in a row that was not computed."""
NUM_ROW_STOPS = 4
"""Stop strings that a row of a request may have of its own."""
MAX_ROW_STOP_BYTES = 256
"""The most bytes of one of them: each step compares all of them with as many bytes at each place of a new token."""

_RANGES = {
    "temperature": (0.0, 1000.0),
    "top_p": (1e-6, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}


def request_settings(inputs: Mapping[str, tf.Tensor], generation: GenerationConfig) -> Settings:
    """Returns the settings of a request.

    A request has to name all of them, so a negative one (or NaN) stands for the export's own; of a seed each is one.
    What is too great becomes the greatest that fits, as there is nobody to tell.

    Args:
        inputs: `SETTINGS`, each `(B,)`.
        generation: The export's own.
    """
    values = {name: inputs[name] for name in SETTINGS}
    for name in ("max_new_tokens", "top_k"):
        values[name] = tf.where(values[name] < 0, getattr(generation, name), values[name])
    for name, (low, high) in _RANGES.items():
        given = tf.where(values[name] >= 0.0, values[name], getattr(generation, name))  # so that NaN is the default too
        # Bounded, since a penalty of 0 or an infinite one would make NaN of the row's logits.
        values[name] = tf.clip_by_value(given, low, high)
    return Settings(**values)


def cut_prompts(
    prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, *, room: int | tf.Tensor, end_id: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Keeps the last tokens of each prompt, so that what follows fits.

    Args:
        prompt_ids: `(B, P)` int32, padded on the right.
        prompt_lengths: `(B,)` int32; an empty prompt becomes the end of text alone, after which a text begins.
        room: The most tokens of a prompt, or `(B,)` int32; at least 1.
        end_id: The end of text.
    Returns:
        `(B, P')` int32 ids with P' that of the longest row and at least 1; `(B,)` int32 lengths, at least 1; `(B,)`
        int32 tokens cut off.
    """
    # A client may send any number, but no prompt has more ids than the batch is wide.
    lengths = tf.clip_by_value(prompt_lengths, 0, tf.shape(prompt_ids)[1])
    kept = tf.minimum(lengths, room)
    cut = lengths - kept
    width = longest(kept, least=1)
    places = cut[:, tf.newaxis] + tf.range(width)  # (B, P')
    # One more column, which all places behind a row's end read: so that a gather of P = 0 columns has one, too.
    padded = tf.pad(prompt_ids, [[0, 0], [0, 1]])
    moved = tf.gather(padded, tf.minimum(places, tf.shape(prompt_ids)[1]), axis=1, batch_dims=1)
    # An empty row keeps nothing, so that its first id is the end of text, and counts as a prompt of that one.
    return tf.where(tf.sequence_mask(kept, width), moved, end_id), tf.maximum(kept, 1), cut


def longest(lengths: tf.Tensor, *, least: int) -> tf.Tensor:
    """Returns the greatest of int32 lengths, or `least`."""
    return tf.maximum(tf.reduce_max(lengths), least)  # of no rows the maximum is negative


class _Batch(NamedTuple):
    """Prompts that fit, and what they are continued with."""

    ids: tf.Tensor
    """`(B, P)` int32."""
    lengths: tf.Tensor
    """`(B,)` int32, at least 1."""
    cut: tf.Tensor
    """`(B,)` int32 tokens that a prompt has too many."""
    refused: tf.Tensor
    """`(B,)` bool; such a row is an empty prompt of which no token is wanted."""
    settings: Settings
    capacity: tf.Tensor
    """The most positions that any row may have."""


class Continuer:
    """How one model and its tokenizer continue prompts: what graph functions of it are made of.

    Args:
        model: One of ours.
        tokenizer: One with an end of text.
        max_length: Positions of prompt and continuation together.
        stop: Stop strings.
        long_prompt: One of `config.LONG_PROMPTS`: what becomes of a prompt of `max_length` tokens or more.
    Raises:
        InputError: If the model is not one of ours, the tokenizer has no end of text, or a stop string does not fit.
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
        """The model as `aigc_tf.generation` sees it."""
        logits, cache = decoder_step(self._model, token_ids, cache, index, num_tokens)
        return logits[:, : self._tokenizer.vocabulary_size], cache  # a model may have more ids than mean something

    def tokenize(self, prompts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the `(B, P)` int32 ids and `(B,)` int32 lengths of `(B,)` strings."""
        rows = self._tokenizer.tokenize(prompts)
        # What fills a row up is never read as a prompt; it has to be an id of the table, and this one always is.
        return rows.to_tensor(self.end_id), tf.cast(rows.row_lengths(), tf.int32)

    def generate(self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, settings: Settings) -> dict[str, tf.Tensor]:
        """Continues prompts to their end.

        Args:
            prompt_ids: `(B, P)` int32, padded on the right, of any length.
            prompt_lengths: `(B,)` int32.
            settings: Of B rows.
        Returns:
            The outputs of the signatures, see `GeneratorModule`.
        """
        return self._generate(self._prepare(prompt_ids, prompt_lengths, settings), self._stop)

    def generate_until(
        self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, settings: Settings, stop: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """As `generate`, with more stop strings in each row.

        Args:
            prompt_ids: And the others: those of `generate`.
            stop: `(B, NUM_ROW_STOPS)` strings, of which an empty one is none. A row with one of more than
                `MAX_ROW_STOP_BYTES` is refused.
        """
        is_long = tf.reduce_any(tf.strings.length(stop) > MAX_ROW_STOP_BYTES, axis=1)
        # Emptied, not only refused: the longest string of any row decides how much every row compares in each step.
        stop = tf.where(is_long[:, tf.newaxis], "", stop)
        # Those of the export are put into each row: one table for all would be a second one to look into in each step.
        always = tf.constant(self._stops, tf.string, shape=[1, len(self._stops)])
        stop = tf.concat([stop, tf.repeat(always, tf.shape(stop)[0], axis=0)], axis=1)
        batch = self._prepare(prompt_ids, prompt_lengths, settings, refused=is_long)
        return self._generate(batch, row_stops(stop, build_pieces(self._tokenizer.piece_bytes())))

    def _generate(self, batch: _Batch, stop: Stop | None) -> dict[str, tf.Tensor]:
        done = generate_rows(
            self.step,
            batch.ids,
            batch.lengths,
            # Not the whole capacity at once: a step reads all of the cache, and most rows end early. It grows.
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
        """As `generate`, by beam search, for which only `max_new_tokens` counts of the settings."""
        batch = self._prepare(prompt_ids, prompt_lengths, settings)
        done, _ = beam_search(
            self.step,
            batch.ids,
            batch.lengths,
            self._cache(batch, batch.capacity),  # whole: the loop of beams keeps its shape
            batch.settings.max_new_tokens,
            num_beams=num_beams,
            capacity=batch.capacity,
            end_id=self.end_id,
            stop=self._stop,
        )
        return self._outputs(done, batch)

    def start(self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, settings: Settings) -> State:
        """Reads the prompts and chooses their first new tokens; `advance` goes on."""
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
        """Gives each row up to `num_steps` more tokens."""
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
        # A refused row stays in the batch as an empty prompt of which no token is wanted: rows cannot be left out of a
        # graph of fixed rows, and an error would fail the neighbours, whom the server put into the same batch.
        refused |= self._has_unknown_ids(prompt_ids, prompt_lengths)
        # One position is kept for a new token, without which there is nothing to answer.
        too_many = tf.maximum(0, tf.minimum(prompt_lengths, tf.shape(prompt_ids)[1]) - (self._max_length - 1))
        if self._long_prompt == "refuse":
            refused |= too_many > 0
        kept = tf.where(refused, 0, prompt_lengths)
        ids, lengths, _ = cut_prompts(prompt_ids, kept, room=self._max_length - 1, end_id=self.end_id)
        wanted = tf.where(refused, 0, settings.max_new_tokens)
        room = tf.minimum(wanted, self._max_length - lengths)  # before the sum, which may overflow
        # The longest that any row may become, and at least the prompts' own width, which reading them fills.
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
        """Returns `(B,)` bool: whether an id of a row's prompt is none of the vocabulary; it would fail all rows."""
        is_unknown = (prompt_ids < 0) | (prompt_ids >= self._tokenizer.vocabulary_size)
        # Behind a prompt's end stands what the client filled up with, or the server's batching: any id.
        is_prompt = tf.sequence_mask(prompt_lengths, tf.shape(prompt_ids)[1])
        return tf.reduce_any(is_unknown & is_prompt, axis=1)

    def _outputs(self, done: Generated, batch: _Batch) -> dict[str, tf.Tensor]:
        # The loop has room for the capacity; clients get as many columns as the longest answer has tokens.
        token_ids = done.token_ids[:, : longest(done.lengths, least=0)]
        spelled = self._tokenizer.detokenize(tf.RaggedTensor.from_tensor(token_ids, lengths=done.lengths))
        # Before a stop string; without one that is all.
        text_bytes = tf.strings.substr(
            spelled, tf.zeros_like(done.cut_bytes), tf.strings.length(spelled) - done.cut_bytes
        )
        # A table of strings by the numbers that the loop works with: strings cannot be kept on a GPU.
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
        InputError: If the tokenizer has none.
    """
    if tokenizer.end_of_text_id is None:
        raise InputError(
            f"The tokenizer is of kind {tokenizer.kind!r}, which has no end of text; a generator has a SentencePiece "
            "one or GPT-2's."
        )
    return tokenizer.end_of_text_id
