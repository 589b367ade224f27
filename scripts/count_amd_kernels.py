#!/usr/bin/env python3
"""Count what the kernels of one layer do on an AMD card, by executing some of their workgroups here.

    python3 scripts/count_amd_kernels.py 64 64 80 --kernel 3
    python3 scripts/count_amd_kernels.py 64 64 80 --arch gfx1100 --workgroups 4

Prints for each launch, a wave: instructions by unit, the share of arithmetic that multiplies and adds, cache
lines of 128 bytes that accesses touch, passes over the banks of LDS without conflicts, and how many times as
many they are with them. These are counts, not times. Needs Triton 3.6 or later, no GPU.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from amdgcn.backend import EmulatedRoute, Settings
from amdgcn.counters import Counters
from amdgcn.launch import Grid
from amdgcn.variants import operands

from patches.convolution.problem import ConvProblem, Formats

COLUMNS = ("valu", "dual", "trans", "matrix", "salu", "lds", "vmem", "smem", "wait")


def layer(options: argparse.Namespace) -> ConvProblem:
    """The layer that the command names, padded to keep its size."""
    k, s = options.kernel, options.stride
    return ConvProblem(
        options.batch, options.channels_in, options.side, options.side, options.channels_out, (k, k), (s, s),
        (k // 2, k // 2), (1, 1), 1, False, torch.float32, "cuda", options.channels_last,
    )  # fmt: skip


def middle(wanted: int, grid: Grid) -> Sequence[int]:
    """So many workgroups from the middle of a launch."""
    count = math.prod(grid)
    wanted = min(wanted, count)
    return range((count - wanted) // 2, (count + wanted) // 2)


def line(name: str, grid: tuple[int, int, int], counters: Counters) -> str:
    """One launch, per wave."""
    units, waves = counters.by_unit(), counters.waves
    fused = sum(
        int(count)
        for step, count in zip(counters.steps, counters.executed, strict=True)
        for half in (step.source, step.source.second)
        if half is not None and half.name.startswith(("v_fma", "v_mac", "v_dot"))
    )
    arithmetic = sum(units.get(unit, 0) for unit in ("valu", "dual", "trans", "matrix"))
    conflicts = counters.lds_cycles / max(counters.lds_least, 1)
    return (
        f"{name:<24} {'x'.join(map(str, grid)):>10}"
        + "".join(f" {units.get(unit, 0) / waves:>7.0f}" for unit in COLUMNS)
        + f" {fused / max(arithmetic, 1):>8.0%} {counters.lines / waves:>7.0f}"
        + f" {counters.lds_least / waves:>7.0f} {conflicts:>9.2f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("channels_in", "channels_out", "side"):
        parser.add_argument(name, type=int)
    parser.add_argument("--kernel", type=int, default=3)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--arch", default="gfx1010")
    parser.add_argument("--units", type=int, default=36, help="compute units of the card")
    parser.add_argument("--workgroups", type=int, default=2, help="executed of each launch, from its middle")
    options = parser.parse_args()
    settings = Settings(options.arch, counting=True, chosen=partial(middle, options.workgroups))
    route, problem = EmulatedRoute(settings, options.units), layer(options)
    x, weight, _, grad = operands(problem, Formats.alike(problem.memory_format))
    route.forward(problem, x, weight, None)
    route.backward(problem, grad, x, weight, (True, True, False))
    heads = "".join(f" {unit:>7}" for unit in COLUMNS)
    print(f"{'kernel':<24} {'grid':>10}{heads} {'mul-add':>8} {'lines':>7} {'LDS':>7} {'conflicts':>9}")
    for each in settings.log:
        assert each.counters is not None
        print(line(each.name, each.grid, each.counters))
    return 0


if __name__ == "__main__":
    sys.exit(main())
