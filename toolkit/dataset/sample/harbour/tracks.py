"""Who is on the quay in a clip, and where in each of its seconds.

Counts give LTDv2's shares of boxes: 84 % persons, 10 % vehicles, 4 % bicycles, 0.5 % motorcycles. Rare
objects are dealt to clips one after the other rather than drawn for each, so that a small sample has its
share too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from toolkit.dataset.sample.harbour.geometry import foot, scale
from toolkit.dataset.sample.harbour.sprites import LOOKS, width_over_height
from toolkit.dataset.sample.layout import WIDTH, Frame
from toolkit.ltdv2 import EIGHT_MONTHS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PERSON, BICYCLE, MOTORCYCLE, VEHICLE = 1, 2, 3, 4

SEASON = dict(zip((*EIGHT_MONTHS, "202009"), (0.5, 0.55, 0.7, 0.95, 1.25, 1.5, 1.45, 1.3, 1.0), strict=True))
"""How many people a month brings, against the mean of the year."""

RIDDEN_MOTORCYCLES = dict(
    zip((*EIGHT_MONTHS, "202009"), (0.5, 0.6, 0.7, 1.0, 1.2, 1.4, 1.3, 1.3, 1.0), strict=True)
)

NO_MOTORCYCLE = {("val", "202101"), ("val", "202007")}
"""LTDv2's validation split has no motorcycle in January and July."""

FEW_MOTORCYCLES = {("val", month) for month in ("202102", "202103", "202005")}
"""Published AP is about 0 in these months of the validation split."""

BAYS = ((4.0, 63.5), (4.4, 56.9), (4.6, 51.6), (4.9, 43.5), (4.3, 37.0))
"""Parked cars in front: metres from the edge, metres from the camera."""

RATES = {
    "standing bicycle": 0.22,
    "ridden bicycle": 0.20,
    "standing motorcycle": 0.018,
    "ridden motorcycle": 0.036,
    "parked car": 0.58,
    "far car": 0.15,
    "driven car": 0.14,
}
"""Expected number in a clip."""


@dataclass(frozen=True)
class Tracks:
    """Objects of one clip, each with a place in every second.

    Attributes:
        labels: (n,) int64, the challenge's labels.
        looks: (n, seconds) int64, number of the silhouette in ``sprites.LOOKS``.
        mirrored: (n,) bool.
        warmth: (n,) float64, what the object departs from others of its kind, standard deviations.
        boxes: (n, seconds, 4) int64, left, top, right, bottom of the whole silhouette, which may be outside
            the frame.
        nearness: (n, seconds) float64, 1 / metres; a larger one is in front.
    """

    labels: Ints
    looks: Ints
    mirrored: npt.NDArray[np.bool_]
    warmth: Floats
    boxes: Ints
    nearness: Floats


@dataclass
class _Clip:
    """Collects objects; ``seconds`` is (T,) from 0."""

    rng: np.random.Generator
    seconds: Floats
    rows: list[tuple[int, Ints, bool, float, Floats, Floats, float, float]] = field(default_factory=list)

    def add(
        self,
        label: int,
        looks: str | Ints,
        height: float,
        across: Floats | float,
        distance: Floats | float,
        mirrored: bool = False,
        lift: float = 0.0,
    ) -> None:
        """Add an object of ``height`` metres, ``lift`` metres above the ground."""
        n = len(self.seconds)
        numbers = np.full(n, LOOKS.index(looks)) if isinstance(looks, str) else looks
        where = (np.broadcast_to(np.asarray(v, np.float64), (n,)) for v in (across, distance))
        self.rows.append((label, numbers, mirrored, float(self.rng.normal()), *where, height, lift))  # type: ignore[arg-type]

    def tracks(self) -> Tracks:
        """All of them, as columns."""
        n, t = len(self.rows), len(self.seconds)
        if not n:
            empty = np.zeros((0, t))
            none = np.zeros(0)
            return Tracks(
                none.astype(int), empty.astype(int), none > 0, none, np.zeros((0, t, 4), int), empty
            )
        looks = np.stack([row[1] for row in self.rows])
        across, distance = (np.stack([row[k] for row in self.rows]) for k in (4, 5))
        height, lift = (np.array([row[k] for row in self.rows])[:, None] for k in (6, 7))
        size = scale(distance)
        columns, rows = foot(across, distance)
        aspects = np.array([width_over_height(look) for look in LOOKS])[looks]
        tall = np.maximum(np.rint(height * size), 3).astype(np.int64)
        wide = np.maximum(np.rint(height * size * aspects), 2).astype(np.int64)
        left = np.rint(columns - wide / 2).astype(np.int64)
        bottom = np.rint(rows - lift * size).astype(np.int64)
        boxes = np.stack([left, bottom - tall, left + wide, bottom], axis=-1)
        return Tracks(
            labels=np.array([row[0] for row in self.rows], np.int64),
            looks=looks,
            mirrored=np.array([row[2] for row in self.rows]),
            warmth=np.array([row[3] for row in self.rows]),
            boxes=boxes,
            nearness=1 / distance,
        )


def deal(clips: Sequence[Frame], seed: int) -> list[dict[str, int]]:
    """How many of each rare kind a clip has: their expected numbers, rounded so that they add up.

    Args:
        clips: the first frame of each clip.
        seed: of the sample.
    """
    dealt: list[dict[str, int]] = [{} for _ in clips]
    for k, (kind, rate) in enumerate(RATES.items()):
        expected = np.array([rate * _share(kind, clip) for clip in clips])
        offset = np.random.default_rng([seed, 3, k]).random()
        # In an order of its own for each kind: else all rare objects meet in the same clips.
        order = np.random.default_rng([seed, 4, k]).permutation(len(clips))
        reached = np.floor(np.cumsum(expected[order]) + offset).astype(int)
        for place, number in zip(order.tolist(), np.diff(reached, prepend=0).tolist(), strict=True):
            dealt[place][kind] = min(number, len(BAYS)) if kind == "parked car" else number
    return dealt


def _share(kind: str, clip: Frame) -> float:
    """The expected number in this clip, against the mean."""
    if "motorcycle" in kind:
        where = (clip.split, clip.month)
        few = 0.0 if where in NO_MOTORCYCLE else 0.4 if where in FEW_MOTORCYCLES else 1.4
        of_split = few if clip.split == "val" else 1.0
        return RIDDEN_MOTORCYCLES[clip.month] * of_split * (0.35 + 0.65 * activity(clip))
    if kind in ("parked car", "far car"):
        return 1.0
    return activity(clip)


def activity(clip: Frame) -> float:
    """How lively the quay is, by month and hour; about 1 in the mean."""
    day = np.exp(-(((clip.hour - 15.5) / 5.5) ** 2)) * 1.6 + 0.28
    night_out = 0.9 * np.exp(-((((clip.hour + 12) % 24 - 12) / 2.0) ** 2))
    return float(SEASON[clip.month] * (day + night_out))


def tracks_of(frames: Sequence[Frame], rare: dict[str, int], seed: int) -> Tracks:
    """The objects of a clip.

    Args:
        frames: of one clip.
        rare: how many of each kind of :data:`RATES`.
        seed: of the sample.
    """
    digits = str(frames[0].id)
    rng = np.random.default_rng([seed, 5, int(digits[:8]), int(digits[8:])])
    clip = _Clip(rng, np.array([frame.place for frame in frames], np.float64))
    lively = activity(frames[0])
    _crowd(clip, lively)
    for _ in range(int(rng.poisson(1.0 * lively))):
        _group_standing(clip)
    for _ in range(int(rng.poisson(1.5 * lively))):
        _group_walking(clip)
    for _ in range(int(rng.poisson(0.45 * lively))):
        _crossing(clip)
    _cars(clip, rare)
    for _ in range(rare["standing bicycle"]):
        _standing_machine(clip, BICYCLE, "bicycle", 1.05)
    for _ in range(rare["standing motorcycle"]):
        _standing_machine(clip, MOTORCYCLE, "motorcycle", 1.2)
    for _ in range(rare["ridden bicycle"]):
        _ridden_machine(clip, BICYCLE, "bicycle", 1.05, float(rng.uniform(3.2, 6.0)))
    for _ in range(rare["ridden motorcycle"]):
        _ridden_machine(clip, MOTORCYCLE, "motorcycle", 1.2, float(rng.uniform(4.5, 8.0)))
    return clip.tracks()


def _tall(rng: np.random.Generator) -> float:
    return float(np.clip(rng.normal(1.72, 0.1), 1.1, 1.95))


def _sway(clip: _Clip, metres: float) -> Floats:
    """Someone who stands shifts a little, now and then."""
    steps = np.round(np.cumsum(clip.rng.normal(0, 0.12, len(clip.seconds))))
    return np.asarray(np.clip(steps, -2, 2) * metres, np.float64)


def _crowd(clip: _Clip, lively: float) -> None:
    """Many who stand close together at the far end, five to ten pixels tall."""
    rng = clip.rng
    if rng.random() > min(0.16 + 0.2 * lively, 0.75):
        return
    middle, width = float(rng.uniform(260, 430)), float(rng.uniform(1.5, 4.5))
    centre = float(rng.uniform(1.5, 11))
    for _ in range(int(min(2 + rng.gamma(1.3, 4.2 * (0.6 + 0.4 * lively)), 60))):
        distance = np.clip(rng.normal(middle, 24), 235, 520)
        across = np.clip(rng.normal(centre, width), 0.3, 14)
        clip.add(PERSON, "standing", _tall(rng), across + _sway(clip, 0.25), distance, rng.random() < 0.5)


def _group_standing(clip: _Clip) -> None:
    rng = clip.rng
    distance, across = _somewhere(rng), float(rng.uniform(0.3, 12.5))
    for _ in range(1 + int(rng.poisson(0.9))):
        sits = rng.random() < 0.15
        height = 0.95 if sits else _tall(rng)
        there = max(distance + rng.normal(0, 1.2), 37.0)
        beside = max(across + rng.normal(0, 0.55), 0.2)
        look = "sitting" if sits else "standing"
        clip.add(PERSON, look, height, beside + _sway(clip, 0.12), there, rng.random() < 0.5)


def _somewhere(rng: np.random.Generator) -> float:
    """Metres from the camera; few are near."""
    bounds = ((38, 52), (52, 300), (300, 430))[int(rng.choice(3, p=(0.29, 0.54, 0.17)))]
    return float(rng.uniform(*bounds))


def _group_walking(clip: _Clip) -> None:
    """One to four who walk along the quay side by side, at 1 to 1.7 m/s."""
    rng, t = clip.rng, clip.seconds
    speed = float(rng.choice([-1, 1]) * rng.uniform(1.0, 1.7))
    distance, across = _passing(clip, speed), float(rng.uniform(0.8, 12))
    drift = float(rng.normal(0, 0.02))
    for k in range(1 + int(rng.poisson(0.7))):
        phase = rng.integers(0, 3)
        looks = np.array([LOOKS.index(f"walking {i}") for i in range(3)])[(t.astype(int) * 2 + phase) % 3]
        beside = across + 0.65 * k + drift * t + 0.08 * np.sin(t / 3 + k)
        clip.add(PERSON, looks, _tall(rng), np.maximum(beside, 0.3), distance + rng.normal(0, 0.4), speed > 0)


def _passing(clip: _Clip, speed: float) -> Floats:
    """Metres from the camera of what is somewhere on the quay at a moment of the clip and goes on."""
    rng, t = clip.rng, clip.seconds
    moment = float(rng.uniform(t[0], t[-1] + 1))
    return np.maximum(_somewhere(rng) + speed * (t - moment), 8.0)


def _crossing(clip: _Clip) -> None:
    """One who crosses the quay from the water to the houses, behind the mast, or back."""
    rng, t = clip.rng, clip.seconds
    speed = float(rng.choice([-1, 1]) * rng.uniform(0.9, 1.5))
    moment = float(rng.uniform(t[0], t[-1] + 1))
    across = rng.uniform(0.5, 13) + speed * (t - moment)
    inside = (across > 0.3) & (across < 15.5)
    looks = np.array([LOOKS.index(f"walking {i}") for i in range(3)])[(t.astype(int) * 2) % 3]
    # Before and after they are out of sight: far beyond the right edge.
    clip.add(PERSON, looks, _tall(rng), np.where(inside, across, 1e4), _somewhere(rng), speed < 0)


def _cars(clip: _Clip, rare: dict[str, int]) -> None:
    rng = clip.rng
    for bay in rng.permutation(len(BAYS))[: rare["parked car"]].tolist():
        across, distance = BAYS[bay]
        look = "van" if rng.random() < 0.12 else "car aside"
        height = 1.9 if look == "van" else float(rng.uniform(1.38, 1.55))
        across, distance = across + float(rng.normal(0, 0.15)), distance + float(rng.normal(0, 0.4))
        clip.add(VEHICLE, look, height, across, distance, rng.random() < 0.25)
    for _ in range(rare["far car"]):
        look = str(rng.choice(["car ahead", "car aside", "van"], p=[0.5, 0.35, 0.15]))
        where = float(rng.uniform(12.2, 14.5)), float(rng.uniform(110, 330))
        clip.add(VEHICLE, look, 2.1 if look == "van" else 1.5, *where, rng.random() < 0.5)
    for _ in range(rare["driven car"]):
        speed = float(rng.choice([-1, 1]) * rng.uniform(2.5, 6.0))
        across = 9.3 if speed > 0 else 6.6
        clip.add(VEHICLE, "car ahead", float(rng.uniform(1.42, 1.75)), across, _passing(clip, speed))


def _standing_machine(clip: _Clip, label: int, name: str, height: float) -> None:
    """Leaning at a railing or a wall, without a rider."""
    rng = clip.rng
    across = float(rng.choice([rng.uniform(0.3, 0.9), rng.uniform(12.0, 14.5), rng.uniform(2.6, 5.5)]))
    distance = float(rng.uniform(50, 270)) if label == BICYCLE else float(rng.uniform(56, 120))
    view = "aside" if rng.random() < 0.7 else "ahead"
    clip.add(label, f"{name} {view}", height, across, distance, rng.random() < 0.5)


def _ridden_machine(clip: _Clip, label: int, name: str, height: float, speed: float) -> None:
    """A rider and what is ridden: two boxes that overlap, as LTDv2 annotates them."""
    rng, t = clip.rng, clip.seconds
    distance = _passing(clip, speed * float(rng.choice([-1, 1])))
    across, view = float(rng.uniform(1.2, 10.5)), "ahead"
    if rng.random() < 0.4:
        # Slantwise over the quay: seen from the side.
        view, sideways = "aside", speed * 0.35
        across_now = across + sideways * (t - t[len(t) // 2])
        side = np.abs((across_now - 1) % 24 - 12) + 1
        clip.add(label, f"{name} aside", height, side, distance, rng.random() < 0.5)
        clip.add(PERSON, "rider aside", 1.3, side, distance - 0.05, rng.random() < 0.5, lift=0.38)
        return
    clip.add(label, f"{name} {view}", height, across, distance)
    clip.add(PERSON, "rider ahead", 1.45, across, distance - 0.05, lift=0.33)


def in_frame(tracks: Tracks, second: int) -> Ints:
    """Objects that are in the picture at a second, the farthest first."""
    left, _, right, bottom = tracks.boxes[:, second].T
    tall = bottom - tracks.boxes[:, second, 1]
    # What is nearer than the lower edge shows no feet; what is larger than the frame has passed the camera.
    inside = (left < WIDTH) & (right > 0) & (bottom - 0.35 * tall < 288) & (tall < 150)
    shown = np.flatnonzero(inside)
    return shown[np.argsort(tracks.nearness[shown, second], kind="stable")]
