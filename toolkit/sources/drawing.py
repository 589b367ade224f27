"""Boxes drawn on a frame so that an object of ten pixels can still be seen: enlarged, thin, outside of it."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import numpy.typing as npt

from toolkit.report.placing import Room
from toolkit.sources.reading import Pixels

SIDE = 1280
"""Longer side that small frames are enlarged to, by a whole factor, pixels."""

COLOURS = ((233, 180, 86), (0, 159, 230), (66, 228, 240), (0, 94, 213), (115, 158, 0), (167, 121, 204))
"""Blue, green, red: sky, orange, yellow, vermilion, green and purple of Okabe and Ito (2008), by class."""

FONT, SIZE = cv2.FONT_HERSHEY_SIMPLEX, 0.42
LINE = 14
"""Height of a line of words, pixels of the enlarged frame."""


def enlargement(height: int, width: int) -> int:
    """By how much a frame is enlarged; 1 for large ones."""
    return max(1, round(SIDE / max(height, width)))


def draw(
    pixels: Pixels,
    boxes: npt.NDArray[np.float64],
    scores: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    names: Mapping[int, str],
) -> Pixels:
    """The frame with its boxes and a legend below, (height, width, 3) uint8, blue, green, red.

    A box has a dark line around its coloured one, and both lie outside of the object. The words of a box
    stand above or below it, on black; where they would cover other words or a box they are left out, the
    weakest first.

    Args:
        pixels: (height, width) or (height, width, 3) uint8.
        boxes: (n, 4) x1, y1, x2, y2, pixels of the frame.
        scores: (n,) in [0, 1].
        labels: (n,) as ``names`` has them.
        names: of the classes.
    """
    times = enlargement(*pixels.shape[:2])
    canvas = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR) if pixels.ndim == 2 else pixels.copy()
    if times > 1:
        canvas = cv2.resize(canvas, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    corners = np.empty((len(boxes), 4), np.int64)
    corners[:, :2] = np.floor(boxes[:, :2] * times) - 2
    corners[:, 2:] = np.ceil(boxes[:, 2:] * times) + 1
    order = np.argsort(scores, kind="stable")
    for dark in (True, False):
        for row in order.tolist():
            x1, y1, x2, y2 = corners[row].tolist()
            colour = (0, 0, 0) if dark else _colour(int(labels[row]))
            cv2.rectangle(canvas, (x1 - dark, y1 - dark), (x2 + dark, y2 + dark), colour, 1)
    _Words(canvas, corners).write(order[::-1], scores, labels, names)
    return np.vstack([canvas, _legend(canvas.shape[1], labels, names)])


def _colour(label: int) -> tuple[int, int, int]:
    return COLOURS[(label - 1) % len(COLOURS)]


class _Words:
    """Class and score of boxes, none over another or over a box that is not its own.

    Args:
        canvas: what is written on.
        corners: (n, 4) int64, x1, y1, x2, y2 of all boxes, pixels of the canvas.
    """

    def __init__(self, canvas: Pixels, corners: npt.NDArray[np.int64]) -> None:
        self.canvas, self.corners = canvas, corners
        height, width = canvas.shape[:2]
        self.room = Room((0, 0, width, height), corners)

    def write(
        self,
        order: npt.NDArray[np.int64],
        scores: npt.NDArray[np.float64],
        labels: npt.NDArray[np.int64],
        names: Mapping[int, str],
    ) -> None:
        """Write as many as there is room for, in this order."""
        for row in order.tolist():
            label = int(labels[row])
            text = f"{names.get(label, label)} {scores[row]:.2f}"
            length = cv2.getTextSize(text, FONT, SIZE, 1)[0][0]
            x1, y1, _, y2 = self.corners[row].tolist()
            if found := self.room.place(x1, length, LINE, (y1 - LINE - 1, y2 + 2)):
                left, top = map(int, found)
                self.canvas[top : top + LINE, left : left + length] //= 5
                at = (left, top + LINE - 3)
                cv2.putText(self.canvas, text, at, FONT, SIZE, _colour(label), 1, cv2.LINE_AA)


def _legend(width: int, labels: npt.NDArray[np.int64], names: Mapping[int, str]) -> Pixels:
    """A strip that says how many of each class are drawn."""
    strip = np.zeros((LINE + 8, width, 3), np.uint8)
    left = 6
    for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
        text = f"{count} {names.get(int(label), label)}"
        cv2.rectangle(strip, (left, 6), (left + 9, 15), _colour(int(label)), -1)
        cv2.putText(strip, text, (left + 14, LINE + 1), FONT, SIZE, (255, 255, 255), 1, cv2.LINE_AA)
        left += 30 + cv2.getTextSize(text, FONT, SIZE, 1)[0][0]
    if not len(labels):
        cv2.putText(strip, "nothing found", (6, LINE + 1), FONT, SIZE, (255, 255, 255), 1, cv2.LINE_AA)
    return strip
