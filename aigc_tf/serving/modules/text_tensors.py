"""Texts as tensors for a signature."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

TextFunction = Callable[[Sequence[str | bytes], Sequence[str | bytes] | None], dict[str, np.ndarray]]
"""`call(texts, texts_b or None)` -> outputs of the text signature, each with one row per text."""


def to_bytes(texts: Sequence[str | bytes]) -> tf.Tensor:
    """Returns a `(B,)` string tensor; half a surrogate pair, which UTF-8 cannot encode, becomes `?`."""
    values = [text.encode("utf-8", "replace") if isinstance(text, str) else text for text in texts]
    return tf.constant(values, tf.string, shape=[len(values)])
