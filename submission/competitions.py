"""The challenges on LTDv2 that are known by name: number at Codabench, dates, phases, and who says so."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

from submission.errors import SubmissionError


@dataclass(frozen=True)
class KnownPhase:
    """A phase of a competition: a list of ids, and what it is called here and there.

    Attributes:
        name: what it is called on the command line. It stands for one list of ids in every competition.
        split: of LTDv2, whose images these are.
        template: the file in ``submission/templates/`` that has the ids.
        words: the server's name of the phase, in lower case, has one of them in it.
    """

    name: str
    split: Literal["val", "test"]
    template: str
    words: tuple[str, ...]

    def is_called(self, title: str) -> bool:
        """Whether the server means this phase by a name."""
        return any(word in title.lower() for word in self.words)


DEVELOPMENT = KnownPhase("development", "val", "submission_template_development.json.gz", ("dev",))
TESTING = KnownPhase("testing", "test", "submission_template_testing.json.gz", ("test",))


@dataclass(frozen=True)
class Known:
    """A competition at codabench.org.

    Attributes:
        number: Codabench's.
        name: what it is called on the command line.
        title: its own.
        begins, ends: days; None where nobody says.
        source: who says so, and what is not known.
        phases: those of RTIOD unless somebody says otherwise. One with the ids of another competition's has
            that one's name and template, and words of its own.
    """

    number: int
    name: str
    title: str
    begins: date | None
    ends: date | None
    source: str
    phases: tuple[KnownPhase, ...] = (DEVELOPMENT, TESTING)

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

PHASES: dict[str, KnownPhase] = {}
for _known in KNOWN:
    for _phase in _known.phases:
        PHASES.setdefault(_phase.name, _phase)
"""Every phase by its name, as the first competition that has it calls it."""

NUMBERS = ", ".join(f"{k.number} {k.name}" + " (default)" * (k.number == DEFAULT) for k in KNOWN)
"""All of them, in words."""


def phase_of(number: int, name: str) -> KnownPhase | None:
    """A phase as a competition calls it, or else the first that has one of this name; None: nobody has."""
    own = (phase for known in KNOWN if known.number == number for phase in known.phases)
    return next((phase for phase in own if phase.name == name), PHASES.get(name))


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
