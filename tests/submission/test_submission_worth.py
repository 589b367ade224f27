"""What would score, not which keys exist."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from submission import Detections, templates
from submission.validate import check_values
from submission.worth import USUAL_SHARES, Usual, assess

IDS = templates.template("testing")[:200]


def plausible(seed: int = 0, boxes: int = 8) -> Detections:
    """Boxes of LTDv2's sizes and classes anywhere in the frame."""
    rng = np.random.default_rng(seed)
    n = len(IDS) * boxes
    size = rng.uniform((3, 5), (30, 40), (n, 2))
    first = rng.uniform(0, 1, (n, 2)) * ((384, 288) - size)
    labels = rng.choice(list(USUAL_SHARES), n, p=list(USUAL_SHARES.values()))
    corners = np.hstack([first, first + size])
    return Detections(IDS, np.arange(len(IDS) + 1) * boxes, corners, rng.random(n), labels)


def moved(made: Detections, scale: float = 1.0, by: float = 0.0) -> Detections:
    return replace(made, boxes=made.boxes * scale + by)


@pytest.mark.parametrize("boxes", [1, 8, 100])
def test_plausible_predictions_are_left_alone(boxes: int) -> None:
    assert assess(plausible(boxes=boxes)).objections == ()


def test_boxes_that_reach_a_little_over_the_edge_are_left_alone() -> None:
    made = plausible()
    assert assess(replace(made, boxes=made.boxes + np.array([-2, -2, 2, 2]))).objections == ()


def parts(made: Detections) -> Detections:
    return replace(made, boxes=made.boxes / (384, 288, 384, 288))


def fewer(made: Detections) -> Detections:
    """One box in every fiftieth image."""
    return replace(made.select(IDS[::50]), image_ids=IDS[::50]).select(IDS)


FAULTS: dict[str, tuple[Callable[[Detections], Detections], str]] = {
    "the organisers' empty template": (
        lambda d: d.select(IDS + 10**16).select(IDS),
        "not one box in 200 images",
    ),
    "parts of the frame": (parts, "smaller than a pixel: they are parts of the frame, .* 384, .* 288"),
    "the whole frame in parts of it": (
        lambda d: replace(d, boxes=np.broadcast_to([0.0, 0.0, 1.0, 1.0], d.boxes.shape)),
        "smaller than a pixel: they are parts of the frame",
    ),
    "points": (lambda d: replace(d, boxes=d.boxes[:, [0, 1, 0, 1]]), "smaller than a pixel"),
    "outside of every frame": (lambda d: moved(d, by=400), "more than half outside of a frame of 384 x 288"),
    "coordinates of 1280 pixels": (lambda d: moved(d, 1280 / 384), r"reach to 12\d\d x 9\d\d"),
    "negative": (lambda d: moved(d, by=-300), "more than half outside"),
    "boxes in four images": (
        fewer,
        "0.16 boxes a frame .* LTDv2's Train.json and Valid.json have 7.7 objects",
    ),
    "most images without a box": (
        lambda d: d.select(IDS[:80]).select(IDS),
        "120 of 200 images without a box",
    ),
    "COCO's categories": (
        lambda d: replace(d, labels=np.array([0, 1, 2, 4, 3])[d.labels]),
        "label 3, motorcycle .*COCO has them the other way round",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_would_score_next_to_nothing_is_objected_to(name: str) -> None:
    spoil, message = FAULTS[name]
    spoiled = spoil(plausible())
    check_values(spoiled)  # nothing that the organisers would refuse
    assert any(re.search(message, line) for line in assess(spoiled).objections)


def test_the_usual_number_of_objects_is_the_datas_where_it_is_known() -> None:
    few = plausible(boxes=1)
    (line,) = assess(few, Usual(20.0, "the validation frames of data")).objections
    assert "the validation frames of data have 20.0 objects a frame" in line


def test_a_class_without_a_box_is_remarked_on_and_no_more() -> None:
    made = plausible()
    worth = assess(replace(made, labels=np.ones_like(made.labels)))
    assert worth.objections == ()
    assert worth.remarks == ("no box of bicycle or motorcycle or vehicle: each of these has an AP of 0",)


def test_boxes_of_a_smaller_picture_are_remarked_on() -> None:
    assert "all boxes lie within" in assess(moved(plausible(), 0.5)).remarks[-1]
