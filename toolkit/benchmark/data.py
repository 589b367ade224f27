"""How fast training data arrives: by stage in one process, and from loaders with several workers."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from toolkit import console
from toolkit.dataset.at_hand import LANES, NEIGHBOURS
from toolkit.dataset.cache import CachedFrames
from toolkit.dataset.frames import Frames, decode_grey
from toolkit.dataset.ultralytics import LTDv2Dataset
from toolkit.training.sampling import EpochSampler, ResumableLoader

SAMPLES = 512
"""Samples that the stages are timed over."""

BATCHES = 96
"""Batches that a loader is timed over, after as many to warm up as its workers hold ready."""


class DataRates(msgspec.Struct, frozen=True):
    """Images a second.

    Attributes:
        stages: of each stage alone, one process: read, decode (not from the cache), augment, collate, to
            device.
        workers: of the whole loader, by number of workers.
        frames_per_sample: frames that one process decodes for a sample; the others it has at hand.
    """

    stages: dict[str, float]
    workers: dict[int, float]
    frames_per_sample: float


def measure(dataset: LTDv2Dataset, batch: int, device: torch.device, workers: list[int]) -> DataRates:
    """Time a training dataset.

    Args:
        dataset: as training uses it, augmenting.
        batch: samples a batch.
        device: where batches go.
        workers: numbers of loader workers to try.
    """
    seconds, frames = _stages(dataset, batch, device)
    return DataRates(
        stages={stage: SAMPLES / spent for stage, spent in seconds.items() if spent},
        workers={n: loader_rate(dataset, batch, n) for n in workers},
        frames_per_sample=frames / SAMPLES,
    )


def loader_rate(dataset: LTDv2Dataset, batch: int, workers: int) -> float:
    """Images a second from training's loader, its workers already running."""
    loader = training_loader(dataset, batch, workers)
    try:
        return timed_rate(epochs(loader.order, loader), batch, workers)
    finally:
        loader.close()


def training_loader(dataset: LTDv2Dataset, batch: int, workers: int) -> ResumableLoader:
    """The loader of a training on one device, in the order of its epochs."""
    order = EpochSampler(len(dataset), batch, dataset.seed, order=dataset.order)
    return ResumableLoader(dataset, order, workers=workers, pin_memory=False, on_worker_death=console.warn)


def epochs(order: EpochSampler, what: Iterable[Any]) -> Iterator[Any]:
    """The indices or batches of one epoch after another, for ever."""
    for epoch in count():
        order.enter(epoch)
        yield from what


def timed_rate(batches: Iterator[Any], batch: int, workers: int) -> float:
    """Images a second from batches that do not end, over :data:`BATCHES` of them."""
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
        self.count += 1
        start = time.perf_counter()
        if isinstance(self.frames, CachedFrames):
            image = self.frames.grey(row)
            self.read_seconds += time.perf_counter() - start
            return image
        data = self.frames.read(row)
        middle = time.perf_counter()
        image = decode_grey(self.frames.name(row), data)
        self.read_seconds += middle - start
        self.decode_seconds += time.perf_counter() - middle
        return image


def _stages(dataset: LTDv2Dataset, batch: int, device: torch.device) -> tuple[dict[str, float], int]:
    order = EpochSampler(len(dataset), batch, dataset.seed, order=dataset.order)
    samples = (dataset[index] for index in epochs(order, order))
    timed: Any = _Timed(dataset.pixels.frames)
    original, dataset.pixels.frames = dataset.pixels.frames, timed
    collating = moving = 0.0
    try:
        for _ in islice(samples, LANES * NEIGHBOURS):
            pass
        timed.read_seconds = timed.decode_seconds = timed.count = 0
        start = time.perf_counter()
        for _ in range(SAMPLES // batch):
            chosen = list(islice(samples, batch))
            before = time.perf_counter()
            pixels = dataset.collate_fn(chosen)["img"]
            between = time.perf_counter()
            pixels.to(device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            collating += between - before
            moving += time.perf_counter() - between
        total = time.perf_counter() - start
    finally:
        dataset.pixels.frames = original
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
