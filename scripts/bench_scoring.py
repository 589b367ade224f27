#!/usr/bin/env python3
"""Time both engines, the report and the organisers' way on one input of the challenge's size.

    scripts/bench_scoring.py                   everything; the organisers' way takes minutes
    scripts/bench_scoring.py --no-reference    all but that

The input is made from a seed: the 46,013 ids of the development template, about 300,000 true boxes in
384 x 288 frames and about 630,000 predictions, most of them jittered copies of true boxes. For the
report with all its pictures the truth is also written as a COCO file with weather, beside an archive of all
frames. Every way is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from submission import Detections, templates
from submission.validate import LABELS
from toolkit.evaluation.scoring import score
from toolkit.evaluation.truth import GroundTruth

LIMIT = 1e-6
REPORT = "hotcoco, COCO truth, report with weather and frames"
CLIP = 120
"""Frames in a clip."""


def make_input(folder: Path, seed: int) -> tuple[int, Detections]:
    """Write truth.json and predictions.json; returns the number of true boxes and the exact predictions."""
    rng = np.random.default_rng(seed)
    ids = templates.template("development")
    counts = rng.poisson(6.5, len(ids))
    n = int(counts.sum())
    owner = np.repeat(np.arange(len(ids)), counts)
    size = np.exp(rng.normal([2.6, 3.1], 0.5, (n, 2))).clip(3, 150)
    corner = rng.uniform(0, 1, (n, 2)) * ([384, 288] - size)
    boxes = np.hstack([corner, corner + size])
    labels = rng.choice([1, 2, 3, 4], n, p=[0.62, 0.1, 0.02, 0.26])
    kept = np.flatnonzero(rng.random(n) < 0.8)
    extra = rng.integers(0, n, int(1.3 * n))
    source = np.concatenate([kept, extra])
    spread = np.concatenate([np.full(len(kept), 0.06), np.full(len(extra), 0.5)])
    jitter = rng.normal(0, 1, (len(source), 4)) * spread[:, None] * np.hstack([size, size])[source]
    found = np.sort((boxes[source] + jitter).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    scores = rng.beta(np.where(spread < 0.1, 4.0, 1.2), np.where(spread < 0.1, 2.0, 6.0))
    order = np.argsort(owner[source], kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[source], minlength=len(ids)))])
    exact = Detections(ids, offsets, found[order], scores[order], labels[source][order])
    exact.rounded().write(folder / "predictions.json")
    ends = np.concatenate([[0], np.cumsum(counts)])
    truth = {
        str(i): {
            "boxes": boxes[ends[k] : ends[k + 1]].round(2).tolist(),
            "labels": labels[ends[k] : ends[k + 1]].tolist(),
        }
        for k, i in enumerate(ids.tolist())
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    return n, exact


def make_dataset(folder: Path, seed: int) -> Path:
    """The truth as a data folder: Valid.json with clips, hours and weather, and frames.zip; prepared."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    truth = json.loads((folder / "truth.json").read_text())
    images, annotations = [], []
    for k, (name, entry) in enumerate(truth.items()):
        minute = k // CLIP % 1440
        day = f"{name[:6]}{k // CLIP % 28 + 1:02d}"
        clip = f"frames/{day}/clip_{k // CLIP}_{minute // 60:02d}{minute % 60:02d}"
        weather = {"Temperature": rng.normal(12, 8), "Humidity": rng.uniform(40, 100)}
        weather |= {"Wind Speed": rng.gamma(2, 2), "Sun Radiation Intensity": rng.uniform(0, 800)}
        images.append(
            {
                "id": int(name),
                "file_name": f"{clip}/image_{k % CLIP:04d}.jpg",
                "width": 384,
                "height": 288,
                "date_captured": f"{day[:4]}-{day[4:6]}-{day[6:]}T{minute // 60:02d}:{minute % 60:02d}:00",
                "meta": {key: round(value, 1) for key, value in weather.items()},
            }
        )
        for (x1, y1, x2, y2), label in zip(entry["boxes"], entry["labels"], strict=True):
            box = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
            annotations.append(
                {"id": len(annotations), "image_id": int(name), "category_id": label, "bbox": box}
            )
    categories = [{"id": i, "name": n} for i, n in enumerate(("background", *LABELS.values()))]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (data / "Valid.json").write_text(json.dumps(coco))
    scenes = (cv2.resize(rng.integers(40, 200, (6, 8), np.uint8), (384, 288)) for _ in range(16))
    jpegs = [cv2.imencode(".jpg", scene)[1].tobytes() for scene in scenes]
    with zipfile.ZipFile(data / "frames.zip", "w") as archive:
        for k, image in enumerate(images):
            archive.writestr(image["file_name"], jpegs[k % len(jpegs)])
    prepare = [sys.executable, "-m", "toolkit", "dataset", "prepare", str(data)]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL)
    return data


def organisers_way(folder: Path) -> None:
    """torchmetrics as the challenge uses it; writes reference.json."""
    import torch
    from torchmetrics.detection import MeanAveragePrecision

    from toolkit.ltdv2 import MONTHS

    def tensors(entry: dict[str, Any]) -> dict[str, torch.Tensor]:
        kinds = {"boxes": torch.float32, "scores": torch.float32, "labels": torch.uint8}
        return {key: torch.tensor(values, dtype=kinds[key]) for key, values in entry.items()}

    truth = {i: tensors(e) for i, e in json.loads((folder / "truth.json").read_text()).items()}
    found = {i: tensors(e) for i, e in json.loads((folder / "predictions.json").read_text()).items()}
    sets = {"global": list(truth)}
    sets |= {name: [i for i in truth if digits in i[:8]] for name, digits in MONTHS.items()}
    scores: dict[str, Any] = {}
    for name, ids in sets.items():
        metric = MeanAveragePrecision(iou_type="bbox", box_format="xyxy", class_metrics=True, average="macro")
        for i in ids:
            metric.update([found[i]], [truth[i]])
        for key, value in metric.compute().items():
            if key in ("map", "map_50", "map_75", "mar_1", "mar_10", "mar_100"):
                scores[f"{name}_{key}"] = float(value)
            elif key == "map_per_class":
                scores[f"{name}_{key}"] = value.tolist()
    months = [scores[f"{name}_map_50"] for name in MONTHS]
    scores["global_map_con"] = float(np.std(months, ddof=1) / np.mean(months))
    scores["global_map_bal"] = (1 - scores["global_map_con"]) * scores["global_map_50"]
    (folder / "reference.json").write_text(json.dumps(scores))


def measure(command: list[str]) -> tuple[float, float, float]:
    """Seconds, seconds of processor time and peak memory in GB of a command, from its start to its end."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    seconds, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    return seconds, cpu, usage.ru_maxrss * 1024 / 1e9


def largest_difference(ours: Path, reference: Path) -> float:
    """Over all keys of the reference."""
    got, wanted = json.loads(ours.read_text()), json.loads(reference.read_text())
    return max(float(np.abs(np.subtract(got[key], value)).max()) for key, value in wanted.items())


def effect_of_rounding(folder: Path, exact: Detections) -> dict[str, float]:
    """How far the rounding of a submission moves the scores: what ``submit`` writes, less what was found."""
    written = json.loads((folder / "hotcoco" / "scores.json").read_text())
    scores = score(GroundTruth.read(folder / "truth.json"), exact, "hotcoco").as_dict()
    return {key: written[key] - scores[key] for key in ("global_map_bal", "global_map_50", "global_map")}


def main() -> None:
    """Make the input, run the ways, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep the input and the scores here")
    parser.add_argument("--organisers-way", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.organisers_way:
        organisers_way(options.organisers_way)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        true, exact = make_input(folder, options.seed)
        print(
            f"{len(exact):,} images, {true:,} true boxes, {len(exact.scores):,} predictions, "
            f"seed {options.seed}"
        )
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
        rows: dict[str, tuple[float, float, float]] = {}
        files = [str(folder / "predictions.json"), "--truth", str(folder / "truth.json")]
        for engine in ("hotcoco", "pycocotools"):
            command = [sys.executable, "-m", "toolkit", "evaluate", *files, "--engine", engine]
            rows[engine] = measure([*command, "--out", str(folder / engine)])
        data = make_dataset(folder, options.seed)
        files[1:] = [
            "--truth",
            str(data / "Valid.json"),
            "--data",
            str(data),
            "--out",
            str(folder / "report"),
        ]
        for name, words in (("hotcoco, COCO truth", []), (REPORT, ["--report"])):
            rows[name] = measure([sys.executable, "-m", "toolkit", "evaluate", *files, *words])
        assert (folder / "report" / "gallery.png").is_file()
        if not options.no_reference:
            rows["torchmetrics"] = measure([sys.executable, __file__, "--organisers-way", str(folder)])
        print("| files on disk to scores.json | s | CPU s | peak GB | times faster | largest difference |")
        print("|---|---|---|---|---|---|")
        for name, (seconds, cpu, memory) in rows.items():
            faster = difference = "-"
            if "torchmetrics" in rows and name in ("hotcoco", "pycocotools"):
                faster = f"{rows['torchmetrics'][0] / seconds:.0f}"
                gap = largest_difference(folder / name / "scores.json", folder / "reference.json")
                difference = f"{gap:.1e}"
                assert gap <= LIMIT, f"{name} differs from torchmetrics by {gap}"
            print(f"| {name} | {seconds:.1f} | {cpu:.1f} | {memory:.2f} | {faster} | {difference} |")
        print(f"\nthe report takes {rows[REPORT][0] - rows['hotcoco, COCO truth'][0]:.1f} s more")
        print(f"the rounding of a submission moves {effect_of_rounding(folder, exact)}")


if __name__ == "__main__":
    main()
