"""The picture that a thermal camera makes of the quay, and what an annotator can see in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import cv2
import numpy as np
import numpy.typing as npt

from toolkit.dataset.sample.harbour.quay import MAST, WIRES, Quay, excess, quay, temperatures
from toolkit.dataset.sample.harbour.sprites import LOOKS, Sprite, sprite
from toolkit.dataset.sample.harbour.tracks import (
    BICYCLE,
    MOTORCYCLE,
    PERSON,
    Tracks,
    deal,
    in_frame,
    tracks_of,
)
from toolkit.dataset.sample.harbour.weather import Weather, weather_at
from toolkit.dataset.sample.layout import HEIGHT, WIDTH, Box, Frame

Image = npt.NDArray[np.float32]

JPEG_QUALITY = 95
"""That of the real frame: its quantisation table is libjpeg's for 95."""

LEAST_VISIBLE = 0.35
"""Share of a silhouette below which an annotator does not see it."""

LEAST_PIXELS = 6

SPREAD = 46.0
"""Grey levels that the camera's gain gives to a standard deviation of the scene."""

GAIN = (5.0, 13.0)
"""Bounds of the gain, grey levels a kelvin."""

NOISE = 0.24
"""Of the sensor, kelvin; with rain on the window more."""

SHARPENING = 0.9
"""Of the camera's detail enhancement, which puts rims around edges."""


def draw(frames: Sequence[Frame], seed: int) -> Iterator[tuple[Frame, bytes, list[Box]]]:
    """JPEG and boxes of each frame; the frames of a clip follow one another."""
    clips = [list(clip) for _, clip in groupby(frames, key=lambda frame: frame.clip)]
    noise = np.random.default_rng([seed, 6]).standard_normal((HEIGHT + 96, WIDTH + 96), np.float32)
    for clip, rare in zip(clips, deal([clip[0] for clip in clips], seed), strict=True):
        yield from _draw_clip(clip, tracks_of(clip, rare, seed), noise, seed)


def _draw_clip(
    clip: Sequence[Frame], tracks: Tracks, noise: Image, seed: int
) -> Iterator[tuple[Frame, bytes, list[Box]]]:
    scene, now = quay(), weather_at(clip[0], seed)
    empty = temperatures(scene, now)
    gain = float(np.clip(SPREAD / (float(empty.std()) + 1.2), *GAIN)) * (1 - 0.25 * now.rain)
    middle = float(np.median(empty))
    warmth = _part_temperatures(tracks, now)
    mast = np.float32(now.air + excess(MAST, now)) + scene.shade
    wires = np.float32(now.air + excess(WIRES, now))
    grainy = gain * (NOISE + 0.12 * now.rain)
    ripples = np.float32(1.2 + 0.25 * min(now.wind, 8)) * cv2.GaussianBlur(noise, (0, 0), 2.5, sigmaY=0.6)
    for second, frame in enumerate(clip):
        rng = np.random.default_rng([seed, 7, frame.id])
        top, left, ripple = rng.integers(0, 96, 3).tolist()
        image = empty + scene.water * ripples[ripple : ripple + HEIGHT, top : top + WIDTH]
        shown = in_frame(tracks, second)
        sprites = [_sprite(tracks, k, second) for k in shown.tolist()]
        for k, shape in zip(shown.tolist(), sprites, strict=True):
            _paint(image, tracks.boxes[k, second], shape, warmth[k])
        image += scene.mast * (mast - image)
        image += scene.wires * (wires - image)
        grey = 118 + gain * (image - np.float32(middle))
        grey += np.float32(SHARPENING) * (grey - cv2.GaussianBlur(grey, (0, 0), 1.4))
        grey += np.float32(grainy) * noise[top : top + HEIGHT, left : left + WIDTH]
        ok, data = cv2.imencode(
            ".jpg", np.clip(grey, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        assert ok
        yield frame, data.tobytes(), _boxes(tracks, second, shown, sprites, scene)


def boxes_of(clip: Sequence[Frame], rare: Mapping[str, int], seed: int) -> list[list[Box]]:
    """The boxes of each frame of a clip, without drawing it."""
    tracks, scene = tracks_of(clip, dict(rare), seed), quay()
    found = []
    for second in range(len(clip)):
        shown = in_frame(tracks, second)
        sprites = [_sprite(tracks, k, second) for k in shown.tolist()]
        found.append(_boxes(tracks, second, shown, sprites, scene))
    return found


def _sprite(tracks: Tracks, k: int, second: int) -> Sprite:
    x1, y1, x2, y2 = tracks.boxes[k, second].tolist()
    return sprite(LOOKS[tracks.looks[k, second]], x2 - x1, y2 - y1, bool(tracks.mirrored[k]))


def _part_temperatures(tracks: Tracks, now: Weather) -> Image:
    """Temperatures of the three parts of each object, degrees Celsius; (n, 3) float32."""
    wet = 1 - 0.35 * now.rain
    clothed = 30.0 - 0.52 * (30.0 - now.air)
    person = (32.5 - 0.2 * (32.5 - now.air), clothed + 3.5 * now.sun, clothed + 1.5 + 6.0 * now.sun)
    metal = now.air + excess((0.8, 9.0, -3.0), now)
    bicycle = (metal + 1.0, metal + 1.5, metal + 2.0)
    motorcycle = (metal + 0.5, metal + 2.0, now.air + 16.0)
    car = (
        now.air + excess((2.5, 12.0, -2.0), now),
        now.air + excess((-1.0, 5.0, -8.0), now),
        now.air + excess((7.0, 10.0, 0.0), now),
    )
    kinds = {PERSON: person, BICYCLE: bicycle, MOTORCYCLE: motorcycle}
    parts = np.array([kinds.get(label, car) for label in tracks.labels.tolist()], np.float32).reshape(-1, 3)
    spread = np.where(tracks.labels == PERSON, 1.3, 2.0)[:, None] * np.array([0.5, 1.0, 1.0])
    warm = parts + (spread * tracks.warmth[:, None]).astype(np.float32)
    return np.asarray(now.air + wet * (warm - now.air), np.float32)


def _paint(image: Image, box: npt.NDArray[np.int64], shape: Sprite, parts: Image) -> None:
    x1, y1, x2, y2 = box.tolist()
    left, top = max(x1, 0), max(y1, 0)
    right, bottom = min(x2, WIDTH), min(y2, HEIGHT)
    rows, columns = slice(top - y1, bottom - y1), slice(left - x1, right - x1)
    weights = shape.parts[:, rows, columns]
    surface = parts[0] * weights[0] + parts[1] * weights[1] + parts[2] * weights[2]
    under = image[top:bottom, left:right]
    under += shape.cover[rows, columns] * (surface - under)


def _boxes(
    tracks: Tracks, second: int, shown: npt.NDArray[np.int64], sprites: Sequence[Sprite], scene: Quay
) -> list[Box]:
    """Of what is seen: the visible part, whole pixels, if enough of the object is visible."""
    owner = np.full((HEIGHT, WIDTH), -1, np.int32)
    places = []
    for k, shape in zip(shown.tolist(), sprites, strict=True):
        x1, y1, x2, y2 = tracks.boxes[k, second].tolist()
        left, top = max(x1, 0), max(y1, 0)
        right, bottom = min(x2, WIDTH), min(y2, HEIGHT)
        solid = shape.solid[top - y1 : bottom - y1, left - x1 : right - x1]
        owner[top:bottom, left:right][solid] = k
        places.append((k, left, top, right, bottom, shape.solid.sum()))
    owner[scene.mast > 0.5] = -1
    boxes: list[Box] = []
    for k, left, top, right, bottom, whole in places:
        seen = owner[top:bottom, left:right] == k
        count = int(seen.sum())
        if count < max(LEAST_VISIBLE * whole, LEAST_PIXELS):
            continue
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        x, y = left + int(columns[0]), top + int(rows[0])
        w, h = int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1
        boxes.append((int(tracks.labels[k]), [float(x), float(y), float(w), float(h)]))
    return boxes
