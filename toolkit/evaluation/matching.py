"""Which detection found which true box at IoU 0.5, as columns, for everything that looks below the scores.

The engines return accumulated curves; a report needs to regroup detections by size, hour or clip. The
greedy matching of the COCO protocol is done once here, in numpy, and gives the engines' mAP@0.5 again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from submission.detections import spans
from toolkit.evaluation.engines import MAX_DETECTIONS, RECALL_THRESHOLDS, Problem

IOU = 0.5


@dataclass(frozen=True, eq=False)
class Matches:
    """The outcome of matching, aligned with the rows of a :class:`Problem`.

    Attributes:
        problem: what was matched.
        counted: (d,) bool, among the 100 best detections of its image and class.
        found: (d,) int64, row of the true box that a detection found, -1 for a false alarm.
        found_by: (t,) int64, row of the detection that found a true box, -1 for a miss.
    """

    problem: Problem
    counted: npt.NDArray[np.bool_]
    found: npt.NDArray[np.int64]
    found_by: npt.NDArray[np.int64]

    def curve(
        self,
        label: int,
        detections: npt.NDArray[np.bool_] | None = None,
        truths: npt.NDArray[np.bool_] | None = None,
    ) -> Curve:
        """Precision over recall of one class, over the rows that the masks select (default: all)."""
        p = self.problem
        rows = self.counted & (p.label == label)
        wanted = p.truth_label == label
        if detections is not None:
            rows &= detections
        if truths is not None:
            wanted &= truths
        scores = p.scores[rows]
        order = np.argsort(-scores, kind="stable")
        return Curve.of(scores[order], (self.found[rows] >= 0)[order], int(wanted.sum()))

    def mean_ap(
        self,
        detections: npt.NDArray[np.bool_] | None = None,
        truths: npt.NDArray[np.bool_] | None = None,
    ) -> float:
        """mAP@0.5 over the classes that have true boxes among the selected rows; NaN if none has."""
        curves = (self.curve(label, detections, truths) for label in self.problem.labels)
        values = [curve.ap for curve in curves if curve.positives]
        return float(np.mean(values)) if values else float("nan")

    def in_images(self, images: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Masks of the detections and of the true boxes of the selected images."""
        return images[self.problem.image], images[self.problem.truth_image]


@dataclass(frozen=True, eq=False)
class Curve:
    """Precision over recall, detections in descending order of score.

    Attributes:
        scores, recall, precision: (n,) float64; precision is the envelope, never rising.
        positives: number of true boxes.
        ap: average precision at 101 recalls; NaN without true boxes.
    """

    scores: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]
    precision: npt.NDArray[np.float64]
    positives: int
    ap: float

    @classmethod
    def of(cls, scores: npt.NDArray[np.float64], hits: npt.NDArray[np.bool_], positives: int) -> Curve:
        """Accumulate hits and false alarms that are sorted by descending score."""
        found = np.cumsum(hits)
        recall = found / max(positives, 1)
        raw = found / np.arange(1, len(hits) + 1)
        precision = np.maximum.accumulate(raw[::-1])[::-1]
        at = np.searchsorted(recall, RECALL_THRESHOLDS)
        ap = float(np.append(precision, 0.0)[at].mean()) if positives else float("nan")
        return cls(scores, recall, precision, positives, ap)

    def best_score(self) -> float:
        """The score at which F1 is largest: a sensible operating point; 1 without detections."""
        if not len(self.scores):
            return 1.0
        f1 = 2 * self.precision * self.recall / np.maximum(self.precision + self.recall, 1e-12)
        return float(self.scores[int(np.argmax(f1))])


def match(problem: Problem) -> Matches:
    """Match greedily: in each image and class the best detection first, each to its best free true box."""
    p = problem
    width = max(p.labels, default=0) + 1
    group, truth_group = p.image * width + p.label, p.truth_image * width + p.truth_label
    order = np.lexsort((-p.scores, group))  # stable: equal scores keep the file's order
    first = np.searchsorted(group[order], group[order])
    counted = np.zeros(len(group), np.bool_)
    counted[order[np.arange(len(order)) - first < MAX_DETECTIONS[-1]]] = True

    by_group = np.argsort(truth_group, kind="stable")
    starts = np.searchsorted(truth_group[by_group], group)
    counts = np.searchsorted(truth_group[by_group], group, side="right") - starts
    counts[~counted] = 0
    detection = np.repeat(np.arange(len(group)), counts)
    truth = by_group[spans(starts, counts)]
    overlap = box_iou(p.boxes[detection], p.truth_boxes[truth])
    close = overlap >= IOU
    detection, truth, overlap = detection[close], truth[close], overlap[close]

    turn = np.empty(len(order), np.int64)
    turn[order] = np.arange(len(order))
    # Of equal overlaps the later true box wins, as in pycocotools.
    preference = np.lexsort((-truth, -overlap, turn[detection]))
    found = [-1] * len(group)
    found_by = [-1] * len(truth_group)
    for d, t in zip(detection[preference].tolist(), truth[preference].tolist(), strict=True):
        if found[d] < 0 and found_by[t] < 0:
            found[d], found_by[t] = t, d
    return Matches(problem, counted, np.array(found, np.int64), np.array(found_by, np.int64))


def box_iou(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Intersection over union of (n, 4) x, y, width, height, row by row."""
    sides = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    union = a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
