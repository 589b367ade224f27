"""Every key of the organisers, equal to 1e-6, by both engines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from organisers import NOTHING, Entries, assert_same_scores, organisers_scores, parsed
from synthetic import synthetic

from submission import Detections, SubmissionError
from toolkit.evaluation import engines
from toolkit.evaluation.matching import match
from toolkit.evaluation.scoring import align, balance, month_masks, score
from toolkit.evaluation.truth import GroundTruth
from toolkit.ltdv2 import MONTHS

ENGINES: tuple[engines.Engine, ...] = ("pycocotools", "hotcoco")
PREFIXES = [*MONTHS.values(), "202009"]

both_engines = pytest.mark.parametrize("engine", ENGINES)


def an_id(month: int, n: int) -> str:
    """A 17-digit id in month 0 (January) to 8 (September, which counts only globally)."""
    return f"{PREFIXES[month]}{n:011d}"


def boxes_of(corners: np.ndarray, sizes: np.ndarray) -> list[list[float]]:
    return np.hstack([corners, corners + sizes]).tolist()


@st.composite
def problems(draw: st.DrawFn) -> tuple[Entries, Entries]:
    """Small problems full of ties: grids of boxes, few distinct scores, empty images, ids on one side."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images = draw(st.integers(1, 24))
    months = draw(st.integers(1, len(PREFIXES)))
    fraction = draw(st.sampled_from([0.0, 0.37, 1 / 3]))
    truth: Entries = {}
    predictions: Entries = {}
    for n in rng.permutation(images).tolist():
        image_id = an_id(int(rng.integers(months)), n)
        count = int(rng.integers(0, 6))
        corners = rng.integers(0, 40, (count, 2)) + fraction
        sizes = rng.integers(0, 21, (count, 2)) * rng.choice([1.0, 0.55])
        labels = rng.integers(1, 5, count)
        if rng.random() < 0.95:
            truth[image_id] = {"boxes": boxes_of(corners, sizes), "labels": labels.tolist()}
        if rng.random() < 0.9:
            copies = rng.integers(0, max(count, 1), int(rng.integers(0, 8)) if count else 0)
            shifts = rng.integers(-3, 4, (len(copies), 2))
            seen = np.where(rng.random(len(copies)) < 0.85, labels[copies], rng.integers(1, 5, len(copies)))
            predictions[image_id] = {
                "boxes": boxes_of(corners[copies] + shifts, sizes[copies]),
                "scores": (rng.integers(0, 11, len(copies)) / 10).tolist(),
                "labels": seen.tolist(),
            }
    truth = truth or {an_id(0, 99): {"boxes": [], "labels": []}}
    return truth, predictions


@pytest.mark.slow
@settings(max_examples=200, derandomize=True)
@given(problems())
def test_random_problems_score_as_the_organisers_do(tmp_path: Path, problem: tuple[Entries, Entries]) -> None:
    reference = organisers_scores(*problem)
    truth, predictions = parsed(*problem, tmp_path)
    for engine in ENGINES:
        assert_same_scores(score(truth, predictions, engine).as_dict(), reference)
    own = match(align(truth, predictions)).mean_ap()
    assert own == pytest.approx(reference["global_map_50"], abs=1e-6) or np.isnan(own)


def edge_cases() -> dict[str, tuple[Entries, Entries]]:
    """Name -> truth and predictions."""
    box = [[10.0, 10.0, 30.0, 40.0]]
    other = [[50.0, 50.0, 90.0, 70.0]]
    every_month: Entries = {
        an_id(month, month): {"boxes": box + other, "labels": [1, 4]} for month in range(len(PREFIXES))
    }
    hits: Entries = {
        i: {"boxes": box + other, "scores": [0.9, 0.25 + n / 20], "labels": [1, 4]}
        for n, i in enumerate(every_month)
    }
    rng = np.random.default_rng(0)
    many = np.sort(rng.uniform(0, 200, (130, 2, 2)), axis=1).reshape(130, 4).tolist()
    first = an_id(0, 0)
    flat = [[5.0, 5.0, 5.0, 9.0], [3.0, 3.0, 3.0, 3.0]]
    third = 1 / 3
    return {
        "all right": (every_month, hits),
        "a month without ground truth": (
            {i: (e if n else {"boxes": [], "labels": []}) for n, (i, e) in enumerate(every_month.items())},
            hits,
        ),
        "a month without images": ({i: e for i, e in every_month.items() if i != first}, hits),
        "only September": ({an_id(8, 1): {"boxes": box, "labels": [1]}}, {}),
        "a class that is in the truth alone": (
            {i: {"boxes": e["boxes"], "labels": [1, 2]} for i, e in every_month.items()},
            hits,
        ),
        "a class that is predicted alone": (
            every_month,
            {i: {**e, "labels": [1, 3]} for i, e in hits.items()},
        ),
        "no predictions at all": (every_month, {}),
        "empty lists for every image": (every_month, dict.fromkeys(every_month, NOTHING)),
        "no boxes in the truth": ({key: {"boxes": [], "labels": []} for key in every_month}, hits),
        "no boxes anywhere": ({key: {"boxes": [], "labels": []} for key in every_month}, {}),
        "over 100 detections in an image": (
            {first: {"boxes": many[-20:], "labels": [1] * 20}},
            {first: {"boxes": many, "scores": np.linspace(0.9, 0.1, 130).tolist(), "labels": [1] * 130}},
        ),
        "over 100 detections of equal score": (
            {first: {"boxes": many[90:110], "labels": [2] * 20}},
            {first: {"boxes": many, "scores": [0.5] * 130, "labels": [2] * 130}},
        ),
        "equal scores across images": (
            every_month,
            {i: {**e, "boxes": [*box, [51.0, 50, 91, 75]], "scores": [0.5, 0.5]} for i, e in hits.items()},
        ),
        "scores that float32 makes equal": (
            {first: {"boxes": box + other, "labels": [1, 1]}},
            {first: {"boxes": [*other, [0, 0, 5, 5]], "scores": [third, third + 1e-12], "labels": [1, 1]}},
        ),
        "two true boxes that overlap a detection equally": (
            {first: {"boxes": box + box, "labels": [1, 1]}},
            {first: {"boxes": box + other, "scores": [0.5, 0.4], "labels": [1, 1]}},
        ),
        "boxes of no area": (
            {first: {"boxes": [*flat, *box], "labels": [1, 1, 1]}},
            {
                first: {
                    "boxes": [[5, 5, 5, 9], [3, 3, 3, 3], *box],
                    "scores": [0.9, 0.8, 0.7],
                    "labels": [1] * 3,
                }
            },
        ),
        "ids that are predicted alone": (
            {i: every_month[i] for i in list(every_month)[::2]},
            hits,
        ),
        "ids that are in the truth alone": (every_month, {i: hits[i] for i in list(hits)[::2]}),
        "overlaps at the thresholds": (
            {an_id(0, n): {"boxes": [[0, 0, 100, 100]], "labels": [1]} for n in range(11)},
            {
                an_id(0, n): {
                    "boxes": [[0, 0, 50 + 5 * n, 100]],
                    "scores": [0.9 - n / 100],
                    "labels": [1],
                }
                for n in range(11)
            },
        ),
        "recalls at the thresholds": (
            {first: {"boxes": [[i, 0, i + 1, 9] for i in range(0, 200, 2)], "labels": [1] * 100}},
            {
                first: {
                    "boxes": [[i, 0, i + 1, 9] for i in range(0, 156, 2)] + other,
                    "scores": np.linspace(0.9, 0.1, 79).tolist(),
                    "labels": [1] * 79,
                }
            },
        ),
        "labels outside the challenge in the truth": (
            {first: {"boxes": box + other, "labels": [0, 7]}},
            {first: hits[first]},
        ),
    }


@both_engines
@pytest.mark.parametrize("name", edge_cases())
def test_edge_case_scores_as_the_organisers_do(name: str, engine: engines.Engine, tmp_path: Path) -> None:
    entries = edge_cases()[name]
    reference = organisers_scores(*entries)
    assert_same_scores(score(*parsed(*entries, tmp_path), engine).as_dict(), reference)


def coco_of(truth: Entries) -> dict[str, Any]:
    """The same truth as a COCO file, annotations of the images interleaved."""
    rows = [(n, i, e["boxes"][n], e["labels"][n]) for i, e in truth.items() for n in range(len(e["labels"]))]
    return {
        "images": [{"id": int(i), "file_name": f"frames/{i}.jpg"} for i in truth],
        "categories": [{"id": n, "name": str(n)} for n in range(5)],
        "annotations": [
            {
                "id": k,
                "image_id": int(i),
                "category_id": label,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            }
            for k, (_, i, box, label) in enumerate(sorted(rows, key=lambda row: row[0]))
        ],
    }


@both_engines
def test_a_coco_truth_scores_like_the_challenges_own(engine: engines.Engine, tmp_path: Path) -> None:
    truth, hits = edge_cases()["equal scores across images"]
    own, predictions = parsed(truth, hits, tmp_path)
    (tmp_path / "Valid.json").write_text(json.dumps(coco_of(truth)))
    coco = GroundTruth.read(tmp_path / "Valid.json")
    np.testing.assert_array_equal(coco.boxes, own.boxes)
    assert score(coco, predictions, engine) == score(own, predictions, engine)


def test_columns_of_a_dataset_index_make_a_truth(tmp_path: Path) -> None:
    truth, hits = edge_cases()["all right"]
    own, predictions = parsed(truth, hits, tmp_path)
    again = GroundTruth(own.image_ids, own.offsets, own.boxes, own.labels)
    assert score(again, predictions) == score(own, predictions)


def test_ids_that_a_double_would_merge_stay_apart(tmp_path: Path) -> None:
    close = ["20210100000000001", "20210100000000002", "20210100000000003"]
    truth: Entries = {i: {"boxes": [[0, 0, 9 + n, 9]], "labels": [1]} for n, i in enumerate(close)}
    hits: Entries = {
        i: {"boxes": [[0, 0, 9 + n, 9]], "scores": [0.9], "labels": [1]} for n, i in enumerate(close)
    }
    assert len({float(i) for i in close}) < len(close)
    for engine in ENGINES:
        scores = score(*parsed(truth, hits, tmp_path), engine)
        assert (scores.overall.map, scores.months["jan"].images) == (1.0, 3)


def test_missing_and_unknown_ids_are_counted(tmp_path: Path) -> None:
    truth, hits = edge_cases()["all right"]
    ids = list(truth)
    scores = score(*parsed({i: truth[i] for i in ids[2:]}, {i: hits[i] for i in ids[:5]}, tmp_path))
    assert (scores.missing, scores.ignored) == (4, 2)


@pytest.mark.parametrize("side", ["missing", "unknown"])
def test_strict_refuses_ids_on_one_side_only(side: str, tmp_path: Path) -> None:
    truth, hits = edge_cases()["all right"]
    first = next(iter(truth))
    (hits if side == "missing" else truth).pop(first)
    with pytest.raises(SubmissionError, match=f"{side} id {first}"):
        score(*parsed(truth, hits, tmp_path), strict=True)


def test_strict_accepts_equal_ids(tmp_path: Path) -> None:
    truth, predictions = parsed(*edge_cases()["all right"], tmp_path)
    assert score(truth, predictions, strict=True) == score(truth, predictions)


def test_the_order_of_the_predictions_does_not_matter(tmp_path: Path) -> None:
    truth, hits = edge_cases()["equal scores across images"]
    forward = score(*parsed(truth, hits, tmp_path))
    assert score(*parsed(truth, dict(reversed(hits.items())), tmp_path)) == forward


def test_thresholds_are_those_of_torch() -> None:
    assert torch.linspace(0.5, 0.95, 10).tolist() == engines.IOU_THRESHOLDS
    assert torch.linspace(0.0, 1.0, 101).tolist() == engines.RECALL_THRESHOLDS


def test_consistency_is_the_coefficient_of_variation_of_the_months() -> None:
    monthly = [0.5, 0.4, 0.3, 0.5, 0.6, 0.7, 0.2, 0.4]
    mean = sum(monthly) / 8
    deviation = math.sqrt(sum((value - mean) ** 2 for value in monthly) / 7)
    consistency, balanced = balance(0.45, monthly)
    assert consistency == pytest.approx(deviation / mean)
    assert balanced == pytest.approx((1 - deviation / mean) * 0.45)


def test_a_month_is_where_its_digits_occur_in_the_first_eight_characters() -> None:
    ids = np.array([20210100000000000, 20200500022000000, 99202101000000000, 20209920210100000])
    masks = month_masks(ids)
    assert masks["jan"].tolist() == [True, False, True, False]
    assert masks["may"].tolist() == [False, True, False, False]


def test_scores_json_holds_what_was_scored(tmp_path: Path) -> None:
    scores = score(*parsed(*edge_cases()["a month without images"], tmp_path))
    scores.write(tmp_path / "out" / "scores.json")
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written == scores.as_dict()
    assert written["toolkit"]["engine"] in ENGINES
    assert written["toolkit"]["labels"]["global"] == [1, 4]


def test_auto_falls_back_to_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engines.resolve("auto") == "hotcoco"
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert engines.resolve("auto") == "pycocotools"
    with pytest.raises(engines.ToolkitError, match="not installed"):
        engines.resolve("hotcoco")


def test_predictions_in_memory_score_like_their_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 300, (40, 2))
    found = Detections(
        np.array([int(an_id(n, n)) for n in range(8)]),
        np.arange(0, 41, 5),
        np.hstack([corners, corners + rng.uniform(1, 50, (40, 2))]),
        rng.random(40),
        rng.integers(1, 5, 40),
    )
    truth = GroundTruth(found.image_ids, found.offsets, found.boxes + 0.3, found.labels)
    found.write(tmp_path / "predictions.json")
    assert score(truth, Detections.read(tmp_path / "predictions.json")) == score(truth, found)


def test_the_rounding_of_a_submission_moves_the_score_by_less_than_a_ten_thousandth() -> None:
    truth, found, _ = synthetic(200)
    exact, rounded = score(truth, found), score(truth, found.rounded())
    assert abs(exact.balanced - rounded.balanced) < 1e-4
    assert abs(exact.overall.map_50 - rounded.overall.map_50) < 1e-4
