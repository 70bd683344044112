"""What the label column says: cells to codes, one class, several labels or a number, and which cells are broken.

Codes are provisional: labels that the config does not name get one when they are first seen. When all is read,
`positions` tells each code's place among the sorted names, which is what a model's output number means.
"""

import json
import math
from decimal import Decimal

import numpy as np

from aigc_tf.config import DataConfig
from aigc_tf.errors import InputError, suggest

MAX_FOUND_LABELS = 1000
"""More different labels than this, and the column is a number or a text rather than a class."""

Label = int | float | tuple[int, ...]


class BrokenLabelError(ValueError):
    """A cell that is no label. Arguments: the reason, under which it is counted, and what the cell holds."""


class LabelEncoder:
    """Turns label cells into codes or numbers.

    >>> encoder = LabelEncoder(DataConfig(label_names=("no", "yes")))
    >>> encoder.encode("yes"), encoder.names
    (1, ('no', 'yes'))
    """

    def __init__(self, data: DataConfig) -> None:
        """Takes the label fields of the config.

        Raises:
            InputError: If a label name begins or ends with white space, which cells are stripped of.
        """
        self._data = data
        self._codes: dict[str, int] = {name: code for code, name in enumerate(data.label_names)}
        for name in data.label_names:
            if name != name.strip() or not name:
                raise InputError(
                    f"data.label_names has {name!r}; a name is not empty, nor has it white space at its ends."
                )
        self._cuts = tuple(_decimal(cut) for cut in data.label_thresholds)
        self._margin = _decimal(data.label_margin)

    @property
    def names(self) -> tuple[str, ...]:
        """The label of each code; those of the config, or those found so far."""
        return tuple(self._codes)

    def positions(self) -> np.ndarray:
        """Returns `(C,)` int64: the place of each code's label among the sorted labels."""
        order = sorted(range(len(self._codes)), key=self.names.__getitem__)
        positions = np.empty(len(order), np.int64)
        positions[order] = np.arange(len(order))
        return positions

    def encode(self, cell: str | tuple[str, ...]) -> Label | None:
        """Returns the code, the codes in ascending order (multi_label) or the number (regression) of a cell.

        White space at the ends of a label is not part of it.

        Args:
            cell: As `Record.label`.

        Returns:
            None for a number within `data.label_margin` of a threshold: the row is left out.

        Raises:
            BrokenLabelError: If the cell is no label.
            InputError: If the labels found are too many to be classes.
        """
        if self._data.problem_type == "multi_label":
            return tuple(sorted({self._code(label) for label in self._several(cell)}))
        if isinstance(cell, tuple):
            if len(cell) != 1:
                raise BrokenLabelError(f"{len(cell)} labels in one row, where 1 fits", ", ".join(cell)[:80])
            cell = cell[0]
        if self._data.problem_type == "regression":
            return _number(cell)
        return self._range_of(cell) if self._cuts else self._code(cell)

    def _range_of(self, cell: str) -> int | None:
        """Returns the class of a number. Decimals, so that 0.2 is as far from 0.3 as 0.4 is."""
        _number(cell)  # what it refuses is broken
        value = Decimal(cell.strip())
        if self._margin and any(abs(value - cut) < self._margin for cut in self._cuts):
            return None
        return sum(value > cut for cut in self._cuts)

    def _code(self, label: str) -> int:
        label = label.strip()
        code = self._codes.get(label)
        if code is not None:
            return code
        if not label:
            raise BrokenLabelError("empty label", "")
        if self._data.label_names:
            raise BrokenLabelError("unknown label", f"{label[:80]!r}.{suggest(label, self._codes)}")
        if len(self._codes) == MAX_FOUND_LABELS:
            raise InputError(
                f"The column {self._data.label_column!r} has more than {MAX_FOUND_LABELS} different labels, "
                f"such as {label[:40]!r}. For numbers set data.problem_type to 'regression', or cut them into classes "
                "with data.label_thresholds; if they are classes, name them all in data.label_names."
            )
        return self._codes.setdefault(label, len(self._codes))

    def _several(self, cell: str | tuple[str, ...]) -> list[str]:
        if isinstance(cell, tuple):
            return list(cell)
        if cell.lstrip().startswith("["):
            return _json_list(cell)
        separator = self._data.label_separator
        labels = cell.split(separator) if separator else [cell]
        return [label for label in labels if label.strip()]  # "a|b|" ends in a separator, not in a nameless label


def _json_list(cell: str) -> list[str]:
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise BrokenLabelError("label list is not valid JSON", cell[:80]) from error
    if any(isinstance(value, dict | list) or value is None for value in values):
        raise BrokenLabelError("label list holds more than labels", cell[:80])
    return [str(value) for value in values]


def _number(cell: str) -> float:
    """Returns a finite number that float32 can hold."""
    try:
        value = float(cell) if "_" not in cell else math.nan  # Python reads 1_000 as a number; few others do
    except ValueError:
        raise BrokenLabelError("label is no number", f"{cell[:80]!r}") from None
    if not abs(value) <= float(np.finfo(np.float32).max):
        raise BrokenLabelError("label is no finite number", f"{cell[:80]!r}")
    return value


def _decimal(number: float) -> Decimal:
    return Decimal(repr(float(number)))  # 0.1, not the binary fraction next to it
