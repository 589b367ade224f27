#!/usr/bin/env python3
"""Draw the harbour: how many frames a minute, and ten of its frames as one picture.

Usage: scripts/bench_sample.py [--frames 2000] [--picture docs/images/harbour.jpg] [--boxes]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from toolkit.dataset.frames import decode_grey
from toolkit.dataset.sample import harbour, write_sample
from toolkit.dataset.sample.layout import Box

COLOURS = {1: (80, 220, 80), 2: (255, 160, 60), 3: (60, 60, 255), 4: (60, 220, 255)}
"""Of boxes, blue green red."""


def main() -> None:
    """Time the drawing, or write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=2000, help="training frames to draw")
    parser.add_argument("--picture", type=Path, help="write ten frames to this JPEG instead")
    parser.add_argument("--boxes", action="store_true", help="with their boxes")
    options = parser.parse_args()
    if options.picture:
        picture(options.picture, options.boxes)
        return
    with tempfile.TemporaryDirectory() as folder:
        begin, before = time.perf_counter(), time.process_time()
        write_sample(Path(folder) / "data", train=options.frames, val=0, test=0, scene="harbour")
        seconds, busy = time.perf_counter() - begin, time.process_time() - before
        size = (Path(folder) / "data" / "frames.zip").stat().st_size
    rate = options.frames / seconds * 60
    print(
        f"{options.frames:,} frames in {seconds:.1f} s, {busy:.1f} s of processor time: {rate:,.0f} a minute"
    )
    print(f"{size / options.frames / 1e3:.1f} KB a frame, {os.cpu_count()} cores")


def picture(path: Path, with_boxes: bool) -> None:
    """Ten frames of ten clips in two columns: eight months and two more hours."""
    frames = sorted(harbour.choose_frames({"train": 9600, "val": 0, "test": 0}, 0), key=lambda f: f.name)
    clips = [list(clip) for _, clip in groupby(frames, key=lambda frame: frame.clip)]
    hours = (0, 15, 13, 19, 15, 12, 17, 14)
    months = sorted({clip[0].month for clip in clips})
    wanted = [*zip(months, hours, strict=True), ("202008", 9), ("202101", 17)]
    chosen = [
        min((c for c in clips if c[0].month == month), key=lambda c: abs(c[0].hour - hour))
        for month, hour in wanted
    ]
    # One sample is drawn so that clips have their share of rare objects.
    names = {clip[len(clip) // 2].name for clip in chosen}
    ordered = sorted(chosen, key=lambda clip: clip[0].name)
    shown = [item for item in harbour.draw([f for clip in ordered for f in clip], 0) if item[0].name in names]
    tiles = [tile(frame.name, jpeg, boxes, with_boxes) for frame, jpeg, boxes in shown]
    rows = [np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)]
    cv2.imwrite(str(path), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 75])
    for frame, _, boxes in shown:
        weather = ", ".join(f"{k} {v}" for k, v in list(harbour.meta(frame, 0).items())[:3])
        print(f"{frame.date}  {len(boxes)} boxes, {weather}")


def tile(name: str, jpeg: bytes, boxes: list[Box], with_boxes: bool) -> npt.NDArray[np.uint8]:
    """A frame, with thin boxes if asked for; blue green red."""
    image = cv2.cvtColor(decode_grey(name, jpeg), cv2.COLOR_GRAY2BGR)
    for label, (x, y, w, h) in boxes if with_boxes else []:
        cv2.rectangle(image, (int(x) - 1, int(y) - 1), (int(x + w), int(y + h)), COLOURS[label], 1)
    framed = cv2.copyMakeBorder(image, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return np.asarray(framed, np.uint8)


if __name__ == "__main__":
    main()
