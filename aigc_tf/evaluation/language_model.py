"""Metrics of a language model: loss, perplexity and bits per byte over a whole split.

Every token of a split is a target once, including the end-of-text token of each document. Its context is the tokens
before it in its window. Bits per byte divide by the bytes of the raw UTF-8 text, so that models with different
vocabularies are comparable.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class LanguageModel:
    """Evaluates next-token predictions. `add` takes the rows of a batch, `result` returns the metrics of all so far.

    Args:
        utf8_bytes: Bytes of the raw texts of the split, without separators.
    """

    def __init__(self, *, utf8_bytes: int):
        self._utf8_bytes = utf8_bytes
        self._loss = 0.0
        self._correct = self._tokens = 0

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Adds the rows of windows.

        Args:
            rows: `(N,)` each: `losses`, float, the summed cross-entropy in nats of a window's targets; `correct`, the
                number of targets that were the likeliest token; `weights`, the number of targets.
        """
        # In float64, since a float32 total of millions of tokens would lose small losses.
        self._loss += float(np.sum(rows["losses"], dtype=np.float64))
        self._correct += int(np.sum(rows["correct"], dtype=np.int64))
        self._tokens += int(np.sum(rows["weights"], dtype=np.int64))

    def result(self) -> dict[str, Any]:
        """Returns the metrics.

        They are `loss` (nats a token), `perplexity` (e to the loss; None if that is not finite),
        `bits_per_byte`, `accuracy` (share of targets that were the likeliest token), `tokens` (targets) and
        `utf8_bytes`.
        """
        total, tokens, utf8_bytes = self._loss, self._tokens, self._utf8_bytes
        metrics: dict[str, Any] = {"loss": None, "perplexity": None, "bits_per_byte": None, "accuracy": None}
        if math.isfinite(total) and tokens:
            loss = total / tokens
            metrics["loss"] = loss
            metrics["perplexity"] = math.exp(loss) if loss < 700 else None
            metrics["bits_per_byte"] = total / math.log(2) / utf8_bytes if utf8_bytes else None
            metrics["accuracy"] = self._correct / tokens
        return metrics | {"tokens": tokens, "utf8_bytes": utf8_bytes}
