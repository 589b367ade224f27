"""The challenge's numbers, equal to the organisers' evaluator to 1e-6 on every key.

They score with torchmetrics' MeanAveragePrecision (pycocotools inside; IoU 0.50 to 0.95, macro average,
100 detections an image and class), once over all images and once over each of eight months. Their
rounding is part of the result: boxes and scores become float32 before anything else, corners become
width and height in float32, thresholds are float32, and so is every number that comes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from submission import Detections
from submission.validate import check_ids
from toolkit import __version__
from toolkit.errors import ToolkitError
from toolkit.evaluation.engines import IOU_THRESHOLDS, Curves, Engine, Problem, accumulate, resolve
from toolkit.evaluation.truth import GroundTruth
from toolkit.files import write_json
from toolkit.ltdv2 import MONTHS
from toolkit.vocabulary import LTDV2, capitalised

MANY = 50_000
"""Detections that take seconds to score, to compare or to draw: what happens is said before it begins."""

ABSENT = -1.0
"""The value of a metric that nothing in the truth can decide, in pycocotools and here."""


@dataclass(frozen=True)
class Summary:
    """The metrics of one set of images; -1 where there is no ground truth.

    Attributes:
        images: number of images.
        map, map_50, map_75: mean average precision over IoU 0.50:0.95, at 0.50, at 0.75.
        mar_1, mar_10, mar_100: mean average recall with so many detections an image and class.
        map_per_class: label -> mean average precision, for labels that occur in the set's truth or
            predictions; None for a set without images.
        map_50_per_class: the same at IoU 0.50.
    """

    images: int
    map: float
    map_50: float
    map_75: float
    mar_1: float
    mar_10: float
    mar_100: float
    map_per_class: Mapping[int, float] | None
    map_50_per_class: Mapping[int, float] | None


@dataclass(frozen=True)
class Scores:
    """The whole result.

    Attributes:
        overall: over all images.
        months: month -> its summary, in the order of :data:`MONTHS`.
        consistency: ``global_map_con``, the coefficient of variation of the months' mAP@0.5.
        balanced: ``global_map_bal`` = (1 - consistency) x overall mAP@0.5, the number that ranks.
        engine: the evaluator that computed it.
        missing: images of the truth that the predictions do not have (scored as empty).
        ignored: images of the predictions that the truth does not have.
        classes: label -> name.
        by: what the months are; another word for the parts of other data than LTDv2.
        left_out: parts of other data that have no true boxes here: they are none of ``months``.
    """

    overall: Summary
    months: Mapping[str, Summary]
    consistency: float
    balanced: float
    engine: str
    missing: int
    ignored: int
    classes: Mapping[int, str] = field(default_factory=lambda: LTDV2.classes)
    by: str = LTDV2.by
    left_out: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """What a sentence calls one of ``months``."""
        return "month" if self.by == LTDV2.by else "part"

    def heading(self, name: str) -> str:
        """A month, or ``all``, as it heads a column: ``may`` as ``May``; other data's parts as they are."""
        return capitalised(name) if self.by == LTDV2.by or name == "all" else name

    @property
    def compared(self) -> Mapping[str, Summary]:
        """The months that differ from each other; none where there is one, which is ``overall`` again."""
        return self.months if len(self.months) > 1 else {}

    def as_dict(self) -> dict[str, Any]:
        """The organisers' keys, and ``toolkit`` with what is needed to read them."""
        values: dict[str, Any] = {}
        sets = {"global": self.overall, **self.months}
        for name, summary in sets.items():
            for key in ("map", "map_50", "map_75", "mar_1", "mar_10", "mar_100"):
                values[f"{name}_{key}"] = getattr(summary, key)
            if summary.map_per_class is not None:
                values[f"{name}_map_per_class"] = list(summary.map_per_class.values())
        values["global_map_con"] = self.consistency
        values["global_map_bal"] = self.balanced
        values["toolkit"] = {
            "version": __version__,
            "engine": self.engine,
            "images": {name: summary.images for name, summary in sets.items()},
            "labels": {name: list(summary.map_per_class or ()) for name, summary in sets.items()},
            "missing_ids": self.missing,
            "ignored_ids": self.ignored,
        }
        if self.left_out:
            values["toolkit"]["left_out"] = list(self.left_out)
        if self.by != LTDV2.by or self.classes != LTDV2.classes:
            values["toolkit"] |= {"by": self.by, "classes": {str(k): v for k, v in self.classes.items()}}
        return values

    def write(self, path: Path) -> None:
        """Write ``scores.json``, the whole of it or nothing.

        Where the formula gives no number (all months 0, say) it says null. The organisers' file says NaN,
        which is no JSON; earlier files do too, and are still read.

        Raises:
            ToolkitError: it cannot be written.
        """
        write_json(path, self.as_dict())


def score(
    truth: GroundTruth,
    predictions: Detections,
    engine: Engine = "auto",
    strict: bool = False,
    source: str = "the predictions",
) -> Scores:
    """Score predictions as the challenge does.

    Args:
        truth: ground truth; its order of images decides between equal scores.
        predictions: values checked (:func:`submission.validate.check_values`), in any order of images.
        engine: ``pycocotools``, ``hotcoco``, or ``auto``: hotcoco where installed.
        strict: refuse ids on one side only, as the organisers' first evaluator does; otherwise missing
            ones count as empty and unknown ones are ignored, as in the later one.
        source: names the predictions in messages.

    Raises:
        ToolkitError: the truth has no images, or the engine is not there.
        SubmissionError: ``strict`` and the ids differ.
    """
    if not len(truth):
        raise ToolkitError("the truth has no images", expected="at least one")
    chosen = resolve(engine)
    if strict:
        check_ids(predictions, truth.image_ids, source=source, whose="the truth", hints=False)
    missing = int((~np.isin(truth.image_ids, predictions.image_ids)).sum())
    ignored = int((~np.isin(predictions.image_ids, truth.image_ids)).sum())
    problem = align(truth, predictions)
    present = {name: np.flatnonzero(mask) for name, mask in problem.months.items() if mask.any()}
    subsets = [np.arange(len(truth)), *present.values()]
    curves = accumulate(problem, subsets, chosen)
    summaries = map(_summary, repeat(problem), subsets, curves)
    overall = next(summaries)
    by_month = dict(zip(present, summaries, strict=True))
    all_months = {name: by_month.get(name, _NOTHING) for name in problem.months}
    consistency, balanced = balance(overall.map_50, [s.map_50 for s in all_months.values()])
    left_out = tuple(name for name in truth.vocabulary.parts if name not in all_months)
    words = problem.classes, truth.vocabulary.by, left_out
    return Scores(overall, all_months, consistency, balanced, chosen, missing, ignored, *words)


def balance(map_50: float, monthly_map_50: list[float]) -> tuple[float, float]:
    """The coefficient of variation of the months (ddof = 1), and (1 - it) x the overall mAP@0.5."""
    months = np.array(monthly_map_50)
    if len(months) < 2:  # of other data, that has one part
        return math.nan, math.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        consistency = float(np.std(months, ddof=1) / np.mean(months))
    return consistency, (1 - consistency) * map_50


def month_masks(image_ids: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.bool_]]:
    """For each month the images that belong to it: its six digits occur in the id's first eight."""
    heads = image_ids.astype("U8")
    return {name: np.char.find(heads, digits) >= 0 for name, digits in MONTHS.items()}


def months_of(truth: GroundTruth) -> dict[str, npt.NDArray[np.bool_]]:
    """:func:`month_masks` of LTDv2; for each part of other data that has true boxes its images.

    The challenge counts -1 for a month without true boxes. Nobody asks that of other data, whose splits need
    not have every part.
    """
    if truth.parts is None:
        return month_masks(truth.image_ids)
    masks = {name: truth.parts == number for name, number in truth.vocabulary.parts.items()}
    has_boxes = np.diff(truth.offsets) > 0
    return {name: mask for name, mask in masks.items() if (mask & has_boxes).any()}


_NOTHING = Summary(0, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, ABSENT, None, None)


def align(truth: GroundTruth, predictions: Detections) -> Problem:
    """Bring predictions to the truth's images, and both into the organisers' rounding."""
    found = predictions.select(truth.image_ids)
    number = np.arange(len(truth))
    return Problem(
        images=len(truth),
        labels=np.union1d(truth.labels, found.labels).tolist(),
        truth_image=np.repeat(number, np.diff(truth.offsets)),
        truth_label=truth.labels,
        truth_boxes=_float32_xywh(truth.boxes),
        image=np.repeat(number, found.counts),
        label=found.labels,
        boxes=_float32_xywh(found.boxes),
        scores=found.scores.astype(np.float32).astype(np.float64),
        months=months_of(truth),
        classes=truth.vocabulary.classes,
    )


def _float32_xywh(corners: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    single = corners.astype(np.float32)
    return np.hstack([single[:, :2], single[:, 2:] - single[:, :2]]).astype(np.float64)


def _summary(problem: Problem, images: npt.NDArray[np.int64], curves: Curves) -> Summary:
    mask = np.zeros(problem.images, np.bool_)
    mask[images] = True
    seen = np.union1d(problem.truth_label[mask[problem.truth_image]], problem.label[mask[problem.image]])
    at_50, at_75 = IOU_THRESHOLDS.index(0.5), IOU_THRESHOLDS.index(0.75)
    columns = {label: problem.labels.index(label) for label in seen.tolist()}
    return Summary(
        images=len(images),
        map=_mean(curves.precision),
        map_50=_mean(curves.precision[at_50]),
        map_75=_mean(curves.precision[at_75]),
        mar_1=_mean(curves.recall[:, :, 0]),
        mar_10=_mean(curves.recall[:, :, 1]),
        mar_100=_mean(curves.recall[:, :, 2]),
        map_per_class={label: _mean(curves.precision[:, :, k]) for label, k in columns.items()},
        map_50_per_class={label: _mean(curves.precision[at_50, :, k]) for label, k in columns.items()},
    )


def _mean(values: npt.NDArray[np.float64]) -> float:
    known = values[values > ABSENT]
    return float(np.float32(known.mean())) if known.size else ABSENT


def is_number(value: float) -> bool:
    """Whether a metric was decided: neither -1 (no ground truth) nor NaN."""
    return value != ABSENT and not math.isnan(value)
