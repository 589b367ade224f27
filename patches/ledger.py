"""Who serves each kind of call, and how often: what the report counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .convolution.problem import ConvProblem, Route
from .report import FallThrough, ProblemUse, Report

MOST_KEYS = 8192
"""Distinct calls remembered; a run with random image sizes must not grow without bound."""


class Entry:
    """Who serves a key, and how often; the counts are exact while one thread runs each direction.

    Attributes:
        problem, route: None for a call that goes to PyTorch's own kernels untouched.
        reason: why it does; empty otherwise.
        is_row: whether it is 1-d, and the problem that of images with a single row.
        answering: the forward pass for who asks for statistics; None while nobody has.
    """

    __slots__ = ("answering", "backward", "forward", "is_row", "problem", "reason", "route")

    def __init__(
        self, problem: ConvProblem | None, route: Route | None, reason: str, is_row: bool = False
    ) -> None:
        self.problem, self.route, self.reason, self.is_row = problem, route, reason, is_row
        self.forward = self.backward = 0
        self.answering: Callable[..., Tensor] | None = None


class Ledger:
    """The entries of a session by the keys of their calls, and the counts of those that were dropped.

    Attributes:
        entries: key -> entry. retired: entries whose route was struck off.
    """

    def __init__(self) -> None:
        self.entries: dict[tuple[Any, ...], Entry] = {}
        self.retired: list[Entry] = []
        self._further: dict[str, int] = {}
        self._passed: dict[str, int] = {}

    def add(self, key: tuple[Any, ...], entry: Entry) -> Entry:
        """Remember who serves a key from now on."""
        if len(self.entries) >= MOST_KEYS:
            self.forget()
        self.entries[key] = entry
        return entry

    def count(self, reason: str) -> None:
        """Count a call that has no entry."""
        self._passed[reason] = self._passed.get(reason, 0) + 1

    def forget(self) -> None:
        """Drop every key, and keep of its counts what does not grow: the sums by route and by reason."""
        for entry in (*self.retired, *self.entries.values()):
            if entry.route is None:
                sums, name = self._passed, entry.reason
            else:
                sums, name = self._further, entry.route.name
            sums[name] = sums.get(name, 0) + entry.forward + entry.backward
        self.retired.clear()
        self.entries.clear()

    def strike(self, route: Route) -> None:
        """Let the keys that a route served be decided anew, and keep its counts."""
        struck = [key for key, entry in self.entries.items() if entry.route is route]
        self.retired += [self.entries.pop(key) for key in struck]

    def problems(self) -> set[ConvProblem]:
        """What came so far."""
        return {entry.problem for entry in self.entries.values() if entry.problem is not None}

    def report(self, **facts: Any) -> Report:
        """The counters as a value, with what else the session knows."""
        entries = [*self.retired, *self.entries.values()]
        uses: dict[tuple[ConvProblem, str], tuple[int, int]] = {}
        passed = dict(self._passed)
        for entry in entries:
            if entry.problem is None or entry.route is None:
                passed[entry.reason] = passed.get(entry.reason, 0) + entry.forward + entry.backward
            else:
                forward, backward = uses.get((entry.problem, entry.route.name), (0, 0))
                uses[entry.problem, entry.route.name] = (forward + entry.forward, backward + entry.backward)
        return Report(
            **facts,
            problems=tuple(ProblemUse(problem, route, *counts) for (problem, route), counts in uses.items()),
            fall_throughs=tuple(FallThrough(reason, calls) for reason, calls in passed.items()),
            further=tuple(self._further.items()),
        )
