"""The plan of a run: everything that it uses, decided before anything starts and written once."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from submission.errors import NO_JSON
from toolkit import ltdv2, vocabulary
from toolkit.dataset.frequency import Frequency, Paste
from toolkit.dataset.joined import open_split
from toolkit.dataset.subset import Subset
from toolkit.dataset.views import PLAIN, Views
from toolkit.errors import ToolkitError, reason
from toolkit.runs import health
from toolkit.runs.folder import RunFiles, decode_path
from toolkit.runs.needs import Needs
from toolkit.settings import Argument, Restarts, Saving, SelectBy

if TYPE_CHECKING:
    from toolkit.dataset.index import DatasetIndex

ULTRALYTICS: Mapping[str, int] = {"epochs": 100, "batch": 16, "workers": 8, "imgsz": 640, "seed": 0}
"""What Ultralytics takes where nobody says anything; a plan says it."""

TRACKERS = {
    "clearml": "clearml",
    "comet": "comet_ml",
    "dvc": "dvclive",
    "mlflow": "mlflow",
    "raytune": "ray",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
"""Where Ultralytics can report a run to, and the module that each needs."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything a run will use.

    Attributes:
        data: folder with LTDv2's files.
        run: folder of the run, made by :func:`record`.
        preset: name of the recipe that the rest started from, or its file.
        model: architecture or checkpoint.
        channels: of the images, 1 or 3, or as many as views.
        device: what :func:`toolkit.machine.device.resolve_device` returned.
        patches: whether convolutions go through the patches.
        arguments: Ultralytics' training arguments.
        score_every: epochs from one scoring of the validation split, as the challenge does it, to the next;
            0 for none.
        select_by: what best.pt is the best of, and what early stopping waits for: Ultralytics' fitness
            (mAP@0.5:0.95), the challenge's number, or the mean of well filled cells of class and month
            (:mod:`toolkit.evaluation.cells`).
        saving: when checkpoints inside an epoch are written.
        restarts: when the run is given up.
        rules: red flags and what they do.
        subsets: of the splits that are not used whole, by their names.
        frequency: how often the training frames come.
        paste: rare objects that are put into training frames.
        train_on: splits that are trained on.
        views: what the channels of a sample show; ``channels`` is then their number.
        trackers: those of :data:`TRACKERS` that are told about the run.
    """

    data: Path
    run: Path
    preset: str
    model: str
    channels: int
    device: str
    patches: bool
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    score_every: int = 0
    select_by: SelectBy = "fitness"
    saving: Saving = field(default_factory=Saving)
    restarts: Restarts = field(default_factory=Restarts)
    rules: health.Rules = field(default_factory=health.Rules)
    subsets: Mapping[str, Subset] = field(default_factory=dict)
    frequency: Frequency = field(default_factory=Frequency)
    paste: Paste = field(default_factory=Paste)
    train_on: tuple[str, ...] = ("train",)
    views: Views = PLAIN
    trackers: tuple[str, ...] = ()

    def subset(self, split: str) -> Subset:
        """Which images of a split the run uses."""
        return self.subsets.get(split, Subset())

    def source(self, split: str) -> str:
        """The split whose images are used, for :func:`toolkit.dataset.joined.open_split`."""
        return ",".join(self.train_on) if split == "train" else split

    @property
    def chooses(self) -> bool:
        """Whether validation frames are unknown to the weights, so that scores on them choose best.pt."""
        return "val" not in self.train_on

    def needs(self) -> Needs:
        """What the run asks of the machine."""
        workers = min(self.number("workers"), os.cpu_count() or 1)
        loading = self.number("batch"), workers, self.number("imgsz"), self.views.channels
        return Needs(self.run, self.device, *loading)

    def number(self, name: str) -> int:
        """One of :data:`ULTRALYTICS`; of a plan by an older version it may be left to Ultralytics."""
        value = self.arguments.get(name, ULTRALYTICS[name])
        if not isinstance(value, int):
            raise TypeError(f"{name}={value!r} is no whole number")
        return value

    @property
    def scored_every(self) -> int:
        """Epochs from one that is scored to the next: each is validated as well. 0 for none."""
        return math.lcm(self.frequency.every, self.score_every)

    @property
    def scored_part(self) -> float:
        """Of the validations, those that are scored."""
        return self.frequency.every / self.scored_every if self.scored_every else 0.0

    @property
    def ranks(self) -> int:
        """Processes that share each batch: one a GPU."""
        return len(self.device.split(","))


def check_trackers(wanted: Mapping[str, bool], source: str = "") -> None:
    """Raises ToolkitError: ``[logging]``, of a file if one is named, has what is none of :data:`TRACKERS`."""
    unknown = [name for name in wanted if name not in TRACKERS]
    if unknown:
        raise ToolkitError(f"no [logging] to {unknown[0]}", found=source, expected=", ".join(TRACKERS))


def read_plan(files: RunFiles) -> TrainingPlan:
    """The plan that a run was started with.

    Raises:
        ToolkitError: there is none, or it cannot be read.
    """
    try:
        content = files.plan.read_bytes()
        return msgspec.json.decode(content, type=TrainingPlan, dec_hook=decode_path)
    except (OSError, *NO_JSON) as error:
        raise ToolkitError(
            f"run {files.run.name} cannot go on", found=reason(error), expected=f"a plan in {files.plan}"
        ) from error


def describe(subsets: Mapping[str, Subset], data: Path) -> str:
    """Subsets of the splits of a data folder in words, for a person."""
    known = vocabulary.of_data(data)
    return "; ".join(f"{split}: {each.words(known)}" for split, each in subsets.items()) or "all images"


def count_images(plan: TrainingPlan, index: DatasetIndex) -> dict[str, int]:
    """Images that an epoch of a run uses of each split.

    Raises:
        ToolkitError: a split is missing, or has no image of the months that are wanted, or no
            class that is to be repeated or pasted.
    """
    counts = {}
    for name in ("train", "val"):
        if not index.manifest.images.get(name):
            raise ToolkitError(
                f"nothing to train with in {plan.data}",
                found=f"no {name} images in the index",
                expected=f"{ltdv2.ANNOTATIONS[name]} beside the frames",
                fix=f"put it there, then: toolkit dataset prepare {plan.data}",
            )
        split = open_split(index, plan.source(name))
        rows = plan.subset(name).rows(split)
        counts[name] = len(rows)
        if name == "train":
            plan.paste.check(split, rows)
            counts[name] = plan.frequency.order(split, rows, 0).size
    return counts
