"""The inputs and outputs of the signatures of an exported generator; `GeneratorModule` explains them."""

import dataclasses
from collections.abc import Sequence

from aigc_tf.serving.modules.continuer import NUM_ROW_STOPS, SETTINGS
from aigc_tf.serving.modules.fields import HOSTILE_TEXTS, WARMUP_TEXTS, Field


def lines_of(texts: Sequence[str | bytes]) -> tuple[bytes, ...]:
    """Returns, for each text, the three before it, one per line."""
    plain = [text.encode("utf-8", "replace") if isinstance(text, str) else text for text in texts]
    return tuple(b"\n".join(plain[(row - turn) % len(plain)] for turn in (1, 2, 3)) for row in range(len(plain)))


def _rows_field(name: str, dtype: str, *, tolerance: float = 0.0) -> Field:
    return Field(name=name, dtype=dtype, shape=(None,), tolerance=tolerance)


def _ragged_field(name: str, dtype: str, *, tolerance: float = 0.0) -> Field:
    return Field(name=name, dtype=dtype, shape=(None, None), tolerance=tolerance)


_TOLERANCE = 1e-4
"""Tolerance of a probability or of its logarithm."""
PROMPT = Field(name="prompt", dtype="string", shape=(None,), warmup=WARMUP_TEXTS, hostile=HOSTILE_TEXTS)
CONTINUATION = dataclasses.replace(PROMPT, name="continuation", hostile=(*HOSTILE_TEXTS[1:], HOSTILE_TEXTS[0]))
CHOICES = Field(name="choices", dtype="string", shape=(None,), warmup=(b"a\nb",), hostile=lines_of(HOSTILE_TEXTS))
STOP = Field(
    name="stop",
    dtype="string",
    shape=(None, NUM_ROW_STOPS),
    warmup=(b"",),
    hostile=(b"", (b"e", b"", b", ", "\ufffd")),
)
CONTINUED = [
    _rows_field("text", "string"),
    _rows_field("text_bytes", "string"),
    _ragged_field("token_ids", "int32"),
    _rows_field("num_tokens", "int32"),
    _rows_field("finish_reason", "string"),
    _rows_field("log_probability", "float32", tolerance=_TOLERANCE),
    _rows_field("prompt_cut", "int32"),
]
SCORES = [
    _rows_field("log_probability", "float32", tolerance=_TOLERANCE),
    _rows_field("num_tokens", "int32"),
    _ragged_field("token_ids", "int32"),
    _ragged_field("token_log_probabilities", "float32", tolerance=_TOLERANCE),
    _rows_field("prompt_cut", "int32"),
    _rows_field("continuation_cut", "int32"),
]
CHOSEN = [
    _rows_field("choice", "string"),
    _rows_field("choice_id", "int32"),
    _ragged_field("log_probabilities", "float32", tolerance=_TOLERANCE),
    _ragged_field("probabilities", "float32", tolerance=_TOLERANCE),
    _rows_field("prompt_cut", "int32"),
]
_NAN = float("nan")
# The lengths of these lists have no common factor, so that rows see many combinations. A negative number and NaN select
# the export's own setting.
_TRIED: dict[str, tuple[float, ...]] = {
    "temperature": (1.0, 0.7, 0.0, 1.3, _NAN),
    "top_k": (0, 5, 40, -1),
    "top_p": (1.0, 0.9, 0.95),
    "min_p": (0.0, 0.05, 0.0),
    "repetition_penalty": (1.0, 1.2, 1.0),
    "seed": tuple(range(7)),
}
_WARMED = {"max_new_tokens": 4, "seed": 0}
_OWN = -1
"""The value that selects the export's own setting."""
_TRIED_TOKENS = 16


def setting_fields(max_length: int) -> list[Field]:
    """Returns the fields of `SETTINGS`, for rows of `max_length` positions at most."""
    tried = {**_TRIED, "max_new_tokens": (min(_TRIED_TOKENS, max_length - 1),)}
    return [
        Field(name=name, dtype=dtype.name, shape=(None,), warmup=(_WARMED.get(name, _OWN),), hostile=tried[name])
        for name, dtype in SETTINGS.items()
    ]
