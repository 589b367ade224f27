"""What of a submission could score: boxes that some object of the frame could match, labels that fit.

The organisers take an empty template, boxes of another scale and swapped labels, and score them with next to
nothing. What follows from the metric alone is exact: a box that overlaps an object by half (IoU 0.5) has at
least half of its area inside the frame, because the object is inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from submission.detections import Detections
from submission.validate import FRAME, LABELS

USUAL_BOXES = 2_900_000 / (329_299 + 46_013)
"""Objects a frame: boxes over images of LTDv2's Train.json and Valid.json."""

USUAL_SOURCE = "LTDv2's Train.json and Valid.json"

USUAL_SHARES = {1: 0.851, 2: 0.042, 3: 0.005, 4: 0.102}
"""Label -> share of the objects: the 2022 annotation of the same camera, 6.86 M objects."""

FEW = 0.1
"""The smallest number of useful boxes, as a share of the usual objects: nine tenths stay unfound."""

MANY_OUTSIDE = 0.1
"""The largest share of boxes more than half outside of their frame; a detector of these frames has none."""

EMPTY = 0.5
"""The largest share of images without a box; in LTDv2 nearly every listed frame holds an object."""

SMALLEST = 1.0
"""Pixels; a smaller box matches no object of two pixels."""

CORNER = 1.5
"""Pixels; a box that ends before this is in parts of the frame, also one of the whole frame (0 to 1)."""


@dataclass(frozen=True)
class Usual:
    """How many objects a frame has: ``boxes`` a frame on average, known from ``source``."""

    boxes: float = USUAL_BOXES
    source: str = USUAL_SOURCE


@dataclass(frozen=True)
class Worth:
    """What of a submission could score.

    Attributes:
        objections: reasons for which it would score next to nothing, or far below its detector; in words.
        remarks: what looks odd.
    """

    objections: tuple[str, ...]
    remarks: tuple[str, ...]


def assess(detections: Detections, usual: Usual | None = None) -> Worth:
    """Look at what would score.

    Args:
        detections: checked (:func:`submission.validate.check_values`), an entry for every id of the phase.
        usual: number of objects to expect; None: that of the published annotations.
    """
    usual = usual or Usual()
    images, boxes = len(detections), len(detections.scores)
    if not boxes:
        return Worth((f"not one box in {images:,} images",), ())
    small, outside = _faults(detections)
    useful = boxes - int((small | outside).sum())
    wanted = FEW * usual.boxes * images
    objections = []
    if small.any() and useful < wanted:
        objections.append(
            f"{int(small.sum()):,} of {boxes:,} boxes are in the frame's first pixel or smaller than a pixel"
            + _scale_hint(detections)
        )
    if outside.mean() > MANY_OUTSIDE:
        reach = detections.boxes.max(axis=0)[2:]
        objections.append(
            f"{int(outside.sum()):,} of {boxes:,} boxes are more than half outside of a frame of "
            f"{FRAME[0]} x {FRAME[1]} pixels; they reach to {reach[0]:.0f} x {reach[1]:.0f}"
        )
    if useful < wanted:
        objections.append(
            f"{useful / images:.2f} boxes a frame that could match an object; {usual.source} have "
            f"{usual.boxes:.1f} objects a frame"
        )
    empty = int((detections.counts == 0).sum())
    if empty > EMPTY * images:
        objections.append(f"{empty:,} of {images:,} images without a box")
    objections += _swapped(detections)
    return Worth(tuple(objections), tuple(_remarks(detections)))


def _faults(detections: Detections) -> tuple[np.ndarray, np.ndarray]:
    """(boxes,) two masks: in the first pixel or smaller than one; more than half outside of the frame."""
    x1, y1, x2, y2 = detections.boxes.T
    small = (np.minimum(x2 - x1, y2 - y1) < SMALLEST) | (np.maximum(x2, y2) <= CORNER)
    inside = (x2.clip(0, FRAME[0]) - x1.clip(0, FRAME[0])) * (y2.clip(0, FRAME[1]) - y1.clip(0, FRAME[1]))
    return small, ~small & (2 * inside < (x2 - x1) * (y2 - y1))


def _scale_hint(detections: Detections) -> str:
    if detections.boxes.max() > CORNER:
        return ""
    return f": they are parts of the frame, pixels are x times {FRAME[0]}, y times {FRAME[1]}"


def _weights(detections: Detections) -> dict[int, float]:
    """Label -> sum of its scores: what a detector is sure of counts, not its many doubts."""
    sums = np.bincount(detections.labels, detections.scores, minlength=5)
    return {label: float(sums[label]) for label in LABELS}


def _swapped(detections: Detections) -> list[str]:
    """COCO's categories are 3 car, 4 motorcycle; the challenge's are 3 motorcycle, 4 vehicle."""
    weights = _weights(detections)
    total = sum(weights.values())
    if weights[3] > max(weights[4], 10 * USUAL_SHARES[3] * total):
        return [
            f"more of label 3, motorcycle ({weights[3] / total:.0%} by score), than of label 4, vehicle "
            f"({weights[4] / total:.0%}); usual are {USUAL_SHARES[3]:.1%} and {USUAL_SHARES[4]:.0%}. "
            "COCO has them the other way round: 3 car, 4 motorcycle"
        ]
    return []


def _remarks(detections: Detections) -> list[str]:
    absent = [name for label, name in LABELS.items() if not (detections.labels == label).any()]
    remarks = [f"no box of {' or '.join(absent)}: each of these has an AP of 0"] if absent else []
    reach = detections.boxes.max(axis=0)[2:]
    if len(detections.scores) > 1000 and (reach < 0.75 * np.array(FRAME)).any():
        remarks.append(
            f"all boxes lie within {reach[0]:.0f} x {reach[1]:.0f} of {FRAME[0]} x {FRAME[1]} pixels"
        )
    return remarks
