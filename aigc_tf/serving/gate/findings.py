"""The findings of a check of a SavedModel, and how they are shown."""

import dataclasses
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

REFUSED = "refused"
"""The server cannot load or run it, or answers wrongly."""
WARNED = "warned"
"""It works, but an operator or a client should know of it."""
_SHOWN_PLACES = 3
_WIDTH = 119


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a stock server refuses, or does differently than the author may expect."""

    grade: str
    """`REFUSED` or `WARNED`."""
    what: str
    where: tuple[str, ...]
    """Every place, as text."""
    why: str
    """What the server does with it."""
    advice: str
    """What to do."""

    def to_json(self) -> dict[str, Any]:
        """Returns it for a manifest, with only the first of many places."""
        return {**dataclasses.asdict(self), "where": list(shortened(self.where))}


def shortened(places: Sequence[str]) -> Iterable[str]:
    """Returns the first places and the number of others."""
    more = len(places) - _SHOWN_PLACES
    return places if more <= 0 else [*places[:_SHOWN_PLACES], f"and {more} more"]


def refused(findings: Iterable[Finding]) -> list[Finding]:
    """Returns the findings that prevent a server from serving the model."""
    return [finding for finding in findings if finding.grade == REFUSED]


def as_text(findings: Iterable[Finding]) -> str:
    """Returns the findings as paragraphs, the refused ones first."""
    ordered = sorted(findings, key=lambda finding: finding.grade != REFUSED)
    return "\n\n".join("\n".join(_paragraph(finding)) for finding in ordered)


def _paragraph(finding: Finding) -> list[str]:
    lines = [f"{finding.grade}: {finding.what}"]
    for name, values in {"where": shortened(finding.where), "why": [finding.why], "do": [finding.advice]}.items():
        for value in values:
            lines += textwrap.wrap(
                value, _WIDTH, initial_indent=f"  {name:<7}", subsequent_indent=" " * 9, break_long_words=False
            )
            name = ""
    return lines
