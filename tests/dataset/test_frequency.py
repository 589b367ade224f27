"""How often frames come: every n-th of a clip, rare classes more often, several splits as one."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg

from submission.validate import LABELS
from toolkit.dataset.frequency import EVERY_FRAME, Frequency
from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.joined import open_split
from toolkit.dataset.order import EpochOrder, epoch_order
from toolkit.dataset.ultralytics import LTDv2Dataset, build_dataset, data_dictionary
from toolkit.errors import ToolkitError


def dataset(index: DatasetIndex, split: str = "train", frequency: Frequency = EVERY_FRAME) -> LTDv2Dataset:
    args = get_cfg(overrides={"imgsz": 96, "mosaic": 1.0})
    data = data_dictionary(index, 1)
    return build_dataset(index, split, args, "train", 4, data, frequency=frequency, seed=5)


sequences = st.lists(st.integers(1, 5), min_size=1, max_size=60)


@given(sequences, st.integers(1, 9), st.integers(0, 2**31 - 1), st.integers(0, 3))
def test_a_cycle_of_epochs_shows_the_whole_sequence_and_an_epoch_no_part_twice(
    times: list[int], every: int, seed: int, turn: int
) -> None:
    sequence = np.repeat(np.arange(len(times)), times)
    order = EpochOrder(len(times), seed, sequence, every)
    seen: Counter[int] = Counter()
    for epoch in range(turn * every, (turn + 1) * every):
        samples = order.samples(epoch)
        assert len(samples) == order.size == -(-len(sequence) // every)
        assert len(set(samples.tolist())) == order.size, "each showing is a sample of its own"
        assert samples.min() >= 0
        assert samples.max() < order.span
        shown = Counter((samples % len(times)).tolist())
        assert all(count <= times[image] for image, count in shown.items())
        seen += shown
    assert all(seen[image] >= count for image, count in enumerate(times))
    assert sum(seen.values()) == order.size * every < len(sequence) + every


@given(st.integers(1, 200), st.integers(0, 2**31 - 1), st.integers(0, 5))
def test_without_a_lever_the_order_is_what_it_was(images: int, seed: int, epoch: int) -> None:
    order = EpochOrder(images, seed)
    assert (order.size, order.span) == (images, images)
    np.testing.assert_array_equal(order.samples(epoch), epoch_order(images, seed, epoch))


def test_frames_that_an_epoch_takes_of_a_clip_are_as_far_apart_as_wanted(index: DatasetIndex) -> None:
    split = index.split("train")
    order = Frequency(every=3).order(split, np.arange(len(split)), seed=1)
    by_time = np.lexsort((split.image_ids, split.clips))
    place = np.empty(len(split), int)
    place[by_time] = np.arange(len(split))
    phases = []
    for epoch in range(3):
        places = np.sort(place[order.samples(epoch)])
        phases.append(places[1] % 3)
        inside = places[places >= phases[-1]]
        assert (np.diff(inside) == 3).all() or len(split) % 3
    assert set(phases) == {0, 1, 2}, "the phase moves with the epoch"


def test_frames_with_a_rare_class_come_as_often_as_asked(index: DatasetIndex) -> None:
    split = index.split("train")
    offsets, labels = split.box_offsets, split.labels
    holds = np.array([2 in labels[offsets[i] : offsets[i + 1]] for i in range(len(split))])
    assert 0 < holds.sum() < len(split)
    order = Frequency.parse(repeat="bicycle=4").order(split, np.arange(len(split)), seed=1)
    shown = np.bincount(order.samples(7) % len(split), minlength=len(split))
    np.testing.assert_array_equal(shown, np.where(holds, 4, 1))
    both = Frequency.parse(every=2, repeat="bicycle=4").order(split, np.arange(len(split)), seed=1)
    shown = np.bincount(both.samples(7) % len(split), minlength=len(split))
    np.testing.assert_array_equal(shown[holds], 2)
    assert (shown[~holds] <= 1).all()


def test_repeated_frames_are_augmented_each_in_its_own_way_whoever_makes_them(index: DatasetIndex) -> None:
    frequency = Frequency.parse(repeat="person=3")
    one, other = (
        dataset(index, frequency=frequency),
        pickle.loads(pickle.dumps(dataset(index, frequency=frequency))),
    )
    drawn = one.order.samples(1).tolist()
    image = drawn[0] % one.ni
    copies = [each for each in drawn if each % one.ni == image]
    assert len(copies) > 1
    first = one[one.order.span + copies[0]]["img"]
    assert not first.equal(one[one.order.span + copies[1]]["img"])
    for _ in range(3):
        _ = other[one.order.span + drawn[5]]
    assert first.equal(other[one.order.span + copies[0]]["img"])


def test_a_sample_that_an_epoch_does_not_show_is_none(index: DatasetIndex) -> None:
    thin = dataset(index, frequency=Frequency(every=2))
    absent = set(range(thin.ni)) - set(thin.order.samples(0).tolist())
    with pytest.raises(IndexError, match="none of epoch 0"):
        _ = thin[absent.pop()]


@pytest.mark.parametrize(
    ("every", "repeat", "message"),
    [
        (0, None, "no training on every 0th frame; expected 1 or more"),
        (None, "motorbike=2", "'motorbike=2' repeats no class.*motorcycle"),
        (None, "motorcycle", "repeats no class"),
        (None, "motorcycle=0", "repeats no class"),
        (None, "motorcycle=1.5", "repeats no class"),
        (None, "", "repeats no class"),
        (None, "person=2,person=3", "person is repeated twice"),
    ],
)
def test_what_makes_no_frequency_is_refused(every: int | None, repeat: str | None, message: str) -> None:
    with pytest.raises(ToolkitError, match=message):
        Frequency.parse(every, repeat)


def test_a_class_that_no_frame_holds_is_named(index: DatasetIndex) -> None:
    split = index.split("train")
    offsets, labels = split.box_offsets, split.labels
    without = [i for i in range(len(split)) if 2 not in labels[offsets[i] : offsets[i + 1]]]
    with pytest.raises(ToolkitError, match=f"no {LABELS[2]} to repeat; found none in the {len(without)} "):
        Frequency.parse(repeat="bicycle=2").order(split, np.array(without), seed=0)


def test_two_splits_as_one_have_the_images_of_both(index: DatasetIndex) -> None:
    parts = [index.split("train"), index.split("val")]
    joined = pickle.loads(pickle.dumps(open_split(index, "train,val")))
    assert len(joined) == sum(map(len, parts))
    for name in ("image_ids", "months", "clips", "boxes", "labels", "present"):
        expected = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(joined, name), expected)
    frames = joined.frames()
    whole = dataset(index, "train,val")
    assert len(frames) == whole.ni == len(joined)
    for row in (0, len(parts[0]) - 1, len(parts[0]), len(joined) - 1):
        part, own = (parts[0], row) if row < len(parts[0]) else (parts[1], row - len(parts[0]))
        assert frames.name(row) == part.frames().name(own)
        np.testing.assert_array_equal(frames.grey(row), part.frames().grey(own))
        boxes = part.training.boxes[part.training.images["box"][own] :][: part.training.images["boxes"][own]]
        np.testing.assert_array_equal(whole._label(row)["bboxes"], boxes["xywh"])
    assert whole[whole.order.samples(0)[0]]["img"].shape == (1, 96, 96)


def test_one_split_by_its_name_is_itself(index: DatasetIndex, tmp_path: Path) -> None:
    assert type(open_split(index, "val")) is type(index.split("val"))
    with pytest.raises(ToolkitError, match="no split named nothing"):
        open_split(index, "train,nothing")
