from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import Compose, v8_transforms

from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.mosaic import FusedMosaic, Tile, render
from toolkit.dataset.ultralytics import LTDv2Dataset, build_dataset, data_dictionary


@settings(max_examples=60)
@given(
    scale=st.floats(0.4, 1.7),
    shift=st.tuples(st.floats(-400, 100), st.floats(-400, 100)),
    centre=st.tuples(st.integers(40, 150), st.integers(40, 150)),
)
def test_rendering_tiles_equals_warping_a_canvas(
    scale: float, shift: tuple[float, float], centre: tuple[int, int]
) -> None:
    """Against a real canvas of four smooth tiles: equal to rounding, but for a pixel along the seams."""
    x, y = centre
    rng = np.random.default_rng(3)
    frames = [cv2.resize(rng.integers(20, 200, (5, 6)).astype(np.uint8), (80, 60)) for _ in range(4)]
    canvas = np.full((200, 200), 114, np.uint8)
    areas = [(0, 0, x, y), (x, 0, 200, y), (0, y, x, 200), (x, y, 200, 200)]
    tiles = []
    for frame, (x1, y1, x2, y2) in zip(frames, areas, strict=True):
        large = cv2.resize(frame, (160, 120))
        shown = (x1, y1, min(x2, x1 + 160), min(y2, y1 + 120))
        canvas[y1 : shown[3], x1 : shown[2]] = large[: shown[3] - y1, : shown[2] - x1]
        tiles.append(Tile(frame, (120, 160), (x1, y1), shown))
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]])
    expected = cv2.warpAffine(canvas, matrix[:2], (100, 100), borderValue=(114,) * 4)
    found = render(tiles, matrix, (100, 100))
    difference = np.abs(found.astype(int) - expected)
    for axis in (0, 1):
        places = (np.arange(100) - shift[axis]) / scale
        edges = [tile.area[axis + side] - 0.5 for tile in tiles for side in (0, 2)]
        seams = (np.abs(places[:, None] - edges) < 1.5).any(axis=1)
        difference[(slice(None), seams) if axis == 0 else seams] = 0
    assert difference.max() <= 6


def dataset(index: DatasetIndex, **options: float) -> LTDv2Dataset:
    args = get_cfg(overrides={"imgsz": 160, **options})
    return build_dataset(index, "train", args, "train", 4, data_dictionary(index, 1), seed=5)


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_boxes_move_exactly_as_in_ultralytics(index: DatasetIndex, mosaic: float) -> None:
    """The same random numbers give the same boxes and nearly the same picture, at the middle of its grey."""
    fused = dataset(index, mosaic=mosaic, hsv_v=0)
    assert fused.fused
    plain = dataset(index, mosaic=mosaic, hsv_v=0)
    standard = v8_transforms(plain, 160, get_cfg(overrides={"mosaic": mosaic, "hsv_v": 0}))
    plain.transforms = Compose([*standard.transforms, plain.transforms.transforms[-1]])
    plain.fused = False
    for i in range(0, len(fused), 5):
        ours, theirs = fused[i], plain[i]
        torch.testing.assert_close(ours["bboxes"], theirs["bboxes"], rtol=0, atol=1e-6)
        torch.testing.assert_close(ours["cls"], theirs["cls"])
        assert (ours["img"].float() - theirs["img"].float()).abs().mean() < 4


def test_boxes_stay_on_their_objects(index: DatasetIndex) -> None:
    """A frame that is black but for white boxes keeps its white inside the boxes."""
    data = dataset(index, hsv_v=0)

    class Boxes:
        def grey(self, row: int) -> np.ndarray:
            tables = data.split.training
            image = np.zeros((288, 384), np.uint8)
            start = int(tables.images[row]["box"])
            for x, y, w, h in tables.boxes["xywh"][start : start + int(tables.images[row]["boxes"])]:
                x1, y1, x2, y2 = (x - w / 2) * 384, (y - h / 2) * 288, (x + w / 2) * 384, (y + h / 2) * 288
                image[round(y1) : round(y2), round(x1) : round(x2)] = 255
            return image

        def name(self, row: int) -> str:
            return str(row)

    data.pixels.frames = Boxes()  # type: ignore[assignment]
    outside = inside = 0.0
    for i in range(len(data)):
        sample = data[i]
        image = sample["img"][0].numpy() == 255
        mask = np.zeros_like(image)
        for x, y, w, h in (sample["bboxes"].numpy() * 160).tolist():
            mask[round(y - h / 2) : round(y + h / 2), round(x - w / 2) : round(x + w / 2)] = True
        inside += (image & mask).sum() / max(mask.sum(), 1)
        outside += (image & ~cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)).sum()
    assert inside / len(data) > 0.9
    assert outside / len(data) < 0.01 * 160 * 160


@pytest.mark.parametrize("option", ["degrees", "shear", "perspective", "copy_paste"])
def test_what_it_cannot_do_is_left_to_ultralytics(index: DatasetIndex, option: str) -> None:
    value = 0.0005 if option == "perspective" else 0.5
    data = dataset(index, **{option: value})
    assert not data.fused
    assert data[0]["img"].shape == (1, 160, 160)


def test_closing_the_mosaic_keeps_the_fused_path(index: DatasetIndex) -> None:
    data = dataset(index, mixup=0.5, cutmix=0.3)
    random.seed(0)
    assert data[0]["img"].shape == (1, 160, 160)
    data.close_mosaic(get_cfg(overrides={"imgsz": 160}))
    first = data.transforms.transforms[0].transforms[0]
    assert isinstance(first, FusedMosaic)
    assert first.mosaic.p == 0.0
    assert data[0]["img"].shape == (1, 160, 160)
