#!/usr/bin/env python3
"""What heartbeat, guard and checkpoints cost, as a part of a training step.

    scripts/bench_reliability.py DATA [--imgsz 192] [--batch 8] [--rounds 3] [--hang]
    scripts/bench_reliability.py DATA --device 0 --imgsz 640 --batch 16 --workers 8 --rounds 2

DATA is a prepared dataset, such as `toolkit dataset sample` and `prepare` make. "added" is the processor
time of all that `toolkit train` does in a batch and Ultralytics does not: callbacks, seeding, warm-up, the
check of the gradient's norm. That is steadier than the difference of two runs, which is shown as well:
"plain" is Ultralytics' own loop, step and preprocessing over the same loader, "resumable" what `toolkit
train` runs. One thread of a CPU; on a card a step is timed by the clock, and what is added is still the
host's processor time. A checkpoint is timed by the clock and spread over five minutes.

--hang measures instead how long it takes until a trainer that was frozen (SIGSTOP) has been found and the
next one has trained a batch, beyond the limit of its rule, which is 20 s here instead of 120.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

from toolkit.quiet import keep_libraries_quiet

keep_libraries_quiet()

import torch
from ultralytics.models.yolo.detect import DetectionTrainer

from toolkit.dataset import index
from toolkit.errors import ToolkitError
from toolkit.machine.device import running
from toolkit.runs import heartbeat
from toolkit.runs.folder import RunFiles
from toolkit.runs.health import Action, Rule, Rules
from toolkit.runs.plan import TrainingPlan
from toolkit.settings import Saving
from toolkit.supervision.supervisor import supervise
from toolkit.training.preset import load_preset
from toolkit.training.trainer import LTDv2Trainer

WARM_UP = 4
"""Batches of each run that are not counted."""

HANG = 20.0
"""Seconds without a batch that count as a hang."""


def make_plain(trainer: LTDv2Trainer) -> None:
    """Leave nothing of the resumable trainer but its loader."""
    for event, handlers in trainer.callbacks.items():
        if event != "on_train_epoch_start":  # tells the sampler the epoch
            trainer.callbacks[event] = [h for h in handlers if "ResumableTrainer" not in h.__qualname__]
    trainer._do_train = MethodType(DetectionTrainer._do_train, trainer)
    trainer.preprocess_batch = MethodType(DetectionTrainer.preprocess_batch, trainer)
    trainer.optimizer_step = MethodType(DetectionTrainer.optimizer_step, trainer)


class Added:
    """Processor time spent in what this project adds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any], sign: int = 1) -> Callable[..., Any]:
        """``function``, whose time is added or, being somebody else's inside ours, taken off again."""

        def call(*arguments: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self.seconds += sign * (time.thread_time() - start)

        return call

    @contextmanager
    def watching(self, trainer: LTDv2Trainer) -> Iterator[None]:
        """Time the callbacks of every batch, the preprocessing without Ultralytics' part, and the check."""
        for event in ("on_train_batch_start", "on_train_batch_end"):
            trainer.callbacks[event] = [self.timed(handler) for handler in trainer.callbacks[event]]
        trainer.preprocess_batch = self.timed(trainer.preprocess_batch)
        step, norm = trainer.optimizer_step, torch.tensor(1.0)

        def optimizer_step() -> None:
            step()
            self.timed(lambda: math.isfinite(norm.item()))()

        trainer.optimizer_step = optimizer_step
        theirs = DetectionTrainer.preprocess_batch
        DetectionTrainer.preprocess_batch = self.timed(theirs, -1)
        try:
            yield
        finally:
            DetectionTrainer.preprocess_batch = theirs


def make_plan(options: argparse.Namespace, run: Path, **arguments: Any) -> TrainingPlan:
    """A run of the smoke preset without validation and without checkpoints."""
    preset = load_preset("smoke")
    return TrainingPlan(
        data=options.data.absolute(),
        run=run,
        preset="smoke",
        model=options.model,
        channels=preset.channels,
        device=options.device,
        patches=False,
        arguments={
            **preset.arguments,
            "imgsz": options.imgsz,
            "batch": options.batch,
            "val": False,
            "workers": options.workers,
            **arguments,
        },
        saving=Saving(seconds=1e9),
    )


def hang(options: argparse.Namespace, run: Path) -> list[float]:
    """Seconds beyond the limit from each freeze to the batch after the one that was frozen."""
    plan = make_plan(options, run, epochs=1000, workers=1)
    plan = replace(plan, saving=Saving(batches=5), rules=Rules(hang=Rule(HANG, Action.RESTART)))
    files = RunFiles(run)
    times: list[float] = []

    def freeze() -> None:
        frozen = 0
        for _ in range(options.rounds):
            while (beat := heartbeat.read(files)) is None or beat.pid == frozen or beat.phase != "training":
                time.sleep(0.1)
            time.sleep(5.0)
            frozen, start = beat.pid, time.monotonic()
            os.kill(frozen, signal.SIGSTOP)
            reached = heartbeat.Cursor.read(files) or (0, 0)
            while (heartbeat.Cursor.read(files) or (0, 0)) <= reached:
                time.sleep(0.1)
            times.append(time.monotonic() - start - HANG)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=freeze, daemon=True).start()
    with suppress(ToolkitError):  # stopped on request
        supervise(plan)
    return times


def train(options: argparse.Namespace, run: Path, plain: bool) -> tuple[float, float, float]:
    """Seconds of a batch, of it added, and seconds for a checkpoint (0 and 0 when plain)."""
    plan = make_plan(options, run, epochs=1)
    clock = time.thread_time if options.device == "cpu" else time.perf_counter
    times: list[float] = []
    with running(options.device, patched=False):
        trainer = LTDv2Trainer(plan, index.load(plan.data))
        added = Added()
        if plain:
            make_plain(trainer)

        def note(_: Any) -> None:
            times.append(clock())

        with nullcontext() if plain else added.watching(trainer):
            trainer.add_callback("on_train_batch_end", note)
            trainer.train()
        saving = 0.0
        if not plain:
            start = time.perf_counter()
            trainer.save_checkpoint()
            saving = time.perf_counter() - start
    steps = [after - before for before, after in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)]
    return statistics.median(steps), added.seconds / len(times), saving


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="yolov8n.yaml")
    parser.add_argument("--imgsz", type=int, default=192)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cpu, or the number of a GPU")
    parser.add_argument("--workers", type=int, default=0, help="processes that load")
    parser.add_argument("--hang", action="store_true")
    options = parser.parse_args()
    if options.hang:
        with tempfile.TemporaryDirectory() as folder:
            times = hang(options, Path(folder) / "run")
        print(f"hang        training again {', '.join(f'{t:.1f}' for t in times)} s after the limit")
        return
    torch.set_num_threads(1)
    steps: dict[bool, list[float]] = {True: [], False: []}
    added, saves = [], []
    for _ in range(options.rounds):
        for plain in (True, False):
            with tempfile.TemporaryDirectory() as folder:
                step, extra, saving = train(options, Path(folder) / "run", plain)
            steps[plain].append(step)
            if not plain:
                added.append(extra)
                saves.append(saving)
    plain_step, resumable_step = min(steps[True]), min(steps[False])
    checkpoint, extra = statistics.median(saves), statistics.median(added)
    print(f"plain       {plain_step * 1e3:8.2f} ms a batch (best of {options.rounds} medians)")
    print(f"resumable   {resumable_step * 1e3:8.2f} ms a batch, {resumable_step / plain_step - 1:+.2%}")
    print(f"added       {extra * 1e3:8.2f} ms a batch, {extra / plain_step:.2%}")
    print(f"checkpoint  {checkpoint * 1e3:8.0f} ms, {checkpoint / 300:.2%} of five minutes")


if __name__ == "__main__":
    main()
