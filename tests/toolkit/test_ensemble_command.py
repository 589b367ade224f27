"""``toolkit ensemble`` writes what the organisers accept, or nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from command import Command

from submission import Detections, templates
from submission.competitions import PHASES
from toolkit.evaluation import ensemble

HIT = {"20210100000000001": {"boxes": [[10, 10, 30, 40]], "scores": [0.5], "labels": [1]}}


@pytest.fixture
def files(workspace: Path) -> list[str]:
    names = ["a.json", "b.json"]
    for name in names:
        (workspace / name).write_text(json.dumps(HIT))
    return names


@pytest.mark.parametrize("weights", ["0,0", "nan,1", "-1,1"])
def test_weights_that_cannot_be_leave_no_file(files: list[str], toolkit: Command, weights: str) -> None:
    result = toolkit("ensemble", *files, "--weights", weights)
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert "weights cannot be used" in result.err
    assert not Path("ensemble.json").exists()


def test_what_came_of_fusing_is_checked_before_it_is_written(
    files: list[str], toolkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(sets: list[Detections], _: ensemble.FusionOptions) -> Detections:
        return replace(sets[0], boxes=sets[0].boxes * float("nan"))

    monkeypatch.setattr(ensemble, "fuse", broken)
    result = toolkit("ensemble", *files)
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert "finite coordinates" in result.err
    assert not Path("ensemble.json").exists()


def predictions(path: Path, ids: list[int]) -> Path:
    entry = {"boxes": [[10, 10, 30, 40]], "scores": [0.5], "labels": [1]}
    path.write_text(json.dumps({str(i): entry for i in ids}))
    return path


VAL, TEST = (templates.template(phase)[:6].tolist() for phase in PHASES)


def test_files_of_different_splits_are_not_fused(workspace: Path, toolkit: Command) -> None:
    a, b = predictions(workspace / "a.json", VAL), predictions(workspace / "b.json", TEST)
    result = toolkit("ensemble", a, b)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "different splits; found " in result.err
    assert "a.json of development" in result.err
    assert not Path("ensemble.json").exists()


def test_files_without_a_common_image_are_not_fused(workspace: Path, toolkit: Command) -> None:
    a, b = predictions(workspace / "a.json", VAL[:3]), predictions(workspace / "b.json", VAL[3:])
    result = toolkit("ensemble", a, b)
    assert (result.status, "has no image in common with the others" in result.err) == (1, True)


def test_images_that_one_file_lacks_are_counted_aloud(workspace: Path, toolkit: Command) -> None:
    a, b = predictions(workspace / "a.json", VAL), predictions(workspace / "b.json", VAL[:4])
    result = toolkit("ensemble", a, b)
    assert result.status == 0
    assert "b.json has no entry for 2 of 6 images; fused as if nothing was found there" in result.err


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (VAL, TEST, "different splits"),
        (TEST, TEST, "has no image of"),
        (VAL[:3], VAL[3:], "no image in common"),
    ],
)
def test_files_of_another_split_are_not_compared(
    workspace: Path, toolkit: Command, a: list[int], b: list[int], message: str
) -> None:
    images = [{"id": i, "file_name": f"frames/20200502/clip_{n % 3}/{i}.jpg"} for n, i in enumerate(VAL)]
    boxes = [{"id": n, "image_id": i, "category_id": 1, "bbox": [10, 10, 20, 30]} for n, i in enumerate(VAL)]
    (workspace / "Valid.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    files = predictions(workspace / "a.json", a), predictions(workspace / "b.json", b)
    result = toolkit("compare", *files, "--truth", "Valid.json")
    assert (result.status, result.err.count("\n"), message in result.err) == (1, 1, True)
    assert result.out == ""


def test_compare_counts_what_one_file_lacks_aloud(workspace: Path, toolkit: Command) -> None:
    images = [{"id": i, "file_name": f"frames/20200502/clip_{n % 3}/{i}.jpg"} for n, i in enumerate(VAL)]
    boxes = [{"id": n, "image_id": i, "category_id": 1, "bbox": [10, 10, 20, 30]} for n, i in enumerate(VAL)]
    (workspace / "Valid.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    files = predictions(workspace / "a.json", VAL), predictions(workspace / "b.json", VAL[:4])
    result = toolkit("compare", *files, "--truth", "Valid.json", "--resamples", "100")
    assert (result.status, "b.json has no entry for 2 of 6 images" in result.err) == (0, True)


def test_evaluate_refuses_predictions_of_another_split(workspace: Path, toolkit: Command) -> None:
    images = [{"id": i, "file_name": f"frames/20200502/clip_{n % 3}/{i}.jpg"} for n, i in enumerate(VAL)]
    (workspace / "Valid.json").write_text(json.dumps({"images": images, "annotations": []}))
    result = toolkit("evaluate", predictions(workspace / "a.json", TEST), "--truth", "Valid.json")
    assert (result.status, "of the phase testing" in result.err) == (1, True)
    assert not list(workspace.glob("*evaluation"))


def test_a_file_that_found_nothing_is_fused_by_its_validation_scores(
    workspace: Path, toolkit: Command
) -> None:
    """Without a hit in any month the formula gives no number: strict JSON has null, earlier files NaN."""
    images = [{"id": i, "file_name": f"frames/20200502/clip_{n % 3}/{i}.jpg"} for n, i in enumerate(VAL)]
    boxes = [{"id": n, "image_id": i, "category_id": 1, "bbox": [200, 200, 9, 9]} for n, i in enumerate(VAL)]
    for month in range(8):  # true boxes in every month, so that nothing but 0 / 0 is left
        digits = 202101 + month if month < 4 else 202005 + month - 4
        images.append({"id": digits * 10**11 + 1, "file_name": f"frames/{digits}01/clip_9/a.jpg"})
        boxes.append({**boxes[0], "id": 100 + month, "image_id": digits * 10**11 + 1})
    (workspace / "Valid.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    files = [predictions(workspace / name, VAL) for name in ("a.json", "b.json")]
    for file in files:
        assert toolkit("evaluate", file).status == 0
    scores = workspace / "a-evaluation/scores.json"
    assert msgspec.json.decode(scores.read_bytes())["global_map_con"] is None
    result = toolkit("ensemble", *files, "--weights", "validation")
    assert (result.status, "every file is trusted alike" in result.err) == (0, True)
    scores.write_text(scores.read_text().replace("null", "NaN"))
    result = toolkit("ensemble", *files, "--weights", "validation")
    assert result.status == 0, result.err
    scores.write_text("{")
    assert "says nothing of the classes" in toolkit("ensemble", *files, "--weights", "validation").err
