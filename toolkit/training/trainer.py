"""Ultralytics' detection trainer on LTDv2's index."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ultralytics import utils
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.torch_utils import unwrap_model

from toolkit import console
from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.joined import open_split
from toolkit.dataset.ultralytics import LTDv2Dataset, build_dataset, data_dictionary
from toolkit.evaluation import cells
from toolkit.evaluation.scoring import score
from toolkit.evaluation.truth import GroundTruth
from toolkit.ltdv2 import ANNOTATIONS
from toolkit.machine.eager import import_torchvision
from toolkit.prediction import PredictionOptions, as_saved, detect
from toolkit.runs.folder import Instructions, RunFiles
from toolkit.runs.plan import TRACKERS, TrainingPlan
from toolkit.training.passes import Passes
from toolkit.training.resumable import ResumableTrainer
from toolkit.training.telemetry import MAIN
from toolkit.training.weights import without_optimizer
from toolkit.weights import carry_first_layer, remember_views

SCORES = ("global_map_50", "global_map_con", "global_map_bal")
"""What results.csv keeps of the challenge's numbers."""

CHOSEN_BY = {"global_map_bal": "global_map_bal", "cells": cells.NAME}
"""The number that each way to choose looks at, beside Ultralytics' fitness."""


class Validator(DetectionValidator):
    """Ultralytics' validator without a time limit.

    On a slow machine frames would lose their boxes, and best.pt would depend on it.
    """

    def postprocess(self, preds: Any) -> list[dict[str, torch.Tensor]]:
        """Boxes of each frame, overlaps suppressed, as Ultralytics does it."""
        outputs = non_max_suppression(
            preds,
            self.args.conf,
            self.args.iou,
            multi_label=True,
            agnostic=self.args.single_cls or self.args.agnostic_nms,
            max_det=self.args.max_det,
            end2end=self.end2end,
            max_time_img=math.inf,
        )
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in outputs]


class LTDv2Trainer(ResumableTrainer):
    """Takes frames and boxes from the index.

    Args:
        plan: what the run uses.
        index: the prepared data.
        instructions: of the supervisor; None: train from the newest checkpoint, skip nothing.
        stop_wanted: whether to save and stop, asked after every batch.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        index: DatasetIndex,
        instructions: Instructions | None = None,
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
        instructions = instructions or Instructions()
        self._scoring_seconds = 0.0
        if plan.score_every and MAIN:
            self.truth = GroundTruth.read(plan.data / ANNOTATIONS["val"])
        scores = (*SCORES, cells.NAME) if plan.select_by == "cells" else SCORES
        period = int(plan.arguments.get("save_period", -1))  # type: ignore[arg-type]
        self.passes = Passes(plan.frequency.every, period, scores if plan.score_every else ())
        # In memory alone; by its settings file Ultralytics reports to almost whatever is installed.
        dict.update(utils.SETTINGS, {name: name in plan.trackers for name in TRACKERS})
        super().__init__(overrides, RunFiles(plan.run), instructions, plan.saving, stop_wanted)

    def get_dataset(self) -> dict[str, Any]:
        """What Ultralytics would read from a data.yaml."""
        return data_dictionary(self.index, self.plan.channels, self.plan.views)

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """Ultralytics' model, which remembers what its channels show."""
        model = super().get_model(cfg=cfg, weights=weights, verbose=verbose)
        if not self.plan.views.is_plain:
            if weights is not None:
                carry_first_layer(model, weights, self.plan.views)
            remember_views(model, self.plan.views)
        return model

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> LTDv2Dataset:
        """The split ``img_path`` ("train" or "val") as a dataset."""
        source = self.plan.source(img_path)
        dataset = build_dataset(
            self.index,
            source,
            self.args,
            mode=mode,
            batch=batch or 1,
            data=self.data,
            rows=self.plan.subset(img_path).rows(open_split(self.index, source)),
            frequency=self.plan.frequency,
            paste=self.plan.paste,
            stride=max(int(unwrap_model(self.model).stride.max()), 32),
            seed=self.args.seed,
            skip_log=self.files.skipped_frames,
        )
        if MAIN:
            console.note(f"{img_path} frames: {dataset.pixels.origin}")
            for word, count in dataset.pixels.sources.missing().items():
                console.note(f"{count:,} of {len(dataset.split):,} frames have none {word}: each is its own")
        return dataset

    def get_class_counts(self) -> npt.NDArray[np.float32]:
        """Boxes of each class in the training split, counted from the index."""
        counts: npt.NDArray[np.float32] = self.train_loader.dataset.class_counts().astype(np.float32)
        return counts

    def get_validator(self) -> Validator:
        """Ultralytics' validator, without its time limit."""
        import_torchvision()  # as Ultralytics' validator would
        return Validator(
            self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks
        )

    def validate(self) -> tuple[dict[str, float] | None, float | None]:
        """Ultralytics' validation, then the challenge's scores where the plan wants them.

        Returns:
            Metrics and fitness; None on all ranks but the first.
        """
        best = self.best_fitness
        metrics, fitness = super().validate()
        if metrics is None or fitness is None:
            return metrics, fitness
        if not self.plan.chooses:  # scores on frames that are trained on only grow: the newest is the best
            self.best_fitness = fitness = float(self.epoch + 1)
            return metrics, fitness
        if not self.plan.score_every:
            return metrics, fitness
        self.best_fitness = best  # a stop while the epoch is scored leaves the run as it was before it
        metrics |= self.score_epoch()
        self.telemetry.validation_seconds += self._scoring_seconds * self.plan.scored_part
        if self.plan.select_by != "fitness":
            chosen = metrics[CHOSEN_BY[self.plan.select_by]]
            # Nothing found in any month gives NaN; in some months only, global_map_bal is as little as -1.8.
            fitness = -math.inf if math.isnan(chosen) else chosen
        if best is None or best < fitness:
            self.best_fitness = fitness
        return metrics, fitness

    def score_epoch(self) -> dict[str, float]:
        """:data:`SCORES` of the averaged weights on the validation split; NaN in an epoch without scoring.

        Where not every epoch is validated, the one that is known to be the last is scored in any case.

        They are what `toolkit evaluate` finds for the checkpoint of this epoch; with ``select_by`` cells,
        their mean as well.
        """
        last = self.passes.every > 1 and (self.stop or self.epoch + 1 >= self.epochs)
        if (self.epoch + 1) % self.plan.score_every and not last:
            return self.passes.without(())
        start = time.monotonic()
        options = PredictionOptions(
            imgsz=self.args.imgsz,
            batch=min(PredictionOptions.batch, self.test_loader.batch_size),  # no more than validation holds
            workers=self.loader_workers,
            bad_frames=self.plan.rules.frames_allowed(),
        )
        weights = as_saved(self.ema.ema)
        detections = detect(weights, self.index, "val", options, on_batch=self._on_validation_batch)
        scores = score(self.truth, detections.rounded())
        self._scoring_seconds = time.monotonic() - start
        values = {**scores.as_dict(), cells.NAME: cells.mean(self.truth, scores)}
        found = {key: float(values[key]) for key in self.passes.scores}
        listed = ", ".join(f"{key} {value:.4f}" for key, value in found.items())
        console.note(f"epoch {self.epoch + 1}: {listed} ({self._scoring_seconds:.1f} s)")
        return found

    def final_eval(self) -> None:
        """Drop the optimiser from the finished checkpoints; `toolkit evaluate` does the scoring.

        best.pt keeps its fitness: a run that is cut off now trains its last minutes again. Where there is no
        room for a second file, the optimiser stays in.
        """
        for weights in (self.last, self.best):
            if not MAIN or not weights.exists():
                continue
            try:
                without_optimizer(weights, weights, best_fitness=self.best_fitness)
            except Exception as error:  # of a full disk PyTorch makes a RuntimeError
                self.telemetry.record("optimiser kept", "finished all the same", f"{weights.name}: {error}")
