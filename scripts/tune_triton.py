"""Time every tile of the Triton route on the layers of YOLOv8n (or of a list), beside cuDNN and library-off.

    python scripts/tune_triton.py --layers yolov8n --batch 16 --out tune.json

Prints, a row a layer and pass, the chosen tile's time, the best tile's, cuDNN's and library-off's (ms, medians of
events, fp32, TF32 off). Needs one GPU, torch and Triton; nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

from patches.convolution.problem import ConvProblem  # noqa: E402
from patches.convolution.triton_kernels.route import Builder  # noqa: E402
from patches.convolution.triton_kernels.tiles import Tile, Tiles  # noqa: E402

# (channels in, channels out, kernel, stride, input size, groups, how many in the model) at 640 pixels.
LAYERS = {
    "yolov8n": [
        (3, 16, 3, 2, 640, 1, 1), (16, 32, 3, 2, 320, 1, 1), (32, 32, 1, 1, 160, 1, 1), (16, 16, 3, 1, 160, 1, 2),
        (48, 32, 1, 1, 160, 1, 1), (32, 64, 3, 2, 160, 1, 1), (64, 64, 1, 1, 80, 1, 2), (32, 32, 3, 1, 80, 1, 6),
        (128, 64, 1, 1, 80, 1, 1), (64, 128, 3, 2, 80, 1, 1), (128, 128, 1, 1, 40, 1, 1), (64, 64, 3, 1, 40, 1, 10),
        (256, 128, 1, 1, 40, 1, 1), (128, 256, 3, 2, 40, 1, 1), (256, 256, 1, 1, 20, 1, 1),
        (128, 128, 3, 1, 20, 1, 4), (384, 256, 1, 1, 20, 1, 3), (256, 128, 1, 1, 20, 1, 1),
        (512, 256, 1, 1, 20, 1, 1), (384, 128, 1, 1, 40, 1, 1), (192, 128, 1, 1, 40, 1, 3),
        (192, 64, 1, 1, 80, 1, 1), (96, 64, 1, 1, 80, 1, 1), (64, 64, 3, 2, 80, 1, 1), (128, 128, 3, 2, 40, 1, 1),
        (64, 64, 3, 1, 80, 1, 4), (128, 64, 3, 1, 40, 1, 2), (64, 64, 1, 1, 40, 1, 1), (256, 64, 3, 1, 20, 1, 2),
        (64, 64, 3, 1, 20, 1, 2), (64, 64, 1, 1, 20, 1, 1), (64, 4, 1, 1, 80, 1, 1), (64, 4, 1, 1, 40, 1, 1),
        (64, 4, 1, 1, 20, 1, 1),
    ],
    "yolo11n": [
        (16, 8, 3, 1, 160, 1, 1), (8, 16, 3, 1, 160, 1, 1), (48, 64, 1, 1, 160, 1, 1), (64, 64, 3, 2, 160, 1, 1),
        (32, 16, 3, 1, 80, 1, 2), (16, 32, 3, 1, 80, 1, 2), (128, 128, 3, 2, 80, 1, 1), (64, 32, 3, 1, 40, 1, 2),
        (128, 128, 3, 1, 20, 128, 1), (64, 64, 3, 1, 80, 64, 2), (128, 128, 3, 1, 40, 128, 1),
        (256, 256, 3, 1, 20, 256, 1),
    ],
}  # fmt: skip

GATHER = [
    Tile(m, n, k, w, s)
    for m, n, k, w, s in [
        (16, 128, 16, 4, 2), (16, 256, 16, 4, 2), (16, 256, 16, 8, 2), (16, 128, 16, 2, 2), (16, 256, 16, 4, 3),
        (16, 256, 32, 4, 2), (16, 128, 32, 4, 2), (16, 64, 16, 2, 2),
        (32, 64, 16, 2, 2), (32, 64, 16, 4, 2), (32, 128, 16, 4, 2), (32, 128, 16, 4, 3), (32, 256, 16, 8, 2),
        (32, 256, 16, 4, 2), (32, 128, 32, 4, 2),
        (64, 32, 16, 2, 2), (64, 32, 16, 4, 2), (64, 64, 16, 4, 2), (64, 64, 16, 4, 3), (64, 64, 32, 4, 2),
        (64, 64, 16, 2, 2), (64, 64, 8, 4, 3), (64, 128, 16, 4, 2), (64, 128, 16, 8, 2), (64, 128, 8, 4, 3),
        (64, 128, 16, 4, 3), (64, 128, 32, 8, 2),
        (128, 64, 16, 4, 2), (128, 64, 16, 8, 2), (128, 32, 16, 4, 2), (128, 128, 16, 8, 2), (128, 128, 8, 8, 3),
    ]
]  # fmt: skip
WEIGHT = [
    Tile(m, n, k, w, s)
    for m, n, k, w, s in [
        (16, 32, 32, 2, 1), (16, 32, 32, 1, 1), (16, 64, 16, 2, 1), (16, 64, 16, 1, 1), (16, 32, 64, 2, 1), (16, 32, 32, 2, 2),
        (16, 128, 16, 2, 1), (16, 32, 16, 1, 1),
        (32, 32, 16, 1, 1), (32, 64, 16, 1, 1), (32, 64, 16, 2, 1), (32, 64, 32, 2, 1), (32, 64, 16, 2, 2),
        (32, 32, 32, 1, 1), (32, 128, 16, 2, 1),
        (64, 32, 16, 1, 1), (64, 64, 16, 1, 1), (64, 64, 16, 2, 1), (64, 64, 16, 2, 2), (64, 64, 32, 2, 1),
        (64, 128, 16, 2, 1), (128, 64, 16, 2, 1), (64, 128, 16, 4, 1), (128, 64, 16, 4, 1), (128, 32, 16, 2, 1),
        (128, 32, 16, 1, 1),
    ]
]  # fmt: skip


class Fixed(Tiles):
    """One tile for everything, splits for so many programs a compute unit."""

    def __init__(self, units: int, tile: Tile, waves: int) -> None:
        super().__init__(units)
        self.tile, self.waves = tile, waves

    def gather(self, filters: int, pixels: int, channels: int, copies: int) -> Tile:
        return self.tile

    def weight(self, filters: int, pairs: int, pixels: int, groups: int) -> tuple[Tile, int]:
        tiles = -(-filters // self.tile.m) * -(-pairs // self.tile.n) * groups
        return self.tile, max(1, min(self.waves * self.units // tiles, pixels // (8 * self.tile.k), 1024))


def problem(layer: tuple[int, ...], batch: int, channels_last: bool) -> ConvProblem:
    ci, co, k, s, size, groups, _ = layer
    return ConvProblem(
        batch, ci, size, size, co, (k, k), (s, s), (k // 2, k // 2), (1, 1), groups, False, torch.float32, "cuda", channels_last
    )  # fmt: skip


def tensors(p: ConvProblem, device: str) -> tuple[torch.Tensor, ...]:
    layout = torch.channels_last if p.channels_last else torch.contiguous_format
    shapes = ((p.batch, p.channels_in, p.height, p.width), (p.batch, p.channels_out, *p.output_size),
              (p.channels_out, p.channels_in // p.groups, *p.kernel))  # fmt: skip
    make = torch.empty if device == "meta" else torch.randn
    return tuple(make(s, device=device).to(memory_format=layout) for s in shapes)


def calls(builder: Builder, p: ConvProblem, x, grad, w, kind: str):
    if kind == "forward":
        call = builder.forward(p, x, w, None)
        return lambda: call(x, w, None)
    call = builder.backward(p, grad, x, w, (kind == "input", kind == "weight", False))
    return lambda: call(grad, x, w)[0 if kind == "input" else 1]


def variants(layers, passes, quick):
    """(layer, pass, tile or None for the route's own choice, waves)."""
    for layer in layers:
        ci, co, k, _, size, groups, _ = layer
        for kind in passes:
            if kind == "input" and ci == 3:
                continue
            yield layer, kind, None, 0
            if quick or groups > 1:
                continue
            wide = {"forward": co, "input": ci, "weight": co}[kind]
            for tile in WEIGHT if kind == "weight" else GATHER:
                if tile.m > max(16, wide) or (tile.m == 16 and wide > 32):
                    continue
                if kind == "weight" and tile.n > max(32, 2 * ci * k * k):
                    continue
                for waves in (3, 4, 6, 8) if kind == "weight" else (0,):
                    yield layer, kind, tile, waves


def compile_one(job) -> str:
    layer, kind, tile, waves, batch, channels_last, units = job
    import patches.convolution.triton_kernels.launch as launching

    made = []
    original = launching.Launch.__init__

    def remember(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append(self)

    launching.Launch.__init__ = remember
    try:
        p = problem(layer, batch, channels_last)
        x, grad, w = tensors(p, "meta")
        builder = Builder(0, Fixed(units, tile, waves) if tile else Tiles(units))
        calls(builder, p, x, grad, w, kind)
        empty = torch.empty(4, device="meta")
        for one in made:
            names = [n for n in one.kernel.arg_names]
            pointers = {"src", "weight", "bias", "out", "grad", "partial", "weight_grad", "bias_grad"}
            count = len([n for n in names if n in pointers])
            args = [None if n in ("bias", "bias_grad") else empty for n in names[:count]]
            one.kernel.warmup(*args, *one._arguments, grid=one.grid, **one.options)
    except Exception as error:  # noqa: BLE001
        return f"{layer} {kind} {tile}: {type(error).__name__} {error}"[:300]
    finally:
        launching.Launch.__init__ = original
    return ""


def median(call, reps: int) -> float:
    for _ in range(2):
        call()
    start = [torch.cuda.Event(enable_timing=True) for _ in range(reps)]
    end = [torch.cuda.Event(enable_timing=True) for _ in range(reps)]
    for a, b in zip(start, end, strict=True):
        a.record()
        call()
        b.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(start, end, strict=True))


def graphed(call, reps: int = 7) -> float:
    """GPU time without the host: the call captured in a graph."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(4):
            call()
    return median(graph.replay, reps) / 4


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", default="yolov8n")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--passes", default="forward,input,weight")
    parser.add_argument("--quick", action="store_true", help="only the tiles that the route chooses")
    parser.add_argument("--out")
    args = parser.parse_args()
    units = torch.cuda.get_device_properties(0).multi_processor_count
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    layers = list(itertools.chain.from_iterable(LAYERS[name] for name in args.layers.split(",")))
    jobs = list(variants(layers, args.passes.split(","), args.quick))
    clock = time.time()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        work = [(*job, args.batch, args.channels_last, units) for job in jobs]
        for message in sorted(set(filter(None, pool.map(compile_one, work, chunksize=8)))):
            print(message)
    print(f"{len(jobs)} jobs compiled in {time.time() - clock:.0f} s", flush=True)
    rows = []
    total = {"chosen": 0.0, "best": 0.0, "cudnn": 0.0, "off": 0.0}
    by_kind = {}
    for (layer, kind), group in itertools.groupby(jobs, key=lambda job: (job[0], job[1])):
        p = problem(layer, args.batch, args.channels_last)
        x, grad, w = tensors(p, "cuda")
        mask = (kind == "input", kind == "weight", False)
        conv = (list(p.stride), list(p.padding), list(p.dilation), False, [0, 0], p.groups)

        def vendor():
            if kind == "forward":
                return torch.ops.aten.convolution(x, w, None, *conv)
            return torch.ops.aten.convolution_backward(grad, x, w, [0], *conv, mask)[
                0 if kind == "input" else 1
            ]

        want = vendor()
        torch.backends.cudnn.benchmark = True
        reference = graphed(vendor)
        torch.backends.cudnn.benchmark = False
        with torch.backends.cudnn.flags(enabled=False):
            off = median(vendor, 5)
        times = {}
        for _, _, tile, waves in group:
            builder = Builder(0, Fixed(units, tile, waves) if tile else Tiles(units))
            try:
                call = calls(builder, p, x, grad, w, kind)
                got = call()
                error = float((got - want).norm() / want.norm())
                if not error < 1e-4:
                    print("WRONG", layer, kind, tile, error)
                    continue
                times[(tuple(tile) if tile else None, waves)] = graphed(call)
            except Exception as exception:  # noqa: BLE001
                print("FAILED", layer, kind, tile, repr(exception)[:40])
        count = layer[-1]
        best = min(times, key=times.get)
        chosen = times[(None, 0)]
        rows.append({"layer": layer, "kind": kind, "cudnn": reference, "off": off,
                     "times": [[list(k[0]) if k[0] else None, k[1], v] for k, v in times.items()]})  # fmt: skip
        for name, value in (("chosen", chosen), ("best", times[best]), ("cudnn", reference), ("off", off)):
            total[name] += value * count
            by_kind[(kind, name)] = by_kind.get((kind, name), 0.0) + value * count
        print(f"{layer!s:34} {kind:8} chosen {chosen:.3f} best {times[best]:.3f} {best} cudnn {reference:.3f} off {off:.3f}",
              flush=True)  # fmt: skip
    print({f"{k}/{n}": round(v, 2) for (k, n), v in by_kind.items()})
    print({n: round(v, 2) for n, v in total.items()})
    if args.out:
        Path(args.out).write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
