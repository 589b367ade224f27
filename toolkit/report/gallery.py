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
from matplotlib.textpath import TextPath

from submission.detections import locate
from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.report.figures import INK, ORANGE, SKY, VERMILION, Evaluated, Picture
from toolkit.report.placing import Room

if TYPE_CHECKING:
    from toolkit.dataset.index import DatasetIndex
    from toolkit.ltdv2 import SplitName

Grey = npt.NDArray[np.uint8]
Reader = Callable[[int], Grey | None]
"""Row of the truth -> the frame's pixels, (height, width), or None if it cannot be read."""

FRAMES = 12
COLUMNS = 3

SHOWN = 14
"""Sides of a usual wrong box that a picture is wide: the part of the frame with most of them is shown."""

NARROWEST = 64
"""Pixels of the frame that a picture shows across at least."""

CROWD = 12
"""Boxes in a picture from which on lines are thin, and those of the usual class are not named."""

WORDS = 6
"""Boxes of a picture that are named at most, rare classes first."""

FONT = 8
"""Size of the words above a picture, points."""

WIDTH = 10.2
"""Of the page's pictures, inches."""

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
    figure = Figure(figsize=(WIDTH, 2.86 * rows + 0.35), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    width = 72 * WIDTH / columns - 3 * FONT
    for axes, (image, pixels) in zip(grid, frames, strict=False):
        _draw(axes, data, image, pixels, sure, hit)
        axes.set_title(
            f"{_name(data, image, width)}\n{missed[image]} missed, {false[image]} false{_part(axes, pixels)}",
            fontsize=FONT,
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
        "boxes; dashed: detections; thick: what went wrong. Where boxes are small, the part of the frame "
        "with most of what went wrong.",
        figure,
    )


def frames_of(data: Path | DatasetIndex, split: SplitName, image_ids: npt.NDArray[np.int64]) -> Reader | None:
    """Reader of a dataset's frames; a frame that cannot be read is named and left out.

    Args:
        data: folder with LTDv2's files, or its index.
        split: "train" or "val".
        image_ids: (images,) int64, ids of the truth.

    Returns:
        None, with a note, if the dataset is not prepared.
    """
    from toolkit.dataset import index

    try:
        images = (index.load(data) if isinstance(data, Path) else data).split(split)
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
    true = np.flatnonzero(p.truth_image == image)
    detected = np.flatnonzero((p.image == image) & sure)
    detected = detected[np.argsort(-p.scores[detected], kind="stable")]
    missed, false = true[~hit[true]], detected[m.found[detected] < 0]
    shown = _window(np.vstack([p.truth_boxes[missed], p.boxes[false]]), pixels.shape)
    axes.imshow(pixels, cmap="gray", interpolation="lanczos", vmin=0, vmax=255)
    axes.set_axis_off()
    left, top, width, height = shown
    axes.set(xlim=(left - 0.5, left + width - 0.5), ylim=(top + height - 0.5, top - 0.5))
    everything = np.vstack([p.truth_boxes[true], p.boxes[detected]])
    crowded = _inside(everything, shown).sum() > CROWD
    thin = 0.5 if crowded else 1.0
    for row in true.tolist():
        _box(axes, p.truth_boxes[row], "true box, found" if hit[row] else "true box, missed", thin)
    for row in detected.tolist():
        _box(axes, p.boxes[row], "detection" if m.found[row] >= 0 else "false alarm", thin)
    labels = _Labels(axes, shown)
    usual = np.bincount(p.truth_label, minlength=max(p.classes) + 1)
    words = [(p.truth_boxes[row], int(p.truth_label[row]), "true box, missed", "") for row in missed.tolist()]
    words += [
        (p.boxes[row], int(p.label[row]), "false alarm", f" {p.scores[row]:.2f}") for row in false.tolist()
    ]
    unnamed = int(usual.argmax()) if crowded else 0
    words = [each for each in words if _inside(each[0][None], shown)[0] and each[1] != unnamed]
    for box, label, kind, score in sorted(words, key=lambda each: int(usual[each[1]]))[:WORDS]:
        labels.add(box, kind, p.classes.get(label, "?") + score)


def _window(wrong: npt.NDArray[np.float64], size: tuple[int, ...]) -> tuple[float, float, float, float]:
    """The part of a frame that is shown: x, y, width and height in pixels.

    Args:
        wrong: (n, 4) what was missed or found without need: x, y, width, height.
        size: height and width of the frame.
    """
    height, width = float(size[0]), float(size[1])
    side = float(np.median(np.sqrt(wrong[:, 2] * wrong[:, 3])))
    part = min(max(SHOWN * side, NARROWEST) / width, 1.0)
    across, down = part * width, part * height
    centres = wrong[:, :2] + wrong[:, 2:] / 2
    corners = np.clip(centres - [across / 2, down / 2], 0, [width - across, height - down])
    held = [_inside(wrong, (x, y, across, down)).sum() for x, y in corners.tolist()]
    x, y = corners[int(np.argmax(held))].tolist()
    return x, y, across, down


def _inside(
    boxes: npt.NDArray[np.float64], window: tuple[float, float, float, float]
) -> npt.NDArray[np.bool_]:
    """(n,) whether the centre of each box lies in a window, both as x, y, width, height."""
    centres = boxes[:, :2] + boxes[:, 2:] / 2 - window[:2]
    return np.asarray(((centres >= 0) & (centres <= window[2:])).all(1), np.bool_)


def _part(axes: Axes, pixels: Grey) -> str:
    """Which part of a frame is shown, where it is not all of it."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if right - left > 0.99 * pixels.shape[1]:
        return ""
    return f"; {right - left:.0f} x {bottom - top:.0f} px at {left + 0.5:.0f}, {top + 0.5:.0f}"


def _box(axes: Axes, box: npt.NDArray[np.float64], kind: str, thin: float) -> None:
    colour, line, width = STYLES[kind]
    x, y, w, h = box.tolist()
    outline = [Stroke(linewidth=thin * (width + 1.4), foreground="black", alpha=0.55), Normal()]
    axes.add_patch(
        Rectangle(
            (x, y),
            w,
            h,
            fill=False,
            edgecolor=colour,
            ls=line,
            lw=thin * width,
            path_effects=outline,
            clip_on=True,
        )
    )


class _Labels:
    """The words on one frame, none over another and none cut off by the border.

    A word stands above its box or below it, or a line farther off; where all four places are taken it is left
    out, the weakest false alarm first.

    Args:
        axes: of the frame.
        window: what they show: x, y, width and height, pixels.
    """

    LINE, LETTER = 0.042, 0.018
    """Height of a line and width of a letter at this size, as parts of the window's height and width."""

    def __init__(self, axes: Axes, window: tuple[float, float, float, float]) -> None:
        left, top, self.width, self.height = window
        self.axes, self.room = axes, Room((left, top, left + self.width, top + self.height))

    def add(self, box: npt.NDArray[np.float64], kind: str, text: str) -> None:
        """Put ``text`` beside a box (x, y, width, height; pixels) in the colour of its kind."""
        x, y, _, h = box.tolist()
        line, length = self.LINE * self.height, self.LETTER * self.width * len(text)
        gap = self.height / 144
        tops = [edge for n in range(2) for edge in (y - gap - (n + 1) * line, y + h + gap + n * line)]
        if (found := self.room.place(x, length, line, tops)) is None:
            return
        left, top = found
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


def _name(data: Evaluated, image: int, width: float) -> str:
    """What stands above a picture: as much of the end of its file's path as fits into a width in points."""
    if data.context is None:
        return str(data.image_ids[image])
    words = str(data.context.names[image]).removesuffix(".jpg").split("/")[-3:]
    ends = ["/".join(words[at:]) for at in range(len(words))]
    return next((end for end in ends if _width(end) <= width), None) or _cut(ends[-1], width)


def _cut(text: str, width: float) -> str:
    """Beginning and end of a text that is wider than this, in points."""
    halves = ((kept - kept // 2, kept // 2) for kept in range(len(text) - 1, 1, -1))
    shorter = (f"{text[:head]}…{text[-tail:]}" for head, tail in halves)
    return next((each for each in shorter if _width(each) <= width), "…")


def _width(text: str) -> float:
    return float(TextPath((0, 0), text, size=FONT).get_extents().width)
