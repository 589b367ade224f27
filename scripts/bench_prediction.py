#!/usr/bin/env python3
"""What each option of a prediction is worth on the validation split, changed alone, and what rounding costs.

scripts/bench_prediction.py runs/demo/weights/best.pt
scripts/bench_prediction.py best.pt --data data/ltdv2 --device 0
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from submission import Detections
from toolkit.quiet import keep_libraries_quiet

keep_libraries_quiet()

from toolkit import console, ltdv2, workspace
from toolkit.dataset import index
from toolkit.errors import ToolkitError
from toolkit.evaluation.scoring import Scores, score
from toolkit.evaluation.truth import GroundTruth
from toolkit.machine.device import resolve_device, running, torch_device
from toolkit.prediction import PredictionOptions, detect
from toolkit.weights import load_model

CHANGES: tuple[dict[str, Any], ...] = (
    {},
    {"conf": 0.0001},
    {"conf": 0.01},
    {"conf": 0.05},
    {"conf": 0.25},
    {"iou": 0.5},
    {"iou": 0.7},
    {"iou": 0.8},
    {"max_det": 20},
    {"max_det": 50},
    {"max_det": 300},
    {"tta": True},
)
ROUNDINGS = ((2, 4), (3, 4), (3, 5), (3, 6))
"""Decimals of coordinates and of scores."""


OUT = sys.stdout  # Ultralytics is made to print on standard error


def row(*cells: object) -> None:
    """Print a row of a table."""
    print("| " + " | ".join(map(str, cells)) + " |", file=OUT, flush=True)


def change(now: Scores, before: Scores) -> tuple[str, str]:
    """How far global_map_bal and global_map_50 moved."""
    return f"{now.balanced - before.balanced:+.1e}", f"{now.overall.map_50 - before.overall.map_50:+.1e}"


def compare(weights: Path, data: Path, device: str, imgsz: int | None) -> None:
    """Predict and score with each change; print two tables."""
    truth = GroundTruth.read(data / ltdv2.ANNOTATIONS["val"])
    frames, model = index.load(data), load_model(weights, torch_device(device))
    defaults = PredictionOptions(imgsz=imgsz)
    exact: list[Detections] = []
    row("options", "global_map_bal", "global_map_50", "global_map", "boxes a frame", "s")
    row(*["---"] * 6)
    for changed in CHANGES:
        options = replace(defaults, **changed)
        if not changed:
            detect(model, frames, "val", options)  # the first pass tunes and fills caches
        start = time.perf_counter()
        found = detect(model, frames, "val", options)
        seconds = time.perf_counter() - start
        exact.append(found)
        scores = score(truth, found)
        default = f"conf {options.conf}, iou {options.iou}, max_det {options.max_det}"
        row(
            ", ".join(f"{key} {value}" for key, value in changed.items()) or default,
            f"{scores.balanced:.4f}",
            f"{scores.overall.map_50:.4f}",
            f"{scores.overall.map:.4f}",
            f"{len(found.scores) / len(found):.1f}",
            f"{seconds:.1f}",
        )
    print(file=OUT)
    row("decimals of coordinates, scores", "bytes a box", "global_map_bal", "global_map_50")
    row(*["---"] * 4)
    row("all", f"{len(exact[0].dumps()) / len(exact[0].scores):.1f}", "", "")
    before = score(truth, exact[0])
    for decimals in ROUNDINGS:
        rounded = exact[0].rounded(*decimals)
        size = len(rounded.dumps()) / len(rounded.scores)
        row("{}, {}".format(*decimals), f"{size:.1f}", *change(score(truth, rounded), before))


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--data", type=Path, help="default: the run's")
    parser.add_argument("--device")
    parser.add_argument("--imgsz", type=int)
    options = parser.parse_args()
    place = workspace.current()
    try:
        weights = place.weights(options.weights)
        device = resolve_device(options.device)
        with running(device):
            compare(weights, place.data_of(weights, options.data), device, options.imgsz)
    except ToolkitError as error:
        console.fail(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
