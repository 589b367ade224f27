from __future__ import annotations

import gzip
import json
import os
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from toolkit.dataset import prepare as prepare_module
from toolkit.dataset.index import DatasetIndex, load, read_manifest
from toolkit.dataset.prepare import prepare
from toolkit.errors import ToolkitError
from toolkit.files import turn

Edit = Callable[[str, Callable[[dict[str, Any]], None]], None]


def discrepancies(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "prepared" / "discrepancies.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_preparing_again_does_nothing_until_an_input_changes(copy: Path, edit: Edit) -> None:
    first = prepare(copy)
    written = (first.folder / first.manifest.index).stat().st_mtime_ns
    again = prepare(copy)
    assert (first.unchanged, again.unchanged) == (False, True)
    assert (first.folder / first.manifest.index).stat().st_mtime_ns == written
    edit("Train.json", lambda content: content["annotations"].pop())
    killed = first.folder / ".index-of-a-killed-run.parquet.1234.tmp"
    killed.touch()
    third = prepare(copy)
    assert not killed.exists()
    assert not third.unchanged
    assert third.manifest.boxes["train"] == first.manifest.boxes["train"] - 1
    assert len(list(third.folder.glob("index-*"))) == 1 + 2 * 3


def lose(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [lose, empty, cut_off])
@pytest.mark.parametrize("table", ["-train-images.npy", "-train-boxes.npy", ".parquet"])
def test_preparing_again_replaces_a_table_that_is_lost_or_cut_off(
    copy: Path, table: str, damage: Callable[[Path], None]
) -> None:
    first = prepare(copy)
    path = first.folder / (Path(first.manifest.index).stem + table)
    content = path.read_bytes()
    damage(path)
    if table.endswith(".npy"):
        with pytest.raises(ToolkitError, match=r"is incomplete.*toolkit dataset prepare"):
            _ = load(copy).split("train").training
    assert not prepare(copy).unchanged
    assert path.read_bytes() == content
    assert prepare(copy).unchanged


def test_nothing_is_extracted_or_copied(copy: Path) -> None:
    before = {p.name for p in copy.iterdir()}
    prepare(copy)
    assert {p.name for p in copy.iterdir()} - before == {"prepared"}
    size = sum(p.stat().st_size for p in (copy / "prepared").iterdir())
    assert size < 60_000


def test_boxes_outside_their_frame_are_counted_and_kept_as_written(copy: Path, edit: Edit) -> None:
    edit("Train.json", lambda content: content["annotations"][0].update(bbox=[-5.25, 280, 30, 20]))
    edit("Train.json", lambda content: content["annotations"][1].update(bbox=[10, 10, 0, 5]))
    result = prepare(copy)
    assert result.manifest.discrepancies == {"box outside its frame": 1, "box without area": 1}
    assert {d["kind"] for d in discrepancies(copy)} == set(result.manifest.discrepancies)
    boxes = load(copy).split("train").boxes.tolist()
    assert [-5.25, 280.0, 24.75, 300.0] in boxes
    assert [10.0, 10.0, 10.0, 15.0] in boxes


def no_annotations(content: dict[str, Any]) -> None:
    content.pop("annotations", None)


def empty_annotations(content: dict[str, Any]) -> None:
    content["annotations"] = []


def empty_images(content: dict[str, Any]) -> None:
    content["images"] = []


@pytest.mark.parametrize(
    ("file", "damage", "lack"),
    [
        ("Train.json", no_annotations, "annotations"),
        ("Valid.json", empty_annotations, "annotations"),
        ("Train.json", empty_images, "images"),
        ("TestNoLabels.json", empty_images, "images"),
    ],
)
def test_a_file_without_what_its_split_is_for_is_refused(
    copy: Path, edit: Edit, file: str, damage: Callable[[dict[str, Any]], None], lack: str
) -> None:
    edit(file, damage)
    with pytest.raises(ToolkitError, match=rf"{file} has no {lack}"):
        prepare(copy)


@pytest.mark.parametrize("number", [5, 20201312345678901, 202005123456789012])
def test_an_id_that_no_month_can_be_read_from_is_counted(copy: Path, edit: Edit, number: int) -> None:
    def renumber(content: dict[str, Any]) -> None:
        content["images"][0]["id"] = number

    edit("TestNoLabels.json", renumber)
    assert prepare(copy).manifest.discrepancies == {"image id without a month": 1}


def unknown_image(content: dict[str, Any]) -> None:
    content["annotations"][0]["image_id"] = 20200512345678901


def unknown_category(content: dict[str, Any]) -> None:
    content["annotations"][0]["category_id"] = 7


def background(content: dict[str, Any]) -> None:
    content["annotations"][0]["category_id"] = 0


def duplicate_image(content: dict[str, Any]) -> None:
    content["images"].append({**content["images"][0], "file_name": "frames/elsewhere.jpg"})


def duplicate_frame(content: dict[str, Any]) -> None:
    content["images"].append({**content["images"][0], "id": 20200512345678901})


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (unknown_image, "unknown image"),
        (unknown_category, "unknown category"),
        (background, "unknown category"),
        (duplicate_image, "duplicate image id"),
        (duplicate_frame, "duplicate frame"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused_or_cleaned(
    copy: Path, edit: Edit, damage: Callable[[dict[str, Any]], None], kind: str
) -> None:
    before = prepare(copy).manifest
    edit("Train.json", damage)
    with pytest.raises(ToolkitError, match=f"1 x {kind}"):
        prepare(copy)
    assert read_manifest(copy / "prepared") == before
    assert json.loads((copy / "prepared" / "refused.jsonl").read_text())["kind"] == kind
    cleaned = prepare(copy, drop_bad=True)
    assert cleaned.manifest.discrepancies == {kind: 1}
    assert cleaned.manifest.images == before.images
    lost = 0 if "duplicate" in kind else 1
    assert cleaned.manifest.boxes["train"] == before.boxes["train"] - lost
    assert not (copy / "prepared" / "refused.jsonl").exists()


@pytest.mark.parametrize(("key", "kind"), [("id", "duplicate image id"), ("file_name", "duplicate frame")])
def test_an_image_of_two_files_is_refused_or_stays_in_the_first(
    copy: Path, edit: Edit, key: str, kind: str
) -> None:
    trained = json.loads((copy / "Train.json").read_text())["images"][0]
    edit("TestNoLabels.json", lambda content: content["images"][0].update({key: trained[key]}))
    with pytest.raises(ToolkitError, match=f"1 x {kind}"):
        prepare(copy)
    cleaned = prepare(copy, drop_bad=True)
    assert cleaned.manifest.images == {"train": 48, "val": 24, "test": 17}
    assert discrepancies(copy)[0]["file"] == "two of the annotation files"


def test_an_annotation_id_that_occurs_twice_is_counted_and_its_box_kept(copy: Path, edit: Edit) -> None:
    boxes = prepare(copy).manifest.boxes

    def repeat(content: dict[str, Any]) -> None:
        content["annotations"][1]["id"] = content["annotations"][0]["id"]

    edit("Train.json", repeat)
    manifest = prepare(copy).manifest
    assert manifest.discrepancies == {"duplicate annotation id": 1}
    assert manifest.boxes == boxes


def test_frames_missing_from_the_archive_and_frames_nobody_lists_are_counted(copy: Path) -> None:
    with zipfile.ZipFile(copy / "frames.zip") as old:
        members = {name: old.read(name) for name in old.namelist()}
    lost = sorted(members)[3]
    members["frames/20200101/clip_0_0000/image_0000.jpg"] = members.pop(lost)
    with zipfile.ZipFile(copy / "frames.zip", "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    result = prepare(copy)
    assert result.manifest.discrepancies == {"frame missing": 1}
    assert result.manifest.unlisted_frames == 1
    listed = gzip.decompress((copy / "prepared" / "unlisted-frames.txt.gz").read_bytes()).decode()
    assert listed == "frames/20200101/clip_0_0000/image_0000.jpg\n"
    assert [d["frame"] for d in discrepancies(copy)] == [lost]
    absent = [s for s in ("train", "val", "test") if not load(copy).split(s).present.all()]
    assert len(absent) == 1


def test_missing_files_are_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"no annotation files.*Train\.json"):
        prepare(tmp_path)
    (copy / "frames.zip").unlink()
    with pytest.raises(ToolkitError, match=r"no frames.*frames\.zip"):
        prepare(copy)
    with pytest.raises(ToolkitError, match=r"not prepared.*toolkit dataset prepare"):
        load(copy)


def test_an_archive_that_is_cut_off_leaves_the_old_index(copy: Path) -> None:
    before = prepare(copy).manifest
    data = (copy / "frames.zip").read_bytes()
    (copy / "frames.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(ToolkitError, match=r"frames\.zip is cut off"):
        prepare(copy)
    assert read_manifest(copy / "prepared") == before


def test_an_archive_of_something_else_is_refused(copy: Path) -> None:
    with zipfile.ZipFile(copy / "frames.zip", "w") as file:
        file.writestr("holiday/beach.jpg", b"x")
    with pytest.raises(ToolkitError, match=r"holds none of the frames.*holiday/beach\.jpg"):
        prepare(copy)


@pytest.mark.parametrize("when", ["write_parquet", "manifest"])
def test_an_interrupted_run_leaves_the_old_index(
    copy: Path, edit: Edit, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    before = prepare(copy)
    edit("Train.json", lambda content: content["annotations"].pop())

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if when == "write_parquet":
        monkeypatch.setattr(pl.DataFrame, "write_parquet", interrupt)
    else:
        monkeypatch.setattr(prepare_module.msgspec.json, "format", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(copy)
    monkeypatch.undo()
    assert load(copy).manifest == before.manifest
    assert len(load(copy).split("train").boxes) == before.manifest.boxes["train"]
    assert not list((copy / "prepared").glob("*.tmp"))


def test_two_runs_at_once_take_turns_and_leave_one_whole_index(copy: Path) -> None:
    """Of different options: neither may remove what the other has written or is writing."""
    command = [sys.executable, "-m", "toolkit", "dataset", "prepare", str(copy)]
    with turn(copy / "prepared"):
        runs = [
            subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
            for options in ([], ["--drop-bad"], [])
        ]
        for run in runs:
            assert run.stderr is not None
            assert "waiting for another process" in run.stderr.readline()
        assert not list((copy / "prepared").glob("index-*"))
    for run in runs:
        run.communicate()
        assert run.returncode == 0
    index = load(copy)
    assert len(index.split("train").training.images) == 48
    assert len(list((copy / "prepared").glob("index-*"))) == 1 + 2 * 3


def test_a_full_disk_is_one_clear_line_and_leaves_the_old_index(copy: Path, edit: Edit) -> None:
    before = prepare(copy).manifest
    edit("Train.json", lambda content: content["annotations"].pop())

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))

    command = [sys.executable, "-m", "toolkit", "dataset", "prepare", str(copy)]
    done = subprocess.run(command, preexec_fn=small_files, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert load(copy).manifest == before
    assert not list((copy / "prepared").glob(".*.tmp"))


def test_a_folder_that_cannot_be_written_sends_the_index_to_the_cache(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != copy and real(path, mode))
    result = prepare(copy)
    assert result.folder.is_relative_to(tmp_path / "cache")
    assert "cannot be written" in capsys.readouterr().err
    assert not (copy / "prepared").exists()
    assert len(load(copy).split("val")) == 24


def test_two_datasets_at_one_path_that_cannot_be_written_have_an_index_each(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not copy.samefile(path) and real(path, mode))
    first = prepare(copy).folder
    os.utime(copy / "Valid.json", ns=(0, 0))
    with pytest.raises(ToolkitError, match="is not prepared"):
        load(copy)
    assert prepare(copy).folder != first
    assert len(load(copy).split("val")) == 24


def test_an_older_index_in_a_folder_that_cannot_be_written_is_replaced_in_the_cache(
    copy: Path,
    edit: Edit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    older = prepare(copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: copy not in Path(path).parents and real(path, mode))
    assert prepare(copy).unchanged
    assert prepare(copy).folder == older.folder
    for again in (False, True):
        edit("Train.json", lambda content: content["annotations"].pop())
        newer = prepare(copy)
        assert newer.folder.is_relative_to(tmp_path / "cache")
        said = capsys.readouterr().err
        assert f"cannot be written: the index goes to {newer.folder}" in said
        assert ("were made of other files at this path" in said) == again
        assert load(copy).manifest == newer.manifest != older.manifest
    assert prepare(copy).unchanged
    assert read_manifest(older.folder) == older.manifest


def test_two_members_that_are_one_frame_are_refused_or_the_first_counts(copy: Path) -> None:
    with zipfile.ZipFile(copy / "frames.zip") as old:
        members = {name: old.read(name) for name in old.namelist()}
    name = sorted(members)[3]
    members[f"backup/{name}"] = members[sorted(members)[4]]
    with zipfile.ZipFile(copy / "frames.zip", "w") as new:
        for member, data in members.items():
            new.writestr(member, data)
    with pytest.raises(ToolkitError, match=rf"1 x duplicate member.*dataset prepare {copy} --drop-bad"):
        prepare(copy)
    assert prepare(copy, drop_bad=True).manifest.discrepancies == {"duplicate member": 1}
    assert discrepancies(copy) == [
        {"kind": "duplicate member", "file": "frames.zip", "frame": name, "detail": f"backup/{name}"}
    ]


@pytest.mark.parametrize("path", ["frames/../../secret.jpg", "/etc/secret.jpg", "frames/a\0.jpg"])
def test_a_frame_outside_the_data_folder_is_refused(copy: Path, edit: Edit, path: str) -> None:
    edit("Train.json", lambda content: content["images"][3].update(file_name=path))
    with pytest.raises(ToolkitError, match=re.escape(f"found {path!r}")):
        prepare(copy)


def test_an_archive_with_a_folder_around_its_frames_is_read(copy: Path, index: DatasetIndex) -> None:
    with zipfile.ZipFile(copy / "frames.zip") as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(copy / "frames.zip", "w") as new:
        for name, data in members.items():
            new.writestr(f"LTDv2/{name}", data)
    prepare(copy)
    assert load(copy).split("val").frames().read(3) == index.split("val").frames().read(3)


@pytest.mark.parametrize("where", ["data", "LTDv2", "snapshots/4431e62/data"])
def test_files_one_folder_below_are_pointed_to(copy: Path, tmp_path: Path, where: str) -> None:
    outer = tmp_path / "outer"
    (outer / where).parent.mkdir(parents=True)
    copy.rename(outer / where)
    below = re.escape(str(outer / where))
    with pytest.raises(ToolkitError, match=f"no annotation files; found some in {below}.*prepare {below}"):
        prepare(outer)
    prepare(outer / where)
    with pytest.raises(ToolkitError, match=f"is not prepared; found LTDv2's files in {below}"):
        load(outer)
    for name in ("Train.json", "Valid.json", "TestNoLabels.json"):
        (outer / where / name).rename(outer / name)
    with pytest.raises(ToolkitError, match=f"no frames; found some in {below}"):
        prepare(outer)
