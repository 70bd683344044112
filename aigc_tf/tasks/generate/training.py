"""The task `generate`: documents, or prompts with their responses -> a language model that continues text."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from aigc_tf.config import ExperimentConfig
from aigc_tf.data.batching.batches import BatchSource
from aigc_tf.data.batching.order import POSITIONS, StepBatch
from aigc_tf.data.batching.packed_batches import PackedDocumentSource
from aigc_tf.data.batching.packed_order import PackedOrder
from aigc_tf.data.batching.windows import WindowOrder, WindowSource, check_size, num_targets, window_batches
from aigc_tf.data.prepared.prepared import PreparedDataset
from aigc_tf.data.sources.samples import resolve_sample
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.errors import InputError
from aigc_tf.evaluation import language_model
from aigc_tf.evaluation.best_metric import best_metric
from aigc_tf.models.adapters.adapters import add_adapter
from aigc_tf.models.blocks import repeated_blocks
from aigc_tf.models.generators import generator
from aigc_tf.models.packed import check_packed
from aigc_tf.serving.local.text_generator import TextGenerator
from aigc_tf.tasks.door import check_sizes, check_tokenizer, policy_of, refusals
from aigc_tf.tasks.generate.spec import SPEC, TEXT
from aigc_tf.training.devices.strategy import Devices
from aigc_tf.training.step import losses
from aigc_tf.training.step.batch_losses import Losses
from aigc_tf.training.task import Evaluation, Shown, Task


def data_warnings(config: ExperimentConfig, prepared: PreparedDataset) -> list[str]:
    """Returns why a generator cannot learn from the data: no end of text, or no window."""
    return refusals(
        lambda: _end_of_text(prepared.facts.encoder(TEXT)),
        lambda: _check_windows(config, prepared),
    )


def generate(config: ExperimentConfig, prepared: PreparedDataset, devices: Devices) -> Task:
    """Builds a generator, trained on contiguous windows or packed rows of `data.max_length` tokens."""
    check_sizes(config, prepared, devices)
    check_tokenizer(config, prepared)
    tokenizer: Tokenizer = prepared.facts.encoder(TEXT)
    _check_windows(config, prepared)
    rows = _rows(config, prepared, tokenizer, name="train", batch_size=config.training.global_batch_size)
    model_config = dataclasses.replace(config.model, source=resolve_sample(config.model.source))

    def build_model() -> keras.Model:
        model = generator.build_generator(
            model_config,
            vocabulary_size=tokenizer.vocabulary_size,
            max_length=config.data.max_length,
            dtype=policy_of(config.training.devices.precision),
            seed=config.training.seed,
        )
        if config.data.packing:
            check_packed(model)
        return add_adapter(model, config.adapter, seed=config.training.seed)

    def token_losses(model: keras.Model, batch: dict[str, tf.Tensor]) -> Losses:
        logits = model(generator.model_inputs(model, batch), training=True)
        values = losses.token_losses(
            batch["labels"],
            logits,
            label_smoothing=config.training.loss.label_smoothing,
            z_loss=config.training.loss.z_loss,
        )
        return Losses(values, batch["weights"])

    return Task(
        build_model=build_model,
        losses=token_losses,
        order=rows.order,
        train=rows.source(rows.order.batch),
        evaluations=evaluations_of(config, prepared, tokenizer),
        best_metric=best_metric(SPEC.metrics(config), config.evaluation.best_metric),
        data_sha256=prepared.sha256,
        judged_weights=config.evaluation.weights,
        blocks=repeated_blocks,
        samples=_sampler(config, tokenizer),
    )


def _check_windows(config: ExperimentConfig, prepared: PreparedDataset) -> None:
    if not config.data.packing:
        check_size(prepared.splits["train"].column(TEXT), config.data.max_length)


def _end_of_text(tokenizer: Tokenizer) -> int:
    if tokenizer.end_of_text_id is None:
        raise InputError(
            f"The tokenizer of the data is of kind {tokenizer.kind!r}, which has no end of text; for a generator set "
            "tokenizer.source to 'train', a SentencePiece model, or GPT-2's vocabulary."
        )
    return tokenizer.end_of_text_id


def _observe(model: keras.Model, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Sums over each row, in float32 whatever the training dtype."""
    with generator.computing_in(model, "float32"):
        logits = model(generator.model_inputs(model, batch), training=False)
    correct = tf.cast(tf.argmax(logits, axis=-1, output_type=tf.int32) == batch["labels"], tf.float32)
    weights = batch["weights"]
    return {
        "losses": tf.reduce_sum(losses.token_losses(batch["labels"], logits) * weights, axis=1),
        "correct": tf.reduce_sum(correct * weights, axis=1),
        "weights": tf.reduce_sum(weights, axis=1),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rows:
    """A split as rows of `data.max_length` tokens."""

    order: WindowOrder | PackedOrder
    one_pass: Callable[[], list[StepBatch]]
    """The batches of one pass over all rows."""
    source: Callable[[Callable[[int], StepBatch]], BatchSource]
    """Makes the source of batches from an order, a function from step to global batch."""


def _rows(
    config: ExperimentConfig, prepared: PreparedDataset, tokenizer: Tokenizer, *, name: str, batch_size: int
) -> _Rows:
    split, length, seed = prepared.splits[name], config.data.max_length, config.training.seed
    shared: dict[str, Any] = {
        "end_id": _end_of_text(tokenizer),
        "start_id": tokenizer.start_of_text_id,
        "length": length,
        "global_batch_size": batch_size,
    }
    if config.data.packing:
        lengths = split.sizes + 1  # the end of text
        packed = PackedOrder(lengths, length=length, seed=seed, global_batch_size=batch_size)
        shared |= {"texts": prepared.schema.text_names, "num_segments": packed.num_segments}
        source = functools.partial(PackedDocumentSource, split, **shared)
        return _Rows(order=packed, one_pass=packed.one_pass, source=source)
    documents = split.column(TEXT)
    targets = num_targets(documents)
    return _Rows(
        order=WindowOrder(targets, length=length, seed=seed, global_batch_size=batch_size),
        one_pass=lambda: window_batches(targets, length=length, batch_size=batch_size),
        source=functools.partial(WindowSource, documents, **shared),
    )


def evaluations_of(config: ExperimentConfig, prepared: PreparedDataset, tokenizer: Tokenizer) -> dict[str, Evaluation]:
    evaluations = {}
    for name in ("validation", "test"):
        split = prepared.splits.get(name)
        if split is None or not split.num_examples:
            continue
        rows = _rows(config, prepared, tokenizer, name=name, batch_size=config.evaluation.batch_size)
        batches = rows.one_pass()
        evaluations[name] = Evaluation(
            source=rows.source(batches.__getitem__),
            num_batches=len(batches),
            observe=_observe,
            accumulator=functools.partial(language_model.LanguageModel, utf8_bytes=prepared.learnt_utf8_bytes(name)),
            shape={POSITIONS: config.data.max_length},
        )
    return evaluations


def _sampler(config: ExperimentConfig, tokenizer: Tokenizer) -> Callable[[keras.Model], list[Shown]]:
    prompts = config.evaluation.sample_prompts
    generators: dict[int, TextGenerator] = {}  # one per model, so that its functions are traced once

    def samples(model: keras.Model) -> list[Shown]:
        if not prompts:
            return []
        if id(model) not in generators:
            generators[id(model)] = TextGenerator(model, tokenizer, max_length=config.data.max_length)
        answers = generators[id(model)].generate(prompts, settings=config.generation, batch_size=len(prompts))
        return [
            Shown(kind="text", value=answer.text, caption=prompt)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    return samples
