"""Boxes joined over clips: on the drawn harbour, whose tracks are known, and on cases made by hand."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from submission import Detections
from submission.detections import to_offsets
from submission.templates import template
from submission.validate import check_values
from toolkit.cli import app
from toolkit.dataset.sample import harbour
from toolkit.dataset.sample.harbour.thermal import boxes_of
from toolkit.dataset.sample.harbour.tracks import deal
from toolkit.errors import ToolkitError
from toolkit.evaluation.scoring import score
from toolkit.evaluation.sequences import LinkOptions, check_one_split, link, overlaps
from toolkit.evaluation.truth import GroundTruth
from toolkit.ltdv2 import read_ids

CLIP = 20200502214230700  # May 2020, clip 22 of day 14, 23:07:00


def made(frames: list[list[tuple[list[float], float, int]]], ids: list[int] | None = None) -> Detections:
    """Detections of the seconds of one clip."""
    flat = [d for frame in frames for d in frame]
    return Detections(
        np.array(ids or [CLIP + i for i in range(len(frames))], np.int64),
        to_offsets(np.array([len(f) for f in frames], np.int64)),
        np.array([d[0] for d in flat], np.float64).reshape(-1, 4),
        np.array([d[1] for d in flat], np.float64),
        np.array([d[2] for d in flat], np.int64),
    )


def box(x: float, y: float, w: float = 8, h: float = 20) -> list[float]:
    return [x, y, x + w, y + h]


@pytest.fixture(scope="module")
def truth() -> GroundTruth:
    """The boxes of two drawn months' clips."""
    frames = sorted(harbour.choose_frames({"train": 1600, "val": 0, "test": 0}, 5), key=lambda f: f.name)
    clips = [list(clip) for _, clip in groupby(frames, key=lambda frame: frame.clip)]
    ids, counts, boxes, labels = [], [], [], []
    for clip, rare in zip(clips, deal([clip[0] for clip in clips], 5), strict=True):
        for frame, found in zip(clip, boxes_of(clip, rare, 5), strict=True):
            ids.append(frame.id)
            counts.append(len(found))
            labels += [label for label, _ in found]
            boxes += [[x, y, x + w, y + h] for _, (x, y, w, h) in found]
    return GroundTruth(np.array(ids), to_offsets(np.array(counts)), np.array(boxes), np.array(labels))


def detector(truth: GroundTruth, blind: bool, confused: float = 0.125) -> Detections:
    """A detector that errs: places by half a pixel, scores, some classes, four false alarms a frame."""
    rng = np.random.default_rng(0)
    n = len(truth.labels)
    image = np.repeat(np.arange(len(truth)), np.diff(truth.offsets))
    kept = rng.random(n) < 0.9
    if blind:
        kept &= read_ids(truth.image_ids)[1][image] % 3 != 0
    places = truth.boxes + rng.normal(0, 0.4, (n, 4))
    wrong = np.where(rng.random(n) < confused, rng.integers(1, 5, n), truth.labels)
    scores = rng.beta(4, 3, n)
    false = len(truth) * 4
    where = rng.integers(0, len(truth), false)
    corners = rng.uniform(0, 250, (false, 2))
    alarms = np.hstack([corners, corners + rng.uniform(4, 30, (false, 2))])
    images = np.concatenate([image[kept], where])
    order = np.argsort(images, kind="stable")
    return Detections(
        truth.image_ids,
        to_offsets(np.bincount(images, minlength=len(truth))),
        np.concatenate([places[kept], alarms])[order],
        np.concatenate([scores[kept], rng.beta(2, 6, false)])[order],
        np.concatenate([wrong[kept], rng.integers(1, 5, false)])[order],
    )


def map_50(truth: GroundTruth, detections: Detections) -> float:
    return score(truth, detections, engine="pycocotools").overall.map_50


@pytest.mark.parametrize("confused", [0.0, 0.125])
def test_a_detector_that_is_blind_every_third_second_gets_its_score_back(
    truth: GroundTruth, confused: float
) -> None:
    whole = map_50(truth, detector(truth, False, confused))
    blind = map_50(truth, detector(truth, True, confused))
    linked = map_50(truth, link(detector(truth, True, confused)).detections)
    assert whole - blind > 0.1
    assert (linked - blind) / (whole - blind) > 0.8


def test_linking_what_sees_everything_does_not_cost_score(truth: GroundTruth) -> None:
    whole = detector(truth, blind=False)
    assert map_50(truth, link(whole).detections) > map_50(truth, whole) + 0.05


def test_scores_and_classes_are_voted_along_a_standing_object() -> None:
    seen = made([[(box(50, 50), s, k)] for s, k in ((0.9, 1), (0.8, 1), (0.1, 2), (0.6, 1))])
    result = link(seen, LinkOptions(share=1.0))
    assert result.detections.labels.tolist() == [1, 1, 1, 1]
    assert result.detections.scores == pytest.approx([0.6] * 4)
    assert (result.tracks, result.joined, result.relabelled, result.filled) == (1, 4, 1, 0)


def test_a_moving_object_is_found_again_where_it_should_be() -> None:
    """It moves by 0.9 of its width a second, is not seen for a second, and passes one that stands."""
    there = [box(10 + 7 * i, 50) for i in range(8)]
    frames = [[(there[i], 0.8, 1), (box(30, 90), 0.5, 1)] for i in range(8)]
    del frames[4][0]
    result = link(made(frames))
    assert (result.tracks, result.filled) == (2, 1)
    rows = slice(result.detections.offsets[4], result.detections.offsets[5])
    filled = result.detections.boxes[rows][np.argmin(result.detections.boxes[rows, 1])]
    assert filled == pytest.approx(there[4], abs=0.01)


def test_what_one_frame_a_second_cannot_join_stays_as_it_is() -> None:
    """Five widths a second: no two boxes are taken for one object."""
    fast = made([[(box(10 + 40 * i, 50), 0.3 + 0.1 * i, 4)] for i in range(5)])
    result = link(fast)
    assert (result.tracks, result.filled) == (0, 0)
    assert np.array_equal(result.detections.scores, fast.scores)
    assert np.array_equal(result.detections.boxes, fast.boxes)


def test_clips_are_never_joined_nor_filled_beyond_their_frames() -> None:
    ids = [CLIP, CLIP + 1, CLIP + 2, CLIP + 10**9, CLIP + 10**9 + 1, CLIP + 10**9 + 2]
    result = link(made([[(box(50, 50), 0.5 + 0.3 * (i > 2), 1)] for i in range(6)], ids))
    assert (result.clips, result.tracks) == (2, 2)
    assert result.detections.scores == pytest.approx([0.5] * 3 + [0.8] * 3)
    # Second 2 is in no file: there is no frame to put a box into.
    missing = [CLIP, CLIP + 1, CLIP + 3, CLIP + 4]
    assert link(made([[(box(50, 50), 0.5, 1)]] * 4, missing)).filled == 0


def test_a_clip_that_passes_midnight_stays_in_order() -> None:
    ids = [20200502214235958, 20200502214235959, 20200502214000000, 20200502214000001]
    result = link(made([[(box(50 + 4 * i, 50), 0.5, 1)] for i in range(4)], ids))
    assert (result.clips, result.tracks, result.joined) == (1, 1, 4)


boxes_strategy = st.tuples(
    st.tuples(st.floats(0, 350), st.floats(0, 250), st.floats(0, 60), st.floats(0, 60)),
    st.floats(0, 1),
    st.integers(1, 4),
)


@settings(max_examples=60)
@given(st.lists(st.lists(boxes_strategy, max_size=8), min_size=1, max_size=9), st.randoms())
def test_no_box_is_lost_whatever_comes(frames: list[list[tuple[tuple[float, ...], float, int]]], rng) -> None:  # type: ignore[no-untyped-def]
    """Old boxes keep their places and order, numbers stay in range, and the order of images is nothing."""
    seen = made([[(box(*b), s, k) for b, s, k in frame] for frame in frames])
    result = link(seen)
    linked = result.detections
    check_values(linked)
    assert len(linked.scores) == len(seen.scores) + result.filled
    for i in range(len(frames)):
        old = seen.boxes[seen.offsets[i] : seen.offsets[i + 1]]
        assert np.array_equal(linked.boxes[linked.offsets[i] : linked.offsets[i] + len(old)], old)
    order = list(range(len(frames)))
    rng.shuffle(order)
    shuffled = link(seen.select(seen.image_ids[order])).detections.select(seen.image_ids)
    assert shuffled.dumps() == linked.dumps()


def test_overlaps_are_iou() -> None:
    a = np.array([[0.0, 0, 10, 10], [0, 0, 0, 0]])
    b = np.array([[5.0, 0, 15, 10], [20, 20, 30, 30]])
    assert overlaps(a, b) == pytest.approx(np.array([[1 / 3, 0], [0, 0]]))


def test_ids_without_a_time_and_two_splits_are_refused() -> None:
    with pytest.raises(ToolkitError, match=r"2 ids have no clip and time to read; found 20210106000004000"):
        link(made([[], []], [20210106000004000, 20200502214236100]))
    two = made([[], []], [int(template("development")[0]), int(template("testing")[0])])
    with pytest.raises(ToolkitError, match="two splits; found 1 validation ids and 1 test ids"):
        check_one_split(two, "both.json")
    with pytest.raises(ToolkitError, match="cannot be linked with these options"):
        LinkOptions(gap=11)


def test_the_verb_writes_what_link_gives(tmp_path: Path) -> None:
    file = tmp_path / "predictions.json"
    seen = made([[(box(50, 50), score, 1)] if score else [] for score in (0.5, 0, 0.5, 0.8)])
    seen.write(file)
    done = CliRunner().invoke(app, ["link", str(file)])
    assert done.exit_code == 0, done.output
    written = Detections.read(tmp_path / "predictions-linked.json")
    assert written.dumps() == link(seen).detections.rounded().dumps()
    assert "1 filled in" in done.output
