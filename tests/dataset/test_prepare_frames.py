from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolkit.dataset import prepare as prepare_module
from toolkit.dataset.index import DatasetIndex, load
from toolkit.dataset.prepare import prepare
from toolkit.dataset.verify import verify
from toolkit.errors import ToolkitError

Edit = Callable[[str, Callable[[dict[str, Any]], None]], None]


@pytest.fixture
def extracted(copy: Path) -> Path:
    """The copy with its frames as files in a folder."""
    with zipfile.ZipFile(copy / "frames.zip") as file:
        file.extractall(copy)
    (copy / "frames.zip").unlink()
    return copy


def test_frames_in_a_folder_serve_as_well(extracted: Path, index: DatasetIndex) -> None:
    prepare(extracted)
    ours, theirs = load(extracted).split("val"), index.split("val")
    assert sorted(ours.image_ids) == sorted(theirs.image_ids)
    assert ours.frames().read(0) == (extracted / ours.file_names[0].decode()).read_bytes()


def test_files_of_any_name_may_lie_among_the_frames(extracted: Path) -> None:
    for name in ("caf\u00e9.jpg", os.fsdecode(b"\xff.jpg")):
        (extracted / "frames" / name).touch()
    assert prepare(extracted).manifest.unlisted_frames == 2
    assert prepare(extracted).unchanged


def test_frames_behind_a_link_to_another_disk_are_found(extracted: Path, tmp_path: Path) -> None:
    day, *others = sorted(p for p in (extracted / "frames").iterdir())
    day.symlink_to(day.rename(tmp_path / "elsewhere"))
    (others[0] / "up").symlink_to(extracted / "frames")
    (others[0] / "self").symlink_to(others[0])
    (others[0] / "nowhere").symlink_to(tmp_path / "gone")
    manifest = prepare(extracted).manifest
    assert (manifest.discrepancies, manifest.unlisted_frames) == ({}, 0)
    frames = load(extracted).split("train").frames()
    assert all(frames.grey(row).shape == (288, 384) for row in range(len(frames)))


def test_a_folder_of_frames_that_cannot_be_read_is_named(
    extracted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(prepare_module.os, "scandir", refuse)  # type: ignore[attr-defined]
    with pytest.raises(ToolkitError, match=r"cannot read .*frames; found Permission denied"):
        prepare(extracted)


def pixels(folder: Path) -> dict[bytes, bytes]:
    """Every frame of a prepared folder, read by the reader of training."""
    splits = [load(folder).split(name) for name in ("train", "val", "test")]
    return {split.file_names[row]: split.frames().read(row) for split in splits for row in range(len(split))}


@pytest.mark.parametrize("where", ["frames", "LTDv2/data/frames", "ltdv2 frames/frames"])
def test_frames_unpacked_into_folders_more_are_read_where_prepare_found_them(
    sample: Path, extracted: Path, where: str
) -> None:
    (extracted / "frames").rename(extracted / "inner")
    (extracted / "frames" / where).parent.mkdir(parents=True)
    (extracted / "inner").rename(extracted / "frames" / where)
    manifest = prepare(extracted).manifest
    assert "frame missing" not in manifest.discrepancies
    assert pixels(extracted) == pixels(sample)
    assert verify(load(extracted), deep=True).bad == []


def test_frames_of_which_a_part_lies_deeper_are_all_read(sample: Path, extracted: Path) -> None:
    day = sorted((extracted / "frames").iterdir())[0]
    (extracted / "frames" / "more" / "frames").mkdir(parents=True)
    day.rename(extracted / "frames" / "more" / "frames" / day.name)
    prepare(extracted)
    assert pixels(extracted) == pixels(sample)


@pytest.mark.parametrize("damage", ["cut off", "another", "fewer"])
def test_an_archive_that_is_not_whole_does_not_hide_a_whole_folder(
    sample: Path, copy: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = copy / "frames.zip"
    with zipfile.ZipFile(archive) as file:
        file.extractall(copy)
        names = file.namelist()
        if damage == "fewer":
            with zipfile.ZipFile(copy / "new.zip", "w") as new:
                new.writestr(names[0], file.read(names[0]))
    if damage == "fewer":
        (copy / "new.zip").replace(archive)
    else:
        archive.write_bytes(archive.read_bytes()[:-50] if damage == "cut off" else b"version https://git-lfs")
    assert prepare(copy).manifest.frames == "frames"
    assert "are read from the folder" in capsys.readouterr().err
    assert pixels(copy) == pixels(sample)


def test_a_whole_archive_wins_over_a_folder_beside_it(copy: Path) -> None:
    with zipfile.ZipFile(copy / "frames.zip") as file:
        file.extractall(copy)
    assert prepare(copy).manifest.frames == "frames.zip"
    next((copy / "frames").rglob("*.jpg")).unlink()
    assert prepare(copy).manifest.frames == "frames.zip"
