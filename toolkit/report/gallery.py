"""The worst frames, with what is there and what was detected drawn on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke, withStroke

from submission.detections import locate
from submission.validate import LABELS
from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.report.figures import INK, ORANGE, SKY, VERMILION, Evaluated, Picture

if TYPE_CHECKING:
    from toolkit.ltdv2 import SplitName

Grey = npt.NDArray[np.uint8]
Reader = Callable[[int], Grey | None]
"""Row of the truth -> the frame's pixels, (height, width), or None if it cannot be read."""

FRAMES = 12
COLUMNS = 3

STYLES = {
    "true box, found": (SKY, "-", 1.2),
    "true box, missed": (ORANGE, "-", 2.4),
    "detection": (SKY, "--", 1.2),
    "false alarm": (VERMILION, "--", 2.0),
}
"""Kind of box -> colour, line style, width. Solid is true, dashed is detected; thick is wrong."""


def gallery(data: Evaluated, read: Reader) -> Picture | None:
    """The frames with the most misses and false alarms, at most one a clip; None if none can be read."""
    m, p = data.matches, data.matches.problem
    sure = m.counted & (p.scores >= data.threshold)
    hit = np.zeros(len(m.found_by), np.bool_)
    hit[m.found[sure & (m.found >= 0)]] = True
    missed = np.bincount(p.truth_image[~hit], minlength=p.images)
    false = np.bincount(p.image[sure & (m.found < 0)], minlength=p.images)
    frames: list[tuple[int, Grey]] = []
    clips: set[str] = set()
    unreadable = 0
    for image in np.argsort(-(missed + false), kind="stable").tolist():
        clip = data.context.clips[image] if data.context else str(image)
        if len(frames) == FRAMES or unreadable == FRAMES or not missed[image] + false[image]:
            break
        if clip in clips:
            continue
        pixels = read(image)
        if pixels is None:
            unreadable += 1
        else:
            frames.append((image, pixels))
            clips.add(clip)
    if not frames:
        return None
    columns = min(COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    figure = Figure(figsize=(10.2, 2.86 * rows + 0.35), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (image, pixels) in zip(grid, frames, strict=False):
        _draw(axes, data, image, pixels, sure, hit)
        axes.set_title(
            f"{_name(data, image)}\n{missed[image]} missed, {false[image]} false",
            fontsize=8,
            loc="left",
            color=INK,
        )
    for axes in grid[len(frames) :]:
        axes.set_visible(False)
    handles = [
        Line2D([], [], color=colour, ls=line, lw=width, label=kind)
        for kind, (colour, line, width) in STYLES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return Picture(
        "gallery",
        "The worst frames",
        f"Most misses and false alarms with score ≥ {data.threshold:.2f}, one frame a clip. Solid: true "
        "boxes; dashed: detections; thick: what went wrong.",
        figure,
    )


def frames_of(data: Path, split: SplitName, image_ids: npt.NDArray[np.int64]) -> Reader | None:
    """Reader of a dataset's frames; a frame that cannot be read is named and left out.

    Args:
        data: folder with LTDv2's files.
        split: "train" or "val".
        image_ids: (images,) int64, ids of the truth.

    Returns:
        None, with a note, if the dataset is not prepared.
    """
    from toolkit.dataset import index

    try:
        images = index.load(data).split(split)
        frames, rows = images.frames(), locate(image_ids, images.image_ids)
    except ToolkitError as error:
        console.note(f"no gallery: {error.line()}")
        return None

    def read(image: int) -> Grey | None:
        if rows[image] < 0:
            return None
        try:
            return frames.grey(int(rows[image]))
        except ToolkitError as error:
            console.warn(error.line())
            return None

    return read


def _draw(
    axes: Axes,
    data: Evaluated,
    image: int,
    pixels: Grey,
    sure: npt.NDArray[np.bool_],
    hit: npt.NDArray[np.bool_],
) -> None:
    m, p = data.matches, data.matches.problem
    axes.imshow(pixels, cmap="gray", interpolation="lanczos", vmin=0, vmax=255)
    axes.set_axis_off()
    height, width = pixels.shape
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    labels = _Labels(axes, width, height)
    for row in np.flatnonzero(p.truth_image == image).tolist():
        kind = "true box, found" if hit[row] else "true box, missed"
        _box(axes, p.truth_boxes[row], kind)
        if not hit[row]:
            labels.add(p.truth_boxes[row], kind, LABELS.get(int(p.truth_label[row]), "?"))
    detected = np.flatnonzero((p.image == image) & sure)
    for row in detected[np.argsort(-p.scores[detected], kind="stable")].tolist():
        kind = "detection" if m.found[row] >= 0 else "false alarm"
        _box(axes, p.boxes[row], kind)
        if m.found[row] < 0:
            name = LABELS.get(int(p.label[row]), "?")
            labels.add(p.boxes[row], kind, f"{name} {p.scores[row]:.2f}")


def _box(axes: Axes, box: npt.NDArray[np.float64], kind: str) -> None:
    colour, line, width = STYLES[kind]
    x, y, w, h = box.tolist()
    outline = [Stroke(linewidth=width + 1.4, foreground="black", alpha=0.55), Normal()]
    axes.add_patch(
        Rectangle(
            (x, y), w, h, fill=False, edgecolor=colour, ls=line, lw=width, path_effects=outline, clip_on=True
        )
    )


class _Labels:
    """The words on one frame, none over another and none cut off by the border.

    A word stands above its box or below it, or a line farther off; where all four places are taken it is left
    out, the weakest false alarm first.

    Args:
        axes: of the frame.
        width, height: of the frame, pixels.
    """

    LINE, LETTER = 0.042, 0.018
    """Height of a line and width of a letter at this size, as parts of the frame's height and width."""

    def __init__(self, axes: Axes, width: int, height: int) -> None:
        self.axes, self.width, self.height = axes, width, height
        self.taken: list[tuple[float, float, float, float]] = []

    def add(self, box: npt.NDArray[np.float64], kind: str, text: str) -> None:
        """Put ``text`` beside a box (x, y, width, height; pixels) in the colour of its kind."""
        x, y, _, h = box.tolist()
        line, length = self.LINE * self.height, self.LETTER * self.width * len(text)
        left = min(max(x, 0.0), self.width - length)
        for top in (edge for n in range(2) for edge in (y - 2 - (n + 1) * line, y + h + 2 + n * line)):
            place = (left, top, left + length, top + line)
            inside = top >= 0 and place[3] <= self.height
            if inside and not any(_overlap(place, other) for other in self.taken):
                break
        else:
            return
        self.taken.append(place)
        self.axes.text(
            left,
            top + line / 2,
            text,
            color=STYLES[kind][0],
            fontsize=6.5,
            weight="bold",
            va="center_baseline",
            clip_on=True,
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _name(data: Evaluated, image: int) -> str:
    if data.context is None:
        return str(data.image_ids[image])
    return "/".join(str(data.context.names[image]).removesuffix(".jpg").split("/")[-3:])
