"""Ultralytics' detection trainer on LTDv2's index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.ultralytics import LTDv2Dataset, build_dataset, data_dictionary
from toolkit.files import replacing
from toolkit.training.durable import MAIN, DurableTrainer
from toolkit.training.rundir import Orders, RunFiles
from toolkit.training.session import TrainingPlan


class LTDv2Trainer(DurableTrainer):
    """Takes frames and boxes from the index.

    Args:
        plan: what the run uses.
        index: the prepared data.
        orders: of the supervisor; None: train from the newest checkpoint, skip nothing.
        stop_wanted: whether to save and stop, asked after every batch.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        index: DatasetIndex,
        orders: Orders | None = None,
        stop_wanted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.plan = plan
        self.index = index
        overrides: dict[str, Any] = {
            **plan.arguments,
            "task": "detect",
            "mode": "train",
            "model": plan.model,
            "data": str(plan.data),
            "device": plan.device,
            "save_dir": str(plan.run),
        }
        orders = orders or Orders()
        super().__init__(overrides, RunFiles(plan.run), orders, plan.saving, stop_wanted)

    def get_dataset(self) -> dict[str, Any]:
        """What Ultralytics would read from a data.yaml."""
        return data_dictionary(self.index, self.plan.channels)

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> LTDv2Dataset:
        """The split ``img_path`` ("train" or "val") as a dataset."""
        return build_dataset(
            self.index,
            img_path,
            self.args,
            mode=mode,
            batch=batch or 1,
            data=self.data,
            rows=self.plan.subset(img_path).rows(self.index.split(img_path)),
            stride=max(int(unwrap_model(self.model).stride.max()), 32),
            seed=self.args.seed if mode == "train" else None,
            skip_log=self.files.skipped_frames,
        )

    def get_class_counts(self) -> npt.NDArray[np.float32]:
        """Boxes of each class in the training split, counted from the index."""
        counts: npt.NDArray[np.float32] = self.train_loader.dataset.class_counts().astype(np.float32)
        return counts

    def final_eval(self) -> None:
        """Drop the optimiser from the finished checkpoints; `toolkit evaluate` does the scoring."""
        for weights in (self.last, self.best):
            if MAIN and weights.exists():
                with replacing(weights) as temporary:
                    strip_optimizer(weights, str(temporary))
