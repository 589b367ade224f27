#!/usr/bin/env python3
"""What it costs to load several frames a sample: the loader's rate by `--frames`, all taken in turn.

Usage: scripts/bench_frames.py DATA [--frames now now,before now,before,background] [--workers 2]
                               [--imgsz 640] [--batch 16] [--rounds 7]

DATA is a prepared dataset with clips (`toolkit dataset sample DIR --scene harbour`). Each loader keeps its
workers and waits while the others have their turn, so that what else the machine does meets all of them
alike. Of each turn the batches that were ready are left out. Printed are images a second, the median of the
rounds, and the median of the ratios to the first.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path
from statistics import median

from toolkit.quiet import keep_libraries_quiet

keep_libraries_quiet()

from ultralytics.cfg import get_cfg

from toolkit.benchmark.data import epochs, training_loader
from toolkit.dataset.index import load
from toolkit.dataset.loader import PREFETCH
from toolkit.dataset.ultralytics import build_dataset, data_dictionary
from toolkit.dataset.views import Views

TIMED = 16
"""Batches of a turn that are timed."""


def main() -> None:
    """Take turns and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--frames", nargs="+", default=["now", "now,before", "now,before,background"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    index, args = load(options.data), get_cfg(overrides={"imgsz": options.imgsz})
    loaders = []
    for text in options.frames:
        views = Views.parse(text)
        data = data_dictionary(index, views.channels, views)
        dataset = build_dataset(index, "train", args, "train", options.batch, data)
        loaders.append(training_loader(dataset, options.batch, options.workers))
    streams = [epochs(loader.order, loader) for loader in loaders]
    ready = PREFETCH * max(options.workers, 1) + 1
    seconds: list[list[float]] = [[] for _ in streams]
    try:
        for turn in range(options.rounds + 1):
            for stream, taken in zip(streams, seconds, strict=True):
                for _ in islice(stream, ready):
                    pass
                start = time.perf_counter()
                for _ in islice(stream, TIMED):
                    pass
                if turn:  # the first one starts workers and fills what is at hand
                    taken.append((time.perf_counter() - start) / TIMED)
    finally:
        for loader in loaders:
            loader.close()
    print(f"| --frames | images/s, {options.workers} workers | ratio |\n|---|---|---|")
    for text, taken in zip(options.frames, seconds, strict=True):
        ratio = median(first / mine for first, mine in zip(seconds[0], taken, strict=True))
        print(f"| {text} | {options.batch / median(taken):.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
