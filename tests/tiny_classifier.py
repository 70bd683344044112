"""A classifier of two small layers over the letters of the alphabet, for the tests of models and serving."""

import numpy as np

from aigc_tf.config import ModelConfig, TokenizerConfig
from aigc_tf.data.tokenizers.tokenizers import build_tokenizer
from aigc_tf.models.classifiers.classifier import build_classifier, model_inputs

LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
CONFIG = ModelConfig(num_layers=2, hidden_dim=32, num_heads=2, intermediate_dim=64)


def build_model(*, num_outputs=3, max_length=16, dtype="float32", seed=0, config=CONFIG):
    """A model with a head of weights around 1, so that its answers differ from text to text."""
    model = build_classifier(
        config,
        num_outputs=num_outputs,
        vocabulary_size=len(VOCABULARY),
        max_length=max_length,
        dtype=dtype,
        seed=seed,
    )
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        scale = 1.0 if weight.path.startswith("logits/") else 0.2
        if "norm" not in weight.path:
            weight.assign(rng.normal(0, scale, weight.shape).astype(np.float32))
    return model


def load_tokenizer(folder):
    """The project's tokenizer over `VOCABULARY`, by way of a vocabulary file in `folder`."""
    path = folder / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in VOCABULARY), encoding="utf-8")
    return build_tokenizer(TokenizerConfig(source=str(path), lowercase=True), "", lambda: [])


def write_tokenizer(folder):
    """Returns a folder as `Tokenizer.save` writes it."""
    load_tokenizer(folder).save(folder / "tokenizer")
    return folder / "tokenizer"


def make_batch(*, rows=4, length=12, seed=0):
    """Random ids of three lengths; the second half of each row is the second text of a pair."""
    ids = np.random.default_rng(seed).integers(5, len(VOCABULARY), (rows, length)).astype(np.int32)
    mask = (np.arange(length) < length - 3 * (np.arange(rows) % 3)[:, None]).astype(np.int32)
    segments = (np.arange(length) >= length // 2).astype(np.int32) * mask
    return {"token_ids": ids * mask, "segment_ids": segments, "padding_mask": mask}


def logits_of(model, batch):
    return np.asarray(model(model_inputs(model, batch), training=False))
