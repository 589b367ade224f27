#!/usr/bin/env python3
"""Drop instructions of the kernels for an AMD card, one at a time, and see whether executing them notices.

    python3 scripts/plant_amd_faults.py
    python3 scripts/plant_amd_faults.py --arch gfx1201 --random 40

Every barrier and every wait of each kernel is dropped, and some other instructions at random. Fails when a
dropped barrier or wait is missed that something depended on, or when fewer than 85 % of the others are
noticed or shown to be redundant. Needs Triton, no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from amdgcn.backend import EmulatedRoute, Settings
from amdgcn.launch import Kernel
from amdgcn.planted import MISSED, REDUNDANT, Drop, Planter

from patches.convolution.problem import ConvProblem
from patches.convolution.statistics import TileStatistics

PLAIN = ConvProblem(1, 16, 7, 9, 20, (3, 3), (1, 1), (1, 1), (1, 1), 1, False, torch.float32, "cpu", False)
# Other sizes of the same variants: larger, with several splits, with rows longer than a tile, with images
# smaller than a step.
LARGER = replace(PLAIN, batch=2, channels_in=32, height=11, width=5, channels_out=28)
SPLIT = replace(PLAIN, batch=3, channels_in=48, height=19, width=17, channels_out=24)
LONG = replace(PLAIN, batch=5, height=2, width=37, channels_out=28)
SMALL = replace(PLAIN, batch=29, height=1, width=3)
SEVERAL = (PLAIN, LARGER, SPLIT, LONG, SMALL)
DEPTHWISE = replace(PLAIN, channels_out=16, groups=16)
MANY = replace(DEPTHWISE, batch=13, channels_in=24, height=5, width=11, channels_out=24, groups=24)
# The kernel, the pass that launches it, and the problems on which it runs.
KERNELS = {
    "gather_gemm": ("forward", SEVERAL),
    "weight_gradient": ("weight", SEVERAL),
    "reduce_partials": ("weight", SEVERAL),
    "grouped_gather": ("forward", (DEPTHWISE, MANY)),
}
SHARE = 0.85


def case(architecture: str, problem: ConvProblem, which: str) -> Callable[[Callable[[Kernel], Kernel]], bool]:
    """A function that runs one pass with rewritten kernels, and says whether its numbers are right."""
    generator = torch.Generator().manual_seed(0)
    p = problem
    x = torch.randn(p.batch, p.channels_in, p.height, p.width, generator=generator)
    weight = torch.randn(p.channels_out, p.channels_in // p.groups, *p.kernel, generator=generator)
    bias = torch.randn(p.channels_out, generator=generator) if p.bias else None
    grad = torch.randn(p.batch, p.channels_out, *p.output_size, generator=generator)
    leaf = weight.double().requires_grad_()
    wanted = F.conv2d(
        x.double(), leaf, None if bias is None else bias.double(), p.stride, p.padding, p.dilation, p.groups
    )
    if which == "weight":
        wanted.backward(grad.double())
        assert leaf.grad is not None
        wanted = leaf.grad
    settings = Settings(architecture)
    route = EmulatedRoute(settings)

    def run(rewrite: Callable[[Kernel], Kernel]) -> bool:
        settings.rewrite = rewrite
        got: Any
        if which == "forward" and route.sums(p):
            got, left = route.forward_with_statistics(p, x, weight)
            truth = TileStatistics.of(got, left.pixels).table
            if not (left.table - truth).norm() < 2e-6 * truth.norm():
                return False
        elif which == "forward":
            got = route.forward(p, x, weight, bias)
        else:
            got = route.backward(p, grad, x, weight, (False, True, False))[1]
        error = (got.double() - wanted.detach()).norm() / wanted.detach().norm()
        return bool(error < 2e-6)

    return run


def report(kind: str, drops: list[Drop]) -> list[Drop]:
    """Print what was found, and return what was missed."""
    counts = Counter(drop.found for drop in drops)
    faults = Counter(drop.why for drop in drops if drop.found not in (REDUNDANT, MISSED) and drop.why)
    said = ", ".join(f"{count} {found}" for found, count in counts.most_common())
    print(f"  {kind}: {len(drops)} dropped: {said} ({dict(faults)})", flush=True)
    for why, count in Counter(drop.why for drop in drops if drop.found == REDUNDANT).items():
        print(f"    redundant: {count}, {why}")
    missed = [drop for drop in drops if drop.found == MISSED]
    for drop in missed:
        print(f"    missed: {drop.text} (instruction {drop.index})")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="gfx1010")
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=list(KERNELS))
    parser.add_argument("--random", type=int, default=60, help="other instructions of each kernel")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    failed, others, missed = False, 0, 0
    for name in options.kernels:
        which, problems = KERNELS[name]
        planter = Planter(name, [case(options.arch, problem, which) for problem in problems])
        print(f"{options.arch} {name}", flush=True)
        for kind in ("barrier", "wait"):
            failed |= bool(report(f"{kind}s", list(planter.drops(kind))))
        drops = list(planter.drops("any", options.random, options.seed))
        missed += len(report("others", drops))
        others += len(drops)
    share = 1 - missed / max(others, 1)
    print(f"others noticed or shown to be redundant: {share:.0%} of {others}, wanted {SHARE:.0%}")
    return 1 if failed or share < SHARE else 0


if __name__ == "__main__":
    sys.exit(main())
