"""The flags of the scripts: how they are defined and read, what `--help` prints, and a sentence for each typo.

Flags are absl's; dotted overrides of config fields are ml_collections'. Each script parses its own flags, so that
neither `--help` nor a typo's suggestions include flags that other modules define. absl's own flags (`--verbosity` and
the like) still work.
"""

import os
import re
import textwrap
import types
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags, logging
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from aigc_tf import storage
from aigc_tf.cli.known_flags import (
    BOOLEANS,
    CHOICES,
    COUNTS,
    HELP,
    PATHS,
    REPEATED,
    SECONDS,
    SETTINGS,
    VALUE_NAMES,
    help_of,
    question_flags,
    typed,
)
from aigc_tf.config import ExperimentConfig
from aigc_tf.config.fields import check_field, field_named, flatten, with_home
from aigc_tf.config.files import load_config
from aigc_tf.errors import InputError, suggest

Options = types.SimpleNamespace
"""The values of a script's flags by name; `config` is an ExperimentConfig or None."""

_NO_FLAGS = ("config", "command", "folder")  # the config's own flags, and arguments without a name
_HELP_FLAGS = {"--help", "-help", "-h", "-?", "--helpshort", "--helpfull"}
_CONFIG_FLAG = re.compile(r"--?config(=|$)")
_OVERRIDE_FLAG = re.compile(r"--?(?:no)?config\.([^=]*)")


def parse(argv: Sequence[str], *, names: Sequence[str], description: str) -> Options:
    """Reads a script's flags.

    Args:
        argv: The program's name and its arguments.
        names: The flags of the script, keys of `HELP`.
        description: The script's docstring, for `--help`.

    Raises:
        InputError: One sentence on the flag that does not fit.
        SystemExit: With status 0, after `--help` was printed.
    """
    values = _define(names)
    given, command = list(argv[1:]), []
    if "command" in names and "--" in given:
        start = given.index("--")
        given, command = given[:start], given[start + 1 :]
    try:
        arguments = values.read_flags_from_files(given, force_gnu=True)
        # Before any flag is parsed, so that --help also works beside a wrong flag.
        if _HELP_FLAGS & set(arguments):
            print(help_text(names, description))
            raise SystemExit(0)
        # Three parsers, ours, the config's and absl's; each passes the flags that it does not know to the next.
        rest = values([argv[0], *arguments], known_only=True)[1:]
        options = Options(
            **{name: _decoded(name, values[typed(name)].value) for name in names if name not in _NO_FLAGS}
        )
        options.command = command
        options.config = None
        if "config" in names:
            rest = _parse_config(rest, options)
        leftover = flags.FLAGS([argv[0], *rest])[1:]
        if "folder" in names:
            options.folder, leftover = _decoded("folder", next(iter(leftover), "")), leftover[1:]
    except flags.UnrecognizedFlagError as error:
        raise InputError(_unknown_flag(error.flagname, names)) from error
    except (flags.Error, ValueError) as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error.__context__, InputError):  # absl keeps only the text of a parser's error
            raise error.__context__ from None
        raise InputError(f"{str(error).rstrip('.')}.") from error
    if leftover:
        raise InputError(_leftover(leftover[0], takes_command="command" in names))
    if flags.FLAGS["verbosity"].using_default_value:
        flags.FLAGS.verbosity = logging.WARNING  # type: ignore[assignment]  # app.run would set it to INFO
    return options


def _decoded(name: str, value: Any) -> Any:
    """Returns the value of a flag as text that can be encoded; in a path, `~` becomes the home folder.

    Python turns bytes of the command line that are not UTF-8 into lone surrogates, which cannot be encoded.

    Raises:
        InputError: If there are such bytes in a flag other than a text to answer.
    """
    if isinstance(value, list | tuple):
        return [_decoded(name, item) for item in value]
    if not isinstance(value, str):
        return value
    text = os.fsencode(value).decode("utf-8", "replace")
    if text != value and name not in ("stop", *question_flags()):
        raise InputError(f"--{typed(name)} is {text!r}, which is not UTF-8 at {chr(0xFFFD)}; write it in UTF-8.")
    return os.path.expanduser(text) if name in PATHS else text


def help_text(names: Sequence[str], description: str) -> str:
    """Returns the description, then the flags with their meaning, and how to set fields of the config."""
    lines = [description.strip(), "", "Flags:"]
    for name in names:
        flag = f"--[no]{name}" if name in BOOLEANS else f"--{typed(name)}={VALUE_NAMES.get(name, name.upper())}"
        flag = {"command": "-- COMMAND", "folder": "FOLDER"}.get(name, flag)
        lines += textwrap.wrap(help_of(name), 96, initial_indent=f"  {flag:<20} ", subsequent_indent=" " * 23)
    if "config" in names:
        sections = [name for name, value in vars(ExperimentConfig()).items() if not isinstance(value, str)]
        about = (
            "Any field of the config can be set as well, such as --config.training.optimizer.learning_rate=1e-3 or "
            f"--config.data.sources=a.csv,b.csv. Sections: {', '.join(sections)}. "
            "--dry_run prints the fields that the task reads, with their values; aigc_tf/config/experiment.py "
            "explains each."
        )
        lines += ["", *textwrap.wrap(about, 119)]
    return "\n".join(lines)


def _define(names: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    values.set_gnu_getopt()
    for name in names:
        if name in BOOLEANS:
            flags.DEFINE_bool(name, False, help_of(name), flag_values=values)
        elif name in REPEATED or name in question_flags():
            flags.DEFINE_multi_string(typed(name), None, help_of(name), flag_values=values)
        elif name in SETTINGS:
            flags.DEFINE(_NUMBERS[type(SETTINGS[name])], name, None, help_of(name), flag_values=values)
        elif name in COUNTS:
            flags.DEFINE(_NUMBERS[int], name, COUNTS[name], help_of(name), flag_values=values)
        elif name in SECONDS:
            flags.DEFINE(_NUMBERS[float], name, SECONDS[name], help_of(name), flag_values=values)
        elif name in CHOICES:
            flags.DEFINE_enum(name, *CHOICES[name], help_of(name), flag_values=values)
        elif name not in _NO_FLAGS:
            flags.DEFINE_string(typed(name), None, help_of(name), flag_values=values)
    return values


def _parse_config(arguments: list[str], options: Options) -> list[str]:
    """Loads the config, sets single fields of it, and returns the other arguments.

    Without a config, fields are set in the config of the run folder, if the script reads one.
    """
    overrides = [match[1] for match in map(_OVERRIDE_FLAG.match, arguments) if match]
    for field in overrides:
        check_field(field)
    chosen = [index for index, argument in enumerate(arguments) if _CONFIG_FLAG.match(argument)]
    if len(chosen) > 1:
        raise InputError("--config is given twice; a run has one config.")
    if chosen:  # moved to the front: ml_collections knows the fields' flags only after the config
        end = chosen[0] + (1 if "=" in arguments[chosen[0]] else 2)
        arguments = arguments[chosen[0] : end] + arguments[: chosen[0]] + arguments[end:]
    elif overrides and hasattr(options, "checkpoint") and options.workdir:
        path = storage.join(options.workdir, "config.json")
        if not storage.exists(path):
            raise InputError(f"{options.workdir} is not a run: it has no config.json.")
        arguments = [f"--config={path}", *arguments]
    elif overrides:
        raise InputError(f"--config.{overrides[0]} sets a field of a config, so --config is needed too.")
    values = flags.FlagValues()
    values.set_gnu_getopt()
    config_flags.DEFINE_config_file("config", None, HELP["config"], flag_values=values, sys_argv=arguments)
    values["config"].parser = _ConfigFile()
    rest = values(["", *arguments], known_only=True)[1:]
    if values["config"].present:
        config: Any = values["config"].value
        options.config = with_home(config)
        for field in overrides:
            _decoded(f"config.{field}", flatten(config)[field])
    return rest


class _ConfigFile(flags.ArgumentParser):
    """Loads config files in place of ml_collections' parser, with errors that say what is wrong."""

    def parse(self, path: str) -> ExperimentConfig:
        return load_config(_decoded("config", path))


class _Number(flags.ArgumentParser):
    """A value of one type, with an error that says what fits."""

    def __init__(self, convert: flags.ArgumentParser, fits: str):
        self._convert, self._fits = convert, fits

    def parse(self, argument: Any) -> Any:
        try:
            return self._convert.parse(argument)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self._fits} fits here") from error

    def flag_type(self) -> str:
        return self._convert.flag_type()


class _Tuple(tuple_parser.TupleParser):
    """A tuple given as `a,b`, as `('a', 'b')`, or by one flag per item; nothing after the `=` means no items."""

    def __init__(self, convert: Callable[[Any], Any], fits: str):
        self._convert, self._fits = convert, fits

    def parse(self, argument: Any) -> tuple[Any, ...]:
        try:
            if isinstance(argument, str):
                is_literal = argument.strip()[:1] in tuple("([")
                argument = super().parse(argument) if is_literal else tuple(argument.split(",") if argument else ())
            return tuple(self._convert(item) for item in argument)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self._fits} fits here") from error


_NUMBERS = {
    int: _Number(flags.IntegerParser(), "a whole number such as 1000"),
    float: _Number(flags.FloatParser(), "a number such as 5e-5"),
}
for _type, _parser in {
    **_NUMBERS,
    bool: _Number(flags.BooleanParser(), "true or false"),
    tuple[str, ...]: _Tuple(str, "a list such as a,b or ('a','b')"),
    tuple[float, ...]: _Tuple(float, "a list of numbers such as 0.5,1"),
    tuple[int, ...]: _Tuple(int, "a list of whole numbers such as 20,24"),
}.items():
    config_flags.register_flag_parser_for_type(_type, _parser)


def _unknown_flag(name: str, names: Sequence[str]) -> str:
    """Returns the sentence on an unknown flag, which may be the name of a config field."""
    field = field_named(name)
    if field and "config" in names:
        return f"There is no flag --{name}. Did you mean --config.{field}?"
    hint = suggest(name, [typed(known) for known in names]).replace("'", "")
    return f"There is no flag --{name}.{re.sub(r'mean ', 'mean --', hint)}"


def _leftover(argument: str, *, takes_command: bool) -> str:
    if takes_command:
        return f"The argument {argument!r} belongs to no flag; write the command to run after a separate --."
    hint = ""
    if argument in ("true", "false", "True", "False"):
        hint = f" Join a switch and its value: --name={argument.lower()}."
    elif argument.endswith(".py"):
        hint = f" Did you mean --config={argument}?"
    return f"The argument {argument!r} belongs to no flag; values are given as --name=value.{hint}"
