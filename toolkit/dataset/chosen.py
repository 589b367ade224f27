"""The images of a split that are used, in the order of their batches, and the boxes of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.dataset.index import Split
from toolkit.errors import ToolkitError

Array = npt.NDArray[Any]


class ChosenImages:
    """Images of a split with their sizes and boxes, from the index alone.

    Args:
        split: that they are of.
        rows: (n,) images to use, all by default; those without a frame are left out.
        fraction: use this part of them, spread evenly (a number above 1 is a count).
        classes: Ultralytics' classes, from 0, whose boxes are kept; None: all.
        single_cls: all boxes are class 0.

    Attributes:
        rows: (n,) of each image, its row in the split.

    Raises:
        ToolkitError: no image is left.
    """

    def __init__(
        self, split: Split, rows: Array | None, fraction: float, classes: list[int] | None, single_cls: bool
    ) -> None:
        self.split, self.classes, self.single_cls = split, classes, single_cls
        rows = np.arange(len(split)) if rows is None else np.sort(rows)
        self.rows: Array = _part(rows[split.present[rows]], fraction)
        if not len(self.rows):
            raise ToolkitError(f"the {split.name} split has no frame", fix="toolkit dataset verify DIR")

    def __len__(self) -> int:
        return len(self.rows)

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of an image, pixels, as its annotations say."""
        image = self.split.training.images[self.rows[i]]
        return int(image["height"]), int(image["width"])

    def boxes(self, i: int) -> tuple[Array, Array]:
        """Classes (n, 1) and boxes (n, 4) of an image, float32: centre and size as parts of the frame."""
        tables = self.split.training
        image = tables.images[self.rows[i]]
        start = int(image["box"])
        boxes = tables.boxes[start : start + int(image["boxes"])]
        if self.classes is not None:
            boxes = boxes[np.isin(boxes["label"] - 1, self.classes)]
        kinds = (boxes["label"] - 1).astype(np.float32)[:, None]
        return np.zeros_like(kinds) if self.single_cls else kinds, np.array(boxes["xywh"])

    def class_counts(self, classes: int) -> Array:
        """(classes,) int64, boxes of each class."""
        tables = self.split.training
        used = np.zeros(len(tables.images), bool)
        used[self.rows] = True
        kinds = tables.boxes["label"][np.repeat(used, tables.images["boxes"])] - 1
        if self.classes is not None:
            kinds = kinds[np.isin(kinds, self.classes)]
        return np.bincount(kinds * (not self.single_cls), minlength=classes)

    def order_by_shape(self, batch: int, longer: int, stride: int, pad: float) -> tuple[Array, Array]:
        """Order the images by aspect ratio, so that each batch is as small as its images allow.

        Args:
            batch: images in one.
            longer: side that an image is enlarged to, pixels.
            stride: of the model, pixels.
            pad: of a stride, around a batch.

        Returns:
            (n,) the batch of each image, and (batches, 2) heights and widths, pixels.
        """
        images = self.split.training.images[self.rows]
        ratio = images["height"] / images["width"]
        order = np.argsort(ratio, kind="stable")
        self.rows, ratio = self.rows[order], ratio[order]
        starts = np.arange(0, len(ratio), batch)
        low, high = np.minimum.reduceat(ratio, starts), np.maximum.reduceat(ratio, starts)
        shapes = np.ones((len(starts), 2))
        shapes[high < 1, 0] = high[high < 1]
        shapes[low > 1, 1] = 1 / low[low > 1]
        cells = np.ceil(shapes * longer / stride + pad).astype(int)
        return np.arange(len(ratio)) // batch, cells * stride


def _part(rows: Array, fraction: float) -> Array:
    """A part of ``rows``, evenly spread; a number above 1 is a count, as in Ultralytics."""
    count = int(fraction) if fraction > 1 else max(1, round(len(rows) * fraction))
    if count >= len(rows):
        return rows
    spread = np.linspace(0, len(rows) - 1, count).round().astype(int)
    return np.asarray(rows[spread])
