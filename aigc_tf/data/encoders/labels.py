"""The label column: cells to codes, for one class, several labels or a number; and which cells are broken.

Codes are provisional: a label that the config does not name gets one when it is first seen. After the whole pass,
`positions` gives each code's place among the sorted names, which is the number of the model's output.
"""

import json
import os
import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import numpy as np

from aigc_tf.config import DataConfig
from aigc_tf.data.encoders.cells import (
    CODE,
    CODES,
    VALUE,
    BrokenCellError,
    load_settings,
    parse_number,
    save_settings,
    settings_sha256,
)
from aigc_tf.errors import InputError, suggest

MAX_FOUND_LABELS = 1000
"""With more different labels than this, the column is probably a number or a text, not a class."""

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,4})?", re.ASCII | re.IGNORECASE)

# The config fields that decide how a cell is read.
_FIELDS = ("problem_type", "label_thresholds", "label_margin", "label_separator", "label_column")

Label = int | float | tuple[int, ...]


class LabelEncoder:
    """Turns label cells into codes or numbers.

    >>> encoder = LabelEncoder(DataConfig(label_names=("no", "yes")))
    >>> encoder.encode("yes"), encoder.names
    (1, ('no', 'yes'))
    """

    def __init__(self, data: DataConfig, *, ranges: tuple[str, ...] = ()) -> None:
        """Takes the label fields of the config.

        Args:
            data: The config's section.
            ranges: With thresholds, the name of each range, lowest first. Empty: those of `data.label_names`.
        Raises:
            InputError: If a label name begins or ends with white space, since cells are stripped of it.
        """
        self._data = data
        self._codes: dict[str, int] = {name: code for code, name in enumerate(data.label_names)}
        for name in data.label_names:
            if name != name.strip() or not name:
                raise InputError(
                    f"data.label_names has {name!r}; a name is not empty and has no white space at its ends."
                )
        self._ranges = ranges or data.label_names
        self._cuts = tuple(_decimal(cut) for cut in data.label_thresholds)
        self._margin = _decimal(data.label_margin)

    @property
    def problem_type(self) -> str:
        """One of config.PROBLEM_TYPES."""
        return self._data.problem_type

    @property
    def storage(self) -> str:
        """How a label is stored; see `cells`."""
        return {"single_label": CODE, "multi_label": CODES, "regression": VALUE}[self.problem_type]

    @property
    def names(self) -> tuple[str, ...]:
        """The label of each code: those of the config, or those found so far."""
        return tuple(self._codes)

    @property
    def ordered_names(self) -> tuple[str, ...]:
        """The labels in the order of a model's outputs: by number if all are numbers, else by their characters."""
        numbers = [_plain_number(name) for name in self.names]
        if None in numbers:
            return tuple(sorted(self.names))
        return tuple(name for _, name in sorted(zip(numbers, self.names, strict=True)))

    def positions(self) -> np.ndarray:
        """Returns `(C,)` int64: the place of each code's label in `ordered_names`."""
        order = [self._codes[name] for name in self.ordered_names]
        positions = np.empty(len(order), np.int64)
        positions[order] = np.arange(len(order))
        return positions

    def encode(self, cell: str | tuple[str, ...]) -> Label | None:
        """Returns the code, the codes in ascending order (multi_label) or the number (regression) of a cell.

        White space at the ends of a label is not part of it.

        Args:
            cell: As in `Record.cells`.

        Returns:
            None for a number within `data.label_margin` of a threshold: the row is left out.

        Raises:
            BrokenCellError: If the cell is not a label.
            InputError: If there are too many labels to be classes.
        """
        if self._data.problem_type == "multi_label":
            return tuple(sorted({self._code(label) for label in self._several(cell)}))
        if isinstance(cell, tuple):
            if len(cell) != 1:
                raise BrokenCellError(f"{len(cell)} labels in one row, where 1 fits", ", ".join(cell)[:80])
            cell = cell[0]
        if self._data.problem_type == "regression":
            return parse_number(cell, "label")
        return self._range_of(cell) if self._cuts else self._code(cell)

    def decode(self, value: np.ndarray) -> str:
        """Returns the label of a code, the labels of `(C,)` uint8, or a number, for people to read.

        Of a loaded encoder, whose codes are the places in `names`.
        """
        if self.problem_type == "single_label":
            return self.names[int(value)]
        if self.problem_type == "multi_label":
            return "|".join(name for name, is_set in zip(self.names, value, strict=True) if is_set) or "none"
        return f"{float(value):g}"

    def describe(self) -> dict[str, Any]:
        """Returns what is worth knowing of it, as JSON values."""
        return {"problem_type": self.problem_type, "names": list(self.ordered_names)}

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the encoder into a local folder, the labels in their final order."""
        save_settings(folder, self._settings())

    def sha256(self) -> str:
        return settings_sha256(self._settings())

    def _settings(self) -> dict[str, Any]:
        fields = {name: getattr(self._data, name) for name in _FIELDS}
        ranges = self._ranges if self._cuts else ()  # in the order of the thresholds, which the labels' is not
        return json.loads(json.dumps({"kind": "label", **fields, "label_names": self.ordered_names, "ranges": ranges}))

    def _range_of(self, cell: str) -> int | None:
        """Returns the class of a number. Decimals, so that 0.2 is as far from 0.3 as 0.4 is."""
        parse_number(cell, "label")  # what it refuses is broken
        value = Decimal(cell.strip())
        if self._margin and any(abs(value - cut) < self._margin for cut in self._cuts):
            return None
        return self._codes[self._ranges[sum(value > cut for cut in self._cuts)]]

    def _code(self, label: str) -> int:
        label = label.strip()
        code = self._codes.get(label)
        if code is not None:
            return code
        if not label:
            raise BrokenCellError("empty label", "")
        if self._data.label_names:
            raise BrokenCellError("unknown label", f"{label[:80]!r}.{suggest(label, self._codes)}")
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
        raise BrokenCellError("label list is not valid JSON", cell[:80]) from error
    if any(isinstance(value, dict | list) or value is None for value in values):
        raise BrokenCellError("label list holds more than labels", cell[:80])
    return [str(value) for value in values]


def _decimal(number: float) -> Decimal:
    return Decimal(repr(float(number)))  # 0.1, not its nearest binary fraction


def load_labels(folder: str | os.PathLike[str]) -> LabelEncoder:
    """Loads what `LabelEncoder.save` wrote: a code is the place of its label in `names`.

    Raises:
        InputError: As `cells.load_settings`.
    """
    settings = load_settings(folder, "label")
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
    }
    del fields["kind"]
    try:
        ranges = fields.pop("ranges")
        return LabelEncoder(DataConfig(**fields), ranges=ranges)
    except (KeyError, TypeError) as error:
        raise InputError(f"The encoder in {os.fspath(folder)} is damaged ({error}); prepare the data again.") from error


def find_look_alikes(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Returns groups of two or more labels that a reader would take for the same, in the order given.

    They differ in capitals, in white space, in invisible characters, or in the Unicode form of a character; or they are
    the same number, or a number and its truth value.

    >>> find_look_alikes(["spam", "ham", "Spam", "1", "1.0", "True"])
    [('spam', 'Spam'), ('1', '1.0', 'True')]
    """
    groups: dict[str | Decimal, list[str]] = {}
    for name in names:
        groups.setdefault(_appearance(name), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _appearance(name: str) -> str | Decimal:
    text = " ".join(unicodedata.normalize("NFKC", name).split())
    text = "".join(character for character in text if not _shows_nothing(character))
    text = unicodedata.normalize("NFKC", text.casefold())
    number = _plain_number({"true": "1", "false": "0"}.get(text, text))
    return text if number is None else number


def _shows_nothing(character: str) -> bool:
    """Whether a character is invisible: format (zero width spaces, direction marks), control or variation."""
    return unicodedata.category(character) in ("Cf", "Cc") or "\ufe00" <= character <= "\ufe0f"


def show_exactly(name: str) -> str:
    """Returns a label in quotes, with indistinguishable characters written as escapes: `'cafe\\u0301'`."""
    shown, before = [], ""
    for character in name:
        pair = before + character
        is_plain = unicodedata.normalize("NFKC", character) == character and unicodedata.normalize("NFC", pair) == pair
        shown.append(character if is_plain and not _shows_nothing(character) else ascii(character)[1:-1])
        before = character
    return repr("".join(shown)).replace("\\\\", "\\")


def _plain_number(name: str) -> Decimal | None:
    """Returns the number that a name spells; None for other names, such as `nan` and `1_000`."""
    return Decimal(name) if _NUMBER.fullmatch(name) else None
