"""Law: the exported model, in another process with XLA off, answers as the one in this process; same token ids."""

import numpy as np
import pytest
import tensorflow as tf

from aigc_tf.config import ModelConfig
from aigc_tf.data.sources.samples import fetch_sample
from aigc_tf.models.classifiers.classifier import build_classifier
from aigc_tf.serving.local.predictor import Predictor
from aigc_tf.serving.modules.classifier_signatures import TOLERANCES, ServingSpec, answer
from aigc_tf.serving.publishing.classifier_reference import token_rows
from tests import tiny_classifier
from tests.exporting import export_classifier

BOUND = 1e-5
WORDS = ["ab", "zebra", "é", "quick brown fox", "x" * 40, ", . !", "word " * 30, "", "中文", "🙂 q"]
NAMES = ("x", "y", "z")
SPECS = {
    "one text, head": ServingSpec(
        label_names=NAMES, problem_type="single_label", is_pair=False, max_length=16, truncation="head"
    ),
    "pairs, several labels, head and tail": ServingSpec(
        label_names=NAMES, problem_type="multi_label", is_pair=True, max_length=16, truncation="head_tail"
    ),
    "a number, tail": ServingSpec(
        label_names=(), problem_type="regression", is_pair=False, max_length=16, truncation="tail"
    ),
}


def export(model, tokenizer, spec, directory, **options):
    samples = [(text,) for text in WORDS]
    if spec.is_pair:
        samples = list(zip(WORDS, reversed(WORDS), strict=True))
    return export_classifier(model, tokenizer, spec, directory=directory, name="law", samples=samples, **options)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("a number")) for name in SPECS]
)
def test_the_exported_model_answers_in_another_process_as_the_one_here(name, tmp_path):
    spec = SPECS[name]
    tokenizer = tiny_classifier.load_tokenizer(tmp_path)
    model = tiny_classifier.build_model(num_outputs=len(spec.label_names) or 1, seed=4)
    done = export(model, tokenizer, spec, tmp_path / "saved_models")
    parity = done.manifest["parity"]
    assert parity["answers"] == "identical"
    assert parity["xla"] == "off"
    assert parity["num_texts"] == len(WORDS) + 9
    assert 0 <= max(parity["max_difference"].values()) <= BOUND
    # And the model op by op, on NumPy's rows padded to the full length, answers as the exported one does in batches.
    texts_b = list(reversed(WORDS)) if spec.is_pair else None
    texts = [(text,) for text in WORDS] if texts_b is None else list(zip(WORDS, texts_b, strict=True))
    batch = token_rows(texts, tokenizer, spec, length=spec.max_length)
    here = answer(tf.constant(tiny_classifier.logits_of(model, batch)), spec)
    for index, there in enumerate(Predictor(done.path).predict(WORDS, texts_b, batch_size=3)):
        values = there["value"] if spec.problem_type == "regression" else list(there["probabilities"].values())
        expected = here["value" if spec.problem_type == "regression" else "probabilities"][index]
        np.testing.assert_allclose(values, expected, atol=BOUND, rtol=0)


def test_a_bfloat16_export_answers_as_the_bfloat16_model_here(tmp_path):
    spec = SPECS["one text, head"]
    model = tiny_classifier.build_model(dtype="mixed_bfloat16", seed=4)
    done = export(model, tiny_classifier.load_tokenizer(tmp_path), spec, tmp_path / "saved_models", dtype="bfloat16")
    parity = done.manifest["parity"]
    assert parity["max_difference"]["probabilities"] <= TOLERANCES["bfloat16"]
    assert parity["logits_difference_to_training_dtype"] == 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_minilm_answers_in_another_process_as_here(dtype, tmp_path):
    folder = fetch_sample("minilm")
    tokenizer = tiny_classifier.build_tokenizer(tiny_classifier.TokenizerConfig(source=str(folder)), "", lambda: [])
    spec = ServingSpec(
        label_names=("bad", "good"), problem_type="single_label", is_pair=False, max_length=128, truncation="head"
    )
    model = build_classifier(
        ModelConfig(source=str(folder)),
        num_outputs=2,
        vocabulary_size=tokenizer.vocabulary_size,
        max_length=128,
        dtype="mixed_bfloat16",
    )
    model.output_dense.kernel.assign(np.random.default_rng(0).normal(0, 0.3, (384, 2)))
    parity = export(model, tokenizer, spec, tmp_path, dtype=dtype).manifest["parity"]
    print(f"\n{dtype}: {parity}")
    assert parity["answers"] == "identical"
    assert max(parity["max_difference"].values()) <= TOLERANCES[dtype]
