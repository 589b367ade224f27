"""The route winograd against the Triton route, layer by layer: forward pass and input gradient."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from patches.convolution.problem import ConvProblem, Route
from toolkit.benchmark.measure import returned_and_done

LOOPS, ROUNDS = 20, 7
"""Calls of a sample; samples of each route, taken in turn."""

AGREEMENT = 1e-5
"""Largest relative difference of the two routes' answers (Frobenius norm)."""

Routes = tuple[Route, Route]
"""The Triton route, and the one by Winograd's transform."""


@dataclass(frozen=True)
class Pass:
    """One pass of one layer.

    Attributes:
        count: how often the layer comes in a model.
        name: "forward" or "input gradient".
        seconds: of one call by the Triton route and by winograd, medians.
    """

    problem: ConvProblem
    count: int
    name: str
    seconds: tuple[float, float]

    @property
    def figures(self) -> str:
        """Both times, and how many times as long the Triton route takes."""
        triton, winograd = self.seconds
        return f"triton {triton * 1e6:.0f} us, winograd {winograd * 1e6:.0f} us, {triton / winograd:.2f} x"


def routes(units: int) -> Routes:
    """Both routes for a card of so many compute units; winograd with the tiles that serve AMD's cards.

    No table for NVIDIA's cards has tiles for it, so that the route serves nothing there by itself.
    """
    from patches.convolution.triton_kernels import TritonRoute, WinogradRoute
    from patches.convolution.triton_kernels.tiles import NVIDIA, RDNA, Tiles

    table = NVIDIA._replace(winograd=RDNA.winograd, winograd_small=RDNA.winograd_small)
    return TritonRoute(), WinogradRoute(tiles=Tiles(units, table))


def compare(problems: Mapping[ConvProblem, int], both: Routes, device: str) -> Iterator[Pass]:
    """Time both passes of the problems, with their counts, that the second route serves.

    Raises:
        ValueError: the routes disagree.
    """
    for problem, count in problems.items():
        if both[1].supports(problem):
            for name, call in _passes(problem, device).items():
                yield Pass(problem, count, name, _in_turn(call, both, device, f"{name} of {problem}"))


def _passes(problem: ConvProblem, device: str) -> dict[str, Callable[[Route], Any]]:
    shape = (problem.batch, problem.channels_in, problem.height, problem.width)
    x, weight = torch.randn(shape, device=device), torch.randn(problem.weight_shape, device=device)
    bias = torch.randn(problem.channels_out, device=device) if problem.bias else None
    grad = torch.randn(problem.batch, problem.channels_out, *problem.output_size, device=device)
    return {
        "forward": lambda route: route.forward(problem, x, weight, bias),
        "input gradient": lambda route: route.backward(problem, grad, x, weight, (True, False, False))[0],
    }


def _in_turn(call: Callable[[Route], Any], both: Routes, device: str, what: str) -> tuple[float, float]:
    with torch.inference_mode():
        expected, found = (call(route) for route in both)
        difference = float((found - expected).norm() / expected.norm())
        if not difference <= AGREEMENT:
            raise ValueError(f"{what}: winograd differs from triton by {difference:.1e}")
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for route, taken in zip(both, times, strict=True):
                repeated = partial(_repeat, partial(call, route))
                taken.append(returned_and_done(repeated, device)[1] / LOOPS)
    return statistics.median(times[0]), statistics.median(times[1])


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(LOOPS):
        call()
