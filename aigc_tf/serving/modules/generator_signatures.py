"""The signatures of an exported generator.

Shape letters: B rows, N new tokens.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from aigc_tf.config import GenerationConfig
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.generation.sampling import Settings
from aigc_tf.serving.apis import SERVING_DEFAULT
from aigc_tf.serving.modules.continuer import SETTINGS, Continuer, request_settings
from aigc_tf.serving.modules.fields import Field, Signature, build_signature
from aigc_tf.serving.modules.generator_fields import (
    CHOICES,
    CHOSEN,
    CONTINUATION,
    CONTINUED,
    PROMPT,
    SCORES,
    STOP,
    setting_fields,
)
from aigc_tf.serving.modules.graph_functions import traced_once
from aigc_tf.serving.modules.quantization import ServedWeights, Stored
from aigc_tf.serving.modules.scoring import Scorer


class GeneratorModule(tf.Module):
    """A trained generator as functions of text and of token ids; it holds its variables once, and no Keras object.

    `serving_default` takes `prompt` (B,) string and `SETTINGS`. `defaults` takes `prompt` alone; every row has the
    settings of `generation`, including its seed, so that an answer does not depend on the row's place in a batch.
    `generate_ids` takes `prompt_ids` (B, max_length) int32, padded on the right with any ids, `prompt_lengths` (B,)
    int32 and `SETTINGS`. The length is fixed, since TF Serving's batching would pad rows with their first element; the
    graph cuts them to the longest. `generate_until` takes the inputs of `serving_default` and `stop`
    (B, NUM_ROW_STOPS) string, which end the row as those of `generation` do; empty ones are ignored. All of them answer

        text             (B,) string   valid UTF-8, U+FFFD for invalid bytes
        text_bytes       (B,) string   the exact bytes
        token_ids        (B, N) int32  padded with the end of text; N is the length of the longest row
        num_tokens       (B,) int32
        finish_reason    (B,) string   a value of `FINISH_REASONS`, or `REFUSED`
        log_probability  (B,) float32  of the continuation under the model, its end included
        prompt_cut       (B,) int32    tokens cut off the prompt

    `score` takes `prompt` and `continuation` (B,) strings and answers, without drawing anything,

        log_probability          (B,) float32    of the continuation's tokens after the prompt; NaN in a refused row
        num_tokens               (B,) int32      of the continuation
        token_ids                (B, N) int32    padded with the end of text
        token_log_probabilities  (B, N) float32  padded with 0
        prompt_cut               (B,) int32
        continuation_cut         (B,) int32      tokens cut off the continuation

    `choose` takes `prompt` and `choices` (B,) strings, one choice per line, and answers

        choice             (B,) string     the likeliest, the first of equals; empty if there is none
        choice_id          (B,) int32      its number among the row's non-empty lines; -1 if there is none
        log_probabilities  (B, K) float32  of each choice after the prompt; minus infinity for a missing one
        probabilities      (B, K) float32  the same, normalised to a sum of 1; 0 for a missing one
        prompt_cut         (B,) int32

    Args:
        model: A model of this toolkit, in the dtype to compute in.
        tokenizer: The tokenizer of the prepared data.
        stored: The result of `quantization.store` for the model; None to save its weights unchanged.
        max_length: Positions of prompt and continuation together.
        generation: Settings of `defaults`; its stop strings are those of every signature.
        long_prompt: One of `config.LONG_PROMPTS`.
    Raises:
        InputError: If the model is KerasNLP's, the tokenizer has no end of text, or a stop string does not fit.
    """

    def __init__(
        self,
        model: keras.Model,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        generation: GenerationConfig,
        long_prompt: str = "cut",
        stored: list[Stored] | None = None,
    ):
        super().__init__(name="generator")
        continuer = Continuer(model, tokenizer, max_length=max_length, stop=generation.stop, long_prompt=long_prompt)
        self.weights = ServedWeights(model, stored)  # tracked by the module: the functions below read them
        self.tokenizer = tokenizer
        generate = _shared(continuer, self.weights)
        scorer = Scorer(model, tokenizer, max_length=max_length, long_prompt=long_prompt)
        found = [
            _text_signature(continuer, generate, generation, max_length),
            _defaults_signature(continuer, generate, generation),
            _ids_signature(generate, generation, max_length),
            _until_signature(continuer, self.weights, generation, max_length),
            _pair_signature("score", self.weights.restoring(scorer.score), CONTINUATION, outputs=SCORES),
            _pair_signature("choose", self.weights.restoring(scorer.choose), CHOICES, outputs=CHOSEN),
        ]
        # A lambda hides the signatures from tf.Module's tracking of attributes.
        self.signatures: Callable[[], dict[str, Signature]] = lambda: {one.name: one for one in found}
        """Returns the functions of the SavedModel by name."""


def _shared(continuer: Continuer, weights: ServedWeights) -> Any:
    """Returns the loop as one function for all signatures, so that a SavedModel holds its graph once."""
    ids, lengths = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)
    settings = Settings(**{name: tf.TensorSpec([None], dtype, name=name) for name, dtype in SETTINGS.items()})
    return traced_once(weights.restoring(continuer.generate), [ids, lengths, settings])


def _text_signature(continuer: Continuer, generate: Any, generation: GenerationConfig, max_length: int) -> Signature:
    def generate_text(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return generate(*continuer.tokenize(inputs["prompt"]), request_settings(inputs, generation))

    inputs = [PROMPT, *setting_fields(max_length)]
    return build_signature(SERVING_DEFAULT, generate_text, inputs=inputs, outputs=CONTINUED)


def _defaults_signature(continuer: Continuer, generate: Any, generation: GenerationConfig) -> Signature:
    def generate_by_defaults(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        ids, lengths = continuer.tokenize(inputs["prompt"])
        ones = {name: tf.ones_like(lengths, dtype) for name, dtype in SETTINGS.items()}
        return generate(ids, lengths, Settings(**{name: getattr(generation, name) * ones[name] for name in ones}))

    return build_signature("defaults", generate_by_defaults, inputs=[PROMPT], outputs=CONTINUED)


def _ids_signature(generate: Any, generation: GenerationConfig, max_length: int) -> Signature:
    def generate_ids(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return generate(inputs["prompt_ids"], inputs["prompt_lengths"], request_settings(inputs, generation))

    ids = Field(name="prompt_ids", dtype="int32", shape=(None, max_length), warmup=(1,), hostile=(1, -1, 2**31 - 1))
    lengths = Field(name="prompt_lengths", dtype="int32", shape=(None,), warmup=(2,), hostile=(2, 0, -1, 2**31 - 1))
    inputs = [ids, lengths, *setting_fields(max_length)]
    return build_signature("generate_ids", generate_ids, inputs=inputs, outputs=CONTINUED)


def _until_signature(
    continuer: Continuer, weights: ServedWeights, generation: GenerationConfig, max_length: int
) -> Signature:
    def generate_until(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        prompts = continuer.tokenize(inputs["prompt"])
        generate = weights.restoring(continuer.generate_until)
        return generate(*prompts, request_settings(inputs, generation), inputs["stop"])

    inputs = [PROMPT, STOP, *setting_fields(max_length)]
    return build_signature("generate_until", generate_until, inputs=inputs, outputs=CONTINUED)


def _pair_signature(
    name: str,
    body: Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]],
    second: Field,
    *,
    outputs: list[Field],
) -> Signature:
    return build_signature(
        name, lambda inputs: body(inputs["prompt"], inputs[second.name]), inputs=[PROMPT, second], outputs=outputs
    )
