"""The challenges on LTDv2 that are known by name: number at Codabench, dates, and who says so."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from submission.errors import SubmissionError


@dataclass(frozen=True)
class Known:
    """A competition at codabench.org.

    Attributes:
        number: Codabench's.
        name: what it is called on the command line.
        title: its own.
        begins, ends: days; None where nobody says.
        source: who says so, and what is not known.
    """

    number: int
    name: str
    title: str
    begins: date | None
    ends: date | None
    source: str

    def is_open(self, today: date) -> bool:
        """Whether it takes submissions on this day, as far as is known."""
        return (self.begins is None or self.begins <= today) and (self.ends is None or today <= self.ends)


KNOWN = (
    Known(
        10954,
        "rtiod-2026",
        "RTIOD at WACV 2026",
        None,
        date(2025, 12, 7),
        "the organisers' README; both templates and the ranking key are theirs",
    ),
    Known(
        16106,
        "seasons-in-drift",
        "Seasons in Drift / LTDv2",
        date(2026, 1, 1),
        date(2030, 1, 1),
        "a third party's note of August 2026; its phases and templates are not known",
    ),
)

DEFAULT = KNOWN[0].number


def number_of(name: str) -> int:
    """Codabench's number of a competition, from the number or a name of :data:`KNOWN`.

    Raises:
        SubmissionError: it is neither.
    """
    if name.isascii() and name.isdigit() and 0 < int(name) < 2**31:
        return int(name)
    for known in KNOWN:
        if name.lower() == known.name:
            return known.number
    raise SubmissionError(
        f"no competition {name!r}",
        expected="a number, or " + " or ".join(f"{known.name} ({known.number})" for known in KNOWN),
    )


def others_open(number: int, today: date) -> str:
    """The other known competitions that are open on this day, in words; empty if there are none."""
    words = [
        f"{k.number} {k.title!r} until {k.ends or 'an unknown day'} (by {k.source})"
        for k in KNOWN
        if k.number != number and k.is_open(today)
    ]
    return "; ".join(words)
