#!/usr/bin/env python3
"""Time and peak extra memory of all convolution layers of a model, by every route, in one run.

    python3 scripts/bench_convolution.py --device cpu --batch 1
    python3 scripts/bench_convolution.py --device cuda --batch 16 --model yolo11n --csv layers.csv

The time is the sum over the layers of the median forward + backward, TF32 off; the memory is that of the
worst layer. ``unfold`` is unfold + matmul with a product a group, ``library`` is cuDNN or MIOpen, ``native``
is PyTorch without it (oneDNN on the CPU). Needs torch alone.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from patches.convolution import registry
from toolkit.benchmark.measure import (
    BASELINE,
    Measurement,
    forced_route,
    load_layers,
    measure,
    missing_device,
    positive,
)

LAYERS = ROOT / "scripts" / "layers"
OURS_FIRST = sorted(registry.ROUTES, key=lambda route: route.own)
ROUTES = {
    device: (BASELINE, *(route.name for route in OURS_FIRST if device in route.devices))
    for device in ("cpu", "cuda")
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=sorted(ROUTES), default="cpu")
    models = sorted(path.stem for path in LAYERS.glob("*.json"))
    parser.add_argument("--model", choices=models, default="yolov8n", help="a file in scripts/layers")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--routes", nargs="+", help="default: all of the device")
    parser.add_argument("--repeats", type=positive, default=7, help="samples of each median")
    parser.add_argument("--csv", type=Path, help="write one row for each layer and route")
    options = parser.parse_args()
    served = (*ROUTES[options.device], "auto")
    if not set(options.routes or ()) <= set(served):
        parser.error(f"--routes: expected some of {', '.join(served)} on {options.device}")
    obstacle = forced_route() or missing_device(options.device)
    if obstacle:
        sys.exit(obstacle)

    layers = LAYERS / f"{options.model}.json"
    problems = load_layers(layers, options.batch, options.device, getattr(torch, options.dtype))
    routes = options.routes or ROUTES[options.device]
    found = list(measure(problems, routes, options.repeats))

    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{options.model}, batch {options.batch}, {options.dtype}")
    print(f"{options.device} ({name}), torch {torch.__version__}")
    print(f"{'route':<10} {'forward + backward':>19} {'against ' + routes[0]:>16} {'peak extra memory':>19}")
    totals = {route: sum(m.seconds * m.count for m in found if m.route == route) for route in routes}
    for route in routes:
        peak = max(m.extra_bytes for m in found if m.route == route)
        faster = f"{totals[routes[0]] / totals[route]:.2f} x"
        print(f"{route:<10} {totals[route] * 1e3:>16.1f} ms {faster:>16} {peak / 2**20:>15.1f} MiB")
    if options.csv:
        write(options.csv, options.model, found)


def write(path: Path, model: str, found: list[Measurement]) -> None:
    """One row a layer and route."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["model", "layer", "count", "route", "milliseconds", "extra_mib"])
        for m in found:
            rows.writerow(
                [
                    model,
                    str(m.problem),
                    m.count,
                    m.route,
                    f"{m.seconds * 1e3:.4f}",
                    f"{m.extra_bytes / 2**20:.2f}",
                ]
            )


if __name__ == "__main__":
    main()
