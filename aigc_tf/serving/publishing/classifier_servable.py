"""A trained classifier, ready to be published as a SavedModel: text in, label out."""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import keras_nlp
import tensorflow as tf

from aigc_tf.config import ExportConfig
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.models.classifiers.classifier import clone_classifier, describe_classifier, merge_classifier, model_inputs
from aigc_tf.models.classifiers.classifier_formats import (
    build_word_piece,
    fits_keras_preset,
    save_hugging_face,
    save_keras_preset,
)
from aigc_tf.models.weights import weights_by_path, weights_sha256
from aigc_tf.serving.apis import SERVING_DEFAULT
from aigc_tf.serving.modules.classifier_signatures import ClassifierModule, ServingSpec, row_length, text_columns
from aigc_tf.serving.modules.fields import serialized_examples
from aigc_tf.serving.modules.quantization import store
from aigc_tf.serving.process.other_process import StandIn, bytes_array
from aigc_tf.serving.publishing.adapter_format import write_adapter
from aigc_tf.serving.publishing.classifier_reference import (
    ClassifierReference,
    Texts,
    all_texts,
    logits_difference,
    token_rows,
)
from aigc_tf.serving.publishing.servable import POLICIES, Comparison, Servable
from aigc_tf.serving.publishing.weights_cost import Judge, measure_served

_TIMED_ROWS = 8


def classifier_servable(
    model: keras.Model,
    tokenizer: Tokenizer,
    spec: ServingSpec,
    *,
    dtype: str = "float32",
    weights: str = ExportConfig.weights,
    judge: Judge | None = None,
    samples: Sequence[tuple[str, ...]] = (),
) -> Servable:
    """Prepares a classifier for `publishing.publish`.

    Args:
        model: The result of `build_classifier`, with the weights to publish, in its training dtype.
        tokenizer: The tokenizer of the prepared data.
        spec: Meaning of input and output.
        dtype: Dtype of the exported model's computation: float32 or bfloat16.
        weights: One of `config.STORED_WEIGHTS`.
        judge: Compares smaller weights with float32 weights on data.
        samples: Texts, or pairs of texts, from the data to try the exported model on, besides hostile ones.
    """
    with tf.device("CPU:0"):  # see serving.process.other_process
        full = merge_classifier(model, dtype=POLICIES[dtype])
        served = full if weights == "float32" else clone_classifier(full, dtype=POLICIES[dtype])
        stored = None if weights == "float32" else store(served, weights)

    def measure(process: StandIn, module: ClassifierModule) -> dict[str, Any]:
        texts = all_texts(samples, spec)
        batch = token_rows(texts, tokenizer, spec, length=row_length(served, spec))
        return {"num_texts": len(texts), **_difference_to_training(model, served, batch)}

    def save_assets(folder: Path) -> None:
        tokenizer.save(folder)
        labels = json.dumps(list(spec.label_names), ensure_ascii=False, indent=2) + "\n"
        (folder / "label_names.json").write_text(labels, encoding="utf-8")

    def compare(full_folder: Path, folder: Path) -> dict[str, Any]:
        texts = samples or [tuple(["A text."] * (1 + spec.is_pair))]
        inputs = _columns([texts[row % len(texts)] for row in range(_TIMED_ROWS)], spec)
        measured = measure_served(
            [full_folder, folder], SERVING_DEFAULT, inputs, count=lambda outputs: len(next(iter(outputs.values())))
        )
        cost = {"unit": "examples", "float32": measured[0], weights: measured[1]}
        return cost if judge is None else {**cost, "judged": judge(full, served)}

    return Servable(
        settings={
            **dataclasses.asdict(spec),
            "weights_sha256": weights_sha256(weights_by_path(served)),
            "tokenizer_sha256": tokenizer.sha256(),
        },
        architecture=describe_classifier(served),
        num_parameters=int(served.count_params()),
        dtype=dtype,
        weights=weights,
        build_module=lambda: ClassifierModule(served, tokenizer, spec, stored=stored),
        samples=_samples(samples, served, tokenizer, spec),
        reference=ClassifierReference(served, tokenizer, spec),
        measure=measure,
        save_assets=save_assets,
        write_formats=lambda folder: [*_write_formats(full, tokenizer, spec, folder), *write_adapter(model, folder)],
        conclude=_conclude,
        comparison=Comparison(build_module=lambda: ClassifierModule(full, tokenizer, spec), measure=compare)
        if stored
        else None,
    )


def _conclude(parity: dict[str, Any]) -> str:
    worst = max(parity["max_difference"], key=lambda name: parity["max_difference"][name])
    return (
        f"in a new process it differs by at most {parity['max_difference'][worst]:.1e} "
        f"on {parity['num_texts']} texts (bound {parity['tolerance'][worst]:.0e}), token ids identical"
    )


def _samples(
    samples: Sequence[tuple[str, ...]], served: keras.Model, tokenizer: Tokenizer, spec: ServingSpec
) -> dict[str, Sequence[Any]]:
    """Returns values for each input: texts, tf.Examples of texts, and rows of ids, including hostile ones."""
    texts = dict(zip(text_columns(spec), zip(*samples, strict=True), strict=False))
    full = token_rows(all_texts(samples, spec), tokenizer, spec, length=spec.max_length)
    examples = {"inputs": serialized_examples(texts)} if samples else {}
    return {**texts, **examples, **{name: list(rows) for name, rows in model_inputs(served, full).items()}}


def _columns(texts: Texts, spec: ServingSpec) -> dict[str, Any]:
    return dict(zip(text_columns(spec), map(bytes_array, zip(*texts, strict=True)), strict=True))


def _difference_to_training(model: keras.Model, served: keras.Model, batch: dict[str, Any]) -> dict[str, Any]:
    """Returns the difference between the logits and those in the training dtype."""
    policy = model.backbone.dtype_policy.name
    trained = clone_classifier(model, dtype=policy)
    return {
        "training_dtype": policy,
        "logits_difference_to_training_dtype": logits_difference(served, trained, batch),
    }


def _write_formats(served: keras.Model, tokenizer: Tokenizer, spec: ServingSpec, folder: Path) -> list[str]:
    """Writes the other formats and returns the names of their folders."""
    with tempfile.TemporaryDirectory(prefix="aigc_tf-tokenizer-") as tokenizer_folder:
        tokenizer.save(tokenizer_folder)
        if tokenizer.kind == "wordpiece":
            layer = build_word_piece(served, tokenizer_folder)
        else:
            layer = tokenizer.splitter.layer
        written = []
        if fits_keras_preset(served):
            written.append("keras_nlp")
            (folder / "keras_nlp").mkdir()
            save_keras_preset(
                served, folder / "keras_nlp", tokenizer=layer, max_length=spec.max_length, label_names=spec.label_names
            )
        if tokenizer.kind == "wordpiece" and isinstance(served.backbone, keras_nlp.models.BertBackbone):
            written.append("hugging_face")
            (folder / "hugging_face").mkdir()
            save_hugging_face(
                served,
                folder / "hugging_face",
                tokenizer_folder=tokenizer_folder,
                label_names=spec.label_names,
                problem_type=spec.problem_type,
                max_length=spec.max_length,
                truncation=spec.truncation,
            )
        return written
