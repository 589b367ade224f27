"""Tables of what found what, and the field's own readers on what is exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from synthetic import synthetic

from submission import Detections
from toolkit.dataset.export import export_coco
from toolkit.dataset.index import load
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.evaluation.matched import FALSE_ALARM, HIT, MISS, match_table, write_tables
from toolkit.evaluation.matching import box_iou, match
from toolkit.evaluation.scoring import align
from toolkit.evaluation.truth import GroundTruth


def test_every_detection_and_every_missed_object_is_a_row() -> None:
    truth, found, context = synthetic()
    table = match_table(truth, found, context)
    problem = align(truth, found)
    matches = match(problem)
    kinds = dict(table.group_by("kind").len().iter_rows())
    assert kinds[HIT] == (matches.found >= 0).sum()
    assert kinds[FALSE_ALARM] == (matches.found < 0).sum()
    assert kinds[MISS] == (matches.found_by < 0).sum()
    assert len(table) == len(found.scores) + kinds[MISS]
    hits = table.filter(kind=HIT)
    assert hits["iou"].min() >= 0.5
    assert table.filter(kind=FALSE_ALARM)["iou"].null_count() == kinds[FALSE_ALARM]
    assert table.filter(kind=MISS)["score"].null_count() == kinds[MISS]


def test_a_row_says_which_true_box_of_its_image_it_found() -> None:
    truth, found, context = synthetic()
    place = {image: i for i, image in enumerate(truth.image_ids.tolist())}
    for row in match_table(truth, found, context).filter(kind=HIT).head(50).iter_rows(named=True):
        true = truth.boxes[truth.offsets[place[row["image_id"]]] + row["truth"]]
        np.testing.assert_allclose([row[f"true_{c}"] for c in ("x1", "y1", "x2", "y2")], true, atol=1e-4)
        pair = np.array([[row[c] for c in ("x1", "y1", "x2", "y2")], true])
        pair[:, 2:] -= pair[:, :2]
        assert abs(box_iou(pair[:1], pair[1:])[0] - row["iou"]) < 1e-4
        assert row["frame"] == context.names[place[row["image_id"]]]
        assert row["meta.Temperature"] == context.weather["Temperature"][place[row["image_id"]]]


def test_the_month_of_a_row_is_its_images() -> None:
    truth, found, _ = synthetic()
    table = match_table(truth, found)
    expected = {"jan": 202101, "aug": 202008}
    for month, digits in expected.items():
        assert (table.filter(month=month)["image_id"] // 10**11).unique().to_list() == [digits]


def test_no_predictions_at_all_are_misses_alone() -> None:
    truth, _, _ = synthetic(2)
    none = Detections(truth.image_ids, truth.offsets * 0, truth.boxes[:0], np.empty(0), truth.labels[:0])
    assert match_table(truth, none)["kind"].unique().to_list() == [MISS]


def test_pycocotools_reads_the_dataset_and_the_results_that_are_exported(tmp_path: Path) -> None:
    write_sample(tmp_path / "data", train=4, val=6, test=4, seed=1, scene="street")
    prepare(tmp_path / "data")
    index = load(tmp_path / "data")
    annotations = export_coco(index, tmp_path / "coco", extract=True)
    truth = GroundTruth.read(tmp_path / "data" / "Valid.json")
    found = Detections(
        truth.image_ids, truth.offsets, truth.boxes, np.linspace(1, 0.5, len(truth.boxes)), truth.labels
    )
    matches, results = write_tables(tmp_path / "out", truth, found, tmp_path / "data" / "Valid.json")
    exported = COCO(str(annotations / "instances_val.json"))
    assert set(exported.imgs) == set(truth.image_ids.tolist())
    assert len(exported.anns) == len(truth.boxes)
    images = {path.name for path in (tmp_path / "coco" / "images" / "val").iterdir()}
    assert {image["file_name"] for image in exported.imgs.values()} == images
    judged = COCOeval(exported, exported.loadRes(str(results)), "bbox")
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    assert judged.stats[0] > 0.99
    table = pl.read_parquet(matches)
    assert table["kind"].unique().to_list() == [HIT]
    assert {"frame", "clip", "month", "hour", "class", "score", "iou", "truth"} <= set(table.columns)
    own = json.loads((tmp_path / "data" / "Valid.json").read_bytes())
    listed = json.loads((annotations / "instances_val.json").read_bytes())
    by_id = {image["id"]: image for image in own["images"]}
    assert all(each["meta"] == by_id[each["id"]]["meta"] for each in listed["images"])
