"""The search space of a sweep: config fields and the values to try, from `--search`. Standard library only.

training.optimizer.learning_rate=log:1e-5..1e-3     numbers of a range, drawn uniformly on a logarithmic scale
training.schedule.warmup_steps=0..100              numbers of a range, whole numbers if the field is whole
training.schedule.name=linear|cosine           one of several values
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from aigc_tf.config import OPERATIONAL_FIELDS, ExperimentConfig
from aigc_tf.config.fields import check_field, flatten
from aigc_tf.errors import InputError
from aigc_tf.tasks import check_config

Value = str | int | float | bool

_EXAMPLES = "'training.optimizer.learning_rate=log:1e-5..1e-3' or 'training.schedule.name=linear|cosine'"
_MAX_CORNERS = 4096
"""The most combinations of extreme values that are checked before a sweep starts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dimension:
    """A field and its values: `choices`, or all numbers from `low` to `high`."""

    field: str
    choices: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_whole: bool = False

    def __str__(self) -> str:
        if self.choices:
            return f"{self.field}={'|'.join(_shown(choice) for choice in self.choices)}"
        return f"{self.field}={'log:' if self.is_log else ''}{self.low:g}..{self.high:g}"

    @property
    def extremes(self) -> tuple[Value, ...]:
        """The values that are checked before a sweep starts: all choices, or both ends."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.is_whole else (self.low, self.high)


def parse_search(texts: Sequence[str]) -> tuple[Dimension, ...]:
    """Reads the values of `--search`.

    Raises:
        InputError: One sentence on the first value that does not fit.
    """
    if not texts:
        raise InputError(f"--search is missing: a field and the values to try, such as {_EXAMPLES}; once for each.")
    space = tuple(_parse_one(text) for text in texts)
    fields = [dimension.field for dimension in space]
    for field in fields:
        if fields.count(field) > 1:
            raise InputError(f"--search names {field} twice; give all its values at once.")
    return space


def _parse_one(text: str) -> Dimension:
    field, equals, values = text.partition("=")
    field = field.strip().removeprefix("config.")
    if not equals or not values.strip():
        raise InputError(f"--search is {text!r}; give a field and its values, such as {_EXAMPLES}.")
    check_field(field)
    default = flatten(ExperimentConfig())[field]
    if field in OPERATIONAL_FIELDS or field == "name":
        raise InputError(f"--search names {field}, which does not change the result of training; take another field.")
    if isinstance(default, tuple):
        raise InputError(f"--search names {field}, which holds several values; a sweep searches fields with one value.")
    if "|" in values:
        return _choices(field, values, default)
    if ".." in values:
        return _range(field, values.strip(), default)
    raise InputError(f"--search {text!r} has one value; give a range LOW..HIGH or choices A|B, or set --config.{text}.")


def _choices(field: str, values: str, default: Any) -> Dimension:
    choices = tuple(_convert(field, value.strip(), default) for value in values.split("|"))
    if len(set(choices)) < len(choices):
        raise InputError(f"--search names a value of {field} twice: {values}.")
    return Dimension(field=field, choices=choices)


def _range(field: str, values: str, default: Any) -> Dimension:
    if isinstance(default, str | bool):
        raise InputError(f"--search gives a range for {field}, which is not a number; give choices A|B.")
    is_log, numbers = values.startswith("log:"), values.removeprefix("log:")
    low, high = (_convert(field, number.strip(), default) for number in numbers.split("..", 1))
    if not low < high:
        raise InputError(f"--search {field}={values} must go from the lower to the higher number.")
    if is_log and low <= 0:
        raise InputError(f"--search {field}={values} must start above 0, since a logarithmic scale has no 0.")
    return Dimension(field=field, low=float(low), high=float(high), is_log=is_log, is_whole=isinstance(default, int))


def _convert(field: str, text: str, default: Any) -> Any:
    # bool comes first: Python counts it as an int.
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise InputError(f"--search gives {field} the value {text!r}; true|false fits here.")
        return text.lower() == "true"
    if isinstance(default, str):
        return text
    fits = "a whole number such as 100" if isinstance(default, int) else "a number such as 5e-5"
    try:
        number = type(default)(text)
    except ValueError as error:
        raise InputError(f"--search gives {field} the value {text!r}; {fits} fits here.") from error
    if not math.isfinite(number):
        raise InputError(f"--search gives {field} the value {text!r}; {fits} fits here.")
    return number


def with_values(config: ExperimentConfig, values: Mapping[str, Value]) -> ExperimentConfig:
    """Returns a copy of the config with some fields set, by dotted name."""
    changed = copy.deepcopy(config)
    for field, value in values.items():
        holder: Any = changed
        *sections, name = field.split(".")
        for section in sections:
            holder = getattr(holder, section)
        setattr(holder, name, value)
    return changed


def check_space(config: ExperimentConfig, space: Sequence[Dimension]) -> None:
    """Checks that the config is valid with the extreme values of the space, in every combination.

    Raises:
        InputError: If it is not; the message names the values.
    """
    fields = [dimension.field for dimension in space]
    corners = itertools.product(*(dimension.extremes for dimension in space))
    # The checks of a config compare fields with bounds and with each other, so the extremes show the conflicts. A
    # conflict found later would end a sweep that is under way.
    for corner in itertools.islice(corners, _MAX_CORNERS):
        values = dict(zip(fields, corner, strict=True))
        try:
            check_config(with_values(config, values))
        except InputError as error:
            raise InputError(f"The search would try {show(values)}, which does not fit: {error}") from error


def show(values: Mapping[str, Value]) -> str:
    """Returns values by field as one line."""
    return ", ".join(f"{field}={_shown(value)}" for field, value in values.items())


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
