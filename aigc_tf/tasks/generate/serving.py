"""How the task `generate` is served: its export."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from aigc_tf.config import ExperimentConfig
from aigc_tf.data.prepared.facts import DataFacts
from aigc_tf.data.prepared.prepared import PreparedDataset
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.models.generators import generator
from aigc_tf.serving.publishing.generator_servable import generator_servable
from aigc_tf.serving.publishing.servable import Servable
from aigc_tf.serving.publishing.weights_cost import Judge
from aigc_tf.tasks.generate.spec import TEXT
from aigc_tf.tasks.generate.training import evaluations_of
from aigc_tf.tasks.weights_cost import compare_weights
from aigc_tf.training.step import losses

_EXPORT_SAMPLES = 8
"""Beginnings of documents that an exported model must continue like the trained one, besides hostile texts."""
_EXPORT_PROMPT_TOKENS = 16


def generation_servable(
    model: keras.Model, config: ExperimentConfig, facts: DataFacts, *, prepared: PreparedDataset | None
) -> Servable:
    """Prepares a trained generator to be published. Beginnings of documents are tried on it if data are available."""
    tokenizer: Tokenizer = facts.encoder(TEXT)
    prompts: list[str] = []
    if prepared is not None:
        split = prepared.splits.get("test", prepared.splits["train"])
        rows = split.column(TEXT).rows(np.arange(min(_EXPORT_SAMPLES, split.num_examples)))
        prompts = [tokenizer.decode(row[:_EXPORT_PROMPT_TOKENS]) for row in rows]
    return generator_servable(
        model,
        tokenizer,
        max_length=config.data.max_length,
        generation=config.generation,
        dtype=config.export.dtype,
        long_prompt=config.export.long_prompt,
        weights=config.export.weights,
        judge=None if prepared is None else _judge(config, prepared, tokenizer),
        prompts=prompts,
    )


class _BitsPerByte:
    """Bits per byte of the rows it was given, not of the whole split."""

    def __init__(self) -> None:
        self._loss = self._bytes = 0.0

    def add(self, rows: dict[str, np.ndarray]) -> None:
        self._loss += float(np.sum(rows["losses"], dtype=np.float64))
        self._bytes += float(np.sum(rows["bytes"], dtype=np.float64))

    def result(self) -> dict[str, Any]:
        return {"bits_per_byte": self._loss / np.log(2) / self._bytes}


def _judge(config: ExperimentConfig, prepared: PreparedDataset, tokenizer: Tokenizer) -> Judge | None:
    """Returns the comparison of smaller weights by bits per byte of validation data; None without such data."""
    split = evaluations_of(config, prepared, tokenizer).get("validation")
    if split is None:
        return None
    num_bytes = tf.constant([len(piece) for piece in tokenizer.piece_bytes()], tf.float32)

    def observe(logits: tf.Tensor, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        weights = batch["weights"]
        return {
            "losses": tf.reduce_sum(losses.token_losses(batch["labels"], logits) * weights, axis=1),
            "bytes": tf.reduce_sum(tf.gather(num_bytes, batch["labels"]) * weights, axis=1),
        }

    def judge(full: keras.Model, small: keras.Model) -> dict[str, Any]:
        compared = compare_weights(
            (full, small),
            split,
            logits_of=lambda model, batch: model(generator.model_inputs(model, batch), training=False),
            observe=observe,
            accumulator=_BitsPerByte,
            metric="bits_per_byte",
        )
        return {"split": "validation", "metric": "bits_per_byte", **compared}

    return judge
