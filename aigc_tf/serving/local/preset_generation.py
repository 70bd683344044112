"""Text from a KerasNLP network, by KerasNLP's own generation.

It has fewer settings, and its draws depend on the other rows of a batch. So prompts are continued one by one, and a
prompt's text does not depend on other prompts here either.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.config import GenerationConfig
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.errors import InputError
from aigc_tf.generation.stopping import cut_at_stop
from aigc_tf.models.generators.generator import computing_in, keras_generate, model_inputs
from aigc_tf.serving.local.continuations import Continuation, clean, settings_of
from aigc_tf.serving.modules.continuer import end_of_text

_UNKNOWN = {"min_p": 0.0, "repetition_penalty": 1.0, "num_beams": 1}
"""Settings that KerasNLP lacks, and the values that switch them off."""


def continue_by_preset(
    model: keras.Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    settings: GenerationConfig,
    max_length: int,
    dtype: str,
) -> Iterator[Continuation]:
    """Yields a continuation for each prompt, in their order. Prompt i uses the seed `settings.seed + i`.

    If the network has a start token, it precedes the prompt. Stop strings are searched afterwards:
    the text is cut, `token_ids` and `log_probability` are not.

    Raises:
        InputError: If a setting does not fit, or KerasNLP does not have it.
    """
    settings_of(settings, 1)
    for name, off in _UNKNOWN.items():
        if getattr(settings, name) != off:
            raise InputError(
                f"generation.{name} is {getattr(settings, name)}, which KerasNLP's {type(model.causal_lm).__name__} "
                f"does not have; set it to {off}."
            )
    end_of_text(tokenizer)  # raises if there is none
    rows = tokenizer.encode([clean(prompt) for prompt in prompts])
    return (
        _continue(model, tokenizer, ids, settings=settings, seed=settings.seed + row, dtype=dtype, room=max_length)
        for row, ids in enumerate(rows)
    )


def _continue(
    model: keras.Model,
    tokenizer: Tokenizer,
    ids: np.ndarray,
    *,
    settings: GenerationConfig,
    seed: int,
    dtype: str,
    room: int,
) -> Continuation:
    end_id = end_of_text(tokenizer)
    start_id: Any = tokenizer.start_of_text_id
    begins = start_id != end_id or not len(ids)
    kept = ids[max(0, len(ids) - (room - 1 - begins)) :]
    prompt = np.insert(kept, 0, start_id).astype(np.int32) if begins else kept
    wanted = min(settings.max_new_tokens, room - len(prompt))
    new_ids = np.zeros(0, np.int32)
    if wanted > 0:
        with computing_in(model, dtype):
            found, lengths = keras_generate(
                model,
                prompt[np.newaxis],
                np.array([len(prompt)], np.int32),
                max_new_tokens=wanted,
                max_length=room,
                end_id=end_id,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                seed=seed % 2**31,  # Keras' seeds have 32 bits
            )
        new_ids = found[0, : lengths[0]]
    has_ended = len(new_ids) < wanted
    chosen = np.append(new_ids, end_id) if has_ended else new_ids
    text = tokenizer.decode(new_ids)
    cut = cut_at_stop(text.encode(), [stop.encode() for stop in settings.stop]).decode()
    return Continuation(
        text=cut,
        token_ids=tuple(new_ids.tolist()),
        finish_reason="stop" if cut != text else "end" if has_ended else "length",
        log_probability=_log_probability(model, prompt, chosen.astype(np.int32), dtype),
        prompt_cut=len(ids) - len(kept),
    )


def _log_probability(model: keras.Model, prompt: np.ndarray, chosen: np.ndarray, dtype: str) -> float:
    """Returns the natural logarithm of the probability of `chosen` after `prompt`, by one forward pass over both."""
    if not len(chosen):
        return 0.0
    ids = tf.constant(np.concatenate([prompt, chosen])[np.newaxis, :-1])
    with computing_in(model, dtype):
        logits = model(model_inputs(model, {"token_ids": ids}), training=False)[0, len(prompt) - 1 :]
    return float(tf.reduce_sum(tf.gather(tf.nn.log_softmax(logits), chosen, batch_dims=1)))
