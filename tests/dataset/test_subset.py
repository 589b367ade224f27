from __future__ import annotations

import numpy as np
import pytest
from ultralytics.cfg import get_cfg

from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.subset import parse_months, parse_part, select
from toolkit.dataset.ultralytics import build_dataset, data_dictionary
from toolkit.errors import ToolkitError


def test_a_subset_has_whole_clips_and_keeps_the_months_in_proportion(index: DatasetIndex) -> None:
    split = index.split("train")
    rows = select(split, part=0.5, seed=1)
    kept, left = set(split.clips[rows]), set(np.delete(split.clips, rows))
    assert not kept & left
    counts = np.unique(split.months[rows], return_counts=True)[1]
    assert len(counts) == 8
    assert counts.min() == counts.max() == 4
    np.testing.assert_array_equal(rows, select(split, part=0.5, seed=1))
    assert set(select(split, part=0.5, seed=2)) != set(rows)


def test_the_smallest_part_still_has_a_clip_of_every_month(index: DatasetIndex) -> None:
    split = index.split("train")
    rows = select(split, part=1e-6)
    assert len(np.unique(split.months[rows])) == 8
    assert len(np.unique(split.clips[rows])) == 8


def test_a_part_of_one_month_is_that_month_of_the_same_part_of_all(index: DatasetIndex) -> None:
    split = index.split("train")
    for month in np.unique(split.months):
        for seed in range(3):
            rows = select(split, part=0.5, seed=seed)
            alone = select(split, months=[month], part=0.5, seed=seed)
            np.testing.assert_array_equal(alone, rows[split.months[rows] == month])


def test_one_month_trains_on_that_month_alone(index: DatasetIndex) -> None:
    rows = select(index.split("train"), months=parse_months("feb"))
    data = data_dictionary(index, 1)
    dataset = build_dataset(index, "train", get_cfg(), "train", 4, data, rows=rows)
    assert len(dataset) == len(rows) == 6
    assert all(name.startswith("frames/202102") for name in dataset.im_files)


@pytest.mark.parametrize(
    ("text", "months"), [("jan, Mar", [202101, 202103]), ("202007,sep", [202007, 202009])]
)
def test_months_are_named_as_people_do(text: str, months: list[int]) -> None:
    assert parse_months(text) == months


@pytest.mark.parametrize(("text", "part"), [("10%", 0.1), ("0.25", 0.25), ("100%", 1.0)])
def test_parts_are_written_either_way(text: str, part: float) -> None:
    assert parse_part(text) == pytest.approx(part)


def test_what_is_no_month_or_part_is_refused(index: DatasetIndex) -> None:
    for text in ("0%", "110%", "some", "-1"):
        with pytest.raises(ToolkitError, match="no part"):
            parse_part(text)
    for text in ("nov", "junk", "", "2020"):
        with pytest.raises(ToolkitError, match="no month"):
            parse_months(text)
    with pytest.raises(ToolkitError, match="no image of 202009"):
        select(index.split("train"), months=[202009])
