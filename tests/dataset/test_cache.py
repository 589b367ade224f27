from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from ultralytics.cfg import get_cfg

from toolkit.cli import app
from toolkit.dataset import cache
from toolkit.dataset.cache import CachedFrames, build, check, choose, open_cache, plan, remove
from toolkit.dataset.index import DatasetIndex, load, prepare
from toolkit.dataset.ultralytics import build_dataset, data_dictionary
from toolkit.errors import ToolkitError


@pytest.fixture
def prepared(copy: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetIndex:
    monkeypatch.setattr(cache, "BLOCK", 16)
    prepare(copy)
    return load(copy)


def test_the_cache_holds_the_same_pixels_and_its_size_was_said_before(prepared: DatasetIndex) -> None:
    needed = plan(prepared, ["train", "val"])
    assert needed.size == needed.left == (48 + 24) * 288 * 384
    build(prepared, ["train", "val"])
    split = prepared.split("train")
    cached, source = open_cache(split), split.frames()
    assert cached is not None
    for row in range(len(split)):
        np.testing.assert_array_equal(cached.grey(row), source.grey(row))
    files = prepared.path.parent.glob("*-grey.npy")
    assert sum(path.stat().st_size for path in files) == needed.size + 2 * 128
    assert plan(prepared, ["train", "val"]).left == 0
    assert check(split) == []


def test_an_interrupted_cache_is_continued_where_it_stopped(
    prepared: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = prepared.split("train")
    decoded: list[int] = []
    real = cache._grey

    def stop_late(frames: object, row: int, size: tuple[int, ...]) -> object:
        decoded.append(row)
        if row == 37:
            raise KeyboardInterrupt
        return real(frames, row, size)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "_grey", stop_late)
    with pytest.raises(KeyboardInterrupt):
        build(prepared, ["train"])
    assert open_cache(split) is None
    assert plan(prepared, ["train"]).left == 16 * 288 * 384
    monkeypatch.setattr(cache, "_grey", lambda *a: decoded.append(a[1]) or real(*a))
    decoded.clear()
    build(prepared, ["train"])
    assert min(decoded) == 32
    assert check(split) == []


def test_training_takes_the_cache_if_it_fits_and_says_why(
    prepared: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = prepared.split("train")
    assert choose(split) == (False, "decoded from frames.zip: there is no cache")
    build(prepared, ["train"])
    use, why = choose(split)
    assert use
    assert why.startswith("from the cache in memory: ")
    data = data_dictionary(prepared, 1)
    dataset = build_dataset(prepared, "train", get_cfg(overrides={"imgsz": 96}), "train", 4, data)
    assert isinstance(dataset.frames, CachedFrames)
    worker = pickle.loads(pickle.dumps(dataset))
    assert isinstance(worker.frames, CachedFrames)
    assert worker[3]["img"].shape == (1, 96, 96)


@pytest.mark.parametrize(
    ("seconds", "choice"),
    [
        ((1e-4, 3e-4), (True, "from the cache on disk: 100 us a frame, 300 us decoded from frames.zip")),
        ((7e-4, 3e-4), (False, "decoded from frames.zip: 300 us a frame, 700 us from the cache on disk")),
    ],
)
def test_a_cache_beyond_the_memory_is_taken_where_reading_it_is_faster(
    prepared: DatasetIndex,
    monkeypatch: pytest.MonkeyPatch,
    seconds: tuple[float, float],
    choice: tuple[bool, str],
) -> None:
    build(prepared, ["train"])
    measured = iter(seconds)
    monkeypatch.setattr(cache, "MEMORY_SHARE", 0.0)
    monkeypatch.setattr(cache, "_seconds_per_frame", lambda *_: next(measured))
    assert choose(prepared.split("train")) == choice


def test_a_frame_that_does_not_decode_stays_bad_in_the_cache(prepared: DatasetIndex) -> None:
    split = prepared.split("train")
    members = split.frames().members  # type: ignore[attr-defined]
    header, half = 30 + len(split.file_names[5]), int(members.sizes[5]) // 2
    with (prepared.data / "frames.zip").open("r+b") as file:
        file.seek(int(members.offsets[5]) + header + half)
        file.write(b"\0" * half)
    build(prepared, ["train"])
    cached = open_cache(split)
    assert cached is not None
    with pytest.raises(ToolkitError, match="frame frames/"):
        cached.grey(5)


def test_a_damaged_cache_is_noticed_and_can_be_removed(prepared: DatasetIndex) -> None:
    build(prepared, ["train"])
    split = prepared.split("train")
    (path,) = prepared.path.parent.glob("*-train-grey.npy")
    with path.open("r+b") as file:
        file.seek(128 + 20 * 288 * 384)
        file.write(b"x")
    assert check(split) == [1]
    done = CliRunner().invoke(app, ["dataset", "cache", str(prepared.data), "--split", "train", "--check"])
    assert isinstance(done.exception, ToolkitError)
    remove(split)
    assert open_cache(split) is None


def test_too_little_space_is_said_before_anything_is_written(
    prepared: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 10

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(ToolkitError, match="too little space"):
        build(prepared, ["train"])
    assert not list(prepared.path.parent.glob("*grey*"))
