"""What would move the score: causes of error and gains, against hand-made cases and the scores."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import synthetic

from submission import Detections
from toolkit.evaluation import leverage
from toolkit.evaluation.leverage import CAUSES, causes, cells
from toolkit.evaluation.matching import Matches, match
from toolkit.evaluation.scoring import Scores, align, balance, month_masks, score
from toolkit.evaluation.truth import GroundTruth

DIGITS = ("202101", "202102", "202103", "202104", "202005", "202006", "202007", "202008")


def made(
    truth: list[tuple[list[float], int]],
    found: list[tuple[list[float], float, int]],
    digits: tuple[str, ...] = DIGITS,
) -> tuple[Scores, Matches, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """The same frame in every month."""
    ids = np.array([int(d) * 10**11 for d in digits])
    n, m, k = len(truth), len(found), len(ids)
    true = GroundTruth(
        ids,
        np.arange(k + 1) * n,
        np.array([b for b, _ in truth] * k),
        np.array([label for _, label in truth] * k),
    )
    detections = Detections(
        ids,
        np.arange(k + 1) * m,
        np.array([b for b, _, _ in found] * k).reshape(-1, 4),
        np.array([s for _, s, _ in found] * k),
        np.array([label for _, _, label in found] * k, np.int64),
    )
    return score(true, detections, engine="pycocotools"), match(align(true, detections)), ids


BIG = [100.0, 100, 160, 160]
OTHER = [200.0, 100, 260, 160]


def test_each_cause_is_told_by_its_own_case_and_its_end_gives_the_whole_gain() -> None:
    whole = [(BIG, 0.9, 1), (OTHER, 0.8, 4)]
    truth = [(BIG, 1), (OTHER, 4)]
    cases = {
        "missed": (truth, whole[:1], 8),
        "small": ([*truth, ([10.0, 10, 20, 20], 1)], whole, 8),
        "hidden": ([*truth, ([105.0, 105, 120, 120], 1)], whole, 8),
        "class": (truth, [whole[0], (OTHER, 0.8, 2)], 8),
        "place": (truth, [whole[0], ([230.0, 100, 290, 160], 0.8, 4)], 8),
        "double": (truth, [*whole[1:], (BIG, 0.9, 1), ([102.0, 100, 160, 160], 0.95, 1)], 8),
        "alarm": (truth, [*whole, ([10.0, 200, 60, 250], 0.99, 1)], 8),
    }
    assert set(cases) == set(CAUSES)
    for cause, (true, found, count) in cases.items():
        scores, matches, _ = made(true, found)
        told = causes(matches)
        assert {name: c.boxes for name, c in told.items() if c.boxes} == {cause: count}, cause
        # All months are alike, so the consistency is perfect and the score is mAP@0.5.
        assert scores.balanced == pytest.approx(scores.overall.map_50)
        if cause != "double":
            assert scores.balanced + told[cause].gain == pytest.approx(1.0), cause
        assert next(iter(told)) == cause or told[cause].gain == 0


def test_without_a_cure_nothing_moves_and_the_numbers_are_the_scores() -> None:
    truth, found, _ = synthetic()
    scores = score(truth, found)
    matches = match(align(truth, found))
    everything = np.ones(len(truth.labels), np.bool_)
    p = matches.problem
    now = leverage._balanced(
        matches,
        month_masks(truth.image_ids),
        p.label,
        matches.found >= 0,
        matches.counted,
        everything,
    )
    assert now == pytest.approx((scores.overall.map_50, scores.balanced), abs=1e-6)
    told = causes(matches)
    assert all(cause.gain_50 > -1e-9 for cause in told.values())
    lost = sum(told[name].boxes for name in ("small", "hidden", "missed"))
    assert lost <= (matches.found_by < 0).sum()
    alarms = sum(told[name].boxes for name in ("class", "place", "double", "alarm"))
    assert alarms == (matches.counted & (matches.found < 0)).sum()


def test_pieces_of_any_size_give_the_same_causes(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, found, _ = synthetic()
    matches = match(align(truth, found))
    whole = causes(matches)
    monkeypatch.setattr(leverage, "PAIRS", 7)
    assert causes(matches) == whole


def test_a_class_gains_its_part_of_the_mean() -> None:
    scores, matches, _ = made([(BIG, 1), (OTHER, 4)], [(BIG, 0.9, 1)])
    table = cells(scores, matches)
    assert table[4]["all"].gain == pytest.approx(0.05)
    # A class that is perfect has nothing to gain.
    assert table[1]["all"].gain == pytest.approx(0.0)
    assert (table[4]["jan"].boxes, table[4]["all"].boxes) == (1, 8)
    # Better in one month alone: an eighth of the mean, less what the months then differ.
    months = [scores.months["jan"].map_50 + 0.05, *[0.5] * 7]
    wanted = balance(0.5 + 0.05 / 8, months)[1] - scores.balanced
    assert table[4]["jan"].gain == pytest.approx(wanted)


def test_images_of_no_month_have_their_part_of_the_whole() -> None:
    """September counts in mAP@0.5 alone: a month is a ninth of it, not an eighth."""
    scores, matches, _ = made([(BIG, 1), (OTHER, 4)], [(BIG, 0.9, 1)], (*DIGITS, "202009"))
    table = cells(scores, matches)
    assert (table[4]["jan"].boxes, table[4]["all"].boxes) == (1, 9)
    assert table[4]["all"].gain == pytest.approx(0.05)
    wanted = balance(0.5 + 0.05 / 9, [0.55, *[0.5] * 7])[1] - scores.balanced
    assert table[4]["jan"].gain == pytest.approx(wanted, abs=1e-9)


def test_a_class_that_a_month_lacks_is_marked() -> None:
    truth, found, _ = synthetic()
    january = truth.image_ids // 10**11 == 202101
    image = np.repeat(np.arange(len(truth)), np.diff(truth.offsets))
    kept = ~(january[image] & (truth.labels == 3))
    counts = np.bincount(image[kept], minlength=len(truth))
    without = GroundTruth(
        truth.image_ids, np.concatenate([[0], np.cumsum(counts)]), truth.boxes[kept], truth.labels[kept]
    )
    scores = score(without, found)
    table = cells(scores, match(align(without, found)))
    assert (table[3]["jan"].ap_50, table[3]["jan"].gain, table[3]["jan"].boxes) == (None, None, 0)
    assert all(table[3][month].gain is not None for month in ("feb", "aug", "all"))
