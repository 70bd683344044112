"""The fields of a config by their dotted names, and a config as a table, as JSON and as a hash.

Standard library only.
"""

import dataclasses
import difflib
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from aigc_tf.config.experiment import PATH_FIELDS, ExperimentConfig
from aigc_tf.errors import InputError, nearest, suggest


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns `{"training.seed": 0, ...}` for a config dataclass, in field order."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            fields.update(flatten(value, f"{prefix}{field.name}."))
        else:
            fields[prefix + field.name] = value
    return fields


def table(config: ExperimentConfig, *, leave_out: Collection[str] = ()) -> str:
    """Returns the config as aligned lines, one field per line, grouped by section, without some sections."""
    fields = {path: value for path, value in flatten(config).items() if path.partition(".")[0] not in leave_out}
    width = max(len(path.rpartition(".")[2]) for path in fields)
    lines, last_section = [], ""
    for path, value in fields.items():
        section, _, name = path.rpartition(".")
        if section != last_section:
            lines += ["", section]
            last_section = section
        lines.append(f"{'  ' if section else ''}{name:<{width}}  {value!r}".rstrip())
    return "\n".join(lines)


def to_json(config: Any) -> str:
    """Returns the config as indented JSON; `from_json` gives an equal config back."""
    return json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False) + "\n"


def from_json(text: str) -> ExperimentConfig:
    """Reads what `to_json` wrote.

    Raises:
        InputError: If the text is not a JSON object or has a field that this version does not know.
    """
    try:
        return with_home(_from_dict(ExperimentConfig, json.loads(text), ""))
    except json.JSONDecodeError as error:
        raise InputError(
            f"The config is not valid JSON ({error}); scripts/train.py writes it as config.json."
        ) from error


def _from_dict(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        if prefix:
            raise no_section(prefix.rstrip("."), values)
        raise InputError(f"The config must be a JSON object, received {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            raise unknown_field(cls, name)
        default = fields[name].default_factory
        if default is not dataclasses.MISSING and dataclasses.is_dataclass(default):
            value = _from_dict(default, value, f"{prefix}{name}.")
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)


def replace_fields(config: Any, values: Mapping[str, Any]) -> Any:
    """Returns a copy of a config with new values in some fields.

    Args:
        config: A config dataclass.
        values: New values by dotted name, such as `training.devices.jit`.
    """
    for path, value in values.items():
        name, _, rest = path.partition(".")
        changed = replace_fields(getattr(config, name), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{name: changed})
    return config


def with_home(config: ExperimentConfig) -> ExperimentConfig:
    """Returns the config with a leading `~` of its paths replaced by the user's home folder.

    Every way to load a config calls this, so that all other code takes paths literally, and so that a run resumes
    whether its config.json has the path as typed or as expanded.
    """
    changed: dict[str, Any] = {}
    for name, value in flatten(config).items():
        if name in PATH_FIELDS and isinstance(value, str):
            changed[name] = os.path.expanduser(value)
        elif name in PATH_FIELDS and isinstance(value, tuple):
            changed[name] = tuple(os.path.expanduser(item) if isinstance(item, str) else item for item in value)
    home: ExperimentConfig = replace_fields(config, changed)
    return home


def sha256(config: Any) -> str:
    """Returns the sha256 of the config's canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(dataclasses.asdict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


RENAMED = {
    "training.optimizer": "training.optimizer.name",
    "training.schedule": "training.schedule.name",
    "training.on_bad_step": "training.bad_steps.policy",
}
"""Fields whose last name also changed when `training` got sections; the other fields kept theirs."""


def field_named(name: str, section: str = "") -> str:
    """Returns the dotted path of the first field below a section with this present or former last name; else empty."""
    for old, path in RENAMED.items():
        if name == old.rpartition(".")[2] and path.startswith(section):
            return path
    paths = (path for path in flatten(ExperimentConfig()) if path.startswith(section))
    return next((path for path in paths if path.rpartition(".")[2] == name), "")


def unknown_field(cls: type, name: str) -> InputError:
    """Returns the error of a field that a config dataclass does not have, with the nearest existing field.

    A field deeper in the same section comes first, since fields of older versions moved there.
    """
    section = _section_of(cls)
    fields = [field.name for field in dataclasses.fields(cls)]
    below = {path.rpartition(".")[2]: path for path in flatten(ExperimentConfig()) if path.startswith(section)}
    meant = field_named(name, section) if section else ""
    if not meant and not nearest(name, fields):
        close = difflib.get_close_matches(name, below, n=1) if section else []
        meant = field_named(name) or (below[close[0]] if close else "")
    hint = f" Did you mean {meant!r}?" if meant else suggest(name, fields)
    return InputError(f"{cls.__name__} has no field {name!r}.{hint}")


def _section_of(cls: type) -> str:
    """Returns `training.` for TrainingConfig; empty for the whole config."""
    pending: list[tuple[str, Any]] = [("", ExperimentConfig())]
    for prefix, holder in pending:
        if type(holder) is cls:
            return prefix
        values = vars(holder).items()
        pending += [(f"{prefix}{name}.", value) for name, value in values if dataclasses.is_dataclass(value)]
    return ""


def no_section(path: str, value: Any) -> InputError:
    """Returns the error for a section that was set like a field; some sections were fields in older versions."""
    return InputError(f"{path} is {value!r}, but {_a_section(path)}")


def _a_section(path: str) -> str:
    fields = [name for name in flatten(ExperimentConfig()) if name.startswith(f"{path}.")]
    return f"{path!r} is a section of the config; set one of its fields, such as {', '.join(fields[:3])}."


def check_field(path: str) -> None:
    """Checks that a dotted path, such as `training.optimizer.learning_rate`, names a field of the config.

    Raises:
        InputError: If it names no field, or a whole section.
    """
    holder: Any = ExperimentConfig()
    for name in path.split("."):
        if not dataclasses.is_dataclass(holder):
            raise InputError(f"There is no {path!r}: {path.removesuffix('.' + name)!r} is a single field.")
        if name not in {field.name for field in dataclasses.fields(holder)}:
            raise unknown_field(type(holder), name)
        holder = getattr(holder, name)
    if dataclasses.is_dataclass(holder):
        raise InputError(_a_section(path))
