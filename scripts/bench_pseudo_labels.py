#!/usr/bin/env python3
"""What pseudo-labels gain: half of the clips with boxes, the other half with what two models agree on.

Usage: scripts/bench_pseudo_labels.py DATA [--minutes 4] [--seeds 3] [--jobs 6] [--score 0.4]
                                      [--out build/pseudo-labels] [--call MINUTES]
                                      [-- ARGUMENTS of toolkit train]

DATA is a prepared dataset in LTDv2's layout with boxes in all of Train.json, such as the drawn harbour. For
each seed the clips are dealt into two halves. Two models learn from the first half alone; of the second
half, whose boxes they do not see, they keep what both found: linked over the seconds of a clip, of one
class, overlapping by half, with a mean score of --score. A third model learns from both halves with those
boxes, a fourth with the true ones, which is the most that can be gained. All train for as many minutes and
are scored on validation: printed are `global_map_bal` of each seed, and the gain over the half with the 95
% interval of its mean.

Two rounds of 2 x seeds trainings: with 3 seeds and 6 jobs of 4 minutes it fits into a call of 20. What is
done is not done again: a call that was cut off goes on where it was, and --call 9 begins no training that
would not end within 9 minutes. CUDA_VISIBLE_DEVICES chooses the card, of predictions too. A verb that fails
is named with its log, and the others go on; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt
from bench_levers import interval, tied

from submission import Detections
from toolkit import ltdv2
from toolkit.evaluation.scoring import is_number
from toolkit.evaluation.sequences import link, overlaps
from toolkit.runs.folder import RunFiles, read_summary

OVERLAP = 0.5
"""Of two boxes that are taken for one object; the metric's own lowest threshold."""


def main() -> None:
    """Deal, train, agree, train, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0, help="of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=6, help="trainings at once, all alike")
    parser.add_argument("--score", type=float, default=0.4, help="lowest mean score of a pseudo-label")
    parser.add_argument("--out", type=Path, default=Path("build/pseudo-labels"))
    parser.add_argument("--call", type=float, default=math.inf, help="minutes that this call may take")
    ours, theirs = sys.argv[1:], []
    if "--" in ours:
        ours, theirs = ours[: ours.index("--")], ours[ours.index("--") + 1 :]
    options = parser.parse_args(ours)
    options.arguments = theirs or [
        *("--preset", "thermal-small", "--repeat", "motorcycle=8,bicycle=2"),
        *("--val-months", "jun", "--no-patches"),
    ]
    options.ends = time.monotonic() + 60 * options.call
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seeds)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda seed: deal(options, seed), seeds))
    run_all(options, [(f"half-{s}", f"{name}-{s}", s + add) for s in seeds for name, add in TEACHERS])
    for seed in seeds:
        print(f"seed {seed}: {label(options, seed)}", file=sys.stderr)
    run_all(options, [(f"{kind}-{s}", f"{kind}-{s}", s) for s in seeds for kind in ("pseudo", "whole")])
    print(table(options, seeds))


BESIDE = 1.7
"""Minutes that the start of a training, and predicting and scoring with its weights, add to it."""

TEACHERS = (("half", 0), ("other", 1000))
"""The two that must agree, and what is added to their seed; the first is also what the half alone scores."""


def deal(options: argparse.Namespace, seed: int) -> None:
    """Folders of the first half, whose test split is the second, and of the whole."""
    train = json.loads((options.data / ltdv2.ANNOTATIONS["train"]).read_text())
    clips = sorted({clip_of(image) for image in train["images"]})
    first = set(np.random.default_rng(seed).permutation(clips)[: len(clips) // 2].tolist())
    write(options, f"half-{seed}", *parted(train, first), seconds(train, first))
    write(options, f"whole-{seed}", train["images"], train["annotations"])


def clip_of(image: dict[str, Any]) -> int:
    """Month, clip and day of an id, which reads YYYYMM CCC DD HH MM SS."""
    return int(image["id"]) // 1_000_000


def parted(train: dict[str, Any], clips: set[int]) -> tuple[list[Any], list[Any]]:
    """Images of these clips, and their boxes."""
    images = [image for image in train["images"] if clip_of(image) in clips]
    ids = {image["id"] for image in images}
    return images, [box for box in train["annotations"] if box["image_id"] in ids]


def seconds(train: dict[str, Any], first: set[int]) -> list[Any]:
    """Images of the other clips."""
    return [image for image in train["images"] if clip_of(image) not in first]


def write(
    options: argparse.Namespace, name: str, images: list[Any], boxes: list[Any], test: Sequence[Any] = ()
) -> None:
    """A prepared folder in LTDv2's layout, unless it is there."""
    folder = options.out / "data" / name
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    categories = json.loads((options.data / ltdv2.ANNOTATIONS["val"]).read_text())["categories"]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / ltdv2.ANNOTATIONS["train"]).write_text(json.dumps(content))
    linked = [ltdv2.ANNOTATIONS["val"], ltdv2.ARCHIVE]
    if test:
        content = {"images": list(test), "categories": categories}
        (folder / ltdv2.ANNOTATIONS["test"]).write_text(json.dumps(content))
    else:
        linked.append(ltdv2.ANNOTATIONS["test"])
    for each in linked:
        (folder / each).unlink(missing_ok=True)
        (folder / each).symlink_to((options.data / each).resolve())
    toolkit(options, name, "dataset", "prepare", folder.resolve())
    (folder / "done").touch()


def run_all(options: argparse.Namespace, jobs: list[tuple[str, str, int]]) -> None:
    """Train and score what is not scored yet, some at once.

    Raises:
        SystemExit: a verb failed (status 1), or this call has not the time for all of them (0).
    """

    def outcome(job: tuple[str, str, int]) -> str:
        try:
            return "done" if train_one(options, *job) else "left"
        except subprocess.CalledProcessError:
            print(f"failed: {job[1]}; see {options.out / job[1]}.log", file=sys.stderr)
            return "failed"

    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = list(pool.map(outcome, jobs))
    if left := outcomes.count("left"):
        print(f"{left} of {len(jobs)} trainings of this round are left: run the same again", file=sys.stderr)
    if outcomes.count("done") < len(jobs):
        sys.exit(1 if "failed" in outcomes else 0)


def train_one(options: argparse.Namespace, data: str, name: str, seed: int) -> bool:
    """One training of the minutes, its predictions and scores; False where it would not end in this call.

    What ended in an earlier call is kept; a training that was cut off begins again.
    """
    run = options.out / "runs" / name
    folder = (options.out / "data" / data).resolve()
    summary = read_summary(RunFiles(run))
    if summary is None or summary.state != "finished":
        if time.monotonic() + 60 * (options.minutes + BESIDE) > options.ends:
            return False
        if run.exists():
            shutil.rmtree(run)
        ends = [f"time={options.minutes / 60}", "patience=0", "plots=False"]
        words = ["train", "--data", folder, "--name", name, "--seed", seed, *options.arguments, *ends]
        toolkit(options, name, *words)
    weights = (run / "weights" / "best.pt").resolve()
    if data.startswith("half") and not (run / "predictions-test.json").exists():
        toolkit(options, name, "predict", weights, "--split", "test", "--data", folder)
    if not (run / "evaluation" / "scores.json").exists():
        toolkit(options, name, "evaluate", weights, "--data", folder)
    return True


def toolkit(options: argparse.Namespace, name: str, *words: object) -> None:
    """A verb in the workspace of this experiment, its words in a log of its own."""
    environment = {**os.environ, "TOOLKIT_WORKSPACE": str(options.out.resolve())}
    with (options.out / f"{name}.log").open("a") as log:
        command = [sys.executable, "-m", "toolkit", *map(str, words)]
        subprocess.run(tied(command), env=environment, stdout=log, stderr=log, check=True)


def label(options: argparse.Namespace, seed: int) -> str:
    """Write the folder with pseudo-labels; in words, how many there are and how many are right."""
    found = [
        link(Detections.read(options.out / "runs" / f"{name}-{seed}" / "predictions-test.json")).detections
        for name, _ in TEACHERS
    ]
    train = json.loads((options.data / ltdv2.ANNOTATIONS["train"]).read_text())
    half = json.loads((options.out / "data" / f"half-{seed}" / ltdv2.ANNOTATIONS["train"]).read_text())
    listed = {clip_of(image) for image in half["images"]}
    others = seconds(train, listed)
    ids = np.array([image["id"] for image in others], np.int64)
    one, two = (each.select(ids) for each in found)
    boxes = []
    for i, image in enumerate(others):
        rows = agreed(one, two, i, options.score)
        for (x1, y1, x2, y2), kind in zip(one.boxes[rows].tolist(), one.labels[rows].tolist(), strict=True):
            size = (x2 - x1, y2 - y1)
            boxes.append(
                {
                    "image_id": image["id"],
                    "category_id": kind,
                    "bbox": [x1, y1, *size],
                    "area": size[0] * size[1],
                    "iscrowd": 0,
                }
            )
    images, true = parted(train, listed)
    numbered = [{**box, "id": number} for number, box in enumerate([*true, *boxes], 1)]
    write(options, f"pseudo-{seed}", [*images, *others], numbered)
    return f"{len(boxes):,} pseudo-labels; {len(train['annotations']) - len(true):,} boxes are true"


def agreed(one: Detections, two: Detections, image: int, score: float) -> npt.NDArray[np.int64]:
    """Rows of the boxes of one model that the other has too: same class, overlapping, a high mean score."""
    (a, b), (c, d) = one.offsets[image : image + 2], two.offsets[image : image + 2]
    shared = overlaps(one.boxes[a:b], two.boxes[c:d]) >= OVERLAP
    shared &= one.labels[a:b, None] == two.labels[None, c:d]
    shared &= (one.scores[a:b, None] + two.scores[None, c:d]) / 2 >= score
    rows: npt.NDArray[np.int64] = a + np.flatnonzero(shared.any(axis=1))
    return rows


def table(options: argparse.Namespace, seeds: Sequence[int]) -> str:
    """Markdown: `global_map_bal` by seed, and the gain over the half."""
    lines = [f"| trained on |{''.join(f' seed {s} |' for s in seeds)} gain | 95 % |"]
    lines.append("|---" * (len(seeds) + 3) + "|")
    half = [balanced(options, f"half-{seed}") for seed in seeds]
    for kind, words in (("half", "half"), ("pseudo", "half and pseudo-labels"), ("whole", "whole")):
        scores = [balanced(options, f"{kind}-{seed}") for seed in seeds]
        gains = [mine - base for mine, base in zip(scores, half, strict=True)]
        cells = "".join(f" {score:.3f} |" for score in scores)
        lines.append(f"| {words} |{cells} {mean(gains):+.3f} | {interval(gains)} |")
    return "\n".join(lines)


def balanced(options: argparse.Namespace, run: str) -> float:
    """`global_map_bal` of a run; where every month has 0 the formula gives none, and nothing ranks lower."""
    scores = json.loads((options.out / "runs" / run / "evaluation" / "scores.json").read_text())
    found = float("nan" if scores["global_map_bal"] is None else scores["global_map_bal"])
    return found if is_number(found) else 0.0


if __name__ == "__main__":
    main()
