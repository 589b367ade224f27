"""Which data and which weights a file of predictions is of, where a person does not say it."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import Command

from submission import templates
from toolkit import provenance
from toolkit.dataset.own import origin
from toolkit.ltdv2 import ANNOTATIONS, SplitName
from toolkit.vocabulary import Vocabulary
from toolkit.weights import Detector
from toolkit.workspace import ENVIRONMENT

VAL = templates.template("development")[:6].tolist()
TEST = templates.template("testing")[:6].tolist()


def hit(label: int = 1) -> dict[str, Any]:
    return {"boxes": [[10, 10, 30, 40]], "scores": [0.9], "labels": [label]}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def annotated(data: Path, split: SplitName, ids: list[int]) -> None:
    """The annotation file of a split: a box in each image, three clips."""
    boxes = [{"id": n, "image_id": i, "category_id": 1, "bbox": [10, 10, 20, 30]} for n, i in enumerate(ids)]
    images = [{"id": i, "file_name": f"frames/20200502/clip_{n % 3}/{i}.jpg"} for n, i in enumerate(ids)]
    write(data / ANNOTATIONS[split], {"images": images, "annotations": boxes})


@pytest.fixture
def two(workspace: Path) -> Path:
    """A workspace with two data folders, of other images, and a run of the first."""
    for name, part in (("one", slice(0, 3)), ("two", slice(3, 6))):
        annotated(workspace / "data" / name, "val", VAL[part])
        annotated(workspace / "data" / name, "test", TEST[part])
    (workspace / "runs/first/weights").mkdir(parents=True)
    write(workspace / "runs/first/run.json", {"data": str(workspace / "data/one")})
    (workspace / "runs/first/weights/best.pt").write_bytes(b"best")
    return workspace


@pytest.mark.parametrize(("name", "ids"), [("one", TEST[:3]), ("two", TEST[3:]), ("two", VAL[3:])])
def test_the_images_of_fused_predictions_say_which_data_they_are_handed_in_for(
    two: Path, toolkit: Command, name: str, ids: list[int]
) -> None:
    file = write(two / "ensemble.json", {str(i): hit() for i in ids})
    said = toolkit("submit", file, "--json")
    named = toolkit("submit", file, "--json", "--data", two / "data" / name)
    assert (said.status, named.status) == (0, 0), said.err
    assert json.loads(said.out) == json.loads(named.out)
    assert json.loads(said.out)["rehearsal"]
    assert f"data/{name}, whose split" in said.err
    assert "whose split" not in named.err


def test_images_of_both_data_belong_to_neither(two: Path, toolkit: Command) -> None:
    file = write(two / "mixed.json", {str(i): hit() for i in TEST[1:5]})
    refused = toolkit("submit", file, "--zip")
    assert (refused.status, "whose split" in refused.err) == (1, False), refused.err


@pytest.mark.parametrize("verb", [("link",), ("ensemble", "b.json")])
def test_labels_are_held_against_the_classes_of_the_data_with_the_images(
    two: Path, toolkit: Command, verb: tuple[str, ...]
) -> None:
    names = {label: f"class {label}" for label in range(1, 8)}
    words = Vocabulary(names, {"all": 1}, "nothing", "x")
    (two / "data/two/dataset.json").write_bytes(origin.encode(words, origin.Origin("x")))
    for name in ("a.json", "b.json"):
        write(two / name, {str(i): hit(7) for i in VAL[3:]})
    known = toolkit(verb[0], "a.json", *verb[1:])
    assert known.status == 0, known.err
    for name in ("a.json", "b.json"):  # those of LTDv2's data have four classes
        write(two / name, {str(i): hit(7) for i in VAL[:3]})
    refused = toolkit(verb[0], "a.json", *verb[1:])
    assert (refused.status, "label 7" in refused.err) == (1, True), refused.err


@pytest.mark.parametrize("verb", ["link", "submit", "ensemble"])
def test_where_a_file_is_wanted_a_run_is_told_which_of_its_files_could_be_meant(
    two: Path, toolkit: Command, verb: str
) -> None:
    good = write(two / "good.json", {str(i): hit() for i in VAL[:3]})
    words = (verb, good) if verb == "ensemble" else (verb,)
    for name, said in (
        ("first", "make some: toolkit predict first --split test"),
        ("data", "data is a folder"),
        ("nothing.json", "no file nothing.json"),
    ):
        refused = toolkit(*words, name)
        assert (refused.status, said in refused.err) == (1, True), refused.err
    file = write(two / "runs/first/predictions-test.json", {str(i): hit() for i in TEST[:3]})
    assert f"first is a run; found its predictions {file}" in toolkit(*words, "first").err


@pytest.mark.parametrize("words", [("link", "a.json"), ("ensemble", "a.json", "a.json")])
def test_a_folder_is_no_place_for_a_file(two: Path, toolkit: Command, words: tuple[str, ...]) -> None:
    write(two / "a.json", {str(i): hit() for i in VAL[:3]})
    (two / "taken").mkdir()
    refused = toolkit(*words, "--out", "taken")
    assert (refused.status, "cannot write taken; found a folder" in refused.err) == (1, True)
    assert "images" not in refused.err  # nothing was begun


def found_by(file: Path, weights: Path, name: str | None, age: int) -> Path:
    """Predictions of the run's validation images that these weights made, ``age`` seconds ago."""
    write(file, {str(i): hit() for i in VAL[:3]})
    if name is not None:
        provenance.record(file, "val", name, provenance.sha256(weights))
    os.utime(file, (1e9 - age, 1e9 - age))
    return file


@pytest.mark.parametrize("newest", ["last.pt", None])
def test_a_run_is_compared_by_what_its_best_weights_found(
    two: Path, toolkit: Command, newest: str | None
) -> None:
    run = two / "runs/first"
    (run / "weights/last.pt").write_bytes(b"last")
    found_by(run / "predictions-val.json", run / "weights/last.pt", newest, age=0)
    other = shutil.copy(run / "predictions-val.json", two / "other.json")
    best = found_by(run / "evaluation/predictions.json", run / "weights/best.pt", "best.pt", age=60)
    result = toolkit("compare", "first", other)
    assert result.status == 0, result.err
    assert f"first is {best}, which best.pt found" in result.err
    assert "warning" not in result.err


@pytest.mark.parametrize("case", ["last", "another best", "not noted"])
def test_what_other_weights_of_a_run_found_is_called_so(two: Path, toolkit: Command, case: str) -> None:
    run = two / "runs/first"
    best = run / "weights/best.pt"
    name = {"last": "last.pt", "another best": "best.pt", "not noted": None}[case]
    (run / "weights/last.pt").write_bytes(b"last")
    made_by = best if case == "another best" else run / "weights/last.pt"
    found_by(run / "predictions-val.json", made_by, name, age=0)
    best.write_bytes(b"better")
    result = toolkit("compare", "first", "runs/first/predictions-val.json")
    assert result.status == 0, result.err
    assert (f"which {name} found" in result.err) == (name is not None)
    assert ("is not what best.pt of run first finds now" in result.err) == (name is not None)
    assert result.err.count("warning") == (name is not None)


def test_the_newest_predictions_are_handed_in_with_the_name_of_their_weights(
    two: Path, toolkit: Command
) -> None:
    run = two / "runs/first"
    file = write(run / "predictions-test.json", {str(i): hit() for i in TEST[:3]})
    provenance.record(file, "test", "last.pt", "of last")
    assert f"newest predictions: {file}, of last.pt" in toolkit("submit").err


def test_each_file_is_hashed_once_in_an_evaluation(
    two: Path, toolkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = found_by(two / "soup.json", two / "runs/first/weights/best.pt", "soup.pt", age=0)
    truth = Path(shutil.copy(two / "data/one" / ANNOTATIONS["val"], two / "truth.json"))
    hashed: Counter[Path] = Counter()
    whole = provenance.sha256

    def counted(path: Path) -> str:
        hashed[path.resolve()] += 1
        return whole(path)

    words = ("evaluate", file, "--truth", truth)
    assert toolkit(*words).status == 0
    annotated(two / "fewer", "val", VAL[:2])
    shutil.copy(two / "fewer" / ANNOTATIONS["val"], truth)  # the scores that are there are of another
    monkeypatch.setattr(provenance, "sha256", counted)
    for target in (words, ("evaluate", file)):
        hashed.clear()
        result = toolkit(*target)
        assert result.status == 0, result.err
        inputs = {path: times for path, times in hashed.items() if "evaluation" not in str(path)}
        assert set(inputs.values()) == {1}, inputs
        assert len(inputs) == 2


def test_scores_of_frames_that_a_run_trained_on_are_called_so(two: Path, toolkit: Command) -> None:
    run = two / "runs/first"
    file = found_by(run / "predictions-val.json", run / "weights/best.pt", "best.pt", age=0)
    other = shutil.copy(file, two / "other.json")
    (run / "run.json").unlink()
    for trained_on in (["train"], ["train", "val"]):
        write(run / ENVIRONMENT, {"plan": {"data": str(two / "data/one"), "train_on": trained_on}})
        for words in (
            ("evaluate", file),
            ("compare", "first", other),
            ("ensemble", file, file, "--weights", "validation"),
        ):
            result = toolkit(*words)
            assert result.status == 0, result.err
            assert result.err.count("run first was trained on split val too") == ("val" in trained_on)
    assert "was trained on" not in toolkit("ensemble", file, file).err


def test_what_was_found_by_other_flags_is_said(
    two: Path, toolkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detector, "read", lambda path, classes: object())
    run = two / "runs/first"
    file = found_by(run / "evaluation/predictions.json", run / "weights/best.pt", None, age=0)
    other = shutil.copy(file, two / "other.json")
    digest = provenance.sha256(run / "weights/best.pt")
    for flags in ("", "--imgsz 33 --tta"):
        provenance.record(file, "val", "best.pt", digest, flags=flags)
        for named in ("first", "runs/first/weights/best.pt"):
            result = toolkit("compare", named, other)
            assert result.status == 0, result.err
            assert ("--imgsz 33 --tta" in result.err) == bool(flags)
