#!/usr/bin/env python3
"""Hold the model of a card against times: does it put the tiles of the Triton route into the right order?

    python3 scripts/tune_triton.py --out tiles.json       # on an H100
    python3 scripts/rank_tiles.py --measured tiles.json   # on any machine

Compiles each tile that ``tune_triton.py`` tries for an H100, counts what a program of it occupies in its
machine code (scripts/hopper), and turns that into time as ``toolkit bench card --estimate`` does for AMD's
cards. Prints, for each layer and pass, the tile that the model would choose and its time; beside measured
times the rank correlation over the tiles (Spearman), and how much slower than the quickest the model's choice
is. Without ``--measured`` it prints the model's side alone. fp32; needs torch and Triton 3.6 or later.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])

import polars
import torch
import tune_triton
from hopper.work import H100, cost
from tune_triton import PASSES, Job

from patches import compiling
from patches.convolution.problem import ConvProblem
from patches.convolution.triton_kernels.ahead import variant
from patches.convolution.triton_kernels.launch import Launch
from patches.convolution.triton_kernels.tiles import NVIDIA, Tile
from toolkit.benchmark.estimate import Cost, estimate_launch
from toolkit.benchmark.measure import positive

TARGET = compiling.Target("cuda", 90, 32, H100.units)
Variant = tuple[Any, ...]
Times = dict[tuple[Tile | None, int], float]
"""Seconds by tile, None for the route's own, and waves."""


class Ranked(NamedTuple):
    """A layer's pass.

    Attributes:
        count: layers like it; modelled, measured: seconds by tile; measured may be empty.
    """

    problem: ConvProblem
    kind: str
    count: int
    modelled: Times
    measured: Times

    @property
    def correlation(self) -> float:
        """Spearman's, over the tiles that were measured; NaN with fewer than three, or all alike."""
        shared = [tile for tile in self.modelled if tile in self.measured]
        if len(shared) < 3:
            return math.nan
        sides = {"model": self.modelled, "card": self.measured}
        pairs = polars.DataFrame({name: [side[tile] for tile in shared] for name, side in sides.items()})
        return float(pairs.select(polars.corr("model", "card", method="spearman")).item())

    @property
    def choice(self) -> tuple[Tile | None, int]:
        """What the model would choose, of those that were measured."""
        known = self.measured or self.modelled
        return min((tile for tile in self.modelled if tile in known), key=self.modelled.__getitem__)


@functools.cache
def launches(job: Job) -> list[Launch]:
    """What a job launches."""
    builder = job.builder()
    job.call(builder, *tune_triton.tensors(job.problem, "meta"))
    return builder.made


def _cost(wanted: tuple[Job, int]) -> Cost | None:
    """Of a launch of a job; None for what does not compile, or has several loops."""
    job, index = wanted
    try:
        return cost(launches(job)[index].compile_ahead(job.problem.dtype))
    except Exception as error:
        print(f"{type(error).__name__}: {error}: {job.kind} {job.tile}", file=sys.stderr)
        return None


def costs(work: list[Job], processes: int) -> dict[Variant, Cost]:
    """What each compiled variant of the jobs' kernels occupies."""
    wanted: dict[Variant, tuple[Job, int]] = {}
    for job in work:
        for index, launch in enumerate(launches(job)):
            wanted.setdefault(variant(launch), (job, index))
    print(f"compiling {len(wanted)} kernels for sm_90", file=sys.stderr)
    with ProcessPoolExecutor(processes, get_context("spawn"), compiling.without_device, (TARGET,)) as pool:
        found = pool.map(_cost, wanted.values(), chunksize=4)
        return {name: each for name, each in zip(wanted, found, strict=True) if each is not None}


def modelled(job: Job, table: dict[Variant, Cost]) -> float | None:
    """Seconds of a job by the model; None where a variant of it is not known."""
    seconds = 0.0
    for launch in launches(job):
        known = table.get(variant(launch))
        if known is None:
            return None
        index = 3 if launch.kernel.__name__ == "reduce_partials" else PASSES.index(job.kind)
        seconds += estimate_launch(job.problem, index, launch, H100, known).total
    return seconds


def measured(rows: list[dict[str, Any]], p: ConvProblem, kind: str) -> Times:
    """What ``tune_triton.py`` wrote about a layer's pass."""
    return {
        (None if tile is None else Tile(*tile), waves): milliseconds / 1e3
        for row in rows
        if (row["problem"], row["kind"]) == (str(p), kind)
        for tile, waves, milliseconds in row["times"]
    }


def ranked(
    work: list[Job], table: dict[Variant, Cost], counts: dict[ConvProblem, int], rows: list[dict[str, Any]]
) -> Iterator[Ranked]:
    """Each layer's pass with its times."""
    for (p, kind), group in itertools.groupby(work, key=lambda job: (job.problem, job.kind)):
        times = {(job.tile, job.waves): modelled(job, table) for job in group}
        known = {tile: time for tile, time in times.items() if time is not None}
        if known:
            yield Ranked(p, kind, counts[p], known, measured(rows, p, kind))


def described(each: Ranked) -> str:
    """A line of the table."""
    p, best = each.problem, each.choice
    what = tune_triton.named(p, each.count)
    tile = "the route's" if best[0] is None else " ".join(map(str, best[0][:5]))
    line = f"{what:<30} {each.kind:<8} model {each.modelled[best] * 1e6:7.1f} us, tile {tile:<13}"
    if not each.measured:
        return line
    card, least = each.measured[best], min(each.measured.values())
    return (
        f"{line} card {card * 1e6:7.1f} us, least {least * 1e6:7.1f} us, {card / least:4.2f} x,"
        f" rank {each.correlation:5.2f} of {len(each.measured)}"
    )


def summary(found: list[Ranked], kind: str) -> str:
    """A pass over all layers."""
    own = (None, 0)
    mine = [each for each in found if each.kind == kind and own in each.modelled]
    model = sum(each.count * each.modelled[own] for each in mine)
    line = f"{kind}: the route's tiles take {model * 1e3:.2f} ms by the model"
    judged = [each for each in mine if not math.isnan(each.correlation)]
    if not judged:
        return line
    card = sum(each.count * each.measured[own] for each in judged)
    least = sum(each.count * min(each.measured.values()) for each in judged)
    chosen = sum(each.count * each.measured[each.choice] for each in judged)
    middle = statistics.median(each.correlation for each in judged)
    return (
        f"{line}, {card * 1e3:.2f} ms on the card; rank correlation {middle:.2f} (median of {len(judged)});"
        f" the model's tiles take {chosen / least:.2f} x the least time, the route's {card / least:.2f} x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tune_triton.add_problems(parser)
    parser.add_argument("--measured", type=Path, help="what tune_triton.py --out wrote; names the layers too")
    parser.add_argument("--layers", type=positive, help="the first so many alone")
    parser.add_argument("--processes", type=positive, default=os.cpu_count() or 1)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if options.measured:
        try:
            told = json.loads(options.measured.read_text())
            rows, dtype, precision = told["rows"], told["dtype"], told["precision"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f"{options.measured} is not what tune_triton.py --out writes: {error!r}")
        if (dtype, precision) != ("float32", "ieee"):
            sys.exit(f"{options.measured}: times of {dtype}, {precision}; the model is of float32, ieee")
        vars(options).update({name: told[name] for name in ("model", "batch", "channels_last", "passes")})
        print(f"measured on {told['device']}")
    counts = tune_triton.problems(options.model, options.batch, options.channels_last, torch.float32)
    some = dict(itertools.islice(counts.items(), options.layers))
    work = list(tune_triton.jobs(some, options.passes, False, "ieee", H100.units, NVIDIA))
    found = []
    for each in ranked(work, costs(work, options.processes), counts, rows):
        print(described(each), flush=True)
        found.append(each)
    for kind in options.passes:
        print(summary(found, kind))


if __name__ == "__main__":
    main()
