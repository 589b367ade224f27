"""Two evaluators of the COCO protocol behind one function: pycocotools, the reference, and hotcoco.

Both get small image numbers instead of 17-digit ids, which do not survive a double, and return the
precision and recall arrays from which every number of the challenge follows.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from submission.validate import LABELS
from toolkit.errors import ToolkitError

Engine = Literal["auto", "pycocotools", "hotcoco"]
MAX_DETECTIONS = (1, 10, 100)
ALL_AREAS = [[0.0, 1e10]]


def _linspace(start: float, stop: float, steps: int) -> list[float]:
    # As torch.linspace computes it in float32: from both ends towards the middle, product and sum rounded
    # once. The thresholds differ from numpy's, and a recall of exactly 3/10 falls on the other side.
    first, last = np.float32(start), np.float32(stop)
    step = np.float64((last - first) / np.float32(steps - 1))
    i = np.arange(steps)
    values = np.where(i < steps // 2, first + step * i, last - step * (steps - 1 - i))
    return [float(value) for value in values.astype(np.float32)]


IOU_THRESHOLDS = _linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = _linspace(0.0, 1.0, 101)


@dataclass(frozen=True, eq=False)
class Problem:
    """Truth and detections of the same images, numbered 0 to ``images`` - 1, in the evaluator's rounding.

    Attributes:
        images: number of images.
        labels: ascending labels that occur in the truth or the detections.
        truth_image, truth_label: (t,) int64, ascending images.
        truth_boxes: (t, 4) float64, x, y, width, height.
        image, label: (d,) int64, ascending images.
        boxes: (d, 4) float64, x, y, width, height.
        scores: (d,) float64.
        months: month -> (images,) bool, the images that belong to it; of other data its parts.
        classes: label -> name.
    """

    images: int
    labels: list[int]
    truth_image: npt.NDArray[np.int64]
    truth_label: npt.NDArray[np.int64]
    truth_boxes: npt.NDArray[np.float64]
    image: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    months: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    classes: Mapping[int, str] = field(default_factory=lambda: LABELS)


@dataclass(frozen=True, eq=False)
class Curves:
    """Accumulated result of one set of images; -1 marks a class without ground truth.

    Attributes:
        precision: (10 IoU thresholds, 101 recalls, classes) float64, at 100 detections.
        recall: (10 IoU thresholds, classes, 3 limits of detections) float64.
    """

    precision: npt.NDArray[np.float64]
    recall: npt.NDArray[np.float64]


def resolve(engine: Engine) -> Literal["pycocotools", "hotcoco"]:
    """The engine that will run: ``auto`` is hotcoco where it is installed.

    Raises:
        ToolkitError: there is no such engine, or it is not installed.
    """
    if engine == "auto":
        return "hotcoco" if find_spec("hotcoco") else "pycocotools"
    if engine not in ("pycocotools", "hotcoco"):
        raise ToolkitError(f"there is no engine {engine!r}", expected="auto, pycocotools or hotcoco")
    if engine == "hotcoco" and not find_spec("hotcoco"):
        raise ToolkitError(
            "the engine hotcoco is not installed", fix="install it (pip install 'ltdv2-toolkit[fast]')"
        )
    return engine


def accumulate(
    problem: Problem, subsets: Sequence[npt.NDArray[np.int64]], engine: Literal["pycocotools", "hotcoco"]
) -> list[Curves]:
    """Match detections with truth and accumulate over each subset of images.

    Args:
        problem: truth and detections.
        subsets: ascending image numbers of each set, not empty.
        engine: which evaluator.

    Returns:
        One :class:`Curves` a subset.
    """
    if not problem.labels:
        empty = Curves(
            np.empty((len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), 0)),
            np.empty((len(IOU_THRESHOLDS), 0, len(MAX_DETECTIONS))),
        )
        return [empty] * len(subsets)
    run: Callable[..., list[Curves]] = _pycocotools if engine == "pycocotools" else _hotcoco
    return run(problem, subsets)


def _curves(evaluation: Any) -> Curves:
    # One area range; the last limit of detections is 100.
    return Curves(
        np.asarray(evaluation["precision"])[:, :, :, 0, -1], np.asarray(evaluation["recall"])[:, :, 0, :]
    )


# Long: pycocotools' own format, field by field.
def _pycocotools(problem: Problem, subsets: Sequence[npt.NDArray[np.int64]]) -> list[Curves]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def dataset(
        image: npt.NDArray[np.int64],
        label: npt.NDArray[np.int64],
        boxes: npt.NDArray[np.float64],
        scores: npt.NDArray[np.float64] | None,
    ) -> COCO:
        coco = COCO()
        columns = zip(
            image.tolist(),
            label.tolist(),
            boxes.tolist(),
            (boxes[:, 2] * boxes[:, 3]).tolist(),
            np.zeros(len(image)).tolist() if scores is None else scores.tolist(),
            strict=True,
        )
        coco.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(problem.images)],
            "categories": [{"id": label} for label in problem.labels],
            # Ids from 1: the matching stores them where 0 means unmatched.
            "annotations": [
                {
                    "id": n,
                    "image_id": i,
                    "category_id": c,
                    "bbox": box,
                    "area": area,
                    "score": s,
                    "iscrowd": 0,
                }
                for n, (i, c, box, area, s) in enumerate(columns, 1)
            ],
        }
        coco.createIndex()
        return coco

    def evaluator(truth: COCO | None, found: COCO | None) -> COCOeval:
        made = COCOeval(truth, found, "bbox")
        made.params.iouThrs = np.array(IOU_THRESHOLDS)
        made.params.recThrs = np.array(RECALL_THRESHOLDS)
        made.params.maxDets = list(MAX_DETECTIONS)
        made.params.areaRng, made.params.areaRngLbl = ALL_AREAS, ["all"]
        made.params.catIds = problem.labels
        return made

    p = problem
    with contextlib.redirect_stdout(io.StringIO()):
        matched = evaluator(
            dataset(p.truth_image, p.truth_label, p.truth_boxes, None),
            dataset(p.image, p.label, p.boxes, p.scores),
        )
        matched.evaluate()
        results = []
        for subset in subsets:
            # evalImgs is a list by class, then area range (one), then image.
            part = evaluator(None, None)
            part.params.imgIds = subset.tolist()
            part.evalImgs = [
                matched.evalImgs[k * p.images + i] for k in range(len(p.labels)) for i in subset.tolist()
            ]
            part._paramsEval = part.params
            part.accumulate()
            results.append(_curves(part.eval))
    return results


def _hotcoco(problem: Problem, subsets: Sequence[npt.NDArray[np.int64]]) -> list[Curves]:
    from hotcoco import COCO, COCOeval

    p = problem
    truth = COCO.from_arrays(
        images=[{"id": i} for i in range(p.images)],
        categories=[{"id": label, "name": str(label)} for label in p.labels],
        image_ids=p.truth_image,
        category_ids=p.truth_label,
        boxes=p.truth_boxes,
        area=p.truth_boxes[:, 2] * p.truth_boxes[:, 3],
    )
    found = truth.load_res(np.column_stack([p.image, p.boxes, p.scores, p.label]))
    results = []
    for subset in subsets:
        evaluator = COCOeval(truth, found, "bbox")
        evaluator.params.iou_thrs = IOU_THRESHOLDS
        evaluator.params.rec_thrs = RECALL_THRESHOLDS
        evaluator.params.max_dets = list(MAX_DETECTIONS)
        evaluator.params.area_rng, evaluator.params.area_rng_lbl = ALL_AREAS, ["all"]
        evaluator.params.cat_ids = p.labels
        evaluator.params.img_ids = subset.tolist()
        evaluator.evaluate()
        evaluator.accumulate()
        results.append(_curves(evaluator.eval))
    return results
