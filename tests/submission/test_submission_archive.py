"""The zip: one member, the same bytes for the same predictions."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from submission import Detections, SubmissionError, archive


def some(order: int = 1) -> Detections:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (6, 2, 2)).cumsum(axis=1).reshape(6, 4)
    made = Detections(
        20210100000000000 + np.arange(3), np.array([0, 2, 2, 6]), corners, rng.random(6), np.ones(6, int)
    )
    return made.select(made.image_ids[::order])


def test_the_only_member_is_predictions_json(tmp_path: Path) -> None:
    archive.write(tmp_path / "entry.zip", some())
    with zipfile.ZipFile(tmp_path / "entry.zip") as opened:
        assert opened.namelist() == ["predictions.json"]
        assert opened.read("predictions.json") == some().dumps()
        assert opened.testzip() is None


def test_the_same_predictions_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = archive.pack(some())
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2e9))
    assert archive.pack(some(order=-1)) == first


def test_other_predictions_give_other_bytes() -> None:
    made = some()
    changed = Detections(made.image_ids, made.offsets, made.boxes, made.scores / 2, made.labels)
    assert archive.pack(changed) != archive.pack(made)


def test_rounding_keeps_three_decimals_of_boxes_and_five_of_scores() -> None:
    rounded = some().rounded()
    np.testing.assert_allclose(rounded.boxes, some().boxes, atol=0.0005)
    np.testing.assert_allclose(rounded.scores, some().scores, atol=0.000005)
    assert max(len(repr(v).split(".")[1]) for v in rounded.boxes.ravel().tolist()) <= 3
    assert max(len(repr(v).split(".")[1]) for v in rounded.scores.tolist()) <= 5


def test_a_full_disk_leaves_no_half_zip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(SubmissionError, match=r"cannot write .*entry\.zip"):
        archive.write(tmp_path / "entry.zip", some())
    assert list(tmp_path.iterdir()) == []
