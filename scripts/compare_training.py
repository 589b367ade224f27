#!/usr/bin/env python3
"""Train the same run with and without the patches and compare the losses step by step.

    scripts/compare_training.py DATA [--device 0] [--epochs 3] [--routes gemm,triton] [--imgsz 320]

DATA is a prepared dataset, such as `toolkit dataset sample` and `prepare` make. All runs start from the same
random weights and see the same augmented images in the same order: what differs comes from the convolutions.
"own" is PyTorch's own kernels, twice: the second row shows how far two equal runs drift apart on this device.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch

from toolkit.dataset import index
from toolkit.device import resolve_device, running
from toolkit.training.session import TrainingPlan, load_preset
from toolkit.training.trainer import LTDv2Trainer

STEPS = 100


def train(route: str, options: argparse.Namespace, run: Path) -> tuple[list[float], float]:
    """The loss of every step, and mAP@0.5 after the last epoch."""
    preset = load_preset("smoke")
    arguments = {**preset.arguments, "epochs": options.epochs, "imgsz": options.imgsz, "batch": options.batch}
    plan = TrainingPlan(
        data=options.data.absolute(),
        run=run,
        preset="smoke",
        model=options.model,
        channels=preset.channels,
        device=resolve_device(options.device),
        patches=route != "own",
        arguments={**arguments, "warmup_epochs": 1.0, "optimizer": "SGD", "lr0": 0.01, "plots": False},
    )
    losses: list[float] = []
    os.environ["TOOLKIT_CONV_ROUTE"] = route if route != "own" else "auto"
    with running(plan.device, patched=plan.patches):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        trainer = LTDv2Trainer(plan, index.load(plan.data))
        trainer.add_callback("on_train_batch_end", lambda t: losses.append(float(t.loss.detach())))
        trainer.train()
    return losses, float(trainer.metrics["metrics/mAP50(B)"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--routes", default="gemm")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--model", default="yolov8n.yaml")
    options = parser.parse_args()
    reference: list[float] = []
    print(f"{'route':8} {'steps':>6} {'largest':>9} {'median':>9} {'mAP@0.5':>8}   (difference: of the loss)")
    for route in ["own", "own", *options.routes.split(",")]:
        with tempfile.TemporaryDirectory() as folder:
            losses, score = train(route, options, Path(folder) / "run")
        reference = reference or losses
        pairs = list(zip(losses, reference, strict=True))[:STEPS]
        differences = sorted(abs(a - b) / abs(b) for a, b in pairs)
        largest, median = differences[-1], differences[len(differences) // 2]
        print(
            f"{route:8} {largest:10.2e} over {len(pairs)} steps {'':30} {median:8.1e}   {score:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
