from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
from typer.testing import CliRunner

from toolkit.cli import app
from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.stats import describe, sheet, write_report


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


def test_the_page_needs_no_other_file_and_shows_every_month(index: DatasetIndex, tmp_path: Path) -> None:
    *_, page = write_report(index, tmp_path)
    text = page.read_text()
    assert not re.search(r'(src|href)="?https?:', text)
    assert all(month in text for month in ("202101", "202008", "202009"))
    picture = cv2.imread(str(tmp_path / "frames-train.png"))
    assert picture.shape == sheet(index.split("train")).shape == (8 * 192, 6 * 256, 3)


def test_the_command_prints_a_table_or_json(sample: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["dataset", "stats", str(sample), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "202101" in done.stdout
    done = CliRunner().invoke(app, ["dataset", "stats", str(sample), "--json"])
    assert json.loads(done.stdout)["val"]["images"] == 24
