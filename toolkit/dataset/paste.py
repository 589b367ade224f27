"""Rare objects pasted into other frames of the same camera, where they were and at a like hour.

The camera never moves: an object of another clip is as large and as lit at its own place as it would be
there, and what lies behind it is the same quay. So a patch around it is taken with its background, brought to
the grey level of the place, and blended in; a rider and the machine below come together.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from toolkit.dataset.frames import FrameError
from toolkit.dataset.frequency import Paste
from toolkit.dataset.index import Split
from toolkit.dataset.planes import Grey, Layers

HOURS = 2
"""Between the frame that an object is from and the one that it is put into, at most, whatever the day."""

MARGIN = 4
"""Pixels of background around an object over which the patch is blended in."""

HIDDEN = 0.1
"""Part of an object that a patch may cover; where it would cover more, nothing is pasted."""

Boxes = npt.NDArray[np.float64]


class Donors:
    """The objects that can be pasted: where each is, and when.

    Args:
        split: that they are from.
        rows: (n,) of the images that are used.
        paste: its chances say which labels are wanted.

    Raises:
        ToolkitError: a class that none of the images holds.
    """

    def __init__(self, split: Split, rows: npt.NDArray[np.int64], paste: Paste) -> None:
        paste.check(split, rows)
        self.paste, self.split = paste, split
        tables = split.training
        images = tables.images[rows]
        owner = np.repeat(np.arange(len(rows)), images["boxes"])
        first = np.concatenate(([0], np.cumsum(images["boxes"])))[:-1]
        places = np.arange(len(owner)) - np.repeat(first - images["box"], images["boxes"])
        labels = tables.boxes["label"][places]
        self.clips = np.unique(split.clips, return_inverse=True)[1]
        # Ids of other data say no hour: of a still camera all are then alike.
        self.hours = split.image_ids * 0 if split.vocabulary.is_own else split.image_ids // 10_000 % 100
        self.objects: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}
        for label in paste.chances:
            of_class = np.flatnonzero(labels == label)
            self.objects[label] = rows[owner[of_class]], places[of_class]

    def boxes(self, row: int) -> tuple[Boxes, npt.NDArray[np.int64]]:
        """Corners in pixels, (n, 4), and labels of an image."""
        tables = self.split.training
        image = tables.images[row]
        boxes = tables.boxes[int(image["box"]) : int(image["box"]) + int(image["boxes"])]
        xywh = boxes["xywh"].astype(np.float64) * ([float(image["width"]), float(image["height"])] * 2)
        return np.hstack([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2]), boxes[
            "label"
        ].astype(np.int64)

    def draw(self, row: int) -> list[tuple[int, int]]:
        """Objects for an image, by Python's generator: the row of each, and its place among the boxes."""
        drawn = []
        for label, chance in self.paste.chances.items():
            if random.random() >= chance:
                continue
            rows, places = self.objects[label]
            apart = np.abs(self.hours[rows] - self.hours[row])
            alike = np.flatnonzero(
                (self.clips[rows] != self.clips[row]) & (np.minimum(apart, np.abs(24 - apart)) <= HOURS)
            )
            if len(alike):
                one = int(alike[random.randrange(len(alike))])
                donor = int(rows[one])
                drawn.append((donor, int(places[one]) - int(self.split.training.images[donor]["box"])))
        return drawn

    def add_to(
        self,
        label: dict[str, Any],
        image: Grey | Layers,
        row: int,
        size: tuple[int, int],
        load: Callable[[int], Grey],
        classes: Sequence[int] | None = None,
        single_cls: bool = False,
    ) -> Grey | Layers:
        """:meth:`into`, with the objects added to the image's label as Ultralytics keeps it.

        Args:
            label: its "cls" and "bboxes" are replaced; boxes are centre and size, as parts of the frame.
            image, row, size, load: see :meth:`into`.
            classes: Ultralytics' classes, from 0, whose boxes are kept; None: all.
            single_cls: all are class 0.
        """
        image, corners, labels = self.into(image, row, size, load)
        kinds = labels - 1
        if classes is not None:
            corners, kinds = corners[np.isin(kinds, classes)], kinds[np.isin(kinds, classes)]
        boxes = np.hstack([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]])
        boxes /= [size[1], size[0], size[1], size[0]]
        label["bboxes"] = np.vstack([label["bboxes"], boxes.astype(np.float32)])
        shown = np.zeros(len(kinds)) if single_cls else kinds
        label["cls"] = np.vstack([label["cls"], shown.astype(np.float32)[:, None]])
        return image

    def into(
        self, image: Grey | Layers, row: int, size: tuple[int, int], load: Callable[[int], Grey]
    ) -> tuple[Grey | Layers, Boxes, npt.NDArray[np.int64]]:
        """An image with objects pasted.

        Args:
            image: (height, width, channels), the frame of ``row``, perhaps enlarged; it is not changed.
            row: of the image.
            size: height and width of the frame as recorded.
            load: the channels of another image, as recorded; raises FrameError.

        Returns:
            The image, or a copy with objects; their corners in pixels of the frame, (n, 4); their labels.
        """
        own, _ = self.boxes(row)
        boxes, labels = np.empty((0, 4)), np.empty(0, np.int64)
        pasted: Grey | None = None
        for donor, place in self.draw(row):
            others, kinds = self.boxes(donor)
            together = _overlap(others, others[place]) > 0
            patch = _around(others[together], size)
            if (_overlap(np.vstack([own, boxes]), patch) > HIDDEN).any():
                continue
            try:
                source = load(donor)
            except FrameError:
                continue
            if source.shape[:2] != size or source.shape[2] != image.shape[2]:
                continue
            if pasted is None:
                pasted = image.copy()
            _blend(source, pasted, patch, others[together])
            boxes, labels = np.vstack([boxes, others[together]]), np.append(labels, kinds[together])
        return (image if pasted is None else pasted), boxes, labels


def _overlap(boxes: Boxes, box: Boxes) -> npt.NDArray[np.float64]:
    """(n,) part of each box that lies in another, all by their corners."""
    shared = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    part: npt.NDArray[np.float64] = shared.clip(0).prod(1) / np.maximum(areas, 1e-9)
    return part


def _around(boxes: Boxes, size: tuple[int, int]) -> Boxes:
    """Corners of the patch that holds boxes with their margin, in whole pixels of the frame."""
    low = np.floor(boxes[:, :2].min(0) - MARGIN).clip(0)
    high = np.minimum(np.ceil(boxes[:, 2:].max(0) + MARGIN), size[::-1])
    return np.concatenate([low, high])


def _blend(source: Grey, target: Grey, patch: Boxes, boxes: Boxes) -> None:
    """Put a patch of the source frame into the target, which may be enlarged, at its own place."""
    x1, y1, x2, y2 = patch.astype(int).tolist()
    inside = np.zeros((y2 - y1, x2 - x1), np.float32)
    for left, top, right, bottom in (boxes - np.tile(patch[:2], 2)).tolist():
        inside[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = 1
    away = cv2.distanceTransform((inside == 0).astype(np.uint8), cv2.DIST_L2, 3)
    alpha = np.clip(1 - away / MARGIN, 0, 1)[..., None]
    taken = source[y1:y2, x1:x2].astype(np.float32)
    scale = target.shape[0] / source.shape[0], target.shape[1] / source.shape[1]
    rows = slice(round(y1 * scale[0]), round(y2 * scale[0]))
    columns = slice(round(x1 * scale[1]), round(x2 * scale[1]))
    there = target[rows, columns]
    if there.shape[:2] != taken.shape[:2]:
        to = there.shape[1], there.shape[0]
        taken = np.asarray(cv2.resize(taken, to), np.float32).reshape(there.shape)
        alpha = cv2.resize(alpha, to)[..., None]
    ground = alpha[..., 0] < 0.5
    if ground.any():  # the ground around the object is to be as grey as it is there
        level = np.median(there[ground], axis=0) - np.median(taken[ground], axis=0)
        taken += np.asarray(level, np.float32)
    there[...] = np.clip(alpha * taken + (1 - alpha) * there + 0.5, 0, 255).astype(np.uint8)
