"""The id lists of the two phases, and templates that a user brings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from submission import SubmissionError, templates


@pytest.mark.parametrize(("phase", "size"), [("development", 46_013), ("testing", 49_430)])
def test_a_phase_has_all_its_ids_once(phase: str, size: int) -> None:
    ids = templates.template(phase)
    assert ids.dtype == np.int64
    assert len(ids) == len(np.unique(ids)) == size
    assert {len(str(i)) for i in ids.tolist()} == {17}


def test_september_is_in_the_testing_phase_alone() -> None:
    def months(phase: str) -> set[int]:
        return set((templates.template(phase) // 10**11).tolist())

    assert 202009 in months("testing")
    assert 202009 not in months("development")


def test_no_id_is_in_both_phases() -> None:
    assert not np.isin(templates.template("testing"), templates.template("development")).any()


def test_the_order_is_the_organisers() -> None:
    assert templates.template("development")[:2].tolist() == [20200502114224046, 20200502114224000]


@pytest.mark.parametrize(
    "value",
    [
        {"20210114222307016": {"boxes": []}, "20210114222307015": {}},
        {"images": [{"id": 20210114222307016, "width": 384}, {"id": 20210114222307015}], "categories": []},
    ],
    ids=["template", "COCO"],
)
def test_a_template_file_gives_its_ids_in_order(value: Any, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text(json.dumps(value))
    assert templates.read(tmp_path / "ids.json").tolist() == [20210114222307016, 20210114222307015]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "no template"),
        ('{"images": [{"name": "a"}]}', "no template.*id"),
        ('{"images": [{"id": 5}, {"id": 5}]}', "twice"),
        ('{"5": {}, "6": {}, "5": {}}', "id 5 twice"),
        ('{"images": [', "no template"),
        ('{"clip_1/image_1.jpg": {}}', "clip_1"),
    ],
)
def test_a_bad_template_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text(text)
    with pytest.raises(SubmissionError, match=message):
        templates.read(tmp_path / "ids.json")


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(SubmissionError, match="development or testing"):
        templates.template("final")
