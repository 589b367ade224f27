"""Training on two processes, as torchrun starts them: replicated, and sharded."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator

from .comparing import MOST, PROGRAMS, Row, calls, complaint, run, said, worst

PER_RANK = 12
"""Convolutions of a rank: two layers, forward and backward, three steps."""


def rows() -> Iterator[Row]:
    """A row a kind."""
    yield from map(_row, ("DDP", "FSDP"))


def _row(kind: str) -> Row:
    begun = time.perf_counter()
    name = f"{kind}, two processes"
    with tempfile.TemporaryDirectory() as folder:
        done = [run(folder, PROGRAMS / "rank.py", kind, served=each, torchrun=2) for each in (False, True)]
    seconds, served = time.perf_counter() - begun, calls(done[1])
    if complaint(done):
        return Row(name, False, complaint(done), served, seconds)
    sums = [said(each)["sums"] for each in done]
    passed = worst(sums[1], sums[0]) <= MOST and served == 2 * PER_RANK
    return Row(name, passed, f"{worst(sums[1], sums[0]):.1e}", served, seconds)
