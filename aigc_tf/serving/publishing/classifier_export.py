"""Publishes a trained classifier as a SavedModel: text in, label out. How, says `serving.publishing`."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_nlp
import tensorflow as tf

from aigc_tf.config import ExportConfig
from aigc_tf.config.names import check_name
from aigc_tf.data.tokenizers.tokenizers import Tokenizer
from aigc_tf.models.classifiers.classifier import clone_classifier, describe_classifier, merge_classifier
from aigc_tf.models.classifiers.classifier_formats import (
    build_word_piece,
    fits_keras_preset,
    save_hugging_face,
    save_keras_preset,
)
from aigc_tf.models.weights import weights_by_path, weights_sha256
from aigc_tf.serving.modules.classifier_signatures import ClassifierModule, ServingSpec, row_length
from aigc_tf.serving.modules.quantization import store
from aigc_tf.serving.process.other_process import HOSTILE_TEXTS
from aigc_tf.serving.publishing.classifier_parity import Parity, check_parity, logits_difference, timed_call, token_rows
from aigc_tf.serving.publishing.publishing import (
    POLICIES,
    Comparison,
    Export,
    Publication,
    publish,
    write_adapter,
)
from aigc_tf.serving.publishing.weights_cost import Judge, measure_served


def export_classifier(
    model: keras.Model,
    tokenizer: Tokenizer,
    spec: ServingSpec,
    *,
    directory: str | os.PathLike[str],
    name: str,
    dtype: str = "float32",
    target: str = ExportConfig.target,
    batch_sizes: tuple[int, ...] = ExportConfig.batch_sizes,
    weights: str = ExportConfig.weights,
    judge: Judge | None = None,
    samples: Sequence[tuple[str, ...]] = (),
    source: Mapping[str, Any] | None = None,
) -> Export:
    """Exports a classifier as the next version of a model, unless the newest version is the same already.

    Args:
        model: What `build_classifier` returned, with the weights to publish, in the dtype it was trained in.
        tokenizer: The tokenizer of the prepared data.
        spec: Meaning of input and output.
        directory: Folder of exported models, local or `gs://`.
        name: Name of the model.
        dtype: What the exported model computes in: float32 or bfloat16.
        target: Version of TensorFlow Serving that has to load it, one of config.SERVERS.
        batch_sizes: Rows of the requests that the server warms up with.
        weights: One of `config.STORED_WEIGHTS`.
        judge: Judges smaller weights on data.
        samples: Texts, or pairs of texts, from the data to try the exported model on, besides hostile ones.
        source: Where the model comes from, for the manifest: config sha256, run folder, checkpoint, data set.
    Raises:
        InputError: If the name does not fit.
        RunError: If the server would refuse the model, if it answers otherwise than the trained one, or the disk is
            full; then no version was added.
    """
    check_name(name)  # before the minutes that the rest takes
    with tf.device("CPU:0"):  # see serving.other_process
        full = merge_classifier(model, dtype=POLICIES[dtype])
        served = full if weights == "float32" else clone_classifier(full, dtype=POLICIES[dtype])
    stored = None if weights == "float32" else store(served, weights)
    hashes = {"weights_sha256": weights_sha256(weights_by_path(served)), "tokenizer_sha256": tokenizer.sha256()}

    def save_assets(folder: Path) -> None:
        tokenizer.save(folder)
        labels = json.dumps(list(spec.label_names), ensure_ascii=False, indent=2) + "\n"
        (folder / "label_names.json").write_text(labels, encoding="utf-8")

    def compare(full_folder: Path, folder: Path) -> dict[str, Any]:
        call = timed_call(samples or [tuple(["A text."] * (1 + spec.is_pair))])
        measured = measure_served([full_folder, folder], call, count=lambda outputs: len(next(iter(outputs.values()))))
        cost = {"unit": "examples", "float32": measured[0], weights: measured[1]}
        return cost if judge is None else {**cost, "judged": judge(full, served)}

    publication = Publication(
        settings={"task": "classify", **dataclasses.asdict(spec), "dtype": dtype, "weights": weights, **hashes},
        architecture=describe_classifier(served),
        num_parameters=int(served.count_params()),
        target=target,
        batch_sizes=batch_sizes,
        build_module=lambda: ClassifierModule(served, tokenizer, spec, stored=stored),
        save_assets=save_assets,
        measure=lambda folder, module: _measure(folder, model, served, tokenizer, spec, samples=samples, dtype=dtype),
        write_formats=lambda folder: [
            *_write_formats(full, tokenizer, spec, folder),
            *write_adapter(model, folder),
        ],
        conclude=_conclude,
        comparison=Comparison(build_module=lambda: ClassifierModule(full, tokenizer, spec), measure=compare)
        if stored
        else None,
    )
    return publish(publication, directory=directory, name=name, source=source)


def _conclude(parity: dict[str, Any]) -> str:
    worst = max(parity["max_difference"].values())
    return (
        f"in a new process it differs by at most {worst:.1e} "
        f"on {parity['num_texts']} texts (bound {parity['bound']:.0e}), token ids identical"
    )


def _measure(
    folder: Path,
    model: keras.Model,
    served: keras.Model,
    tokenizer: Tokenizer,
    spec: ServingSpec,
    *,
    samples: Sequence[tuple[str, ...]],
    dtype: str,
) -> dict[str, Any]:
    texts: list[tuple[str | bytes, ...]] = [tuple(sample) for sample in samples]
    if spec.is_pair:
        texts += list(zip(HOSTILE_TEXTS, reversed(HOSTILE_TEXTS), strict=True))
    else:
        texts += [(text,) for text in HOSTILE_TEXTS]
    with tf.device("CPU:0"):
        parity: Parity = check_parity(folder, served, tokenizer, spec, texts=texts, dtype=dtype)
        batch = token_rows(texts, tokenizer, spec, length=row_length(served, spec))
        trained = clone_classifier(model, dtype=model.backbone.dtype_policy.name)
        difference = logits_difference(served, trained, batch)
    return {
        **dataclasses.asdict(parity),
        "training_dtype": model.backbone.dtype_policy.name,
        "logits_difference_to_training_dtype": difference,
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
