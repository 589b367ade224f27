#!/usr/bin/env python3
"""Link predictions of the testing split's size: seconds to read, link and write, and memory.

Usage: scripts/bench_link.py [--images 49430] [--boxes 5000000]

A tenth of the boxes is on tracks (standing and moving ones), the others are anywhere, with the low scores
that most boxes have.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from submission import Detections
from submission.detections import to_offsets
from submission.templates import template
from toolkit.evaluation.sequences import link
from toolkit.ltdv2 import read_ids


def predictions(images: int, boxes: int) -> Detections:
    """So many boxes for the first images of the testing template."""
    rng = np.random.default_rng(0)
    ids = np.sort(template("testing"))[:images]
    clip, second = read_ids(ids)
    each = boxes // images
    tracked = each // 10
    kinds, inverse = np.unique(clip, return_inverse=True)
    begin = rng.uniform(0, 300, (len(kinds), tracked, 2))
    speed = rng.normal(0, 3, (len(kinds), tracked, 2)) * (rng.random((len(kinds), tracked, 1)) < 0.5)
    passed = (second - second.min()) % 120
    there = begin[inverse] + speed[inverse] * passed[:, None, None]
    anywhere = rng.uniform(0, 370, (images, each - tracked, 2))
    corners = np.concatenate([there, anywhere], axis=1).reshape(-1, 2)
    sizes = np.tile(rng.uniform(4, 30, (1, each, 2)), (images, 1, 1)).reshape(-1, 2)
    n = images * each
    scores = np.where(np.arange(n) % each < tracked, rng.beta(4, 3, n), rng.beta(1, 30, n))
    labels = np.tile(rng.integers(1, 5, each), images)
    return Detections(
        ids,
        to_offsets(np.full(images, each)),
        np.hstack([corners, corners + sizes]).round(3),
        scores.round(5),
        labels,
    )


def main() -> None:
    """Print what each step takes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=49_430)
    parser.add_argument("--boxes", type=int, default=5_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "predictions.json"
        predictions(options.images, options.boxes).write(source)
        begin = time.perf_counter(), time.process_time()
        detections = Detections.read(source)
        read = time.perf_counter(), time.process_time()
        result = link(detections)
        linked = time.perf_counter(), time.process_time()
        result.detections.rounded().write(Path(folder) / "linked.json")
        written = time.perf_counter(), time.process_time()
    for name, before, after in (("read", begin, read), ("link", read, linked), ("write", linked, written)):
        print(f"{name:6} {after[0] - before[0]:6.1f} s, {after[1] - before[1]:6.1f} s of processor time")
    count, peak = len(detections.scores), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{count:,} boxes, {result.tracks:,} tracks of {result.joined:,}, {result.filled:,} filled")
    print(f"peak {peak:.2f} GB, the making of the input included")


if __name__ == "__main__":
    main()
