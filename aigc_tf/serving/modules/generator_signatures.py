"""The signatures of an exported generator.

Shape letters: B rows, N new tokens.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from aigc_tf.config import GenerationConfig
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.generation.sampling import Settings
from aigc_tf.serving.modules.continuer import NUM_ROW_STOPS, SETTINGS, Continuer, request_settings
from aigc_tf.serving.modules.graph_functions import traced_once
from aigc_tf.serving.modules.quantization import ServedWeights, Stored
from aigc_tf.serving.modules.scoring import Scorer


class GeneratorModule(tf.Module):
    """A trained generator as functions of text and of token ids; holds its variables once and no Keras object.

    `serving_default` takes `prompt` (B,) string and `SETTINGS`; `defaults` takes `prompt` alone, and every row has the
    settings of `generation`, its seed too, so that an answer does not depend on the row's place in a batch.
    `generate_ids` takes `prompt_ids` (B, max_length) int32, padded on the right with any ids, `prompt_lengths` (B,)
    int32 and `SETTINGS`. The length is fixed since TF Serving's batching would pad rows with their first element; in
    the graph they are as long as the longest. `generate_until` takes those of `serving_default` and `stop`
    (B, NUM_ROW_STOPS) string, which end the row as those of `generation` do; an empty one is none. They all answer

        text             (B,) string   valid UTF-8, U+FFFD for bytes that are none
        text_bytes       (B,) string   the very bytes
        token_ids        (B, N) int32  filled up with the end of text; N is the longest row's
        num_tokens       (B,) int32
        finish_reason    (B,) string   a value of `FINISH_REASONS`, or `REFUSED`
        log_probability  (B,) float32  of the continuation under the model, its end included
        prompt_cut       (B,) int32    tokens that a prompt has too many

    `score` takes `prompt` and `continuation` (B,) strings and answers, without drawing anything,

        log_probability          (B,) float32    of the continuation's tokens after the prompt; NaN in a refused row
        num_tokens               (B,) int32      of the continuation
        token_ids                (B, N) int32    filled up with the end of text
        token_log_probabilities  (B, N) float32  filled up with 0
        prompt_cut               (B,) int32
        continuation_cut         (B,) int32      tokens that a continuation has too many

    `choose` takes `prompt` and `choices` (B,) strings, one choice a line, and answers

        choice             (B,) string     the likeliest, of several the first; empty where there is none
        choice_id          (B,) int32      its number among the row's lines that are not empty; -1 where there is none
        log_probabilities  (B, K) float32  of each choice after the prompt; minus infinity where there is none
        probabilities      (B, K) float32  the same, as shares of their sum; 0 where there is none
        prompt_cut         (B,) int32

    Args:
        model: One of ours, in the dtype to compute in.
        tokenizer: The tokenizer of the prepared data.
        stored: What `quantization.store` returned of the model; None to save its weights as they are.
        max_length: Positions of prompt and continuation together.
        generation: Settings of `defaults`; its stop strings are those of every signature.
        long_prompt: One of `config.LONG_PROMPTS`.
    Raises:
        InputError: If the model is not one of ours, the tokenizer has no end of text, or a stop string does not fit.
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
        self.weights = ServedWeights(model, stored)  # tracked: what the functions below read
        self.tokenizer = tokenizer
        generate = _shared(continuer, self.weights)
        self.generate_text = _text_function(continuer, generate, generation)
        self.generate_by_defaults = _defaults_function(continuer, generate, generation)
        self.generate_ids = _ids_function(generate, generation, max_length)
        self.generate_until = _until_function(continuer, self.weights, generation)
        scorer = Scorer(model, tokenizer, max_length=max_length, long_prompt=long_prompt)
        self.score = _pair_function(self.weights.restoring(scorer.score), "continuation")
        self.choose = _pair_function(self.weights.restoring(scorer.choose), "choices")

    def signatures(self) -> dict[str, Any]:
        """Returns the functions of the SavedModel under their names."""
        return {
            "serving_default": self.generate_text,
            "defaults": self.generate_by_defaults,
            "generate_ids": self.generate_ids,
            "generate_until": self.generate_until,
            "score": self.score,
            "choose": self.choose,
        }


Body = Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]
_PROMPT = tf.TensorSpec([None], tf.string, name="prompt")


def _setting_specs() -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec([None], dtype, name=name) for name, dtype in SETTINGS.items()}


def _shared(continuer: Continuer, weights: ServedWeights) -> Any:
    """Returns the loop as one function, of which a SavedModel holds one copy whatever calls it."""
    ids, lengths = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)
    settings = Settings(**_setting_specs())
    return traced_once(weights.restoring(continuer.generate), [ids, lengths, settings])


def _signature(body: Body, specs: Mapping[str, tf.TensorSpec]) -> Any:
    """Makes `body` a graph function of named inputs, which become keys of a request's JSON."""
    traced = traced_once(body, [dict(specs)])

    # The server does not look at shapes, and tensorflow-text's op brings it down by a text that is no vector.
    @tf.function(autograph=False, input_signature=[dict(specs)])
    def checked(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = {name: tf.ensure_shape(value, specs[name].shape) for name, value in inputs.items()}
        num_rows = tf.stack([tf.shape(value)[0] for value in inputs.values()])
        same = tf.debugging.assert_equal(num_rows, num_rows[0], f"{', '.join(inputs)} must have as many rows each.")
        with tf.control_dependencies([same]):
            return traced({name: tf.identity(value) for name, value in inputs.items()})

    return checked


def _text_function(continuer: Continuer, generate: Any, generation: GenerationConfig) -> Any:
    def generate_text(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return generate(*continuer.tokenize(inputs["prompt"]), request_settings(inputs, generation))

    return _signature(generate_text, {"prompt": _PROMPT, **_setting_specs()})


def _defaults_function(continuer: Continuer, generate: Any, generation: GenerationConfig) -> Any:
    def generate_by_defaults(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        ids, lengths = continuer.tokenize(inputs["prompt"])
        ones = {name: tf.ones_like(lengths, dtype) for name, dtype in SETTINGS.items()}
        return generate(ids, lengths, Settings(**{name: getattr(generation, name) * ones[name] for name in ones}))

    return _signature(generate_by_defaults, {"prompt": _PROMPT})


def _ids_function(generate: Any, generation: GenerationConfig, max_length: int) -> Any:
    def generate_ids(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return generate(inputs["prompt_ids"], inputs["prompt_lengths"], request_settings(inputs, generation))

    prompt = {
        "prompt_ids": tf.TensorSpec([None, max_length], tf.int32, name="prompt_ids"),
        "prompt_lengths": tf.TensorSpec([None], tf.int32, name="prompt_lengths"),
    }
    return _signature(generate_ids, {**prompt, **_setting_specs()})


def _until_function(continuer: Continuer, weights: ServedWeights, generation: GenerationConfig) -> Any:
    def generate_until(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        prompts = continuer.tokenize(inputs["prompt"])
        generate = weights.restoring(continuer.generate_until)
        return generate(*prompts, request_settings(inputs, generation), inputs["stop"])

    stop = tf.TensorSpec([None, NUM_ROW_STOPS], tf.string, name="stop")
    return _signature(generate_until, {"prompt": _PROMPT, "stop": stop, **_setting_specs()})


def _pair_function(body: Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]], second: str) -> Any:
    specs = {"prompt": _PROMPT, second: tf.TensorSpec([None], tf.string, name=second)}
    return _signature(lambda inputs: body(inputs["prompt"], inputs[second]), specs)
