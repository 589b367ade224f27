"""Silhouettes of people and machines in any size: how much of a pixel they fill, with which of three parts.

A person has skin, clothes, hair; a machine has a body, glass or a saddle, and what is warm (wheels,
engine, lamps).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.float32]

MASTER = 160
"""Rows on which a silhouette is painted."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Sprite:
    """A silhouette of one size.

    Attributes:
        cover: (h, w) float32, share of each pixel that it fills.
        parts: (3, h, w) float32, shares of the three parts in what is filled.
        solid: (h, w) bool, the pixels that it hides.
    """

    cover: Image
    parts: Image
    solid: npt.NDArray[np.bool_]


class _Painter:
    """Paints parts 1 to 3 over one another, in units of the height."""

    def __init__(self, width: float) -> None:
        self.canvas = np.zeros((MASTER, round(MASTER * width)), np.uint8)

    def _at(self, point: Point) -> tuple[int, int]:
        return round(point[0] * MASTER), round(point[1] * MASTER)

    def area(self, part: int, *points: Point) -> None:
        cv2.fillPoly(self.canvas, [np.array([self._at(p) for p in points], np.int32)], part)

    def line(self, part: int, a: Point, b: Point, width: float) -> None:
        cv2.line(self.canvas, self._at(a), self._at(b), part, max(1, round(width * MASTER)))

    def disc(self, part: int, centre: Point, radius: float, width: float = 0.0) -> None:
        thickness = round(width * MASTER) if width else -1
        cv2.circle(self.canvas, self._at(centre), round(radius * MASTER), part, thickness)


def _person(stride: float, arms: float) -> _Painter:
    p = _Painter(0.42)
    x = 0.21
    for side in (-1, 1):
        p.line(2, (x + side * 0.04, 0.5), (x + side * (0.045 + stride), 0.96), 0.085)
        p.line(2, (x + side * 0.085, 0.22), (x + side * (0.11 + arms), 0.46), 0.055)
        p.disc(1, (x + side * (0.115 + arms), 0.49), 0.026)
    p.area(2, (x - 0.11, 0.18), (x + 0.11, 0.18), (x + 0.085, 0.56), (x - 0.085, 0.56))
    p.disc(1, (x, 0.085), 0.07)
    p.area(3, (x - 0.07, 0.06), (x - 0.05, 0.012), (x + 0.05, 0.012), (x + 0.07, 0.06))
    return p


def _sitting() -> _Painter:
    p = _Painter(0.7)
    p.area(2, (0.2, 0.28), (0.48, 0.28), (0.46, 0.85), (0.2, 0.85))
    p.line(2, (0.3, 0.8), (0.6, 0.72), 0.16)
    p.line(2, (0.6, 0.72), (0.6, 0.98), 0.13)
    p.line(2, (0.4, 0.38), (0.56, 0.62), 0.09)
    p.disc(1, (0.57, 0.62), 0.04)
    p.disc(1, (0.34, 0.13), 0.115)
    p.area(3, (0.23, 0.1), (0.28, 0.02), (0.4, 0.02), (0.45, 0.1))
    return p


def _rider_aside() -> _Painter:
    p = _Painter(0.62)
    p.line(2, (0.22, 0.55), (0.42, 0.66), 0.12)
    p.line(2, (0.42, 0.66), (0.36, 0.96), 0.09)
    p.area(2, (0.12, 0.56), (0.3, 0.6), (0.46, 0.24), (0.3, 0.17))
    p.line(2, (0.4, 0.26), (0.56, 0.46), 0.065)
    p.disc(1, (0.57, 0.47), 0.035)
    p.disc(1, (0.44, 0.1), 0.085)
    p.area(3, (0.36, 0.08), (0.4, 0.02), (0.5, 0.02), (0.52, 0.08))
    return p


def _rider_ahead() -> _Painter:
    return _person(0.01, 0.03)


def _bicycle_aside() -> _Painter:
    p = _Painter(1.7)
    for x in (0.34, 1.36):
        p.disc(1, (x, 0.66), 0.31, 0.05)
        p.disc(3, (x, 0.66), 0.05)
    for a, b in (
        ((0.34, 0.66), (0.66, 0.28)),
        ((0.66, 0.28), (1.2, 0.24)),
        ((0.66, 0.28), (0.84, 0.68)),
        ((0.34, 0.66), (0.84, 0.68)),
        ((0.84, 0.68), (1.2, 0.24)),
        ((1.36, 0.66), (1.18, 0.06)),
    ):
        p.line(1, a, b, 0.055)
    p.line(2, (1.06, 0.05), (1.3, 0.05), 0.06)
    p.line(2, (0.54, 0.22), (0.78, 0.22), 0.08)
    return p


def _bicycle_ahead() -> _Painter:
    p = _Painter(0.56)
    p.line(1, (0.28, 0.3), (0.28, 0.97), 0.1)
    p.line(1, (0.03, 0.12), (0.53, 0.12), 0.06)
    p.line(1, (0.28, 0.12), (0.28, 0.4), 0.06)
    p.line(2, (0.18, 0.3), (0.38, 0.3), 0.08)
    return p


def _motorcycle_aside() -> _Painter:
    p = _Painter(1.75)
    for x in (0.34, 1.4):
        p.disc(1, (x, 0.7), 0.28)
        p.disc(2, (x, 0.7), 0.12)
    p.area(1, (0.04, 0.32), (0.7, 0.34), (1.2, 0.18), (1.36, 0.46), (1.06, 0.72), (0.6, 0.74), (0.42, 0.5))
    p.area(2, (0.2, 0.26), (0.78, 0.3), (0.74, 0.4), (0.24, 0.38))
    p.disc(3, (0.84, 0.66), 0.13)
    p.line(3, (0.6, 0.88), (0.06, 0.84), 0.07)
    p.line(1, (1.2, 0.28), (1.12, 0.03), 0.08)
    p.disc(3, (1.34, 0.3), 0.07)
    return p


def _motorcycle_ahead() -> _Painter:
    p = _Painter(0.66)
    p.line(1, (0.33, 0.4), (0.33, 0.97), 0.17)
    p.area(1, (0.16, 0.2), (0.5, 0.2), (0.46, 0.72), (0.2, 0.72))
    p.line(1, (0.02, 0.14), (0.64, 0.14), 0.07)
    p.disc(3, (0.33, 0.3), 0.1)
    p.disc(3, (0.33, 0.66), 0.08)
    return p


def _car_aside() -> _Painter:
    """Seen from above the bonnet: windscreen and roof are cold, sill and wheels warm."""
    p = _Painter(2.1)
    p.area(
        1,
        *((0.02, 0.66), (0.06, 0.52), (0.44, 0.34), (0.76, 0.08), (1.1, 0.01), (1.7, 0.03), (1.94, 0.2)),
        *((2.08, 0.46), (2.1, 0.8), (1.96, 0.9), (0.1, 0.92)),
    )
    p.area(2, (0.66, 0.16), (0.8, 0.04), (1.1, 0.0), (1.7, 0.02), (1.96, 0.2), (1.7, 0.11), (1.1, 0.1))
    p.area(2, (0.3, 0.42), (0.62, 0.2), (0.72, 0.2), (0.54, 0.4))
    p.area(2, (0.7, 0.4), (0.88, 0.16), (1.2, 0.14), (1.2, 0.4))
    p.area(2, (1.26, 0.4), (1.26, 0.14), (1.56, 0.15), (1.62, 0.38))
    p.area(2, (1.7, 0.36), (1.66, 0.16), (1.84, 0.2), (1.98, 0.36))
    p.area(3, (0.04, 0.64), (0.3, 0.6), (0.34, 0.7), (0.08, 0.76))
    for x in (0.44, 1.62):
        p.disc(2, (x, 0.78), 0.2)
        p.disc(3, (x, 0.79), 0.17, 0.05)
        p.disc(1, (x, 0.79), 0.11)
        p.disc(3, (x, 0.79), 0.05)
    p.line(3, (0.6, 0.93), (1.46, 0.93), 0.05)
    return p


def _car_ahead() -> _Painter:
    p = _Painter(1.2)
    p.area(
        1,
        *((0.04, 0.5), (0.14, 0.4), (0.28, 0.06), (0.42, 0.01), (0.78, 0.01), (0.92, 0.06), (1.06, 0.4)),
        *((1.16, 0.5), (1.16, 0.88), (0.04, 0.88)),
    )
    p.area(2, (0.24, 0.38), (0.34, 0.1), (0.86, 0.1), (0.96, 0.38))
    p.area(3, (0.1, 0.52), (0.3, 0.52), (0.3, 0.64), (0.1, 0.62))
    p.area(3, (0.9, 0.52), (1.1, 0.52), (1.1, 0.62), (0.9, 0.64))
    p.area(3, (0.4, 0.6), (0.8, 0.6), (0.8, 0.76), (0.4, 0.76))
    for x in (0.16, 1.04):
        p.area(1, (x - 0.11, 0.8), (x + 0.11, 0.8), (x + 0.11, 0.99), (x - 0.11, 0.99))
    return p


def _van() -> _Painter:
    p = _Painter(2.1)
    p.area(1, (0.03, 0.86), (0.03, 0.5), (0.2, 0.4), (0.42, 0.06), (0.6, 0.02), (2.06, 0.02), (2.06, 0.88))
    p.area(2, (0.3, 0.38), (0.46, 0.12), (0.74, 0.12), (0.74, 0.38))
    p.area(3, (0.04, 0.54), (0.16, 0.54), (0.16, 0.66), (0.04, 0.66))
    for x in (0.42, 1.7):
        p.disc(3, (x, 0.86), 0.12)
    return p


_PAINTERS: dict[str, Callable[[], _Painter]] = {
    "walking 0": lambda: _person(0.0, 0.01),
    "walking 1": lambda: _person(0.06, 0.035),
    "walking 2": lambda: _person(0.1, 0.05),
    "standing": lambda: _person(0.02, 0.0),
    "sitting": _sitting,
    "rider aside": _rider_aside,
    "rider ahead": _rider_ahead,
    "bicycle aside": _bicycle_aside,
    "bicycle ahead": _bicycle_ahead,
    "motorcycle aside": _motorcycle_aside,
    "motorcycle ahead": _motorcycle_ahead,
    "car aside": _car_aside,
    "car ahead": _car_ahead,
    "van": _van,
}

LOOKS: Sequence[str] = tuple(_PAINTERS)


@cache
def _master(look: str) -> Image:
    """Shares of the three parts, cut to the silhouette; (rows, columns, 3)."""
    canvas = _PAINTERS[look]().canvas
    rows, columns = np.flatnonzero(canvas.any(1)), np.flatnonzero(canvas.any(0))
    canvas = canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return np.stack([canvas == part for part in (1, 2, 3)], axis=-1).astype(np.float32)


def width_over_height(look: str) -> float:
    """Of the silhouette."""
    rows, columns, _ = _master(look).shape
    return float(columns / rows)


@lru_cache(maxsize=20_000)
def sprite(look: str, width: int, height: int, mirrored: bool) -> Sprite:
    """The silhouette in whole pixels."""
    parts = cv2.resize(_master(look), (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, 3)
    parts = np.ascontiguousarray(parts[:, ::-1] if mirrored else parts).transpose(2, 0, 1)
    cover = parts.sum(axis=0)
    return Sprite(cover, np.ascontiguousarray(parts / np.maximum(cover, 1e-6)), cover > 0.35)
