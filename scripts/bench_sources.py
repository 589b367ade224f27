"""A folder of frames by ``toolkit predict`` and by Ultralytics' own ``predict``, in turn on this machine.

    python scripts/bench_sources.py best.pt frames/ --rounds 3

Both are processes of their own, so that what they import counts. Ultralytics writes its text files, the
toolkit its JSON. Boxes are compared at one score and overlap: how many have one of the other's with IoU above
0.9.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

Boxes = dict[str, npt.NDArray[np.float64]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--conf", type=float, default=0.25)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {"toolkit": [], "ultralytics": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(given.rounds):
            for name, command in (("toolkit", _toolkit), ("ultralytics", _ultralytics)):
                out = Path(folder) / f"{name}-{turn}"
                begun = time.perf_counter()
                subprocess.run(command(given, out), check=True, capture_output=True, env=_environment())
                seconds[name].append(time.perf_counter() - begun)
        ours = _read_toolkit(Path(folder) / "toolkit-0")
        theirs = _read_ultralytics(Path(folder) / "ultralytics-0", given.frames)
    for name, times in seconds.items():
        print(f"{name:12} median {statistics.median(times):.1f} s of {[round(each, 1) for each in times]}")
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    print(f"ratio        median {statistics.median(ratios):.2f} of {[round(each, 2) for each in ratios]}")
    for one, other, words in ((ours, theirs, "toolkit's in Ultralytics'"), (theirs, ours, "the reverse")):
        total = sum(map(len, one.values()))
        print(f"boxes        {_found(one, other):,} of {total:,} ({words})")


def _environment() -> dict[str, str]:
    return {**os.environ, "YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true"}


def _toolkit(given: argparse.Namespace, out: Path) -> list[str]:
    words = ["predict", given.weights, given.frames, "--conf", given.conf, "--iou", 0.6, "--out", out]
    return [sys.executable, "-m", "toolkit", *map(str, words), "--device", given.device]


def _ultralytics(given: argparse.Namespace, out: Path) -> list[str]:
    code = (
        "from ultralytics import YOLO\n"
        f"for _ in YOLO({str(given.weights)!r}).predict({str(given.frames)!r}, stream=True, save_txt=True,\n"
        f"        save_conf=True, conf={given.conf}, iou=0.6, max_det=300, device={given.device!r},\n"
        f"        project={str(out.parent)!r}, name={out.name!r}, verbose=False):\n    pass\n"
    )
    return [sys.executable, "-c", code]


def _read_toolkit(out: Path) -> Boxes:
    frames = json.loads((out / "predictions.json").read_bytes())["frames"]
    return {Path(each["name"]).stem: np.reshape(each["boxes"], (-1, 4)) for each in frames}


def _read_ultralytics(out: Path, frames: Path) -> Boxes:
    import cv2

    found: Boxes = {}
    for picture in frames.iterdir():
        text = out / "labels" / f"{picture.stem}.txt"
        rows = np.loadtxt(text, ndmin=2) if text.exists() else np.empty((0, 6))
        height, width = cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE).shape
        corners = np.hstack([rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2])
        found[picture.stem] = corners * [width, height, width, height]
    return found


def _found(ours: Boxes, theirs: Boxes) -> int:
    """How many boxes have one in the same frame of the others with IoU above 0.9."""
    count = 0
    for name, boxes in ours.items():
        others = theirs[name]
        if len(boxes) and len(others):
            low = np.maximum(boxes[:, None, :2], others[None, :, :2])
            high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
            shared = (high - low).clip(min=0).prod(2)
            areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, others)]
            iou = shared / (areas[0][:, None] + areas[1][None] - shared)
            count += int((iou.max(1) > 0.9).sum())
    return count


if __name__ == "__main__":
    main()
