"""The report: complete, self-contained, and right about what it says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from synthetic import synthetic

from submission.validate import LABELS
from toolkit.errors import ToolkitError
from toolkit.evaluation.context import Context
from toolkit.evaluation.matching import match
from toolkit.evaluation.scoring import Scores, align, month_masks, score
from toolkit.evaluation.truth import GroundTruth
from toolkit.ltdv2 import MONTHS
from toolkit.report import figures
from toolkit.report.figures import Evaluated
from toolkit.report.gallery import gallery
from toolkit.report.page import _levers, findings, write_report

FROM_BOXES = ["months", "classes", "precision_recall", "sizes", "counts"]
"""What truth and detections alone can draw."""

PICTURES = [*FROM_BOXES, "conditions", "gallery"]


def grey(image: int) -> npt.NDArray[np.uint8]:
    return np.full((288, 384), 40 + image % 100, np.uint8)


@pytest.fixture(autouse=True, scope="module")
def coarse() -> Iterator[None]:
    """Pictures at a third of the resolution: these tests are about what is in them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 70)
        yield


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    truth, found, context = synthetic()
    return write_report(folder, "a <run> & more", score(truth, found), truth, found, context, grey)


def test_every_picture_is_a_png_beside_the_report_and_inside_it(report: Path) -> None:
    page = report.read_text()
    for name in PICTURES:
        png = (report.parent / f"{name}.png").read_bytes()
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert page.count("<img ") == page.count('src="data:image/png;base64,') == len(PICTURES)
    assert page.count("<figcaption>") == len(PICTURES)


def test_nothing_in_the_report_points_outside_it(report: Path) -> None:
    page = re.sub(r'src="data:image/png;base64,[A-Za-z0-9+/=]*"', "", report.read_text())
    assert not re.search(r"https?://|//[a-z]|<script|<link(?! rel=\"icon\" href=\"data:)|url\(|@import", page)


def test_names_are_escaped(report: Path) -> None:
    assert "a &lt;run&gt; &amp; more" in report.read_text()


def test_the_numbers_are_those_of_the_scores(report: Path) -> None:
    truth, found, _ = synthetic()
    scores = score(truth, found)
    page = report.read_text()
    for value in (scores.balanced, scores.overall.map_50, scores.consistency, scores.months["aug"].map_50):
        assert f"{value:.4f}" in page


def test_the_findings_name_the_drift_the_weakest_month_and_the_weakest_class() -> None:
    truth, found, _ = synthetic()
    told = " ".join(findings(score(truth, found)))
    assert "drift between months costs" in told
    assert "Aug is the weakest month" in told
    assert "weakest class" in told


def test_months_and_classes_that_show_the_same_score_are_named_together() -> None:
    truth, found, _ = synthetic()
    masks = month_masks(truth.image_ids)
    lost = np.repeat(masks["jun"] | masks["jul"] | masks["aug"], np.diff(truth.offsets))
    poor = replace(found, boxes=found.boxes + 900.0 * lost[:, None], labels=np.minimum(found.labels, 2))
    told = " ".join(findings(score(truth, poor)))
    assert "Jun, Jul and Aug are the weakest months (0.000)" in told
    assert "Motorcycle and Vehicle are the weakest classes (AP@0.5 0.000; the others" in told
    perfect = " ".join(findings(score(truth, replace(found, boxes=truth.boxes))))
    assert "All months score alike (1.000)" in perfect
    assert "All classes score alike (AP@0.5 1.000)" in perfect


def test_the_legend_names_every_class_beside_the_curves() -> None:
    truth, found, context = synthetic()
    found = replace(found, labels=np.where(found.labels == 2, 1, found.labels))
    data = Evaluated(score(truth, found), match(align(truth, found)), truth.image_ids, context, threshold=0.4)
    figure = figures.precision_recall(data).figure
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text().split()[0] for text in legend.get_texts()] == [
        name.split()[0] for name in LABELS.values()
    ]
    assert "AP 0.000" in legend.get_texts()[1].get_text()
    assert not legend.get_window_extent().overlaps(figure.axes[0].get_window_extent())


def test_without_weather_and_frames_there_are_fewer_pictures(tmp_path: Path) -> None:
    truth, found, _ = synthetic(5)
    write_report(tmp_path, "x", score(truth, found), truth, found)
    assert sorted(p.stem for p in tmp_path.glob("*.png")) == sorted(FROM_BOXES)


@pytest.mark.parametrize("case", ["no predictions", "no true boxes", "one image", "nothing in any month"])
def test_poor_input_still_gives_a_report(case: str, tmp_path: Path) -> None:
    truth, found, context = synthetic(3)
    none = found.select(truth.image_ids[:0])
    if case == "no predictions":
        found = none
    elif case == "no true boxes":
        truth = GroundTruth(truth.image_ids, truth.offsets * 0, truth.boxes[:0], truth.labels[:0])
    elif case == "one image":
        truth = GroundTruth(truth.image_ids[:1], truth.offsets[:2], truth.boxes[:3], truth.labels[:3])
        context = replace(
            context,
            names=context.names[:1],
            clips=context.clips[:1],
            hours=context.hours[:1],
            weather={k: v[:1] for k, v in context.weather.items()},
        )
    else:
        truth = replace(truth, image_ids=20200900000000000 + np.arange(len(truth)))
    scores: Scores = score(truth, found)
    assert write_report(tmp_path, "x", scores, truth, found, context, grey).exists()


def test_the_worst_frames_come_one_a_clip_and_unreadable_ones_are_left_out() -> None:
    truth, found, context = synthetic()
    data = Evaluated(score(truth, found), match(align(truth, found)), truth.image_ids, context, threshold=0.4)
    asked: list[int] = []

    def read(image: int) -> npt.NDArray[np.uint8] | None:
        asked.append(image)
        return None if len(asked) == 1 else grey(image)

    picture = gallery(data, read)
    assert picture is not None
    clips = context.clips[asked[1:]].tolist()
    assert len(clips) == len(set(clips)) == 12
    titles = [axes.get_title(loc="left") for axes in picture.figure.axes]
    wrong = [sum(map(int, re.findall(r"(\d+) (?:missed|false)", title))) for title in titles]
    assert wrong == sorted(wrong, reverse=True)
    assert wrong[-1] > 0


def test_long_names_above_the_frames_do_not_run_into_each_other() -> None:
    truth, found, context = synthetic()
    names = [f"images_thermal/data/video-{'W' * 17}-frame-{i:06d}-{'m' * 17}.jpg" for i in range(len(truth))]
    long = replace(context, names=np.array(names))
    data = Evaluated(score(truth, found), match(align(truth, found)), truth.image_ids, long, threshold=0.4)
    picture = gallery(data, grey)
    assert picture is not None
    picture.figure.draw_without_rendering()
    shown = [axes for axes in picture.figure.axes if axes.get_visible()]
    boxes = [axes._left_title.get_window_extent() for axes in shown]
    assert not [(a, b) for n, a in enumerate(boxes) for b in boxes[:n] if a.overlaps(b)]


def test_parts_of_other_data_keep_their_names_and_months_begin_with_a_capital() -> None:
    truth, found, context = synthetic()
    names = {name: f"day-{k}" if k else "may" for k, name in enumerate(MONTHS)}
    scores = score(truth, found)
    own = replace(scores, by="name:1", months={names[k]: v for k, v in scores.months.items()})
    assert [scores.heading(name) for name in ("may", "all")] == ["May", "All"]
    assert [own.heading(name) for name in (*own.months, "all")] == [*names.values(), "All"]
    picture = figures.months(
        Evaluated(own, match(align(truth, found)), truth.image_ids, context, threshold=0.4)
    )
    assert [label.get_text() for label in picture.figure.axes[0].get_xticklabels()] == [*own.months]
    assert not re.search("May|Day", " ".join(findings(own)))


def test_words_on_a_crowded_frame_do_not_cover_each_other() -> None:
    """As they are drawn, not as they were planned."""
    truth, found, context = synthetic()
    crowd = np.repeat(np.array([[180.0, 140, 200, 180], [375, 2, 384, 30]]), 9, axis=0)
    offsets = np.minimum(np.arange(len(truth) + 1), 1) * len(crowd)
    truth = replace(truth, offsets=offsets, boxes=crowd, labels=np.resize([1, 2, 3, 4], len(crowd)))
    data = Evaluated(score(truth, found), match(align(truth, found)), truth.image_ids, context, threshold=0.0)
    picture = gallery(data, grey)
    assert picture is not None
    picture.figure.draw_without_rendering()
    axes = picture.figure.axes[0]
    drawn = [text.get_window_extent() for text in axes.texts]
    assert len(drawn) >= 4
    frame = axes.get_window_extent()
    assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 for box in drawn)
    assert not any(box.count_overlaps(drawn[:i]) for i, box in enumerate(drawn))


def test_small_boxes_are_shown_in_a_part_of_the_frame_that_holds_most_of_what_went_wrong() -> None:
    """Fifty people six pixels tall: the crowd among them is shown, with thin lines and few words."""
    truth, found, context = synthetic()
    rng = np.random.default_rng(0)
    crowd, alone = rng.uniform([300, 40], [330, 60], (45, 2)), rng.uniform([10, 10], [100, 250], (5, 2))
    corners = np.vstack([crowd, alone])
    people = np.hstack([corners, corners + np.array([3, 6])])
    offsets = np.minimum(np.arange(len(truth) + 1), 1) * len(people)
    labels = np.resize([1], len(people))
    labels[0] = 3
    truth = replace(truth, offsets=offsets, boxes=people, labels=labels)
    data = Evaluated(score(truth, found), match(align(truth, found)), truth.image_ids, context, threshold=1.1)
    picture = gallery(data, grey)
    assert picture is not None
    axes = picture.figure.axes[0]
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert right - left == pytest.approx(64)
    assert (right - left) / (bottom - top) == pytest.approx(384 / 288)
    assert left <= 300
    assert right >= 333
    assert "50 missed" in axes.get_title(loc="left")
    assert "64 x 48 px at" in axes.get_title(loc="left")
    assert [text.get_text() for text in axes.texts] == ["motorcycle"]
    assert max(patch.get_linewidth() for patch in axes.patches) < 1.5


def test_large_boxes_are_shown_in_the_whole_frame() -> None:
    truth, found, context = synthetic()
    large = np.array([[100.0, 100, 180, 160]])
    offsets = np.minimum(np.arange(len(truth) + 1), 1)
    truth = replace(truth, offsets=offsets, boxes=large, labels=np.array([4]))
    data = Evaluated(score(truth, found), match(align(truth, found)), truth.image_ids, context, threshold=1.1)
    picture = gallery(data, grey)
    assert picture is not None
    axes = picture.figure.axes[0]
    assert axes.get_xlim() == (-0.5, 383.5)
    assert axes.get_ylim() == (287.5, -0.5)
    assert "px at" not in axes.get_title(loc="left")


def test_an_archive_without_frames_is_not_searched_to_its_end() -> None:
    truth, found, context = synthetic()
    data = Evaluated(score(truth, found), match(align(truth, found)), truth.image_ids, context, threshold=0.4)
    asked: list[int] = []
    assert gallery(data, asked.append) is None
    assert len(asked) == 12


IMAGES = [
    {
        "id": 20210100000000001,
        "file_name": "frames/20210101/clip_1_0930/image_0001.jpg",
        "date_captured": "2021-01-01T09:30:00",
        "meta": {"Temperature": -1.5, "Station": "north", "Humidity": None},
    },
    {"id": 20210100000000002, "file_name": "frames/20210101/clip_2_0000/image_0001.jpg"},
]


def write_images(folder: Path, images: list[Any]) -> Path:
    (folder / "Valid.json").write_text(json.dumps({"images": images, "annotations": []}))
    return folder / "Valid.json"


def test_clip_hour_and_weather_come_from_the_coco_file(tmp_path: Path) -> None:
    ids = np.array([20210100000000002, 20210100000000001])
    context = Context.read(write_images(tmp_path, IMAGES), ids)
    assert context.clips.tolist() == ["frames/20210101/clip_2_0000", "frames/20210101/clip_1_0930"]
    np.testing.assert_array_equal(context.hours, [np.nan, 9.5])
    assert list(context.weather) == ["Temperature"]
    np.testing.assert_array_equal(context.weather["Temperature"], [np.nan, -1.5])


def test_a_context_that_lacks_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="no id 20210100000000009"):
        Context.read(write_images(tmp_path, IMAGES), np.array([20210100000000009]))


PROBE = """
<script>
addEventListener("load", () => {
  const images = [...document.images].map(image => image.naturalWidth);
  const loads = performance.getEntriesByType("resource").map(entry => entry.name);
  const wide = document.documentElement.scrollWidth > innerWidth;
  const outside = loads.filter(name => !name.startsWith("data:"));
  document.body.dataset.probe = JSON.stringify({images, wide, outside});
});
</script>
"""


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
@pytest.mark.parametrize("width", [1280, 420])
def test_chromium_shows_everything_and_loads_nothing_else(report: Path, tmp_path: Path, width: int) -> None:
    page = tmp_path / "probed.html"
    page.write_text(report.read_text().replace("</body>", PROBE + "</body>"))
    dom = subprocess.run(
        [
            str(CHROMIUM),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},2000",
            "--virtual-time-budget=5000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    found = re.search(r'data-probe="([^"]*)"', dom)
    assert found
    probe = json.loads(found[1].replace("&quot;", '"'))
    assert len(probe["images"]) == len(PICTURES)
    assert min(probe["images"]) > 300
    assert probe["outside"] == []
    assert not probe["wide"], "the page must not scroll sideways"


@pytest.mark.parametrize(
    ("found", "said"),
    [((0.0, 0.0), "mAP@0.5 is 0 in every month"), ((0.2, -1.0), "A month has no true boxes")],
)
def test_why_there_is_no_score_that_ranks(found: tuple[float, float], said: str) -> None:
    months = {name: SimpleNamespace(map_50=value) for name, value in zip(("feb", "jun"), found, strict=True)}
    scores = SimpleNamespace(compared=months, balanced=float("nan"), part="month")
    assert said in _levers(SimpleNamespace(scores=scores))  # type: ignore[arg-type]
