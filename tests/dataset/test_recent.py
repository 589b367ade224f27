"""Frames that stay decoded for a while: the same pixels, few of them, and no fault hidden."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damaged_frames import damage
from hypothesis import given
from hypothesis import strategies as st
from ultralytics.cfg import get_cfg

from toolkit.dataset import recent
from toolkit.dataset.frames import FrameError
from toolkit.dataset.index import DatasetIndex, load
from toolkit.dataset.prepare import prepare
from toolkit.dataset.recent import RecentFrames
from toolkit.dataset.sample import write_sample
from toolkit.dataset.ultralytics import LTDv2Dataset, build_dataset, data_dictionary
from toolkit.dataset.views import FARTHEST, Views, neighbours


class Drawn:
    """Frames of one colour each; every seventh does not decode."""

    def __init__(self) -> None:
        self.decoded: list[int] = []

    def __len__(self) -> int:
        return 100

    def name(self, row: int) -> str:
        return f"frame {row}"

    def read(self, row: int) -> bytes:
        return bytes([row])

    def probe(self, row: int) -> None:
        if row % 7 == 0:
            raise FrameError(self.name(row), "is cut off")

    def grey(self, row: int) -> Any:
        self.decoded.append(row)
        self.probe(row)
        return np.full((4, 5), row, np.uint8)


@given(st.lists(st.integers(0, 20), max_size=80), st.integers(1, 6))
def test_whatever_is_asked_for_is_what_the_source_has(rows: list[int], kept: int) -> None:
    source = Drawn()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent, "RECENT_BYTES", kept * 20 + 19)
        frames = RecentFrames(source, 20)
    lately: list[int] = []
    for row in rows:
        before = len(source.decoded)
        if row % 7:
            assert (frames.grey(row) == row).all()
            assert (len(source.decoded) == before) == (row in lately), "decoded again, or kept for too long"
            lately = [*(other for other in lately if other != row), row][-kept:]
        else:
            with pytest.raises(FrameError, match="cut off"):
                frames.grey(row)
            assert len(source.decoded) == before + 1, "a fault is met anew each time"
    assert frames.grey.cache_info().currsize <= kept


def test_its_pixels_cannot_be_written_and_it_travels_empty() -> None:
    frames = RecentFrames(Drawn(), 20)
    with pytest.raises(ValueError, match="read-only"):
        frames.grey(1)[0, 0] = 9
    travelled = pickle.loads(pickle.dumps(frames))
    assert travelled.grey.cache_info().currsize == 0
    assert (travelled.grey(3) == 3).all()
    assert (len(travelled), travelled.name(2), travelled.read(2)) == (100, "frame 2", b"\2")
    with pytest.raises(FrameError):
        travelled.probe(14)


def test_the_farthest_neighbour_in_ltdv2_is_still_kept_and_a_giant_is_kept_alone() -> None:
    assert RecentFrames(Drawn(), 384 * 288).grey.cache_parameters()["maxsize"] > FARTHEST + 1
    assert RecentFrames(Drawn(), 1 << 24).grey.cache_parameters()["maxsize"] == 1


@pytest.fixture
def quay(tmp_path: Path) -> Path:
    """Clips of four and eight frames."""
    write_sample(tmp_path, train=96, val=8, test=9, seed=1, scene="harbour")
    prepare(tmp_path)
    return tmp_path


def shown(index: DatasetIndex, frames: str) -> LTDv2Dataset:
    views = Views.parse(frames)
    data = data_dictionary(index, views.channels, views)
    return build_dataset(index, "train", get_cfg(overrides={"imgsz": 96}), "val", 4, data)


def test_in_the_order_of_time_each_frame_is_decoded_once(quay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for frames in ("now,before", "after2,now,before3,background"):
        dataset = shown(load(quay), frames)
        assert min(dataset.pixels.sources.missing().values()) < len(dataset) / 2
        assert isinstance(dataset.pixels.frames, RecentFrames)
        decoded: list[int] = []
        source, grey = dataset.pixels.frames.source, dataset.pixels.frames.source.grey
        monkeypatch.setattr(source, "grey", lambda row, g=grey, d=decoded: [d.append(row), g(row)][1])
        for i in range(len(dataset)):
            _ = dataset[i]
        assert sorted(decoded) == list(range(len(dataset.split)))


def test_a_neighbour_that_does_not_decode_counts_for_each_sample_that_it_is_missing_in(quay: Path) -> None:
    split = load(quay).split("train")
    after = neighbours(split, 1)
    row = int(np.flatnonzero((after >= 0) & (neighbours(split, -1) >= 0))[0])
    damage(quay, split.file_names[row].decode())
    dataset = shown(load(quay), "now,before,after")
    samples = {sample["row"]: sample for sample in (dataset[i] for i in range(len(dataset)))}
    before, behind = int(neighbours(split, -1)[row]), int(after[row])
    alone = {r: int(after[r] < 0) + int(neighbours(split, -1)[r] < 0) for r in samples}
    assert samples[row]["unreadable"]
    for other in (before, behind):
        assert samples[other]["stood_in"] == alone[other] + 1
    rest = set(samples) - {before, row, behind}
    assert {r: samples[r]["stood_in"] for r in rest} == {r: alone[r] for r in rest}
    assert dataset.pixels.sources.unreadable == 2
