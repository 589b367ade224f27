#!/usr/bin/env python3
"""Count what a workgroup of each variant occupies on an AMD card, for `toolkit bench card --estimate`.

    python3 scripts/count_amd_costs.py
    python3 scripts/count_amd_costs.py --arch gfx1010 --missing

Executes workgroups from the middle of two problems that differ in the length of the kernel's loop, as machine
code on this processor (scripts/amdgcn): what both cost gives what a workgroup and a step cost. Writes
toolkit/benchmark/amd_costs.json, row by row: fp32, both layouts, every variant that YOLOv8n and YOLO11n need
at any batch and image size. What a run that was cut off has not counted, the next counts with --missing.
Needs Triton 3.6 or later, no GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import check_amd_isa
import torch
from amdgcn.audit import occupancy
from amdgcn.backend import EmulatedRoute, Settings
from amdgcn.launch import Grid
from amdgcn.variants import compute, operands, passes
from check_amd_isa import Job
from torch.overrides import TorchFunctionMode

from patches.convolution.problem import ConvProblem, Formats
from patches.convolution.triton_kernels.ahead import launches, variant
from patches.convolution.triton_kernels.tiles import RDNA, Table, Tiles
from patches.convolution.triton_kernels.transformed import suits
from toolkit.benchmark import estimate
from toolkit.benchmark.estimate import CARDS, Cost, Work

Rows = dict[str, dict[str, list[Any]]]
"""A row for each variant of each architecture, by ``estimate.variant_name``."""

WIDTHS = (3, 4, 16, 20, 32, 48, 64, 80, 96, 128, 192, 256, 384, 512)


def problems(p: ConvProblem, index: int, units: int) -> Iterator[tuple[ConvProblem, int]]:
    """Problems like ``p`` whose loops in pass ``index`` have other lengths, and compute units for them."""
    if index < 2 and p.groups == 1:
        name = ("channels_in", "channels_out")[index]
        widths = {getattr(p, name), *WIDTHS}
        yield from ((replace(p, **{name: width}), units) for width in sorted(widths))
    elif index < 2:
        yield p, units
    else:
        for batch in (1, 2, 4, 8):
            yield from ((replace(p, batch=batch), some) for some in (1, 8, 36, 128, 512, 4096))


def made(p: ConvProblem, units: int, table: Table, winograd: bool) -> list[Any]:
    """The launches of a problem with a table of tiles, by the route "winograd" or by "triton"."""
    return launches(p, Tiles(units, table), Formats.alike(p.memory_format), winograd, upcast=False)


def count(
    architecture: str, p: ConvProblem, index: int, units: int, table: Table = RDNA, winograd: bool = False
) -> Cost:
    """What launch ``index`` of a problem costs, from two problems with the same variant."""
    wanted = variant(made(p, units, table, winograd)[index])
    number = estimate.passes("winograd" if winograd else "triton")[index]
    found: dict[float, tuple[ConvProblem, int]] = {}
    for problem, some in problems(p, number, units):
        if winograd and not suits(problem):
            continue
        launch = made(problem, some, table, winograd)[index]
        if variant(launch) == wanted:
            depth = estimate.steps(problem, number, launch) / math.prod(launch.grid)
            found.setdefault(depth, (problem, some))
    depths = sorted(found)
    first = next((depth for depth in depths if depth >= 2), depths[-1])
    second = next((depth for depth in depths if depth >= 2 * first), depths[-1])
    resident, one = executed(architecture, *found[first], index, table, winograd)
    if first == second:
        return Cost(resident, one, Work(0, 0, 0, 0))
    _, other = executed(architecture, *found[second], index, table, winograd)
    slope = Work(*((b - a) / (second - first) for a, b in zip(one, other, strict=True)))
    return Cost(resident, Work(*(a - first * s for a, s in zip(one, slope, strict=True))), slope)


def executed(
    architecture: str, p: ConvProblem, units: int, index: int, table: Table, winograd: bool
) -> tuple[int, Work]:
    """Workgroups that a compute unit holds, and what one from the middle of the launch occupies."""
    names = passes(winograd)
    first = names.index(names[index])
    settings = Settings(architecture, counting=True, chosen=partial(middle, phases=first < 2))
    given = operands(p, Formats.alike(p.memory_format))
    with Zeros():
        compute(EmulatedRoute(settings, units, table, winograd), p, given, names[index])
    launched = settings.log[index - first]
    counters = launched.counters
    assert counters is not None
    number = counters.workgroups
    waves = occupancy(architecture, launched.registers, launched.lds, launched.waves)
    work = Work(
        counters.busy() / 2 / number, counters.lds_cycles / number, counters.lines / number,
        counters.alone / counters.waves,
    )  # fmt: skip
    return max(1, 2 * waves // launched.waves), work


class Zeros(TorchFunctionMode):
    """New tensors hold zeros: workgroups that were not executed leave what others read unwritten."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        return made.zero_() if function in (torch.Tensor.new_empty, torch.Tensor.new_empty_strided) else made


def middle(grid: Grid, phases: bool) -> Sequence[int]:
    """A workgroup from the middle of the launch; with ``phases`` one of each, as their taps differ."""
    plane = grid[0] * grid[1]
    return [z * plane + grid[0] // 2 for z in (range(grid[2]) if phases else (0,))]


def jobs() -> list[Job]:
    """Every variant in fp32 with 32-bit offsets and without the large kernels: those of the models."""
    return [
        job
        for job in check_amd_isa.jobs(["gfx1012"])
        if job.problem.dtype == torch.float32 and max(job.problem.kernel) <= 3 and job.problem.batch == 1
        if job.formats is not None and {*job.formats[::2]} == {job.problem.memory_format}
    ]


def variant_of(job: Job) -> str:
    """The name of the job's variant in the table."""
    return estimate.variant_name(check_amd_isa.launches(job)[job.index])


def row(architecture: str, known: dict[str, list[Any]], job: Job) -> tuple[str, list[Any]]:
    """A variant's name and its row of the table, the one that is known if there is one."""
    torch.set_num_threads(1)
    name = variant_of(job)
    if name in known:
        return name, known[name]
    cost = count(architecture, job.problem, job.index, job.units, winograd=job.winograd)
    return name, [cost.resident, *([float(f"{x:.4g}") for x in each] for each in cost[1:])]


def record(table: Rows, architecture: str, rows: Iterable[tuple[str, list[Any]]]) -> None:
    """Write the rows of an architecture in the place of those that are there, each as it comes."""
    table[architecture] = {}
    for name, values in rows:
        table[architecture][name] = values
        write(table)


def write(table: Rows) -> None:
    """The table as ``estimate.costs`` reads it; a run that is cut off here leaves the one before."""
    lines = (
        f' "{architecture}": {{\n'
        + ",\n".join(f'  "{name}": {json.dumps(values)}' for name, values in sorted(rows.items()))
        + "\n }"
        for architecture, rows in table.items()
    )
    unfinished = estimate.COSTS.with_suffix(".unfinished")
    unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    unfinished.replace(estimate.COSTS)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=list(CARDS), choices=list(CARDS))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--missing", action="store_true", help="count what the table lacks alone")
    options = parser.parse_args()
    table: Rows = json.loads(estimate.COSTS.read_text()) if estimate.COSTS.exists() else {}
    with ProcessPoolExecutor(options.processes) as pool:
        for architecture in options.arch:
            known = table.get(architecture, {}) if options.missing else {}
            # Those that are known first, so that a run that is cut off has written them again.
            work = sorted(jobs(), key=lambda job: variant_of(job) not in known)
            record(table, architecture, pool.map(partial(row, architecture, known), work))
            print(f"{architecture}: {len(table[architecture])} variants", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
