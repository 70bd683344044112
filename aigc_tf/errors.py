"""The errors of all rooms, and the suggestion of a misspelt name. Standard library only."""

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """An input of the user does not fit. One sentence: what came, what fits, what to do. Exit status 2."""


class RunError(RuntimeError):
    """A run failed for a reason outside its input: disk full, a diverged loss, no network. Exit status 1."""


class Preempted(RuntimeError):
    """A run was asked to end (SIGTERM) and has written a last checkpoint. Exit status 143."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest known name, else ` Known: ...`."""
    known = sorted(known)
    return nearest(name, known) or (f" Known: {', '.join(known)}." if known else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'x'?` for the nearest known name, or nothing if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def some_of(names: Sequence[str], shown: int = 10, *, separator: str = ", ") -> str:
    """Returns the first names and the number of others.

    >>> some_of(["a", "b", "c"], shown=2)
    'a, b and 1 more'
    """
    return separator.join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
