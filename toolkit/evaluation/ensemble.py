"""Several sets of predictions fused into one, by the ensemble-boxes package."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from submission import Detections
from submission.detections import to_offsets
from submission.errors import NO_JSON
from toolkit import console
from toolkit.errors import CallError, ToolkitError, reason

Method = Literal["wbf", "nms", "soft-nms", "nmw"]
Columns = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]
"""Boxes, scores and labels of one image."""

CHUNK = 512
"""Images a process takes at a time."""

LEAST_TRUST = 0.01
"""Weight of a set for a class that it does not find on validation."""


class _Notes(msgspec.Struct):
    labels: dict[str, list[int]]


class _ScoresFile(msgspec.Struct):
    toolkit: _Notes
    global_map_per_class: list[float]


@dataclass(frozen=True)
class FusionOptions:
    """How boxes are fused.

    Attributes:
        method: wbf (weighted boxes fusion: clusters are averaged), nms, soft-nms, nmw.
        weights: trust in each set, above 0; None: alike.
        class_weights: label -> trust in each set for boxes of this class, above 0; it wins over ``weights``.
        iou: overlap from which two boxes of a class are the same object.
        max_det: boxes kept of each class in an image, the best ones; the metric looks at 100.
    """

    method: Method = "wbf"
    weights: tuple[float, ...] | None = None
    class_weights: Mapping[int, tuple[float, ...]] | None = None
    iou: float = 0.55
    max_det: int = 100


def fuse(sets: Sequence[Detections], options: FusionOptions | None = None) -> Detections:
    """Fuse the predictions of the same images; boxes with score 0 are left out.

    Args:
        sets: at least two; an image that one of them lacks counts as empty there.
        options: see :class:`FusionOptions`.

    Returns:
        Detections of all images that any set has, in ascending order of ids.

    Raises:
        ToolkitError: fewer than two sets, weights that do not fit or cannot be used, or
            ensemble-boxes is not installed.
    """
    options = options or FusionOptions()
    if len(sets) < 2:
        raise CallError("nothing to fuse", found=f"{len(sets)} file", expected="at least two")
    for weights in (options.weights, *(options.class_weights or {}).values()):
        _check_weights(weights, len(sets))
    if not find_spec("ensemble_boxes"):
        raise ToolkitError(
            "ensemble-boxes is not installed",
            fix="pip install ensemble-boxes (images leave it out: fuse outside the container)",
        )
    ids = np.unique(np.concatenate([s.image_ids for s in sets]))
    aligned = [s.select(ids) for s in sets]
    chunks = [range(first, min(first + CHUNK, len(ids))) for first in range(0, len(ids), CHUNK)]
    work = ([[_image(s, i) for s in aligned] for i in chunk] for chunk in chunks)
    fused: list[Columns] = []
    with console.progress("fusing", len(ids)) as advance:
        for part in _spread(partial(_fuse_images, options=options), work, len(chunks)):
            fused += part
            advance(len(part))
    boxes, scores, labels = (list(column) for column in zip(*fused, strict=True)) if fused else ([], [], [])
    return Detections(
        ids,
        to_offsets(np.array([len(s) for s in scores], np.int64)),
        np.concatenate([np.empty((0, 4)), *boxes]),
        np.concatenate([np.empty(0), *scores]),
        np.concatenate([np.empty(0, np.int64), *labels]),
    )


def _check_weights(weights: tuple[float, ...] | None, sets: int) -> None:
    if weights is not None and len(weights) != sets:
        raise CallError("weights do not fit", found=f"{len(weights)} weights", expected=f"{sets}, one a file")
    if weights and not (all(w > 0 for w in weights) and sum(weights) < math.inf):
        raise CallError(
            "weights cannot be used",
            found=", ".join(f"{weight:g}" for weight in weights),
            expected="finite numbers above 0",
            fix="leave out a file that deserves no trust",
        )


def weights_by_class(scores: Sequence[Path]) -> dict[int, tuple[float, ...]]:
    """Trust in each set by the validation AP of each class: label -> a weight a set.

    Args:
        scores: the ``scores.json`` of each set, as ``toolkit evaluate`` writes it. An AP below
            :data:`LEAST_TRUST` counts as so much, and so does a class that a file does not have.

    Raises:
        ToolkitError: a file is missing or is none of the toolkit's.
    """
    tables = []
    for path in scores:
        try:
            written = json.loads(path.read_bytes())  # not by msgspec: earlier files have NaN for null
            found = msgspec.convert(written, _ScoresFile)
        except (OSError, json.JSONDecodeError, *NO_JSON) as error:
            raise ToolkitError(
                f"{path} says nothing of the classes",
                found=reason(error) if isinstance(error, OSError) else str(error),
                expected="the scores.json that `toolkit evaluate` writes",
                fix="score the weights on validation first: toolkit evaluate RUN",
            ) from error
        tables.append(dict(zip(found.toolkit.labels["global"], found.global_map_per_class, strict=False)))
    labels = sorted({label for table in tables for label in table})
    return {k: tuple(max(table.get(k, 0.0), LEAST_TRUST) for table in tables) for k in labels}


def _spread(
    function: partial[list[Columns]], work: Iterator[list[list[Columns]]], count: int
) -> Iterator[list[Columns]]:
    """Map over chunks, in processes when there are several chunks and cores."""
    processes = min(count, os.cpu_count() or 1)
    if processes < 2:
        yield from map(function, work)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, work)


def _image(detections: Detections, i: int) -> Columns:
    rows = slice(detections.offsets[i], detections.offsets[i + 1])
    # Boxes are averaged by their scores: with none above 0 the package divides by 0.
    kept = detections.scores[rows] > 0
    return detections.boxes[rows][kept], detections.scores[rows][kept], detections.labels[rows][kept]


def _fuse_images(images: list[list[Columns]], options: FusionOptions) -> list[Columns]:
    return [_fuse_image(image, options) for image in images]


def _fuse_image(image: list[Columns], options: FusionOptions) -> Columns:
    if options.class_weights is None:
        return _fuse(image, options, options.weights)
    parts = []
    for label in np.unique(np.concatenate([labels for _, _, labels in image])).tolist():
        of_class = [(b[k == label], s[k == label], k[k == label]) for b, s, k in image]
        parts.append(_fuse(of_class, options, options.class_weights.get(label, options.weights)))
    if not parts:
        return _fuse(image, options, options.weights)
    boxes, scores, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    best = np.argsort(-scores, kind="stable")
    return boxes[best], scores[best], labels[best]


def _fuse(image: list[Columns], options: FusionOptions, trust: tuple[float, ...] | None) -> Columns:
    import ensemble_boxes

    everything = np.concatenate([boxes for boxes, _, _ in image])
    if not len(everything):
        return np.empty((0, 4)), np.empty(0), np.empty(0, np.int64)
    # The package wants coordinates in [0, 1] and clips others; overlaps do not change under this map.
    low = everything[:, :2].min(axis=0)
    size = np.maximum(everything[:, 2:].max(axis=0) - low, 1e-9)
    origin, scale = np.tile(low, 2), np.tile(size, 2)
    boxes = [((b - origin) / scale).clip(0, 1) for b, _, _ in image]
    scores, labels = [s for _, s, _ in image], [k for _, _, k in image]
    weights = list(trust) if trust else None
    common = {"weights": weights, "iou_thr": options.iou}
    with warnings.catch_warnings():
        # It leaves boxes without area out, which can match nothing, and says so for each.
        warnings.simplefilter("ignore")
        if options.method == "wbf":
            found = ensemble_boxes.weighted_boxes_fusion(boxes, scores, labels, **common)
        elif options.method == "nmw":
            found = ensemble_boxes.non_maximum_weighted(boxes, scores, labels, **common)
        elif options.method == "soft-nms":
            found = ensemble_boxes.soft_nms(boxes, scores, labels, **common)
        else:
            found = ensemble_boxes.nms(boxes, scores, labels, **common)
    corners, score, label = (np.asarray(column) for column in found)
    best = _best_of_each_class(score, label, options.max_det)
    return (
        corners[best].reshape(-1, 4).astype(np.float64) * scale + origin,
        score[best].astype(np.float64).clip(0, 1),
        label[best].astype(np.int64),
    )


def _best_of_each_class(
    scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], most: int
) -> npt.NDArray[np.int64]:
    """Places of the ``most`` best boxes of each class, the best of all first."""
    by_class = np.lexsort((-scores, labels))
    begins = np.searchsorted(labels[by_class], labels[by_class])
    kept = by_class[np.arange(len(by_class)) - begins < most]
    best: npt.NDArray[np.int64] = kept[np.argsort(-scores[kept], kind="stable")]
    return best
