"""A gain is told from noise, by clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console
from synthetic import synthetic

from submission import Detections
from toolkit.errors import ToolkitError
from toolkit.evaluation import compare as comparing
from toolkit.evaluation.compare import _bootstrap, _month_of, _values, compare, intervals
from toolkit.evaluation.matching import match
from toolkit.evaluation.scoring import align, score
from toolkit.evaluation.table import class_difference_table, difference_table, month_table
from toolkit.evaluation.truth import GroundTruth
from toolkit.ltdv2 import MONTHS
from toolkit.report.page import write_report
from toolkit.vocabulary import Vocabulary


def worse(
    found: Detections, share: float, rows: npt.NDArray[np.bool_] | None = None, seed: int = 1
) -> Detections:
    """The same detections, a share of them moved away from what they had found."""
    rng = np.random.default_rng(seed)
    moved = rng.random(len(found.scores)) < share
    if rows is not None:
        moved &= rows
    return replace(found, boxes=found.boxes + np.where(moved, 150.0, 0.0)[:, None])


def test_the_same_predictions_do_not_differ() -> None:
    truth, found, context = synthetic()
    result = compare(truth, found, found, context, resamples=100)
    for difference in result.differences.values():
        assert difference.change == difference.low == difference.high == 0
        assert not difference.certain
        assert difference.wins == 0.5


def test_a_large_loss_is_certain_and_has_the_exact_size() -> None:
    truth, found, context = synthetic()
    result = compare(truth, found, worse(found, 0.5), context, resamples=200)
    d = result.differences["global_map_50"]
    exact = score(truth, found).overall.map_50, score(truth, worse(found, 0.5)).overall.map_50
    assert (d.a, d.b) == exact
    assert d.low < d.change < d.high < 0
    assert d.certain
    assert d.wins == 0


def test_two_equally_bad_detectors_differ_by_noise() -> None:
    truth, found, context = synthetic()
    a, b = worse(found, 0.2, seed=1), worse(found, 0.2, seed=2)
    result = compare(truth, a, b, context, resamples=200)
    assert result.differences["global_map_50"].change != 0
    assert not result.differences["global_map_50"].certain


def test_frames_of_one_clip_are_no_independent_evidence() -> None:
    """The same loss is less certain when it lies in whole clips than when every frame is a clip."""
    truth, found, context = synthetic(100)
    bad_clips = np.repeat(np.arange(len(truth)) // 10 % 2 == 0, 3)
    moved = worse(found, 0.6, bad_clips)

    def width(clips: npt.NDArray[np.str_]) -> float:
        result = compare(truth, found, moved, replace(context, clips=clips), resamples=200)
        difference = result.differences["global_map_50"]
        return difference.high - difference.low

    frame_by_frame = np.array([f"clip_{i}" for i in range(len(truth))])
    assert width(context.clips) > 1.5 * width(frame_by_frame)


def test_a_resample_scores_like_a_dataset_with_the_clips_drawn() -> None:
    truth, found, context = synthetic(20)
    clips, clip = np.unique(context.clips, return_inverse=True)
    month = _month_of(align(truth, found))
    weights = np.random.default_rng(0).integers(1, 4, (3, len(clips))).astype(np.float32)
    sampled = _bootstrap(match(align(truth, found)), clip, month, len(clips), weights)
    for n, drawn in enumerate(weights):
        copies = np.repeat(np.arange(len(truth)), drawn[clip].astype(int))
        heads = truth.image_ids[copies] // 10**11
        ids = heads * 10**11 + np.arange(len(copies))
        rows = (copies[:, None] * 3 + np.arange(3)).ravel()
        offsets = np.arange(0, len(rows) + 1, 3)
        replicated = score(
            GroundTruth(ids, offsets, truth.boxes[rows], truth.labels[rows]),
            Detections(ids, offsets, found.boxes[rows], found.scores[rows], found.labels[rows]),
        )
        for name, value in _values(replicated).items():
            assert sampled[name][n] == pytest.approx(value, abs=2e-3), name


def test_every_month_and_class_has_a_row() -> None:
    truth, found, context = synthetic(10)
    result = compare(truth, found, worse(found, 0.2), context, resamples=100)
    assert {f"{month}_map_50" for month in MONTHS} <= result.differences.keys()
    assert {"person_map_50", "vehicle_map_50"} <= result.differences.keys()
    assert set(result.classes) == {*MONTHS, "all"}


def test_a_month_without_truth_is_left_undecided() -> None:
    truth, found, context = synthetic(10)
    kept = np.arange(10, len(truth))
    truth = GroundTruth(truth.image_ids[kept], truth.offsets[10:] - 30, truth.boxes[30:], truth.labels[30:])
    context = replace(context, names=context.names[kept], clips=context.clips[kept])
    result = compare(truth, found, worse(found, 0.2), context, resamples=100)
    assert np.isnan(result.differences["jan_map_50"].change)
    assert np.isnan(result.differences["global_map_bal"].low)
    assert np.isfinite(result.differences["global_map_50"].low)


@pytest.mark.parametrize("part", ["all", "quay"])
def test_data_with_one_part_is_compared_as_a_whole(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found, context = synthetic(10)
    words = Vocabulary(truth.vocabulary.classes, {part: 1}, "camera", "x")
    truth = replace(truth, vocabulary=words, parts=np.ones(len(truth), np.int64))
    result = compare(truth, found, worse(found, 0.5), context, resamples=100)
    assert list(result.classes) == ["all"]
    assert f"{part}_map_50" not in result.differences
    for table in (difference_table(result, "a", "b"), class_difference_table(result)):
        Console(width=80).print(table)
    shown = capsys.readouterr().out
    assert "global_map_50 *" in shown
    assert part == "all" or part not in shown
    assert intervals(truth, found, context, resamples=100).keys() >= {"global_map_50", "person_map_50"}


@pytest.mark.parametrize("part", ["all", "quay"])
def test_data_with_one_part_is_told_as_a_whole(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, found, context = synthetic(10)
    words = Vocabulary(truth.vocabulary.classes, {part: 1}, "camera", "x")
    truth = replace(truth, vocabulary=words, parts=np.ones(len(truth), np.int64))
    scores = score(truth, found)
    Console(width=100).print(month_table(scores))
    shown = capsys.readouterr().out
    assert f"one part has no global_map_bal; global_map_50 {scores.overall.map_50:.4f}" in shown
    assert shown.count("all ") == 1
    assert (words.counted(1), words.counted(4)) == ("one part", "4 parts by camera")
    page = write_report(tmp_path, "one", scores, truth, found, context).read_text()
    assert "One part has no global_map_bal" in page
    assert "<th>cause</th><th>boxes</th><th>global_map_50</th>" in page
    assert page.count("<tr><td>All</td>") == 1
    assert ">nan<" not in page


def test_no_interval_leaves_what_its_value_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, found, context = synthetic(10)
    values = _values(score(truth, found))
    sampled = {name: np.array([0.5, -0.5, 1.5]) for name in values}  # the data itself, then two resamples
    monkeypatch.setattr(comparing, "_bootstrap", lambda *_: sampled)
    between = intervals(truth, found, context, resamples=100)
    assert between.keys() == values.keys()
    for name, (low, high) in between.items():
        assert (low < 0) == (name == "global_map_bal"), (name, low)
        assert (high > 1) == (name == "global_map_con"), (name, high)


def test_one_clip_is_refused() -> None:
    truth, found, context = synthetic(2)
    with pytest.raises(ToolkitError, match="one clip is no sample"):
        compare(truth, found, found, replace(context, clips=np.full(len(truth), "only")))


def test_resampling_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    truth, found, context = synthetic(10)
    compare(truth, found, found, context, resamples=10)
    assert "resampling clips: 8/8 classes" in capsys.readouterr().err
