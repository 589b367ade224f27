"""The best settings of a prediction, by trying a grid of them on outputs of the network that are kept.

The network runs once for each image size. Suppressing overlaps more or less and leaving out low scores are
done again from what it gave, and give the boxes that a prediction with those settings would give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from submission import Detections
from toolkit import console
from toolkit.errors import CallError, ToolkitError
from toolkit.evaluation.compare import Difference, compare
from toolkit.evaluation.context import Context
from toolkit.evaluation.scoring import Scores, is_number, score
from toolkit.evaluation.truth import GroundTruth
from toolkit.machine.device import resolve_device, running, torch_device
from toolkit.machine.eager import import_torchvision
from toolkit.prediction import ALL_BOXES, Output, PredictionOptions, outputs, together
from toolkit.weights import Detector, image_size

if TYPE_CHECKING:
    from toolkit.dataset.index import DatasetIndex
    from toolkit.ltdv2 import SplitName

CANDIDATES = 30_000
"""Boxes of a frame that Ultralytics suppresses overlaps among, and that are kept."""

CLASS_OFFSET = 7680
"""Pixels that Ultralytics moves the boxes of a class, so that only boxes of one class overlap."""

CONFS = (0.001, 0.005, 0.02, 0.1)
IOUS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
SIZES = (1.0, 1.25, 1.5, 2.0)
"""Of the size that the weights were trained with."""

NAMES = ("conf", "iou", "imgsz")


@dataclass(frozen=True)
class Tried:
    """Settings and what they score.

    Attributes:
        conf, iou, imgsz: of :class:`toolkit.prediction.PredictionOptions`.
        balanced, map_50: ``global_map_bal`` and ``global_map_50``.
        boxes: that are predicted.
    """

    conf: float
    iou: float
    imgsz: int
    balanced: float
    map_50: float
    boxes: int

    @property
    def flags(self) -> str:
        """What a command takes."""
        return f"--conf {self.conf:g} --iou {self.iou:g} --imgsz {self.imgsz}"


@dataclass(frozen=True)
class Sweep:
    """The result.

    Attributes:
        tried: every point of the grid, the best first.
        now: the settings that were given.
        key: the number that decided, ``global_map_bal`` where it is one and ``global_map_50`` where not.
        gain: that number of the best against the given settings, with an interval over clips.
    """

    tried: tuple[Tried, ...]
    now: Tried
    key: str
    gain: Difference


def parse(text: str) -> tuple[str, ...]:
    """Names of settings from ``conf,iou``. Raises ToolkitError: one is none of :data:`NAMES`."""
    names = tuple(text.replace(" ", "").split(","))
    for name in names:
        if name not in NAMES:
            raise CallError(f"{name!r} cannot be swept", expected="some of " + ",".join(NAMES))
    return names


# Long: the grid, which keeps one set of outputs for all of its points.
def sweep(
    weights: Path | Detector,
    frames: DatasetIndex,
    split: SplitName,
    truth: GroundTruth,
    context: Context,
    options: PredictionOptions,
    names: Sequence[str],
) -> Sweep:
    """Try a grid of settings on a split.

    Args:
        weights: a checkpoint, or opened already.
        frames: the prepared data.
        split: that is predicted.
        truth: of it.
        context: which clip each image of the truth is of, for the interval.
        options: what is not swept, and what the best is compared with.
        names: settings to sweep, of :data:`NAMES`.

    Raises:
        ToolkitError: the weights need no suppression of overlaps and ``iou`` is swept; see
            :func:`toolkit.prediction.predict`.
    """
    device = resolve_device(options.device)
    found: dict[tuple[float, float, int], tuple[Tried, Detections]] = {}
    with running(device, patched=options.patches):
        classes = frames.manifest.vocabulary.classes
        detector = Detector.read(weights, classes) if isinstance(weights, Path) else weights
        model = detector.on(torch_device(device))
        if bool(getattr(model, "end2end", False)) and "iou" in names:
            raise ToolkitError(
                f"{detector.path} suppresses no overlaps",
                found="a head that needs none",
                fix="sweep conf and imgsz",
            )
        trained = options.imgsz or image_size(model)
        now = (options.conf, options.iou, trained)
        confs, ious = (
            sorted({mine, *values}) if name in names else [mine]
            for name, mine, values in (("conf", options.conf, CONFS), ("iou", options.iou, IOUS))
        )
        sizes = sorted({-(-int(trained * part) // 32) * 32 for part in SIZES} | {trained})
        for imgsz in sizes if "imgsz" in names else [trained]:
            asked = replace(options, imgsz=imgsz, conf=confs[0], iou=ious[0] if len(ious) == 1 else 1.0)
            most = ALL_BOXES if len(ious) == 1 else CANDIDATES
            kept = [
                replace(each, boxes=each.boxes.cpu()) for each in outputs(model, frames, split, asked, most)
            ]
            for iou in ious:
                for conf, detections in _suppressed(frames, split, kept, iou, confs, options, len(ious) > 1):
                    scored = _tried((conf, iou, imgsz), detections, score(truth, detections))
                    found[conf, iou, imgsz] = scored, detections
    key = "global_map_bal" if all(is_number(each.balanced) for each, _ in found.values()) else "global_map_50"
    tried = [each for each, _ in found.values()]
    # Of equal scores the settings that were given come first: nothing is to be changed for nothing.
    ranked = sorted(tried, key=lambda each: (-_value(each, key), each != found[now][0]))
    best = ranked[0]
    before, after = found[now][1], found[best.conf, best.iou, best.imgsz][1]
    differences: Mapping[str, Difference] = compare(truth, before, after, context).differences
    return Sweep(tuple(ranked), found[now][0], key, differences[key])


def _suppressed(
    frames: DatasetIndex,
    split: SplitName,
    kept: Sequence[Output],
    iou: float,
    confs: Sequence[float],
    options: PredictionOptions,
    suppress: bool,
) -> Iterator[tuple[float, Detections]]:
    """Detections for each lowest score: a box suppresses none of a higher score, so once is enough."""
    image_ids = frames.split(split).image_ids
    chosen = [each.boxes for each in kept]
    if suppress:
        with console.progress(f"suppressing overlaps above {iou:g}", len(kept), "frames") as advance:
            for i, boxes in enumerate(chosen):
                chosen[i] = boxes[nms(boxes, iou, options.agnostic)][:ALL_BOXES]
                advance(1)
    for conf in confs:
        found = [np.empty((0, 6))] * len(image_ids)
        for each, boxes in zip(kept, chosen, strict=True):
            found[each.row] = each.in_frame(boxes[boxes[:, 4] > conf], options.max_det)
        yield conf, together(image_ids, found).rounded()


def nms(boxes: torch.Tensor, iou: float, agnostic: bool) -> torch.Tensor:
    """What is left when of boxes that overlap by more than ``iou`` the best is kept, as Ultralytics does it.

    Args:
        boxes: (n, 6) float32: corners, score, class.
        iou: overlap.
        agnostic: whether boxes of other classes count.

    Returns:
        Their places, int64, the best first.
    """
    moved = boxes[:, :4] + boxes[:, 5:6] * (0 if agnostic else CLASS_OFFSET)
    places: torch.Tensor = import_torchvision().ops.nms(moved, boxes[:, 4], iou)
    return places


def _tried(settings: tuple[float, float, int], detections: Detections, scores: Scores) -> Tried:
    return Tried(*settings, scores.balanced, scores.overall.map_50, len(detections.boxes))


def _value(tried: Tried, key: str) -> float:
    return tried.balanced if key == "global_map_bal" else tried.map_50
