"""Numbers: a cell is one float32."""

import os
from typing import Any

import numpy as np

from aigc_tf.data.encoders.cells import (
    VALUE,
    BrokenCellError,
    load_settings,
    parse_number,
    save_settings,
    settings_sha256,
)


class NumberEncoder:
    """Turns cells into numbers.

    >>> NumberEncoder("x").encode(" 1.5 ")
    1.5
    """

    storage = VALUE

    def __init__(self, source: str) -> None:
        """Takes the name of the source's column, for the reasons of broken cells."""
        self._source = source

    def encode(self, cell: str | tuple[str, ...]) -> float:
        """Returns the number of a cell.

        Raises:
            BrokenCellError: If it is not a number that float32 can hold.
        """
        if isinstance(cell, tuple):
            raise BrokenCellError(f"{len(cell)} values in {self._source!r}, where 1 fits", ", ".join(cell)[:80])
        return parse_number(cell, repr(self._source))

    def decode(self, value: np.ndarray) -> str:
        """Returns the shortest decimal of a float32."""
        return str(np.float32(value))

    def describe(self) -> dict[str, Any]:
        """Returns nothing, since numbers need no settings."""
        return {}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the encoder into a local folder."""
        save_settings(folder, self._settings())

    def sha256(self) -> str:
        return settings_sha256(self._settings())

    def _settings(self) -> dict[str, Any]:
        return {"kind": "number", "source": self._source}


def load_numbers(folder: str | os.PathLike[str]) -> NumberEncoder:
    """Loads what `NumberEncoder.save` wrote."""
    return NumberEncoder(load_settings(folder, "number")["source"])
