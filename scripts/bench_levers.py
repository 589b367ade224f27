#!/usr/bin/env python3
"""What each lever is worth: trainings of equal time on one card, several seeds, mean and spread.

Usage: scripts/bench_levers.py DATA [DATA ...] [--minutes 4] [--seeds 3] [--jobs 1] [--levers NAME ...]
                               [--model yolo11n.yaml] [--batch 16] [--device 0] [--out build/levers]
                               [--call MINUTES] [--plan | --table]

DATA is a prepared dataset in LTDv2's layout: the drawn harbour (`toolkit dataset sample`), or
real frames that were converted to it; with --moving the camera moves: levers that need a still one are left
out. A lever is one entry of LEVERS. Each training ends with the minutes, and so does its schedule, by the
argument ``time`` of Ultralytics; validation after each epoch counts, and --val-months shortens it for all
alike but those that choose by scores, which are of all months. With --jobs all share the card alike. Levers
that change nothing before prediction share a training. "swept" and "soup" choose by the split that scores
them: their gains are upper bounds. --train-on train,val has no entry, because nothing with boxes is left to
score it by: "half of the clips" says what more clips bring.

Results are lines of OUT/results.jsonl; what is there, of the same --minutes, is not done again. So a table
may take several calls: --call 28 begins no training that would not end within 28 minutes, all levers of one
seed before the next seed; a training that was cut off begins again. --plan prints what is missing and how
many calls it takes, --table what is there: means and standard deviations over seeds, the gain over
``thermal`` and over RECIPE of the same seed, with the 95 % interval of its mean by Student's t. A lever that
fails is named at the end, with its log, and the others go on; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from toolkit.quiet import keep_libraries_quiet

keep_libraries_quiet()

import numpy as np
import torch
from ultralytics.nn.tasks import load_checkpoint

from submission import Detections
from submission.validate import LABELS
from toolkit import ltdv2, soup, sweep, workspace
from toolkit.dataset.index import load
from toolkit.errors import ToolkitError
from toolkit.evaluation.context import Context
from toolkit.evaluation.matching import match
from toolkit.evaluation.scoring import align, is_number, score
from toolkit.evaluation.sequences import link
from toolkit.evaluation.truth import GroundTruth
from toolkit.prediction import PredictionOptions, predict
from toolkit.supervision import supervisor
from toolkit.training import deciding
from toolkit.training.options import Options


@dataclass(frozen=True)
class Lever:
    """One change against the preset ``thermal``.

    Attributes:
        arguments: Ultralytics' training arguments.
        options: what ``toolkit train`` takes beside them (:class:`toolkit.training.options.Options`).
        predicting: of :class:`toolkit.prediction.PredictionOptions`.
        linked: whether the boxes of a clip are joined.
        swept: what ``toolkit evaluate --sweep`` chooses.
        soup: whether checkpoints of the run are averaged, as ``toolkit soup RUN`` does.
        still: whether it needs a camera that does not move.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    predicting: Mapping[str, Any] = field(default_factory=dict)
    linked: bool = False
    swept: tuple[str, ...] = ()
    soup: bool = False
    still: bool = False

    @property
    def recipe(self) -> str:
        """What training depends on, as a key."""
        return json.dumps([self.arguments, self.options], sort_keys=True)


ADAMW: Mapping[str, Any] = {"optimizer": "AdamW", "lr0": 0.002}
P2: Mapping[str, Any] = {"model": "yolov8n-p2.yaml"}
LEVERS: dict[str, Lever] = {
    "thermal": Lever(),
    "640 px": Lever(arguments={"imgsz": 640}),
    "960 px": Lever(arguments={"imgsz": 960}),
    "1280 px": Lever(arguments={"imgsz": 1280}),
    "YOLO11s": Lever(options={"model": "yolo11s.yaml"}),
    "YOLO12n": Lever(options={"model": "yolo12n.yaml"}),
    "YOLO26n": Lever(options={"model": "yolo26n.yaml"}),
    "YOLOv8n": Lever(options={"model": "yolov8n.yaml"}),
    "YOLO26n, P2 head": Lever(options={"model": "yolo26n-p2.yaml"}),
    "YOLOv8n, P2 head": Lever(options=P2),
    "AdamW": Lever(arguments=ADAMW),
    "learning rate 0.02": Lever(arguments={"lr0": 0.02}),
    "warm-up of 1 epoch": Lever(arguments={"warmup_epochs": 1.0}),
    "no mosaic": Lever(arguments={"mosaic": 0.0}),
    "mosaic to the end": Lever(arguments={"close_mosaic": 0}),
    "no mixup": Lever(arguments={"mixup": 0.0}),
    "scale 0.2": Lever(arguments={"scale": 0.2}),
    "brightness 0.2": Lever(arguments={"hsv_v": 0.2}),
    "class loss 1.0": Lever(arguments={"cls": 1.0}),
    "half of the clips": Lever(options={"subset": "50%"}),
    "every 5th frame": Lever(options={"every": 5}),
    "every 10th frame": Lever(options={"every": 10}),
    "motorcycle 8, bicycle 2 times": Lever(options={"repeat": "motorcycle=8,bicycle=2"}),
    "every 5th, motorcycle 8, bicycle 2": Lever(options={"every": 5, "repeat": "motorcycle=8,bicycle=2"}),
    "paste motorcycle 0.3, bicycle 0.1": Lever(options={"paste": "motorcycle=0.3,bicycle=0.1"}, still=True),
    "thermal, P2 head at 960 px": Lever(options=P2, arguments={"imgsz": 960}),
    "now, before": Lever(options={"frames": "now,before"}),
    "now, background": Lever(options={"frames": "now,background"}, still=True),
    "now, before, background": Lever(options={"frames": "now,before,background"}, still=True),
    "best by cells": Lever(options={"select_by": "cells"}),
    "best by global_map_bal": Lever(options={"select_by": "global_map_bal"}),
    "three sizes (TTA)": Lever(predicting={"tta": True}),
    "suppression at 0.7": Lever(predicting={"iou": 0.7}),
    "25 boxes a class": Lever(predicting={"max_det": 25}),
    "agnostic suppression": Lever(predicting={"agnostic": True}),
    "swept: conf, iou": Lever(swept=("conf", "iou")),
    "swept: imgsz": Lever(swept=("imgsz",)),
    "soup of its checkpoints": Lever(soup=True),
    "linked": Lever(linked=True, still=True),
    "preset thermal-large": Lever(options={"preset": "thermal-large"}),
    "preset thermal-6gb": Lever(options={"preset": "thermal-6gb"}),
    "preset rx5600xt": Lever(options={"preset": "rx5600xt"}),
}

RARE = "motorcycle=8,bicycle=2"
LEVERS |= {
    "AdamW, 960 px": Lever(arguments={**ADAMW, "imgsz": 960}),
    "AdamW, P2 head": Lever(arguments=ADAMW, options=P2),
    "AdamW, P2 head at 640 px": Lever(arguments={**ADAMW, "imgsz": 640}, options=P2),
    "AdamW, P2 head at 960 px": Lever(arguments={**ADAMW, "imgsz": 960}, options=P2),
    "AdamW, YOLOv8s, P2 head at 960 px": Lever(
        arguments={**ADAMW, "imgsz": 960}, options={"model": "yolov8s-p2.yaml"}
    ),
    "AdamW, YOLOv8m, P2 head at 960 px": Lever(
        arguments={**ADAMW, "imgsz": 960}, options={"model": "yolov8m-p2.yaml"}
    ),
    "AdamW, rare": Lever(arguments=ADAMW, options={"repeat": RARE}),
    "AdamW, P2 head at 640 px, rare": Lever(
        arguments={**ADAMW, "imgsz": 640}, options={**P2, "repeat": RARE}
    ),
    "AdamW, P2 head at 640 px, rare, every 10th": Lever(
        arguments={**ADAMW, "imgsz": 640}, options={**P2, "repeat": RARE, "every": 10}
    ),
    "AdamW, P2 head at 960 px, rare": Lever(
        arguments={**ADAMW, "imgsz": 960}, options={**P2, "repeat": RARE}
    ),
    "AdamW, P2 head at 640 px, rare, three channels": Lever(
        arguments={**ADAMW, "imgsz": 640},
        options={**P2, "repeat": RARE, "frames": "now,before,background"},
        still=True,
    ),
}
"""What a lever gains alone says little of what it gains beside others."""

RECIPE = "AdamW, P2 head at 640 px, rare"
"""What docs/levers.md found best at equal times: ``thermal-small`` with rare classes repeated."""

BESIDE = 0.5
"""Of a training's minutes, what start, validation and scoring add, until a training has told."""

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t of 1 to 9 degrees of freedom; of more the last, which is too wide."""

CHECKPOINTS = 6
"""Of a run, evenly spread, that a soup is made of at most, beside the best one."""

SIZES = {"below 12 px": (0, 12), "12 to 32 px": (12, 32), "above 32 px": (32, 10_000)}
"""Square roots of areas of boxes."""


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, for each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, all alike")
    parser.add_argument("--levers", nargs="*", choices=list(LEVERS), default=list(LEVERS))
    parser.add_argument("--moving", action="store_true", help="leave out levers that need a still camera")
    parser.add_argument("--model", default="yolo11n.yaml", help="where the lever names none")
    parser.add_argument("--imgsz", type=int, help="where the lever names none")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--device")
    parser.add_argument("--val-months", help="what is validated on while training; all are scored at the end")
    parser.add_argument("--no-patches", action="store_true", help="PyTorch's own convolutions")
    parser.add_argument("--out", type=Path, default=Path("build/levers"))
    parser.add_argument("--call", type=float, default=math.inf, help="minutes that this call may take")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--plan", action="store_true", help="print what is missing, train nothing")
    shown.add_argument("--table", action="store_true", help="print what is there, train nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    results = options.out / "results.jsonl"
    if options.one:
        sys.exit(one(options, options.data[0], *json.loads(options.one)))
    options.out.mkdir(parents=True, exist_ok=True)
    rows = read(results, options.minutes)
    wanted = missing(options, rows)
    longest = max((needed(options.minutes, names, rows) for _, _, names in wanted), default=0.0)
    if longest > options.call and not options.table:
        parser.error(
            f"a training takes {longest:.0f} minutes, --call has {options.call:g}: name fewer --levers"
        )
    if options.plan:
        print(plan_of_calls(wanted, options, rows))
        return
    outcomes: dict[str, str] = {}
    if not options.table:
        ends = time.monotonic() + 60 * options.call
        with ThreadPoolExecutor(options.jobs) as pool:
            outcomes = dict(pool.map(lambda job: run(options, ends, *job), wanted))
    for data in options.data:
        print(f"\n{data}, {options.minutes:g} minutes each, {options.seeds} seeds\n")
        print(table(read(results, options.minutes), data))
    failed, left = ([name for name, how in outcomes.items() if how == kind] for kind in ("failed", "left"))
    if left:
        print(f"{len(left)} of {len(wanted)} trainings are left: run the same again", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}; their logs are in {options.out}", file=sys.stderr)
    sys.exit(1 if failed else 0)


def needed(minutes: float, names: Sequence[str], rows: Sequence[dict[str, Any]]) -> float:
    """Minutes of a training and of scoring its levers: the longest so far, or what is to be expected."""
    first, further = (
        max((row["took"] for row in rows if row.get("trained") is trained), default=minutes * expected)
        for trained, expected in ((True, 1 + BESIDE), (False, BESIDE / 2))
    )
    return float(first + (len(names) - 1) * further)


def plan_of_calls(
    wanted: Sequence[tuple[Path, int, list[str]]], options: argparse.Namespace, rows: Sequence[dict[str, Any]]
) -> str:
    """What is missing, a line a training, below the call that will do it."""
    call, ends, lines = 0, [math.inf], [f"{len(wanted)} trainings are missing"]
    last = 0.0
    for data, seed, names in wanted:
        each = needed(options.minutes, names, rows)
        if min(ends) + each > options.call and min(ends) > 0:
            call, ends = call + 1, [0.0] * options.jobs
            lines.append(f"call {call}")
        ends[ends.index(min(ends))] += each
        last = max(ends)
        lines.append(f"  {data.name}, seed {seed}, {each:.0f} minutes: {'; '.join(names)}")
    return "\n".join(
        [*lines, f"{call} calls of {options.jobs} at once; the last one takes {last:.0f} minutes"]
    )


def missing(options: argparse.Namespace, done: Sequence[dict[str, Any]]) -> list[tuple[Path, int, list[str]]]:
    """Data, seed and levers of each training that is to be done; levers of one recipe together."""
    have = {(row["data"], row["lever"], row["seed"]) for row in done}
    jobs: dict[tuple[Path, int, str], list[str]] = {}
    for data in options.data:
        for seed in range(options.seeds):
            for name in options.levers:
                if (data.name, name, seed) not in have and not (LEVERS[name].still and options.moving):
                    jobs.setdefault((data, seed, LEVERS[name].recipe), []).append(name)
    return [(data, seed, names) for (data, seed, _), names in jobs.items()]


def run(options: argparse.Namespace, ends: float, data: Path, seed: int, names: list[str]) -> tuple[str, str]:
    """One training in a process of its own, its words in a log; left where it would not end in time."""
    label = f"{data.name} {names[0]} {seed}"
    # Read now: what ended a minute ago tells better than a guess how long this one will take.
    done = read(options.out / "results.jsonl", options.minutes)
    if time.monotonic() + 60 * needed(options.minutes, names, done) > ends:
        return label, "left"
    job = json.dumps([seed, names])
    command = [sys.executable, __file__, str(data), "--one", job, "--out", options.out]
    for name in ("minutes", "model", "imgsz", "batch", "workers", "device", "val_months"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name.replace('_', '-')}", value]
    command += ["--no-patches"] if options.no_patches else []
    with (options.out / f"{label}.log").open("w") as log:
        told = subprocess.run(tied(list(map(str, command))), stdout=log, stderr=log, check=False)
    how = "failed" if told.returncode else "done"
    print(f"{label}: {how}", file=sys.stderr)
    return label, how


def tied(command: list[str]) -> list[str]:
    """A command that is told to stop when this process dies, however it dies, where the system can do that.

    What outlives a call that was killed would share the card with the next one.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", *command] if setpriv else command


def one(options: argparse.Namespace, data: Path, seed: int, names: list[str]) -> int:
    """Train the recipe of these levers for the minutes, and score each of them; 1 where one failed."""
    begun, levers = time.monotonic(), [LEVERS[name] for name in names]
    slug = "".join(c if c.isalnum() else "-" for c in f"{data.name}-{names[0]}-{seed}")
    weights = train(options, data, seed, levers[0], slug, soup=any(lever.soup for lever in levers))
    epochs = len((weights.parents[1] / "results.csv").read_text().splitlines()) - 1
    batch = load_checkpoint(weights)[1]["train_args"]["batch"]
    truth, status = GroundTruth.read(data / ltdv2.ANNOTATIONS["val"]), 0
    for name, lever in zip(names, levers, strict=True):
        try:
            found = detections(options, data, truth, weights, lever)
        except (ToolkitError, RuntimeError):  # the device's memory too; the training is kept for the others
            traceback.print_exc()
            status = 1
            continue
        row = {"data": data.name, "lever": name, "seed": seed, "epochs": epochs, "minutes": options.minutes}
        row |= {"device": device_name(options.device), "took": (time.monotonic() - begun) / 60}
        row["trained"], begun = name == names[0], time.monotonic()
        row["batch"] = batch
        row |= numbers(truth, found)
        with (options.out / "results.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
    return status


def device_name(device: str | None) -> str:
    """The card that trains, or cpu: rows of unlike cards are not to be compared."""
    return torch.cuda.get_device_name(0) if device != "cpu" and torch.cuda.is_available() else "cpu"


def train(options: argparse.Namespace, data: Path, seed: int, lever: Lever, name: str, soup: bool) -> Path:
    """The weights of a run; for a soup it keeps those of each epoch too."""
    place = workspace.Workspace(options.out / "workspace")
    place.runs.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place.runs / name, ignore_errors=True)  # what an earlier call cut off or could not score
    # A preset names its own model and size.
    own = {} if "preset" in lever.options else {"model": options.model, "imgsz": options.imgsz}
    given = {"preset": "thermal", **own, **lever.options}
    asked = Options(
        data=data,
        batch=options.batch,
        workers=options.workers,
        device=options.device,
        seed=seed,
        name=name,
        val_months=None if "select_by" in lever.options else options.val_months,
        patches=not options.no_patches,
        **given,
    )
    plan = deciding.plan(place, asked)
    told = {"patience": 0, "plots": False, "time": options.minutes / 60, **lever.arguments}
    if soup:
        told["save_period"] = 1
    return supervisor.train(replace(plan, arguments={**plan.arguments, **told}))


def detections(
    options: argparse.Namespace, data: Path, truth: GroundTruth, weights: Path, lever: Lever
) -> Detections:
    """What a lever finds on the validation split with weights of its recipe."""
    asked = PredictionOptions(device=options.device, batch=options.batch, **lever.predicting)
    if lever.soup:
        out = weights.parents[1] / "soup.pt"

        def judge(checkpoint: Path) -> float:
            return score(truth, predict(checkpoint, data, "val", asked)).overall.map_50

        best, *others = soup.checkpoints_of(weights.parents[1])
        spread_out = others[:: -max(1, -(-len(others) // CHECKPOINTS))]
        soup.make([best, *spread_out], judge, out, truth.vocabulary.classes)
        weights = out
    if lever.swept:
        context = Context.read(data / ltdv2.ANNOTATIONS["val"], truth.image_ids)
        best = sweep.sweep(weights, load(data), "val", truth, context, asked, lever.swept).tried[0]
        asked = replace(asked, conf=best.conf, iou=best.iou, imgsz=best.imgsz)
        print(f"swept: {best.flags}")
    found = predict(weights, data, "val", asked)
    return link(found).detections if lever.linked else found


def numbers(truth: GroundTruth, found: Detections) -> dict[str, float]:
    """Scores, AP@0.5 by class, and by the size of the true box."""
    scores, matches = score(truth, found), match(align(truth, found))
    # Where every month has 0 the formula gives none; nothing ranks lower.
    balanced = scores.balanced if is_number(scores.balanced) else 0.0
    told = {"bal": balanced, "mAP@0.5": scores.overall.map_50, "CoV": scores.consistency}
    by_class = scores.overall.map_50_per_class or {}
    told |= {LABELS[label]: ap for label, ap in by_class.items() if label in LABELS and ap >= 0}
    p = matches.problem
    side, true_side = (np.sqrt(boxes[:, 2] * boxes[:, 3]) for boxes in (p.boxes, p.truth_boxes))
    # A detection belongs to the size of what it found, a false alarm to its own.
    side = np.where(matches.found >= 0, np.append(true_side, 0)[matches.found], side)
    for name, (low, high) in SIZES.items():
        inside = ((sides >= low) & (sides < high) for sides in (side, true_side))
        told[name] = matches.mean_ap(*inside)
    return told


def read(results: Path, minutes: float | None = None) -> list[dict[str, Any]]:
    """The rows of what was done, of trainings of as many minutes; None: of all."""
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    return [row for row in rows if minutes is None or row["minutes"] == minutes]


def table(rows: Sequence[dict[str, Any]], data: Path) -> str:
    """Markdown: a row a lever, mean and standard deviation over seeds, and the gain over ``thermal``.

    Behind them are the interval of that gain, and the gain over :data:`RECIPE` with its interval.
    """
    columns = ["bal", "mAP@0.5", "CoV", *LABELS.values(), *SIZES]
    heads = ["lever", "epochs", "gain of bal", *columns, "95 %", "over the recipe", "95 %"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    of_data = [row for row in rows if row["data"] == data.name]
    bases = [
        {row["seed"]: row["bal"] for row in of_data if row["lever"] == name} for name in ("thermal", RECIPE)
    ]
    for name in LEVERS:
        mine = [row for row in of_data if row["lever"] == name]
        if mine:
            gains, beside = (
                [row["bal"] - base[row["seed"]] for row in mine if row["seed"] in base] for base in bases
            )
            cells = [spread([row[column] for row in mine if column in row]) for column in columns]
            epochs = "/".join(str(row["epochs"]) for row in mine)
            ends = [interval(gains), spread(beside, "+"), interval(beside)]
            lines.append(f"| {name} | {epochs} | {spread(gains, '+')} | {' | '.join(cells + ends)} |")
    cards = sorted({row["device"] for row in of_data if "device" in row})
    lines += [f"\ntrained on {', '.join(cards)}"] if cards else []
    batches = {(row["lever"], row["seed"]): row["batch"] for row in of_data if "batch" in row}
    smaller = [f"{name} {seed}: {n}" for (name, seed), n in batches.items() if n < max(batches.values())]
    # A full memory halves a batch; a preset may have a smaller one of its own.
    return "\n".join([*lines, *([f"\nsmaller batches: {'; '.join(smaller)}"] if smaller else [])])


def interval(values: Sequence[float]) -> str:
    """The 95 % interval of the mean of a few values by Student's t; none of fewer than two."""
    if len(values) < 2:
        return "-"
    half = STUDENT[min(len(values) - 2, 8)] * stdev(values) / math.sqrt(len(values))
    return f"{mean(values) - half:+.3f} to {mean(values) + half:+.3f}"


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and sample standard deviation of the numbers among them: a run that found nothing has no CoV."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "-"
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.3f}{deviation}"


if __name__ == "__main__":
    main()
