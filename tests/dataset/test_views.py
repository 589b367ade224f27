"""What the channels of a sample show: neighbours, backgrounds, one geometry for all, and what stands in."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damaged_frames import damage
from torch.utils.data import DataLoader
from ultralytics.cfg import get_cfg

from toolkit.dataset import backgrounds
from toolkit.dataset.grey import channels_that_differ
from toolkit.dataset.index import DatasetIndex, load
from toolkit.dataset.prepare import prepare
from toolkit.dataset.ultralytics import LTDv2Dataset, build_dataset, data_dictionary
from toolkit.dataset.views import MOST, PLAIN, Views, neighbours
from toolkit.errors import ToolkitError
from toolkit.training.sampling import EpochSampler, ResumableLoader


def make(index: DatasetIndex, split: str, mode: str, views: str, **options: Any) -> LTDv2Dataset:
    chosen = Views.parse(views)
    args = get_cfg(overrides={"imgsz": 160, "mosaic": 1.0, **options})
    data = data_dictionary(index, chosen.channels, chosen)
    return build_dataset(index, split, args, mode, 4, data, seed=3)


@pytest.mark.parametrize("text", ["now", "now,before,background", "before3, now, after2", "now,BEFORE60"])
def test_channels_are_named_in_their_order(text: str) -> None:
    views = Views.parse(text)
    assert str(views) == text.replace(" ", "").lower()
    assert views.channels == len(text.split(","))
    assert views.is_plain is (text == "now")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("now,yesterday", "'yesterday' is no channel of a sample.*before2"),
        ("now,before0", "'before0' is no channel"),
        ("now,before61", "'before61' is no channel"),
        ("", "'' is no channel"),
        ("before,background", "makes no sample; expected now"),
        ("now,now", "each once"),
        ("now,before,after,background,before2", f"at most {MOST - 1} other"),
    ],
)
def test_what_makes_no_sample_is_refused(text: str, message: str) -> None:
    with pytest.raises(ToolkitError, match=message):
        Views.parse(text)


@pytest.mark.parametrize("offset", [-1, -3, 2])
def test_a_neighbour_is_of_the_same_clip_and_as_far_away_as_its_name_says(
    index: DatasetIndex, offset: int
) -> None:
    split = index.split("train")
    found = neighbours(split, offset)
    for row, other in enumerate(found.tolist()):
        clip = np.flatnonzero(split.clips == split.clips[row])
        by_time = clip[np.argsort(split.image_ids[clip])].tolist()
        wanted = by_time.index(row) + offset
        assert other == (by_time[wanted] if 0 <= wanted < len(by_time) else -1)


def test_a_background_is_the_median_of_its_clip_and_is_computed_once(
    index: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = index.split("train")
    backgrounds.ensure(split)
    pixels, numbers = np.load(backgrounds.path_of(split)), backgrounds.numbers(split)
    frames = split.frames()
    for row in (0, len(split) - 1):
        clip = np.flatnonzero(split.clips == split.clips[row])
        assert len(clip) <= backgrounds.SAMPLES
        stack = np.sort(np.stack([frames.grey(int(each)) for each in clip]), axis=0)
        np.testing.assert_array_equal(pixels[numbers[row]], stack[(len(clip) - 1) // 2])
    monkeypatch.setattr(backgrounds, "_build", lambda _: pytest.fail("computed again"))
    backgrounds.ensure(split)
    make(index, "train", "train", "now,background")


def test_a_clip_is_sampled_evenly_and_around_frames_that_do_not_decode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from toolkit.dataset.frames import FrameError

    class Counting:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def grey(self, row: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
            self.asked.append(row)
            if row == 0:
                raise FrameError("0", "is cut off", "", "")
            return np.full((2, 3), row, np.uint8)

    frames: Any = Counting()
    median = backgrounds._median(frames, list(range(100)), (2, 3))
    assert len(frames.asked) == backgrounds.SAMPLES + 1, "another frame is taken for the one that is cut off"
    assert 40 <= int(median[0, 0]) <= 60
    assert not backgrounds._median(frames, [0], (2, 3)).any()


@pytest.mark.parametrize("views", ["now,before,background", "background,now", "after,before,background,now"])
def test_validation_shows_each_channel_whole_and_in_its_place(index: DatasetIndex, views: str) -> None:
    dataset, plain = make(index, "val", "val", views), make(index, "val", "val", "now")
    words = Views.parse(views).words
    split, frames = index.split("val"), index.split("val").frames()
    for i in range(len(dataset)):
        sample, alone = dataset[i], plain[i]
        row = sample["row"]
        assert sample["img"].shape[0] == len(words)
        torch.testing.assert_close(sample["img"][words.index("now")], alone["img"][0], rtol=0, atol=0)
        before = int(neighbours(split, -1)[row])
        if "before" in words:
            expected = frames.grey(before if before >= 0 else row)
            shown = dataset.pixels.enlarged(expected[..., None].repeat(len(words), 2))[..., 0]
            top, left = (np.array(sample["img"].shape[1:]) - shown.shape) // 2
            inside = sample["img"][
                words.index("before"), top : top + shown.shape[0], left : left + shown.shape[1]
            ]
            np.testing.assert_array_equal(inside.numpy(), shown)
        missing = [word for word in words if word in ("before", "after")]
        wanted = sum(int(neighbours(split, -1 if word == "before" else 1)[row]) < 0 for word in missing)
        assert sample["stood_in"] == wanted


@pytest.mark.parametrize(
    "options",
    [{}, {"mixup": 1.0}, {"degrees": 10.0}, {"flipud": 1.0, "fliplr": 1.0}, {"mosaic": 0.0}, {"bgr": 1.0}],
    ids=str,
)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_one_geometry_moves_all_channels(
    index: DatasetIndex, monkeypatch: pytest.MonkeyPatch, options: dict[str, float], count: int
) -> None:
    """Channels that show the same frame stay the same through everything, as the sample of one channel."""
    words = ",".join(("now", "before59", "before60", "after60")[:count])  # clips are shorter: all stand in
    many, one = (
        make(index, "train", "train", words, **options),
        make(index, "train", "train", "now", **options),
    )
    for i in one.order.samples(1)[:6].tolist():
        sample, alone = many[many.order.span + i], one[one.order.span + i]
        assert sample["img"].shape == (count, 160, 160)
        for channel in sample["img"]:
            torch.testing.assert_close(channel, sample["img"][0], rtol=0, atol=0)
        difference = (sample["img"][0].int() - alone["img"][0].int()).abs()
        assert difference.max() <= 6, "OpenCV samples several channels at once in its own rounding"
        torch.testing.assert_close(sample["bboxes"], alone["bboxes"])


def test_what_moves_is_where_its_box_was_and_is(index: DatasetIndex) -> None:
    """The fused mosaic and Ultralytics' own steps place every channel alike: a mark in each stays aligned."""
    random.seed(0)
    fused, turned = (
        make(index, "train", "train", "now,before"),
        make(index, "train", "train", "now,before", shear=1e-9),
    )
    assert fused.fused
    assert not turned.fused
    for i in fused.order.samples(0)[:4].tolist():
        one, other = fused[i]["img"].float(), turned[i]["img"].float()
        assert (one - other).abs().mean() < 4


def test_workers_bring_every_channel(index: DatasetIndex) -> None:
    dataset = make(index, "train", "train", "now,before,background")
    alone = [dataset[i] for i in dataset.order.samples(0)[:4].tolist()]
    order = EpochSampler(len(dataset), 4, dataset.seed, order=dataset.order)
    loader = ResumableLoader(dataset, order, workers=1, pin_memory=False, on_worker_death=pytest.fail)
    try:
        batch = next(iter(loader))
    finally:
        loader.close()
    torch.testing.assert_close(batch["img"], torch.stack([each["img"] for each in alone]), rtol=0, atol=0)
    assert channels_that_differ(batch["img"]) == 3


def test_grey_frames_shown_thrice_stay_one_in_memory(index: DatasetIndex) -> None:
    args = get_cfg(overrides={"imgsz": 160})
    dataset = build_dataset(index, "val", args, "val", 4, data_dictionary(index, 3))
    batch = next(iter(DataLoader(dataset, batch_size=2, collate_fn=dataset.collate_fn)))
    assert batch["img"].shape[1] == 3
    assert channels_that_differ(batch["img"]) == 1


def test_a_neighbour_that_does_not_decode_is_stood_in_for_and_counted(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(copy)
    split = load(copy).split("train")
    row = int(np.flatnonzero(neighbours(split, -1) >= 0)[0])
    before = int(neighbours(split, -1)[row])
    damage(copy, split.file_names[before].decode())
    dataset = make(load(copy), "train", "train", "now,before", mosaic=0.0)
    frames = dataset.split.frames()
    for times in (1, 2):
        stack, stood_in = dataset.pixels.sources.stack(frames, row, frames.grey(row))
        np.testing.assert_array_equal(stack[..., 0], stack[..., 1])
        assert (stood_in, dataset.pixels.sources.unreadable) == (1, times)
    assert capsys.readouterr().err.count("stand in for it") == 1


def test_sources_travel_without_their_pictures(index: DatasetIndex) -> None:
    dataset = make(index, "train", "train", "now,background")
    frames = dataset.split.frames()
    whole, _ = dataset.pixels.sources.stack(frames, 3, frames.grey(3))
    travelled = pickle.loads(pickle.dumps(dataset.pixels.sources))
    assert len(pickle.dumps(dataset.pixels.sources)) < 50_000
    np.testing.assert_array_equal(travelled.stack(frames, 3, frames.grey(3))[0], whole)


def test_a_dictionary_of_other_channels_than_its_views_is_refused(index: DatasetIndex) -> None:
    with pytest.raises(ToolkitError, match="no images with 3 channels; expected now,before"):
        data_dictionary(index, 3, Views.parse("now,before"))
    with pytest.raises(ToolkitError, match="no images with 2 channels; expected 1 or 3"):
        data_dictionary(index, 2, PLAIN)
