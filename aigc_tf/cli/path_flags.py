"""Checks of the paths that flags give."""

import os

from aigc_tf.cli.flags import Options
from aigc_tf.cli.known_flags import HELP
from aigc_tf.errors import InputError


def required_path(options: Options, name: str) -> str:
    """Returns the folder that a flag gives.

    Raises:
        InputError: If it is missing, or is a file.
    """
    path: str = getattr(options, name) or ""
    if not path:
        raise InputError(f"--{name} is missing: {HELP[name]}")
    check_no_file(f"--{name}", path)
    return path


def optional_path(options: Options, name: str) -> str:
    """Returns the path that a flag gives, empty without the flag.

    Raises:
        InputError: If it is given and empty.
    """
    if getattr(options, name) == "":
        raise InputError(f"--{name} is empty; give a file, or leave it out.")
    path: str = getattr(options, name) or ""
    return path


def check_output(path: str, *, overwrite: bool) -> None:
    """Checks that a file can be written.

    Raises:
        InputError: If it is a folder, exists already, or its folder is missing.
    """
    if os.path.isdir(path):
        raise InputError(f"--output {path} is a folder; give a file.")
    if os.path.isfile(path) and not overwrite:  # special files such as /dev/null may be written to
        raise InputError(f"{path} is there already; nothing was overwritten. Give --overwrite to replace it.")
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        raise InputError(f"--output {path} cannot be written: there is no folder {folder}.")


def check_no_file(what: str, path: str) -> None:
    """Checks that a path is not a file.

    Raises:
        InputError: If it is a file.
    """
    if os.path.isfile(path):
        raise InputError(f"{what} is {path!r}, which is a file; give a folder.")
