"""The report's own matching gives the engines' mAP@0.5 again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from organisers import Entries, parsed
from test_scoring import edge_cases

from toolkit.evaluation.matching import Curve, match
from toolkit.evaluation.scoring import align, month_masks, score


def same(ours: float, engine: float) -> bool:
    return (np.isnan(ours) and engine == -1) or abs(ours - engine) <= 1e-6


@pytest.mark.parametrize("name", edge_cases())
def test_matching_agrees_with_the_engines(name: str, tmp_path: Path) -> None:
    truth, predictions = parsed(*edge_cases()[name], tmp_path)
    scores, matches = score(truth, predictions), match(align(truth, predictions))
    assert same(matches.mean_ap(), scores.overall.map_50)
    for month, mask in month_masks(truth.image_ids).items():
        assert same(matches.mean_ap(*matches.in_images(mask)), scores.months[month].map_50)


def test_each_true_box_is_found_once_by_the_best_detection(tmp_path: Path) -> None:
    truth: Entries = {"20210100000000001": {"boxes": [[0, 0, 10, 10], [40, 0, 50, 10]], "labels": [1, 1]}}
    found: Entries = {
        "20210100000000001": {
            "boxes": [[0, 0, 10, 9], [0, 0, 10, 10], [70, 0, 80, 10]],
            "scores": [0.5, 0.9, 0.8],
            "labels": [1, 1, 1],
        }
    }
    matches = match(align(*parsed(truth, found, tmp_path)))
    assert matches.found.tolist() == [-1, 0, -1]
    assert matches.found_by.tolist() == [1, -1]


def test_the_best_score_is_where_f1_is_largest() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    curve = Curve.of(scores, np.array([True, True, False, True, False]), 3)
    assert curve.best_score() == 0.6
    assert Curve.of(scores[:0], np.zeros(0, np.bool_), 3).best_score() == 1.0
