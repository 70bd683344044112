"""How good a language model is: loss, perplexity and bits per byte over the whole of a text.

Every token of a split is a target once, with the tokens before it in its window as context, the end-of-text token of
each document among them. Bits per byte divide by the bytes of the raw UTF-8 text, so that models with different
vocabularies compare.
"""

import math
from typing import Any

import numpy as np


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
