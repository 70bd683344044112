"""Publishes a trained generator as a SavedModel: prompt in, text out. How, says `serving.publishing`."""

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.config import ExportConfig, GenerationConfig
from aigc_tf.config.names import check_name
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.errors import InputError
from aigc_tf.models.adapters.adapters import adapter_of
from aigc_tf.models.generators.generator import clone_generator, describe_generator, merge_generator, model_inputs
from aigc_tf.models.generators.generator_formats import save_hugging_face, save_keras_preset
from aigc_tf.models.weights import weights_by_path, weights_sha256
from aigc_tf.serving.local.continuations import clean, pad_rows
from aigc_tf.serving.modules.continuer import Continuer, end_of_text
from aigc_tf.serving.modules.generator_signatures import GeneratorModule
from aigc_tf.serving.modules.quantization import Stored, store
from aigc_tf.serving.process.other_process import HOSTILE_TEXTS
from aigc_tf.serving.publishing.generator_parity import check_parity, timed_call
from aigc_tf.serving.publishing.publishing import (
    POLICIES,
    Comparison,
    Export,
    Publication,
    publish,
    write_adapter,
)
from aigc_tf.serving.publishing.weights_cost import Judge, measure_served

_FORMATS = {"keras_nlp": save_keras_preset, "hugging_face": save_hugging_face}
_COMPARED_TOKENS = 64
"""Of each prompt, in the comparison with the dtype of training."""


def export_generator(
    model: keras.Model,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    generation: GenerationConfig,
    directory: str | os.PathLike[str],
    name: str,
    dtype: str = "float32",
    long_prompt: str = "cut",
    target: str = ExportConfig.target,
    batch_sizes: tuple[int, ...] = ExportConfig.batch_sizes,
    weights: str = ExportConfig.weights,
    judge: Judge | None = None,
    prompts: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
) -> Export:
    """Exports a generator as the next version of a model, unless the newest version is the same already.

    Args:
        model: What `build_generator` returned, with the weights to publish, in the dtype it was trained in.
        tokenizer: The tokenizer of the prepared data.
        max_length: Positions of prompt and continuation together.
        generation: The settings of the signature `defaults`, and the stop strings of all.
        directory: Folder of exported models, local or `gs://`.
        name: Name of the model.
        dtype: What the exported model computes in: float32 or bfloat16.
        long_prompt: One of `config.LONG_PROMPTS`.
        target: Version of TensorFlow Serving that has to load it, one of config.SERVERS.
        batch_sizes: Rows of the requests that the server warms up with.
        weights: One of `config.STORED_WEIGHTS`.
        judge: Judges smaller weights on data.
        prompts: Of the data, to try the exported model on, besides hostile ones.
        source: Where the model comes from, for the manifest: config sha256, run folder, checkpoint, data set.
    Raises:
        InputError: If the name or a stop string does not fit, the model is not one of ours, or the tokenizer has no
            end of text.
        RunError: If the server would refuse the model, if it answers otherwise than the trained one, or the disk is
            full; then no version was added.
    """
    check_name(name)  # before the minutes that the rest takes
    if generation.num_beams > 1:
        raise InputError(
            f"generation.num_beams is {generation.num_beams}, but an exported model has no beam search; export it with "
            "--config.generation.num_beams=1."
        )
    Continuer(model, tokenizer, max_length=max_length, stop=generation.stop)  # refuses what cannot be served
    with tf.device("CPU:0"):  # see serving.other_process
        full = merge_generator(model, dtype=POLICIES[dtype])
        served = full if weights == "float32" else clone_generator(full, dtype=POLICIES[dtype])
    stored = None if weights == "float32" else store(served, weights)
    texts: list[str | bytes] = [clean(prompt) for prompt in prompts]
    texts += HOSTILE_TEXTS

    def measure(folder: Path, module: GeneratorModule) -> dict[str, Any]:
        with tf.device("CPU:0"):
            parity = check_parity(folder, module, prompts=texts, max_length=max_length, dtype=dtype)
            difference = _difference_to_training(model, served, tokenizer, texts, max_length=max_length)
        return {**dataclasses.asdict(parity), **difference}

    def build_module(network: keras.Model, stored: list[Stored] | None) -> GeneratorModule:
        return GeneratorModule(
            network, tokenizer, max_length=max_length, generation=generation, long_prompt=long_prompt, stored=stored
        )

    def compare(full_folder: Path, folder: Path) -> dict[str, Any]:
        call = timed_call(tokenizer, prompts=texts, max_length=max_length)
        measured = measure_served([full_folder, folder], call, count=lambda outputs: int(outputs["num_tokens"].sum()))
        cost = {"unit": "tokens", "float32": measured[0], weights: measured[1]}
        return cost if judge is None else {**cost, "judged": judge(full, served)}

    publication = Publication(
        settings={
            "task": "generate",
            "max_length": max_length,
            "generation": dataclasses.asdict(generation),
            "long_prompt": long_prompt,
            "tokenizer_kind": tokenizer.kind,
            "vocabulary_size": tokenizer.vocabulary_size,
            "end_of_text_id": end_of_text(tokenizer),
            "dtype": dtype,
            "weights": weights,
            "weights_sha256": weights_sha256(weights_by_path(served)),
            "tokenizer_sha256": tokenizer.sha256(),
        },
        architecture=describe_generator(served),
        num_parameters=int(served.count_params()),
        target=target,
        batch_sizes=batch_sizes,
        build_module=lambda: build_module(served, stored),
        save_assets=tokenizer.save,
        measure=measure,
        write_formats=lambda folder: [
            *_write_formats(full, tokenizer, folder, max_length=max_length),
            *write_adapter(model, folder),
        ],
        conclude=_conclude,
        comparison=Comparison(build_module=lambda: build_module(full, None), measure=compare) if stored else None,
    )
    return publish(publication, directory=directory, name=name, source=source)


def _conclude(parity: dict[str, Any]) -> str:
    return (
        f"in a new process it continues {parity['num_prompts']} prompts by the same {parity['num_tokens']} tokens, "
        f"{parity['tokens_per_second']:.0f} tokens per second on this CPU"
    )


def _difference_to_training(
    model: keras.Model, served: keras.Model, tokenizer: Tokenizer, texts: Sequence[str | bytes], *, max_length: int
) -> dict[str, Any]:
    """Says how far the logits are from those in the dtype of the training."""
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
    """Writes the other formats and returns the names of their folders; none has a place for a prefix."""
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
