#!/usr/bin/env python3
"""What it costs to load several frames a sample: the loader's rate by `--frames`, all taken in turn.

With `--validation` the samples are those of validation and prediction, in the order of time. With `--decode`
no decoded frame stays in memory, as of data that are too large; else an epoch goes by before the first turn.

Usage: scripts/bench_frames.py DATA [--frames now now,before now,before,background] [--workers 2]
                               [--imgsz 640] [--batch 16] [--rounds 7] [--validation] [--decode]

DATA is a prepared dataset with clips (`toolkit dataset sample DIR`). Each loader keeps its
workers and waits while the others have their turn, so that what else the machine does meets all of them
alike. Printed are medians of the rounds: images a second, of the batches of a turn that were not ready before
it, and their ratio to the first; and the processor time of an image, of workers and this process together,
with its ratio, which moves less with what else runs.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path
from statistics import median

import psutil

from toolkit.quiet import keep_libraries_quiet

keep_libraries_quiet()

import numpy as np
import numpy.typing as npt
from ultralytics.cfg import get_cfg

from toolkit.benchmark.data import epochs, training_loader
from toolkit.dataset import shared
from toolkit.dataset.index import DatasetIndex, load
from toolkit.dataset.loader import PREFETCH
from toolkit.dataset.order import EpochOrder
from toolkit.dataset.ultralytics import build_dataset, data_dictionary
from toolkit.dataset.views import Views

TIMED = 16
"""Batches of a turn that are timed."""


class InOrder(EpochOrder):
    """Every image of every epoch in the order of time."""

    def samples(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.arange(self.size)


class Contestant:
    """A loader of samples of some frames, and what its turns took.

    Attributes:
        seconds: a batch, of each turn that counts.
    """

    def __init__(self, index: DatasetIndex, text: str, options: argparse.Namespace) -> None:
        self.text, self.workers, self.batch = text, options.workers, options.batch
        views, mode = Views.parse(text), "val" if options.validation else "train"
        data = data_dictionary(index, views.channels, views)
        args = get_cfg(overrides={"imgsz": options.imgsz})
        dataset = build_dataset(index, "train", args, mode, self.batch, data)
        if options.validation:
            dataset.order = InOrder(len(dataset), 0)
        self.stays = dataset.pixels.store is not None
        self.loader = training_loader(dataset, self.batch, self.workers)
        self.stream = epochs(self.loader.order, self.loader)
        self.seconds: list[float] = []
        self._own: list[float] = []
        self._of_workers: list[float] = []

    def see_all(self) -> None:
        """An epoch, unless nothing stays from one to the next."""
        for _ in islice(self.stream, len(self.loader) if self.stays else 0):
            pass

    def take_turn(self, counts: bool) -> None:
        """Take the batches that were ready, and time those behind them."""
        if counts:
            self._of_workers.append(self.workers_seconds())
        own = time.process_time()
        for _ in islice(self.stream, self.ready):
            pass
        start = time.perf_counter()
        for _ in islice(self.stream, TIMED):
            pass
        if counts:
            self.seconds.append((time.perf_counter() - start) / TIMED)
            self._own.append(time.process_time() - own)

    @property
    def ready(self) -> int:
        """Batches that the workers have made before a turn."""
        return PREFETCH * max(self.workers, 1) + 1

    def workers_seconds(self) -> float:
        """Processor time of the workers, in their own code and in the kernel."""
        times = [
            psutil.Process(worker.pid).cpu_times()
            for worker in getattr(self.loader._iterator, "_workers", ())
        ]
        return sum(each.user + each.system for each in times)

    def processor_milliseconds(self) -> npt.NDArray[np.float64]:
        """(turns,) of an image, of the workers and of this process, from one turn to the next."""
        spent = np.diff([*self._of_workers, self.workers_seconds()]) + self._own
        milliseconds: npt.NDArray[np.float64] = 1000 * spent / ((self.ready + TIMED) * self.batch)
        return milliseconds


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--frames", nargs="+", default=["now", "now,before", "now,before,background"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--decode", action="store_true", help="as data that do not fit into memory")
    options = parser.parse_args()
    if options.decode:
        shared.SHARE = 0.0
    index = load(options.data)
    contestants = [Contestant(index, text, options) for text in options.frames]
    try:
        for each in contestants:
            each.see_all()
        for turn in range(options.rounds + 1):
            for each in contestants:
                each.take_turn(counts=turn > 0)  # the first one starts workers and fills what is at hand
        time.sleep(1)  # until the workers have as many batches ready as before the first turn
        spent = [each.processor_milliseconds() for each in contestants]
    finally:
        for each in contestants:
            each.loader.close()
    print(f"| --frames | images/s, {options.workers} workers | ratio | processor, ms an image | ratio |")
    print("|---|---|---|---|---|")
    first = contestants[0]
    for each, milliseconds in zip(contestants, spent, strict=True):
        ratio = median(one / mine for one, mine in zip(first.seconds, each.seconds, strict=True))
        rate, processor = options.batch / median(each.seconds), np.median(spent[0] / milliseconds)
        print(f"| {each.text} | {rate:.0f} | {ratio:.2f} | {np.median(milliseconds):.2f} | {processor:.2f} |")


if __name__ == "__main__":
    main()
