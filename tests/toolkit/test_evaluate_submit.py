"""``toolkit evaluate`` and ``toolkit submit`` on files."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from codabench_server import TOKEN, Server
from command import Command

from submission import Detections, templates
from toolkit import assessment, console, prediction, provenance
from toolkit.weights import Detector
from toolkit.workspace import Workspace

VAL = templates.template("development")[:6].tolist()
TEST = templates.template("testing")[:6].tolist()
HIT = {"boxes": [[10.123456, 10, 30, 40]], "scores": [0.987654], "labels": [1]}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def sample(workspace: Path) -> Path:
    """A workspace with a small dataset, a run, and the run's predictions of both splits."""
    data, run = workspace / "data" / "sample", workspace / "runs" / "first"
    annotations = [
        {"id": n, "image_id": i, "category_id": 1, "bbox": [10, 10, 20, 30]} for n, i in enumerate(VAL)
    ]
    images = [{"id": i, "file_name": f"frames/20200502/clip_{n % 3}/{i}.jpg"} for n, i in enumerate(VAL)]
    write(data / "Valid.json", {"images": images, "annotations": annotations})
    write(data / "TestNoLabels.json", {"images": [{"id": i} for i in TEST]})
    record = {"model": "yolov8n.yaml", "preset": "smoke", "channels": 1, "patches": True, "command": []}
    write(run / "run.json", {**record, "data": str(data), "version": "0"})
    write(run / "predictions-val.json", {str(i): HIT for i in VAL})
    write(run / "predictions-test.json", {str(i): HIT for i in TEST})
    return workspace


def test_predictions_of_a_run_are_scored_against_its_data(sample: Path, toolkit: Command) -> None:
    result = toolkit("evaluate", "runs/first/predictions-val.json")
    assert result.status == 0
    assert "global_map_bal" in result.out
    assert "engine hotcoco" in result.out
    scores = json.loads((sample / "runs/first/evaluation/scores.json").read_text())
    assert scores["global_map_50"] == 1.0


@pytest.mark.parametrize("engine", ["pycocotools", "hotcoco"])
def test_json_prints_what_scores_json_holds(sample: Path, toolkit: Command, engine: str) -> None:
    result = toolkit(
        *("evaluate", "runs/first/predictions-val.json", "--truth", "data/sample/Valid.json"),
        *("--out", "there", "--json", "--engine", engine),
    )
    assert result.out == (sample / "there" / "scores.json").read_text()
    assert json.loads(result.out)["toolkit"]["engine"] == engine


def test_missing_and_unknown_ids_are_counted_aloud(sample: Path, toolkit: Command) -> None:
    write(sample / "p.json", {str(i): HIT for i in [*VAL[:4], TEST[0]]})
    result = toolkit("evaluate", "p.json", "--truth", "data/sample/Valid.json")
    assert "2 images of the truth have no predictions" in result.err
    assert "1 predicted images are not in the truth" in result.err


def test_predictions_that_find_nothing_are_said_to(sample: Path, toolkit: Command) -> None:
    elsewhere = {"boxes": [[200, 200, 210, 210]], "scores": [0.9], "labels": [1]}
    write(sample / "p.json", {str(i): elsewhere for i in VAL})
    result = toolkit("evaluate", "p.json", "--truth", "data/sample/Valid.json")
    assert result.status == 0
    assert "nothing was found: none of 6 boxes lies on one of 6 objects" in " ".join(result.err.split())
    found = toolkit("evaluate", "runs/first/predictions-val.json")
    assert "nothing was found" not in found.err


def test_strict_refuses_and_writes_nothing(sample: Path, toolkit: Command) -> None:
    write(sample / "p.json", {str(i): HIT for i in VAL[:5]})
    result = toolkit("evaluate", "p.json", "--truth", "data/sample/Valid.json", "--strict")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert f"missing id {VAL[5]}" in result.err
    assert "p.json" in result.err
    assert "--allow-missing" not in result.err
    assert not list(sample.glob("*evaluation"))


@pytest.mark.parametrize(
    "flags", [["--tta"], ["--conf", "0.001"], ["--no-patches"], ["--imgsz", "640"], ["--max-det", "50"]]
)
def test_flags_for_weights_are_refused_with_predictions(
    sample: Path, toolkit: Command, flags: list[str]
) -> None:
    predictions = sample / "runs/first/predictions-val.json"
    result = toolkit("evaluate", predictions, *flags)
    line = f"{flags[0]} is for weights: {predictions} is predicted already"
    assert (result.status, line in result.err.replace("\n", " ")) == (2, True), result.err
    assert not list(sample.rglob("scores.json"))


def test_swapped_files_are_recognised(sample: Path, toolkit: Command) -> None:
    swapped = toolkit("evaluate", "data/sample/Valid.json", "--truth", "runs/first/predictions-val.json")
    assert swapped.status == 1
    assert "swap" in swapped.err


def test_a_bad_value_is_refused_in_one_line(sample: Path, toolkit: Command) -> None:
    write(sample / "p.json", {str(VAL[0]): {**HIT, "labels": [7]}})
    result = toolkit("evaluate", "p.json", "--truth", "data/sample/Valid.json")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert f"id {VAL[0]}, detection 0: label 7" in result.err


def test_a_report_is_drawn_on_request(sample: Path, toolkit: Command) -> None:
    toolkit("evaluate", "runs/first/predictions-val.json")
    assert not list(sample.rglob("report.html"))
    result = toolkit("evaluate", "runs/first/predictions-val.json", "--report")
    assert result.status == 0
    assert "no gallery: " in result.err
    page = (sample / "runs/first/evaluation/report.html").read_text()
    assert "<title>first, split val</title>" in page


def test_scores_of_anything_else_leave_the_runs_own_alone(sample: Path, toolkit: Command) -> None:
    run, data = sample / "runs/first", sample / "data/sample"
    provenance.record(run / "predictions-val.json", "val", "best.pt", "of best")
    toolkit("evaluate", "runs/first/predictions-val.json")
    own = (run / "evaluation/scores.json").read_bytes()
    truth = {str(i): {"boxes": HIT["boxes"], "labels": [2]} for i in TEST}
    write(data / "TestNoLabels.json", {"images": [], "annotations": []})
    write(sample / "answers.json", truth)
    shutil.copytree(data, sample / "moved")
    shutil.copy(data / "Valid.json", data / "Train.json")
    write(run / "linked.json", {str(i): {**HIT, "boxes": [[90, 90, 95, 95]]} for i in VAL})
    for words, folder in {
        ("predictions-test.json", "--truth", "answers.json"): "evaluation-answers",
        ("predictions-val.json", "--truth", "data/sample/Train.json"): "evaluation-train",
        ("predictions-val.json", "--split", "train"): "evaluation-train",
        ("predictions-val.json", "--data", "moved"): "evaluation-moved",
        ("linked.json",): "linked-evaluation",
    }.items():
        result = toolkit("evaluate", run / words[0], *words[1:])
        assert result.status == 0, result.err
        assert f"{folder}/scores.json" in "".join(result.err.split())
        assert (run / folder / "scores.json").is_file()
        assert (run / "evaluation/scores.json").read_bytes() == own
    assert provenance.origin_of(run / "evaluation/scores.json") is not None


def test_truths_of_one_name_have_scores_of_their_own(sample: Path, toolkit: Command) -> None:
    run = sample / "runs/first"
    truth = json.loads((sample / "data/sample/Valid.json").read_text())
    for n, folder in enumerate(("x", "y")):
        (sample / folder).mkdir()
        other = {**truth, "annotations": truth["annotations"][n:]}
        write(sample / folder / "answers.json", other)
    write(sample / "a.json", {str(i): HIT for i in VAL})
    for target, first in (
        (run / "predictions-val.json", run / "evaluation-answers"),
        ("a.json", "a-evaluation-answers"),
    ):
        x = toolkit("evaluate", target, "--truth", "x/answers.json")
        assert x.status == 0, x.err
        kept = (sample / first / "scores.json").read_bytes()
        y = toolkit("evaluate", target, "--truth", "y/answers.json")
        assert y.status == 0, y.err
        assert f"has scores against {sample / 'x/answers.json'}" in "".join(y.err.splitlines())
        second = sample / f"{first}-2" / "scores.json"
        assert (sample / first / "scores.json").read_bytes() == kept != second.read_bytes()
        for folder in "xy":  # each finds its own again, also after an edit of the truth
            edited = sample / folder / "answers.json"
            edited.write_text(edited.read_text() + "\n")
            assert toolkit("evaluate", target, "--truth", edited).status == 0
        assert not (sample / f"{first}-3").exists()
        shutil.move(sample / "x", sample / "moved")
        again = toolkit("evaluate", target, "--truth", "moved/answers.json")
        assert "has scores" not in again.err
        shutil.move(sample / "moved", sample / "x")
    replaced = toolkit("evaluate", "a.json", "--truth", "y/answers.json", "--out", "a-evaluation-answers")
    assert "which are replaced" in " ".join(replaced.err.split())


def test_other_weights_than_the_best_have_scores_of_their_own(sample: Path, toolkit: Command) -> None:
    run = sample / "runs/first"
    place = Workspace(sample)
    for name, folder in {
        "best.pt": "evaluation",
        "last.pt": "evaluation-last",
        "epoch3.pt": "evaluation-epoch3",
    }.items():
        assert place.evaluation(run / "weights" / name, "val") == run / folder
        assert place.evaluation(run / "weights" / name, "train") == run / f"{folder}-train"
    found = write(run / "predictions-val.json", {str(i): HIT for i in VAL})
    provenance.record(found, "val", "best.pt", "of best")
    assert toolkit("evaluate", found).status == 0
    own = (run / "evaluation/scores.json").read_bytes()
    write(found, {str(i): {**HIT, "boxes": [[90, 90, 95, 95]]} for i in VAL})
    provenance.record(found, "val", "last.pt", "of last")
    assert toolkit("evaluate", found).status == 0
    assert (run / "evaluation-last/scores.json").read_bytes() != own
    assert (run / "evaluation/scores.json").read_bytes() == own
    shutil.copy(found, run / "evaluation-last/predictions.json")
    provenance.record(run / "evaluation-last/predictions.json", "val", "last.pt", "of last")
    assert toolkit("evaluate", run / "evaluation-last/predictions.json").status == 0
    assert (run / "evaluation/scores.json").read_bytes() == own
    assert not (run / "evaluation-last-2").exists()


def test_what_is_made_of_a_runs_predictions_is_none_of_its_own(sample: Path, toolkit: Command) -> None:
    """Neither beside what it was made of, nor in a name that begins alike, nor in its very place."""
    run = sample / "runs/first"
    made = {str(i): {**HIT, "boxes": [[90, 90, 95, 95]]} for i in VAL}
    for found in (run / "predictions-val.json", run / "evaluation/predictions.json"):
        write(found, {str(i): HIT for i in VAL})
        provenance.record(found, "val", "best.pt", "of best")
        assert toolkit("evaluate", found).status == 0
        own = (run / "evaluation/scores.json").read_bytes()
        assert provenance.origin_of(run / "evaluation/scores.json") is not None
        for name in (f"{found.stem}-linked.json", "predictions-ens.json", found.name):
            result = toolkit("evaluate", write(found.with_name(name), made))
            assert result.status == 0, result.err
            folder = found.with_name(f"{Path(name).stem}-evaluation")
            assert json.loads((folder / "scores.json").read_bytes())["global_map_50"] == 0
            assert (run / "evaluation/scores.json").read_bytes() == own
    assert provenance.origin_of(run / "evaluation/scores.json") is not None


def test_each_file_of_no_run_has_its_own_scores(sample: Path, toolkit: Command) -> None:
    nothing = {"boxes": [], "scores": [], "labels": []}
    for name, found in {"a": HIT, "b": nothing}.items():
        write(sample / f"{name}.json", {str(i): found for i in VAL})
        toolkit("evaluate", f"{name}.json", "--truth", "data/sample/Valid.json")
    scores = [json.loads((sample / f"{n}-evaluation/scores.json").read_text()) for n in "ab"]
    assert [each["global_map_50"] for each in scores] == [1.0, 0.0]
    run = sample / "runs/first"
    write(run / "linked-test.json", {str(i): HIT for i in VAL})
    for folder in (sample / "old", run):  # where earlier scores of any file lie, and a run's own
        shutil.copytree(sample / "a-evaluation", folder / "evaluation")
    shutil.copy(sample / "b.json", sample / "old")
    files = ("a.json", "b.json", "old/b.json", run / "linked-test.json")
    fused = toolkit("ensemble", *files, "--weights", "validation")
    assert fused.status == 0, fused.err


@pytest.fixture
def worse(sample: Path) -> Path:
    """Predictions of the sample of which every second is nowhere near."""
    moved = {**HIT, "boxes": [[200, 200, 220, 230]]}
    return write(sample / "b.json", {str(i): moved if n % 2 else HIT for n, i in enumerate(VAL)})


def test_compare_puts_a_run_and_a_file_side_by_side(sample: Path, toolkit: Command, worse: Path) -> None:
    result = toolkit("compare", "first", worse)
    assert result.status == 0
    assert "global_map_50" in result.out
    assert "resamples of 3 clips" in result.out


def test_compare_as_json_has_the_exact_scores_of_both(sample: Path, toolkit: Command, worse: Path) -> None:
    numbers = json.loads(toolkit("compare", "runs/first", worse, "--json").out)
    difference = numbers["differences"]["global_map_50"]
    assert difference["a"] == 1.0
    assert difference["low"] <= difference["b"] - difference["a"] <= difference["high"] <= 0


def test_a_file_that_takes_long_to_read_is_said_before(
    sample: Path, toolkit: Command, worse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(sample / "a.json", {str(i): HIT for i in VAL})
    verbs = (
        ("evaluate", "a.json"),
        ("compare", "a.json", "b.json"),
        ("ensemble", "a.json", "b.json", "--out", "c.json"),
        ("link", "a.json", "--out", "d.json"),
    )
    for words in verbs:
        assert "reading " not in toolkit(*words).err
    monkeypatch.setattr(console, "LARGE", 1)
    for words in verbs:
        result = toolkit(*words)
        assert result.status == 0, result.err
        assert [line for line in result.err.splitlines() if "reading a.json, 0 MB" in line]


def test_compare_predicts_with_weights_once(
    sample: Path, toolkit: Command, worse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def predict(_: object, __: object, split: str, options: object) -> Detections:
        asked.append(split)
        return Detections.read(worse)

    monkeypatch.setattr(Detector, "read", lambda path, classes: object())
    monkeypatch.setattr(assessment, "opened", lambda wanted: None)
    monkeypatch.setattr(prediction, "predict", predict)
    run = sample / "runs/first"
    soup = run / "soup.pt"
    for content, times in ((b"one", 1), (b"one", 1), (b"another", 2)):
        soup.write_bytes(content)
        result = toolkit("compare", "first", soup, "--json")
        assert result.status == 0, result.err
        assert asked == ["val"] * times
        assert json.loads(result.out)["differences"]["global_map_50"]["a"] == 1.0
    assert provenance.origin_of(run / "evaluation-soup/predictions.json") is not None
    assert not (run / "evaluation").exists()
    assert toolkit("compare", "first", "nothing.pt").status == 1


def test_an_evaluation_notes_the_flags_that_found_its_boxes(
    sample: Path, toolkit: Command, worse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detector, "read", lambda path, classes: object())
    monkeypatch.setattr(assessment, "opened", lambda wanted: None)
    monkeypatch.setattr(prediction, "predict", lambda *_: Detections.read(worse))
    write(sample / "runs/first/weights/best.pt", {})
    for words, flags in (((), ""), (("--imgsz", "33"), "--imgsz 33")):
        result = toolkit("evaluate", "first", *words)
        assert result.status == 0, result.err
        for name in ("predictions.json", "scores.json"):
            origin = provenance.origin_of(sample / "runs/first/evaluation" / name)
            assert origin is not None and origin.flags == flags, name


@pytest.mark.parametrize("names", [("first", "soup.pt"), ("soup.pt", "first")])
def test_what_is_of_no_run_is_compared_on_the_data_of_what_is(
    sample: Path, toolkit: Command, worse: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    shutil.copytree(sample / "data/sample", sample / "data/another")
    asked: list[Path | None] = []
    monkeypatch.setattr(Detector, "read", lambda path, classes: object())
    monkeypatch.setattr(assessment, "opened", lambda wanted: asked.append(wanted.data))
    monkeypatch.setattr(prediction, "predict", lambda *_: Detections.read(worse))
    (sample / "soup.pt").write_bytes(b"weights")
    result = toolkit("compare", *names)
    assert result.status == 0, result.err
    assert asked == [sample / "data/sample"]
    assert (sample / "soup-evaluation/predictions.json").is_file()
    alone = toolkit("compare", "soup.pt", "soup.pt")
    assert (alone.status, "cannot tell where the data is" in alone.err) == (1, True)


def test_predictions_of_other_data_are_called_so_not_mislabelled(sample: Path, toolkit: Command) -> None:
    write(sample / "animals.json", {"7": {**HIT, "labels": [5]}})
    for words, message in (
        (("compare", "first", "animals.json"), "has no image in common"),
        (("ensemble", "runs/first/predictions-val.json", "animals.json"), "has no image in common"),
        (("evaluate", "animals.json"), "animals.json has no image of"),
    ):
        result = toolkit(*words)
        assert (result.status, message in result.err, "label 5" in result.err) == (1, True, False), result.err


def test_what_is_no_predictions_is_told_so_where_the_data_is_not_known(
    sample: Path, toolkit: Command
) -> None:
    shutil.copytree(sample / "data/sample", sample / "data/another")
    shutil.copy(sample / "data/sample/Valid.json", sample / "coco.json")
    refused = toolkit("evaluate", "coco.json")
    assert (refused.status, "COCO" in refused.err, "--data" in refused.err) == (1, True, False), refused.err
    write(sample / "a.json", {str(i): HIT for i in VAL})
    assert "--data" in toolkit("evaluate", "a.json").err


def test_the_images_of_predictions_say_which_of_several_data_they_are_of(
    sample: Path, toolkit: Command
) -> None:
    truth = json.loads((sample / "data/sample/Valid.json").read_text())
    whole = templates.template("development")[:9].tolist()
    images = [{"id": i, "file_name": f"frames/20200502/clip_{n % 3}/{i}.jpg"} for n, i in enumerate(whole)]
    write(sample / "data/whole/Valid.json", {**truth, "images": images})
    shutil.copytree(sample / "data/sample", sample / "data/another")
    shutil.move(sample / "data/another/Valid.json", sample / "data/another/Train.json")
    for name, ids, data in (("part", VAL, "sample"), ("some", VAL[:5], ""), ("all", whole, "whole")):
        file = write(sample / f"{name}.json", {str(i): HIT for i in ids})
        for words in (("evaluate", file), ("compare", file, file)):
            result = toolkit(*words)
            assert (result.status, "--data" in result.err) == ((0, False) if data else (1, True)), result.err
            assert (f"data/{data}, whose split val has these images" in result.err) == bool(data)
            named = toolkit(*words, "--data", "nowhere")  # what a person names is never replaced
            assert (named.status, "no folder nowhere" in named.err) == (1, True), named.err
    (sample / "toolkit.toml").write_text('data = "nowhere"')
    assert "nowhere" in toolkit("evaluate", "part.json").err


def test_compare_needs_to_know_the_clips(sample: Path, toolkit: Command, worse: Path) -> None:
    truth = {str(i): {"boxes": [[10, 10, 30, 40]], "labels": [1]} for i in VAL}
    result = toolkit("compare", "first", worse, "--truth", write(sample / "truth.json", truth))
    assert (result.status, "which clip a frame is of" in result.err) == (1, True)


def test_compare_names_a_run_without_predictions(sample: Path, toolkit: Command) -> None:
    result = toolkit("compare", "first", "second")
    assert result.status == 1
    assert "no file or run second" in result.err
    assert "runs first" in result.err
    (sample / "runs/first/predictions-val.json").unlink()
    result = toolkit("compare", "first", "first")
    assert (result.status, "no predictions in" in result.err, "no best.pt either" in result.err) == (
        1,
        True,
        True,
    )


def test_compare_has_the_best_weights_of_a_run_without_predictions_make_them(
    sample: Path, toolkit: Command, worse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(*_: object) -> Detections:
        asked.append(1)
        return Detections.read(worse)

    asked: list[int] = []
    monkeypatch.setattr(Detector, "read", lambda path, classes: object())
    monkeypatch.setattr(assessment, "opened", lambda wanted: None)
    monkeypatch.setattr(prediction, "predict", predict)
    second = shutil.copytree(sample / "runs/first", sample / "runs/second")
    (second / "predictions-val.json").unlink()
    write(second / "weights/best.pt", {})
    for _ in range(2):
        result = toolkit("compare", "first", "second", "--json")
        assert result.status == 0, result.err
        assert asked == [1], "once"
    assert "predicting split val" not in result.err
    assert json.loads(result.out)["differences"]["global_map_50"]["a"] == 1.0
    assert provenance.origin_of(second / "evaluation/predictions.json") is not None


def read_zip(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["predictions.json"]
        return json.loads(archive.read("predictions.json"))


def test_submit_alone_takes_the_newest_predictions_says_so_and_writes_nothing(
    sample: Path, toolkit: Command
) -> None:
    result = toolkit("submit")
    assert result.status == 0
    assert "predictions-test.json" in result.err
    assert not list(sample.rglob("*.zip"))


def test_a_samples_zip_has_all_ids_and_says_that_it_is_a_rehearsal(sample: Path, toolkit: Command) -> None:
    result = toolkit("submit", "--zip", "--json")
    outcome = json.loads(result.out)
    entries = read_zip(sample / "runs/first/submission.zip")
    assert outcome["rehearsal"]
    assert "rehearsal" in result.err
    assert len(entries) == outcome["images"] == 49_430
    assert outcome["filled"] == 49_430 - len(TEST)
    assert entries[str(TEST[0])] == {"boxes": [[10.123, 10, 30, 40]], "scores": [0.98765], "labels": [1]}


def test_what_is_made_of_a_samples_predictions_is_a_rehearsal_too(
    sample: Path, toolkit: Command, codabench_server: Server
) -> None:
    first = write(sample / "a.json", {str(i): HIT for i in TEST})
    fused = toolkit("ensemble", first, "runs/first/predictions-test.json")
    assert fused.status == 0, fused.err
    for flags in ([], ["--data", "data/sample"], ["--allow-missing"]):
        result = toolkit("submit", "ensemble.json", "--zip", "--out", "entry.zip", "--json", *flags)
        assert result.status == 0, result.err
        outcome = json.loads(result.out)
        assert (outcome["rehearsal"], outcome["filled"]) == (True, 49_430 - len(TEST))
        assert "a rehearsal" in result.err
    write(sample / "few.json", {str(i): HIT for i in TEST[:5]})
    assert "all 49,430 ids of the phase" in toolkit("submit", "few.json", "--zip").err
    result = toolkit("submit", "entry.zip", "--upload")
    assert (result.status, "a rehearsal is not uploaded" in result.err) == (1, True)
    assert not codabench_server.archives


def test_the_zip_of_a_rehearsal_is_looked_into_as_one(sample: Path, toolkit: Command) -> None:
    run = sample / "runs/first"
    made = json.loads(toolkit("submit", run / "predictions-test.json", "--zip", "--json").out)
    content = (run / "submission.zip").read_bytes()
    for flags in ([], ["--zip"]):
        result = toolkit("submit", run / "submission.zip", "--json", *flags)
        assert result.status == 0, result.err
        again = json.loads(result.out)
        for key in ("rehearsal", "filled", "images", "boxes", "phase"):
            assert again[key] == made[key]
    assert (run / "submission.zip").read_bytes() == content
    whole = write(run / "whole.json", {str(i): HIT for i in templates.template("testing").tolist()})
    outcome = toolkit("submit", whole, "--json")
    assert json.loads(outcome.out)["rehearsal"] is False, outcome.err


def test_a_sample_image_without_predictions_is_refused_all_the_same(sample: Path, toolkit: Command) -> None:
    path = write(sample / "runs/first/predictions-test.json", {str(i): HIT for i in TEST[:5]})
    result = toolkit("submit", path, "--zip")
    assert result.status == 1
    assert f"missing id {TEST[5]}" in result.err
    assert not list(sample.rglob("*.zip"))


def test_without_its_data_a_sample_is_no_excuse_for_missing_ids(sample: Path, toolkit: Command) -> None:
    shutil.rmtree(sample / "data")
    result = toolkit("submit", "--zip")
    assert result.status == 1
    assert "--allow-missing" in result.err


def test_predictions_of_no_run_must_be_complete(workspace: Path, toolkit: Command) -> None:
    write(workspace / "p.json", {str(i): HIT for i in VAL})
    result = toolkit("submit", "p.json", "--zip")
    assert result.status == 1
    assert "46,007 offences" in result.err
    assert "--allow-missing" in result.err
    result = toolkit("submit", "p.json", "--zip", "--allow-missing", "--out", "entry.zip")
    assert "46,007 ids had no entry" in result.err
    assert len(read_zip(workspace / "entry.zip")) == 46_013


def test_the_phase_follows_from_the_ids(sample: Path, toolkit: Command) -> None:
    result = toolkit("submit", "runs/first/predictions-val.json", "--json")
    assert json.loads(result.out)["checked_against"] == "the development template"


def test_ids_of_two_phases_belong_to_none(workspace: Path, toolkit: Command) -> None:
    write(workspace / "p.json", {str(i): HIT for i in [*VAL, *TEST]})
    result = toolkit("submit", "p.json", "--zip")
    assert "belongs to no phase" in result.err
    result = toolkit("submit", "p.json", "--zip", "--phase", "testing", "--allow-missing")
    assert f"unknown id {VAL[0]}" in result.err
    assert not list(workspace.rglob("*.zip"))


def test_predictions_of_another_split_are_called_so(sample: Path, toolkit: Command) -> None:
    result = toolkit("submit", "runs/first/predictions-val.json", "--zip", "--phase", "testing")
    assert "predictions-val.json is of another split" in result.err
    assert "ids of the development phase (split val)" in result.err
    foreign = templates.template("testing")[-2:].tolist()
    write(sample / "runs/first/other.json", {str(i): HIT for i in foreign})
    result = toolkit("submit", "runs/first/other.json", "--zip", "--phase", "testing")
    assert "is of another split" not in result.err
    assert f"unknown id {foreign[0]}" in result.err
    own = write(sample / "ids.json", {str(i): {} for i in TEST})
    result = toolkit("submit", "runs/first/predictions-val.json", "--zip", "--template", own)
    assert "is of another split" in result.err
    assert not list(sample.rglob("*.zip"))


@pytest.mark.parametrize("form", ["template", "COCO"])
def test_a_template_of_ones_own_decides(sample: Path, toolkit: Command, form: str) -> None:
    template = sample / "data/sample/TestNoLabels.json"
    if form == "template":
        template = write(sample / "ids.json", {str(i): {} for i in reversed(TEST)})
    toolkit("submit", "--zip", "--template", template)
    assert set(read_zip(sample / "runs/first/submission.zip")) == {str(i) for i in TEST}


def test_coco_results_are_converted_on_request_only(sample: Path, toolkit: Command) -> None:
    results = [{"image_id": TEST[0], "category_id": 4, "bbox": [1, 2, 3, 4], "score": 0.5}]
    write(sample / "coco.json", results)
    refused = toolkit("submit", "coco.json", "--zip")
    assert (refused.status, "--from-coco" in refused.err) == (1, True)
    toolkit("submit", "coco.json", "--from-coco", "--zip", "--out", "entry.zip")
    entries = read_zip(sample / "entry.zip")
    assert entries[str(TEST[0])] == {"boxes": [[1, 2, 4, 6]], "scores": [0.5], "labels": [4]}
    assert len(entries) == 49_430


@pytest.mark.parametrize(("value", "options"), [({}, []), ([], ["--from-coco"])])
def test_predictions_without_images_are_refused_in_one_line(
    workspace: Path, toolkit: Command, value: Any, options: list[str]
) -> None:
    result = toolkit("submit", write(workspace / "p.json", value), *options)
    assert (result.status, result.err.count("\n"), "no images" in result.err) == (1, 1, True)


def test_the_same_predictions_give_the_same_zip(sample: Path, toolkit: Command) -> None:
    toolkit("submit", "--zip", "--out", "a.zip")
    path = sample / "runs/first/predictions-test.json"
    write(path, dict(reversed(json.loads(path.read_text()).items())))
    toolkit("submit", "--zip", "--out", "b.zip")
    assert (sample / "a.zip").read_bytes() == (sample / "b.zip").read_bytes()


def test_a_workspace_without_predictions_says_how_to_make_some(workspace: Path, toolkit: Command) -> None:
    result = toolkit("submit", "--zip")
    assert result.status == 1
    assert "toolkit predict" in result.err


def test_a_receipt_says_what_the_zip_was_made_from(sample: Path, toolkit: Command) -> None:
    run = sample / "runs/first"
    for split in ("val", "test"):
        provenance.record(run / f"predictions-{split}.json", split, "best.pt", "of best")
    toolkit("evaluate", run / "predictions-val.json")
    toolkit("submit", "--zip")
    receipt = json.loads((run / "submission.json").read_text())
    archive = hashlib.sha256((run / "submission.zip").read_bytes()).hexdigest()
    assert receipt["archive"] == {"file": "submission.zip", "sha256": archive}
    assert receipt["weights"] == {"best.pt": "of best"}
    assert receipt["validation"]["global_map_50"] == 1.0
    assert receipt["phase"] == "testing"
    assert "torch" in receipt["versions"]


def test_a_receipt_with_a_score_that_is_no_number_gives_way_to_the_next(
    sample: Path, toolkit: Command
) -> None:
    """What finds nothing in any month has no drift, a quotient of zeros; its receipt is JSON all the same."""
    run = sample / "runs/first"
    scores = run / "evaluation/scores.json"
    scores.parent.mkdir()
    scores.write_text('{"global_map": 0.0, "global_map_con": NaN}')
    provenance.record(scores, "val", "best.pt", "of best")
    provenance.record(run / "predictions-test.json", "test", "best.pt", "of best")
    for _ in range(2):
        assert toolkit("submit", "--zip").status == 0
        receipt = msgspec.json.decode((run / "submission.json").read_bytes())
        assert (receipt["validation"]["global_map"], receipt["validation"]["global_map_con"]) == (0, None)


@pytest.mark.parametrize("case", ["other weights", "split train", "a truth of one's own", "changed since"])
def test_a_receipt_takes_no_other_scores_for_the_validations(
    sample: Path, toolkit: Command, case: str
) -> None:
    run, options = sample / "runs/first", []
    path, weights, split = run / "predictions-val.json", "of best", "val"
    if case == "other weights":
        weights = "of last"
    elif case == "split train":
        split, options = "train", ["--split", "train"]
        shutil.copy(sample / "data/sample/Valid.json", sample / "data/sample/Train.json")
    elif case == "a truth of one's own":
        options = ["--truth", "data/sample/Valid.json"]
    provenance.record(path, split, "some.pt", weights)
    provenance.record(run / "predictions-test.json", "test", "best.pt", "of best")
    if case == "changed since":
        write(path, {str(i): HIT for i in VAL[:5]})
    assert toolkit("evaluate", path, *options).status == 0
    toolkit("submit", run / "predictions-test.json", "--zip")
    receipt = json.loads((run / "submission.json").read_text())
    assert receipt["weights"] == {"best.pt": "of best"}
    assert "validation" not in receipt


@pytest.mark.parametrize(
    ("predictions", "out", "message"),
    [
        ("p.json", "p.json", "ends in .zip"),
        ("p.json", "entry.json", "ends in .zip"),
        ("p.json", "p.zip", "p.json exists"),
        ("p.json", "data/sample/Valid.zip", "Valid.json exists"),
        ("p.json", "frames.zip", "frames.zip exists"),
        ("submission.json", None, "submission.json exists"),
    ],
)
def test_submit_overwrites_nothing_but_earlier_submissions(
    sample: Path, toolkit: Command, predictions: str, out: str | None, message: str
) -> None:
    write(sample / predictions, {str(i): HIT for i in VAL})
    with zipfile.ZipFile(sample / "frames.zip", "w") as frames:
        frames.writestr("frames/20200502/a.jpg", b"")
    before = {path: path.read_bytes() for path in sample.rglob("*") if path.is_file()}
    options = ["--out", out] if out else ["--zip"]
    result = toolkit("submit", predictions, "--template", "data/sample/Valid.json", *options)
    assert (result.status, message in result.err) == (2 if message == "ends in .zip" else 1, True)
    assert {path: path.read_bytes() for path in sample.rglob("*") if path.is_file()} == before


def test_an_earlier_submission_is_replaced(sample: Path, toolkit: Command) -> None:
    assert [toolkit("submit", "--zip").status for _ in range(2)] == [0, 0]


def complete(folder: Path) -> Path:
    everything = {str(i): HIT for i in templates.template("testing").tolist()}
    return write(folder / "complete.json", everything)


def test_upload_sends_the_checked_zip_and_records_the_submission(
    sample: Path, toolkit: Command, codabench_server: Server
) -> None:
    result = toolkit("submit", complete(sample), "--upload", "--out", "entry.zip")
    assert result.status == 0
    assert codabench_server.archives == [(sample / "entry.zip").read_bytes()]
    assert codabench_server.submissions[0]["phase"] == ["72"]
    receipt = json.loads((sample / "entry.json").read_text())
    assert receipt["codabench"]["submission"] == 4711
    assert TOKEN not in result.out + result.err + json.dumps(receipt)


@pytest.mark.parametrize("case", ["rehearsal", "invalid", "no token", "sparse"])
def test_nothing_is_uploaded_unless_it_is_complete_and_valid(
    sample: Path,
    toolkit: Command,
    codabench_server: Server,
    case: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = sample / "runs/first/predictions-test.json"
    if case == "invalid":
        path = write(sample / "bad.json", {str(TEST[0]): {**HIT, "labels": [9]}})
    elif case == "no token":
        path = complete(sample)
        monkeypatch.delenv("CODABENCH_TOKEN")
    elif case == "sparse":
        path = write(sample / "few.json", {str(TEST[0]): HIT})
    result = toolkit("submit", path, "--upload", *["--allow-missing"][: case == "sparse"])
    assert result.status == 1
    assert codabench_server.requests == []
    assert not list(sample.rglob("*.zip"))


def test_sparse_predictions_are_uploaded_when_that_is_meant(
    sample: Path, toolkit: Command, codabench_server: Server
) -> None:
    path = write(sample / "few.json", {str(TEST[0]): HIT})
    assert toolkit("submit", path, "--upload", "--allow-missing", "--upload-sparse").status == 0
    assert len(codabench_server.archives) == 1


def test_a_failed_upload_leaves_the_receipt_of_its_own_archive(
    sample: Path, toolkit: Command, codabench_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    toolkit("submit", "--zip", "--out", "entry.zip")
    monkeypatch.setenv("CODABENCH_TOKEN", "another")
    assert toolkit("submit", complete(sample), "--upload", "--out", "entry.zip").status == 1
    receipt = json.loads((sample / "entry.json").read_text())
    assert receipt["archive"]["sha256"] == hashlib.sha256((sample / "entry.zip").read_bytes()).hexdigest()
    assert "codabench" not in receipt
