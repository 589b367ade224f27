"""Rare objects pasted where they were: at their place, with their boxes, over nothing else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg

from submission.validate import LABELS
from toolkit.dataset.frames import FrameError
from toolkit.dataset.frequency import Paste
from toolkit.dataset.index import DatasetIndex, load
from toolkit.dataset.paste import HIDDEN, HOURS, MARGIN, Donors, _blend, _overlap
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.dataset.ultralytics import LTDv2Dataset, build_dataset, data_dictionary
from toolkit.dataset.views import Views
from toolkit.errors import ToolkitError

ALWAYS = Paste.parse("motorcycle=1,bicycle=1")


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> DatasetIndex:
    folder = tmp_path_factory.mktemp("paste") / "harbour"
    write_sample(folder, train=480, val=8, test=2, seed=1, scene="harbour")
    prepare(folder)
    return load(folder)


def dataset(index: DatasetIndex, paste: Paste = ALWAYS, views: str = "now", **options: Any) -> LTDv2Dataset:
    chosen = Views.parse(views)
    args = get_cfg(overrides={"imgsz": 384, "mosaic": 0.0, "hsv_v": 0.0, **options})
    data = data_dictionary(index, chosen.channels, chosen)
    return build_dataset(index, "train", args, "train", 4, data, paste=paste, seed=2)


def pasted(donors: Donors, row: int, seed: int) -> tuple[Any, Any, Any, Any]:
    """A frame, what becomes of it, and the boxes and labels that it gets."""
    frames = donors.split.frames()
    random.seed(seed)
    image = frames.grey(row)[..., None]
    size = (image.shape[0], image.shape[1])
    return image, *donors.into(image, row, size, lambda other: frames.grey(other)[..., None])


def test_objects_come_from_other_clips_at_a_like_hour_with_who_overlaps_them(harbour: DatasetIndex) -> None:
    split = harbour.split("train")
    donors = Donors(split, np.arange(len(split)), ALWAYS)
    random.seed(0)
    drawn = 0
    for row in range(0, len(split), 7):
        for other, place in donors.draw(row):
            drawn += 1
            assert split.clips[other] != split.clips[row]
            apart = abs(int(donors.hours[other]) - int(donors.hours[row]))
            assert min(apart, 24 - apart) <= HOURS
            assert LABELS[int(donors.boxes(other)[1][place])] in ("motorcycle", "bicycle")
    assert drawn > 10


def test_a_pasted_object_is_at_its_place_and_changes_nothing_elsewhere(harbour: DatasetIndex) -> None:
    split = harbour.split("train")
    donors = Donors(split, np.arange(len(split)), ALWAYS)
    count = 0
    for row in range(0, len(split), 5):
        image, result, boxes, labels = pasted(donors, row, row)
        assert len(boxes) == len(labels)
        far = np.ones(image.shape[:2], bool)
        for x1, y1, x2, y2 in boxes.tolist():
            far[
                max(int(y1) - MARGIN - 1, 0) : int(y2) + MARGIN + 2,
                max(int(x1) - MARGIN - 1, 0) : int(x2) + MARGIN + 2,
            ] = False
        np.testing.assert_array_equal(result[far], image[far])
        own, _ = donors.boxes(row)
        for box in boxes:
            assert (_overlap(own, box) <= HIDDEN).all(), "nobody is hidden"
        count += len(boxes)
        assert (result is image) is (not len(boxes)), "the frame at hand is not changed"
    assert count > 10


def test_inside_its_box_the_object_is_the_donors_but_for_its_level() -> None:
    rng = np.random.default_rng(0)
    source = rng.integers(100, 120, (60, 80, 2)).astype(np.uint8)
    source[20:30, 30:45] += 60
    target = np.full((60, 80, 2), 50, np.uint8)
    before = target.copy()
    _blend(source, target, np.array([26.0, 16.0, 49.0, 34.0]), np.array([[30.0, 20.0, 45.0, 30.0]]))
    inside = target[20:30, 30:45].astype(int) - source[20:30, 30:45]
    assert inside.std(axis=(0, 1)).max() < 0.8, "the same grey levels, moved"
    assert abs(inside.mean() + 60) < 4, "the ground of 110 is one of 50 here"
    np.testing.assert_array_equal(target[:16], before[:16])
    assert np.abs(target[16:34, 26].astype(int) - 50).max() < 12, "the edge fades"


@given(st.integers(0, 2**31 - 1), st.sampled_from([1.0, 1.5, 2.0]))
def test_an_enlarged_frame_gets_an_enlarged_patch(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 255, (40, 60, 1)).astype(np.uint8)
    target = np.full((int(40 * scale), int(60 * scale), 1), 90, np.uint8)
    low = rng.integers(0, [50, 30])
    high = low + rng.integers(2, 10, 2)
    patch = np.concatenate([np.maximum(low - MARGIN, 0), np.minimum(high + MARGIN, [60, 40])]).astype(float)
    _blend(source, target, patch, np.concatenate([low, high])[None].astype(float))
    outside = np.ones(target.shape[:2], bool)
    x1, y1, x2, y2 = (patch * scale).round().astype(int).tolist()
    outside[y1:y2, x1:x2] = False
    assert (target[outside] == 90).all()


def test_a_sample_has_the_boxes_of_what_was_pasted_and_is_the_same_again(harbour: DatasetIndex) -> None:
    whole = {"scale": 0.0, "translate": 0.0}
    with_, without = dataset(harbour, **whole), dataset(harbour, Paste(), **whole)
    more = 0
    for i in with_.order.samples(0)[:40].tolist():
        sample, again, plain = with_[i], with_[i], without[i]
        assert sample["img"].equal(again["img"])
        assert sample["bboxes"].equal(again["bboxes"])
        assert len(sample["bboxes"]) == len(sample["cls"]) >= len(plain["cls"])
        more += len(sample["cls"]) - len(plain["cls"])
    assert more > 3


def test_each_channel_gets_its_own_part_of_the_object(harbour: DatasetIndex) -> None:
    seeing = dataset(harbour, views="now,background")
    shapes = {tuple(seeing[i]["img"].shape) for i in seeing.order.samples(0)[:12].tolist()}
    assert shapes == {(2, 384, 384)}


def test_classes_that_are_not_trained_are_not_pasted_as_boxes(harbour: DatasetIndex) -> None:
    only = dataset(harbour, classes=[0])
    kinds = {
        int(each) for i in only.order.samples(0)[:30].tolist() for each in only[i]["cls"].ravel().tolist()
    }
    assert kinds <= {0}


def test_a_donor_that_does_not_decode_is_left_out(harbour: DatasetIndex) -> None:
    split = harbour.split("train")
    donors = Donors(split, np.arange(len(split)), ALWAYS)

    def fail(row: int) -> Any:
        raise FrameError(str(row), "is cut off", "", "")

    image = split.frames().grey(0)[..., None]
    result, boxes, labels = donors.into(image, 0, image.shape[:2], fail)  # type: ignore[arg-type]
    assert result is image
    assert not len(boxes)
    assert not len(labels)


@pytest.mark.parametrize(
    "text",
    ["", "motorbike=0.1", "motorcycle", "motorcycle=0", "motorcycle=1.5", "bicycle=x", "person=1,person=1"],
)
def test_what_pastes_nothing_is_refused(text: str) -> None:
    with pytest.raises(ToolkitError, match=r"pastes nothing; expected such as motorcycle=0\.3"):
        Paste.parse(text)


def test_a_class_that_no_frame_holds_is_named(harbour: DatasetIndex, tmp_path: Path) -> None:
    split = harbour.split("train")
    offsets, labels = split.box_offsets, split.labels
    without = [i for i in range(len(split)) if 3 not in labels[offsets[i] : offsets[i + 1]]]
    with pytest.raises(ToolkitError, match="no motorcycle to paste; found none in the"):
        Donors(split, np.array(without), ALWAYS)
