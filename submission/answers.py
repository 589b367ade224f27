"""What Codabench answers, as far as it is used; held against these types before anything believes it.

The names of the fields are the server's (codalab/codabench, ``src/apps/api/serializers``).
"""

from __future__ import annotations

import math
from contextlib import suppress

import msgspec


class Kit(msgspec.Struct, frozen=True):
    """A file that the organisers give with a phase; without a key there is none."""

    key: str = ""


class Phase(msgspec.Struct, frozen=True):
    """A phase of a competition, as Codabench tells it.

    Attributes:
        id, name: its number and title.
        status: ``Current``, ``Next`` (not begun), ``Previous`` (ended); empty where the server says nothing.
        start, end: ISO 8601; ``end`` is None where a phase stays open.
        has_max_submissions: whether there is a quota at all.
        max_submissions_per_day, max_submissions_per_person: the quota; None or 0 for no limit.
        used_submissions_per_day, used_submissions_per_person: what this account has used of it.
        starting_kit: what participants begin with; it may hold the list of ids.
    """

    id: int
    name: str = ""
    status: str = ""
    start: str | None = None
    end: str | None = None
    has_max_submissions: bool = True
    max_submissions_per_day: int | None = None
    max_submissions_per_person: int | None = None
    used_submissions_per_day: int = 0
    used_submissions_per_person: int = 0
    starting_kit: Kit | None = None

    @property
    def left_today(self) -> int | None:
        """Submissions that are left of the day (server time); None for no limit."""
        return self._left(self.max_submissions_per_day, self.used_submissions_per_day)

    @property
    def left(self) -> int | None:
        """Submissions that are left of the phase; None for no limit."""
        return self._left(self.max_submissions_per_person, self.used_submissions_per_person)

    def _left(self, most: int | None, used: int) -> int | None:
        return max(0, most - used) if self.has_max_submissions and most else None


class Column(msgspec.Struct, frozen=True):
    """A column of a leaderboard."""

    key: str
    index: int = 0


class Leaderboard(msgspec.Struct, frozen=True):
    """A leaderboard; the column of ``primary_index`` ranks."""

    columns: list[Column] = []
    primary_index: int = 0


class Competition(msgspec.Struct, frozen=True):
    """A competition, as Codabench tells it."""

    phases: list[Phase]
    id: int = 0
    title: str = ""
    leaderboards: list[Leaderboard] = []

    @property
    def ranking_key(self) -> str:
        """The score that ranks; empty where the server does not say."""
        keys = (c.key for b in self.leaderboards for c in b.columns if c.index == b.primary_index)
        return next(keys, "")

    @property
    def open_phases(self) -> list[Phase]:
        """The phases that take submissions now."""
        return [phase for phase in self.phases if phase.status in ("Current", "")]

    def listed(self) -> str:
        """All phases in words, for a message."""
        state = {"Previous": " (ended)", "Next": " (not begun)"}
        return ", ".join(f"{p.id} {p.name!r}{state.get(p.status, '')}" for p in self.phases) or "no phases"


class Log(msgspec.Struct):
    name: str
    data_file: str | None = None


class Details(msgspec.Struct):
    logs: list[Log] = []


class Allowed(msgspec.Struct):
    can: bool = False
    reason: str | None = None


class Dataset(msgspec.Struct):
    key: str
    sassy_url: str


class MadeNumber(msgspec.Struct):
    id: int


class Score(msgspec.Struct, frozen=True):
    """One number of a submission; Codabench writes decimals as text."""

    column_key: str
    score: str | float | None = None


class Made(msgspec.Struct, frozen=True):
    """A submission, as Codabench tells it.

    Attributes:
        id: its number.
        status: one of ``Submitting``, ``Submitted``, ``Preparing``, ``Running``, ``Scoring``, ``Finished``,
            ``Failed``, ``Cancelled``; ``unknown`` where the server says nothing.
        phase, phase_name: the phase it was made in.
        filename: name of its file, cut to 35 characters before ``.zip``.
        created_when: ISO 8601.
        status_details: what went wrong, in the server's words.
        scores: none until it has finished.
    """

    id: int
    status: str = "unknown"
    phase: int | None = None
    phase_name: str | None = None
    filename: str | None = None
    created_when: str | None = None
    status_details: str | None = None
    scores: list[Score] = []

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in ("Finished", "Failed", "Cancelled")

    @property
    def values(self) -> dict[str, float]:
        """Column -> number; what is no number is left out."""
        numbers = {}
        for each in self.scores:
            with suppress(TypeError, ValueError):
                numbers[each.column_key] = float(each.score)  # type: ignore[arg-type]
        return {key: number for key, number in numbers.items() if math.isfinite(number)}
