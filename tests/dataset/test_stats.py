from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path

import cv2
import pytest
from typer.testing import CliRunner

from toolkit.cli import app
from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.stats import describe
from toolkit.report.dataset import COLOURS, sheet, write_report


def test_counts_agree_with_the_annotation_file(index: DatasetIndex) -> None:
    content = json.loads((index.data / "Train.json").read_text())
    train = describe(index)["train"]
    assert (train.images, train.boxes) == (len(content["images"]), len(content["annotations"]))
    people = [a for a in content["annotations"] if a["category_id"] == 1]
    assert sum(train.boxes_by_class_and_month["person"].values()) == len(people)
    small = [a for a in people if a["bbox"][2] * a["bbox"][3] < 32**2]
    assert train.boxes_by_class_and_size["person"].get("small", 0) == len(small)
    assert sum(train.images_by_hour.values()) == train.images
    temperatures = [i["meta"]["Temperature"] for i in content["images"]]
    assert train.weather["Temperature"].low == min(temperatures)
    assert train.weather["Temperature"].high == max(temperatures)
    assert describe(index)["test"].boxes == 0


def test_clips_and_weather_are_told_apart_by_month(index: DatasetIndex) -> None:
    content = json.loads((index.data / "Train.json").read_text())
    train = describe(index)["train"]
    of_month = [i for i in content["images"] if str(i["id"]).startswith("202008")]
    clips = Counter(i["file_name"].rpartition("/")[0] for i in of_month)
    found = train.clips_by_month["202008"]
    assert (found.clips, found.fewest, found.most) == (len(clips), min(clips.values()), max(clips.values()))
    temperatures = [i["meta"]["Temperature"] for i in of_month]
    august = train.weather_by_month["202008"]["Temperature"]
    assert (august.low, august.high) == (min(temperatures), max(temperatures))
    assert train.weather_by_month.keys() == train.images_by_month.keys()


def test_the_page_needs_no_other_file_and_shows_every_month(index: DatasetIndex, tmp_path: Path) -> None:
    page = write_report(index, describe(index), tmp_path)
    text = page.read_text()
    assert not re.search(r'(src|href)="?https?:', text)
    assert all(month in text for month in ("202101", "202008", "202009"))
    picture = cv2.imread(str(tmp_path / "frames-train.png"))
    assert picture.shape == sheet(index.split("train")).shape == (28 + 8 * 192, 6 * 256, 3)
    assert all((picture[:28] == colour).all(axis=-1).any() for colour in COLOURS.values())


def test_the_command_prints_a_table_or_json(sample: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["dataset", "stats", str(sample), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("202101") == 3
    done = CliRunner().invoke(app, ["dataset", "stats", str(sample), "--json"])
    assert json.loads(done.stdout)["val"]["images"] == 24


def test_the_page_of_a_folder_that_cannot_be_written_goes_to_the_users_cache(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != sample / "prepared" and real(path, mode)
    )
    done = CliRunner().invoke(app, ["dataset", "stats", str(sample)])
    assert done.exit_code == 0, done.output
    (page,) = tmp_path.rglob("stats.html")
    assert str(page) in done.stderr
    assert not (sample / "prepared" / "stats").exists()
