"""Frames that stay decoded for a training: the same samples, each decoded once, where there is the room."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damaged_frames import damage
from hypothesis import given, settings
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg

from toolkit.dataset import at_hand, shared
from toolkit.dataset.index import DatasetIndex, load
from toolkit.dataset.planes import channels_of
from toolkit.dataset.prepare import prepare
from toolkit.dataset.shared import SharedFrames, Store, store_for
from toolkit.dataset.ultralytics import LTDv2Dataset, build_dataset, data_dictionary
from toolkit.dataset.views import Views, neighbours
from toolkit.training.sampling import EpochSampler, ResumableLoader


def make(index: DatasetIndex, views: str = "now", mode: str = "train", **options: Any) -> LTDv2Dataset:
    chosen = Views.parse(views)
    args = get_cfg(overrides={"imgsz": 96, **options})
    return build_dataset(
        index, "train", args, mode, 4, data_dictionary(index, chosen.channels, chosen), seed=6
    )


def decoding(
    monkeypatch: pytest.MonkeyPatch, index: DatasetIndex, views: str = "now", **options: Any
) -> LTDv2Dataset:
    """The same on a machine without the room."""
    with monkeypatch.context() as patch:
        patch.setattr(shared, "SHARE", 0.0)
        dataset = make(index, views, **options)
    assert dataset.pixels.store is None
    return dataset


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    rows=st.lists(st.integers(0, 8), max_size=12),
    seed=st.integers(0, 2**16),
)
def test_what_was_put_there_is_there_and_nothing_else(
    size: tuple[int, int], rows: list[int], seed: int
) -> None:
    store, rng, expected = Store(9, size), np.random.default_rng(seed), {}
    for row in rows:
        wide = rng.integers(0, 256, (size[0], 2 * size[1]), np.uint8)
        expected[row] = wide[:, ::2]  # in pieces
        store.put(row, expected[row])
        store.put((row + 1) % 9, np.zeros((size[0] + 1, size[1]), np.uint8))
    for row in range(9):
        if row in expected:
            np.testing.assert_array_equal(store.get(row), expected[row])
            assert not store.get(row).flags.writeable
        else:
            assert store.get(row) is None


@pytest.mark.parametrize("views", ["now", "now,before,background"])
@pytest.mark.parametrize("options", [{}, {"degrees": 5.0}, {"mosaic": 0.0}, {"imgsz": 384}], ids=str)
def test_samples_are_those_of_decoded_frames_bit_for_bit(
    index: DatasetIndex, monkeypatch: pytest.MonkeyPatch, views: str, options: dict[str, float]
) -> None:
    kept, decoded = make(index, views, **options), decoding(monkeypatch, index, views, **options)
    assert isinstance(kept.pixels.frames, SharedFrames)
    for epoch in (0, 1):
        for i in (epoch * kept.order.span + kept.order.samples(epoch))[:10].tolist():
            one, other = kept[i], decoded[i]
            torch.testing.assert_close(one["img"], other["img"], rtol=0, atol=0)
            torch.testing.assert_close(one["bboxes"], other["bboxes"], rtol=0, atol=0)


def test_a_mosaic_samples_kept_frames_where_they_lie_and_decoded_ones_where_earlier_ones_lay(
    index: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_hand, "NEIGHBOURS", 2)
    kept, decoded = make(index, "now,background"), decoding(monkeypatch, index, "now,background")
    order = [(epoch * kept.order.span + kept.order.samples(epoch)).tolist() for epoch in range(3)]
    for i in order[0]:
        _ = kept[i]
    assert not kept.at_hand.spare
    frames_of, memory = [], []
    for dataset in (kept, decoded):
        places: set[int] = set()
        for i in order[1] + order[2]:
            _ = dataset[i]
            for row, (layers, _, _) in dataset.at_hand.recent.items():
                frame, background = channels_of(layers)
                assert not background.flags.writeable
                assert frame.flags.writeable == (dataset is decoded)
                if dataset is kept:
                    assert np.shares_memory(frame, kept.pixels.store.get(int(kept.images.rows[row])))
                places.add(frame.ctypes.data)
        frames_of.append(len(dataset.images.rows))
        memory.append(len(places))
    assert memory[0] == frames_of[0]
    assert memory[1] <= at_hand.LANES * 3 + 3
    assert memory[1] < frames_of[1]


def test_workers_share_what_any_of_them_decoded(index: DatasetIndex) -> None:
    """They begin with what is there, here frames that are black, and what they add is seen outside."""
    dataset = make(index, "now,before", hsv_v=0.0, mosaic=0.0)
    frames, store = dataset.split.frames(), dataset.pixels.store
    assert store is not None
    black = set(range(0, len(dataset.split), 2))
    for row in black:
        store.put(row, np.zeros_like(frames.grey(row)))
    order = EpochSampler(len(dataset), 4, dataset.seed, order=dataset.order)
    loader = ResumableLoader(dataset, order, workers=2, pin_memory=False, on_worker_death=pytest.fail)
    try:
        images = torch.cat([batch["img"] for batch in loader])
    finally:
        loader.close()
    for image, row in zip(images, dataset.images.rows[dataset.order.samples(0)].tolist(), strict=True):
        assert (not (image[0][image[0] != 114]).any()) == (row in black)
    for row in set(range(len(dataset.split))) - black:
        np.testing.assert_array_equal(store.get(row), frames.grey(row))


def test_each_frame_is_decoded_once_however_many_samples_show_it(
    index: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(index, "now,before,after")
    assert isinstance(dataset.pixels.frames, SharedFrames)
    decoded: list[int] = []
    source, grey = dataset.pixels.frames.source, dataset.pixels.frames.source.grey
    monkeypatch.setattr(source, "grey", lambda row: [decoded.append(row), grey(row)][1])
    for epoch in range(2):
        for i in (epoch * dataset.order.span + dataset.order.samples(epoch)).tolist():
            _ = dataset[i]
    assert sorted(decoded) == list(range(len(dataset.split)))


def test_a_neighbour_that_does_not_decode_is_not_kept_and_counts_each_time(copy: Path) -> None:
    prepare(copy)
    split = load(copy).split("train")
    row = int(np.flatnonzero(neighbours(split, -1) >= 0)[0])
    before = int(neighbours(split, -1)[row])
    damage(copy, split.file_names[before].decode())
    pixels = make(load(copy), "now,before").pixels
    for times in (1, 2):
        image, stood_in = pixels.read(row, pixels.frames.grey(row).shape)
        np.testing.assert_array_equal(image[..., 0], image[..., 1])
        assert (stood_in, pixels.sources.unreadable) == (1, times)
    assert pixels.store is not None
    assert pixels.store.get(before) is None
    assert pixels.store.get(row) is not None


@pytest.mark.parametrize("written", ["nothing", "a part"])
def test_where_memory_runs_short_a_frame_is_decoded_again(
    index: DatasetIndex, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    def short(_: int, data: Any, __: int) -> int:
        if written == "nothing":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(memoryview(data).cast("B")) // 2

    frames = make(index).pixels.frames
    monkeypatch.setattr(shared.os, "pwrite", short)
    assert isinstance(frames, SharedFrames)
    for _ in range(2):
        np.testing.assert_array_equal(frames.grey(3), frames.source.grey(3))
    assert frames.store.get(3) is None


def test_frames_stay_only_where_all_ranks_have_the_room_and_sizes_are_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = np.zeros(10, [("height", "<u2"), ("width", "<u2")])
    sizes["height"], sizes["width"] = 40, 50
    monkeypatch.setattr(shared, "memory", lambda: (10**9, int(2 * 7 * 2000 / shared.SHARE)))
    assert store_for(10, 7, sizes)[0] is not None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert store_for(10, 7, sizes)[0] is not None
    assert store_for(10, 8, sizes)[0] is None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert store_for(10, 7, sizes)[0] is None
    assert store_for(10, 7, sizes, ranks=2)[0] is not None
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    sizes["height"][4] = 41
    assert store_for(10, 1, sizes)[0] is None


@pytest.mark.parametrize("limit", [resource.RLIMIT_AS, resource.RLIMIT_FSIZE], ids=["ulimit -v", "ulimit -f"])
def test_frames_do_not_stay_where_the_process_may_not_have_so_much(limit: int) -> None:
    sizes = np.zeros(2**20, [("height", "<u2"), ("width", "<u2")])
    sizes["height"] = sizes["width"] = 2**10
    assert store_for(len(sizes), 1, sizes)[0] is not None
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (2**40, before[1]))  # of 2**40 pixels and as many marks as frames
    try:
        assert store_for(len(sizes), 1, sizes)[0] is None
    finally:
        resource.setrlimit(limit, before)


def test_validation_keeps_none_and_says_so(index: DatasetIndex) -> None:
    dataset = make(index, mode="val")
    assert dataset.pixels.store is None
    assert "memory" not in dataset.pixels.origin
    assert "fit into memory" in make(index).pixels.origin


def test_what_does_not_fit_is_said_with_how_much_it_is(
    index: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = 288 * 384
    monkeypatch.setattr(shared, "memory", lambda: (10**12, 3 * 10**9))
    pixels = make(index).pixels
    assert pixels.store is not None
    assert f"once: {len(pixels.split) * frame / 1e9:.1f} GB fit into memory" in pixels.origin
    monkeypatch.setattr(shared, "SHARE", 0.0)
    refused = make(index).pixels
    assert refused.store is None
    assert "are more than the 0.0 that frames may take" in refused.origin


def test_a_copy_that_no_process_is_started_with_is_empty_and_its_memory_goes(index: DatasetIndex) -> None:
    gc.collect()  # what other tests left goes now, not while it is counted
    before = len(list(Path("/proc/self/fd").iterdir()))
    store = Store(4, (3, 5))
    store.put(2, np.ones((3, 5), np.uint8))
    copied = pickle.loads(pickle.dumps(store))
    assert copied.get(2) is None
    copied.put(2, np.full((3, 5), 7, np.uint8))
    assert (store.get(2) == 1).all()
    del store, copied
    assert len(list(Path("/proc/self/fd").iterdir())) == before
