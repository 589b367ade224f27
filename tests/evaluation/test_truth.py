"""Truth files that are no truth files say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from submission import SubmissionError
from toolkit.errors import ToolkitError
from toolkit.evaluation.truth import GroundTruth

A = 20210114222307015
IMAGE = {"id": A, "file_name": "frames/20210114/clip_1_1/image_0001.jpg", "meta": {"Temperature": 3.5}}
ANNOTATION = {"id": 1, "image_id": A, "category_id": 1, "bbox": [10, 20, 5, 6.25], "iscrowd": 0}


NOTHING = '{"boxes": [], "labels": []}'


def read(value: Any, folder: Path) -> GroundTruth:
    path = folder / "truth.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return GroundTruth.read(path)


def test_coco_boxes_become_corners(tmp_path: Path) -> None:
    truth = read({"images": [IMAGE], "annotations": [ANNOTATION]}, tmp_path)
    assert truth.boxes.tolist() == [[10, 20, 15, 26.25]]
    assert truth.image_ids.tolist() == [A]


def test_images_without_boxes_are_kept(tmp_path: Path) -> None:
    assert read({"images": [IMAGE], "annotations": []}, tmp_path).offsets.tolist() == [0, 0]
    assert read({str(A): {"boxes": [], "labels": []}}, tmp_path).offsets.tolist() == [0, 0]


BAD = {
    "cut off": ('{"images": [', "no truth file"),
    "no annotations": ({"images": [IMAGE], "categories": []}, "annotations"),
    "a list": ([{"image_id": A}], "holds predictions.*swapped"),
    "predictions": (
        {str(A): {"boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": [1]}},
        "holds predictions.*swapped",
    ),
    "an image twice": ({"images": [IMAGE, IMAGE], "annotations": []}, "twice"),
    "an id twice": (f'{{"{A}": {NOTHING}, "{A}": {NOTHING}}}', f"id {A} twice"),
    "an annotation of an unknown image": (
        {"images": [IMAGE], "annotations": [{**ANNOTATION, "image_id": A + 1}]},
        f"image id {A + 1}",
    ),
    "more labels than boxes": ({str(A): {"boxes": [], "labels": [1]}}, f"0 boxes and 1 labels in image {A}"),
    "a label beyond a byte": (
        {str(A): {"boxes": [[1, 2, 3, 4]], "labels": [256]}},
        f"256 in image {A}",
    ),
    "a box of three numbers": ({str(A): {"boxes": [[1, 2, 3]], "labels": [1]}}, "length 4"),
    "an id in words": ({"first": {"boxes": [], "labels": []}}, "key 'first'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_truth_is_refused(name: str, tmp_path: Path) -> None:
    value, message = BAD[name]
    with pytest.raises((ToolkitError, SubmissionError), match=message):
        read(value, tmp_path)


def test_a_box_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ToolkitError, match=f"nan.*image {A}"):
        GroundTruth(np.array([A]), np.array([0, 1]), np.array([[0, 0, np.nan, 1]]), np.array([1]))
