"""The commands on data of one's own: prepared, predicted, scored, compared, exported, and not submitted."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import pytest
import torch
import yaml
from command import Command
from pycocotools.coco import COCO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT

from toolkit.assessment import task
from toolkit.dataset import index
from toolkit.dataset.frequency import Paste
from toolkit.dataset.paste import Donors
from toolkit.workspace import Workspace

TINY = Path(__file__).parents[1] / "helpers" / "tiny.yaml"
NAMES = {0: "cat", 1: "dog", 2: "cow", 3: "hen", 4: "fox"}
NAMED = {number + 1: name for number, name in NAMES.items()}


@pytest.fixture
def source(workspace: Path) -> Path:
    """Thirty pictures of five kinds of animal by three cameras, as Ultralytics has them."""
    root, rng = workspace / "farm", np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 24)):
        for n in range(count):
            name = f"cam{n % 3}_{n:03d}"
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 255, (64, 96), np.uint8)
            cv2.imwrite(str(root / "images" / split / f"{name}.jpg"), pixels)
            boxes = [f"{(n + k) % 5} 0.{2 + k} 0.5 0.2 0.4" for k in range(3)]
            (root / "labels" / split / f"{name}.txt").write_text("\n".join(boxes))
    content = {"path": ".", "train": "images/train", "val": "images/val", "names": NAMES}
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


@pytest.fixture
def weights(workspace: Path) -> Path:
    torch.manual_seed(0)
    model = DetectionModel(str(TINY), ch=1, nc=5, verbose=False)
    model.names = NAMES
    torch.save({"model": model, "train_args": {**DEFAULT_CFG_DICT, "imgsz": 96}}, workspace / "animals.pt")
    return workspace / "animals.pt"


def test_from_prepare_to_a_report_without_a_word_about_ltdv2(
    workspace: Path, toolkit: Command, source: Path, weights: Path
) -> None:
    prepared = toolkit("dataset", "prepare", source, "--by", "name:1")
    assert prepared.status == 0, prepared.err
    assert "val: 24 images, 72 boxes" in prepared.err
    assert "counts in the mean" not in prepared.err
    assert "TestNoLabels" not in prepared.err
    data = workspace / "data" / "farm"
    assert toolkit("dataset", "prepare", data).status == 0  # a data folder is prepared where it is

    scored = toolkit("evaluate", weights, "--device", "cpu", "--report", "--tables")
    assert scored.status == 0, scored.err
    for word in ("name:1", "cam0", "cam1", "cam2", *NAMES.values()):
        assert word in scored.out
    folder = workspace / "animals-evaluation"
    scores = json.loads((folder / "scores.json").read_bytes())
    assert scores["toolkit"]["classes"] == {str(k + 1): name for k, name in NAMES.items()}
    assert scores["toolkit"]["images"] == {"global": 24, "cam0": 8, "cam1": 8, "cam2": 8}
    page = (folder / "report.html").read_text()
    assert "<td>cam2</td>" in page
    assert "<title>animals, split val of farm</title>" in page
    assert "mAP@0.5 by name:1" in page
    assert "motorcycle" not in page
    table = pl.read_parquet(folder / "matches.parquet")
    assert set(table["name:1"].unique()) == {"cam0", "cam1", "cam2"}

    same = toolkit(
        "compare", folder / "predictions.json", folder / "predictions.json", "--json", "--resamples", 100
    )
    assert same.status == 0, same.err
    assert json.loads(same.out)["differences"]["cam1_map_50"]["change"] == 0
    shown = toolkit("compare", *[folder / "predictions.json"] * 2, "--resamples", 100)
    assert (shown.out.count("name:1"), "month" in shown.out) == (1, False), shown.out
    fused = toolkit("ensemble", *[folder / "predictions.json"] * 2, "--out", "both.json")
    assert fused.status == 0, fused.err
    kinds = {
        k for each in json.loads((workspace / "both.json").read_bytes()).values() for k in each["labels"]
    }
    assert 5 in kinds
    linked = toolkit("link", folder / "predictions.json")
    assert linked.status == 1
    assert "no clip" in linked.err or "time" in linked.err
    assert "cannot be linked" in linked.err
    exported = toolkit("dataset", "export", data, "--format", "coco", "--out", "coco")
    assert exported.status == 0, exported.err
    coco = COCO(str(workspace / "coco" / "annotations" / "instances_val.json"))
    assert [each["name"] for each in coco.cats.values()] == list(NAMES.values())
    assert (workspace / "coco" / "images" / "val" / coco.imgs[min(coco.imgs)]["file_name"]).is_file()
    assert toolkit("dataset", "stats", data, "--json").status == 0
    assert toolkit("dataset", "verify", data, "--deep").status == 0


def test_levers_know_the_classes_of_the_data(workspace: Path, toolkit: Command, source: Path) -> None:
    assert toolkit("dataset", "prepare", source).status == 0
    train = ("train", "--preset", "smoke", "--model", TINY, "--imgsz", "64", "--device", "cpu", "--dry-run")
    shown = toolkit(*train, "--repeat", "fox=3, cow=2", "--paste", "fox=0.5")
    assert shown.status == 0, shown.err
    assert "15 train" in shown.out, "three of the six frames have a fox, the others a cow"
    assert "frames with a fox 3 times, frames with a cow 2 times (flag)" in shown.out
    assert "a fox in 0.5 of frames (flag)" in shown.out
    assert toolkit(*train, "classes=[0,4]").status == 0
    refused = toolkit(*train, "classes=[5]")
    assert refused.status != 0
    assert "expected numbers of classes, such as [0,2]: 0 cat, 1 dog, 2 cow, 3 hen, 4 fox" in refused.err
    for flag in ("--repeat", "--paste"):
        refused = toolkit(*train, flag, "motorcycle=1")
        assert refused.status != 0
        assert "expected such as cat=" in refused.err
        assert "cat, dog, cow, hen, fox" in refused.err


def test_objects_are_pasted_whatever_the_ids_of_other_data_would_say_of_hours(
    workspace: Path, toolkit: Command, source: Path
) -> None:
    assert toolkit("dataset", "prepare", source).status == 0
    split = index.load(workspace / "data" / "farm").split("train")
    donors = Donors(split, np.arange(len(split)), Paste.parse("fox=1", NAMED))
    assert not donors.hours.any()
    assert {kind for place in donors.objects for kind in [split.vocabulary.classes[place]]} == {"fox"}


def test_a_test_split_with_labels_is_scored_by_its_name(
    workspace: Path, toolkit: Command, source: Path, weights: Path
) -> None:
    described = yaml.safe_load(source.read_text())
    del described["train"]
    for kind in ("images", "labels"):
        (source.parent / kind / "val").rename(source.parent / kind / "test")
    source.write_text(yaml.safe_dump({**described, "val": "images/train", "test": "images/test"}))
    assert toolkit("dataset", "prepare", source, "--by", "name:1").status == 0
    scored = toolkit("evaluate", weights, "--split", "test", "--device", "cpu", "--report")
    assert scored.status == 0, scored.err
    folder = workspace / "animals-evaluation-test"
    assert json.loads((folder / "scores.json").read_bytes())["toolkit"]["images"]["global"] == 24
    found = folder / "predictions.json"
    same = toolkit("compare", found, found, "--split", "test", "--json", "--resamples", 100)
    assert json.loads(same.out)["differences"]["cam1_map_50"]["change"] == 0, same.err
    exported = toolkit("dataset", "export", "data/farm", "--format", "coco", "--out", "coco")
    assert exported.status == 0, exported.err
    raw = json.loads((workspace / "coco" / "annotations" / "instances_test.json").read_bytes())
    for each in raw["images"]:
        each["file_name"] = f"cam{each['file_name'].partition('cam')[2]}"
    raw["annotation"] = raw.pop("annotations")
    (workspace / "raw.json").write_text(json.dumps(raw))
    again = toolkit("evaluate", found, "--truth", "raw.json", "--json", "--out", "again", "--split", "test")
    assert again.status == 0, again.err
    ours = json.loads((folder / "scores.json").read_bytes())
    theirs = json.loads(again.out)
    assert theirs["toolkit"]["images"] == ours["toolkit"]["images"]
    assert theirs["global_map_50"] == pytest.approx(ours["global_map_50"], abs=1e-3)


def test_the_challenge_takes_its_own_frames_alone(
    workspace: Path, toolkit: Command, source: Path, weights: Path
) -> None:
    assert toolkit("dataset", "prepare", source).status == 0
    assert toolkit("predict", weights, "--split", "val", "--device", "cpu").status == 0
    refused = toolkit("submit", "predictions-val.json", "--zip")
    assert refused.status == 1
    assert not list(workspace.glob("**/submission.zip"))


def test_weights_of_other_classes_than_the_datas_are_refused(
    workspace: Path, toolkit: Command, source: Path, weights: Path
) -> None:
    assert toolkit("dataset", "prepare", source, "--classes", "cat=person,dog=vehicle").status == 0
    result = toolkit("evaluate", weights, "--device", "cpu")
    assert result.status == 1
    assert "has other classes" in result.err


@pytest.mark.parametrize("flag", [("--by", "date"), ("--classes", "a=b"), ("--out", "x")])
def test_flags_for_other_data_are_refused_for_ltdv2(
    workspace: Path, toolkit: Command, flag: tuple[str, str]
) -> None:
    assert toolkit("dataset", "sample", "data", "--train", 1, "--val", 1, "--test", 1).status == 0
    result = toolkit("dataset", "prepare", "data", *flag)
    assert result.status == 1
    assert f"{flag[0]} is for other data" in result.err


def test_parts_of_the_data_are_planned_for_a_training(
    workspace: Path, toolkit: Command, source: Path
) -> None:
    assert toolkit("dataset", "prepare", source, "--by", "name:1").status == 0
    words = ("train", "--preset", "smoke", "--device", "cpu", "--dry-run", "--months")
    planned = toolkit(*words, "cam0,cam2")
    assert planned.status == 0, planned.err
    assert "train: cam0, cam2" in planned.out
    assert "Overriding" not in planned.out + planned.err
    refused = toolkit(*words, "feb")
    assert "no name:1 named 'feb'" in refused.err


def test_no_next_step_leads_where_the_data_has_nothing(
    workspace: Path, toolkit: Command, source: Path, weights: Path
) -> None:
    described = yaml.safe_load(source.read_text())
    assert toolkit("dataset", "prepare", source).status == 0
    run = workspace / "runs" / "farm"
    (run / "weights").mkdir(parents=True)
    weights.rename(run / "weights" / "best.pt")
    (run / "weights" / "environment.json").write_text(json.dumps({"plan": {"data": "data/farm"}}))
    scored = toolkit("evaluate", "farm", "--device", "cpu")  # the run, not the folder farm of the pictures
    assert (scored.status, "next:" in scored.err) == (0, False), scored.err
    (source.parent / "images" / "test").mkdir()
    cv2.imwrite(str(source.parent / "images" / "test" / "cam0_100.jpg"), np.zeros((64, 96), np.uint8))
    source.write_text(yaml.safe_dump({**described, "test": "images/test"}))
    assert toolkit("dataset", "prepare", source).status == 0
    assert "--split test" in toolkit("evaluate", "farm", "--device", "cpu").err
    predicted = toolkit("predict", "farm", "--split", "test", "--device", "cpu")
    assert (predicted.status, "submit" in predicted.err) == (0, False), predicted.err
    (source.parent / "labels" / "test").mkdir()
    (source.parent / "labels" / "test" / "cam0_100.txt").write_text("1 0.5 0.5 0.2 0.4")
    assert toolkit("dataset", "prepare", source).status == 0
    assert "next: `toolkit evaluate farm --split test`" in toolkit("evaluate", "farm", "--device", "cpu").err


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("nowhere", ("no dataset nowhere", "nothing there")),
        ("pics", ("pics is no dataset", "1 pictures and no annotations", "predict best.pt pics")),
        ("empty", ("empty is no dataset", "0 pictures")),
        ("clip.mp4", ("clip.mp4 is no dataset", "a file .mp4", "predict best.pt clip.mp4")),
        ("notes.txt", ("notes.txt is no dataset", "a file .txt")),
    ],
)
def test_what_is_no_dataset_is_told_for_what_it_is_and_what_is_read_is_named(
    workspace: Path, toolkit: Command, named: str, said: tuple[str, ...]
) -> None:
    for folder in ("pics", "empty"):
        (workspace / folder).mkdir()
    for file in ("pics/a.jpg", "clip.mp4", "notes.txt"):
        (workspace / file).touch()
    refused = toolkit("dataset", "prepare", named)
    assert refused.status == 1
    for word in (*said, "Train.json", "data.yaml", "COCO"):
        assert word in refused.err
    assert ("predict" in refused.err) == (named in ("pics", "clip.mp4"))


def test_a_class_without_a_box_is_said(workspace: Path, toolkit: Command, source: Path) -> None:
    described = yaml.safe_load(source.read_text())
    assert "has a box" not in toolkit("dataset", "prepare", source).err
    source.write_text(yaml.safe_dump({**described, "names": [*NAMES.values(), "yak", "emu"]}))
    prepared = toolkit("dataset", "prepare", source)
    assert prepared.status == 0, prepared.err
    assert "no split has a box of class yak, emu" in prepared.err


def test_a_reports_title_names_the_data_that_is_not_the_runs_own(workspace: Path) -> None:
    run = workspace / "runs" / "hens"
    for folder in (run / "weights", workspace / "data" / "farm", workspace / "data" / "zoo"):
        folder.mkdir(parents=True)
    (run / "weights" / "environment.json").write_text(json.dumps({"plan": {"data": "data/farm"}}))
    (run / "predictions-val.json").write_text("{}")
    for folder in ("farm", "zoo"):
        (workspace / "data" / folder / "Valid.json").write_text("{}")
    place, path = Workspace(workspace), str(run / "predictions-val.json")
    assert task(place, path, "val", data=None).title == "hens, split val"
    assert task(place, path, "val", data=Path("data/farm")).title == "hens, split val"
    assert task(place, path, "val", data=Path("data/zoo")).title == "hens, split val of zoo"
    assert task(place, path, "val", truth=Path("data/zoo/Valid.json")).title == "hens, split val"
