"""A container sees the host's files under the host's paths, and what links in them point to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from toolkit.container import mounts
from toolkit.container.mounts import Mounts
from toolkit.errors import ToolkitError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "work/data"
    folder.mkdir(parents=True)
    return folder


def shown(folder: Path) -> dict[Path, Path]:
    """Where the host has what the container sees, by where the container has it."""
    made = Mounts()
    made.add(folder)
    return {path: made.sources.get(path, path) for path in made.writable}


@pytest.mark.parametrize("relative", [False, True])
def test_what_a_linked_file_points_to_is_shown_too(relative: bool, data: Path, tmp_path: Path) -> None:
    store = tmp_path / "store/frames.zip"
    store.parent.mkdir()
    store.touch()
    (data / "frames.zip").symlink_to(os.path.relpath(store, data) if relative else store)
    assert shown(data) == {data: data, store: store}


def test_a_link_to_a_link_is_followed_to_its_end(data: Path, tmp_path: Path) -> None:
    (tmp_path / "real.zip").touch()
    (tmp_path / "between.zip").symlink_to("real.zip")
    (data / "inner.zip").symlink_to(tmp_path / "between.zip")
    (data / "frames.zip").symlink_to("inner.zip")
    assert shown(data) == {data: data, tmp_path / "between.zip": tmp_path / "real.zip"}


def test_a_relative_link_in_a_linked_folder_is_shown_where_the_container_looks(
    data: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    (disk / "ltdv2").mkdir(parents=True)
    (disk / "frames.zip").touch()
    (disk / "ltdv2/frames.zip").symlink_to("../frames.zip")
    (data / "ltdv2").symlink_to(disk / "ltdv2")
    found = shown(data / "ltdv2")
    assert found[data / "frames.zip"] == disk / "frames.zip"


def test_a_link_within_the_folder_needs_nothing(data: Path) -> None:
    (data / "real.json").touch()
    (data / "Train.json").symlink_to("real.json")
    assert shown(data) == {data: data}


@pytest.mark.parametrize("target", ["/nowhere/frames.zip", "frames.zip"])
def test_a_link_to_nothing_is_one_clear_line(target: str, data: Path) -> None:
    (data / "frames.zip").symlink_to(target)
    with pytest.raises(ToolkitError, match=rf"frames\.zip points to nothing; found {target}"):
        shown(data)


def test_a_run_on_another_disk_can_be_written_and_a_stale_link_stops_nothing(tmp_path: Path) -> None:
    runs, disk = tmp_path / "runs", tmp_path / "disk/first"
    (runs / "second").mkdir(parents=True)
    disk.mkdir(parents=True)
    (runs / "first").symlink_to(disk)
    (runs / "newest").symlink_to("second")
    (runs / "best.pt").symlink_to("gone.pt")
    made = Mounts()
    made.add_runs(runs)
    assert made.writable == {runs: True, disk: True}


@pytest.mark.parametrize("folder", ["/", "/opt", "/usr", "/home", "/proc"])
def test_a_folder_that_hides_the_images_own_is_refused(folder: str) -> None:
    with pytest.raises(ToolkitError, match="would hide"):
        Mounts().add(Path(folder))


def test_files_that_arguments_name_are_shown_and_other_words_are_not(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("weights.pt", "truth.json", "own.yaml", "first"):
        (tmp_path / name).touch()
    made = Mounts()
    made.add(data)
    made.add_arguments(
        ["weights.pt", "--truth=truth.json", "--model", "own.yaml", "--name", "first", "no.pt"]
    )
    assert set(made.writable) == {
        data,
        *(tmp_path / name for name in ("weights.pt", "truth.json", "own.yaml")),
    }
    assert not any(made.writable.values())


@pytest.mark.parametrize("form", [["--out", "new/here/entry.zip"], ["--out=new/here/entry.zip"]])
def test_where_a_verb_is_to_write_is_writable(
    form: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = Mounts()
    made.add_arguments(form)
    assert made.writable == {tmp_path: True}


def test_the_data_of_runs_is_found_and_what_is_gone_is_left_out(data: Path, tmp_path: Path) -> None:
    for name, record in (
        ("one", json.dumps({"data": str(data)})),
        ("gone", json.dumps({"data": "/workspace/data"})),
        ("damaged", "{"),
    ):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text(record)
    assert mounts.of_runs(tmp_path / "runs") == [data]
