from __future__ import annotations

import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from ultralytics.cfg import get_cfg

from toolkit.cli import app
from toolkit.dataset import cache
from toolkit.dataset import prepare as prepare_module
from toolkit.dataset.cache import CachedFrames, build, check, choose, open_cache, plan, remove
from toolkit.dataset.index import DatasetIndex, load
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
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
    assert isinstance(dataset.pixels.frames, CachedFrames)
    worker = pickle.loads(pickle.dumps(dataset))
    assert isinstance(worker.pixels.frames, CachedFrames)
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


def test_two_runs_at_once_decode_each_frame_once(
    prepared: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    real = cache._grey
    monkeypatch.setattr(cache, "_grey", lambda *a: decoded.append(a[1]) or real(*a))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: build(prepared, ["train"]), range(2)))
    assert sorted(decoded) == list(range(48))
    assert open_cache(prepared.split("train")) is not None


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


def test_the_damaged_blocks_of_a_cache_and_no_others_are_written_again(
    prepared: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(prepared, ["train"])
    split = prepared.split("train")
    (path,) = prepared.path.parent.glob("*-train-grey.npy")
    sound = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(128 + 20 * 288 * 384)
        file.write(b"x")
    command = ["dataset", "cache", str(prepared.data), "--split", "train"]
    done = CliRunner().invoke(app, [*command, "--check"])
    assert isinstance(done.exception, ToolkitError)
    assert "1 bad blocks of train" in done.exception.line()
    assert choose(split) == (False, "decoded from frames.zip: its cache is unfinished")
    decoded: list[int] = []
    real = cache._grey
    monkeypatch.setattr(cache, "_grey", lambda *a: decoded.append(a[1]) or real(*a))
    assert CliRunner().invoke(app, command).exit_code == 0
    assert sorted(decoded) == list(range(16, 32))
    assert path.read_bytes() == sound
    assert CliRunner().invoke(app, [*command, "--check"]).exit_code == 0
    remove(split)
    assert open_cache(split) is None


def lose_record(npy: Path) -> None:
    npy.with_suffix(".json").unlink()


def lose_checksums(npy: Path) -> None:
    npy.with_suffix(".json").write_text('{"crcs": [], "bad": []}')


def unfinish(npy: Path) -> None:
    npy.rename(f"{npy}.part")


@pytest.mark.parametrize("damage", [Path.unlink, lose_record, lose_checksums, unfinish])
def test_a_cache_that_is_not_finished_or_has_no_checksums_is_neither_sound_nor_used(
    prepared: DatasetIndex, damage: Callable[[Path], None]
) -> None:
    split = prepared.split("train")
    build(prepared, ["train"])
    (path,) = prepared.path.parent.glob("*-train-grey.npy")
    sound = path.read_bytes()
    damage(path)
    with pytest.raises(
        ToolkitError, match=r"no finished cache of train.*toolkit dataset cache .* --split train"
    ):
        check(split)
    assert open_cache(split) is None
    build(prepared, ["train"])
    assert check(split) == []
    assert path.read_bytes() == sound


def break_header(npy: Path) -> None:
    with npy.open("r+b") as file:
        file.write(b"?")


def cut_off(npy: Path) -> None:
    with npy.open("r+b") as file:
        file.truncate(npy.stat().st_size - 1)


@pytest.mark.parametrize(("damage", "blocks"), [(break_header, [0]), (cut_off, [2])])
def test_a_cache_that_cannot_be_opened_is_not_used_and_mended(
    prepared: DatasetIndex, damage: Callable[[Path], None], blocks: list[int]
) -> None:
    split = prepared.split("train")
    build(prepared, ["train"])
    (path,) = prepared.path.parent.glob("*-train-grey.npy")
    damage(path)
    assert open_cache(split) is None
    assert check(split) == blocks
    build(prepared, ["train"])
    assert check(split) == []
    assert open_cache(split) is not None


def test_a_full_disk_is_one_clear_line_and_the_next_run_continues(copy: Path) -> None:
    write_sample(copy / "more", train=1100, val=1, test=1, seed=0, scene="street")
    data = copy / "more"
    prepare(data)

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (70_000_000, 70_000_000))

    command = [sys.executable, "-m", "toolkit", "dataset", "cache", str(data), "--split", "train"]
    done = subprocess.run(command, preexec_fn=small_files, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: cannot write the cache" in done.stderr
    assert "Traceback" not in done.stderr
    split = load(data).split("train")
    assert open_cache(split) is None
    assert plan(load(data), ["train"]).left == (1100 - cache.BLOCK) * 288 * 384
    build(load(data), ["train"])
    assert check(split) == []


def test_decoded_frames_outlive_their_index_while_they_are_still_its_frames(
    copy: Path,
    edit: Callable[[str, Callable[[dict[str, Any]], None]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(copy)
    build(load(copy), ["train", "val"])
    edit("Train.json", lambda content: content["annotations"].pop())

    def lose_an_image(content: dict[str, Any]) -> None:
        lost = content["images"].pop(0)["id"]
        content["annotations"] = [box for box in content["annotations"] if box["image_id"] != lost]

    edit("Valid.json", lose_an_image)
    capsys.readouterr()
    prepare(copy)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "removing" in line]
    assert line.endswith("-val-grey.npy (0.0 GB of decoded frames): the split has other frames now")
    after = load(copy)
    assert check(after.split("train")) == []
    assert open_cache(after.split("val")) is None
    assert len(list((copy / "prepared").glob("*-grey.*"))) == 2


def test_a_run_that_ends_before_it_has_tidied_up_leaves_that_to_the_next(
    copy: Path,
    edit: Callable[[str, Callable[[dict[str, Any]], None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(copy)
    build(load(copy), ["val"])
    edit("Train.json", lambda content: content["annotations"].pop())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare_module, "_remove_older", interrupt)
        prepare(copy)
    result = prepare(copy)
    assert result.unchanged
    stem = Path(result.manifest.index).stem
    assert all(path.name.startswith(stem) for path in (copy / "prepared").glob("index-*"))
    assert open_cache(load(copy).split("val")) is not None


def test_beside_an_index_that_cannot_be_written_the_cache_goes_to_the_users_folder(
    prepared: DatasetIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(prepared, ["val"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = os.access
    inside = prepared.path.parent
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != inside and real(path, mode))
    done = CliRunner().invoke(app, ["dataset", "cache", str(prepared.data)])
    assert f"in {tmp_path / 'cache'}" in done.stderr
    assert open_cache(prepared.split("train")) is not None
    assert open_cache(prepared.split("val")) is not None
    assert len(list(inside.glob("*-grey.npy"))) == len(list(tmp_path.glob("cache/**/*-grey.npy"))) == 1


def test_too_little_space_is_said_before_anything_is_written(
    prepared: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 10

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(ToolkitError, match="too little space"):
        build(prepared, ["train"])
    assert not list(prepared.path.parent.glob("*grey*"))


def test_blocks_that_are_written_again_take_no_more_space(
    prepared: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(prepared, ["train"])
    (path,) = prepared.path.parent.glob("*-train-grey.npy")
    lose_record(path)

    class Full:
        free = 0

    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: Full)
    build(prepared, ["train"])
    assert check(prepared.split("train")) == []
