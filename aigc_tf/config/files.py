"""Loads a config file: a Python file with `get_config()`, or the config.json of a run.

A Python config file is code and runs with your rights, like any script; config.json is data. While a config file runs,
its folder comes first on the import path, so that a variant can `import bert_sentiment` and change what differs.
"""

import difflib
import glob
import os
import re
import sys
import traceback
import types

from aigc_tf import storage
from aigc_tf.config import experiment
from aigc_tf.config.checks import check_types
from aigc_tf.config.experiment import ExperimentConfig
from aigc_tf.config.fields import from_json, unknown_field, with_home
from aigc_tf.errors import InputError

_CLASSES = {name: cls for name, cls in vars(experiment).items() if isinstance(cls, type)}


def load_config(path: str) -> ExperimentConfig:
    """Loads the config of a file.

    Args:
        path: `FILE.py`, `FILE.py:ARGUMENT` for a `get_config(argument)`, or `FILE.json`, which may be `gs://`.

    Raises:
        InputError: If there is no such file, it fails (with its line and error), or it does not return a config.
    """
    if storage.is_remote(path):
        config = _read_json(storage.read_bytes(path), path)
    else:
        name, colon, argument = path.partition(":")
        config = _load_local(os.path.expanduser(name), [argument] if colon else [])
    try:
        check_types(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return with_home(config)


def _load_local(name: str, arguments: list[str]) -> ExperimentConfig:
    if os.path.isdir(name) or not os.path.exists(name):
        what = f"{name} is a folder" if os.path.isdir(name) else f"There is no config file {name!r}"
        raise InputError(f"{what}; give a Python file with get_config().{_nearest_config(name)}")
    try:
        source = storage.read_bytes(name)
    except OSError as error:
        raise InputError(f"The config file {name} cannot be read: {error.strerror}.") from error
    return _read_json(source, name) if name.endswith(".json") else _run(source, name, arguments)


def _read_json(source: bytes, name: str) -> ExperimentConfig:
    try:
        return from_json(source.decode())
    except (UnicodeDecodeError, InputError) as error:
        raise InputError(f"{name}: {error}") from error


def _run(source: bytes, name: str, arguments: list[str]) -> ExperimentConfig:
    """Runs a config file. It is compiled from its text each time, since cached bytecode can be stale."""
    module = types.ModuleType("config_file")
    module.__file__ = name
    folder = os.path.dirname(os.path.abspath(name))
    sys.path.insert(0, folder)
    try:
        exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
        if not callable(getattr(module, "get_config", None)):
            raise InputError(f"{name} has no function get_config(); define one that returns an ExperimentConfig.")
        config = module.get_config(*arguments)
    except SyntaxError as error:
        raise InputError(f"{error.filename or name} line {error.lineno}: {error.msg}.") from error
    # Already one sentence, such as that of a helper that the file calls.
    except InputError:
        raise
    except Exception as error:  # a config file is the user's code, which may raise anything
        raise InputError(f"{name}{_line(error, name)} raised {_describe(error)}") from error
    finally:
        # Removed again, or a later import could find the experiment's files instead of a package.
        sys.path.remove(folder)
    if not isinstance(config, ExperimentConfig):
        forgotten = "; is its return statement missing?" if config is None else "."
        raise InputError(
            f"get_config() of {name} must return an aigc_tf.config.ExperimentConfig, received {config!r}{forgotten}"
        )
    return config


def _line(error: Exception, name: str) -> str:
    """Returns the file's line of an error, even if the error was raised deeper."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == name]
    return f" line {lines[-1]}" if lines else ""


def _describe(error: Exception) -> str:
    """Returns type and message; for an unknown config field, the sentence that names the nearest one."""
    match = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    if match and match[1] in _CLASSES:
        return f"TypeError: {unknown_field(_CLASSES[match[1]], match[2])}"
    return f"{type(error).__name__}: {str(error).rstrip('.')}."


def _nearest_config(name: str) -> str:
    """Returns the file with the nearest name; else the config files in its folder, or in configs/."""
    folder = name if os.path.isdir(name) else os.path.dirname(name)
    there = sorted(glob.glob(os.path.join(glob.escape(folder), "*.py"))) or sorted(glob.glob("configs/*.py"))
    near = {os.path.basename(file): file for file in there}
    close = difflib.get_close_matches(os.path.basename(name), near, n=1)
    if close:
        return f" Did you mean {near[close[0]]!r}?"
    return f" There are: {', '.join(there)}." if there else ""
