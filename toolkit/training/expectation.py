"""What a planned run will use, and the time and memory to expect where something is known about them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from toolkit import doctor
from toolkit.dataset.index import DatasetIndex
from toolkit.errors import ToolkitError
from toolkit.training.rundir import RunFiles, read_summary
from toolkit.training.session import TrainingPlan, count_images, describe, read_plan
from toolkit.training.watching import GIB, duration

NANO = ("yolov8n", "yolo11n")
"""Models that :func:`toolkit.doctor.step_bytes` was measured on."""


class Expectation(msgspec.Struct, frozen=True):
    """A number and where it comes from.

    Attributes:
        value: seconds or bytes; null where nothing is known.
        source: what it rests on, or why nothing is known.
    """

    value: float | None
    source: str


class DryRun(msgspec.Struct, frozen=True):
    """Everything ``toolkit train --dry-run`` prints.

    Attributes:
        plan: what the run would use.
        images: that the run uses of each split.
        batches: in an epoch and in the whole run.
        time: seconds for the training, without validation.
        memory: bytes on the device.
    """

    plan: TrainingPlan
    images: dict[str, int]
    batches: tuple[int, int]
    time: Expectation
    memory: Expectation

    def lines(self) -> Iterator[str]:
        """For a person."""
        plan, in_epoch_and_all = self.plan, self.batches
        ranks = f", {plan.ranks} ranks" if plan.ranks > 1 else ""
        yield f"run          {plan.run}"
        yield f"data         {plan.data}: " + ", ".join(f"{n:,} {name}" for name, n in self.images.items())
        if plan.subsets:
            yield f"subset       {describe(plan.subsets)}"
        yield f"model        {plan.model}, {plan.channels} channel{'s' if plan.channels > 1 else ''}"
        yield f"device       {plan.device}{ranks}, patches {'on' if plan.patches else 'off'}"
        yield f"preset       {plan.preset}"
        for name, value in plan.arguments.items():
            yield f"  {name:<18} {value}"
        yield f"batches      {in_epoch_and_all[0]:,} an epoch, {in_epoch_and_all[1]:,} in all"
        scored = (
            f", scored every {plan.score_every} epochs" if plan.score_every > 1 else ", every epoch scored"
        )
        yield f"best.pt      by {plan.select_by}{scored if plan.score_every else ''}"
        extra = f" or {plan.saving.batches:,} batches" if plan.saving.batches else ""
        yield f"checkpoints  every {duration(plan.saving.seconds)}{extra}, and on SIGTERM and Ctrl-C"
        yield "red flags"
        for name in plan.rules.__struct_fields__:
            rule = getattr(plan.rules, name)
            held = f" for {rule.seconds:g} s" if rule.seconds else ""
            yield f"  {name:<18} {rule.limit:.4g}{held}: {rule.action.value}"
        time = "unknown" if self.time.value is None else duration(self.time.value)
        memory = "unknown" if self.memory.value is None else f"{self.memory.value / GIB:.1f} GiB"
        yield f"time         {time}: {self.time.source}"
        yield f"memory       {memory}: {self.memory.source}"


def dry_run(plan: TrainingPlan, index: DatasetIndex, runs: Path) -> DryRun:
    """What ``plan`` would do, with times and memory of an earlier run in ``runs`` that is like it."""
    images = count_images(plan, index)
    epochs, batch = int(plan.arguments["epochs"]), int(plan.arguments["batch"])
    in_epoch = -(-images["train"] // batch)
    return DryRun(plan, images, (in_epoch, epochs * in_epoch), *_expect(plan, runs, images["train"] * epochs))


def _expect(plan: TrainingPlan, runs: Path, frames: int) -> tuple[Expectation, Expectation]:
    for path in sorted(runs.glob("*/summary.json"), key=lambda p: p.stat().st_mtime_ns, reverse=True):
        files = RunFiles(path.parent)
        summary = read_summary(files)
        if summary is None or not summary.images_per_second or not _alike(plan, files):
            continue
        source = f"run {files.run.name} made {summary.images_per_second:.1f} images/s on this device"
        time = Expectation(frames / summary.images_per_second, source)
        if plan.device == "cpu":
            return time, Expectation(None, "no GPU is used")
        return time, Expectation(summary.gpu_memory, f"reserved in run {files.run.name}")
    time = Expectation(None, "no run like this one was made here; `toolkit monitor` knows after a minute")
    return time, _estimated_memory(plan)


def _estimated_memory(plan: TrainingPlan) -> Expectation:
    if plan.device == "cpu" or Path(plan.model).stem not in NANO:
        return Expectation(None, "no run like this one was made here, and no figure for this model")
    batch, imgsz = int(plan.arguments["batch"]) // plan.ranks, int(plan.arguments["imgsz"])
    source = f"an estimate for {batch} images, fp32, vendor library off, from figures of an H100"
    return Expectation(doctor.step_bytes(batch, imgsz), source)


def _alike(plan: TrainingPlan, files: RunFiles) -> bool:
    """Whether an earlier run used the same model, shape, device and patches."""
    try:
        other = read_plan(files)
    except ToolkitError:
        return False
    same = ("model", "channels", "device", "patches")
    keys = ("imgsz", "batch", "amp", "mosaic", "workers")
    return all(getattr(plan, name) == getattr(other, name) for name in same) and all(
        plan.arguments.get(key) == other.arguments.get(key) for key in keys
    )
