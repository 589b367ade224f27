"""Ultralytics, unedited: its command, and a program that uses its classes as its own tests of them do."""

from __future__ import annotations

import csv
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .comparing import PROGRAMS, Row, calls, complaint, run, said, worst
from .pictures import classified, labelled

COMMAND = PROGRAMS / "yolo_command.py"

MOST = 1e-2
"""Largest difference of losses and boxes: a training doubles rounding at every step."""

MOST_METRIC = 1e-6
"""Largest difference of an average precision by the same weights."""

MOST_RATE = 1e-5
"""The same of precision and recall: they are read off between two confidences, to which a rounding moves."""

Numbers = Callable[[Path], list[float]]


def rows() -> Iterator[Row]:
    """The command's verbs, then the classes of three tasks."""
    import ultralytics

    with tempfile.TemporaryDirectory() as folder:
        data = labelled(Path(folder, "pictures"))
        common = ["imgsz=64", "device=cpu", f"project={folder}", "exist_ok=True", "plots=False"]
        train = ["detect", "train", "model=yolov8n.yaml", f"data={data}", "batch=4", "workers=0", "amp=False"]
        name = f"yolo train ({ultralytics.__version__})"
        yield _both(name, [*train, "epochs=2", *common], folder, _losses)
        learning = [
            "epochs=60",
            "optimizer=AdamW",
            "lr0=0.002",
            "mosaic=0",
            "scale=0",
            "val=False",
            "hsv_v=0",
        ]
        learned = run(folder, COMMAND, *train, *learning, *common, "name=learned", served=False)
        weights = Path(folder, "learned", "weights", "last.pt")
        if complaint([learned]):
            yield Row("yolo train, to have weights", False, complaint([learned]), 0, 0.0)
            return
        yield _validated(["detect", "val", f"model={weights}", f"data={data}", *common], folder)
        predict = ["detect", "predict", f"model={weights}", f"source={data.parent / 'images'}",
                   "save_txt=True", "save_conf=True", "conf=0.01", *common]  # fmt: skip
        yield _both("yolo predict", predict, folder, _boxes)
        yield _exported(weights, "torchscript", folder, _outputs)
        yield _exported(weights, "onnx", folder, _graph)
    for task in ("detect", "segment", "classify"):
        yield _engine(task)


def _both(name: str, words: list[str], folder: str, read: Numbers) -> Row:
    begun = time.perf_counter()
    done = [
        run(folder, COMMAND, *words, f"name={kind}", served=kind == "served") for kind in ("plain", "served")
    ]
    if complaint(done):
        return _row(name, begun, done, complaint(done))
    ours, theirs = read(Path(folder, "served")), read(Path(folder, "plain"))
    difference = worst(ours, theirs)
    return _row(name, begun, done, f"{len(ours)} numbers, {difference:.1e}", difference < MOST)


def _validated(words: list[str], folder: str) -> Row:
    begun = time.perf_counter()
    done = [run(folder, COMMAND, *words, "name=val", served=served) for served in (False, True)]
    if complaint(done):
        return _row("yolo val", begun, done, complaint(done))
    theirs, ours = map(said, done)
    complaints = _metrics(ours, theirs)
    if theirs["metrics/mAP50(B)"] < 0.1:
        complaints.append(f"the model has learned nothing: {theirs}")
    words_ = "; ".join(complaints) or f"mAP50 {ours['metrics/mAP50(B)']:.6f}, {len(ours)} metrics agree"
    return _row("yolo val", begun, done, words_, not complaints)


def _metrics(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    """What is wrong with the metrics of a validation."""
    if ours.keys() != theirs.keys():
        return [f"{sorted(ours)}, not {sorted(theirs)}"]
    limits = {name: MOST_RATE if "precision" in name or "recall" in name else MOST_METRIC for name in theirs}
    return [
        f"{name} {ours[name]!r}, not {value!r}"
        for name, value in theirs.items()
        if not abs(ours[name] - value) <= limits[name]
    ]


def _exported(weights: Path, kind: str, folder: str, differ: Callable[[Path, Path], str]) -> Row:
    begun = time.perf_counter()
    words = ["export", f"model={weights}", f"format={kind}", "imgsz=64", "device=cpu"]
    file, plain = weights.with_suffix(f".{kind}"), Path(folder, f"plain.{kind}")
    done = [run(folder, COMMAND, *words, served=False)]
    if file.is_file():
        file.rename(plain)
    done.append(run(folder, COMMAND, *words, served=True))
    wrong = complaint(done) or differ(file, plain)
    return _row(f"yolo export {kind}", begun, done, wrong or "the files agree", not wrong)


def _outputs(ours: Path, theirs: Path) -> str:
    """What differs in what two TorchScript files compute; "" where nothing does."""
    import torch

    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found, expected = (torch.jit.load(str(file))(x) for file in (ours, theirs))
    return "" if torch.equal(found, expected) else "the outputs of the two files differ"


def _graph(ours: Path, theirs: Path) -> str:
    """What differs in two ONNX graphs, operators and weights; "" where nothing does."""
    import onnx

    found, expected = (onnx.load(str(file)).graph for file in (ours, theirs))
    alike = found.node == expected.node and found.initializer == expected.initializer
    return "" if alike else "the two graphs differ"


def _engine(task: str) -> Row:
    begun = time.perf_counter()
    name = f"engine, {task}"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "pictures")
        data = classified(place) if task == "classify" else labelled(place, polygons=task == "segment")
        pictures = data / "val" / "bright" if task == "classify" else place / "images"
        words = [task, str(data), str(pictures)]
        script = PROGRAMS / "engine.py"
        done = [run(folder, script, *words, "plain", served=False)]
        weights = Path(folder, "plain", "weights", "settled.pt")
        done.append(run(folder, script, *words, "served", str(weights), served=True))
    if complaint(done):
        return _row(name, begun, done, complaint(done))
    theirs, ours = map(said, done)
    complaints = _metrics(ours["metrics"], theirs["metrics"])
    differences = {part: worst(ours[part], theirs[part]) for part in ("train", "predict", "export")}
    complaints += [f"{part}: {value:.1e}" for part, value in differences.items() if not value < MOST]
    for part in ("called", "resume"):
        if ours[part] != theirs[part]:
            complaints.append(f"{part}: {ours[part]}, not {theirs[part]}")
    return _row(name, begun, done, "; ".join(complaints) or _spoken(differences), not complaints)


def _spoken(differences: dict[str, float]) -> str:
    return ", ".join(f"{part} {value:.0e}" for part, value in differences.items())


def _row(
    name: str,
    begun: float,
    done: list[subprocess.CompletedProcess[str]],
    found: str,
    passed: bool = False,
) -> Row:
    served = calls(done[-1])
    return Row(name, passed and served > 0, found, served, time.perf_counter() - begun)


def _losses(run: Path) -> list[float]:
    with (run / "results.csv").open() as file:
        table = [{key.strip(): value for key, value in row.items()} for row in csv.DictReader(file)]
    return [float(value) for row in table for key, value in row.items() if key.startswith("train/")]


def _boxes(run: Path) -> list[float]:
    files = sorted((run / "labels").glob("*.txt"))
    return [
        float(word)
        for file in files
        for line in sorted(file.read_text().splitlines())
        for word in line.split()
    ]
