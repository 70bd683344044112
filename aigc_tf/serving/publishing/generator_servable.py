"""A trained generator, ready to be published as a SavedModel: prompt in, text out."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.config import ExportConfig, GenerationConfig
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.errors import InputError
from aigc_tf.models.adapters.adapters import adapter_of
from aigc_tf.models.generators.generator import clone_generator, describe_generator, merge_generator, model_inputs
from aigc_tf.models.generators.generator_formats import save_hugging_face, save_keras_preset
from aigc_tf.models.weights import weights_by_path, weights_sha256
from aigc_tf.serving.apis import SERVING_DEFAULT
from aigc_tf.serving.local.continuations import clean, pad_rows
from aigc_tf.serving.modules.continuer import Continuer, end_of_text
from aigc_tf.serving.modules.fields import HOSTILE_TEXTS
from aigc_tf.serving.modules.generator_fields import lines_of
from aigc_tf.serving.modules.generator_signatures import GeneratorModule
from aigc_tf.serving.modules.quantization import Stored, store
from aigc_tf.serving.process.other_process import StandIn
from aigc_tf.serving.publishing.adapter_format import write_adapter
from aigc_tf.serving.publishing.generator_trial import drawn_inputs, try_generator
from aigc_tf.serving.publishing.servable import POLICIES, Comparison, Servable
from aigc_tf.serving.publishing.weights_cost import Judge, measure_served

_FORMATS = {"keras_nlp": save_keras_preset, "hugging_face": save_hugging_face}
_COMPARED_TOKENS = 64
"""Tokens of each prompt in the comparison with the training dtype."""


def generator_servable(
    model: keras.Model,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    generation: GenerationConfig,
    dtype: str = "float32",
    long_prompt: str = "cut",
    weights: str = ExportConfig.weights,
    judge: Judge | None = None,
    prompts: Sequence[str] = (),
) -> Servable:
    """Prepares a generator for `publishing.publish`.

    Args:
        model: The result of `build_generator`, with the weights to publish, in its training dtype.
        tokenizer: The tokenizer of the prepared data.
        max_length: Positions of prompt and continuation together.
        generation: The settings of the signature `defaults`, and the stop strings of all signatures.
        dtype: Dtype of the exported model's computation: float32 or bfloat16.
        long_prompt: One of `config.LONG_PROMPTS`.
        weights: One of `config.STORED_WEIGHTS`.
        judge: Compares smaller weights with float32 weights on data.
        prompts: Prompts from the data to try the exported model on, besides hostile ones.
    Raises:
        InputError: If a stop string does not fit, the model is KerasNLP's, or the tokenizer has no end of text.
    """
    if generation.num_beams > 1:
        raise InputError(
            f"generation.num_beams is {generation.num_beams}, but an exported model has no beam search; export it with "
            "--config.generation.num_beams=1."
        )
    Continuer(model, tokenizer, max_length=max_length, stop=generation.stop)  # refuses what cannot be served
    with tf.device("CPU:0"):  # see serving.process.other_process
        full = merge_generator(model, dtype=POLICIES[dtype])
        served = full if weights == "float32" else clone_generator(full, dtype=POLICIES[dtype])
        stored = None if weights == "float32" else store(served, weights)
    plain = [clean(prompt) for prompt in prompts]
    texts: list[str | bytes] = [*plain, *HOSTILE_TEXTS]

    def measure(process: StandIn, module: GeneratorModule) -> dict[str, Any]:
        trial = try_generator(process, module, prompts=texts, max_length=max_length, dtype=dtype)
        difference = _difference_to_training(model, served, tokenizer, texts, max_length=max_length)
        return {**dataclasses.asdict(trial), **difference}

    def build_module(network: keras.Model, stored: list[Stored] | None) -> GeneratorModule:
        return GeneratorModule(
            network, tokenizer, max_length=max_length, generation=generation, long_prompt=long_prompt, stored=stored
        )

    def compare(full_folder: Path, folder: Path) -> dict[str, Any]:
        inputs = drawn_inputs(build_module(full, None), texts, max_length=max_length)
        measured = measure_served(
            [full_folder, folder], SERVING_DEFAULT, inputs, count=lambda outputs: int(outputs["num_tokens"].sum())
        )
        cost = {"unit": "tokens", "float32": measured[0], weights: measured[1]}
        return cost if judge is None else {**cost, "judged": judge(full, served)}

    return Servable(
        settings={
            "max_length": max_length,
            "generation": dataclasses.asdict(generation),
            "long_prompt": long_prompt,
            "tokenizer_kind": tokenizer.kind,
            "vocabulary_size": tokenizer.vocabulary_size,
            "end_of_text_id": end_of_text(tokenizer),
            "weights_sha256": weights_sha256(weights_by_path(served)),
            "tokenizer_sha256": tokenizer.sha256(),
        },
        architecture=describe_generator(served),
        num_parameters=int(served.count_params()),
        dtype=dtype,
        weights=weights,
        build_module=lambda: build_module(served, stored),
        samples=_samples(plain, tokenizer, max_length=max_length),
        measure=measure,
        save_assets=tokenizer.save,
        write_formats=lambda folder: [
            *_write_formats(full, tokenizer, folder, max_length=max_length),
            *write_adapter(model, folder),
        ],
        conclude=_conclude,
        comparison=Comparison(build_module=lambda: build_module(full, None), measure=compare) if stored else None,
    )


def _conclude(parity: dict[str, Any]) -> str:
    return (
        f"in a new process it continues {parity['num_prompts']} prompts by the same tokens, "
        f"{parity['tokens_per_second']:.0f} tokens per second on this CPU"
    )


def _samples(prompts: Sequence[str], tokenizer: Tokenizer, *, max_length: int) -> dict[str, Sequence[Any]]:
    """Returns values for each input; other prompts serve as a prompt's continuation and choices."""
    words = [text if isinstance(text, str) else text.decode("utf-8", "replace") for text in [*prompts, *HOSTILE_TEXTS]]
    ids, lengths = pad_rows([row[:max_length] for row in tokenizer.encode(words)], width=max_length)
    return {
        "prompt": prompts,
        "continuation": [*prompts[1:], *prompts[:1]],
        "choices": lines_of(prompts),
        "prompt_ids": list(ids),
        "prompt_lengths": lengths.tolist(),
    }


def _difference_to_training(
    model: keras.Model, served: keras.Model, tokenizer: Tokenizer, texts: Sequence[str | bytes], *, max_length: int
) -> dict[str, Any]:
    """Returns the difference between the logits and those in the training dtype."""
    policy = model.dtype_policy.name
    trained = clone_generator(model, dtype=policy)
    words = [text if isinstance(text, str) else text.decode("utf-8", "replace") for text in texts]
    ids, lengths = pad_rows([row[: min(_COMPARED_TOKENS, max_length)] for row in tokenizer.encode(words)])
    is_real = np.arange(ids.shape[1]) < lengths[:, np.newaxis]
    batch = {"token_ids": tf.constant(ids)}
    logits = [np.asarray(one(model_inputs(one, batch), training=False))[is_real] for one in (served, trained)]
    return {
        "training_dtype": policy,
        "logits_difference_to_training_dtype": float(np.max(np.abs(logits[0] - logits[1]))),
    }


def _write_formats(served: keras.Model, tokenizer: Tokenizer, folder: Path, *, max_length: int) -> list[str]:
    """Writes the other formats and returns the names of their folders; none can hold a prefix adapter."""
    if adapter_of(served):
        return []
    with tempfile.TemporaryDirectory(prefix="aigc_tf-tokenizer-") as tokenizer_folder:
        tokenizer.save(tokenizer_folder)
        for name, save in _FORMATS.items():
            (folder / name).mkdir()
            save(
                served,
                folder / name,
                tokenizer_folder=tokenizer_folder,
                end_id=end_of_text(tokenizer),
                max_length=max_length,
            )
    return list(_FORMATS)
