"""Printed commands that can be pasted into a shell."""

import os
import shlex


def shell_line(*words: str | os.PathLike[str]) -> str:
    """Returns a command line in which blanks, quotes and brackets of the words are quoted.

    Only the value of a flag is quoted, as one would type it.

    >>> shell_line("python", "scripts/train.py", "--workdir=runs/my run (2)")
    "python scripts/train.py --workdir='runs/my run (2)'"
    """
    return " ".join(_quoted(os.fspath(word)) for word in words)


def _quoted(word: str) -> str:
    flag, equals, value = word.partition("=")
    if equals and flag.startswith("--") and shlex.quote(flag) == flag:
        return f"{flag}={shlex.quote(value)}" if value else f"{flag}="
    return shlex.quote(word)
