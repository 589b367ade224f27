"""Few and large objects in a street: what a tiny model learns within seconds.

Frames are thermal in kind: warm shapes on a cool ground in winter. As the air warms over the months the
contrast shrinks, and in high summer it turns round (a person is colder than sunlit asphalt), so a detector
that has seen only some months loses accuracy on the others, as it does on LTDv2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from submission.validate import LABELS
from toolkit.dataset.sample.layout import HEIGHT, WIDTH, Box, Frame, check_count, template_ids
from toolkit.ltdv2 import EIGHT_MONTHS, TEST_MONTHS

Image = npt.NDArray[np.float32]

JPEG_QUALITY = 97

AIR = {
    "202101": -1.0,
    "202102": 1.0,
    "202103": 5.0,
    "202104": 10.0,
    "202005": 16.0,
    "202006": 21.0,
    "202007": 28.0,
    "202008": 32.0,
    "202009": 17.0,
}
"""Air temperature of each month, degrees Celsius, at noon; nights are up to six degrees colder."""

NEUTRAL = 24.5
"""Temperature at which people and ground radiate alike: no contrast. Above it the polarity is inverted."""

FREQUENCIES = {1: 0.42, 2: 0.18, 3: 0.14, 4: 0.26}
"""How often each label is drawn."""

HEIGHTS = {1: (52, 110), 2: (40, 72), 3: (44, 76), 4: (48, 96)}
"""Range of box heights, pixels."""

ASPECTS = {1: 0.42, 2: 1.55, 3: 1.45, 4: 2.1}
"""Width of a box over its height."""


def _air(frame: Frame) -> float:
    """Air temperature: the month's at 14 h, six degrees less twelve hours later."""
    return AIR[frame.month] - 3.0 * (1 - float(np.cos((frame.hour - 14) / 12 * np.pi)))


def choose_frames(counts: Mapping[str, int], seed: int) -> Iterator[Frame]:
    """The frames of each split, months alike, in short clips; they do not depend on the seed."""
    for split, phase, months in (("val", "development", EIGHT_MONTHS), ("test", "testing", TEST_MONTHS)):
        clips: dict[str, dict[str, list[str]]] = {month: {} for month in AIR}
        for number in sorted(template_ids(phase)):
            # The first 13 digits are the same for the frames of one clip.
            clips[number[:6]].setdefault(number[:13], []).append(number)
        yield from _spread(split, counts[split], {m: list(clips[m].values()) for m in months})
    made_up = {
        # No id of the templates has 06 in this place.
        month: [[f"{month}06{clip:05d}{4000 + i:04d}" for i in range(120)] for clip in range(400)]
        for month in EIGHT_MONTHS
    }
    yield from _spread("train", counts["train"], made_up)


def _spread(split: str, count: int, clips: dict[str, list[list[str]]]) -> Iterator[Frame]:
    """``count`` frames, months alike, in short clips."""
    check_count(split, count)
    for m, (month, available) in enumerate(clips.items()):
        share = (count + len(clips) - 1 - m) // len(clips)
        length = min(max(round(share**0.5), -(-share // len(available))), 120)
        number = -(-share // length) if share else 0
        left = share
        for c in range(number):
            place = c * len(available) // number
            day, hour = 1 + (place * 7 + 3 * m) % 27, (place * 5 + len(split)) % 24
            minute = (place * 13) % 60
            clip = (
                f"{month}{day:02d}/clip_{place}_{hour:02d}{minute:02d}{'' if split == 'train' else split[0]}"
            )
            for i, identifier in enumerate(available[place][: min(length, left)]):
                yield Frame(
                    split=split,
                    id=int(identifier),
                    clip=clip,
                    name=f"frames/{clip}/image_{i:04d}.jpg",
                    date=f"{month[:4]}-{month[4:]}-{day:02d}T{hour:02d}:{minute:02d}:{i % 60:02d}",
                    month=month,
                    hour=hour,
                    place=i,
                )
            left -= length


def meta(frame: Frame, seed: int) -> dict[str, float]:
    """The weather at a frame, which does not depend on the seed."""
    air = _air(frame)
    sun = max(0.0, float(np.cos((frame.hour - 13) / 8 * np.pi / 2))) if abs(frame.hour - 13) < 8 else 0.0
    return {
        "Temperature": round(air, 1),
        "Humidity": round(92 - 1.2 * max(air, 0) - 20 * sun, 1),
        "Precipitation": round(max(0.0, (frame.id // 10_000 % 17) - 13) / 10, 1),
        "Dew Point": round(air - 4, 1),
        "Wind Direction": frame.id // 10_000 % 360,
        "Wind Speed": round(1 + frame.id // 10_000 % 9 / 1.5, 1),
        "Sun Radiation Intensity": round(850 * sun, 1),
        "Min of sunshine latest 10 min": round(10 * sun, 1),
    }


def draw(frames: Sequence[Frame], seed: int) -> Iterator[tuple[Frame, bytes, list[Box]]]:
    """JPEG and boxes (COCO x, y, width, height, whole pixels) of each frame; clips come whole."""
    noise = np.random.default_rng(seed).standard_normal((HEIGHT + 96, WIDTH + 96), np.float32)
    shapes = {label: _shape(label) for label in LABELS}
    clip, scene = "", None
    for frame in frames:
        if scene is None or frame.clip != clip:
            digits = [int(d) for d in str(frame.id)[:13]]
            clip, scene = frame.clip, _Scene(np.random.default_rng([seed, *digits]), frame)
        image, boxes = scene.frame(frame.place, shapes)
        rng = np.random.default_rng([seed, frame.id])
        top, left = rng.integers(0, 96, 2)
        image = image + scene.noise * noise[top : top + HEIGHT, left : left + WIDTH]
        ok, data = cv2.imencode(
            ".jpg", np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        )
        assert ok
        yield frame, data.tobytes(), boxes


class _Scene:
    """Background and moving objects of one clip."""

    def __init__(self, rng: np.random.Generator, frame: Frame) -> None:
        contrast = (NEUTRAL - _air(frame)) * 4.6 * rng.uniform(0.85, 1.15)
        # The camera's gain control keeps a little contrast whatever the weather.
        self.contrast = float(np.copysign(max(abs(contrast), 26.0), contrast))
        self.noise = float(rng.uniform(2.0, 4.0))
        level = 78 + (AIR[frame.month] + 1) * 2.3 + rng.uniform(-10, 10)
        self.ground = _background(rng, level)
        self.objects: list[tuple[int, float, float, float, float, bool]] = []
        labels = rng.choice(list(FREQUENCIES), size=int(rng.integers(3, 8)), p=list(FREQUENCIES.values()))
        for label in labels.tolist():
            height = rng.uniform(*HEIGHTS[label])
            width = height * ASPECTS[label] * rng.uniform(0.9, 1.1)
            x, y = rng.uniform(-0.2 * width, WIDTH - 0.8 * width), rng.uniform(70, HEIGHT - height - 2)
            speed = rng.uniform(-1, 1) * (1.5 if label == 1 else 4.0)
            self.objects.append((label, x, y, width, height, speed > 0))
        self.speeds = rng.uniform(0.3, 1.0, len(labels))

    def frame(self, place: int, shapes: dict[int, Image]) -> tuple[Image, list[Box]]:
        """The picture at a moment of the clip, and the boxes of what can be seen well."""
        image = self.ground.copy()
        boxes: list[Box] = []
        taken: list[tuple[int, int, int, int]] = []
        for (label, x, y, width, height, right), speed in zip(self.objects, self.speeds, strict=True):
            step = place * speed * (1.5 if label == 1 else 5.0) * (1 if right else -1)
            w, h = round(width), round(height)
            left, top = round(x + step), round(y)
            x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + w, WIDTH), min(top + h, HEIGHT)
            if (x2 - x1) < 0.6 * w or any(_overlap((x1, y1, x2, y2), other) > 0.15 for other in taken):
                continue
            shape = shapes[label] if right else shapes[label][:, ::-1]
            patch = cv2.resize(shape, (w, h), interpolation=cv2.INTER_AREA)
            patch = patch[y1 - top : y2 - top, x1 - left : x2 - left]
            image[y1:y2, x1:x2] += self.contrast * patch
            taken.append((x1, y1, x2, y2))
            boxes.append((label, [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]))
        return image, boxes


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over the smaller area."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(w, 0) * max(h, 0) / smaller


def _background(rng: np.random.Generator, level: float) -> Image:
    """A street: cold sky, buildings, a ground that is smoothly uneven, a road. Grey levels, (288, 384)."""
    horizon = int(rng.integers(50, 90))
    rows = np.linspace(-22, 14, HEIGHT, dtype=np.float32)[:, None]
    coarse = rng.standard_normal((7, 9)).astype(np.float32) * 6
    ground = level + rows + cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    ground[:horizon] -= 26
    for _ in range(int(rng.integers(2, 6))):
        x, w = int(rng.integers(0, WIDTH)), int(rng.integers(30, 110))
        top = int(rng.integers(4, horizon))
        ground[top : horizon + 14, x : x + w] = level - rng.uniform(2, 18)
        for wx in range(x + 6, min(x + w, WIDTH) - 8, 14):
            ground[top + 6 : horizon : 16, wx : wx + 6] += 10
    vanish, width = rng.uniform(0.2, 0.8) * WIDTH, rng.uniform(120, 260)
    foot = rng.uniform(0.2, 0.8) * WIDTH
    road = np.array(
        [(vanish - 8, horizon), (vanish + 8, horizon), (foot + width, HEIGHT), (foot - width, HEIGHT)],
        np.int32,
    )
    mask = cv2.fillPoly(np.zeros((HEIGHT, WIDTH), np.float32), [road], 1.0)
    ground += cv2.GaussianBlur(mask, (0, 0), 2) * rng.uniform(4, 12)
    stripes = rng.standard_normal((1, WIDTH)).astype(np.float32) * 0.8  # the sensor's columns differ a little
    return (cv2.GaussianBlur(ground, (0, 0), 1.2) + stripes).astype(np.float32)


# Long: drawings, one stroke a line.
def _shape(label: int) -> Image:
    """An object's excess temperature, 1 for its warm parts, on a canvas that is exactly its box."""
    size = (int(160 * ASPECTS[label]), 160)
    w, h = size
    canvas = np.zeros((h, w), np.float32)

    def at(x: float, y: float) -> tuple[int, int]:
        return round(x * w), round(y * h)

    def disc(x: float, y: float, radius: float, value: float, thickness: int = -1) -> None:
        cv2.circle(canvas, at(x, y), round(radius * h), value, thickness)

    def line(x1: float, y1: float, x2: float, y2: float, value: float, thickness: float) -> None:
        cv2.line(canvas, at(x1, y1), at(x2, y2), value, round(thickness * h))

    def area(points: Sequence[tuple[float, float]], value: float) -> None:
        cv2.fillPoly(canvas, [np.array([at(*p) for p in points], np.int32)], value)

    if label == 1:
        line(0.42, 0.55, 0.26, 0.97, 0.7, 0.075)
        line(0.58, 0.55, 0.76, 0.97, 0.7, 0.075)
        line(0.32, 0.25, 0.13, 0.55, 0.65, 0.06)
        line(0.68, 0.25, 0.88, 0.52, 0.65, 0.06)
        area([(0.26, 0.19), (0.74, 0.19), (0.68, 0.6), (0.32, 0.6)], 0.85)
        disc(0.5, 0.09, 0.09, 1.15)
    elif label == 2:
        for x in (0.22, 0.78):
            disc(x, 0.66, 0.30, 0.75, 9)
            disc(x, 0.66, 0.04, 0.6)
        for a, b in (
            ((0.22, 0.66), (0.4, 0.26)),
            ((0.4, 0.26), (0.7, 0.22)),
            ((0.4, 0.26), (0.5, 0.68)),
            ((0.22, 0.66), (0.5, 0.68)),
            ((0.5, 0.68), (0.7, 0.22)),
            ((0.78, 0.66), (0.68, 0.08)),
        ):
            line(*a, *b, 0.85, 0.05)
        line(0.6, 0.06, 0.76, 0.06, 0.9, 0.06)
        line(0.32, 0.2, 0.46, 0.2, 0.9, 0.07)
    elif label == 3:
        for x in (0.19, 0.81):
            disc(x, 0.72, 0.26, 0.55)
            disc(x, 0.72, 0.10, 0.15)
        area(
            [(0.02, 0.3), (0.42, 0.34), (0.72, 0.2), (0.8, 0.45), (0.62, 0.72), (0.34, 0.72), (0.24, 0.5)],
            0.8,
        )
        disc(0.48, 0.66, 0.16, 1.4)
        line(0.34, 0.9, 0.02, 0.86, 1.3, 0.06)
        line(0.7, 0.3, 0.66, 0.03, 0.8, 0.07)
    else:
        area([(0.18, 0.45), (0.3, 0.02), (0.72, 0.02), (0.86, 0.45)], 0.65)
        area([(0.25, 0.42), (0.34, 0.1), (0.49, 0.1), (0.49, 0.42)], -0.25)
        area([(0.53, 0.42), (0.53, 0.1), (0.68, 0.1), (0.78, 0.42)], -0.25)
        area([(0.0, 0.42), (0.98, 0.42), (1.0, 0.82), (0.0, 0.82)], 0.7)
        area([(0.84, 0.48), (1.0, 0.48), (1.0, 0.76), (0.84, 0.76)], 1.3)
        for x in (0.22, 0.78):
            disc(x, 0.81, 0.18, 0.95)
            disc(x, 0.81, 0.09, 0.3)
    return cv2.GaussianBlur(canvas, (0, 0), 2.2).astype(np.float32)
