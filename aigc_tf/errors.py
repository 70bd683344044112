"""The errors that every room raises, and how they suggest the name that was meant. Standard library only."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something a user handed over does not fit. One sentence: what came, what fits, what to do. Exit status 2."""


class RunError(RuntimeError):
    """A run failed for a reason outside its input: disk full, a diverged loss, no network. Exit status 1."""


class Preempted(RuntimeError):
    """A run was asked to end (SIGTERM) and has written a last checkpoint. Exit status 143."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest known name, else ` Known: ...`."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(known)}." if known else ""
