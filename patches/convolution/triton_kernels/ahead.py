"""Compiling kernels into Triton's cache before they are needed, on all processors at once.

One process compiles one kernel after the other, about a second each; a comparison over random problems needs
a thousand variants and would spend nearly all of its time on that.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ... import children, compiling, hashing
from ..problem import ConvProblem, Formats
from . import transformed
from .launch import Launch
from .route import Builder, TritonRoute, lacks_packed_dot, spills_on_amd, tiles_for, tiles_of
from .tiles import Tiles


class Recorder(Builder):
    """A builder that keeps what it builds.

    Attributes:
        made: every launch, in order.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made: list[Launch] = []

    def launch(self, *args: Any, **kwargs: Any) -> Launch:
        self.made.append(super().launch(*args, **kwargs))
        return self.made[-1]


def variant(launch: Launch) -> tuple[Any, ...]:
    """What tells one compiled kernel from another; everything else is an argument at run time."""
    return (launch.kernel.__name__, *launch.constants.values(), *launch.options.values())


def compile_ahead(problems: Iterable[ConvProblem]) -> int:
    """Compile every kernel that the routes will need on this device for problems, forward and backward.

    Activations and gradients are taken to be in the problem's memory format, weights contiguous or in it.
    What does not compile is left for the call that needs it to report.

    Returns:
        How many variants there are.
    """
    wanted = [each for each in dict.fromkeys(problems) if TritonRoute().supports(each)]
    if not wanted or not compiling.can_fork():
        return 0
    # A child that opens no device, and none of its own children does: each would take memory of the card.
    done = subprocess.run(
        children.command(__name__),
        input=pickle.dumps((wanted, compiling.target_here())),
        env={"OMP_NUM_THREADS": "1", **children.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    return int(done.stdout or 0)


def beyond(problems: Iterable[ConvProblem], others: Iterable[ConvProblem]) -> list[ConvProblem]:
    """Those of problems that need a kernel on this device which the Triton route needs for no other."""
    units = compiling.target_here().units
    with hashing.beside():  # the first launch of this process would
        known = variants(others, units, ("triton",))
        return [each for each in problems if not variants([each], units) <= known]


def main() -> None:
    """The child: compile what is wanted, and print how many variants there are."""
    wanted, target = pickle.load(sys.stdin.buffer)
    with hashing.beside():
        work = jobs(wanted, target.units)
    compiling.compile_all(work, target)
    sys.stdout.write(str(len(work)))


def jobs(
    problems: Iterable[ConvProblem], units: int, routes: Iterable[str] = ("triton", "winograd")
) -> list[Callable[[], None]]:
    """Compiling every kernel that routes need for problems on a card of so many compute units.

    Nothing is asked of the device. One job a variant; see :func:`patches.compiling.compile_all`.
    """
    return jobs_of_each(problems, units, routes)[0]


def jobs_of_each(
    problems: Iterable[ConvProblem], units: int, routes: Iterable[str]
) -> tuple[list[Callable[[], None]], dict[ConvProblem, int]]:
    """The same, and for each problem how many of the first jobs make every kernel that it needs."""
    found: dict[tuple[Any, ...], Callable[[], None]] = {}
    counts: dict[ConvProblem, int] = {}
    for p, route in product(problems, routes):
        for launch in _needed(p, units, route):
            found.setdefault((p.dtype, *variant(launch)), partial(launch.compile_ahead, p.dtype))
        counts[p] = len(found)
    return list(found.values()), counts


def variants(
    problems: Iterable[ConvProblem], units: int, routes: Iterable[str] = ("triton", "winograd")
) -> set[tuple[Any, ...]]:
    """What tells the kernels of :func:`jobs` apart."""
    return {
        (p.dtype, *variant(launch))
        for p, route in product(problems, routes)
        for launch in _needed(p, units, route)
    }


def _needed(p: ConvProblem, units: int, route: str) -> Iterator[Launch]:
    """Every launch of a route for a problem, in whichever of its formats the tensors are."""
    tiles = tiles_for(units, p.dtype)
    if serves(p, tiles, route):
        for formats in p.formats:
            yield from launches(p, tiles, formats, winograd=route == "winograd")


def serves(p: ConvProblem, tiles: Tiles, route: str) -> bool:
    """Whether a route serves a problem that the card's types allow."""
    if route == "winograd":
        return tiles.table.winograd is not None and transformed.suits(p)
    return torch.version.hip is None or not spills_on_amd(p)


def launches(
    p: ConvProblem,
    tiles: Tiles | None = None,
    formats: Formats | None = None,
    winograd: bool = False,
    upcast: bool | None = None,
) -> list[Launch]:
    """What a route will launch for a problem, forward and backward; see ``compile_ahead``.

    Args:
        p: the problem.
        tiles: the choice of tiles; the one for the device when None.
        formats: of the tensors; the first of the problem's when None.
        winograd: of the route "winograd", not of "triton".
        upcast: multiply in fp32 what is stored in fp16; as the card of this machine needs when None.
    """
    formats = formats or p.formats[0]

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=p.dtype, device="meta")

    x = empty(p.batch, p.channels_in, p.height, p.width).to(memory_format=formats.x)
    grad = empty(p.batch, p.channels_out, *p.output_size).to(memory_format=formats.grad)
    weight = empty(*p.weight_shape).to(memory_format=formats.weight)
    tiles = tiles or tiles_of(torch.device(p.device), p.dtype)
    recorder = Recorder(0, tiles, upcast=lacks_packed_dot() if upcast is None else upcast, winograd=winograd)
    recorder.forward(p, x, weight, empty(p.channels_out) if p.bias else None)
    recorder.backward(p, grad, x, weight, (True, True, p.bias))
    return recorder.made


if __name__ == "__main__":
    main()
