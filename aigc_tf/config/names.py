"""The rule for an experiment's name, which names its prepared data and its exported model, also on a server."""

import re

from aigc_tf.errors import InputError

MAX_NAME_BYTES = 100
"""File systems allow 255 bytes, and lock files and unfinished folders extend the name."""
_NAME = re.compile(r"\w[\w.-]*")
_FORMATS = "-formats"
"""The other formats of a model `x` are in `x-formats` beside it."""


def check_name(name: str, *, what: str = "name") -> None:
    """Refuses a name that cannot be one folder, or cannot be in a server's URL; `what` names it in messages.

    Raises:
        InputError: One sentence that says which names fit.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{what} is {name!r}; a name has only letters, digits, '_', '-' and '.', and does not start with '-' or "
            "'.', such as 'bert_sentiment': it becomes a folder and part of a server's URL."
        )
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise InputError(
            f"{what} has {len(name.encode('utf-8', 'replace'))} bytes ({name[:20]!r} ...); give one of at most "
            f"{MAX_NAME_BYTES}."
        )
    if name.endswith(_FORMATS):
        raise InputError(
            f"{what} is {name!r}, but a folder that ends in {_FORMATS} holds the other formats of an exported model; "
            "give it another ending."
        )
