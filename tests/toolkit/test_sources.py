"""Predicting anything: what is read, that boxes are those of a submission, and what is written of them."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from command import Command
from pycocotools.coco import COCO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT

from submission import Detections
from submission.validate import LABELS
from toolkit.dataset import index
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.errors import ToolkitError
from toolkit.prediction import PredictionOptions, predict
from toolkit.sources import outputs
from toolkit.sources.drawing import draw, enlargement
from toolkit.sources.predicting import predict_source
from toolkit.sources.reading import Frame, Source, ahead, open_source

TINY = Path(__file__).parents[1] / "helpers" / "tiny.yaml"
OPTIONS = PredictionOptions(device="cpu", batch=4, patches=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / "data"
    write_sample(folder, train=4, val=6, test=6, seed=0, scene="street")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def frames(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The validation frames as files, named for their ids."""
    folder = tmp_path_factory.mktemp("frames") / "val"
    folder.mkdir()
    split = index.load(data).split("val")
    for row, number in enumerate(split.image_ids.tolist()):
        (folder / f"{number}.jpg").write_bytes(split.frames().read(row))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("weights") / "tiny.pt", {k - 1: v for k, v in LABELS.items()})


def checkpoint(path: Path, names: dict[int, str], channels: int = 1) -> Path:
    torch.manual_seed(0)
    made = DetectionModel(str(TINY), ch=channels, nc=len(names), verbose=False)
    for branch in made.model[-1].cv3:  # scores of random weights are all near zero
        torch.nn.init.normal_(branch[-1].weight, std=2)
        torch.nn.init.constant_(branch[-1].bias, -1)
    made.names = names
    torch.save({"model": made, "train_args": {**DEFAULT_CFG_DICT, "imgsz": 192}}, path)
    return path


def found(weights: Path, source: Path | str, *, as_split: bool = False, **options: Any) -> outputs.Found:
    return predict_source(weights, open_source(str(source), **options), OPTIONS, as_split=as_split).found


def test_frames_have_the_boxes_that_their_split_has(data: Path, frames: Path, tiny: Path) -> None:
    of_split = predict(tiny, data, "val", OPTIONS)
    of_files = found(tiny, frames, as_split=True).detections().select(of_split.image_ids)
    assert len(of_split.boxes) > 50
    for column in ("offsets", "boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(of_files, column), getattr(of_split, column))


def test_pictures_have_the_boxes_of_yolo_predict(tiny: Path, tmp_path: Path) -> None:
    """Of other sizes than the input, wide, high and small, and none of a whole number of cells."""
    from ultralytics import YOLO

    noise = np.random.default_rng(0)
    for height, width in ((288, 384), (501, 211), (97, 160), (33, 31), (640, 640)):
        coarse = noise.integers(0, 255, (height // 8 + 1, width // 8 + 1), np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(tmp_path / f"{height}x{width}.png"), picture)
    words = {"conf": OPTIONS.conf, "iou": OPTIONS.iou, "max_det": 3000, "device": "cpu", "verbose": False}
    theirs = {
        Path(each.path).name: each.boxes
        for each in YOLO(tiny).predict(tmp_path, save=False, **words)  # type: ignore[arg-type]
    }
    ours = found(tiny, tmp_path)
    assert sum(map(len, ours.rows)) > 100
    for name, rows in zip(ours.names, ours.rows, strict=True):
        boxes = theirs[name].data.numpy()
        boxes = boxes[(boxes[:, 2:4] > boxes[:, :2]).all(1)]  # the others lie outside of the frame
        boxes[:, 5] += 1
        assert len(rows) == len(boxes), name
        for one in rows:
            assert np.isclose(boxes, one, atol=[0.02] * 4 + [2e-4, 0]).all(1).any(), (name, one)


def test_frames_of_a_day_are_read_out_of_the_archive(data: Path, tiny: Path) -> None:
    with zipfile.ZipFile(data / "frames.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
    day = names[0].split("/")[1]
    of_day = open_source(f"{data / 'frames.zip'}/frames/{day}")
    assert sorted(frame.name for frame in of_day) == sorted(n for n in names if f"/{day}/" in n)
    assert [f.name for f in open_source(f"{data / 'frames.zip'}/{day}")] == [f.name for f in of_day]
    assert open_source(str(data / "frames.zip")).count() == len(names)
    with pytest.raises(ToolkitError, match=r"no pictures 19990101 in .*frames\.zip"):
        open_source(f"{data / 'frames.zip'}/19990101")


def test_the_same_picture_has_the_same_boxes_wherever_it_lies(
    frames: Path, tiny: Path, tmp_path: Path
) -> None:
    picture = sorted(frames.iterdir())[0]
    grey = cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)
    assert grey is not None
    variants = {"grey.png": grey, "colour.png": cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), "x.tiff": grey}
    variants["alpha.png"] = cv2.cvtColor(grey, cv2.COLOR_GRAY2BGRA)
    for name, pixels in variants.items():
        cv2.imwrite(str(tmp_path / name), pixels)
    one = found(tiny, picture).rows[0]
    assert len(one)
    for each, rows in zip((many := found(tiny, tmp_path / "*.*")).names, many.rows, strict=True):
        np.testing.assert_array_equal(rows, one, err_msg=each)


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (21000, 24060), (-20.5, 90.25)])
def test_wider_frames_have_the_boxes_of_their_8_bit_twins(
    frames: Path, tiny: Path, tmp_path: Path, low: float, high: float, capsys: pytest.CaptureFixture[str]
) -> None:
    for picture in frames.iterdir():
        twin = cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)
        assert twin is not None
        wide = low + twin.astype(np.float64) * (high - low) / 255
        kept = wide.astype(np.float32) if low < 0 else wide.round().astype(np.uint16)
        cv2.imwrite(str(tmp_path / f"{picture.stem}.tiff"), kept)
    source = open_source(str(tmp_path))
    result = predict_source(tiny, source, OPTIONS, f"{low}:{high}")
    assert result.range is not None
    assert f"{low:g} becomes black and {high:g} white" in capsys.readouterr().err
    ours, theirs = result.found, found(tiny, frames)
    for one, other in zip(ours.rows, theirs.rows, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


def test_percentiles_are_taken_of_the_whole_source_and_can_be_given_again(
    frames: Path, tiny: Path, tmp_path: Path
) -> None:
    for number, picture in enumerate(sorted(frames.iterdir())):
        pixels = cv2.imread(str(picture), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None
        cv2.imwrite(str(tmp_path / f"{number}.png"), pixels.astype(np.uint16) * 10 + 7000 + 100 * number)
    first = predict_source(tiny, open_source(str(tmp_path)), OPTIONS, "1%:99%")
    assert first.range is not None
    assert 7000 < first.range.low < first.range.high < 10100
    again = predict_source(tiny, open_source(str(tmp_path)), OPTIONS, str(first.range))
    for one, other in zip(first.found.rows, again.found.rows, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("text", ["5", "9:2", "3:3", "50%:40%", "1%:101%", "a:b", "nan:inf"])
def test_a_range_that_is_none_is_refused(frames: Path, tiny: Path, text: str) -> None:
    with pytest.raises(ToolkitError, match="no range"):
        predict_source(tiny, open_source(str(frames)), OPTIONS, text)


def test_frames_of_other_sizes_and_broken_ones_keep_their_places(
    frames: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = sorted(frames.iterdir())
    for number, picture in enumerate(pictures):
        shutil.copy(picture, tmp_path / f"frame_{number + 8}.jpg")
    (tmp_path / "frame_9.jpg").write_bytes(pictures[0].read_bytes()[:900])
    cv2.imwrite(str(tmp_path / "frame_10.png"), np.full((97, 31), 90, np.uint8))
    with pytest.raises(ToolkitError, match=r"1 of 7 frames of .*: frame frame_9.jpg|1 of 7 frames"):
        found(tiny, tmp_path)
    lenient = PredictionOptions(device="cpu", batch=4, patches=False, bad_frames=0.5)
    both = predict_source(tiny, open_source(str(tmp_path)), lenient).found
    assert "1 of 7 frames get no boxes" in capsys.readouterr().err
    assert both.names == [
        f"frame_{n}.{k}"
        for n, k in [(8, "jpg"), (9, "jpg"), (10, "jpg"), (10, "png"), (11, "jpg"), (12, "jpg"), (13, "jpg")]
    ]
    assert list(both.faults) == ["frame_9.jpg"]
    assert both.sizes[3] == (97, 31)
    np.testing.assert_array_equal(both.rows[4], found(tiny, pictures[3]).rows[0])


def test_every_format_holds_the_same_boxes(
    workspace: Path, toolkit: Command, frames: Path, tiny: Path
) -> None:
    words = ("predict", tiny, frames, "--device", "cpu", "--save", "--out", workspace / "out")
    result = toolkit(*words, "--format", "json", "--format", "coco", "--format", "yolo")
    assert (result.status, result.out.strip()) == (0, str(workspace / "out"))
    written = json.loads((workspace / "out" / "predictions.json").read_bytes())
    expected = found(tiny, frames).detections()
    sure = expected.scores >= 0.25
    assert sum(len(frame["scores"]) for frame in written["frames"]) == sure.sum() > 0
    assert (written["complete"], written["conf"], written["range"]) == (True, 0.25, None)
    assert written["imgsz"] == 192  # as the weights were trained, which nobody said again

    truth = COCO(str(workspace / "out" / "coco-images.json"))
    results = truth.loadRes(str(workspace / "out" / "coco-results.json"))
    assert sorted(truth.imgs) == sorted(expected.image_ids.tolist())
    from_coco = Detections.read_coco(workspace / "out" / "coco-results.json")
    assert len(results.anns) == len(from_coco.boxes) == sure.sum()
    np.testing.assert_allclose(from_coco.select(expected.image_ids).boxes, expected.boxes[sure], atol=2e-3)
    for frame in written["frames"]:
        text = (workspace / "out" / "labels" / frame["name"]).with_suffix(".txt").read_text()
        rows = np.array([line.split() for line in text.splitlines()], float).reshape(-1, 6)
        size = np.array([frame["width"], frame["height"]])
        corners = np.hstack([rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2])
        np.testing.assert_allclose(corners * [*size, *size], np.reshape(frame["boxes"], (-1, 4)), atol=1e-3)
        assert (rows[:, 0] + 1).tolist() == frame["labels"]
    pictures = sorted((workspace / "out" / "pictures").iterdir())
    assert [picture.stem for picture in pictures] == sorted(path.stem for path in frames.iterdir())


def test_a_video_is_read_and_drawn_and_ends_at_the_limit(
    workspace: Path, toolkit: Command, frames: Path, tiny: Path
) -> None:
    path = workspace / "quay.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (384, 288))
    for picture in sorted(frames.iterdir()):
        writer.write(cv2.imread(str(picture)))
    writer.release()
    result = toolkit("predict", tiny, path, "--device", "cpu", "--save", "--limit", 4, "--imgsz", 96)
    assert (result.status, result.out.strip()) == (0, str(workspace / "predict-1"))
    written = json.loads((workspace / "predict-1" / "predictions.json").read_bytes())
    assert written["imgsz"] == 96
    assert [frame["name"] for frame in written["frames"]] == [f"quay_{n:06d}" for n in range(1, 5)]
    drawn = cv2.VideoCapture(str(workspace / "predict-1" / "quay.mp4"))
    assert int(drawn.get(cv2.CAP_PROP_FRAME_COUNT)) == 4
    assert drawn.get(cv2.CAP_PROP_FPS) == 5.0
    drawn.release()


def test_weights_of_other_classes_find_their_own(frames: Path, tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "two.pt", {0: "car", 1: "bus"}, channels=3)
    both = found(weights, frames)
    assert both.classes == {1: "car", 2: "bus"}
    assert set(both.by_class()) <= {"car", "bus"}


def test_colours_count_only_where_they_are_asked_for(frames: Path, tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "colour.pt", {0: "car"}, channels=3)
    grey = cv2.imread(str(sorted(frames.iterdir())[0]), cv2.IMREAD_GRAYSCALE)
    assert grey is not None
    tinted = cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)
    cv2.imwrite(str(tmp_path / "tinted.png"), tinted)
    cv2.imwrite(str(tmp_path / "plain.png"), cv2.cvtColor(tinted, cv2.COLOR_BGR2GRAY))
    plain, tinted_grey = (found(weights, tmp_path / f"{n}.png").rows[0] for n in ("plain", "tinted"))
    np.testing.assert_array_equal(plain, tinted_grey)
    assert not np.array_equal(found(weights, tmp_path / "tinted.png", colour=True).rows[0], plain)


def test_weights_that_look_at_several_frames_are_refused(frames: Path, tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "five.pt", {0: "car"}, channels=5)
    with pytest.raises(ToolkitError, match=r"looks at more than a frame at a time.*5 channels"):
        found(weights, frames)


class Cut(Source):
    """A source that Ctrl-C ends after three frames."""

    title = "cut"

    def __iter__(self) -> Any:
        yield from (Frame(f"{n}", np.full((64, 64), 40 * n, np.uint8)) for n in range(3))
        raise KeyboardInterrupt


def test_ctrl_c_keeps_what_was_found(tiny: Path) -> None:
    one = PredictionOptions(device="cpu", batch=1, patches=False)
    result = predict_source(tiny, Cut(), one)
    assert result.stopped
    assert result.found.names == ["0", "1", "2"][: len(result.found.names)]


def test_ctrl_c_before_the_first_batch_is_no_fault_of_the_source(tiny: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        predict_source(tiny, Cut(), PredictionOptions(device="cpu", batch=16, patches=False))


def test_reading_ahead_changes_no_order_and_leaves_no_thread() -> None:
    frames = [Frame(str(n), None, "x") for n in range(50)]
    assert [frame.name for frame in ahead(frames, 7)] == [str(n) for n in range(50)]
    reading = ahead(iter(frames), 7)
    assert next(reading).name == "0"
    reading.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "it is not clear what to predict"),
        (("nowhere", "--split", "val"), "it is not clear what to predict"),
        (("nowhere.jpg",), "no source nowhere.jpg"),
        (("nowhere/*.png",), "no pictures nowhere/*.png"),
        (("7",), "cannot open camera 7"),
        (("nowhere.jpg", "--tta"), "--tta is for a split"),
        (("--split", "val", "--save"), "--save is for a source"),
    ],
)
def test_what_cannot_be_predicted_is_said_in_a_line(
    workspace: Path, toolkit: Command, tiny: Path, words: tuple[str, ...], said: str
) -> None:
    result = toolkit("predict", tiny, *words)
    assert result.status in (1, 2)
    assert said in result.err
    assert result.err.count("error:") == 1
    assert list(workspace.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(
    workspace: Path, toolkit: Command, frames: Path, tiny: Path
) -> None:
    (workspace / "out").mkdir()
    (workspace / "out" / "mine.txt").write_text("mine")
    result = toolkit("predict", tiny, frames, "--device", "cpu", "--out", workspace / "out")
    assert result.status == 1
    assert "name another with --out" in result.err
    assert [path.name for path in (workspace / "out").iterdir()] == ["mine.txt"]


def test_lines_are_drawn_outside_of_small_objects() -> None:
    pixels = np.full((288, 384), 100, np.uint8)
    times = enlargement(*pixels.shape)
    box = np.array([[200.0, 150.0, 206.0, 162.0]])
    page = draw(pixels, box, np.array([0.9]), np.array([1]), {1: "person"})
    assert times >= 3
    x1, y1, x2, y2 = (box[0] * times).astype(int).tolist()
    assert (page[y1:y2, x1:x2] == 100).all()
    assert not (page[y1 - 4 : y2 + 4, x1 - 4 : x2 + 4] == 100).all()


def test_no_words_cover_a_box_or_other_words() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 360, (40, 2)) * [1, 0.75]
    boxes = np.hstack([low, low + rng.uniform(4, 30, (40, 2))])
    canvas = np.zeros((864, 1152, 3), np.uint8)
    corners = (boxes * 3).astype(np.int64)
    from toolkit.sources.drawing import _Words

    words = _Words(canvas, corners)
    words.write(np.arange(40), np.linspace(1, 0.3, 40), np.ones(40, np.int64), {1: "person"})
    places = words.room.taken[40:]
    assert len(places) > 3
    for i, place in enumerate(places):
        others = np.vstack([corners, np.delete(places, i, axis=0)])
        assert not ((place[:2] < others[:, 2:]) & (others[:, :2] < place[2:])).all(1).any()


def test_broken_pictures_end_a_folder_with_the_flag_that_goes_on_without_them(
    workspace: Path, toolkit: Command, frames: Path, tiny: Path
) -> None:
    (workspace / "mixed").mkdir()
    for n, picture in enumerate(sorted(frames.glob("*.jpg"))[:2]):
        shutil.copy(picture, workspace / "mixed" / f"{n}.jpg")
    (workspace / "mixed" / "broken.jpg").write_bytes(b"no picture")
    words = ("predict", tiny, "mixed", "--device", "cpu", "--no-patches", "--out", "found")
    refused = toolkit(*words)
    assert refused.status == 1
    flag = refused.err.strip().split("this once: ")[1].split()
    assert not (workspace / "found").exists()
    assert toolkit(*words, *flag).status == 0
    assert (workspace / "found" / "predictions.json").is_file()


def test_what_describes_a_dataset_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [a]")
    with pytest.raises(ToolkitError, match=r"describes a dataset.*toolkit dataset prepare .*data\.yaml"):
        open_source(str(tmp_path / "data.yaml"))
