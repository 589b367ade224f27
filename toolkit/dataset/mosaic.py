"""Mosaic, random scale and shift, brightness and mirroring of grey frames in one step.

Ultralytics enlarges four frames to the training size, pastes them onto a canvas of four times the area, and
warps a quarter of that canvas into the sample: most pixels are computed three times and thrown away. Here the
random layout and the random matrix are drawn by Ultralytics' own classes, which also move the boxes, and each
frame is then sampled once, from the size it was recorded at, straight into its part of the sample, brightened
and mirrored on the way. What is to be done is drawn by Ultralytics' own steps, in their order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from ultralytics.data.augment import (
    Albumentations,
    Compose,
    CopyPaste,
    CutMix,
    MixUp,
    Mosaic,
    RandomFlip,
    RandomHSV,
    RandomPerspective,
)

from toolkit.dataset.planes import Grey, Layers, channels_of, new_canvas

PADDING = 114
"""Grey level around and between frames, as in Ultralytics."""


@dataclass(frozen=True)
class Tile:
    """A frame's place on the canvas.

    Attributes:
        frame: (height, width) pixels as recorded, or (height, width, channels), possibly in layers.
        size: height and width that the frame has on the canvas.
        shift: x and y on the canvas of the frame's first pixel, possibly outside of ``area``.
        area: x1, y1, x2, y2 of the part of the canvas that shows the frame.
    """

    frame: Grey | Layers
    size: tuple[int, int]
    shift: tuple[int, int]
    area: tuple[int, int, int, int]


Canvas = Callable[[tuple[int, ...]], Grey]
"""What gives memory for an image of a shape; see :func:`toolkit.dataset.planes.new_canvas`."""


def render(
    tiles: list[Tile],
    matrix: npt.NDArray[np.floating[Any]],
    size: tuple[int, int],
    canvas: Canvas = new_canvas,
    factor: float | None = None,
    mirrored: tuple[bool, bool] = (False, False),
) -> Grey:
    """What a canvas with ``tiles`` looks like under ``matrix``, without making the canvas.

    Args:
        tiles: frames on the canvas, not overlapping, at least one.
        matrix: (3, 3), canvas to output, pixels; scale and shift alone (no rotation or shear).
        size: width and height of the output.
        canvas: gives the output's memory.
        factor: that every grey value is multiplied by at last, those of the padding too.
        mirrored: whether the output is turned upside down, and whether left and right are exchanged.

    Returns:
        (height, width) uint8, or (height, width, channels) as the frames, sampled bilinearly; pixel centres
        are at whole numbers, as in OpenCV.
    """
    spans = [(_span(tile, matrix, size[0], 0), _span(tile, matrix, size[1], 1)) for tile in tiles]
    shown = [
        (channels_of(tile.frame), across, down)
        for tile, (across, down) in zip(tiles, spans, strict=True)
        if across is not None and down is not None
    ]
    gaps = _gaps([(across, down) for _, across, down in shown], size)
    padding = np.full((1, 1), PADDING, np.uint8)
    if factor is not None:
        cv2.convertScaleAbs(padding, dst=padding, alpha=factor)
    image = canvas((size[1], size[0], *tiles[0].frame.shape[2:]))
    planes = channels_of(image)
    for rows, columns in gaps:
        image[_turned(rows, size[1], mirrored[0]), _turned(columns, size[0], mirrored[1])] = padding
    for frames, across, down in shown:
        rows = _turned(slice(down.start, down.stop), size[1], mirrored[0])
        columns = _turned(slice(across.start, across.stop), size[0], mirrored[1])
        large = patch = None
        for frame, plane in zip(frames, planes, strict=True):
            # A patch that begins where it must, to a part of a pixel, and then an enlargement by an exact
            # factor: 0.11 ms for 640 x 480 pixels, where warpAffine takes 0.66 ms. Each channel of a tile
            # uses the memory of the one before, which the processor's cache still holds.
            length, centre = (across.length, down.length), (across.centre, down.centre)
            patch = cv2.getRectSubPix(frame, length, centre, patch)
            large = cv2.resize(patch, None, large, across.factor, down.factor)
            _put(large[down.inside, across.inside], plane[rows, columns], factor, mirrored)
    return image


def _turned(part: slice, size: int, mirrored: bool) -> slice:
    """Where a part of an axis of ``size`` pixels lies once the axis is perhaps mirrored."""
    return slice(size - part.stop, size - part.start) if mirrored else part


def _put(rendered: Any, part: Grey, factor: float | None, mirrored: tuple[bool, bool]) -> None:
    """Copy pixels, mirrored and brightened, to a part of the output."""
    if not any(mirrored):
        if factor is None:
            part[...] = rendered
        else:
            cv2.convertScaleAbs(rendered, dst=part, alpha=factor)
        return
    if factor is not None:
        rendered = cv2.convertScaleAbs(rendered, dst=rendered, alpha=factor)
    cv2.flip(rendered, -1 if all(mirrored) else int(mirrored[1]), dst=part)


def _gaps(covered: list[tuple[_Span, _Span]], size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Rows and columns of what no tile covers, in bands from edge to edge."""
    edges = sorted({0, size[1], *(edge for _, down in covered for edge in (down.start, down.stop))})
    gaps = []
    for top, bottom in pairwise(edges):
        end = 0
        band = (across for across, down in covered if down.start <= top < down.stop)
        for across in sorted(band, key=lambda across: across.start):
            if across.start > end:
                gaps.append((slice(top, bottom), slice(end, across.start)))
            end = across.stop
        if end < size[0]:
            gaps.append((slice(top, bottom), slice(end, size[0])))
    return gaps


class _Span(NamedTuple):
    """An axis of a tile in the output: pixels ``start`` to ``stop``, and the patch of the frame they need."""

    start: int
    stop: int
    factor: float
    margin: int
    length: int
    centre: float

    @property
    def inside(self) -> slice:
        """Of the enlarged patch, what is shown."""
        return slice(self.margin, self.margin + self.stop - self.start)


def _span(tile: Tile, matrix: npt.NDArray[np.floating[Any]], size: int, axis: int) -> _Span | None:
    """Where the tile lies along an axis (0: x) of the output; None if outside of it.

    Output pixel u shows the canvas at (u - shift) / scale. A frame enlarged by f, as OpenCV does it, shows
    its pixel x at f (x + 0.5) - 0.5; a patch that begins at pixel o therefore gives output pixel ``start`` if
    o + 0.5 / f - 0.5 is the place that it shows. The patch begins ``margin`` output pixels earlier, so that
    the pixels at its edges are interpolated like all others.
    """
    scale, shift = float(matrix[axis, axis]), float(matrix[axis, 2])
    first, last = (scale * (tile.area[axis + side] - 0.5) + shift for side in (0, 2))
    start, stop = (min(max(math.ceil(edge), 0), size) for edge in (first, last))
    if stop <= start:
        return None
    enlarged = tile.size[1 - axis] / tile.frame.shape[1 - axis]
    factor = scale * enlarged
    place = ((start - shift) / scale - tile.shift[axis] + 0.5) / enlarged - 0.5
    margin = math.ceil(factor)
    length = math.ceil((stop - start + 2 * margin) / factor) + 1
    begin = place + 0.5 - (0.5 + margin) / factor
    return _Span(start, stop, factor, margin, length, begin + (length - 1) / 2)


class Picture:
    """A sample that is rendered at last, when its brightness is drawn and it is known whether it is mirrored.

    So each part is brightened and mirrored while it is in the processor's cache; as steps of their own they
    would read and write the whole sample again.

    Args:
        tiles, matrix, size, canvas: as :func:`render` takes them.

    Attributes:
        factor: of its grey values; None: they stay.
    """

    KEY = "picture"
    """Of a label that has one, beside an ``img`` that stands for it: of its size, without its pixels."""

    def __init__(
        self, tiles: list[Tile], matrix: npt.NDArray[np.floating[Any]], size: tuple[int, int], canvas: Canvas
    ) -> None:
        self.tiles, self.matrix, self.size, self.canvas = tiles, matrix, size, canvas
        self.factor: float | None = None

    def rendered(self, standing: Grey) -> Grey:
        """(height, width, channels), mirrored as what stood for it is by now."""
        mirrored = standing.strides[0] < 0, standing.strides[1] < 0
        return render(self.tiles, self.matrix, self.size, self.canvas, self.factor, mirrored)


class FusedMosaic:
    """Ultralytics' mosaic and affine transform of one sample, rendered by :func:`render`.

    Takes labels whose ``img`` is the frame as recorded, (height, width, channels), and whose
    ``resized_shape`` is what Ultralytics would have enlarged it to.

    Attributes:
        waits: whether the steps behind it take a :class:`Picture`.
    """

    def __init__(self, mosaic: Mosaic, affine: RandomPerspective, canvas: Canvas, waits: bool) -> None:
        self.mosaic, self.affine, self.canvas, self.waits = mosaic, affine, canvas, waits

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        if random.uniform(0, 1) <= self.mosaic.p:
            layout = self.mosaic.get_params(labels)["layout"]
            tiles = [_tile(part) for part in layout]
            canvas = (2 * self.mosaic.imgsz, 2 * self.mosaic.imgsz)
            labels = self.mosaic.apply_instances(labels, {"layout": layout})
            labels.pop("mix_labels", None)
        else:
            height, width = canvas = labels["resized_shape"]
            tiles = [Tile(labels["img"], canvas, (0, 0), (0, 0, width, height))]
        # The matrix depends on the canvas's shape alone; this stands for its pixels.
        labels["img"] = np.broadcast_to(np.uint8(PADDING), (*canvas, 1))
        params = self.affine.get_params(labels)
        if self.waits:
            labels[Picture.KEY] = Picture(tiles, params["M"], params["size"], self.canvas)
            labels["img"] = np.empty((*params["size"][::-1], 1), np.uint8)
        else:
            labels["img"] = render(tiles, params["M"], params["size"], self.canvas)
        labels["resized_shape"] = labels["img"].shape[:2]
        moved: dict[str, Any] = self.affine.apply_instances(labels, params)
        return moved


def _tile(part: dict[str, Any]) -> Tile:
    return Tile(
        frame=part["labels_patch"]["img"],
        size=part["img_shape"],
        shift=(part["padw"], part["padh"]),
        area=(part["x1a"], part["y1a"], part["x2a"], part["y2a"]),
    )


def fuse(transforms: Compose, canvas: Canvas = new_canvas) -> bool:
    """Exchange Ultralytics' mosaic and affine transforms for :class:`FusedMosaic`, where they allow it.

    Args:
        transforms: of a sample; changed in place.
        canvas: gives the memory of what is rendered.

    Returns:
        Whether they did: a mosaic of four, neither rotation, shear nor perspective, no copy-paste.
    """
    first = transforms.transforms[0]
    steps = list(getattr(first, "transforms", []))
    mosaic = next((step for step in steps if isinstance(step, Mosaic)), None)
    affine = next((step for step in steps if isinstance(step, RandomPerspective)), None)
    others = [step for step in steps if step is not mosaic and step is not affine]
    if mosaic is None or affine is None or mosaic.n != 4:
        return False
    if affine.degrees or affine.shear or affine.perspective:
        return False
    if any(not isinstance(step, CopyPaste) or step.p for step in others):
        return False
    # MixUp and CutMix hold the same Compose and transform their second sample with it.
    waits = all(_only_brightens_or_mirrors(step) for step in transforms.transforms[1:-1])
    first.transforms = [FusedMosaic(mosaic, affine, canvas, waits)]
    return True


def _only_brightens_or_mirrors(step: Any) -> bool:
    if isinstance(step, (MixUp, CutMix)):
        return not step.p
    if isinstance(step, Albumentations):
        return step.transform is None
    return isinstance(step, (RandomHSV, RandomFlip))
