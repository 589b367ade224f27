"""Fusing predictions."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from submission import Detections
from submission.validate import check_values
from toolkit.errors import ToolkitError
from toolkit.evaluation import ensemble
from toolkit.evaluation.ensemble import FusionOptions, fuse, weights_by_class

needs_ensemble_boxes = pytest.mark.skipif(
    not find_spec("ensemble_boxes"), reason="needs ensemble-boxes (the extra [ensemble], part of [dev])"
)

A, B = 20210100000000001, 20210100000000002


def detections(rows: dict[int, list[tuple[float, ...]]]) -> Detections:
    """Image id -> rows of x1, y1, x2, y2, score, label."""
    flat = np.array([row for image in rows.values() for row in image], np.float64).reshape(-1, 6)
    offsets = np.cumsum([0, *(len(image) for image in rows.values())])
    return Detections(np.array(list(rows)), offsets, flat[:, :4], flat[:, 4], flat[:, 5].astype(np.int64))


FIRST = detections({A: [(10, 10, 50, 50, 0.9, 1)], B: [(-5, 0, 20, 20, 0.5, 4)]})
SECOND = detections({B: [], A: [(14, 10, 54, 50, 0.3, 1), (200, 100, 380, 280, 0.8, 2)]})


@needs_ensemble_boxes
def test_boxes_of_one_object_are_averaged_by_their_scores() -> None:
    fused = fuse([FIRST, SECOND])
    check_values(fused)
    assert fused.image_ids.tolist() == [A, B]
    assert fused.counts.tolist() == [2, 1]
    np.testing.assert_allclose(fused.boxes[0], [11, 10, 51, 50], atol=1e-3)
    assert fused.labels.tolist() == [1, 2, 4]


@needs_ensemble_boxes
def test_a_box_that_one_model_alone_saw_loses_score() -> None:
    fused = fuse([FIRST, SECOND])
    np.testing.assert_allclose(fused.scores, [0.6, 0.4, 0.25], atol=1e-6)


@needs_ensemble_boxes
def test_boxes_outside_the_frame_are_not_clipped() -> None:
    np.testing.assert_allclose(fuse([FIRST, SECOND]).boxes[2], [-5, 0, 20, 20], atol=1e-4)


@needs_ensemble_boxes
@pytest.mark.parametrize("method", ["wbf", "nms", "soft-nms", "nmw"])
def test_every_method_gives_valid_detections(method: ensemble.Method) -> None:
    rng = np.random.default_rng(0)
    sets = []
    for _ in range(3):
        corners = rng.uniform(0, 200, (400, 2))
        boxes = np.hstack([corners, corners + rng.uniform(0, 60, (400, 2))])
        sets.append(
            Detections(
                A + np.arange(4), np.arange(0, 401, 100), boxes, rng.random(400), rng.integers(1, 5, 400)
            )
        )
    fused = fuse(sets, FusionOptions(method, weights=(2, 1, 1), max_det=20))
    check_values(fused)
    of_image = np.repeat(np.arange(4), fused.counts)
    assert np.bincount(of_image * 5 + fused.labels).max() <= 20
    assert fused.counts.max() > 20
    assert len(fused) == 4


@needs_ensemble_boxes
@pytest.mark.parametrize("trust", [None, {1: (2.0, 1.0), 3: (1.0, 1.0)}])
def test_a_crowd_costs_the_other_classes_no_box(trust: dict[int, tuple[float, ...]] | None) -> None:
    """The metric counts 100 boxes of each class: 150 persons leave room for a motorcycle of a low score."""
    crowd = [(9.0 * i, 10.0, 9.0 * i + 5, 20.0, 0.9 - i / 1000, 1.0) for i in range(150)]
    one = detections({A: [*crowd, (10, 100, 40, 130, 0.01, 3)]})
    fused = fuse([one, one], FusionOptions(class_weights=trust))
    assert np.bincount(fused.labels).tolist() == [0, 100, 0, 1]
    np.testing.assert_allclose(fused.boxes[:100, 0], 9.0 * np.arange(100), atol=1e-3)
    assert (np.diff(fused.scores) <= 0).all()


def test_one_file_is_nothing_to_fuse() -> None:
    with pytest.raises(ToolkitError, match="at least two"):
        fuse([FIRST])


def test_weights_must_fit() -> None:
    with pytest.raises(ToolkitError, match="3 weights"):
        fuse([FIRST, SECOND], FusionOptions(weights=(1, 2, 3)))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_must_be_finite_and_above_0(weight: float) -> None:
    for weights in ((weight, 1.0), (1.0, weight)):
        with pytest.raises(ToolkitError, match="finite numbers above 0"):
            fuse([FIRST, SECOND], FusionOptions(weights=weights))


@needs_ensemble_boxes
@pytest.mark.parametrize("method", ["wbf", "nms", "soft-nms", "nmw"])
def test_boxes_with_score_0_are_left_out(method: ensemble.Method) -> None:
    """Where an image has no others, there was nothing to divide by."""
    nothing = detections({A: [(10, 10, 50, 50, 0, 1)], B: [(10, 10, 50, 50, 0, 1), (0, 0, 9, 9, 0.5, 1)]})
    fused = fuse([nothing, detections({A: [], B: []})], FusionOptions(method))
    check_values(fused)
    assert fused.counts.tolist() == [0, 1]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "find_spec", lambda name: None)
    with pytest.raises(ToolkitError, match=r"pip install ensemble-boxes"):
        fuse([FIRST, SECOND])


@needs_ensemble_boxes
def test_each_class_trusts_the_set_that_finds_it_on_validation(tmp_path: Path) -> None:
    """Of two boxes of an object, the one of the better set for its class decides where the object is."""
    here, there = (10.0, 10.0, 50.0, 50.0), (14.0, 10.0, 54.0, 50.0)
    sets = [
        detections({A: [(*place, 0.8, 1), (*(c + 200 for c in place), 0.8, 3)]}) for place in (here, there)
    ]
    files = []
    for name, aps in (("a", [0.9, 0.0]), ("b", [0.1, 0.4])):
        files.append(tmp_path / name)
        content = {"global_map_per_class": aps, "toolkit": {"labels": {"global": [1, 3]}}}
        files[-1].write_text(json.dumps(content))
    weights = weights_by_class(files)
    assert weights == {1: (0.9, 0.1), 3: (0.01, 0.4)}
    fused = fuse(sets, FusionOptions(class_weights=weights))
    left = {label: box[0] for label, box in zip(fused.labels.tolist(), fused.boxes.tolist(), strict=True)}
    assert left[1] == pytest.approx(10.4, abs=0.01)
    assert left[3] == pytest.approx(214 - 4 * 0.01 / 0.41, abs=0.01)
    alike = fuse(sets, FusionOptions(class_weights={1: (1.0, 1.0), 3: (1.0, 1.0)}))
    plain = fuse(sets)
    by_label = np.argsort(plain.labels), np.argsort(alike.labels)
    np.testing.assert_allclose(alike.boxes[by_label[1]], plain.boxes[by_label[0]], atol=1e-6)
    np.testing.assert_allclose(alike.scores, plain.scores)
    (tmp_path / "a").write_text("{}")
    with pytest.raises(ToolkitError, match="says nothing of the classes"):
        weights_by_class(files)
