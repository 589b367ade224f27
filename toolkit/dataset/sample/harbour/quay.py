"""What never moves: water, quay, houses, the mast and its rigging in front, as surfaces with temperatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from toolkit.dataset.sample.harbour.geometry import DEPTH, FOCAL, HORIZON, foot
from toolkit.dataset.sample.harbour.weather import Weather
from toolkit.dataset.sample.layout import HEIGHT, WIDTH

Image = npt.NDArray[np.float32]
Point = tuple[float, float]

FINE = 3
"""Surfaces are painted so many times larger, for smooth edges."""

SKY, FAR, WALL, WINDOW, ROOF, ASPHALT, CONCRETE, WATER, PAINT, TREE, METAL, LAMP, PANEL, PLANK = range(14)

# Temperature above the air, kelvin: (always, of full stored sun, of a clear sky at night and day).
_SURFACES: dict[int, tuple[float, float, float]] = {
    SKY: (-3.0, 0.0, -7.0),
    FAR: (0.5, 6.0, -1.0),
    WALL: (2.4, 11.0, -1.5),
    WINDOW: (5.0, 4.0, -2.0),
    ROOF: (-1.0, 15.0, -11.0),
    ASPHALT: (1.5, 21.0, -2.0),
    CONCRETE: (2.6, 15.0, -2.0),
    PAINT: (3.0, 16.0, -2.2),
    TREE: (-0.5, 2.0, -2.0),
    METAL: (-0.5, 9.0, -5.0),
    LAMP: (7.0, 5.0, -1.0),
    PANEL: (4.0, 13.0, -1.0),
    PLANK: (-0.8, 13.0, -5.0),
}

MAST = (1.8, 8.0, -1.2)
WIRES = (-2.0, 4.0, -9.0)


@dataclass(frozen=True)
class Quay:
    """The fixed scene.

    Attributes:
        shares: (14, 288, 384) float32, the share of each surface in each pixel, 0 to 1.
        texture: (288, 384) float32, what a surface departs from its mean, kelvin at a stored sun of 0.
        sunlit: (288, 384) float32, the same at a stored sun of 1.
        mast: (288, 384) float32, how much of a pixel the mast hides, 0 to 1.
        shade: (288, 384) float32, the mast's roundness, kelvin.
        wires: (288, 384) float32, how much of a pixel the rigging hides, 0 to 1.
        water: (288, 384) float32, the share of water.
    """

    shares: Image
    texture: Image
    sunlit: Image
    mast: Image
    shade: Image
    wires: Image
    water: Image


@lru_cache(maxsize=1)
def quay() -> Quay:
    """The scene, which is the same for every sample: the camera never moves."""
    rng = np.random.default_rng(20200514)
    surfaces = _paint_surfaces(rng)
    shares = np.stack([_reduce((surfaces == k).astype(np.float32)) for k in range(14)])
    smooth = _smooth(rng, 7, 5, 1.3) + _smooth(rng, 24, 16, 0.5) + _smooth(rng, 90, 60, 0.35)
    grain = cv2.GaussianBlur(rng.standard_normal((HEIGHT, WIDTH)).astype(np.float32), (0, 0), 0.7) * 0.55
    streaks = cv2.GaussianBlur(rng.standard_normal((1, WIDTH)).astype(np.float32), (0, 0), 1.5)
    upright = shares[WALL] + shares[PANEL] + shares[FAR]
    texture = smooth + grain * (1 - 0.8 * shares[SKY]) + 1.1 * streaks * upright
    mast, shade = _paint_mast()
    return Quay(
        shares=shares,
        texture=texture.astype(np.float32),
        sunlit=(_smooth(rng, 5, 4, 3.0) * (1 - shares[SKY])).astype(np.float32),
        mast=mast,
        shade=shade,
        wires=_paint_wires(),
        water=shares[WATER],
    )


def temperatures(scene: Quay, now: Weather) -> Image:
    """Temperature of the empty scene without mast and rigging, degrees Celsius; (288, 384) float32."""
    # Rain wets every surface and brings it near the air.
    wet = 1 - 0.6 * now.rain
    levels = np.array([now.air + wet * excess(_SURFACES.get(k, (0, 0, 0)), now) for k in range(14)])
    levels[WATER] = 0.8 * now.sea + 0.2 * now.air - 1.5 * (1 - now.cloud)
    image = np.tensordot(levels.astype(np.float32), scene.shares, axes=1)
    return np.asarray(image + wet * (scene.texture + now.stored * scene.sunlit), np.float32)


def excess(surface: tuple[float, float, float], now: Weather) -> float:
    """What a dry surface is warmer than the air, kelvin."""
    always, of_sun, of_sky = surface
    return always + of_sun * now.stored + of_sky * (1 - now.cloud)


def _smooth(rng: np.random.Generator, rows: int, columns: int, kelvin: float) -> Image:
    coarse = rng.standard_normal((rows, columns)).astype(np.float32) * kelvin
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.float32)


def _reduce(fine: Image) -> Image:
    return cv2.resize(fine, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float32)


def _along(across: float, near: float, far: float) -> list[Point]:
    """The two ends, in fine pixels, of a line along the quay; distances in metres."""
    columns, rows = foot(np.array([across, across]), np.array([near, far]))
    return [(float(x) * FINE, float(y) * FINE) for x, y in zip(columns, rows, strict=True)]


class _Surfaces:
    """The canvas of surfaces; coordinates in fine pixels, or in metres on the quay."""

    def __init__(self) -> None:
        self.canvas = np.full((HEIGHT * FINE, WIDTH * FINE), SKY, np.uint8)

    def area(self, surface: int, points: Sequence[Point]) -> None:
        cv2.fillPoly(self.canvas, [np.array(points, np.float64).round().astype(np.int32)], surface)

    def block(self, surface: int, x1: float, y1: float, x2: float, y2: float) -> None:
        self.area(surface, [(x1, y1), (x2, y1), (x2, y2), (x1, y2)])

    def line(self, surface: int, points: Sequence[Point], width: int) -> None:
        cv2.polylines(self.canvas, [np.array(points).round().astype(np.int32)], False, surface, width)

    def box(
        self, surface: int, across: float, distance: float, width: float, high: float, low: float
    ) -> None:
        """An upright rectangle on the quay, everything in metres."""
        x, y = _along(across, distance, distance)[0]
        size = FOCAL * FINE / distance
        self.block(surface, x - width * size / 2, y - high * size, x + width * size / 2, y - low * size)


def _paint_surfaces(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    paint = _Surfaces()
    _paint_skyline(rng, paint)
    _paint_ground(paint)
    _paint_right_side(rng, paint)
    _paint_furniture(paint)
    return paint.canvas


def _paint_ground(paint: _Surfaces) -> None:
    end = DEPTH / (70 - HORIZON)  # metres at row 70: the far end of the quay
    paint.block(FAR, 0, 195, 1152, 222)
    paint.area(ASPHALT, [*_along(0, 20, end), *_along(60, 20, end)[::-1]])
    paint.area(WATER, [(0, 226), (130, 226), *_along(-0.15, end, 30), (0, 864)])
    paint.block(CONCRETE, 0, 222, 132, 229)
    paint.area(CONCRETE, [*_along(-0.55, 30, end), *_along(0.9, 30, end)[::-1]])
    paint.line(PLANK, _along(-0.5, 30, end), 5)
    paint.line(METAL, _along(0.02, 30, end), 6)
    for across, surface, width in ((2.4, PAINT, 3), (7.6, PAINT, 5), (13.0, CONCRETE, 9)):
        paint.line(surface, _along(across, 30, end), width)


def _paint_furniture(paint: _Surfaces) -> None:
    """Railing, benches, marks on the ground, lamps, and the gangway in the corner."""
    for metres in np.linspace(38, 250, 26).tolist():
        paint.box(METAL, 0.02, metres, 0.12, 0.9, 0)
    for across, distance, width, height in (
        (1.7, 63.0, 1.0, 1.3),
        (3.3, 88.0, 1.3, 1.4),
        (2.0, 120.0, 2.2, 0.7),
        (1.4, 50.0, 0.9, 0.8),
        (1.2, 150.0, 3.0, 0.8),
        (4.6, 175.0, 2.5, 1.2),
        (9.4, 130.0, 2.6, 0.8),
        (10.5, 95.0, 1.8, 0.7),
    ):
        paint.box(CONCRETE, across, distance, width, height, 0)
        paint.box(PAINT, across, distance, width, height, 0.85 * height)
    for across, distance in ((2.9, 46), (3.1, 58), (2.7, 70), (8.3, 60), (8.1, 82), (3.0, 105)):
        paint.box(PAINT, across, distance, 0.7, 0.12, 0)
    for x, top, bottom in (
        (1002, 190, 400),
        (765, 200, 372),
        (476, 192, 282),
        (420, 190, 250),
        (622, 188, 270),
    ):
        paint.block(METAL, x - 4, top, x + 4, bottom)
        paint.block(LAMP, x - 7, top + 8, x + 6, top + 26)
    paint.area(PLANK, [(0, 858), (330, 836), (425, 822), (438, 834), (330, 864), (0, 864)])
    paint.line(METAL, [(300, 864), (350, 700), (412, 850)], 8)


def _paint_skyline(rng: np.random.Generator, paint: _Surfaces) -> None:
    paint.block(FAR, 0, 118, 132, 226)
    paint.block(FAR, 150, 84, 240, 226)
    paint.block(WALL, 195, 58, 340, 226)
    paint.block(ROOF, 195, 56, 340, 74)
    paint.block(WALL, 352, 62, 1152, 226)
    paint.block(FAR, 352, 40, 1152, 66)
    paint.area(ROOF, [(0, 124), (60, 120), (128, 118), (128, 134), (0, 136)])
    for x1, y1, x2, y2 in (
        (436, 94, 494, 178),
        (556, 86, 622, 182),
        (742, 70, 862, 160),
        (924, 64, 1008, 104),
    ):
        paint.block(PANEL, x1 - 7, y1 - 7, x2 + 7, y2 + 7)
        paint.block(WINDOW, x1, y1, x2, y2)
    for x in range(8, 126, 18):
        for y in range(140, 200, 17):
            paint.block(WINDOW, x, y, x + 11, y + 9)
    for x in range(158, 334, 20):
        for y in range(92, 160, 19):
            if rng.random() < 0.7:
                paint.block(WINDOW, x, y, x + 12, y + 9)
    crown = [(262, 168), (268, 130), (284, 112), (300, 108), (314, 126), (322, 150), (340, 170)]
    paint.area(TREE, crown)
    for x in range(0, 420, 9):
        paint.area(TREE, [(x, 200), (x + 4, 200 - int(rng.integers(6, 34))), (x + 11, 200)])


def _paint_right_side(rng: np.random.Generator, paint: _Surfaces) -> None:
    end = DEPTH / (72 - HORIZON)
    (near, far) = _along(16.0, 70, end)
    paint.area(WALL, [(far[0], 196), (1152, 226), (1152, near[1] + 10), near, far])
    for x in range(int(far[0]) + 20, 1152, 29):
        width = int(rng.integers(8, 22))
        low = far[1] + (near[1] - far[1]) * (x - far[0]) / (near[0] - far[0])
        top = 200 + (x - far[0]) * 0.035
        paint.block(PANEL if rng.random() < 0.55 else WINDOW, x, top + 0.25 * (low - top), x + width, low)
    paint.area(ROOF, [(705, 222), (985, 96), (1060, 66), (1152, 48), (1152, 230)])
    paint.area(WALL, [(1062, 30), (1152, 20), (1152, 46), (1062, 64)])
    paint.area(PLANK, [(960, 430), (1152, 425), (1152, 452), (962, 456)])
    for x in range(966, 1150, 12):
        paint.block(METAL, x, 424, x + 3, 520 + (x - 966) * 0.3)


def _paint_mast() -> tuple[Image, Image]:
    fine = np.zeros((HEIGHT * FINE, WIDTH * FINE), np.float32)
    cv2.fillPoly(fine, [np.array([(512, 0), (556, 0), (590, 864), (543, 864)], np.int32)], 1.0)
    cv2.fillPoly(fine, [np.array([(522, 640), (598, 640), (598, 652), (522, 652)], np.int32)], 1.0)
    for x in (526, 592):
        cv2.fillPoly(
            fine, [np.array([(x - 9, 676), (x + 9, 676), (x + 12, 724), (x - 6, 740)], np.int32)], 1.0
        )
    mast = _reduce(fine)
    columns = (
        np.arange(WIDTH, dtype=np.float32)[None] - np.linspace(178, 189, HEIGHT, dtype=np.float32)[:, None]
    )
    shade = (1.4 * np.cos(columns / 8.0 * np.pi / 2) - 0.7).astype(np.float32)
    shade[212:247] += cv2.resize(np.array([[-1.0, 0.8, -0.6, 0.5]], np.float32), (WIDTH, 35))[:, :] * 0.5
    return mast, shade


def _paint_wires() -> Image:
    fine = np.zeros((HEIGHT * FINE, WIDTH * FINE), np.float32)
    # Two shrouds, stays beside them, and thin halyards that swing towards the quay.
    for x1, y1, x2, y2, width in (
        (614, 12, 758, 864, 6),
        (688, 12, 800, 864, 6),
        (706, 14, 846, 630, 2),
        (672, 30, 690, 180, 2),
        (358, 24, 246, 730, 4),
        (348, 24, 276, 440, 2),
        (337, 24, 284, 420, 2),
        (240, 24, 218, 250, 1),
        (958, 0, 948, 290, 2),
        (942, 400, 930, 640, 1),
        (418, 330, 524, 670, 2),
        (642, 380, 596, 680, 2),
        (478, 24, 482, 70, 1),
    ):
        cv2.line(fine, (x1, y1), (x2, y2), 1.0, width, cv2.LINE_AA)
    return _reduce(fine)
