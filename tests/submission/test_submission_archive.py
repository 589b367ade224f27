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


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return path


MAC = {"__MACOSX/._predictions.json": b"x", ".DS_Store": b"x", "__MACOSX/results/._predictions.json": b"x"}


@pytest.mark.parametrize(
    ("members", "found"),
    [
        ({"predictions.json": b"{}"}, "predictions.json"),
        ({"predictions.json": b"{}", **MAC, "readme.txt": b"x", "scores.json": b"x"}, "predictions.json"),
        ({"results/predictions.json": b"{}", "results/": b"", **MAC}, "results/predictions.json"),
        ({"my answer.JSON": b"{}", **MAC}, "my answer.JSON"),
    ],
)
def test_predictions_are_found_in_other_peoples_zips(
    tmp_path: Path, members: dict[str, bytes], found: str
) -> None:
    assert archive.unpack(zipped(tmp_path / "entry.zip", members)) == (found, b"{}")


def test_zips_without_one_file_of_predictions_are_refused_with_what_is_in_them(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match=r"no predictions; a\.txt; one file"):
        archive.unpack(zipped(tmp_path / "a.zip", {"a.txt": b"", **MAC}))
    with pytest.raises(SubmissionError, match="no predictions; nothing"):
        archive.unpack(zipped(tmp_path / "b.zip", {}))
    with pytest.raises(SubmissionError, match=r"several files; a\.json, b\.json"):
        archive.unpack(zipped(tmp_path / "c.zip", {"a.json": b"", "b.json": b""}))


@pytest.mark.parametrize("case", ["encrypted", "cut off", "flipped", "other compression", "a folder"])
def test_a_zip_that_cannot_be_read_is_one_line(tmp_path: Path, case: str) -> None:
    path = zipped(tmp_path / "entry.zip", {"predictions.json": b'{"1": 5}' * 99})
    data = bytearray(path.read_bytes())
    directory = data.rindex(b"PK\x01\x02")
    if case == "encrypted":
        data[6] = data[directory + 8] = 1
    elif case == "cut off":
        del data[40:]
    elif case == "flipped":
        data[60] ^= 0xFF
    elif case == "other compression":
        data[8] = data[directory + 10] = 99
    path.write_bytes(data)
    if case == "a folder":
        path = tmp_path
    with pytest.raises(SubmissionError, match="cannot read") as caught:
        archive.unpack(path)
    assert "\n" not in str(caught.value)
