from __future__ import annotations

import random
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import Compose, v8_transforms

from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.mosaic import PADDING, FusedMosaic, Tile, _span, render
from toolkit.dataset.planes import Layers, channels_of, new_canvas
from toolkit.dataset.ultralytics import LTDv2Dataset, build_dataset, data_dictionary
from toolkit.dataset.views import Views


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


def painted(tiles: list[Tile], matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Tiles one after the other on padding, all channels of each: neither brighter nor mirrored."""
    image = np.full((size[1], size[0], tiles[0].frame.shape[2]), PADDING, np.uint8)
    for tile in tiles:
        across, down = _span(tile, matrix, size[0], 0), _span(tile, matrix, size[1], 1)
        if across is None or down is None:
            continue
        for channel in range(image.shape[2]):
            frame = np.ascontiguousarray(tile.frame[..., channel])
            patch = cv2.getRectSubPix(frame, (across.length, down.length), (across.centre, down.centre))
            large = cv2.resize(patch, None, fx=across.factor, fy=down.factor)
            rows = large[down.margin :][: down.stop - down.start]
            image[down.start : down.stop, across.start : across.stop, channel] = rows[:, across.margin :][
                :, : across.stop - across.start
            ]
    return image


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    channels=st.integers(1, 4),
    centre=st.tuples(st.integers(1, 139), st.integers(1, 139)),
    scale=st.floats(0.3, 1.7),
    shift=st.tuples(st.floats(-150, 90), st.floats(-150, 90)),
    size=st.tuples(st.integers(1, 97), st.integers(1, 97)),
    factor=st.none() | st.floats(0, 2.5),
    mirrored=st.tuples(st.booleans(), st.booleans()),
)
def test_brightness_and_mirroring_while_rendering_change_no_bit(
    seed: int,
    channels: int,
    centre: tuple[int, int],
    scale: float,
    shift: tuple[float, float],
    size: tuple[int, int],
    factor: float | None,
    mirrored: tuple[bool, bool],
) -> None:
    """Tiles of odd sizes that leave gaps, on memory that held something else."""
    rng, (x, y) = np.random.default_rng(seed), centre
    tiles = []
    for left, top, right, bottom in ((0, 0, x, y), (x, 0, 140, y), (0, y, x, 140), (x, y, 140, 140)):
        height, width = rng.integers(9, 60, 2).tolist()
        large = (height * 3 // 2, width * 3 // 2)
        area = (left, top, min(right, left + large[1]), min(bottom, top + large[0]))
        frame = rng.integers(0, 256, (channels, height, width), np.uint8).transpose(1, 2, 0)
        tiles.append(Tile(frame, large, (left, top), area))
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]])
    expected = painted(tiles, matrix, size)
    if factor is not None:
        expected = cv2.convertScaleAbs(expected.reshape(-1, 1), alpha=factor).reshape(expected.shape)
    expected = expected[:: -1 if mirrored[0] else 1, :: -1 if mirrored[1] else 1]

    def poisoned(shape: tuple[int, ...]) -> np.ndarray:
        canvas = new_canvas(shape)
        canvas[...] = rng.integers(0, 256, shape, np.uint8)
        return canvas

    np.testing.assert_array_equal(render(tiles, matrix, size, poisoned, factor, mirrored), expected)
    apart = [replace(tile, frame=Layers([*map(np.copy, channels_of(tile.frame))])) for tile in tiles]
    for tile in apart:
        for plane in channels_of(tile.frame):
            plane.flags.writeable = False
    np.testing.assert_array_equal(render(apart, matrix, size, poisoned, factor, mirrored), expected)


@pytest.mark.parametrize("views", ["now", "now,before,background"])
@pytest.mark.parametrize(
    "options", [{}, {"fliplr": 1.0}, {"flipud": 0.5, "hsv_v": 0.0}, {"mosaic": 0.0, "flipud": 1.0}], ids=str
)
def test_a_picture_that_waits_is_what_the_steps_one_by_one_make(
    index: DatasetIndex, views: str, options: dict[str, float]
) -> None:
    """Ultralytics' order of steps, each on all pixels, from the same random numbers; some neighbours lack."""
    channels = Views.parse(views)
    args = get_cfg(overrides={"imgsz": 157, **options})
    described = data_dictionary(index, channels.channels, channels)
    late, early = (build_dataset(index, "train", args, "train", 4, described, seed=8) for _ in range(2))
    for dataset, waits in ((late, True), (early, False)):
        fused = dataset.transforms.transforms[0].transforms[0]
        assert fused.waits
        fused.waits = waits
    for i in late.order.samples(2)[:24].tolist():
        one, other = late[2 * late.order.span + i], early[2 * early.order.span + i]
        assert one.keys() == other.keys()
        torch.testing.assert_close(one["img"], other["img"], rtol=0, atol=0)
        torch.testing.assert_close(one["bboxes"], other["bboxes"], rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"mixup": 0.1}, {"cutmix": 0.1}], ids=str)
def test_what_is_mixed_with_another_does_not_wait(index: DatasetIndex, options: dict[str, float]) -> None:
    assert not dataset(index, **options).transforms.transforms[0].transforms[0].waits
