from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from toolkit.dataset.index import DatasetIndex, load
from toolkit.dataset.prepare import prepare
from toolkit.errors import ToolkitError
from toolkit.ltdv2 import ANNOTATIONS

Edit = Callable[[str, Callable[[dict[str, Any]], None]], None]


def test_the_index_holds_exactly_what_the_files_say(index: DatasetIndex) -> None:
    for name, file in ANNOTATIONS.items():
        content = json.loads((index.data / file).read_text())
        split = index.split(name)
        assert sorted(split.image_ids.tolist()) == sorted(i["id"] for i in content["images"])
        rows = {number: row for row, number in enumerate(split.image_ids.tolist())}
        expected: list[list[list[float]]] = [[] for _ in rows]
        for a in content.get("annotations", []):
            x, y, w, h = a["bbox"]
            expected[rows[a["image_id"]]].append([x, y, x + w, y + h, a["category_id"]])
        for image in content["images"]:
            row = rows[image["id"]]
            assert split.file_names[row].decode() == image["file_name"]
            assert split.dates[row] == image["date_captured"]
            assert split.months[row] == int(str(image["id"])[:6])
            assert (split.widths[row], split.heights[row]) == (384, 288)
            boxes = slice(split.box_offsets[row], split.box_offsets[row + 1])
            found = np.column_stack([split.boxes[boxes], split.labels[boxes]]).tolist()
            assert found == expected[row]
        assert split.meta()["Temperature"].to_list() == [
            i["meta"]["Temperature"] for i in sorted(content["images"], key=lambda i: rows[i["id"]])
        ]


def test_reading_the_index_in_order_reads_the_archive_in_order(index: DatasetIndex) -> None:
    offsets = pl.read_parquet(index.path)["offset"].to_numpy()
    assert (np.diff(offsets) > 0).all()


def test_all_months_are_there_and_september_only_in_the_test_split(index: DatasetIndex) -> None:
    months = {202101, 202102, 202103, 202104, 202005, 202006, 202007, 202008}
    assert set(index.split("train").months.tolist()) == months
    assert set(index.split("val").months.tolist()) == months
    assert set(index.split("test").months.tolist()) == months | {202009}


@pytest.mark.parametrize("drop_bad", [False, True])
def test_an_index_older_than_its_files_is_named_once_when_it_is_opened(
    copy: Path, edit: Edit, capsys: pytest.CaptureFixture[str], drop_bad: bool
) -> None:
    prepare(copy, drop_bad=drop_bad)
    load(copy)
    assert "warning" not in capsys.readouterr().err
    edit("Train.json", lambda content: content["annotations"].pop())
    for _ in range(2):
        load(copy)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert "changed since its index was made" in line
    assert line.endswith(f"toolkit dataset prepare {copy}")


@pytest.mark.parametrize("gone", ["Train.json", "frames.zip"])
def test_an_index_that_was_moved_or_has_outlived_its_files_is_not_called_old(
    copy: Path, capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    prepare(copy)
    moved = copy.rename(copy.with_name("moved"))
    load(moved)
    (moved / gone).unlink()
    load(moved)
    assert "warning" not in capsys.readouterr().err


def test_tables_of_two_indexes_are_not_taken_for_one(copy: Path) -> None:
    first = prepare(copy)
    train, val = (first.folder / f"{Path(first.manifest.index).stem}-{s}-boxes.npy" for s in ("train", "val"))
    train.write_bytes(val.read_bytes())
    with pytest.raises(ToolkitError, match="do not belong together"):
        _ = load(copy).split("train").training


def test_a_weather_entry_that_is_no_number_is_left_out(copy: Path, edit: Edit) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][0]["meta"] = {"Temperature": [1, 2], "Wind": 3, "Sky": "grey", "Night": True}
        content["images"][1]["meta"] = ["no", "dictionary"]
        content["images"][2]["meta"] = None

    edit("Train.json", change)
    prepare(copy)
    weather = load(copy).split("train").meta()
    assert weather["Temperature"].null_count() == 3
    assert weather["Wind"].drop_nulls().to_list() == [3.0]
    assert not {"Sky", "Night"} & set(weather.columns)
