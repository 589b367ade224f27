"""What would move the score: how much each class, month and cause of error holds back ``global_map_bal``.

The causes are those of TIDE (Bolya and others, ECCV 2020), decided on the matching at IoU 0.5 that the
report rests on: hotcoco's ``tide_errors`` gives mAP alone, where ``global_map_bal`` needs every month. A gain
is what the score would rise by if that cause alone were gone; gains of several causes do not add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from submission.detections import spans
from toolkit.evaluation.matching import IOU, Curve, Matches, box_iou
from toolkit.evaluation.scoring import Scores, balance, is_number

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

STEP = 0.10
"""AP@0.5 by which a class is imagined to be better."""

NEAR = 0.1
"""IoU from which a box counts as a badly placed one of an object, as in TIDE."""

SMALL = 32.0 * 32.0
"""Pixels below which COCO calls a box small."""

HIDDEN = 0.25
"""Part of a true box that lies in other true boxes from which it counts as hidden."""

CAUSES = {
    "small": "missed, smaller than 32 x 32",
    "hidden": "missed, a quarter or more behind or before another object",
    "missed": "missed, others",
    "class": "found as another class",
    "place": "found, badly placed (IoU 0.1 to 0.5)",
    "double": "found more than once",
    "alarm": "false alarm on the background",
}
"""Causes of lost score, in words."""

PAIRS = 2_000_000
"""Pairs of boxes that are looked at at once."""


@dataclass(frozen=True)
class Cell:
    """A class in a month, or in all of them.

    Attributes:
        boxes: true boxes.
        ap_50: AP@0.5; None where the class does not occur.
        gain: of ``global_map_bal`` if the AP were :data:`STEP` higher (1 at most); None where it cannot be.
    """

    boxes: int
    ap_50: float | None
    gain: float | None


@dataclass(frozen=True)
class Cause:
    """A cause of lost score.

    Attributes:
        boxes: true boxes that are lost by it, or false alarms of its kind.
        gain: of ``global_map_bal`` if it were gone.
        gain_50: of ``global_map_50`` if it were gone.
    """

    boxes: int
    gain: float
    gain_50: float


def cells(scores: Scores, matches: Matches) -> dict[int, dict[str, Cell]]:
    """Label -> month, and ``all`` -> what a better class would give.

    A class that is better in one month alone lifts the overall AP by the month's part of the class's boxes.
    """
    p = matches.problem
    masks = p.months
    table: dict[int, dict[str, Cell]] = {}
    for label in sorted((scores.overall.map_50_per_class or {}).keys()):
        of_class = p.truth_label == label
        total = int(of_class.sum())
        row = {
            m: _cell(scores, label, m, int((of_class & mask[p.truth_image]).sum()), total)
            for m, mask in masks.items()
        }
        row["all"] = _cell(scores, label, None, total, total)
        table[label] = row
    return table


def _cell(scores: Scores, label: int, better: str | None, boxes: int, total: int) -> Cell:
    """A class in the month that is better; None: in all of them, and in images of no month."""
    whole = (scores.overall.map_50_per_class or {}).get(label, -1.0)
    here = whole if better is None else _ap(scores, better, label)
    if not is_number(here) or not is_number(scores.balanced) or not boxes:
        return Cell(boxes, here if is_number(here) else None, None)
    months = []
    for month, summary in scores.months.items():
        ap = _ap(scores, month, label)
        step = min(STEP, 1 - ap) if better in (month, None) and is_number(ap) else 0.0
        months.append(summary.map_50 + step / max(_classes(summary.map_50_per_class), 1))
    overall = scores.overall.map_50
    overall += boxes / total * min(STEP, 1 - here) / _classes(scores.overall.map_50_per_class)
    return Cell(boxes, here, balance(overall, months)[1] - scores.balanced)


def _ap(scores: Scores, month: str, label: int) -> float:
    return (scores.months[month].map_50_per_class or {}).get(label, -1.0)


def _classes(aps: Mapping[int, float] | None) -> int:
    return sum(is_number(ap) for ap in (aps or {}).values())


def causes(matches: Matches) -> dict[str, Cause]:
    """Each cause of :data:`CAUSES` -> what it costs, the dearest first.

    A box of another class or badly placed would find its object, unless a better one does; what else is wrong
    would not be there. An object that nothing points at has no score to be found with: it leaves the count.
    """
    errors = _Errors.of(matches)
    p, masks = matches.problem, matches.problem.months
    hits = matches.found >= 0
    everything = np.ones(len(p.truth_label), np.bool_)
    now_50, now = _balanced(matches, masks, p.label, hits, matches.counted, everything)
    found = {}
    for cause in CAUSES:
        alarms, lost = errors.of_detection == cause, errors.of_truth == cause
        label = p.label.copy()
        found_then = alarms & errors.cured
        label[found_then] = p.truth_label[errors.target[found_then]]
        wanted = ~lost if cause in ("small", "hidden", "missed") else everything
        kept = matches.counted & ~(alarms & ~errors.cured)
        then_50, then = _balanced(matches, masks, label, hits | found_then, kept, wanted)
        count = int(lost.sum() if cause in ("small", "hidden", "missed") else alarms.sum())
        found[cause] = Cause(count, then - now, then_50 - now_50)
    return dict(sorted(found.items(), key=lambda item: -np.nan_to_num(item[1].gain)))


@dataclass(frozen=True, eq=False)
class _Errors:
    """What is wrong with each row: a cause, or "" where nothing is.

    ``target``: the row of the true box that a detection points at, -1 for none. ``cured``: whether it would
    find it, were it of the right class or at the right place.
    """

    of_detection: npt.NDArray[np.str_]
    of_truth: npt.NDArray[np.str_]
    target: Ints
    cured: Mask

    @classmethod
    def of(cls, matches: Matches) -> _Errors:
        p = matches.problem
        rows = np.flatnonzero(matches.counted & (matches.found < 0))
        same, same_at, other, other_at = _nearest(matches, rows)
        kinds = np.full(len(p.label), "", "U6")
        target = np.full(len(p.label), -1, np.int64)
        placed = (same >= NEAR) & (same < IOU)
        classed = ~placed & (other >= IOU)
        doubled = ~placed & ~classed & (same >= IOU)
        kinds[rows] = np.select([placed, classed, doubled], ["place", "class", "double"], "alarm")
        target[rows[placed]], target[rows[classed]] = same_at[placed], other_at[classed]
        free = np.flatnonzero((target >= 0) & (matches.found_by[target] < 0))
        best = free[np.lexsort((-p.scores[free], target[free]))]
        first = np.append(True, np.diff(target[best]) != 0)[: len(best)]
        cured = np.zeros(len(p.label), np.bool_)
        cured[best[first]] = True
        causes = np.full(len(p.truth_label), "", "U6")
        lost = np.flatnonzero(matches.found_by < 0)
        small = np.prod(p.truth_boxes[lost, 2:], axis=1) < SMALL
        causes[lost] = np.select([_covered(matches, lost) >= HIDDEN, small], ["hidden", "small"], "missed")
        causes[target[cured]] = kinds[cured]
        return cls(kinds, causes, target, cured)


def _nearest(
    matches: Matches, rows: Ints
) -> tuple[npt.NDArray[np.float64], Ints, npt.NDArray[np.float64], Ints]:
    """Largest IoU of each detection with a true box of its class, its row, and both for other classes."""
    p = matches.problem
    by_image = np.argsort(p.truth_image, kind="stable")
    begin = np.searchsorted(p.truth_image[by_image], p.image[rows])
    count = np.searchsorted(p.truth_image[by_image], p.image[rows], side="right") - begin
    result = (np.zeros(len(rows)), np.full(len(rows), -1), np.zeros(len(rows)), np.full(len(rows), -1))
    for first, last in _pieces(count):
        part = np.arange(first, last)
        owner = np.repeat(part, count[part])
        truth = by_image[spans(begin[part], count[part])]
        overlap = box_iou(p.boxes[rows[owner]], p.truth_boxes[truth])
        alike = p.label[rows[owner]] == p.truth_label[truth]
        for k, chosen in ((0, alike), (2, ~alike)):
            order = np.lexsort((overlap[chosen], owner[chosen]))
            last_of = np.flatnonzero(np.diff(owner[chosen][order], append=-1))
            at = owner[chosen][order][last_of]
            result[k][at] = overlap[chosen][order][last_of]
            result[k + 1][at] = truth[chosen][order][last_of]
    return result


def _covered(matches: Matches, rows: Ints) -> npt.NDArray[np.float64]:
    """Part of each true box that lies in others of its image, each counted for itself."""
    p = matches.problem
    by_image = np.argsort(p.truth_image, kind="stable")
    begin = np.searchsorted(p.truth_image[by_image], p.truth_image[rows])
    count = np.searchsorted(p.truth_image[by_image], p.truth_image[rows], side="right") - begin
    covered = np.zeros(len(rows))
    for first, last in _pieces(count):
        part = np.arange(first, last)
        owner = np.repeat(part, count[part])
        truth = by_image[spans(begin[part], count[part])]
        a, b = p.truth_boxes[rows[owner]], p.truth_boxes[truth]
        sides = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
        common = np.where((sides > 0).all(axis=1) & (rows[owner] != truth), sides.prod(axis=1), 0.0)
        covered += np.bincount(owner, common, minlength=len(rows))
    return np.asarray(covered / np.maximum(np.prod(p.truth_boxes[rows, 2:], axis=1), 1e-9))


def _pieces(count: Ints) -> list[tuple[int, int]]:
    """Ranges of rows that make about :data:`PAIRS` pairs each."""
    ends = np.searchsorted(np.cumsum(count), np.arange(PAIRS, count.sum() + PAIRS, PAIRS), side="right")
    edges = np.unique(np.concatenate([[0], ends, [len(count)]]))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _balanced(
    matches: Matches,
    months: Mapping[str, Mask],
    label: Ints,
    hits: Mask,
    counted: Mask,
    wanted: Mask,
) -> tuple[float, float]:
    """mAP@0.5 and ``global_map_bal`` if these detections, classes and true boxes were the case."""
    p = matches.problem
    order = np.argsort(-p.scores, kind="stable")
    order = order[counted[order]]
    image, label, hits = p.image[order], label[order], hits[order]

    def map_50(images: Mask | None) -> float:
        aps = []
        for k in p.labels:
            rows, true = label == k, wanted & (p.truth_label == k)
            if images is not None:
                rows, true = rows & images[image], true & images[p.truth_image]
            if true.any():
                aps.append(Curve.of(p.scores[order][rows], hits[rows], int(true.sum())).ap)
        return float(np.mean(aps)) if aps else -1.0

    whole = map_50(None)
    return whole, balance(whole, [map_50(mask) for mask in months.values()])[1]
