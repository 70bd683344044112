"""The fields of a config by their dotted names, and a config as a table, as JSON and as a hash.

Standard library only.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from aigc_tf.config.experiment import ExperimentConfig
from aigc_tf.errors import InputError, suggest


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


def table(config: ExperimentConfig) -> str:
    """Returns the config as aligned lines, one field a line, a group a section."""
    fields = flatten(config)
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
        InputError: If the text is no JSON object or has a field this version does not know.
    """
    try:
        return _from_dict(ExperimentConfig, json.loads(text), "")
    except json.JSONDecodeError as error:
        raise InputError(
            f"The config is not valid JSON ({error}); scripts/train.py writes it as config.json."
        ) from error


def _from_dict(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        where = f"The config's section {prefix.rstrip('.')!r}" if prefix else "The config"
        raise InputError(f"{where} must be a JSON object, received {values!r}.")
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
    """Returns a copy of a config with other values in some fields.

    Args:
        config: A config dataclass.
        values: By dotted name, such as `training.devices.jit`.
    """
    for path, value in values.items():
        name, _, rest = path.partition(".")
        changed = replace_fields(getattr(config, name), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{name: changed})
    return config


def sha256(config: Any) -> str:
    """Returns the sha256 of the config's canonical JSON (sorted keys, no spaces)."""
    canonical = json.dumps(dataclasses.asdict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def unknown_field(cls: type, name: str) -> InputError:
    """Returns the error of a field that a config dataclass does not have, with the nearest field that there is."""
    fields = [field.name for field in dataclasses.fields(cls)]
    elsewhere = [path for path in flatten(ExperimentConfig()) if path.rpartition(".")[2] == name]
    if elsewhere and not difflib.get_close_matches(name, fields, n=1):
        return InputError(f"{cls.__name__} has no field {name!r}. Did you mean {elsewhere[0]!r}?")
    return InputError(f"{cls.__name__} has no field {name!r}.{suggest(name, fields)}")


def check_field(path: str) -> None:
    """Checks that a dotted path, such as `training.optimizer.learning_rate`, names a field of the config.

    Raises:
        InputError: If it names nothing, or a whole section.
    """
    holder: Any = ExperimentConfig()
    for name in path.split("."):
        if not dataclasses.is_dataclass(holder):
            raise InputError(f"There is no {path!r}: {path.removesuffix('.' + name)!r} is a single field.")
        if name not in {field.name for field in dataclasses.fields(holder)}:
            raise unknown_field(type(holder), name)
        holder = getattr(holder, name)
    if dataclasses.is_dataclass(holder):
        fields = ", ".join(f"{path}.{field.name}" for field in dataclasses.fields(holder)[:3])
        raise InputError(f"{path!r} is a section of the config; set one of its fields, such as {fields}.")
