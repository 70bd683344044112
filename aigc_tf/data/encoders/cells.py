"""Shared by encoders of cells: broken cells, numbers, and the file of an encoder."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from aigc_tf import storage
from aigc_tf.errors import InputError

ENCODER_FILE = "encoder.json"

VALUE, CODE, CODES = "value", "code", "codes"
"""How an encoded cell is stored: a float32; an int32 code, whose meaning follows at the end; a set of codes."""

# Below it a number rounds to a finite float32. Not the largest float32: its shortest decimal is a little above it.
_FLOAT32_END = 2.0**128 - 2.0**103


class BrokenCellError(ValueError):
    """A cell that cannot be encoded. Arguments: the reason, under which it is counted, and the cell's content."""


def parse_number(cell: str, what: str) -> float:
    """Returns a finite number that float32 can hold.

    Args:
        cell: The cell's text.
        what: Name of the value, for the reason.
    Raises:
        BrokenCellError: If the cell is not such a number.
    """
    try:
        value = float(cell) if "_" not in cell else math.nan  # Python reads 1_000 as a number; few others do
    except ValueError:
        raise BrokenCellError(f"{what} is not a number", f"{cell[:80]!r}") from None
    if not abs(value) < _FLOAT32_END:
        raise BrokenCellError(f"{what} is not a finite number", f"{cell[:80]!r}")
    return value


def settings_sha256(settings: dict[str, Any]) -> str:
    """Returns the sha256 of an encoder's settings as canonical JSON."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def save_settings(folder: str | os.PathLike[str], settings: dict[str, Any]) -> None:
    """Writes an encoder that consists of settings only."""
    storage.make_folder(folder)
    storage.write_json(Path(folder) / ENCODER_FILE, settings | {"sha256": settings_sha256(settings)})


def load_settings(folder: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Reads what `save_settings` wrote.

    Raises:
        InputError: If it is missing, of another kind, or was changed.
    """
    path = Path(folder) / ENCODER_FILE
    if not path.is_file():
        raise InputError(f"{os.fspath(folder)} holds no encoder: {ENCODER_FILE} is missing; prepare the data again.")
    settings = storage.read_json(path)
    if not isinstance(settings, dict) or settings.get("kind") != kind:
        raise InputError(f"{path} does not describe an encoder of kind {kind!r}; prepare the data again.")
    stored = settings.pop("sha256", "")
    if settings_sha256(settings) != stored:
        raise InputError(f"{path} was changed since it was saved; prepare the data again.")
    return settings
