"""Executing each variant of the kernels of batch norm and activation on a small problem that needs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from itertools import product

from patches.convolution.triton_kernels.ahead import variant
from patches.normalization import selftest
from patches.normalization.launches import Kernels
from patches.normalization.problem import NormProblem

from .backend import EmulatedNorm, Settings
from .variants import Key

SIDES = ((3, 5), (4, 4), (5, 8), (8, 8), (13, 7), (12, 12), (20, 20), (24, 24), (36, 36), (48, 48))


def variants(problem: NormProblem, units: int) -> list[Key]:
    """The variants that a problem launches, in order."""
    return [variant(launch) for launch, _ in Kernels(problem, 0, units).launches()]


def smallest(problem: NormProblem, index: int, units: int) -> NormProblem:
    """The smallest problem found with the same variant as launch ``index``; the problem itself at worst."""
    wanted = variants(problem, units)[index]
    for candidate in sorted(candidates(problem), key=lambda each: each.count * each.channels):
        if variants(candidate, units)[index] == wanted:
            return candidate
    return problem


def candidates(problem: NormProblem) -> Iterator[NormProblem]:
    """Smaller problems of the kind."""
    p = problem
    sides = {(p.height, p.width), *(side for side in SIDES if side[0] * side[1] < p.height * p.width)}
    channels = {p.channels, *(n for n in (1, 2, 4, 8, 16, 19, 24, 32, 48, 64) if n < p.channels)}
    batches = {p.batch, *(n for n in (1, 2, 3, 5, 9) if n < p.batch)}
    for (height, width), number, batch in product(sides, channels, batches):
        yield replace(p, height=height, width=width, channels=number, batch=batch)


def execute(problem: NormProblem, architecture: str, units: int) -> str:
    """Execute all launches of the problem; "" where all is right, else what is wrong."""
    with redirect_stdout(StringIO()):  # it says where it is, for a parent that may have to end it
        return selftest.compare(EmulatedNorm(problem, Settings(architecture), units), "cpu")
