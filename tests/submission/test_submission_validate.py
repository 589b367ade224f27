"""Everything the organisers would refuse or punish is refused here, and the offender is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from submission import Detections, SubmissionError
from submission.validate import check_ids, check_values

A, B, C = 20210114222307015, 20210114222307016, 20210114222307017


def one(box: Any = (1, 2, 3, 4), score: float = 0.5, label: int = 1) -> Detections:
    """Image A with a good detection, image B with a good one and the given one."""
    good = [10, 20, 30, 40]
    return Detections(
        np.array([A, B]),
        np.array([0, 1, 3]),
        np.array([good, good, box], np.float64),
        np.array([0.9, 0.9, score]),
        np.array([1, 4, label]),
    )


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        (one(label=0), "label 0"),
        (one(label=5), "label 5.*labels 1 to 4"),
        (one(label=-1), "label -1"),
        (one(score=float("nan")), r"score nan.*\[0, 1\]"),
        (one(score=float("inf")), "score inf"),
        (one(score=1.01), "score 1.01"),
        (one(score=-0.1), "score -0.1"),
        (one(box=(1, 2, float("nan"), 4)), "box .*nan.*finite"),
        (one(box=(1, 2, float("inf"), 4)), "box .*inf.*finite"),
        (one(box=(3, 2, 1, 4)), r"box \[3.0, 2.0, 1.0, 4.0\].*x1 <= x2.*width, height"),
        (one(box=(1, 4, 3, 2)), "box .*x1 <= x2 and y1 <= y2"),
    ],
)
def test_a_bad_value_is_named_with_its_image(detections: Detections, message: str) -> None:
    with pytest.raises(SubmissionError, match=f"1 offence; id {B}, detection 1: {message}"):
        check_values(detections)


def test_several_faults_of_one_detection_are_all_named() -> None:
    with pytest.raises(SubmissionError, match=r"score 2\.0 and label 9"):
        check_values(one(score=2, label=9))


def test_limits_are_allowed() -> None:
    check_values(one(box=(5, 5, 5, 5), score=0.0))
    check_values(one(box=(-3, -3, 500, 500), score=1.0, label=4))


def test_good_ids_come_back_in_the_order_of_the_phase() -> None:
    ordered = check_ids(one(), np.array([B, A]))
    assert ordered.image_ids.tolist() == [B, A]
    assert ordered.counts.tolist() == [2, 1]


def test_an_unknown_id_is_refused() -> None:
    with pytest.raises(SubmissionError, match=f"1 offence; unknown id {B}"):
        check_ids(one(), np.array([A, C]), allow_missing=True)


def test_ids_of_another_phase_are_said_to_be_such() -> None:
    with pytest.raises(SubmissionError, match="right phase"):
        check_ids(one(), np.array([C]))


def test_a_missing_id_is_refused_with_the_way_out() -> None:
    with pytest.raises(SubmissionError, match=f"missing id {C}.*--allow-missing"):
        check_ids(one(), np.array([A, B, C]))


def test_missing_ids_are_filled_with_nothing_when_allowed() -> None:
    filled = check_ids(one(), np.array([C, A, B]), allow_missing=True)
    assert filled.image_ids.tolist() == [C, A, B]
    assert filled.counts.tolist() == [0, 1, 2]


def test_an_id_given_twice_is_refused() -> None:
    twice = Detections(
        np.array([A, A]), np.zeros(3, np.int64), np.empty((0, 4)), np.empty(0), np.empty(0, int)
    )
    with pytest.raises(SubmissionError, match=f"id {A} twice"):
        check_ids(twice, np.array([A]))


def boxes(*rows: tuple[float, float, float, float]) -> Detections:
    n = len(rows)
    return Detections(
        np.array([A]), np.array([0, n]), np.array(rows, np.float64), np.ones(n), np.ones(n, int)
    )


CORNER, CENTRE = "of the first corner", "of the centre"


@pytest.mark.parametrize(
    ("rows", "said", "unsaid"),
    [
        ([(2.0, 3.0, 40.0, 20.0), (200.0, 3.0, 10.0, 9.0)], CORNER, CENTRE),  # a centre that near has no room
        ([(380.0, 280.0, 8.0, 16.0), (100.0, 90.0, 20.0, 30.0)], CENTRE, CORNER),
        ([(0.99, 0.5, 0.04, 0.1)], CENTRE, CORNER),
        ([(0.01, 0.5, 0.2, 0.1)], CORNER, CENTRE),
    ],
)
def test_the_hint_for_boxes_that_are_no_corners_fits_them(rows: Any, said: str, unsaid: str) -> None:
    with pytest.raises(SubmissionError, match="x1 <= x2") as caught:
        check_values(boxes(*rows))
    assert said in caught.value.fix
    assert unsaid not in caught.value.fix


def test_boxes_that_may_be_either_get_both_ways() -> None:
    with pytest.raises(SubmissionError) as caught:
        check_values(boxes((100, 100, 20, 30)))
    assert CORNER in caught.value.fix
    assert CENTRE in caught.value.fix


def test_the_hint_for_parts_of_the_frame_speaks_of_pixels() -> None:
    with pytest.raises(SubmissionError, match="pixels: x times 384, y times 288"):
        check_values(boxes((0.5, 0.5, 0.1, 0.1)))
