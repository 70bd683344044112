"""Loads an exported model into this process."""

import os
from typing import Any

import tensorflow as tf
import tensorflow_text  # noqa: F401  registers the ops of the tokenizers

from aigc_tf.data.tokenizers.sentence_piece import without_notice
from aigc_tf.errors import RunError


def load_exported(folder: str | os.PathLike[str]) -> Any:
    """Loads a SavedModel. Keep a reference to the result: it owns the variables of its functions.

    Raises:
        RunError: If it cannot be loaded.
    """
    try:
        with without_notice():
            return tf.saved_model.load(os.fspath(folder))
    except (OSError, ValueError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise RunError(f"The exported model {os.fspath(folder)} cannot be loaded: {reason}") from error
