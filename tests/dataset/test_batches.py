"""Batches whose samples are rendered where they are collated: the same bytes, and no memory overwritten."""

from __future__ import annotations

import functools
import gc
import pickle
import random
import time
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import Format
from ultralytics.utils.instance import Instances

from toolkit.dataset.batches import BatchMemory, Copies
from toolkit.dataset.frequency import Frequency
from toolkit.dataset.grey import Brightness, GreyFormat
from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.loader import RING
from toolkit.dataset.ultralytics import LTDv2Dataset, build_dataset, data_dictionary
from toolkit.dataset.views import Views
from toolkit.runs.folder import Batch
from toolkit.training.sampling import EpochSampler, ResumableLoader


def make(
    index: DatasetIndex, frames: str = "now", channels: int | None = None, **options: Any
) -> LTDv2Dataset:
    views = Views.parse(frames)
    args = get_cfg(overrides={"imgsz": 96, **options})
    data = data_dictionary(index, channels or views.channels, views)
    return build_dataset(index, "train", args, "train", 5, data, seed=3)


def loader_of(dataset: LTDv2Dataset, workers: int) -> ResumableLoader:
    order = EpochSampler(len(dataset), 5, dataset.seed, order=dataset.order)
    return ResumableLoader(dataset, order, workers=workers, pin_memory=False, on_worker_death=pytest.fail)


words = st.sampled_from(["before", "before2", "after3", "after40", "background"])
frames = st.lists(words, max_size=3, unique=True).flatmap(lambda some: st.permutations(["now", *some]))


@settings(max_examples=8, deadline=None)
@given(
    shown=frames,
    chances=st.fixed_dictionaries(
        {name: st.sampled_from([0.0, 0.4, 1.0]) for name in ("mosaic", "mixup", "cutmix", "flipud", "fliplr")}
    ),
    turned=st.booleans(),
)
def test_a_batch_is_its_samples_bit_for_bit(
    index: DatasetIndex, shown: list[str], chances: dict[str, float], turned: bool
) -> None:
    """Whatever channels and augmentation: rendered into the batch as alone, or copied into it."""
    options = {**chances, "degrees": 5.0 * turned}
    dataset, alone = (make(index, ",".join(shown), **options) for _ in range(2))
    loader = loader_of(dataset, workers=0)
    for batch in loader:
        first = loader.samples_done - len(batch["img"])
        samples = [alone[i] for i in alone.order.samples(0)[first : loader.samples_done].tolist()]
        expected = alone.collate_fn(samples)
        assert batch.keys() == expected.keys()
        torch.testing.assert_close(batch["img"], expected["img"], rtol=0, atol=0)
        torch.testing.assert_close(batch["bboxes"], expected["bboxes"], rtol=0, atol=0)


@given(skipped=st.sets(st.integers(0, 9)), start=st.integers(0, 9))
def test_a_loader_tells_which_batch_it_will_hand_out_next(
    index: DatasetIndex, skipped: set[int], start: int
) -> None:
    loader = loader_of(make(index, mosaic=0.0), workers=0)
    for epoch in range(2):
        left = frozenset(Batch(epoch, 5 * number, 5) for number in skipped)
        loader.order.enter(epoch, 5 * start, left)
        expected: Batch | None = None
        for _ in loader:
            assert expected in (None, loader.handed_out)
            expected = loader.following
        assert expected in (None, loader.order.end())


@pytest.mark.parametrize(("workers", "seed"), [(1, 0), (2, 1), (2, 2)])
def test_whichever_epoch_is_entered_where_the_batches_are_its_own(
    index: DatasetIndex, workers: int, seed: int
) -> None:
    """Epochs one after the other, twice, left in the middle, and with batches skipped; workers are ahead."""
    dataset, alone = (make(index, "now,before", imgsz=32, mosaic=0.5) for _ in range(2))
    loader, rng, epoch, start = loader_of(dataset, workers), random.Random(seed), 0, 0
    skipped: frozenset[Batch] = frozenset()
    try:
        for _ in range(16):
            loader.order.enter(epoch, start, skipped, is_last=rng.random() < 0.2)
            wanted = list(loader.order.batches())
            stop = rng.choice([len(wanted), len(wanted), rng.randint(0, len(wanted))])
            batches = iter(loader)
            for batch in wanted[:stop]:
                images = next(batches)["img"]
                assert loader.handed_out == batch
                own = alone.order.samples(epoch)[batch.first : batch.first + 5] + epoch * alone.order.span
                expected = torch.stack([alone[i]["img"] for i in own.tolist()])
                torch.testing.assert_close(images, expected, rtol=0, atol=0)
            if stop == len(wanted):
                assert next(batches, None) is None
            place = rng.random()
            if stop < len(wanted) and place < 0.6:
                start = loader.order.start  # goes on there
            else:
                epoch, start = (epoch + 1, 0) if place < 0.7 else (rng.randrange(9), 5 * rng.randrange(9))
            if rng.random() < 0.2:
                skipped = frozenset(Batch(epoch + rng.randrange(2), 5 * n, 5) for n in range(0, 9, 2))
    finally:
        loader.close()


def test_workers_go_on_with_the_next_epoch_while_nobody_asks(index: DatasetIndex) -> None:
    """Its frames are decoded before it is entered, and a worker that dies meanwhile costs nothing."""
    args = get_cfg(overrides={"imgsz": 32, "mosaic": 0.0})
    halves = {"frequency": Frequency(every=2), "seed": 3}
    dataset, alone = (
        build_dataset(index, "train", args, "train", 5, data_dictionary(index, 1), **halves) for _ in range(2)
    )
    first, second = (dataset.images.rows[dataset.order.samples(epoch)[:20]].tolist() for epoch in (0, 1))
    assert not set(first) & set(second)
    order, deaths = EpochSampler(len(dataset), 5, 3, order=dataset.order), []
    loader = ResumableLoader(dataset, order, workers=1, pin_memory=False, on_worker_death=deaths.append)
    store = dataset.pixels.store
    assert store is not None
    try:
        assert sum(len(batch["img"]) for batch in loader) == len(dataset)
        until = time.monotonic() + 60
        while any(store.get(row) is None for row in second) and time.monotonic() < until:
            time.sleep(0.01)
        assert all(store.get(row) is not None for row in second)
        psutil.Process(loader._iterator._workers[0].pid).kill()
        order.enter(1)
        images = torch.cat([batch["img"] for batch in loader])
    finally:
        loader.close()
    expected = [alone[alone.order.span + i]["img"] for i in alone.order.samples(1).tolist()]
    torch.testing.assert_close(images, torch.stack(expected), rtol=0, atol=0)
    assert len(deaths) <= 1


@pytest.mark.parametrize(("shown", "channels"), [("now", 1), ("now", 3), ("now,before,background", 3)])
def test_batches_that_are_kept_are_not_overwritten_by_later_ones(
    index: DatasetIndex, shown: str, channels: int
) -> None:
    """Over two epochs, each with a smaller last batch and more batches than a worker has memory for."""
    options = {"mixup": 0.3, "mosaic": 0.7}
    dataset, alone = (make(index, shown, channels, **options) for _ in range(2))
    loader = loader_of(dataset, workers=1)
    assert len(loader) > RING
    kept: list[torch.Tensor] = []
    try:
        for epoch in range(2):
            loader.order.enter(epoch)
            kept += [batch["img"] for batch in loader]
    finally:
        loader.close()
    expected = iter(
        alone[epoch * alone.order.span + i]["img"]
        for epoch in range(2)
        for i in alone.order.samples(epoch).tolist()
    )
    for images in kept:
        for image in images:
            torch.testing.assert_close(image, next(expected), rtol=0, atol=0)
    assert next(expected, None) is None


def test_a_sample_is_rendered_where_it_is_collated(index: DatasetIndex) -> None:
    dataset = make(index, "now,before", mosaic=0.5, fliplr=0.5)
    loader_of(dataset, workers=0)
    samples = dataset.__getitems__(list(range(5)))
    batch = dataset.batches.collate(dataset.collate_fn, samples)
    assert [sample["img"].data_ptr() for sample in samples] == [image.data_ptr() for image in batch["img"]]
    single = dataset[0]["img"]
    assert single.data_ptr() not in {image.data_ptr() for image in batch["img"]}
    again = dataset.batches.collate(dataset.collate_fn, dataset.__getitems__(list(range(5, 10))))
    assert again["img"].data_ptr() != batch["img"].data_ptr(), (
        "a process that loads by itself keeps no memory"
    )


def test_the_loader_and_its_dataset_share_the_memory_in_a_worker_too(index: DatasetIndex) -> None:
    dataset = make(index)
    loader = loader_of(dataset, workers=0)
    travelled, collate = pickle.loads(pickle.dumps((dataset, loader.collate_fn)))
    assert isinstance(collate, functools.partial)
    assert collate.func.__self__ is travelled.batches
    batch = collate(travelled.__getitems__([1, 2]))
    torch.testing.assert_close(batch["img"][1], dataset[2]["img"], rtol=0, atol=0)


def test_a_sample_that_fails_leaves_the_next_batch_whole() -> None:
    memory = BatchMemory(2)

    def make(index: int) -> dict[str, Any]:
        if index == 3:
            raise OSError("a disk")
        canvas = memory.canvas((2, 3, 2))
        second = memory.canvas((2, 3, 2))
        canvas[...], second[...] = index, 99
        return {"img": torch.from_numpy(canvas.transpose(2, 0, 1))}

    def collate(samples: list[dict[str, Any]], out: torch.Tensor | None) -> dict[str, Any]:
        return {"img": out}

    with pytest.raises(OSError, match="disk"):
        memory.samples(make, [1, 2, 3])
    batch = memory.collate(collate, memory.samples(make, [7, 8]))
    assert batch["img"].shape == (2, 2, 2, 3)
    assert batch["img"][0].unique().tolist() == [7]
    assert batch["img"][1].unique().tolist() == [8]


def test_a_canvas_of_another_size_than_the_batch_has_memory_of_its_own() -> None:
    memory, canvases = BatchMemory(2), []
    memory.samples(lambda i: {"": canvases.append(memory.canvas((4 + i, 6, 1)))}, [0, 1])
    canvases[0][...], canvases[1][...] = 1, 2
    assert canvases[0].shape == (4, 6, 1)
    assert canvases[1].shape == (5, 6, 1)
    assert np.unique(canvases[0]).tolist() == [1]


def test_the_memory_of_a_copy_comes_back_when_its_last_view_is_gone() -> None:
    copies, source = Copies(), torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    first = copies.of(source)
    place, part = first.data_ptr(), first[1:, :2]
    second = copies.of(source + 1)
    assert second.data_ptr() != place
    del first, second
    gc.collect()
    third, fourth = copies.of(source + 2), copies.of(source + 3)
    assert place not in (third.data_ptr(), fourth.data_ptr())
    torch.testing.assert_close(part, source[1:, :2], rtol=0, atol=0)
    torch.testing.assert_close(third, source + 2, rtol=0, atol=0)
    del part
    gc.collect()
    smaller = copies.of(source[:1])
    assert smaller.data_ptr() == place
    torch.testing.assert_close(smaller, source[:1], rtol=0, atol=0)
    larger = copies.of(torch.ones(99, dtype=torch.uint8))
    assert larger.sum() == 99


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 70), st.integers(1, 700), st.booleans(), st.integers(0, 2**16))
def test_a_picture_that_nobody_else_has_is_mirrored_and_brightened_where_it_lies(
    channels: int, height: int, width: int, mirrored: bool, seed: int
) -> None:
    planes = np.random.default_rng(seed).integers(0, 256, (channels, height, width), np.uint8)
    made = []
    for in_place in (False, True):
        random.seed(seed)
        own = planes.copy()
        label = {
            "img": own.transpose(1, 2, 0),
            "cls": np.zeros((0, 1), np.float32),
            "instances": Instances(np.zeros((0, 4), np.float32), bbox_format="xyxy", normalized=False),
        }
        label = Brightness(0.4, in_place)(label)
        label["img"] = label["img"][:, ::-1] if mirrored else label["img"]
        made.append(GreyFormat(Format(bbox_format="xywh"), in_place)(label)["img"])
        assert in_place == (made[-1].data_ptr() == own.ctypes.data)
        assert in_place or (own == planes).all()
    torch.testing.assert_close(made[1], made[0], rtol=0, atol=0)
    random.seed(seed)
    expected = cv2.convertScaleAbs(planes.reshape(-1, width), alpha=1 + 0.4 * random.uniform(-1, 1))
    expected = expected.reshape(planes.shape)[..., :: -1 if mirrored else 1]
    np.testing.assert_array_equal(made[0].numpy(), expected)
