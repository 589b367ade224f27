#!/usr/bin/env python3
"""What heartbeat, guard and checkpoints cost: the same training with and without them, by turns.

    scripts/bench_reliability.py DATA [--imgsz 192] [--batch 8] [--rounds 5]

DATA is a prepared dataset, such as `toolkit dataset sample` and `prepare` make. "plain" is Ultralytics' own
loop, step and preprocessing over the same loader; "durable" is what `toolkit train` runs. On a CPU, with one
thread, the processor time of the training thread is compared, which other processes on the machine hardly
change. A checkpoint is timed by the clock and spread over the five minutes between two of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from ultralytics.models.yolo.detect import DetectionTrainer

from toolkit.dataset import index
from toolkit.device import running
from toolkit.training.rundir import Saving
from toolkit.training.session import TrainingPlan, load_preset
from toolkit.training.trainer import LTDv2Trainer

WARM_UP = 4
"""Batches of each run that are not counted."""


def make_plain(trainer: LTDv2Trainer) -> None:
    """Leave nothing of the durable trainer but its loader."""
    for event, handlers in trainer.callbacks.items():
        if event != "on_train_epoch_start":  # tells the sampler the epoch
            trainer.callbacks[event] = [h for h in handlers if "DurableTrainer" not in h.__qualname__]
    trainer.preprocess_batch = MethodType(DetectionTrainer.preprocess_batch, trainer)
    trainer.optimizer_step = MethodType(DetectionTrainer.optimizer_step, trainer)


def train(options: argparse.Namespace, run: Path, plain: bool) -> tuple[float, float]:
    """Seconds of processor time a batch, and seconds for a checkpoint (0 when plain)."""
    preset = load_preset("smoke")
    arguments = {
        **preset.arguments,
        "imgsz": options.imgsz,
        "batch": options.batch,
        "epochs": 1,
        "val": False,
    }
    plan = TrainingPlan(
        data=options.data.absolute(),
        run=run,
        preset="smoke",
        model=options.model,
        channels=preset.channels,
        device="cpu",
        patches=False,
        arguments=arguments,
        saving=Saving(seconds=1e9),
    )
    times: list[float] = []
    with running("cpu", patched=False):
        trainer = LTDv2Trainer(plan, index.load(plan.data))
        if plain:
            make_plain(trainer)

        def note(_: Any) -> None:
            times.append(time.thread_time())

        trainer.add_callback("on_train_batch_end", note)
        trainer.train()
        saving = 0.0
        if not plain:
            start = time.perf_counter()
            trainer.save_checkpoint()
            saving = time.perf_counter() - start
    steps = [after - before for before, after in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)]
    return statistics.median(steps), saving


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="yolov8n.yaml")
    parser.add_argument("--imgsz", type=int, default=192)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[bool, list[float]] = {True: [], False: []}
    saves = []
    for _ in range(options.rounds):
        for plain in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                step, saving = train(options, Path(folder) / "run", plain)
            times[plain].append(step)
            saves.append(saving)
    plain_step, durable_step = min(times[True]), min(times[False])
    checkpoint = statistics.median(filter(None, saves))
    print(f"plain      {plain_step * 1e3:8.2f} ms a batch (best of {options.rounds} medians)")
    print(f"durable    {durable_step * 1e3:8.2f} ms a batch, {durable_step / plain_step - 1:+.2%}")
    print(f"checkpoint {checkpoint * 1e3:8.0f} ms, {checkpoint / 300:.2%} of five minutes")


if __name__ == "__main__":
    main()
