"""Sources of data of one's own, however they are laid out: archives and their folders, lists, links."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit import files
from toolkit.api import truth as truth_of
from toolkit.dataset import index
from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.own import folder as own_folder
from toolkit.dataset.own import origin
from toolkit.dataset.own.reading import read
from toolkit.dataset.own.writing import bring, is_source, no_source, place_for
from toolkit.dataset.prepare import prepare
from toolkit.errors import ToolkitError
from toolkit.evaluation.truth import GroundTruth, answers_of
from toolkit.workspace import Workspace

SIZE = (24, 16)


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (SIZE[1], SIZE[0]), np.uint8)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


def coco(root: Path, pictures: str, annotations: str, *, sized: bool, named: str) -> None:
    """Two splits of five images, of two clips each.

    Args:
        root: where they go.
        pictures, annotations: their places, with {split}.
        sized: whether the files say width and height.
        named: how the files name a picture, with {place} and {name}.
    """
    for number, split in enumerate(("train", "valid")):
        images: list[dict[str, Any]] = []
        for n in range(5):
            name = f"clip{n % 2}_{n:03d}.png"
            place = pictures.format(split=split)
            picture(root / place / name, 10 * number + n)
            each = {"id": 10 * number + n, "file_name": named.format(place=place, name=name)}
            images.append(each | ({"width": SIZE[0], "height": SIZE[1]} if sized else {}))
        boxes = [{"image_id": each["id"], "category_id": 3, "bbox": [1, 2, 6, 5]} for each in images]
        path = root / annotations.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 3, "name": "Car"}]})
        )


def prepared(source: Path, data: Path, **settings: Any) -> DatasetIndex:
    bring(source, data, **settings)
    prepare(data)
    return index.load(data)


def rows(opened: DatasetIndex) -> pl.DataFrame:
    """All that an index says but where the frames' bytes are."""
    table = pl.read_parquet(opened.path).drop("offset", "size", "raw_size", "method", "crc")
    return table.sort("file_name")


PICTURES = ("{split}", "images/{split}", "frames/{split}/frames", "{split}/day/frames")


@settings(max_examples=20, deadline=None)
@given(
    pictures=st.sampled_from(PICTURES),
    annotations=st.sampled_from(
        (
            "annotations/{split}.json",
            "{split}.json",
            "{split}/_annotations.coco.json",
            "labels/x_{split}.json",
        )
    ),
    named=st.sampled_from(("{name}", "{place}/{name}", "/home/x/set/{place}/{name}", ".\\{place}\\{name}")),
    top=st.sampled_from(("", "c17/", "c17/data/", "frames/")),
    sized=st.booleans(),
    junk=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_an_archive_gives_the_index_of_the_folder_that_it_was_made_of(
    tmp_path_factory: pytest.TempPathFactory,
    pictures: str,
    annotations: str,
    named: str,
    top: str,
    sized: bool,
    junk: bool,
    order: Any,
) -> None:
    root = tmp_path_factory.mktemp("layout")
    coco(root / "source", pictures, annotations, sized=sized, named=named)
    paths = [path for path in (root / "source").rglob("*") if path.is_file()]
    order.shuffle(paths)
    with zipfile.ZipFile(root / "all.zip", "w") as archive:
        for path in paths:
            name = path.relative_to(root / "source").as_posix()
            archive.write(path, top + name, order.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            if junk:
                archive.writestr(f"__MACOSX/{top}{name.rpartition('/')[0]}/._{path.name}", b"\0\5\x16\7")
        if junk:
            archive.writestr(".DS_Store", b"\0")
    folder, zipped = (prepared(root / name, root / f"of-{name}") for name in ("source", "all.zip"))
    assert rows(folder).equals(rows(zipped))
    for name in ("images", "boxes", "clips", "by_month", "by_class", "unlisted_frames", "discrepancies"):
        assert getattr(folder.manifest, name) == getattr(zipped.manifest, name), name
    assert zipped.manifest.images == {"train": 5, "val": 5}
    assert zipped.manifest.clips == {"train": 2, "val": 2}
    assert (zipped.manifest.unlisted_frames, zipped.manifest.discrepancies) == (0, {})
    for split in map(zipped.split, ("train", "val")):
        other = folder.split(split.name)
        place = {name: row for row, name in enumerate(other.file_names.tolist())}
        for row, name in enumerate(split.file_names.tolist()):
            assert (split.frames().grey(row) == other.frames().grey(place[name])).all()


def test_pictures_that_no_file_lists_are_counted_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco(tmp_path / "c", "{split}", "{split}.json", sized=True, named="{name}")
    picture(tmp_path / "c" / "train" / "more.png", 77)
    shutil.make_archive(str(tmp_path / "c"), "zip", tmp_path / "c")
    for source in ("c", "c.zip"):
        assert prepared(tmp_path / source, tmp_path / f"of-{source}").manifest.unlisted_frames == 0
        assert f"1 pictures of {tmp_path / source} are in no annotation file" in capsys.readouterr().err


def yolo(root: Path, **content: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(yaml.safe_dump({"names": ["Person", "Car"], **content}))
    return root / "data.yaml"


def labelled(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Pictures in images/ of a folder, each with a box of Car."""
    made = [picture(folder / "images" / f"a_{n:03d}.png", seed + n) for n in range(count)]
    for path in made:
        text = folder / "labels" / f"{path.stem}.txt"
        text.parent.mkdir(exist_ok=True)
        text.write_text("1 0.5 0.5 0.5 0.5\n")
    return made


def test_lists_name_pictures_as_ultralytics_reads_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = labelled(tmp_path / "disk" / "one", 4), labelled(tmp_path / "else" / "two", 3, 50)
    home = labelled(tmp_path / "home" / "sub", 2, 90)
    places = {"train": ["train.txt", "lists/more.txt"], "val": "val.txt"}
    path = yolo(tmp_path / "home", **places)
    lines = [f"{each}\r\n" for each in (*train, train[0])]
    (tmp_path / "home" / "train.txt").write_bytes(("\ufeff" + "\r\n".join(["", *lines])).encode())
    (tmp_path / "home" / "lists").mkdir()
    (tmp_path / "home" / "lists" / "more.txt").write_text(
        f"./../sub/images/{home[0].name}\nsub\\images\\{home[1].name}\nsub/images/lost.png\n"
    )
    (tmp_path / "home" / "val.txt").write_text("\n".join(map(str, val)))
    found = read(path)
    said = capsys.readouterr().err
    assert "1 images of" in said
    assert "listed more than once" in said
    assert found.lost == 1
    assert [len([i for i in found.images if i.split == split]) for split in ("train", "val")] == [6, 3]
    assert all(len(image.boxes) == 1 for image in found.images)
    opened = prepared(path, tmp_path / "data")
    assert opened.manifest.images == {"train": 6, "val": 3}
    expected = {each.read_bytes() for each in (*train, *home)}
    frames = opened.split("train").frames()
    assert {frames.read(row) for row in range(6)} == expected
    assert not any(str(tmp_path)[1:] in str(name) for name in opened.split("val").file_names.tolist())


def test_folders_that_are_links_keep_their_names(tmp_path: Path) -> None:
    labelled(tmp_path / "disk" / "0a1b", 3)
    root = tmp_path / "home"
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
        (root / kind / "day").symlink_to(tmp_path / "disk" / "0a1b" / kind)
        (root / kind / "val").symlink_to(tmp_path / "disk" / "0a1b" / kind)
    found = read(yolo(root, train="images/day"))
    assert [image.name for image in found.images] == [f"images/day/a_{n:03d}.png" for n in range(3)]
    assert all(image.boxes for image in found.images)
    nested = read(yolo(root, train="images"))  # the links are below the folder that is named
    assert {image.name for image in nested.images} >= {"images/day/a_000.png", "images/val/a_000.png"}
    whole = tmp_path / "alias"
    whole.symlink_to(root)
    (root / "train.txt").write_text(f"{whole}/images/day/a_000.png\n{root}/images/day/a_001.png\n")
    assert prepared(yolo(root, train="train.txt"), tmp_path / "data").split("train").present.all()


def test_names_of_folders_called_frames_are_kept_apart(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("val", 9)):
        labelled(tmp_path / "s" / split / "frames", 2, seed)
    opened = prepared(
        yolo(tmp_path / "s", train="train/frames/images", val="val/frames/images"), tmp_path / "data"
    )
    assert (opened.manifest.images, opened.manifest.discrepancies) == ({"train": 2, "val": 2}, {})


def test_two_classes_of_one_name_become_one_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled(tmp_path / "s", 2)
    path = yolo(tmp_path / "s", train="images", names=["Car", "Car", "Dog"])
    assert bring(path, tmp_path / "data").classes == {1: "Car", 2: "Dog"}
    assert "several classes called Car: they become one" in capsys.readouterr().err
    assert bring(path, tmp_path / "other", classes="car=vehicle,dog=person").is_own


def state(folder: Path) -> dict[str, Any]:
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_source_and_settings_change_nothing(tmp_path: Path) -> None:
    coco(tmp_path / "c", "{split}", "{split}.json", sized=True, named="{name}")
    prepared(tmp_path / "c", tmp_path / "data", by="name:1", classes="car=vehicle")
    before = state(tmp_path / "data")
    bring(tmp_path / "." / "c", tmp_path / "data", by="name:1", classes=" car = vehicle")
    assert prepare(tmp_path / "data").unchanged
    assert state(tmp_path / "data") == before


@pytest.mark.parametrize(
    ("settings", "found", "asked"),
    [
        ({}, "--by name:1", "--by not given"),
        ({"by": "name:2"}, "--by name:1", "--by name:2"),
        ({"by": "name:1", "classes": "car=vehicle"}, "--classes not given", "--classes car=vehicle"),
        ({"by": "name:1", "source": "d"}, "/c", "/d"),
    ],
)
def test_another_source_or_other_settings_are_refused_until_it_is_asked_for(
    tmp_path: Path, settings: dict[str, str], found: str, asked: str
) -> None:
    for name in ("c", "d"):
        coco(tmp_path / name, "{split}", "{split}.json", sized=True, named="{name}")
    prepared(tmp_path / "c", tmp_path / "data", by="name:1")
    before = state(tmp_path / "data")
    source = tmp_path / settings.pop("source", "c")
    given: dict[str, Any] = settings
    with pytest.raises(ToolkitError, match=rf"prepared already.*{found}; .*{asked}.*--out DIR.*--replace"):
        bring(source, tmp_path / "data", **given)
    assert state(tmp_path / "data") == before
    prepared(source, tmp_path / "data", replace_other=True, **given)
    made = origin.read(tmp_path / "data")
    assert made is not None
    assert (made.source, made.by) == (str(source), given.get("by", ""))


def test_an_archive_replaces_a_folder_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    coco(tmp_path / "c", "{split}", "{split}.json", sized=True, named="{name}")
    shutil.make_archive(str(tmp_path / "z"), "zip", tmp_path, "c")
    names = {}
    for source in ("c", "z.zip", "c"):
        opened = prepared(tmp_path / source, tmp_path / "data", replace_other=True)
        assert (opened.split("train").present.all(), opened.manifest.discrepancies) == (True, {})
        names[source] = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert names["c"] == ["Train.json", "Valid.json", "dataset.json", "frames", "prepared"]
    assert names["z.zip"] == ["Train.json", "Valid.json", "dataset.json", "frames.zip", "prepared"]


def test_frames_that_are_no_links_are_not_deleted(tmp_path: Path) -> None:
    coco(tmp_path / "c", "{split}", "{split}.json", sized=True, named="{name}")
    bring(tmp_path / "c", tmp_path / "data")
    mine = picture(tmp_path / "data" / "frames" / "mine.png", 5)
    with pytest.raises(ToolkitError, match="is no link"):
        bring(tmp_path / "c", tmp_path / "data", by="name:1", replace_other=True)
    assert mine.is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("after", range(3))
@pytest.mark.parametrize("was_there", [False, True])
def test_an_interruption_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int, was_there: bool
) -> None:
    coco(tmp_path / "c", "{split}", "{split}.json", sized=True, named="{name}")
    data = tmp_path / "new" / "data"
    if was_there:
        prepared(tmp_path / "c", data)
    before, written = state(tmp_path), 0
    replacing = own_folder.replacing

    @contextmanager
    def failing(path: Path) -> Iterator[Path]:
        nonlocal written
        with replacing(path) as temporary:
            if written == after:
                temporary.write_bytes(b"half")
                raise error
            written += 1
            yield temporary

    with monkeypatch.context() as patched, pytest.raises((KeyboardInterrupt, ToolkitError)):
        patched.setattr(own_folder, "replacing", failing)
        bring(tmp_path / "c", data, by="name:1", replace_other=True)
    assert state(tmp_path) == before
    assert data.exists() == was_there
    assert (tmp_path / "new").exists() == was_there
    assert prepared(tmp_path / "c", data, by="name:1", replace_other=True).manifest.images


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    coco(tmp_path / "c", "{split}", "{split}.json", sized=True, named="{name}")
    left = tmp_path / "data" / files.SCRATCH.replace("*", "x1")
    (left / "frames").mkdir(parents=True)
    bring(tmp_path / "c", tmp_path / "data")
    assert not left.exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, 3]}]}, "a box that is no box"),
        (
            {"annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, "x", 3]}]},
            "a box that is no box",
        ),
        (
            {"annotations": [{"image_id": 1, "category_id": 3, "bbox": [1, 2, float("nan"), 3]}]},
            "a box that is no box",
        ),
        ({"annotations": [{"image_id": 1, "category_id": 3, "bbox": None}]}, "no list of annotations"),
        ({"images": [{"id": [1], "file_name": "a.png"}]}, "no list of images"),
        ({"images": [{"id": 1, "file_name": "a.png"}] * 2}, "lists an image id twice"),
        ({"categories": [{"id": 3}]}, "no list of categories"),
    ],
)
def test_a_damaged_coco_file_is_one_line(tmp_path: Path, damage: dict[str, Any], said: str) -> None:
    picture(tmp_path / "c" / "a.png", 0)
    content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}
    content |= {"categories": [{"id": 3, "name": "Car"}], **damage}
    (tmp_path / "c" / "x.json").write_text(json.dumps(content))
    with pytest.raises(ToolkitError, match=said):
        read(tmp_path / "c")


def raw_truth(path: Path, *, key: str = "annotations", ids: int = 0) -> dict[str, Any]:
    """What a source's file says of the validation split, with other ids, crowds and a strange picture."""
    content = json.loads(path.read_text())
    for each in content["images"]:
        each["id"] += ids
    boxes = content.pop("annotations")
    for n, each in enumerate(boxes):
        each |= {"image_id": each["image_id"] + ids, "bbox": [1 + n, 2, 6, 5]}
    crowd = {**boxes[0], "iscrowd": 1}
    content["images"].append({"id": 10**6, "file_name": "strange.png"})
    strange = {**boxes[0], "image_id": 10**6}
    return content | {key: [*boxes, crowd, strange]}


@pytest.mark.parametrize("key", ["annotations", "annotation"])
@pytest.mark.parametrize("ids", [0, 5, 500])
def test_a_source_is_a_truth_in_its_datas_ids_labels_and_parts(tmp_path: Path, key: str, ids: int) -> None:
    coco(tmp_path / "c", "{split}", "{split}.json", sized=True, named="{name}")
    train, val = (tmp_path / "c" / f"{split}.json" for split in ("train", "valid"))
    renamed = json.loads(val.read_text().replace("clip", "v"))
    for path in (tmp_path / "c" / "valid").glob("*.png"):
        path.rename(path.with_name(path.name.replace("clip", "v")))
    val.write_text(json.dumps(renamed | {"categories": [{"id": 3, "name": "Car"}, {"id": 7, "name": "Dog"}]}))
    bring(tmp_path / "c", tmp_path / "data", by="name:2", classes="car=vehicle,dog=person")
    (tmp_path / "raw.json").write_text(json.dumps(raw_truth(val, key=key, ids=ids)))
    truth = GroundTruth.read(tmp_path / "raw.json", tmp_path / "data")
    prepared_truth = GroundTruth.read(tmp_path / "data" / "Valid.json")
    assert truth.image_ids.tolist() == prepared_truth.image_ids.tolist()
    assert set(truth.labels.tolist()) == {4}
    assert truth.vocabulary == prepared_truth.vocabulary
    assert truth.parts is not None
    assert prepared_truth.parts is not None
    assert truth.parts.tolist() == prepared_truth.parts.tolist()
    np.testing.assert_array_equal(truth.boxes, [[1 + n, 2, 7 + n, 7] for n in range(5)])
    (tmp_path / "raw.json").write_text(train.read_text().replace("Car", "Cow"))
    with pytest.raises(ToolkitError, match=r"is not about the data in .*classes Cow; expected .*person"):
        GroundTruth.read(tmp_path / "raw.json", tmp_path / "data")


def test_a_split_without_true_boxes_says_so(tmp_path: Path, sample: Path) -> None:
    labelled(tmp_path / "s", 3)
    picture(tmp_path / "s" / "test" / "b.png", 8)
    prepared(yolo(tmp_path / "s", train="images", test="test"), tmp_path / "data")
    for data, said in ((tmp_path / "data", "labels in its source"), (sample, "the organisers keep them")):
        with pytest.raises(
            ToolkitError, match=rf"the test split of .* has no true boxes .*{said}.*--truth FILE"
        ):
            answers_of(data, "test")
        with pytest.raises(ToolkitError, match="has no true boxes"):
            truth_of(data, "test")
        assert answers_of(data, "val") == data / "Valid.json"
    (tmp_path / "data" / "TestNoLabels.json").unlink()
    with pytest.raises(ToolkitError, match="has no test split"):
        answers_of(tmp_path / "data", "test")


def test_a_folder_in_a_folder_is_the_source_as_in_an_archive(tmp_path: Path) -> None:
    coco(tmp_path / "a" / "c17" / "set", "{split}", "annotations/{split}.json", sized=True, named="{name}")
    (tmp_path / "a" / ".git").mkdir()
    assert is_source(tmp_path / "a")
    opened = prepared(tmp_path / "a", tmp_path / "data")
    assert (opened.manifest.images, opened.manifest.clips) == ({"train": 5, "val": 5}, {"train": 2, "val": 2})
    yolo(tmp_path / "b" / "set", train="images")
    labelled(tmp_path / "b" / "set", 3)
    assert is_source(tmp_path / "b")
    assert len(read(tmp_path / "b").images) == 3
    (tmp_path / "a" / "readme.md").touch()
    (tmp_path / "a" / "c17" / "readme.md").touch()
    assert not is_source(tmp_path / "a")
    said = no_source(tmp_path / "a", "--by").line()
    assert "found c17/set/annotations/train.json further down" in said
    assert said.endswith(f"name that: {tmp_path}/a/c17/set")


@pytest.mark.parametrize(
    ("train", "val"), [("images", "images"), ("images", "some.txt"), ("some.txt", "images")]
)
def test_a_validation_split_of_training_images_is_refused(tmp_path: Path, train: str, val: str) -> None:
    made = labelled(tmp_path / "s", 3)
    path = yolo(tmp_path / "s", train=train, val=val)
    (tmp_path / "s" / "some.txt").write_text(f"{made[0]}\n")
    with pytest.raises(
        ToolkitError,
        match=r"split of .* is in its .*(leave val out of the source|give each image to one split)",
    ):
        bring(path, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_source_below_data_is_prepared_beside_itself(tmp_path: Path) -> None:
    labelled(tmp_path / "data" / "s", 3)
    path = yolo(tmp_path / "data" / "s", train="images")
    for source in (path, path.parent):
        assert place_for(source, tmp_path / "data") == tmp_path / "data" / "s-prepared"
        assert place_for(source, tmp_path / "work") == tmp_path / "work" / "s"
    assert place_for(tmp_path / "data" / "s.zip", tmp_path / "data") == tmp_path / "data" / "s"
    prepared(path, place_for(path, tmp_path / "data"))
    said = no_source(tmp_path / "data" / "s-prepared", "--by").line()
    assert f"toolkit dataset prepare {path} --out {tmp_path}/data/s-prepared --by ..." in said


def test_one_part_by_default_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled(tmp_path / "s", 3)
    path = yolo(tmp_path / "s", train="images")
    bring(path, tmp_path / "one")
    assert "one part: neither dates nor folders differ; --by" in capsys.readouterr().err
    bring(path, tmp_path / "two", by="name:2")
    assert "one part" not in capsys.readouterr().err


def test_another_truth_is_never_scored_into_the_folder_of_a_split(tmp_path: Path) -> None:
    place, found = Workspace(tmp_path), tmp_path / "predictions.json"
    (tmp_path / "runs" / "r" / "weights").mkdir(parents=True)
    run = tmp_path / "runs" / "r" / "predictions-test.json"
    for path in (found, run):
        folders = {
            place.evaluation(path, split, None, truth)
            for split in ("val", "test")
            for truth in (None, *(Path("annotations") / f"{name}.json" for name in ("train", "val", "test")))
        }
        assert {folder.name.partition("evaluation")[2] for folder in folders} == {
            "",
            "-test",
            *(f"-annotations-{name}" for name in ("train", "val", "test")),
        }
