"""A program that uses Ultralytics' classes of one task: trainer, validator, predictor and exporter.

python engine.py TASK DATA PICTURES NAME [WEIGHTS]

It trains an epoch, and uses WEIGHTS afterwards, by default what it has trained. It prints a line of JSON.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import torch
from ultralytics import YOLO
from ultralytics.cfg import get_cfg
from ultralytics.engine.exporter import Exporter
from ultralytics.models.yolo import classify, detect, segment
from ultralytics.utils import DEFAULT_CFG

TASKS = {
    "detect": (detect.DetectionTrainer, detect.DetectionValidator, detect.DetectionPredictor, "yolo11n.yaml"),
    "segment": (
        segment.SegmentationTrainer,
        segment.SegmentationValidator,
        segment.SegmentationPredictor,
        "yolo11n-seg.yaml",
    ),
    "classify": (
        classify.ClassificationTrainer,
        classify.ClassificationValidator,
        classify.ClassificationPredictor,
        "yolo11n-cls.yaml",
    ),
}
CALLED: Counter[str] = Counter()


def main(task: str, data: str, pictures: str, name: str, *given: str) -> None:
    """Train, validate, predict, export, predict by what was exported, and resume what has ended."""
    make_trainer, make_validator, make_predictor, model = TASKS[task]
    common = {"device": "cpu", "plots": False, "project": str(Path.cwd()), "exist_ok": True}
    training = {**common, "data": data, "model": model, "imgsz": 32, "epochs": 1, "batch": 4, "workers": 0}
    if task == "segment":
        training |= {"mask_ratio": 1, "overlap_mask": False}

    trainer: Any = make_trainer(overrides={**training, "name": name})
    _watch(trainer, "on_train_start")
    losses: list[float] = []
    trainer.add_callback("on_train_epoch_end", lambda of: losses.extend(map(float, of.tloss.values())))
    trainer.train()
    answers: dict[str, Any] = {"train": losses}
    weights = given[0] if given else _settled(trainer.best, pictures)

    used = {**common, "name": f"{name}-used"}
    validator: Any = make_validator(
        args=get_cfg(DEFAULT_CFG, {**used, "data": data, "imgsz": 32, "task": task})
    )
    _watch(validator, "on_val_start")
    answers["metrics"] = {key: float(value) for key, value in validator(model=weights).items()}

    many = {**used, "save": False, "imgsz": [64, 64], "conf": 1e-5, "max_det": 20}
    predictor: Any = make_predictor(overrides=many)
    _watch(predictor, "on_predict_start")
    words, sys.argv = sys.argv, []  # as a program has it that embeds Python
    answers["predict"] = _numbers(predictor(source=pictures, model=weights))
    sys.argv = words

    exporter: Any = Exporter(overrides={"imgsz": 64, "device": "cpu"})
    _watch(exporter, "on_export_start")
    file = exporter(model=YOLO(weights).model)
    answers["export"] = _numbers(YOLO(file, task=task)(pictures, **many))

    try:
        make_trainer(overrides={**training, "name": name, "resume": str(trainer.last)}).train()
    except AssertionError as error:
        answers["resume"] = str(error).partition("\n")[0].rpartition(" training to ")[2]
    print(json.dumps({**answers, "called": dict(CALLED)}))


def _settled(checkpoint: Path, pictures: str) -> str:
    """The checkpoint with what its batch norms see in the pictures: after one epoch they know too little."""
    content = torch.load(checkpoint, weights_only=False)
    model = content["model"] = (content["ema"] or content["model"]).float().train()
    content["ema"] = None
    norms = [each for each in model.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    for each in norms:
        each.reset_running_stats()
        each.momentum = None
    images = [cv2.imread(str(path)) for path in sorted(Path(pictures).iterdir())]
    with torch.no_grad():
        for turned in (0, 1, 2, 3):
            batch = torch.stack(
                [torch.from_numpy(each).permute(2, 0, 1).rot90(turned, (1, 2)) for each in images]
            )
            model(batch.flip(1) / 255)
    file = checkpoint.with_name("settled.pt")
    torch.save(content, file)
    return str(file)


def _watch(part: Any, event: str) -> None:
    def count(of: Any) -> None:
        if of is not part:
            raise ValueError(f"{event}: called back for another object")
        CALLED[event] += 1

    part.add_callback(event, count)


def _numbers(results: Any) -> list[float]:
    """What was found in each picture: boxes with confidence and class, areas of masks, probabilities."""
    found: list[torch.Tensor] = []
    for each in results:
        if each.boxes is not None:
            found.append(each.boxes.data.flatten())
        if each.masks is not None:
            found.append(each.masks.data.float().mean((1, 2)))
        if each.probs is not None:
            found.append(each.probs.data)
    return torch.cat(found).tolist() if found else []


if __name__ == "__main__":
    main(*sys.argv[1:])
