"""The encoders: raw value -> array and back, one per column of a prepared data set.

An encoder has `encode`, `decode`, `describe`, `save` and `sha256`, and its kind in `ENCODERS` loads what `save` wrote.
One of cells also has `storage`: how its values are stored, one of those in `cells`.
This module needs no TensorFlow; an encoder's module is imported when one is loaded.

To add a kind: a module here, its entry in `ENCODERS`, a test.
"""

import dataclasses
import importlib
import os
from collections.abc import Callable
from typing import Any

from aigc_tf.config import DataConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderKind:
    """A kind of encoder, before one is loaded."""

    reads_text: bool
    """Whether its raw values are texts, unchanged; else they are cells: a class, a number, a list of them."""
    load: Callable[[str | os.PathLike[str]], Any]
    """Loads what `save` wrote; raises InputError if it is missing or was changed."""
    build: Callable[[DataConfig, str], Any] | None = None
    """`build(data, name of the source's column)`: an encoder of cells for a pass over the sources. None for a
    tokenizer, which is found or trained before the writing pass."""
    may_be_empty: Callable[[DataConfig], bool] = lambda data: False
    """Whether an empty cell has a meaning."""


def _module(name: str) -> Any:
    return importlib.import_module(f"aigc_tf.data.{name}")


ENCODERS: dict[str, EncoderKind] = {
    "tokenizer": EncoderKind(
        reads_text=True,
        load=lambda folder: _module("tokenizers.tokenizers").load_tokenizer(folder),
    ),
    "label": EncoderKind(
        reads_text=False,
        load=lambda folder: _module("encoders.labels").load_labels(folder),
        build=lambda data, source: _module("encoders.labels").LabelEncoder(data),
        may_be_empty=lambda data: data.problem_type == "multi_label",  # no label applies
    ),
    "number": EncoderKind(
        reads_text=False,
        load=lambda folder: _module("encoders.numbers").load_numbers(folder),
        build=lambda data, source: _module("encoders.numbers").NumberEncoder(source),
    ),
}
