"""Every detection and every missed object as a row of a table, for a notebook, FiftyOne or CVAT."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from submission import Detections, SubmissionError
from toolkit.errors import ToolkitError
from toolkit.evaluation.context import Context
from toolkit.evaluation.engines import Problem
from toolkit.evaluation.matching import box_iou, match
from toolkit.evaluation.scoring import align
from toolkit.evaluation.truth import GroundTruth
from toolkit.files import replacing
from toolkit.ltdv2 import MONTH_DIGITS

if TYPE_CHECKING:
    import polars as pl

HIT, FALSE_ALARM, MISS, BEYOND = "true positive", "false positive", "false negative", "beyond 100"
"""What a row is; the last is a detection after the 100 best of its image and class, which nothing counts."""


def match_table(truth: GroundTruth, found: Detections, context: Context | None = None) -> pl.DataFrame:
    """What found what at IoU 0.5, in the evaluator's rounding: a row a detection, and one a missed object.

    Args:
        truth: ground truth.
        found: predictions.
        context: frames, clips, hours and weather, where they are known.

    Returns:
        ``image_id`` int64, ``frame``, ``clip``, the month or what stands for it by its name, ``part``, the
        same as the tables of :mod:`toolkit.api` have it (LTDv2: YYYYMM), ``hour`` float64, ``meta.<name>``
        float64 each; ``kind``, one of :data:`HIT`, :data:`FALSE_ALARM`, :data:`MISS`,
        :data:`BEYOND`; ``class``, ``label``; ``x1``, ``y1``, ``x2``, ``y2`` in pixels, of the missed object
        in a row of that kind; ``score``, null there; ``truth``, the row of the true box in its image, from 0,
        ``true_x1`` to ``true_y2``, and ``iou``, null for a false alarm.
    """
    import polars as pl

    problem = align(truth, found)
    m, p = match(problem), problem
    missed = np.flatnonzero(m.found_by < 0)
    hit = np.concatenate([m.found, missed])
    counted = np.concatenate([m.counted, np.ones(len(missed), np.bool_)])
    image = np.concatenate([p.image, p.truth_image[missed]])
    label = np.concatenate([p.label, p.truth_label[missed]])
    boxes = np.vstack([p.boxes, p.truth_boxes[missed]])
    detected = np.arange(len(image)) < len(p.image)
    has_truth = hit >= 0
    true = np.full((len(image), 4), np.nan)
    true[has_truth] = p.truth_boxes[hit[has_truth]]
    iou = np.full(len(image), np.nan)
    pairs = has_truth & detected
    iou[pairs] = box_iou(boxes[pairs], true[pairs])
    first = np.searchsorted(p.truth_image, p.truth_image)
    kinds = np.select([~detected, ~counted, has_truth], [MISS, BEYOND, HIT], FALSE_ALARM)
    score = np.concatenate([p.scores, np.full(len(missed), np.nan)])
    table = pl.DataFrame(
        {
            "image_id": truth.image_ids[image],
            truth.vocabulary.by: (_months(p) if truth.parts is None else _parts(truth))[image],
            "part": _parts(truth)[image],
            "kind": kinds,
            "class": np.array([p.classes.get(k, str(k)) for k in range(256)])[label],
            "label": label,
            **_corners(boxes, ""),
            "score": score,
            "truth": np.where(has_truth, (np.arange(len(first)) - first)[hit] if len(first) else -1, -1),
            **_corners(true, "true_"),
            "iou": iou,
        }
    ).with_columns(
        pl.when(pl.col("truth") >= 0).then("truth"),
        *(pl.col(name).fill_nan(None) for name in ("score", "iou", *_corners(true, "true_"))),
    )
    return table if context is None else _with_context(table, context, image)


def _corners(xywh: npt.NDArray[np.float64], before: str) -> dict[str, npt.NDArray[np.float64]]:
    x, y, w, h = xywh.T
    return {f"{before}x1": x, f"{before}y1": y, f"{before}x2": x + w, f"{before}y2": y + h}


def _months(problem: Problem) -> npt.NDArray[np.str_]:
    """(images,) the month of each image, empty for none."""
    names = np.full(problem.images, "", object)
    for name, mask in problem.months.items():
        names[mask] = name
    return names.astype(str)


def _parts(truth: GroundTruth) -> npt.NDArray[np.str_]:
    """(images,) the part of each image, as :attr:`toolkit.dataset.index.Split.part_names` has it."""
    if truth.parts is None:
        return (truth.image_ids // MONTH_DIGITS).astype(str)
    names = truth.vocabulary.names_of_parts()
    return np.array([names.get(number, "") for number in truth.parts.tolist()], np.str_)


def _with_context(table: pl.DataFrame, context: Context, image: npt.NDArray[np.int64]) -> pl.DataFrame:
    import polars as pl

    known = [
        pl.Series("frame", context.names[image]),
        pl.Series("clip", context.clips[image]).str.strip_prefix("frames/"),
        pl.Series("hour", context.hours[image]).fill_nan(None),
        *(pl.Series(f"meta.{key}", v[image]).fill_nan(None) for key, v in context.weather.items()),
    ]
    return table.select("image_id").hstack(known).hstack(table.drop("image_id"))


def write_tables(folder: Path, truth: GroundTruth, found: Detections, answers: Path) -> tuple[Path, Path]:
    """Write ``matches.parquet`` (:func:`match_table`) and ``coco-results.json``, which pycocotools loads.

    Args:
        folder: where they go.
        truth: ground truth.
        found: predictions.
        answers: the file that the truth was read from; frames and weather, if it is a COCO file.

    Raises:
        ToolkitError: the folder cannot be written.
    """
    context = None
    with suppress(ToolkitError, SubmissionError):
        context = Context.read(answers, truth.image_ids)
    matches, results = folder / "matches.parquet", folder / "coco-results.json"
    with replacing(matches) as temporary:
        match_table(truth, found, context).write_parquet(temporary, compression="zstd")
    image = np.repeat(found.image_ids, found.counts).tolist()
    columns = zip(image, found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    rows = [
        {"image_id": i, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for i, (x1, y1, x2, y2), score, label in columns
    ]
    with replacing(results) as temporary:
        temporary.write_bytes(msgspec.json.encode(rows) + b"\n")
    return matches, results
