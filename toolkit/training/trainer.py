"""Ultralytics' detection trainer on LTDv2's index."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.ultralytics import LTDv2Dataset, build_dataset, data_dictionary
from toolkit.training.session import TrainingPlan


class LTDv2Trainer(DetectionTrainer):
    """Takes frames and boxes from the index, and writes checkpoints so that a cut never damages one.

    Args:
        plan: what the run uses.
        index: the prepared data.
    """

    last: Path
    best: Path

    def __init__(self, plan: TrainingPlan, index: DatasetIndex) -> None:
        self.plan = plan
        self.index = index
        overrides: dict[str, Any] = {
            **plan.arguments,
            "task": "detect",
            "mode": "train",
            "model": str(plan.resume or plan.model),
            "data": str(plan.data),
            "device": plan.device,
            "save_dir": str(plan.run),
            "resume": str(plan.resume) if plan.resume else False,
        }
        super().__init__(overrides=overrides)

    def get_dataset(self) -> dict[str, Any]:
        """What Ultralytics would read from a data.yaml."""
        return data_dictionary(self.index, self.plan.channels)

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> LTDv2Dataset:
        """The split ``img_path`` ("train" or "val") as a dataset."""
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        return build_dataset(
            self.index, img_path, self.args, mode=mode, batch=batch or 1, data=self.data, stride=stride
        )

    def get_class_counts(self) -> npt.NDArray[np.float32]:
        """Boxes of each class in the training split, counted from the index."""
        counts: npt.NDArray[np.float32] = self.train_loader.dataset.class_counts().astype(np.float32)
        return counts

    def save_model(self) -> bool:
        """Write last.pt, and best.pt if this epoch is the best, each to a temporary name first."""
        final = {"last": self.last, "best": self.best}
        partial = {name: path.with_name(f".{path.name}.tmp") for name, path in final.items()}
        self.last, self.best = partial["last"], partial["best"]
        try:
            saved: bool = super().save_model()
        finally:
            self.last, self.best = final["last"], final["best"]
        for name, path in partial.items():
            if path.exists():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
                path.replace(final[name])
        return saved

    def final_eval(self) -> None:
        """Drop the optimiser from the finished checkpoints; `toolkit evaluate` does the scoring."""
        for weights in (self.last, self.best):
            if weights.exists():
                strip_optimizer(weights)
