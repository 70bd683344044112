"""Loss, perplexity and bits per byte of a language model, on hand-computed numbers."""

import math

import numpy as np
import pytest

from aigc_tf.evaluation.language_model import language_model_metrics


def test_a_uniform_model_over_four_tokens_has_two_bits_a_token():
    metrics = language_model_metrics(
        np.array([3 * math.log(4), math.log(4)]), np.array([2.0, 0.0]), np.array([3.0, 1.0]), utf8_bytes=16
    )
    assert metrics["loss"] == pytest.approx(math.log(4))
    assert metrics["perplexity"] == pytest.approx(4)
    assert metrics["bits_per_byte"] == pytest.approx(8 / 16)  # 4 tokens of 2 bits over 16 bytes
    assert metrics["accuracy"] == 0.5
    assert (metrics["tokens"], metrics["utf8_bytes"]) == (4, 16)


def test_what_is_no_number_is_undefined():
    metrics = language_model_metrics(np.array([np.nan]), np.array([0.0]), np.array([1.0]), utf8_bytes=1)
    assert [metrics[name] for name in ("loss", "perplexity", "bits_per_byte", "accuracy")] == [None] * 4
    assert language_model_metrics(np.array([1e4]), np.zeros(1), np.ones(1), utf8_bytes=1)["perplexity"] is None
    assert language_model_metrics(np.array([1.0]), np.zeros(1), np.ones(1), utf8_bytes=0)["bits_per_byte"] is None


def test_many_float32_sums_add_up_exactly():
    """Sums of windows are float32; their total over 10 million tokens must not lose the small ones."""
    losses = np.full(100_000, 100.25, np.float32)
    metrics = language_model_metrics(losses, np.zeros(100_000), np.full(100_000, 100.0), utf8_bytes=1)
    assert metrics["loss"] == 1.0025
