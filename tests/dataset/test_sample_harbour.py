"""The drawn harbour against what is known of LTDv2: sizes, shares, tracks, occlusion, weather."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest

from toolkit.dataset.frames import decode_grey
from toolkit.dataset.sample import _template_ids, harbour, write_sample
from toolkit.dataset.sample.harbour.quay import quay
from toolkit.dataset.sample.harbour.thermal import boxes_of
from toolkit.dataset.sample.harbour.tracks import deal, tracks_of
from toolkit.dataset.sample.harbour.weather import Weather, weather_at
from toolkit.dataset.sample.layout import Box, Frame

PERSON, BICYCLE, MOTORCYCLE, VEHICLE = 1, 2, 3, 4


def clips(counts: dict[str, int], seed: int = 0) -> list[list[Frame]]:
    frames = sorted(harbour.choose_frames(counts, seed), key=lambda frame: frame.name)
    return [list(clip) for _, clip in groupby(frames, key=lambda frame: frame.clip)]


@pytest.fixture(scope="module")
def annotated() -> list[tuple[Frame, list[Box]]]:
    """A sixth of the seconds of five samples, without drawing them."""
    found = []
    for seed in range(5):
        chosen = clips({"train": 2400, "val": 800, "test": 0}, seed)
        for clip, rare in zip(chosen, deal([clip[0] for clip in chosen], seed), strict=True):
            found += list(zip(clip[::6], boxes_of(clip[::6], rare, seed), strict=True))
    return found


def test_classes_have_ltdv2s_shares(annotated: Sequence[tuple[Frame, list[Box]]]) -> None:
    counts = Counter(label for _, boxes in annotated for label, _ in boxes)
    share = {label: count / counts.total() for label, count in counts.items()}
    assert share[PERSON] == pytest.approx(0.84, abs=0.03)
    assert share[VEHICLE] == pytest.approx(0.10, abs=0.02)
    assert share[BICYCLE] == pytest.approx(0.04, abs=0.01)
    assert share[MOTORCYCLE] == pytest.approx(0.005, abs=0.0025)
    # 2.9 million boxes in 375,312 frames of training and validation.
    assert counts.total() / len(annotated) == pytest.approx(7.7, abs=1.5)


def motorcycles() -> list[tuple[float, float]]:
    """Sizes of many motorcycles, two ridden for each that stands; a sample of a usual size has too few."""
    clip = clips({"train": 160, "val": 0, "test": 0})[0][:1]
    rare = dict.fromkeys(deal(clip, 0)[0], 0) | {"standing motorcycle": 1, "ridden motorcycle": 2}
    found = [
        box for seed in range(250) for label, box in boxes_of(clip, rare, seed)[0] if label == MOTORCYCLE
    ]
    return [(w, h) for _, _, w, h in found]


def test_objects_have_ltdv2s_sizes(annotated: Sequence[tuple[Frame, list[Box]]]) -> None:
    """97 % of persons, 98 % of bicycles and 84 % of motorcycles are smaller than 32 x 32 pixels."""
    small: dict[int, list[bool]] = {label: [] for label in (1, 2, 3, 4)}
    heights = []
    for _, boxes in annotated:
        for label, (_, _, w, h) in boxes:
            small[label].append(w * h < 32 * 32)
            heights += [h] if label == PERSON else []
    assert np.mean(small[PERSON]) == pytest.approx(0.97, abs=0.01)
    assert np.mean(small[BICYCLE]) == pytest.approx(0.98, abs=0.015)
    assert np.mean([w * h < 32 * 32 for w, h in motorcycles()]) == pytest.approx(0.84, abs=0.05)
    tall = np.array(heights)
    assert 0.35 < np.mean((tall >= 5) & (tall <= 10)) < 0.75
    assert tall.max() > 60


def test_boxes_are_whole_pixels_inside_the_frame(annotated: Sequence[tuple[Frame, list[Box]]]) -> None:
    boxes = np.array([box for _, found in annotated for _, box in found])
    assert (boxes == boxes.round()).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [384, 288]).all()


def test_validation_has_no_motorcycle_in_january_and_july(
    annotated: Sequence[tuple[Frame, list[Box]]],
) -> None:
    where = {(f.split, f.month) for f, boxes in annotated if any(label == MOTORCYCLE for label, _ in boxes)}
    assert not {("val", "202101"), ("val", "202007")} & where
    assert len({month for split, month in where if split == "val"}) >= 3
    assert len({month for split, month in where if split == "train"}) >= 7


def test_ids_are_ltdv2s_and_neighbours_are_a_second_apart() -> None:
    development, testing = set(_template_ids("development")), set(_template_ids("testing"))
    chosen = clips({"train": 1600, "val": 400, "test": 450})
    frames = [frame for clip in chosen for frame in clip]
    ids: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for frame in frames:
        ids[frame.split].add(str(frame.id))
    assert {name: len(found) for name, found in ids.items()} == {"train": 1600, "val": 400, "test": 450}
    assert ids["val"] <= development
    assert ids["test"] <= testing
    assert not {number[:11] for number in ids["train"]} & {n[:11] for n in development | testing}
    assert len({frame.name for frame in frames}) == len(frames)
    for clip in chosen:
        assert len(clip) <= 120
        times = [datetime.strptime(str(f.id)[:6] + str(f.id)[9:], "%Y%m%d%H%M%S") for f in clip]
        assert [f"{time:%Y-%m-%dT%H:%M:%S}" for time in times] == [frame.date for frame in clip]
        if clip[0].split == "train":
            assert {(b - a).total_seconds() for a, b in pairwise(times)} == {1.0}


def test_objects_move_on_tracks_and_others_stand() -> None:
    chosen = clips({"train": 1600, "val": 0, "test": 0})
    moved, crossing = [], 0
    for clip, rare in zip(chosen, deal([clip[0] for clip in chosen], 0), strict=True):
        tracks = tracks_of(clip, rare, 0)
        inside = (tracks.boxes[..., 0] > 0) & (tracks.boxes[..., 2] < 384)
        steps = np.abs(np.diff(tracks.boxes[..., 0], axis=1))
        both = inside[:, 1:] & inside[:, :-1]
        moved += [float(steps[k][both[k]].mean()) for k in range(len(steps)) if both[k].any()]
        x = tracks.boxes[..., [0, 2]].mean(-1)
        crossing += int(((x.min(1) < 160) & (x.max(1) > 205) & (x.max(1) < 384)).sum())
    assert 0.1 < np.mean(np.array(moved) < 0.3) < 0.9
    assert np.percentile(moved, 95) > 1.5
    assert crossing >= 5


def test_the_mast_hides_what_passes_behind_it() -> None:
    """Boxes lie beside the mast or end at it, and some tracks lose theirs for a while."""
    mast = quay().mast > 0.5
    chosen = clips({"train": 1600, "val": 0, "test": 0})
    swallowed = 0
    for clip, rare in zip(chosen, deal([clip[0] for clip in chosen], 0), strict=True):
        for boxes in boxes_of(clip, rare, 0):
            for _, (x, y, w, h) in boxes:
                covered = mast[int(y) : int(y + h), int(x) : int(x + w)].mean()
                assert covered < 0.8
        tracks = tracks_of(clip, rare, 0)
        for box in tracks.boxes.reshape(-1, 4).clip(0, [384, 288, 384, 288]):
            x1, y1, x2, y2 = box.tolist()
            swallowed += bool(x2 > x1 and y2 > y1 and mast[y1:y2, x1:x2].all())
    assert swallowed > 20


def test_a_rider_overlaps_the_machine() -> None:
    clip = clips({"train": 160, "val": 0, "test": 0})[0]
    nothing = dict.fromkeys(deal([clip[0]], 0)[0], 0)
    ridden = 0
    for seed in range(12):
        tracks = tracks_of(clip, nothing | {"ridden bicycle": 1}, seed)
        k = int(np.flatnonzero(tracks.labels == BICYCLE)[0])
        rider, machine = tracks.boxes[k + 1, 0], tracks.boxes[k, 0]
        assert tracks.labels[k + 1] == PERSON
        overlap = np.minimum(rider[2:], machine[2:]) - np.maximum(rider[:2], machine[:2])
        assert (overlap > 0).all()
        assert rider[1] < machine[1]
        ridden += 1
    assert ridden == 12


def drawn(frames: list[Frame], now: Weather, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float, float]:
    """Mean contrast of persons against what surrounds them, noise, and bytes of a JPEG, in this weather."""
    monkeypatch.setattr("toolkit.dataset.sample.harbour.thermal.weather_at", lambda *_: now)
    contrasts, images, sizes = [], [], []
    for _, jpeg, boxes in harbour.draw(frames, 0):
        image = decode_grey("frame", jpeg).astype(float)
        images.append(image)
        sizes.append(len(jpeg))
        for label, box in boxes:
            x, y, w, h = map(int, box)
            around = image[max(y - 4, 0) : y + h + 4, max(x - 4, 0) : x + w + 4]
            contrasts += [image[y : y + h, x : x + w].mean() - np.median(around)] if label == PERSON else []
    still = np.stack(images)[:, 230:280, 330:380]
    return float(np.mean(contrasts)), float(still.std(axis=0).mean()), float(np.mean(sizes))


def test_contrast_polarity_and_noise_follow_the_weather(monkeypatch: pytest.MonkeyPatch) -> None:
    lively = max(clips({"train": 640, "val": 0, "test": 0}), key=lambda clip: clip[0].hour == 15)[:6]
    winter = drawn(lively, Weather(-2.0, 3.0, 0.0, 0.0, 0.6, 0.0, 4.0), monkeypatch)
    mild = drawn(lively, Weather(14.0, 12.0, 0.0, 0.0, 0.6, 0.0, 4.0), monkeypatch)
    sunny = drawn(lively, Weather(27.0, 17.0, 0.8, 0.8, 0.0, 0.0, 4.0), monkeypatch)
    rainy = drawn(lively, Weather(14.0, 12.0, 0.0, 0.0, 1.0, 1.0, 4.0), monkeypatch)
    assert winter[0] > mild[0] + 15
    assert mild[0] > 15
    assert sunny[0] < -10
    assert rainy[0] < 0.75 * mild[0]
    assert rainy[1] / abs(rainy[0]) > mild[1] / abs(mild[0])
    # LTDv2's frames take about 45 KB.
    assert np.mean([case[2] for case in (winter, mild, sunny, rainy)]) == pytest.approx(45_000, rel=0.15)


def test_weather_follows_season_and_hour() -> None:
    frames = [clip[0] for clip in clips({"train": 4800, "val": 0, "test": 0})]
    air = {m: np.mean([weather_at(f, 0).air for f in frames if f.month == m]) for m in ("202101", "202007")}
    assert air["202007"] > air["202101"] + 12
    sun = {night: [weather_at(f, 0).sun for f in frames if (f.hour < 2) == night] for night in (True, False)}
    assert max(sun[True]) == 0.0
    assert max(sun[False]) > 0.5
    assert 0.03 < np.mean([weather_at(f, 0).rain > 0 for f in frames]) < 0.4
    frame = frames[0]
    said, now = harbour.meta(frame, 0), weather_at(frame, 0)
    assert said["Temperature"] == round(now.air, 1)
    assert said["Sun Radiation Intensity"] == round(950 * now.sun, 1)
    assert said["Precipitation"] == round(1.5 * now.rain, 1)


def test_the_same_seed_gives_the_same_harbour(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert write_sample(tmp_path / name, train=24, val=8, test=9, seed=seed, scene="harbour")
    for file in ("Train.json", "Valid.json", "TestNoLabels.json", "frames.zip"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b
        assert a != c
