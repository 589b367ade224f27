"""Clips that names tell, and the images that validate where the source does not say."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.dataset import index
from toolkit.dataset.own.reading import Image
from toolkit.dataset.own.splitting import BLOCK, moments, places, split
from toolkit.dataset.own.writing import bring
from toolkit.dataset.prepare import prepare

HASHES = ("L6K6nGDMhcGcwkbC3", "Ab7", "xx", "7q19", "k3k3k", "0012ab9")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            [f"v/video-{c}-frame-{n:06d}-{HASHES[n]}.jpg" for c in ("4F2", "9x") for n in range(6)],
            [(f"v/video-{c}-frame", n) for c in ("4F2", "9x") for n in range(6)],
        ),
        (
            [f"FLIR_{n:05d}_jpg.rf.{HASHES[n]}{n}.jpg" for n in range(6)],
            [("FLIR", n) for n in range(6)],
        ),
        (
            [f"{weather}_60_30_0_{n:05d}.jpg" for weather in (0, 1) for n in (7, 9)],
            [(f"{weather}_60_30_0", n) for weather in (0, 1) for n in (7, 9)],
        ),
        (
            [f"DJI_2023010112{n:02d}00_{n:04d}_T.jpg" for n in (1, 2)],
            [("DJI", 20230101120100 + k * 100) for k in (0, 1)],
        ),
        (
            [f"set0{s}/I{n:05d}_lwir.png" for s in (1, 2) for n in (3, 4)],
            [(f"set0{s}/I", n) for s in (1, 2) for n in (3, 4)],
        ),
        (["a/9.jpg", "a/10.jpg", "b/1.jpg"], [("a", 9), ("a", 10), ("b", 1)]),
        (["f_000.jpg", "f_001.jpg", "night.jpg"], [("f", 0), ("f", 1), ("night", 0)]),
        (["cam0_0.jpg", "cam1_1.jpg", "cam0_2.jpg"], [("cam0", 0), ("cam1", 1), ("cam0", 2)]),
        (["0001.jpg"], [("", 1)]),
    ],
)
def test_a_frames_number_is_what_varies_within_names_of_one_beginning(
    names: list[str], expected: list[tuple[str, int]]
) -> None:
    assert places(names) == expected


def divided(names: list[str], val: float, parts: list[str] | None = None) -> tuple[list[str], list[str]]:
    """Names of the training and validation images."""
    images = split([Image(name, "", 8, 8) for name in names], parts or [""] * len(names), val)
    assert [image.name for image in images] == names
    train, chosen = ([image.name for image in images if image.split == s] for s in ("train", "val"))
    assert len(train) + len(chosen) == len(names)
    return train, chosen


@given(
    st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=5), min_size=1, max_size=12),
    st.floats(0.02, 0.98),
)
def test_the_share_is_held_within_a_block_whatever_the_parts_and_clips_are(
    clips: list[list[int]], val: float
) -> None:
    named = [
        (f"p{p}", f"p{p}c{c}_{n}.jpg")
        for p, of in enumerate(clips)
        for c, k in enumerate(of)
        for n in range(k)
    ]
    train, chosen = divided([name for _, name in named], val, [part for part, _ in named])
    assert abs(len(chosen) - val * len(named)) <= BLOCK
    if len(named) > 1:
        assert train
        assert chosen
    for p, of in enumerate(clips):
        if val * sum(of) >= 1 and len(chosen) < len(named) - 1:
            assert any(name.startswith(f"p{p}c") for name in chosen)


@pytest.mark.parametrize(
    ("count", "parts", "expected"), [(15, 1, 3), (30, 1, 6), (30, 4, 24), (60, 1, 12), (2, 50, 20)]
)
def test_a_short_sequence_is_cut_into_blocks_that_its_share_can_be_made_of(
    count: int, parts: int, expected: int
) -> None:
    names = [f"p{p}_{n}.jpg" for p in range(parts) for n in range(count)]
    train, chosen = divided(names, 0.2, [name.partition("_")[0] for name in names])
    assert (len(chosen), len(train)) == (expected, count * parts - expected)
    cuts = sum((a in chosen) != (b in chosen) for a, b in pairwise(names))
    assert cuts <= 2 * parts  # the frames of a block follow each other, 9 and 10 as well


def test_clips_that_fit_stay_whole() -> None:
    names = [f"c{c}_{n:02d}.jpg" for c in range(40) for n in range(10)]
    train, chosen = divided(names, 0.2)
    assert len(chosen) == 80
    assert not {name[:3] for name in train if name[2] != "_"} & {
        name[:3] for name in chosen if name[2] != "_"
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("visible/train/{n:06d}.jpg", "infrared/train/{n:06d}.png"),
        ("set00/V001/visible/I{n:05d}.png", "set00/V001/lwir/I{n:05d}.png"),
        ("thermal_8_bit/FLIR_{n:05d}.jpeg", "RGB/FLIR_{n:05d}.jpg"),
        ("f_{n:03d}.jpg", "f_{n:03d}_ir.jpg"),
        ("Tir-{n}.tif", "Vis-{n}.tif"),
    ],
)
@pytest.mark.parametrize("parted", [False, True])
def test_what_two_sensors_saw_goes_to_one_split(
    first: str, second: str, parted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [(first.format(n=n), second.format(n=n)) for n in range(100)]
    names = [name for pair in pairs for name in pair]
    train, chosen = divided(names, 0.2, ["a", "b"] * 100 if parted else None)
    assert len(chosen) == 40
    assert {(a in train, b in train) for a, b in pairs} == {(True, True), (False, False)}
    assert "100 images show what another sensor saw" in capsys.readouterr().err
    apart = [Image(name, "train" if n % 2 else "val", 8, 8) for n, name in enumerate(names)]
    split(apart, [""] * 200, 0.2)
    assert "100 images of the validation split show what another sensor" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names",
    [
        ["clip1/001.jpg", "clip2/001.jpg"],
        ["ir_day/001.jpg", "ir_night/001.jpg"],
        ["visible/a/001.jpg", "infrared/b/001.jpg"],
        ["visible/001.jpg", "infrared/002.jpg"],
        ["x/x/ir/1.jpg", "x/rgb/1.jpg"],
        ["a_b/ir/c.jpg", "a/b/rgb/c.jpg"],
        ["a.jpg", "a.png"],
        ["fir_001.jpg", "birch_001.jpg"],
    ],
)
def test_names_that_differ_in_more_than_a_sensor_are_no_pair(names: list[str]) -> None:
    assert moments(names) == [0, 1]


def test_names_that_tell_no_clips_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    divided(["lion.jpg", "a3f.jpg", "b77.jpg", "tree.jpg", "f_1.jpg", "f_2.jpg"], 0.3)
    assert "tell no clip of 4 of 6 images" in capsys.readouterr().err
    divided([f"f_{n}.jpg" for n in range(6)], 0.3)
    assert "tell no clip" not in capsys.readouterr().err


def test_videos_with_hashes_behind_the_frame_numbers_are_prepared_as_clips(tmp_path: Path) -> None:
    images = []
    for n in range(24):
        name = f"video-{'aB3c'[n % 4]}x-frame-{n // 4:06d}-{HASHES[n % 6]}{n}.png"
        (tmp_path / "s" / "data").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "s" / "data" / name), np.zeros((16, 24), np.uint8))
        told = {"video_id": f"v{n % 4}", "weather": {"sky": "clear" if n % 2 else "fog"}}
        images.append({"id": n, "file_name": f"data/{name}", "width": 24, "height": 16, "extra_info": told})
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5]} for n in range(24)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]}
    (tmp_path / "s" / "coco.json").write_text(json.dumps(content))
    bring(tmp_path / "s" / "coco.json", tmp_path / "data", by="name:2", val=0.34)
    manifest = prepare(tmp_path / "data").manifest
    assert manifest.clips == {"train": 4, "val": 4}
    assert manifest.images == {"train": 16, "val": 8}
    for by, parts in (
        ("extra_info.video_id", 4),
        ("extra_info.weather.sky", 2),
        ("meta.extra_info.video_id", 4),
    ):
        words = bring(tmp_path / "s" / "coco.json", tmp_path / by, by=by)
        assert len(words.parts) == parts
    prepare(tmp_path / by)
    assert set(index.load(tmp_path / by).split("val").part_names.tolist()) == {"v0", "v1", "v2", "v3"}
