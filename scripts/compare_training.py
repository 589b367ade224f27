#!/usr/bin/env python3
"""Train the same run with and without the patches and compare the losses step by step.

    scripts/compare_training.py DATA [--device 0] [--epochs 3] [--routes gemm,triton] [--seeds 1]

DATA is a prepared dataset, such as `toolkit dataset sample` and `prepare` make. All runs start from the same
random weights and see the same augmented images in the same order: what differs is due to the convolutions.
A seed is other weights, images and order; its own runs are compared with one another.
"own" is PyTorch's own kernels, twice. "nudged" is the same again from weights that were changed by one in
ten million, the size of an fp32 rounding error: training is chaotic, and this row shows how fast it forgets.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

from toolkit.quiet import keep_libraries_quiet

keep_libraries_quiet()

import torch

from patches.convolution.registry import NAMES
from toolkit import console
from toolkit.benchmark.measure import positive
from toolkit.dataset import index
from toolkit.errors import ToolkitError
from toolkit.machine.device import resolve_device, running
from toolkit.runs.plan import TrainingPlan
from toolkit.training.preset import load_preset
from toolkit.training.trainer import LTDv2Trainer

STEPS = 100


def train(route: str, seed: int, options: argparse.Namespace, run: Path) -> tuple[list[float], float]:
    """The loss of every step, and mAP@0.5 after the last epoch."""
    own = route in ("own", "nudged")
    preset = load_preset("smoke")
    chosen = {
        "epochs": options.epochs,
        "imgsz": options.imgsz,
        "batch": options.batch,
        "lr0": options.lr0,
        "seed": seed,
    }
    plan = TrainingPlan(
        data=options.data.absolute(),
        run=run,
        preset="smoke",
        model=options.model,
        channels=preset.channels,
        device=resolve_device(options.device),
        patches=not own,
        arguments={**preset.arguments, **chosen, "warmup_epochs": 1.0, "optimizer": "SGD"},
    )
    losses: list[float] = []
    os.environ["CONVROUTES_ROUTE"] = "auto" if own else route
    with running(plan.device, patched=plan.patches):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        trainer = LTDv2Trainer(plan, index.load(plan.data))
        if route == "nudged":
            trainer.add_callback("on_train_start", nudge)
        trainer.add_callback("on_train_batch_end", lambda t: losses.append(float(t.loss.detach())))
        trainer.train()
    return losses, float(trainer.metrics["metrics/mAP50(B)"])


def nudge(trainer: LTDv2Trainer) -> None:
    """Change every weight by an fp32 rounding error."""
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1 + 1e-7 * torch.randn_like(parameter))


def compare(options: argparse.Namespace) -> None:
    """Train by every route from every seed, and print a row a run."""
    index.load(options.data)  # refused before the title of a table
    routes = ["own", "own", "nudged", *options.routes.split(",")]
    scores: dict[str, list[float]] = {route: [] for route in routes}
    print("route     seed  steps  within 1 % until   largest    median   mAP@0.5")
    for seed in range(options.seeds):
        reference: list[float] = []
        for route in routes:
            with tempfile.TemporaryDirectory() as folder:
                losses, score = train(route, seed, options, Path(folder) / "run")
            scores[route].append(score)
            reference = reference or losses
            away = [abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True)][:STEPS]
            until = next((step for step, distance in enumerate(away) if distance > 0.01), len(away))
            figures = f"{until:17} {max(away):9.1e} {median(away):9.1e} {score:9.4f}"
            print(f"{route:9} {seed:4} {len(away):6} {figures}", flush=True)
    for route, found in scores.items():
        print(f"{route:9} mAP@0.5 {min(found):.3f} to {max(found):.3f}, mean {sum(found) / len(found):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--epochs", type=positive, default=3)
    parser.add_argument("--routes", default="gemm")
    parser.add_argument("--imgsz", type=positive, default=320)
    parser.add_argument("--batch", type=positive, default=8)
    parser.add_argument("--lr0", type=float, default=0.01)
    parser.add_argument("--model", default="yolov8n.yaml")
    parser.add_argument("--seeds", type=positive, default=1, help="how many")
    options = parser.parse_args()
    if not set(options.routes.split(",")) <= {"auto", *NAMES}:
        parser.error(f"--routes: expected some of auto, {', '.join(NAMES)}, with commas between them")
    try:
        compare(options)
    except ToolkitError as error:
        console.fail(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
