"""What the wait before a first batch is made of."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Seconds of the wall clock, by what they were spent on; threads that measure at once add up.

    Attributes:
        seconds: in the order in which each was first spent.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Count what is inside."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.add(what, time.monotonic() - start)

    def add(self, what: str, seconds: float) -> None:
        """Count seconds that somebody else measured."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds

    def __str__(self) -> str:
        return described(self.seconds)


def described(seconds: Mapping[str, float]) -> str:
    """As in "start 0.9 s, tests 2.1 s"."""
    return ", ".join(f"{what} {spent:.1f} s" for what, spent in seconds.items())
