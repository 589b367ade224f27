"""A few batches of a planned run, tried before it begins: how long they take and what memory they need."""

from __future__ import annotations

import os
import resource
import statistics
import time
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor
from ultralytics.utils.torch_utils import ModelEMA

from toolkit import console, doctor, vocabulary
from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.joined import open_split
from toolkit.dataset.ultralytics import build_dataset, data_dictionary
from toolkit.errors import ToolkitError
from toolkit.machine.device import running, torch_device
from toolkit.runs.plan import TrainingPlan
from toolkit.training.precision import mixed_precision
from toolkit.training.preset import configuration
from toolkit.training.steps import TrainingStep, determinism, run_steps

SECONDS = 4.0
"""What the batches that are timed may take together, about, and one of them on a CPU at most."""

STRIDE = 32
"""Ultralytics makes a side of the network's input a multiple of this."""


@dataclass(frozen=True)
class Probe:
    """Training batches that were tried on random images.

    Attributes:
        images: in a batch that was tried; less than in the planned one if that takes long or does not fit.
        seconds: of each batch.
        forward: seconds that the network takes for an image in validation.
        memory: bytes that a batch of the planned size needs: reserved on the GPU, or RAM with the loader's.
    """

    images: int
    seconds: tuple[float, ...]
    forward: float
    memory: int

    def batch_seconds(self, images: int) -> tuple[float, float, float]:
        """Seconds of a batch of ``images``, in proportion to those tried: quickest, median and slowest."""
        values = min(self.seconds), statistics.median(self.seconds), max(self.seconds)
        low, middle, high = (value * images / self.images for value in values)
        return low, middle, high


def run(plan: TrainingPlan) -> Probe:
    """Train a few batches of the planned model, size and device; nothing is kept.

    On a GPU the batches are of the planned size, or as large as fits. On a CPU they are as large as some
    seconds allow, because time and memory there grow in proportion.

    Raises:
        ToolkitError: not even one image fits on the GPU.
    """
    planned = plan.number("batch") // plan.ranks
    device = torch_device(plan.device)
    console.note(f"trying a few batches on {device}")
    with running(plan.device, patched=plan.patches), determinism(configuration(plan).deterministic):
        if device.type == "cpu":
            return _on_cpu(plan, planned)
        torch.cuda.set_device(device)
        images = planned
        while images:
            try:
                return _on_gpu(plan, images, planned)
            except torch.cuda.OutOfMemoryError:
                images //= 2
            torch.cuda.empty_cache()
    raise ToolkitError(f"{plan.model} does not fit on the GPU with one image", fix="choose a smaller --model")


def gpu_memory(plan: TrainingPlan, images: int) -> int | None:
    """Bytes that training batches of ``images`` reserve on the GPU; None if they do not fit."""
    device = torch_device(plan.device)
    with running(plan.device, patched=plan.patches), determinism(configuration(plan).deterministic):
        torch.cuda.set_device(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            for _ in run_steps(_Step(plan, images), 3, "cuda"):
                pass
        except torch.cuda.OutOfMemoryError:
            return None
        return torch.cuda.max_memory_reserved()


def loader_processes(plan: TrainingPlan) -> int:
    """Processes that load for a rank, next to the trainer; 0: the trainer itself."""
    return min(int(configuration(plan).workers), os.cpu_count() or 1)


def loading_seconds(plan: TrainingPlan, index: DatasetIndex, split: str) -> float:
    """Seconds that one process takes to read and augment an image of a split, as the run will."""
    training = split == "train"
    options = configuration(plan)
    dataset = build_dataset(
        index,
        plan.source(split),
        options,
        mode="train" if training else "val",
        batch=plan.number("batch"),
        data=data_dictionary(index, plan.channels, plan.views),
        rows=plan.subset(split).rows(open_split(index, plan.source(split))),
        frequency=plan.frequency,
        paste=plan.paste,
        stride=STRIDE,
        seed=options.seed,
    )
    chosen = dataset.order.samples(epoch=0)[:256].tolist()
    _ = dataset[chosen[0]]
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS / 4:
        _ = dataset[chosen[done % len(chosen)]]
        done += 1
    return (time.perf_counter() - start) / done


class _Step(TrainingStep):
    """A training step as the run takes it, with the average of the weights."""

    def __init__(self, plan: TrainingPlan, images: int) -> None:
        options, device = configuration(plan), torch_device(plan.device).type
        size = -(-int(options.imgsz) // STRIDE) * STRIDE
        amp = mixed_precision(device, options.amp)
        channels_last = options.channels_last is not False
        classes = len(vocabulary.of_data(plan.data).classes)
        super().__init__(plan.model, images, size, device, plan.channels, amp, channels_last, classes)
        self.average = ModelEMA(self.model)

    def __call__(self) -> Tensor:
        loss = super().__call__()
        self.average.update(self.model)
        return loss

    def forward_seconds(self) -> float:
        """Seconds of the averaged network for an image."""
        images, seconds = self.batch["img"], []
        with torch.no_grad(), self.autocast:
            for _ in range(2):
                start = time.perf_counter()
                self.average.ema(images)[0].sum().item()
                seconds.append(time.perf_counter() - start)
        return min(seconds) / len(images)


def _on_gpu(plan: TrainingPlan, images: int, planned: int) -> Probe:
    step = _Step(plan, images)
    for _ in run_steps(step, 3, "cuda"):  # routes are chosen and kernels compiled
        pass
    seconds = _timed(step, "cuda")
    memory = torch.cuda.max_memory_reserved() * planned // images
    return Probe(images, seconds, step.forward_seconds(), memory)


def _on_cpu(plan: TrainingPlan, planned: int) -> Probe:
    step = _Step(plan, 1)
    *_, (second, _, _) = run_steps(step, 2, "cpu")
    images = max(1, min(int(SECONDS / second), planned))
    if images > 1:
        step = _Step(plan, images)
    weights = sum(each.numel() * each.element_size() for each in step.model.parameters())
    fixed = psutil.Process().memory_info().rss + 2 * weights  # gradients and momentum
    seconds = _timed(step, "cpu")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    activations = max(most - fixed, 0) * planned // images
    workers = loader_processes(plan)
    loaders = doctor.SERVER_BYTES + workers * doctor.WORKER_BYTES if workers else 0
    return Probe(images, seconds, step.forward_seconds(), fixed + activations + loaders)


def _timed(step: _Step, device: str) -> tuple[float, ...]:
    """Seconds of two batches or more, after one that is not counted."""
    seconds: list[float] = []
    for taken, _, _ in run_steps(step, 30, device):
        seconds.append(taken)
        if len(seconds) > 2 and sum(seconds) > SECONDS:
            break
    return tuple(seconds[1:])
