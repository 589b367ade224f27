"""Data of one's own: Ultralytics' and COCO datasets from prepare to scores, by parts that are no months."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import yaml

from submission import Detections
from toolkit.dataset import index
from toolkit.dataset.export import export_yolo, stems
from toolkit.dataset.frames import decode_grey
from toolkit.dataset.own import parts
from toolkit.dataset.own.reading import Image, read
from toolkit.dataset.own.writing import bring, is_source, name_of, no_source
from toolkit.dataset.prepare import prepare
from toolkit.dataset.stats import describe
from toolkit.dataset.subset import Subset
from toolkit.errors import ToolkitError
from toolkit.evaluation.compare import compare
from toolkit.evaluation.context import Context
from toolkit.evaluation.leverage import causes, cells
from toolkit.evaluation.matching import match
from toolkit.evaluation.scoring import align, score
from toolkit.evaluation.table import month_table
from toolkit.evaluation.truth import GroundTruth
from toolkit.report.dataset import write_report as write_stats
from toolkit.report.page import findings, write_report
from toolkit.training import choices
from toolkit.training.options import Options
from toolkit.vocabulary import LTDV2, of_data

SIZE = (96, 64)


def picture(path: Path, seed: int, suffix: str = ".jpg") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (SIZE[1], SIZE[0]), np.uint8)
    path.write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())


def yolo(root: Path) -> Path:
    """Twelve images of two cameras in Ultralytics' layout: three classes, outlines, an image without text."""
    for split, count in (("train", 8), ("val", 4)):
        for n in range(count):
            name = f"cam{n % 2}_{n:03d}"
            picture(root / "images" / split / f"{name}.png", n, ".png")
            text = root / "labels" / split / f"{name}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            if n != 3:
                text.write_text(f"{n % 3} 0.5 0.5 0.25 0.5\n1 0.1 0.1 0.3 0.1 0.3 0.4\n")
    content = {"path": ".", "train": "images/train", "val": "images/val", "names": ["Person", "Car", "Dog"]}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def coco(root: Path, *, splits: bool = True, **keys: str) -> Path:
    """Twenty images in COCO's layout as some write it: other words for its keys, images elsewhere."""
    images, boxes = [], []
    for n in range(20):
        name = f"1_{(n % 4) * 10 + 60}_{n:05d}.jpg"
        split = "val" if n % 5 == 0 else "train"
        picture(root / split / name if splits else root / "pictures" / name, n)
        images.append(
            {
                "id": 1000 + n,
                keys.get("file_name", "file_name"): name,
                "width": SIZE[0],
                "height": SIZE[1],
                "date_captured": f"2021{n % 3 + 1:02d}14",
                "temperature": float(n),
                "split": split,
            }
        )
        boxes += [{"image_id": 1000 + n, "category_id": n % 2, "bbox": [10, 8, 20 + n, 16], "id": n}]
        boxes += [{"image_id": 1000 + n, "category_id": 0, "bbox": [1, 1, 5, 5], "id": 99 + n, "iscrowd": 1}]
    categories = [{"id": 0, "name": "Person"}, {"id": 1, "name": "Car"}, {"id": 5, "name": "DontCare"}]
    for split in ("train", "val") if splits else ("",):
        chosen = [image for image in images if split in ("", image["split"])]
        ids = {image["id"] for image in chosen}
        content = {
            "images": chosen,
            keys.get("annotations", "annotations"): [box for box in boxes if box["image_id"] in ids],
            "categories": categories,
        }
        path = root / "annotations" / f"{split or 'instances'}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return root


def test_an_ultralytics_dataset_is_read_with_its_boxes_where_they_were(tmp_path: Path) -> None:
    words = bring(yolo(tmp_path / "source"), tmp_path / "data", by="name:1")
    prepare(tmp_path / "data")
    opened = index.load(tmp_path / "data")
    assert words.classes == {1: "Person", 2: "Car", 3: "Dog"}
    assert words.parts == {"cam0": 1, "cam1": 2}
    train, val = opened.split("train"), opened.split("val")
    assert (len(train), len(val)) == (8, 4)
    assert sorted(np.unique(train.part_names)) == ["cam0", "cam1"]
    assert len(train.boxes) == 14
    first = int(np.flatnonzero(np.char.find(train.file_names.astype(str), "000") >= 0)[0])
    rows = train.boxes[train.box_offsets[first] : train.box_offsets[first + 1]]
    np.testing.assert_allclose(rows, [[36, 16, 60, 48], [9.6, 6.4, 28.8, 25.6]], atol=1e-9)
    assert train.frames().grey(first).shape == (SIZE[1], SIZE[0])
    assert opened.manifest.by_month["train"] == {"cam0": 4, "cam1": 4}
    assert not [path for path in (tmp_path / "data" / "frames").rglob("*.png") if not path.is_symlink()]


@pytest.mark.parametrize("keys", [{}, {"file_name": "filename", "annotations": "annotation"}])
def test_coco_files_are_read_whatever_they_call_their_keys(tmp_path: Path, keys: dict[str, str]) -> None:
    root = coco(tmp_path / "source", **keys)
    found = read(root)
    assert (len(found.images), found.crowds, found.lost) == (20, 20, 0)
    words = bring(root, tmp_path / "data", by="name:2", classes="person=person,car=vehicle")
    assert words.classes == LTDV2.classes
    assert list(words.parts) == ["60", "70", "80", "90"]
    prepare(tmp_path / "data")
    opened = index.load(tmp_path / "data")
    assert sorted(opened.split("val").image_ids.tolist()) == [1000, 1005, 1010, 1015]
    assert set(opened.split("train").labels.tolist()) == {1, 4}


def test_a_zip_archive_is_read_where_it_lies(tmp_path: Path) -> None:
    root = coco(tmp_path / "source")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted(root.rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path))
    bring(tmp_path / "all.zip", tmp_path / "data", by="date")
    prepare(tmp_path / "data")
    val = index.load(tmp_path / "data").split("val")
    assert len(val) == 4
    assert {frame.shape for frame in map(val.frames().grey, range(4))} == {(SIZE[1], SIZE[0])}
    assert set(val.part_names.tolist()) <= {"2021-01", "2021-02", "2021-03"}


def test_without_a_split_whole_clips_validate_in_every_part(tmp_path: Path) -> None:
    root = coco(tmp_path / "source", splits=False)
    bring(root, tmp_path / "data", by="meta.temperature:2", val=0.4)
    prepare(tmp_path / "data")
    opened = index.load(tmp_path / "data")
    train, val = opened.split("train"), opened.split("val")
    assert len(train) + len(val) == 20
    assert set(val.part_names.tolist()) == {"to 9.5", "over 9.5"}
    assert not set(train.image_ids.tolist()) & set(val.image_ids.tolist())
    before = val.image_ids.tolist()
    bring(root, tmp_path / "data", by="meta.temperature:2", val=0.4)
    prepare(tmp_path / "data")
    assert index.load(tmp_path / "data").split("val").image_ids.tolist() == before


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    bring(coco(folder / "source"), folder / "data", by="name:2")
    prepare(folder / "data")
    return folder / "data"


def test_scores_comparison_and_report_are_by_the_parts(data: Path, tmp_path: Path) -> None:
    path = data / "Train.json"
    truth = GroundTruth.read(path)
    assert truth.vocabulary == of_data(data)
    rng = np.random.default_rng(0)
    found = Detections(
        truth.image_ids,
        truth.offsets,
        truth.boxes + rng.normal(0, 2, truth.boxes.shape),
        rng.uniform(0.2, 1, len(truth.boxes)),
        truth.labels,
    )
    scores = score(truth, found)
    assert list(scores.months) == ["60", "70", "80", "90"]
    assert sum(summary.images for summary in scores.months.values()) == len(truth)
    part = truth.parts == truth.vocabulary.parts["70"]
    alone = score(
        GroundTruth(
            truth.image_ids[part],
            np.arange(part.sum() + 1),
            truth.boxes[part],
            truth.labels[part],
            truth.vocabulary,
            truth.parts[part],
        ),
        found,
    )
    assert scores.months["70"].map_50 == pytest.approx(alone.overall.map_50)
    monthly = [summary.map_50 for summary in scores.months.values()]
    assert scores.consistency == pytest.approx(np.std(monthly, ddof=1) / np.mean(monthly))
    assert scores.as_dict()["toolkit"]["classes"] == {"1": "Person", "2": "Car", "3": "DontCare"}
    table = month_table(scores)
    assert table.columns[0].header == "name:2"
    assert [str(column.header) for column in table.columns][-3:] == ["Person", "Car", "DontCare"]

    matches = match(align(truth, found))
    assert set(cells(scores, matches)[1]) == {"60", "70", "80", "90", "all"}
    assert causes(matches)
    page = write_report(tmp_path, "own", scores, truth, found, Context.read(path, truth.image_ids))
    text = page.read_text()
    assert "<td>70</td>" in text
    assert "mAP@0.5 by name:2" in text
    named = msgspec.structs.replace(truth.vocabulary, classes={1: "OtherVehicle", 2: "DontCare"})
    persons = replace(found, labels=np.ones_like(found.labels))
    told = findings(score(replace(truth, vocabulary=named), persons))
    assert "DontCare is the weakest class" in " ".join(told)
    if len(set(Context.read(path, truth.image_ids).clips.tolist())) > 1:
        result = compare(truth, found, found, Context.read(path, truth.image_ids), resamples=20)
        assert "70_map_50" in result.differences
        assert result.differences["global_map_bal"].change == 0


def test_training_takes_parts_by_their_names(data: Path) -> None:
    words = of_data(data)
    subsets = choices.subsets(Options(months="60,80", val_months="90"), words)
    train = index.load(data).split("train")
    assert set(train.part_names[subsets["train"].rows(train)].tolist()) == {"60", "80"}
    with pytest.raises(ToolkitError, match="no name:2 named 'feb'; expected 60, 70, 80, 90"):
        Subset.parse("feb", words=words)


def image(name: str, **meta: Any) -> Image:
    return Image(name, "train", 10, 10, date=meta.pop("date", ""), meta=meta)


@pytest.mark.parametrize(
    ("by", "images", "expected"),
    [
        ("date", [image("a", date="2021-03-04 10:00"), image("b", date="20200514")], ["2021-03", "2020-05"]),
        ("day", [image("a", date="2021:03:04"), image("b", date="20200514")], ["2021-03-04", "2020-05-14"]),
        ("folder", [image("x/night/a.jpg"), image("x/day/b.jpg")], ["night", "day"]),
        ("camera", [image("a", camera_id=3), image("b", cam="west")], ["3", "west"]),
        ("meta.light", [image("a", light=1.0), image("b", light="dim")], ["1", "dim"]),
        ("meta.t:2", [image("a", t=1), image("b", t=2), image("c", t=9)], ["to 2", "to 2", "over 2"]),
        ("height=name:2", [image("a_60_1.jpg"), image("b_70_2.jpg")], ["60", "70"]),
        (None, [image("x/a.jpg"), image("y/b.jpg")], ["x", "y"]),
        (None, [image("a.jpg"), image("b.jpg")], ["all", "all"]),
    ],
)
def test_parts_are_told_by_what_the_images_say(
    by: str | None, images: list[Image], expected: list[str]
) -> None:
    assert parts.name_parts(images, by)[0] == expected


@pytest.mark.parametrize("by", ["date", "meta.t:3", "meta.t", "nonsense", "name:0", "name:9", "camera"])
def test_parts_that_cannot_be_told_are_refused(by: str) -> None:
    with pytest.raises(ToolkitError, match=r"parts by|does not tell|makes no ranges"):
        parts.name_parts([image("a_b.jpg"), image("c_d.jpg", t=4)], by)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".bmp", ".webp", ".jpg"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_frames_of_other_kinds_decode(suffix: str, dtype: type) -> None:
    if dtype is np.uint16 and suffix not in (".png", ".tiff"):
        return
    grey = np.full((8, 12), 200, np.uint8)
    data = cv2.imencode(suffix, grey.astype(dtype) * (257 if dtype is np.uint16 else 1))[1].tobytes()
    assert np.abs(decode_grey("x", data).astype(int) - grey).max() <= 2


def test_a_png_that_claims_too_much_is_refused() -> None:
    data = bytearray(cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    with pytest.raises(ToolkitError, match="too large"):
        decode_grey("x", bytes(data))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a class that is not there": (
        lambda p: (p / "labels/train/cam0_000.txt").write_text("7 .5 .5 .1 .1"),
        "no box",
    ),
    "three numbers": (lambda p: (p / "labels/train/cam0_000.txt").write_text("0 .5 .5"), "no box .line 1"),
    "words": (lambda p: (p / "labels/train/cam0_000.txt").write_text("a b c d e"), "no box"),
    "no names": (
        lambda p: (p / "data.yaml").write_text("train: images/train\nnames: []\n"),
        "names no classes",
    ),
    "no folder": (
        lambda p: (p / "data.yaml").write_text("train: nowhere\nnames: [a]\n"),
        "no images nowhere",
    ),
    "no YAML": (lambda p: (p / "data.yaml").write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_in_a_source_is_named_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    source = yolo(tmp_path / "source")
    damage, said = BROKEN[case]
    damage(source.parent)
    with pytest.raises(ToolkitError, match=said):
        bring(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("classes", ["cow=person", "person=", "=person", ""])
def test_classes_that_the_source_does_not_have_are_refused(tmp_path: Path, classes: str) -> None:
    with pytest.raises(ToolkitError, match=r"--classes .*cannot be used.*Person, Car, Dog"):
        bring(yolo(tmp_path / "source"), tmp_path / "data", classes=classes)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with pytest.raises(ToolkitError, match="is not empty"):
        bring(yolo(tmp_path / "source"), tmp_path / "data")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.txt"]


def test_the_challenges_own_files_are_no_source(sample: Path, tmp_path: Path) -> None:
    assert not is_source(sample)
    assert not is_source(tmp_path)
    assert of_data(sample) is LTDV2
    assert is_source(coco(tmp_path / "kaist"))
    assert (
        name_of(tmp_path / "kaist") == name_of(tmp_path / "kaist" / "annotations" / "train.json") == "kaist"
    )


def test_a_class_that_marks_no_object_is_said_with_the_flag_that_leaves_it_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco(tmp_path / "source")
    bring(root, tmp_path / "data")
    said = capsys.readouterr().err
    assert "class DontCare is trained on and counts in the mean" in said
    bring(root, tmp_path / "data", classes=said.split("--classes ")[1].split()[0], replace_other=True)
    assert "DontCare" not in capsys.readouterr().err
    assert of_data(tmp_path / "data").classes == {1: "Person", 2: "Car"}


def test_an_export_keeps_the_sources_names_where_all_are_different(data: Path, tmp_path: Path) -> None:
    opened = index.load(data)
    export_yolo(opened, tmp_path / "yolo")
    names = {path.name for path in (tmp_path / "yolo" / "images").rglob("*.jpg")}
    assert names == {f"1_{(n % 4) * 10 + 60}_{n:05d}.jpg" for n in range(20)}
    assert {f"{stem}.jpg" for stem in stems(opened)} == names
    bring(yolo(tmp_path / "source"), tmp_path / "twice")  # train and val both have a cam0_000
    prepare(tmp_path / "twice")
    export_yolo(index.load(tmp_path / "twice"), tmp_path / "flat")
    assert len(list((tmp_path / "flat" / "images").rglob("*-cam?_???.png"))) == 12


def test_what_six_decimals_round_is_no_box_outside_its_frame(tmp_path: Path) -> None:
    source = yolo(tmp_path / "source")
    rng = np.random.default_rng(0)
    for text in (source.parent / "labels" / "train").glob("*.txt"):
        sides = rng.uniform(0.01, 0.9, (40, 2))
        centres = np.where(rng.random((40, 2)) < 0.5, sides / 2, 1 - sides / 2)
        rows = np.hstack([centres, sides]).tolist()
        text.write_text("".join(f"0 {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for x, y, w, h in rows))
    bring(source, tmp_path / "data")
    assert prepare(tmp_path / "data").manifest.discrepancies == {}
    text.write_text("0 0.100010 0.5 0.2 0.2\n0 0.099990 0.5 0.2 0.2\n")  # a thousandth of a pixel outside
    bring(source, tmp_path / "data")
    assert prepare(tmp_path / "data").manifest.discrepancies == {"box outside its frame": 1}


def test_counts_of_parts_are_in_the_order_of_their_numbers_and_by_their_name(tmp_path: Path) -> None:
    bring(coco(tmp_path / "source"), tmp_path / "data", by="height=meta.temperature")
    prepare(tmp_path / "data")
    opened = index.load(tmp_path / "data")
    train = describe(opened)["train"]
    assert list(train.images_by_month) == sorted(train.images_by_month, key=float)
    assert list(train.clips_by_month) == list(train.weather_by_month) == list(train.images_by_month)
    text = write_stats(opened, describe(opened), tmp_path / "stats").read_text()
    assert "images by height" in text
    assert "month" not in text
    heads = re.findall("<th>([^<]*)</th>", text.split("images by height", 1)[1].split("</tr>", 1)[0])
    assert heads[1:] == list(train.images_by_month)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("a.jpg", "b.png"), "2 pictures and no annotations; .*predict best.pt"),
        ((), "0 pictures and no annotations"),
        (("Train.json",), "--out is for other data"),
    ],
)
def test_a_folder_that_is_no_source_is_told_for_what_it_is(
    tmp_path: Path, files: tuple[str, ...], said: str
) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert re.search(said, no_source(tmp_path, "--out").line())
    assert "no dataset" in no_source(tmp_path / "nowhere", "--out").line()


def test_a_part_without_true_boxes_is_left_out_of_the_mean_and_said(tmp_path: Path) -> None:
    root = coco(tmp_path / "source")
    val = json.loads((root / "annotations" / "val.json").read_text())
    gone = {each["id"] for each in val["images"] if "_90_" in each["file_name"]}
    val["annotations"] = [each for each in val["annotations"] if each["image_id"] not in gone]
    (root / "annotations" / "val.json").write_text(json.dumps(val))
    bring(root, tmp_path / "data", by="name:2")
    truth = GroundTruth.read(tmp_path / "data" / "Valid.json")
    found = Detections(
        truth.image_ids, truth.offsets, truth.boxes, np.ones(len(truth.labels)), np.copy(truth.labels)
    )
    found.boxes[: len(found.boxes) // 3] += 7
    scores = score(truth, found)
    assert scores.left_out == ("90",)
    assert list(scores.months) == ["60", "70", "80"]
    monthly = [summary.map_50 for summary in scores.months.values()]
    assert scores.consistency == pytest.approx(np.std(monthly, ddof=1) / np.mean(monthly))
    assert scores.as_dict()["toolkit"]["left_out"] == ["90"]
    assert "No true boxes in 90: left out" in " ".join(findings(scores))
    matches = match(align(truth, found))
    assert set(cells(scores, matches)[1]) == {"60", "70", "80", "all"}
    context = Context.read(tmp_path / "data" / "Valid.json", truth.image_ids)
    result = compare(truth, found, found, context, resamples=20)
    assert np.isfinite(result.differences["global_map_bal"].low)


def test_a_part_is_not_called_as_a_class_or_as_all_images_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n, part in enumerate(("All", "global", "nothing", "person")):
        for split in ("train", "val"):
            picture(tmp_path / "s" / "images" / split / f"{part}_{n:03d}.jpg", n)
            text = tmp_path / "s" / "labels" / split / f"{part}_{n:03d}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("0 0.5 0.5 0.25 0.5\n1 0.2 0.2 0.2 0.2\n")
    content = {"train": "images/train", "val": "images/val", "names": ["Person", "nothing"]}
    (tmp_path / "s" / "data.yaml").write_text(yaml.safe_dump(content))
    words = bring(tmp_path / "s" / "data.yaml", tmp_path / "data", by="name:1")
    assert list(words.parts) == ["part All", "part global", "part nothing", "part person"]
    assert "parts called All, global, nothing, person" in capsys.readouterr().err
    truth = GroundTruth.read(tmp_path / "data" / "Valid.json")
    found = Detections(
        truth.image_ids, truth.offsets, truth.boxes, np.ones(len(truth.labels)), np.copy(truth.labels)
    )
    scores = score(truth, found)
    assert scores.as_dict()["global_map_50"] == scores.overall.map_50
    assert sum(scores.as_dict()["toolkit"]["images"].values()) == 2 * len(truth)
    context = Context.read(tmp_path / "data" / "Valid.json", truth.image_ids)
    compared = compare(truth, found, found, context, resamples=20).differences
    assert {"part person_map_50", "Person_map_50", "nothing_map_50"} <= compared.keys()
    page = write_report(tmp_path / "page", "s", scores, truth, found, context).read_text()
    assert page.count("<td>part All</td>") == page.count("<td>All</td>") == 1
    content["names"] = ["global", "nothing"]
    (tmp_path / "s" / "data.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ToolkitError, match=r"called global.*--classes global=other"):
        bring(tmp_path / "s" / "data.yaml", tmp_path / "other")


def test_a_single_part_keeps_its_name() -> None:
    assert parts.apart(["all", "all"], ["person"]) == ["all", "all"]
    assert parts.apart(["person", "day"], ["Person"]) == ["part person", "day"]
