#!/usr/bin/env python3
"""Time tiles of the Triton route on the convolutions of a model, beside cuDNN and PyTorch without it.

    python3 scripts/tune_triton.py --quick
    python3 scripts/tune_triton.py --batch 16 --passes weight --out tiles.json

Times are those of the card alone: calls are captured in a graph, a median of replays. Prints a row a layer
and pass (the tile that the route chooses, the best of the candidates, cuDNN with its own search, PyTorch's
own kernels timed with events) and the sums over the model; TF32 off. ``--quick`` times the route's
choice only. Each result is compared with cuDNN's first. ``--out`` is what ``rank_tiles.py`` reads. Needs one
NVIDIA card, torch and Triton.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor

from patches.convolution.problem import ConvProblem
from patches.convolution.triton_kernels.ahead import Recorder
from patches.convolution.triton_kernels.route import tiles_of
from patches.convolution.triton_kernels.tiles import SHORTEST_SPLIT, Table, Tile, Tiles
from patches.convolution.tuning import AGREEMENT
from toolkit.benchmark.measure import load_layers, missing_device, positive

LAYERS = ROOT / "scripts" / "layers"
PASSES = ("forward", "input", "weight")
Shapes = dict[int, list[tuple[int, int, int, int]]]
"""(n, k, warps, stages) of tiles, by their m."""

GATHER: Shapes = {
    16: [(64, 16, 2, 2), (128, 16, 2, 2), (128, 16, 4, 2), (256, 16, 4, 2), (128, 32, 4, 2)],
    32: [(64, 16, 2, 2), (64, 16, 4, 2), (128, 16, 4, 2), (128, 16, 4, 3), (128, 32, 4, 2)],
    64: [
        (32, 16, 2, 2),
        (64, 16, 4, 2),
        (64, 16, 4, 3),
        (64, 32, 4, 2),
        (128, 16, 4, 2),
        (128, 32, 8, 2),
    ],
    128: [(32, 16, 4, 2), (64, 16, 4, 2), (64, 16, 8, 2), (128, 16, 8, 2)],
}
WEIGHT: Shapes = {
    16: [(32, 32, 1, 1), (32, 32, 2, 1), (32, 64, 2, 1), (64, 16, 1, 1), (64, 16, 2, 1)],
    32: [(32, 32, 1, 1), (64, 16, 1, 1), (64, 16, 2, 1), (64, 16, 2, 2), (128, 16, 2, 1)],
    64: [
        (64, 16, 1, 1),
        (64, 16, 2, 1),
        (64, 16, 4, 1),
        (64, 32, 2, 1),
        (128, 16, 2, 1),
        (128, 16, 4, 1),
    ],
    128: [(32, 16, 1, 1), (64, 16, 2, 1), (64, 16, 4, 1)],
}
HALF_GATHER: Shapes = {
    16: [(64, 32, 2, 3), (128, 32, 4, 3), (128, 64, 4, 2), (256, 32, 4, 3)],
    32: [(64, 32, 4, 3), (64, 64, 4, 3), (128, 32, 4, 3), (128, 64, 4, 2), (256, 32, 4, 3)],
    64: [
        (64, 32, 4, 3),
        (64, 64, 4, 3),
        (128, 32, 4, 3),
        (128, 64, 4, 3),
        (128, 64, 8, 3),
        (256, 32, 8, 3),
    ],
    128: [(64, 32, 4, 3), (64, 64, 4, 3), (128, 32, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3)],
}
HALF_WEIGHT: Shapes = {
    16: [(32, 64, 1, 1), (32, 64, 2, 2), (64, 32, 2, 2), (64, 64, 4, 2), (128, 64, 4, 2)],
    32: [(32, 64, 2, 2), (64, 32, 2, 3), (64, 64, 2, 2), (64, 64, 4, 2), (128, 64, 4, 2)],
    64: [
        (64, 32, 4, 3),
        (64, 64, 4, 2),
        (64, 64, 4, 3),
        (128, 32, 4, 3),
        (128, 64, 4, 2),
        (128, 64, 8, 2),
    ],
    128: [(64, 32, 4, 3), (64, 64, 4, 3), (128, 32, 8, 3), (128, 64, 4, 2), (128, 64, 8, 2)],
}


class Fixed(Tiles):
    """One tile for everything; ``waves`` programs a compute unit for the weight gradient."""

    def __init__(self, units: int, table: Table, tile: Tile, waves: int) -> None:
        super().__init__(units, table)
        self.tile, self.waves = tile, waves

    def gather(self, filters: int, pixels: int, channels: int, copies: int, **_: bool) -> Tile:
        return self.tile

    def weight(
        self, filters: int, pairs: int, pixels: int, groups: int, *, wide: bool, channels_last: bool
    ) -> tuple[Tile, int]:
        programs = -(-filters // self.tile.m) * -(-pairs // self.tile.n) * groups
        return self.tile, self.splits(programs, pixels, SHORTEST_SPLIT, self.waves)


class Job(NamedTuple):
    """A pass of a problem with a tile; None is the route's own choice."""

    problem: ConvProblem
    kind: str
    tile: Tile | None
    waves: int
    precision: str
    units: int
    table: Table

    def builder(self) -> Recorder:
        """With the job's tiles."""
        fixed = Fixed(self.units, self.table, self.tile, self.waves) if self.tile else None
        return Recorder(0, fixed or Tiles(self.units, self.table), self.precision)

    def call(self, builder: Recorder, x: Tensor, grad: Tensor, weight: Tensor) -> Callable[[], Any]:
        """The pass as a function of nothing."""
        if self.kind == "forward":
            forward = builder.forward(self.problem, x, weight, None)
            return lambda: forward(x, weight, None)
        needs = (self.kind == "input", self.kind == "weight", False)
        backward = builder.backward(self.problem, grad, x, weight, needs)
        return lambda: backward(grad, x, weight)[needs.index(True)]


def problems(model: str, batch: int, channels_last: bool, dtype: torch.dtype) -> Counter[ConvProblem]:
    """The convolutions of a model, with how often each occurs."""
    found = load_layers(LAYERS / f"{model}.json", batch, "cuda", dtype)
    return Counter(replace(each, channels_last=channels_last, bias=False) for each in found)


def candidates(kind: str, dtype: torch.dtype) -> list[Tile]:
    """The tiles worth trying; those of half precision have the shapes of tensor cores."""
    gather, weight = (GATHER, WEIGHT) if dtype == torch.float32 else (HALF_GATHER, HALF_WEIGHT)
    shapes = weight if kind == "weight" else gather
    return [Tile(m, *rest) for m, found in shapes.items() for rest in found]


def jobs(
    found: Counter[ConvProblem], passes: list[str], quick: bool, precision: str, units: int, table: Table
) -> Iterator[Job]:
    """The route's choice and the candidates worth trying, for each problem and pass."""
    for p, kind in itertools.product(found, passes):
        if kind == "input" and p.channels_in <= 3:
            continue
        yield Job(p, kind, None, 0, precision, units, table)
        if quick or p.groups > 1:
            continue
        written = p.channels_in if kind == "input" else p.channels_out
        for tile in candidates(kind, p.dtype):
            if tile.m <= max(16, written) and (tile.m > 16 or written <= 32):
                for waves in (4, 6, 8) if kind == "weight" else (0,):
                    yield Job(p, kind, tile, waves, precision, units, table)


def tensors(p: ConvProblem, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Input, gradient and weight."""
    make = torch.empty if device == "meta" else torch.randn
    options: Any = {"device": device, "dtype": p.dtype}
    x = make((p.batch, p.channels_in, p.height, p.width), **options)
    grad = make((p.batch, p.channels_out, *p.output_size), **options)
    weight = make((p.channels_out, p.channels_in // p.groups, *p.kernel), **options)
    x, grad, weight = (each.to(memory_format=p.memory_format) for each in (x, grad, weight))
    return x, grad, weight


def compile_ahead(job: Job) -> None:
    """Compile a job's kernels into Triton's cache on disk; what does not compile is reported when it runs."""
    builder = job.builder()
    job.call(builder, *tensors(job.problem, "meta"))
    with suppress(Exception):
        for launch in builder.made:
            launch.compile_ahead(job.problem.dtype)


def vendor(p: ConvProblem, kind: str, x: Tensor, grad: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    """PyTorch's own pass."""
    shape = (list(p.stride), list(p.padding), list(p.dilation), False, [0, 0], p.groups)
    if kind == "forward":
        return lambda: torch.ops.aten.convolution(x, weight, None, *shape)
    needs = (kind == "input", kind == "weight", False)
    index = needs.index(True)
    return lambda: torch.ops.aten.convolution_backward(grad, x, weight, [0], *shape, needs)[index]


def median(call: Callable[[], object], samples: int) -> float:
    """Milliseconds by events."""
    for _ in range(2):
        call()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(samples)
    ]
    for start, end in events:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


def on_the_card(call: Callable[[], object], loops: int = 4, samples: int = 7) -> float:
    """Milliseconds without the host: a graph of several calls, replayed."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(loops):
            call()
    return median(graph.replay, samples) / loops


def named(p: ConvProblem, count: int) -> str:
    """A kind of layer and how many there are, for a row."""
    return f"{p.channels_in}->{p.channels_out} k{p.kernel[0]} s{p.stride[0]} at {p.height} x{count}"


def add_problems(parser: argparse.ArgumentParser) -> None:
    """The options that say which layers and passes."""
    models = sorted(path.stem for path in LAYERS.glob("*.json"))
    parser.add_argument("--model", choices=models, default="yolov8n", help="a file in scripts/layers")
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--passes", nargs="+", default=list(PASSES), choices=PASSES)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_problems(parser)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--precision", default="ieee", choices=["ieee", "tf32x3"])
    parser.add_argument("--quick", action="store_true", help="only the tiles that the route chooses")
    parser.add_argument("--unblocked", action="store_true", help="one running sum instead of one a step")
    parser.add_argument("--out", type=Path, help="write all times as JSON")
    options = parser.parse_args()
    missing = missing_device("cuda")
    if missing:
        sys.exit(missing)

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    dtype = getattr(torch, options.dtype)
    chosen = tiles_of(torch.device("cuda"), dtype)
    found = problems(options.model, options.batch, options.channels_last, dtype)
    table = chosen.table._replace(blocked=not options.unblocked)
    work = list(jobs(found, options.passes, options.quick, options.precision, chosen.units, table))
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_ahead, work, chunksize=4))

    sums: Counter[str] = Counter()
    rows = []
    for (p, kind), group in itertools.groupby(work, key=lambda job: (job.problem, job.kind)):
        inputs = tensors(p, "cuda")
        theirs = vendor(p, kind, *inputs)
        expected = theirs().float()
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            library = on_the_card(theirs)
        with torch.backends.cudnn.flags(enabled=False):
            off = median(theirs, 5)
        times: dict[tuple[Tile | None, int], float] = {}
        for job in group:
            try:
                call = job.call(job.builder(), *inputs)
                error = float((call().float() - expected).norm() / expected.norm())
                if not error < AGREEMENT[p.dtype]:
                    print(f"wrong by {error:.1e}: {job}", file=sys.stderr)
                    continue
                times[job.tile, job.waves] = on_the_card(call)
            except Exception as failure:
                print(f"{type(failure).__name__}: {job}", file=sys.stderr)
        best = min(times, key=times.__getitem__)
        line = {"chosen": times[None, 0], "best": times[best], "cudnn": library, "off": off}
        sums.update({name: value * found[p] for name, value in line.items()})
        sums.update({f"{kind} {name}": value * found[p] for name, value in line.items()})
        each = [(tile, waves, time) for (tile, waves), time in times.items()]
        rows.append({"problem": str(p), "kind": kind, "count": found[p], **line, "times": each})
        what = named(p, found[p])
        figures = " ".join(f"{name} {value:.3f}" for name, value in line.items())
        print(f"{what:<30} {kind:<8} {figures} best tile {best}", flush=True)
    for name, value in sorted(sums.items()):
        print(f"{name:<16} {value:8.2f} ms")
    if options.out:
        about = {"device": torch.cuda.get_device_name(), "units": chosen.units, **vars(options), "out": None}
        options.out.write_text(json.dumps({**about, "rows": rows}))


if __name__ == "__main__":
    main()
