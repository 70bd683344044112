"""The one rule for the name of an experiment: of its prepared data, its exported model, and what a server calls it."""

import re

from aigc_tf.errors import InputError

MAX_NAME_BYTES = 100
"""File systems take 255 bytes, and lock files and unfinished folders add to the name."""
_NAME = re.compile(r"\w[\w.-]*")
_FORMATS = "-formats"
"""The formats of a model `x` lie in `x-formats` beside it."""


def check_name(name: str, *, what: str = "name") -> None:
    """Refuses a name that is no folder of its own, or that the URL of a server cannot hold; `what` it is the name of.

    Raises:
        InputError: One sentence that says what fits.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{what} is {name!r}; a name has letters, digits, '_', '-' and '.' only and begins with none of the last "
            "two, such as 'bert_sentiment': it becomes a folder and a part of a server's URL."
        )
    if len(name.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise InputError(
            f"{what} has {len(name.encode('utf-8', 'replace'))} bytes ({name[:20]!r} ...); give one of at most "
            f"{MAX_NAME_BYTES}."
        )
    if name.endswith(_FORMATS):
        raise InputError(
            f"{what} is {name!r}, but a folder that ends in {_FORMATS} holds the other formats of an exported model; "
            "give it another end."
        )
