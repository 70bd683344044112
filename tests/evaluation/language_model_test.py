"""Loss, perplexity and bits per byte of a language model, on hand-computed numbers."""

import math

import numpy as np
import pytest

from aigc_tf.evaluation.language_model import LanguageModel


def judged(losses, correct, counts, *, utf8_bytes, batches=1):
    """Metrics of windows that come in so many batches."""
    judge = LanguageModel(utf8_bytes=utf8_bytes)
    for parts in zip(*(np.array_split(column, batches) for column in (losses, correct, counts)), strict=True):
        judge.add(dict(zip(("losses", "correct", "weights"), parts, strict=True)))
    return judge.result()


def test_a_uniform_model_over_four_tokens_has_two_bits_a_token():
    metrics = judged(
        np.array([3 * math.log(4), math.log(4)]), np.array([2.0, 0.0]), np.array([3.0, 1.0]), utf8_bytes=16
    )
    assert metrics["loss"] == pytest.approx(math.log(4))
    assert metrics["perplexity"] == pytest.approx(4)
    assert metrics["bits_per_byte"] == pytest.approx(8 / 16)  # 4 tokens of 2 bits over 16 bytes
    assert metrics["accuracy"] == 0.5
    assert (metrics["tokens"], metrics["utf8_bytes"]) == (4, 16)


def test_what_is_no_number_is_undefined():
    metrics = judged(np.array([np.nan]), np.array([0.0]), np.array([1.0]), utf8_bytes=1)
    assert [metrics[name] for name in ("loss", "perplexity", "bits_per_byte", "accuracy")] == [None] * 4
    assert judged(np.array([1e4]), np.zeros(1), np.ones(1), utf8_bytes=1)["perplexity"] is None
    assert judged(np.array([1.0]), np.zeros(1), np.ones(1), utf8_bytes=0)["bits_per_byte"] is None


def test_many_float32_sums_add_up_exactly():
    """Sums of windows are float32; their total over 10 million tokens must not lose the small ones."""
    losses = np.full(100_000, 100.25, np.float32)
    for batches in (1, 7):
        metrics = judged(losses, np.zeros(100_000), np.full(100_000, 100.0), utf8_bytes=1, batches=batches)
        assert metrics["loss"] == 1.0025
