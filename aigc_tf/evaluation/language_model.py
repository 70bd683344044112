"""How good a language model is: loss, perplexity and bits per byte over the whole of a text.

Every token of a split is a target once, with the tokens before it in its window as context, the end-of-text token of
each document among them. Bits per byte divide by the bytes of the raw UTF-8 text, so that models with different
vocabularies compare.
"""

import math
from typing import Any

import numpy as np

from aigc_tf.errors import InputError, suggest

DIRECTIONS = {"loss": -1, "perplexity": -1, "bits_per_byte": -1, "accuracy": 1}
"""Metrics that can name the best checkpoint: 1 where more is better, -1 where less is. The first is the default."""


def language_model_metrics(
    losses: np.ndarray, correct: np.ndarray, counts: np.ndarray, *, utf8_bytes: int
) -> dict[str, Any]:
    """Returns the metrics of one split.

    Args:
        losses: `(N,)` float, summed cross-entropy in nats of the targets of each window.
        correct: `(N,)`, targets of each window that were the likeliest token.
        counts: `(N,)`, targets of each window.
        utf8_bytes: Bytes of the raw texts, without separators.
    Returns:
        `loss` (nats a token), `perplexity` (e to the loss; None where that is no finite number), `bits_per_byte`,
        `accuracy` (share of targets that were the likeliest token), `tokens` (targets) and `utf8_bytes`.
    """
    total, tokens = float(np.sum(losses, dtype=np.float64)), int(np.sum(counts, dtype=np.int64))
    metrics: dict[str, Any] = {"loss": None, "perplexity": None, "bits_per_byte": None, "accuracy": None}
    if math.isfinite(total) and tokens:
        loss = total / tokens
        metrics["loss"] = loss
        metrics["perplexity"] = math.exp(loss) if loss < 700 else None
        metrics["bits_per_byte"] = total / math.log(2) / utf8_bytes if utf8_bytes else None
        metrics["accuracy"] = float(np.sum(correct, dtype=np.int64)) / tokens
    return metrics | {"tokens": tokens, "utf8_bytes": utf8_bytes}


def best_metric(name: str = "auto") -> tuple[str, int]:
    """Returns the metric that names the best checkpoint, and +1 or -1: `sign * value` is what to maximise.

    Args:
        name: A metric, or `auto` for the loss. A leading minus (`-loss`) is allowed where lower is better.

    Raises:
        InputError: If there is no such metric.
    """
    key = "loss" if name == "auto" else name
    if DIRECTIONS.get(key[1:]) == -1 and key.startswith("-"):
        key = key[1:]
    if key not in DIRECTIONS:
        raise InputError(
            f"evaluation.best_metric is {name!r}, which is no metric of a generator."
            f"{suggest(name, ['auto', *DIRECTIONS])}"
        )
    return key, DIRECTIONS[key]
