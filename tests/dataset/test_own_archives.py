"""Ultralytics' datasets in zip archives, read as the folders that they were made of."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_own_sources import picture, prepared, rows, yolo

from toolkit.dataset.own.reading import read
from toolkit.errors import ToolkitError


@pytest.mark.parametrize("top", ["", "set.v3/", "a/b/"])
@pytest.mark.parametrize(
    ("layout", "content"),
    [
        ("{split}/images", {"train": "../train/images", "val": "../val/images"}),  # as Roboflow writes it
        ("images/{split}", {"path": "../datasets/x", "train": "images/train", "val": "images/val"}),
        ("images/{split}", {"path": ".", "train": ["images/train"], "val": "lists/val.txt"}),
        ("data/{split}/images", {"path": "data", "train": "train", "val": "../lists/val.txt"}),
        ("{split}", {"train": "train", "val": "val", "test": "lists/val.txt"}),
    ],
)
def test_an_archive_with_a_data_yaml_gives_the_index_of_the_folder(
    tmp_path: Path, top: str, layout: str, content: dict[str, Any]
) -> None:
    source = tmp_path / "source"
    yolo(source, **{key: value for key, value in content.items() if key != "test"})
    lines = []
    for number, split in enumerate(("train", "val")):
        folder = layout.format(split=split)
        for n in range(4 + number):
            path = picture(source / folder / f"clip{n % 2}_{n:03d}.png", 10 * number + n)
            text = Path(str(path).replace("/images/", "/labels/")).with_suffix(".txt")
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_bytes(b"\xef\xbb\xbf1 0.5 0.5 0.5 0.5\n0 0.2 0.3 0.1 0.2\n")
            if split == "val":
                lines.append(
                    f"./../{folder}/{path.name}" if n % 2 else f"{tmp_path}/source/{folder}/{path.name}"
                )
    (source / "lists").mkdir()
    (source / "lists/val.txt").write_text(
        "\n".join(line.replace(f"{tmp_path}/source", "..") for line in lines)
    )
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(each for each in source.rglob("*") if each.is_file()):
            archive.write(path, top + path.relative_to(source).as_posix(), zipfile.ZIP_DEFLATED)
        archive.writestr(f"__MACOSX/{top}._data.yaml", b"\0\5\x16\7")
    folder, zipped = (prepared(tmp_path / name, tmp_path / f"of-{name}") for name in ("source", "all.zip"))
    assert folder.manifest.images == {"train": 4, "val": 5}
    # The names in an archive begin at its top, those of a folder where all pictures are.
    moved = ["file_name", "clip"] if content.get("path") == "data" else []
    assert rows(folder).drop(moved).equals(rows(zipped).drop(moved))
    for name in ("images", "boxes", "clips", "by_month", "by_class", "unlisted_frames", "discrepancies"):
        assert getattr(folder.manifest, name) == getattr(zipped.manifest, name), name
    split, other = zipped.split("val"), folder.split("val")
    place = {name.rpartition(b"/")[2]: row for row, name in enumerate(other.file_names.tolist())}
    for row, name in enumerate(split.file_names.tolist()):
        assert (split.frames().grey(row) == other.frames().grey(place[name.rpartition(b"/")[2]])).all()


def test_pictures_that_an_archive_lacks_are_counted_and_what_is_damaged_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = picture(tmp_path / "a_001.png", 1)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("x/data.yaml", "names: [a]\ntrain: all.txt\n")
        archive.writestr("x/all.txt", "images/a_001.png\nimages/b_001.png\n/elsewhere/c.png\n")
        archive.write(file, "x/images/a_001.png")
        archive.writestr("x/labels/a_001.txt", "0 0.5 0.5 0.1 0.1\n")
    found = read(tmp_path / "x.zip")
    assert ([image.name for image in found.images], found.lost, found.top) == (["images/a_001.png"], 2, "x/")
    assert "2 images of" in capsys.readouterr().err
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("data.yaml", "names: [a]\ntrain: images\n")
        archive.write(file, "images/a_001.png")
        archive.writestr("labels/a_001.txt", "7 0.5 0.5 0.1 0.1\n")
    with pytest.raises(ToolkitError, match=r"bad.zip/labels/a_001.txt has a line that is no box \(line 1\)"):
        read(tmp_path / "bad.zip")
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("y/deeper/data.yaml", "names: [a]")
        archive.writestr("y/images/a.png", b"")
    with pytest.raises(ToolkitError, match=r"no annotations; found y/deeper/data\.yaml; .*or a data.yaml at"):
        read(tmp_path / "y.zip")
