"""How fast training data arrives: by stage in one process, and from loaders with several workers."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from ultralytics.data.build import build_dataloader

from toolkit.dataset.frames import Frames, decode_grey
from toolkit.dataset.loader import use_server
from toolkit.dataset.ultralytics import LTDv2Dataset

SAMPLES = 512
"""Samples that the stages are timed over."""

BATCHES = 96
"""Batches that a loader is timed over, after as many to warm up as its workers hold ready."""


class DataRates(msgspec.Struct, frozen=True):
    """Images a second.

    Attributes:
        stages: of each stage alone, one process: read, decode, augment, collate, to device.
        workers: of the whole loader, by number of workers.
        frames_per_sample: frames read and decoded for one sample, four for a mosaic.
    """

    stages: dict[str, float]
    workers: dict[int, float]
    frames_per_sample: float


def measure(dataset: LTDv2Dataset, batch: int, device: torch.device, workers: list[int]) -> DataRates:
    """Time a training dataset.

    Args:
        dataset: augmenting or not, as it will be used.
        batch: samples a batch.
        device: where batches go.
        workers: numbers of loader workers to try.
    """
    seconds, frames = _stages(dataset, batch, device)
    return DataRates(
        stages={stage: SAMPLES / max(spent, 1e-9) for stage, spent in seconds.items()},
        workers={n: loader_rate(dataset, batch, n) for n in workers},
        frames_per_sample=frames / SAMPLES,
    )


def loader_rate(dataset: LTDv2Dataset, batch: int, workers: int) -> float:
    """Images a second from a loader, shuffled, its workers already running."""
    loader = build_dataloader(dataset, batch, workers, device="cpu")
    use_server(loader)
    try:
        return timed_rate(loader, batch, workers)
    finally:
        loader.close()


def timed_rate(loader: Any, batch: int, workers: int) -> float:
    """Images a second from any loader that repeats for ever, over :data:`BATCHES` batches."""

    def forever() -> Any:
        while True:
            yield from loader

    batches = forever()
    for _ in islice(batches, 4 + 4 * workers):
        pass
    start = time.perf_counter()
    for _ in islice(batches, BATCHES):
        pass
    return BATCHES * batch / (time.perf_counter() - start)


@dataclass
class _Timed:
    """Frames that add up what reading and decoding them takes."""

    frames: Frames
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    count: int = 0

    def name(self, row: int) -> str:
        return self.frames.name(row)

    def grey(self, row: int) -> npt.NDArray[np.uint8]:
        start = time.perf_counter()
        data = self.frames.read(row)
        middle = time.perf_counter()
        image = decode_grey(self.frames.name(row), data)
        self.read_seconds += middle - start
        self.decode_seconds += time.perf_counter() - middle
        self.count += 1
        return image


def _stages(dataset: LTDv2Dataset, batch: int, device: torch.device) -> tuple[dict[str, float], int]:
    rng = random.Random(0)
    timed: Any = _Timed(dataset.frames)
    original, dataset.frames = dataset.frames, timed
    collating = moving = 0.0
    try:
        for _ in range(2 * batch):
            dataset[rng.randrange(len(dataset))]
        timed.read_seconds = timed.decode_seconds = timed.count = 0
        start = time.perf_counter()
        for _ in range(SAMPLES // batch):
            samples = [dataset[rng.randrange(len(dataset))] for _ in range(batch)]
            before = time.perf_counter()
            images = dataset.collate_fn(samples)["img"]
            between = time.perf_counter()
            images.to(device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            collating += between - before
            moving += time.perf_counter() - between
        total = time.perf_counter() - start
    finally:
        dataset.frames = original
    augment = total - timed.read_seconds - timed.decode_seconds - collating - moving
    return {
        "read": timed.read_seconds,
        "decode": timed.decode_seconds,
        "augment": augment,
        "collate": collating,
        "to device": moving,
    }, timed.count


def worker_counts() -> list[int]:
    """Numbers of workers worth trying on this machine: none, and powers of two up to its cores."""
    cores = len(os.sched_getaffinity(0))
    return [0, *(n for n in (1, 2, 4, 8, 16) if n <= cores)]
