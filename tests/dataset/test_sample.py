from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import _template_ids, write_sample
from toolkit.errors import ToolkitError

FILES = ["Train.json", "Valid.json", "TestNoLabels.json", "frames.zip"]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_sample(tmp_path / name, train=16, val=8, test=9, seed=seed, scene="street")
    for file in FILES:
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b
        assert a != c


def test_drawing_again_does_nothing_and_other_data_is_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    assert write_sample(folder, 8, 8, 9, scene="street")
    assert not write_sample(folder, 8, 8, 9, scene="street")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        ToolkitError, match=r"another sample; found 8 \+ 8 \+ 9 images, seed 0, .*16 \+ 8 \+ 9"
    ):
        write_sample(folder, 16, 8, 9, scene="street")
    with pytest.raises(ToolkitError, match="another sample"):
        write_sample(folder, 8, 8, 9, seed=1, scene="street")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "Train.json").write_text("a gigabyte of annotations")
    with pytest.raises(ToolkitError, match="already holds a dataset"):
        write_sample(tmp_path / "real", scene="street")


def test_a_sample_that_was_interrupted_is_drawn_again(tmp_path: Path) -> None:
    write_sample(tmp_path / "a", 8, 8, 9, scene="street")
    whole = (tmp_path / "a" / "Valid.json").read_bytes()
    (tmp_path / "a" / "Valid.json").unlink()
    assert write_sample(tmp_path / "a", 8, 8, 9, scene="street")
    assert (tmp_path / "a" / "Valid.json").read_bytes() == whole


def test_ids_come_from_the_templates_and_training_ids_from_outside(index: DatasetIndex) -> None:
    development, testing = set(_template_ids("development")), set(_template_ids("testing"))
    assert set(map(str, index.split("val").image_ids.tolist())) <= development
    assert set(map(str, index.split("test").image_ids.tolist())) <= testing
    train = set(map(str, index.split("train").image_ids.tolist()))
    assert not train & (development | testing)
    assert {len(number) for number in train} == {17}


def test_it_looks_like_ltdv2(index: DatasetIndex) -> None:
    content = json.loads((index.data / "Train.json").read_text())
    assert [c["name"] for c in content["categories"]] == [
        "background",
        "person",
        "bicycle",
        "motorcycle",
        "vehicle",
    ]
    assert "annotations" not in json.loads((index.data / "TestNoLabels.json").read_text())
    assert set(index.split("train").labels.tolist()) == {1, 2, 3, 4}
    assert index.split("train").frames().grey(0).shape == (288, 384)


def test_contrast_turns_round_between_winter_and_summer(index: DatasetIndex) -> None:
    """Objects are warmer than what surrounds them in January and colder in August."""
    split = index.split("train")
    frames = split.frames()

    def contrast(month: int) -> float:
        differences = []
        for row in np.flatnonzero(split.months == month).tolist():
            image = frames.grey(row).astype(float)
            for x1, y1, x2, y2 in split.boxes[split.box_offsets[row] : split.box_offsets[row + 1]].astype(
                int
            ):
                around = image[max(y1 - 8, 0) : y2 + 8, max(x1 - 8, 0) : x2 + 8]
                differences.append(image[y1:y2, x1:x2].mean() - np.median(around))
        return float(np.mean(differences))

    assert contrast(202101) > 10
    assert contrast(202008) < -3
    assert contrast(202101) > 1.5 * contrast(202005)


@pytest.mark.parametrize("count", [-1, 10_000])
def test_counts_out_of_range_are_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(ToolkitError, match="0 to 9,600"):
        write_sample(tmp_path, train=count, scene="street")


@pytest.mark.parametrize("empty", ["train", "val", "test"])
def test_a_split_of_no_images_has_no_file_and_the_others_are_prepared(tmp_path: Path, empty: str) -> None:
    counts = {"train": 8, "val": 8, "test": 9, empty: 0}
    assert write_sample(tmp_path / "a", **counts, scene="street")
    assert not write_sample(tmp_path / "a", **counts, scene="street")
    assert set(prepare(tmp_path / "a").manifest.images) == counts.keys() - {empty}


def test_a_sample_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="no images"):
        write_sample(tmp_path / "a", 0, 0, 0)
    with pytest.raises(ToolkitError, match="no seed -1"):
        write_sample(tmp_path / "a", 1, 1, 1, seed=-1)
    assert not (tmp_path / "a").exists()
