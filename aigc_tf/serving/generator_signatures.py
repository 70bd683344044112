"""What an exported generator computes: prompt -> token ids -> new ids -> text, in plain TensorFlow ops.

`GeneratorModule` holds the functions that become the signatures of the SavedModel; `serving.text_generator` runs the
very same `Continuer` on a live model. Shape letters: B rows, P prompt positions, N new tokens.
"""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from aigc_tf.config import InputError
from aigc_tf.data.tokenizers import Tokenizer
from aigc_tf.generation.beam import beam_search
from aigc_tf.generation.decoding import END_OF_TEXT, LENGTH, STOP_STRING, Cache, Generated, State, start
from aigc_tf.generation.decoding import advance as advance_rows
from aigc_tf.generation.decoding import generate as generate_rows
from aigc_tf.generation.sampling import Settings
from aigc_tf.generation.stopping import StopTable
from aigc_tf.models.generator import decoder_step, empty_cache, is_own

SETTINGS = {
    "max_new_tokens": tf.int32,
    "temperature": tf.float32,
    "top_k": tf.int32,
    "top_p": tf.float32,
    "min_p": tf.float32,
    "repetition_penalty": tf.float32,
    "seed": tf.int64,
}
"""Inputs of both signatures besides the prompt, each `(B,)`; `generation.sampling.Settings` says what they mean."""
FINISH_REASONS = {END_OF_TEXT: "end", STOP_STRING: "stop", LENGTH: "length"}
"""Why a continuation ended: the end of the text, a stop string, or nothing more was wanted or fits the context."""

# What a value out of range becomes: the nearest that fits; NaN becomes what switches the setting off.
_RANGES = {
    "temperature": (0.0, 1000.0, 1.0),
    "top_p": (1e-6, 1.0, 1.0),
    "min_p": (0.0, 1.0, 0.0),
    "repetition_penalty": (0.01, 100.0, 1.0),
}


def clamp_settings(inputs: Mapping[str, tf.Tensor]) -> Settings:
    """Returns the settings of a request; what is out of range is brought into it, as there is nobody to tell."""
    values = {name: inputs[name] for name in SETTINGS}
    for name in ("max_new_tokens", "top_k"):
        values[name] = tf.maximum(values[name], 0)
    for name, (low, high, off) in _RANGES.items():
        value = tf.where(tf.math.is_nan(values[name]), off, values[name])
        values[name] = tf.clip_by_value(value, low, high)
    return Settings(**values)


def cut_prompts(
    prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, *, max_length: int, end_id: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Keeps the last `max_length - 1` tokens of each prompt, so that one new token fits at least.

    Args:
        prompt_ids: `(B, P)` int32, padded on the right.
        prompt_lengths: `(B,)` int32; an empty prompt becomes the end of text alone, after which a text begins.
        max_length: Positions of prompt and continuation.
        end_id: The end of text.
    Returns:
        `(B, P')` int32 ids with P' that of the longest row and at least 1; `(B,)` int32 lengths, at least 1; `(B,)`
        int32 tokens cut off.
    """
    lengths = tf.clip_by_value(prompt_lengths, 0, tf.shape(prompt_ids)[1])
    kept = tf.minimum(lengths, max_length - 1)
    cut = lengths - kept
    width = _longest(kept, least=1)
    places = cut[:, tf.newaxis] + tf.range(width)  # (B, P')
    padded = tf.pad(prompt_ids, [[0, 0], [0, 1]])
    moved = tf.gather(padded, tf.minimum(places, tf.shape(prompt_ids)[1]), axis=1, batch_dims=1)
    return tf.where(tf.sequence_mask(kept, width), moved, end_id), tf.maximum(kept, 1), cut


def _longest(lengths: tf.Tensor, *, least: int) -> tf.Tensor:
    return tf.maximum(tf.reduce_max(lengths), least)  # of no rows the maximum is negative


class Continuer:
    """How one model and its tokenizer continue prompts: what graph functions of it are made of.

    Args:
        model: One of ours.
        tokenizer: One with an end of text.
        max_length: Positions of prompt and continuation together.
        stop: Stop strings.
    Raises:
        InputError: If the model is not one of ours, or the tokenizer has no end of text.
    """

    def __init__(self, model: keras.Model, tokenizer: Tokenizer, *, max_length: int, stop: StopTable | None = None):
        if not is_own(model):
            raise InputError(
                f"{type(model).__name__} is KerasNLP's own network, whose generation needs XLA ops that a stock server "
                "and this program's decoding do not run; GPT-2 is the architecture that is served."
            )
        self._model, self._tokenizer = model, tokenizer
        self.end_id, self._max_length, self._stop = end_of_text(tokenizer), max_length, stop

    def step(
        self, token_ids: tf.Tensor, cache: Cache, index: tf.Tensor, num_tokens: tf.Tensor
    ) -> tuple[tf.Tensor, Cache]:
        """The model as `aigc_tf.generation` sees it."""
        logits, cache = decoder_step(self._model, token_ids, cache, index, num_tokens)
        return logits[:, : self._tokenizer.vocabulary_size], cache  # a model may have more ids than mean something

    def tokenize(self, prompts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the `(B, P)` int32 ids and `(B,)` int32 lengths of `(B,)` strings."""
        rows = self._tokenizer.tokenize(prompts)
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
        ids, lengths, cut, cache, capacity = self._prepare(prompt_ids, prompt_lengths, settings)
        done = generate_rows(
            self.step, ids, lengths, cache, settings, capacity=capacity, end_id=self.end_id, stop=self._stop
        )
        return self.outputs(done, cut)

    def search(
        self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, settings: Settings, *, num_beams: int
    ) -> dict[str, tf.Tensor]:
        """As `generate`, by beam search, for which only `max_new_tokens` counts of the settings."""
        ids, lengths, cut, cache, capacity = self._prepare(prompt_ids, prompt_lengths, settings)
        done, _ = beam_search(
            self.step,
            ids,
            lengths,
            cache,
            settings.max_new_tokens,
            num_beams=num_beams,
            capacity=capacity,
            end_id=self.end_id,
            stop=self._stop,
        )
        return self.outputs(done, cut)

    def start(self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, settings: Settings) -> State:
        """Reads the prompts and chooses their first new tokens; `advance` goes on."""
        ids, lengths, _, cache, capacity = self._prepare(prompt_ids, prompt_lengths, settings)
        return start(self.step, ids, lengths, cache, settings, capacity=capacity, end_id=self.end_id, stop=self._stop)

    def advance(self, state: State, settings: Settings, num_steps: int) -> State:
        """Gives each row up to `num_steps` more tokens."""
        return advance_rows(self.step, state, settings, num_steps, end_id=self.end_id, stop=self._stop)

    def _prepare(self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, settings: Settings) -> tuple[Any, ...]:
        ids, lengths, cut = cut_prompts(prompt_ids, prompt_lengths, max_length=self._max_length, end_id=self.end_id)
        room = tf.minimum(settings.max_new_tokens, self._max_length - lengths)  # before the sum, which may overflow
        # As long as this batch needs: attention reads all of the cache in every step.
        capacity = tf.maximum(_longest(lengths + room, least=1), tf.shape(ids)[1])
        return ids, lengths, cut, empty_cache(self._model, tf.shape(ids)[0], capacity), capacity

    def outputs(self, done: Generated, prompt_cut: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what the signatures answer."""
        token_ids = done.token_ids[:, : _longest(done.lengths, least=0)]
        spelled = self._tokenizer.detokenize(tf.RaggedTensor.from_tensor(token_ids, lengths=done.lengths))
        # Before a stop string; without one that is all.
        text_bytes = tf.strings.substr(
            spelled, tf.zeros_like(done.cut_bytes), tf.strings.length(spelled) - done.cut_bytes
        )
        reasons = tf.constant([FINISH_REASONS.get(reason, "") for reason in range(max(FINISH_REASONS) + 1)])
        return {
            "text": tf.strings.unicode_transcode(text_bytes, "UTF-8", "UTF-8", errors="replace"),
            "text_bytes": text_bytes,
            "token_ids": token_ids,
            "num_tokens": done.lengths,
            "finish_reason": tf.gather(reasons, done.finish_reason),
            "log_probability": done.log_probability,
            "prompt_cut": prompt_cut,
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


class GeneratorModule(tf.Module):
    """A trained generator as functions of text and of token ids; holds its variables once and no Keras object.

    `serving_default` takes `prompt` (B,) string, `generate_ids` takes `prompt_ids` (B, P) int32, padded on the right
    with any ids, and `prompt_lengths` (B,) int32; both take `SETTINGS`. Both answer

        text             (B,) string   valid UTF-8, U+FFFD for bytes that are none
        text_bytes       (B,) string   the very bytes
        token_ids        (B, N) int32  filled up with the end of text; N is the longest row's
        num_tokens       (B,) int32
        finish_reason    (B,) string   a value of `FINISH_REASONS`
        log_probability  (B,) float32  of the continuation under the model, its end included
        prompt_cut       (B,) int32    tokens cut off the beginning of a prompt that is too long

    Args:
        model: One of ours, in the dtype to compute in.
        tokenizer: The tokenizer of the prepared data.
        max_length: Positions of prompt and continuation together.
    Raises:
        InputError: If the model is not one of ours, or the tokenizer has no end of text.
    """

    def __init__(self, model: keras.Model, tokenizer: Tokenizer, *, max_length: int):
        super().__init__(name="generator")
        continuer = Continuer(model, tokenizer, max_length=max_length)
        self.weights = [weight.value for weight in model.weights]  # tracked: what the functions below read
        self.tokenizer = tokenizer
        self.generate_ids = _ids_function(continuer)
        self.generate_text = _text_function(continuer)

    def signatures(self) -> dict[str, Any]:
        """Returns the functions of the SavedModel under their names."""
        return {"serving_default": self.generate_text, "generate_ids": self.generate_ids}


def _setting_specs() -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec([None], dtype, name=name) for name, dtype in SETTINGS.items()}


def _text_function(continuer: Continuer) -> Any:
    @tf.function(
        autograph=False,
        input_signature=[{"prompt": tf.TensorSpec([None], tf.string, name="prompt"), **_setting_specs()}],
    )
    def generate_text(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return continuer.generate(*continuer.tokenize(inputs["prompt"]), clamp_settings(inputs))

    return generate_text


def _ids_function(continuer: Continuer) -> Any:
    prompt = {
        "prompt_ids": tf.TensorSpec([None, None], tf.int32, name="prompt_ids"),
        "prompt_lengths": tf.TensorSpec([None], tf.int32, name="prompt_lengths"),
    }

    @tf.function(autograph=False, input_signature=[{**prompt, **_setting_specs()}])
    def generate_ids(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return continuer.generate(inputs["prompt_ids"], inputs["prompt_lengths"], clamp_settings(inputs))

    return generate_ids
