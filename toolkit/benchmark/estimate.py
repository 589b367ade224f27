"""What the convolutions of a model would cost on an AMD card by a model of that card. No card was measured.

``amd_costs.json`` says what a workgroup of each compiled variant occupies, counted by executing its machine
code (``scripts/count_amd_costs.py``). Here it becomes time: that of the part of the card that is busy
longest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from patches.convolution.problem import ConvProblem, Formats
from toolkit.errors import CallError, ToolkitError

COSTS = Path(__file__).parent / "amd_costs.json"
ROUTES = ("triton", "winograd")
CHAIN_END = 0.3
"""What it takes ``winograd_gather`` to add the products of a chain to four outputs, in steps of its loop: a
hundred instructions, of which a step has 340. It matters where channels fill several chains."""


class Card(NamedTuple):
    """A card as AMD's product page describes it.

    Attributes:
        units: compute units, of two SIMDs of 32 lanes; clock: boost clock, Hz; bandwidth: of its memory,
            bytes/s; dual: vector operations that a SIMD issues in a cycle at most.
    """

    name: str
    units: int
    clock: float
    bandwidth: float
    dual: int = 1

    @property
    def flops(self) -> float:
        """Products and sums of fp32 a second, at most."""
        return 2 * 64 * self.dual * self.units * self.clock


CARDS = {
    "gfx1010": Card("Radeon RX 5600 XT", 36, 1.56e9, 288e9),
    "gfx1030": Card("Radeon RX 6800", 60, 2.105e9, 512e9),
    "gfx1100": Card("Radeon RX 7900 XTX", 96, 2.5e9, 960e9, dual=2),
    "gfx1201": Card("Radeon RX 9070 XT", 64, 2.97e9, 640e9, dual=2),
}


class Work(NamedTuple):
    """What a workgroup occupies, in cycles of a compute unit.

    Attributes:
        arithmetic: of its two SIMDs; lds: passes over the banks of LDS; cache: lines of 128 bytes that its
            accesses touch, one a cycle; alone: from its start to its end, if nothing else ran.
    """

    arithmetic: float
    lds: float
    cache: float
    alone: float


class Cost(NamedTuple):
    """What is known of a variant.

    Attributes:
        resident: workgroups that a compute unit holds, by registers and LDS; fixed: of a workgroup;
        step: what each step of its loop adds.
    """

    resident: int
    fixed: Work
    step: Work


@dataclass(frozen=True)
class Estimate:
    """One launch, or several.

    Attributes:
        seconds: by bound; floors: of arithmetic and of memory, for all that they compute and touch; route:
            whose they are.
    """

    seconds: dict[str, float]
    floors: tuple[float, float]
    route: str = "triton"

    @property
    def total(self) -> float:
        return max(self.seconds.values())

    @property
    def bound(self) -> str:
        return max(self.seconds, key=self.seconds.__getitem__)


@cache
def costs(architecture: str) -> dict[str, Cost]:
    """The table of an architecture, by ``variant_name``."""
    table = json.loads(COSTS.read_text()).get(architecture, {})
    return {name: Cost(r, Work(*fixed), Work(*step)) for name, (r, fixed, step) in table.items()}


def variant_name(launch: Any) -> str:
    """Names a compiled variant by its kernel, its constants and its options."""
    from patches.convolution.triton_kernels.ahead import variant

    return f"{launch.kernel.__name__} {hashlib.sha256(repr(variant(launch)).encode()).hexdigest()[:12]}"


def launches(p: ConvProblem, units: int, route: str = "triton") -> list[Any]:
    """What a route launches on a card: forward, input gradient, weight gradient, its sum.

    "winograd" transforms the weight before each of the first two; nothing where it does not serve.

    Raises:
        ToolkitError: Triton is not installed.
    """
    try:
        from patches.convolution.triton_kernels import ahead, tiles, transformed
    except ImportError as error:
        raise ToolkitError("no estimate", found="no Triton", expected="Triton 3.6 or later") from error
    winograd = route == "winograd"
    if winograd and not transformed.suits(p):
        return []
    table = tiles.Tiles(units, tiles.RDNA)
    return ahead.launches(p, table, Formats.alike(p.memory_format), winograd=winograd)


def passes(route: str) -> tuple[int, ...]:
    """Of each launch of a route: 0 forward, 1 input gradient, 2 weight gradient, 3 its sum."""
    return (0, 0, 1, 1, 2, 3) if route == "winograd" else (0, 1, 2, 3)


def steps(p: ConvProblem, index: int, launch: Any) -> float:
    """Steps that the loops of all workgroups of a launch of pass ``index`` take together."""
    c, taps, grid = launch.constants, math.prod(p.kernel), launch.grid
    pixels = p.batch * math.prod(p.output_size)
    match launch.kernel.__name__:
        case "gather_gemm":
            channels = (p.channels_in, p.channels_out)[index] // p.groups
            if c["FLAT"]:
                return float(grid[0] * grid[1] * math.ceil(channels * taps / c["BLOCK_K"]))
            return float(grid[0] * grid[1] * taps * math.ceil(channels / c["BLOCK_K"]))
        case "winograd_gather":
            channels = (p.channels_in, p.channels_out)[index]
            chains = math.ceil(channels / c["CHAIN"])
            return float(16 * grid[0] * (math.ceil(channels / c["BLOCK_K"]) + CHAIN_END * chains))
        case "weight_gradient":
            return float(grid[0] * grid[1] * math.ceil(pixels / c["BLOCK_K"]))
        case "grouped_weight_gradient":
            return float(grid[0] * grid[1] * math.ceil(pixels / c["BLOCK_P"]))
        case "reduce_partials":
            return float(grid[0] * math.ceil(launch.arguments[0] / c["BLOCK_S"]))
    return 0.0


def traffic(p: ConvProblem, index: int, launch: Any) -> float:
    """Bytes of all tensors of a launch of pass ``index``, each once: what caches cannot save."""
    x = p.batch * p.channels_in * p.height * p.width
    out = p.batch * p.channels_out * math.prod(p.output_size)
    weight = p.channels_out * p.channels_in // p.groups * math.prod(p.kernel)
    size = p.dtype.itemsize
    if launch.kernel.__name__ == "winograd_weight":
        return size * weight * (1 + 16 / 9)
    if launch.kernel.__name__ == "winograd_gather":
        return size * (x + weight * 16 / 9 + out)
    if index < 2:
        return float(size * (x + weight + out))
    partial = 4 * weight * (launch.grid[2] if index == 2 else launch.arguments[0])
    return float(size * (x + out) + partial if index == 2 else partial + size * weight)


def estimate_launch(p: ConvProblem, index: int, launch: Any, card: Card, cost: Cost) -> Estimate:
    """One launch on a card that does nothing else; the time on the processor before it is not in it."""
    programs = math.prod(launch.grid)
    depth = steps(p, index, launch) / programs
    one = Work(*(fixed + depth * step for fixed, step in zip(cost.fixed, cost.step, strict=True)))
    most = math.ceil(programs / card.units)  # workgroups of the compute unit that has most
    memory = traffic(p, index, launch)
    seconds = {
        "arithmetic": most * one.arithmetic / card.clock,
        "LDS": most * one.lds / card.clock,
        "cache": most * one.cache / card.clock,
        "memory": memory / card.bandwidth,
        "latency": math.ceil(most / cost.resident) * one.alone / card.clock,
    }
    products = p.batch * math.prod(p.output_size) * p.channels_out * p.channels_in // p.groups
    taps: float = math.prod(p.kernel) if index < 3 else 0
    taps = {"winograd_weight": 0, "winograd_gather": 16 / 4}.get(launch.kernel.__name__, taps)
    return Estimate(seconds, (2 * products * taps / card.flops, memory / card.bandwidth))


def card(architecture: str) -> Card:
    """The card that stands for an architecture.

    Raises:
        ToolkitError: none does, or nobody has counted what its kernels cost.
    """
    known = [name for name in CARDS if costs(name)]
    if architecture not in known:
        raise CallError(f"no estimate for {architecture}", expected=f"one of {', '.join(known)}")
    return CARDS[architecture]


def layer(p: ConvProblem, architecture: str) -> list[Estimate]:
    """The passes of a layer by the quicker route: forward, input gradient, weight gradient, its sum.

    Raises:
        ToolkitError: nobody has counted what a variant costs that the layer needs.
    """
    found = [by_route(p, architecture, route) for route in ROUTES]
    return min(filter(None, found), key=total)


def by_route(p: ConvProblem, architecture: str, route: str) -> list[Estimate]:
    """The passes of a layer by one of :data:`ROUTES`, as :func:`layer`; nothing where it does not serve.

    Raises:
        ToolkitError: as :func:`layer`.
    """
    known, table = card(architecture), costs(architecture)
    found: dict[int, Estimate] = {}
    for index, launch in zip(passes(route), launches(p, known.units, route), strict=False):
        cost = table.get(variant_name(launch))
        if cost is None:
            raise ToolkitError(
                f"no estimate for {p} on {architecture}",
                found=f"a variant of {launch.kernel.__name__} that nobody has counted",
                expected="layers of the kinds in YOLOv8n and YOLO11n",
            )
        one = replace(estimate_launch(p, index, launch, known, cost), route=route)
        found[index] = after(found[index], one) if index in found else one
    return list(found.values())


def after(first: Estimate, second: Estimate) -> Estimate:
    """Two launches one after the other, as one that is bound by what the second is."""
    seconds = {bound: first.total + each for bound, each in second.seconds.items()}
    floors = first.floors[0] + second.floors[0], first.floors[1] + second.floors[1]
    return Estimate(seconds, floors, second.route)


def total(found: Iterable[Estimate]) -> float:
    """Seconds of launches one after the other."""
    return sum(each.total for each in found)
