"""What the one prediction path keeps of what a model says."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Command
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT

from submission import Detections, SubmissionError
from submission.validate import LABELS
from toolkit.dataset import index
from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.errors import ToolkitError
from toolkit.prediction import PredictionOptions, detect, place_in_class, predict

TINY = Path(__file__).parents[1] / "helpers" / "tiny.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prediction") / "data"
    write_sample(folder, train=4, val=6, test=6, seed=0, scene="street")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def frames(data: Path) -> DatasetIndex:
    return index.load(data)


class Says(nn.Module):
    """A model that finds the same boxes (centre, size, in pixels of its input) in every frame."""

    def __init__(self, *boxes: tuple[float, float, float, float]) -> None:
        super().__init__()
        self.args, self.stride, self.stem = {"imgsz": 384}, torch.tensor([32.0]), nn.Conv2d(1, 1, 1)
        scores = torch.linspace(0.9, 0.5, len(boxes))[None] * torch.tensor([1.0, 0, 0, 0])[:, None]
        self.found = nn.Parameter(torch.cat([torch.tensor(boxes).T, scores]), requires_grad=False)

    def forward(self, images: torch.Tensor, augment: bool = False) -> torch.Tensor:
        return self.found.expand(len(images), -1, -1).clone()


def test_boxes_are_pixels_of_the_frame_and_end_at_its_border(frames: DatasetIndex) -> None:
    """A frame of 384 x 288 lies in the middle of an input of 416 x 320."""
    model = Says((116, 116, 20, 40), (16, 100, 30, 30))
    found = detect(model, frames, "val", PredictionOptions())  # type: ignore[arg-type]
    assert found.counts.tolist() == [2] * 6
    assert found.boxes[:2].tolist() == [[90, 80, 110, 120], [0, 69, 15, 99]]
    np.testing.assert_array_equal(found.image_ids, frames.split("val").image_ids)


def test_a_box_outside_the_frame_is_dropped_not_flattened(frames: DatasetIndex) -> None:
    model = Says((8, 100, 10, 10), (116, 116, 20, 40), (200, 312, 300, 10))
    found = detect(model, frames, "val", PredictionOptions())  # type: ignore[arg-type]
    assert found.boxes.tolist() == [[90, 80, 110, 120]] * 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("weights") / "tiny.pt", str(TINY))


def checkpoint(path: Path, model: str, bias: float | None = None) -> Path:
    """A checkpoint with random weights; ``bias``, added to the score of everything, makes it blind."""
    torch.manual_seed(0)
    made = DetectionModel(model, ch=1, nc=4, verbose=False)
    for branch in made.model[-1].cv3 if bias is not None else []:
        torch.nn.init.constant_(branch[-1].bias, bias or 0)
    made.names = {label - 1: name for label, name in LABELS.items()}
    torch.save({"model": made, "train_args": {**DEFAULT_CFG_DICT, "imgsz": 192}}, path)
    return path


def test_tta_merges_what_three_sizes_find(workspace: Path, toolkit: Command, data: Path, tiny: Path) -> None:
    words = ("predict", tiny, "--split", "test", "--data", data, "--device", "cpu")
    plain, merged = workspace / "plain.json", workspace / "merged.json"
    assert toolkit(*words, "--out", plain).status == 0
    assert toolkit(*words, "--tta", "--out", merged).status == 0
    one, three = Detections.read(plain), Detections.read(merged)
    assert not np.array_equal(
        one.scores, three.scores
    )  # boxes of random weights are all clipped to the frame
    assert (three.boxes >= 0).all()
    assert (three.boxes[:, 2:] <= [384, 288]).all()


def test_evaluate_with_tta_scores_the_predictions_that_it_writes(
    workspace: Path, toolkit: Command, data: Path, tiny: Path
) -> None:
    words = ("evaluate", tiny, "--data", data, "--device", "cpu")
    assert toolkit(*words, "--tta", "--out", workspace / "three").status == 0
    assert toolkit(*words, "--out", workspace / "one").status == 0
    one, three = (Detections.read(workspace / name / "predictions.json") for name in ("one", "three"))
    assert not np.array_equal(one.boxes, three.boxes)


def test_a_model_without_augmented_prediction_says_so(workspace: Path, toolkit: Command, data: Path) -> None:
    weights = checkpoint(workspace / "end2end.pt", "yolov10n.yaml")
    result = toolkit("predict", weights, "--split", "val", "--data", data, "--device", "cpu", "--tta")
    assert result.status == 1
    assert "no test-time augmentation" in result.err
    assert "leave --tta out" in result.err
    assert not list(workspace.glob("predictions*"))


def spoil(data: Path, split: str, rows: range) -> list[str]:
    """Overwrite frames of a split inside the archive; their names."""
    images = index.load(data).split(split).training.images[rows.start : rows.stop]
    with (data / "frames.zip").open("r+b") as file:
        for image in images:
            file.seek(int(image["offset"]) + 30 + len(image["name"]))
            file.write(bytes(int(image["size"])))
    return [image["name"].decode() for image in images]


@pytest.fixture
def damaged(data: Path, tmp_path: Path) -> Path:
    """A copy of the data, to be damaged without its index noticing."""
    folder = tmp_path / "damaged"
    shutil.copytree(data, folder, copy_function=shutil.copy2)
    return folder


VERBS = [("predict", "--split", "val"), ("evaluate",)]


@pytest.mark.parametrize("verb", VERBS)
def test_unreadable_frames_stop_and_nothing_is_written(
    workspace: Path, toolkit: Command, damaged: Path, tiny: Path, verb: tuple[str, ...]
) -> None:
    names = spoil(damaged, "val", range(6))
    before = set(workspace.iterdir())
    words = (verb[0], tiny, *verb[1:], "--data", damaged, "--device", "cpu", "--out", workspace / "out")
    result = toolkit(*words)
    assert result.status == 1
    assert "at least 6 of 6 frames of val cannot be read" in result.err
    assert names[0] in result.err
    assert set(workspace.iterdir()) == before


@pytest.mark.parametrize("verb", [("evaluate", "--out"), ("predict", "--split", "val", "--out")])
def test_a_result_that_cannot_be_written_is_said_before_a_frame_is_read(
    workspace: Path,
    toolkit: Command,
    data: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: list[str],
) -> None:
    monkeypatch.setattr("toolkit.prediction.detect", lambda *a: pytest.fail("it began to predict"))
    (workspace / "notes").write_text("a file, not a folder")
    target = workspace / "notes" / "here.json"
    result = toolkit(verb[0], tiny, "--data", data, "--device", "cpu", *verb[1:], target)
    assert result.status == 1
    assert f"cannot write in {workspace / 'notes'}" in result.err
    assert (workspace / "notes").read_text() == "a file, not a folder"
    result = toolkit(
        verb[0], tiny, "--data", data, "--device", "cpu", *verb[1:], workspace / ("n" * 300) / "x.json"
    )
    assert result.status == 1
    assert "file name too long" in result.err


def test_the_limit_on_bad_frames_is_the_one_of_training(
    workspace: Path, toolkit: Command, damaged: Path, tiny: Path
) -> None:
    (name,) = spoil(damaged, "val", range(2, 3))
    (workspace / "toolkit.toml").write_text("[health.bad_frames]\nlimit = 0.2\n")
    out = workspace / "out.json"
    words = ("predict", tiny, "--split", "val", "--data", damaged, "--device", "cpu", "--out", out)
    result = toolkit(*words)
    assert result.status == 0
    assert f"1 of 6 frames of val get no boxes: frame {name}" in result.err.replace("\n", " ")
    found = Detections.read(out).select(index.load(damaged).split("val").image_ids)
    assert (found.counts == 0).tolist() == [False, False, True, False, False, False]
    (workspace / "toolkit.toml").write_text("[health.bad_frames]\nlimit = 0.1\n")
    assert toolkit(*words).status == 1


def test_frames_that_the_archive_lacks_count_as_unreadable(data: Path, tmp_path: Path, tiny: Path) -> None:
    folder = tmp_path / "lacking"
    shutil.copytree(data, folder, ignore=shutil.ignore_patterns("prepared", "frames.zip"))
    name = index.load(data).split("val").file_names[0].decode()
    with zipfile.ZipFile(data / "frames.zip") as old, zipfile.ZipFile(folder / "frames.zip", "w") as new:
        for member in set(old.namelist()) - {name}:
            new.writestr(member, old.read(member))
    prepare(folder)
    with pytest.raises(ToolkitError, match=f"1 of 6 frames of val.*frame {name} is not there"):
        predict(tiny, folder, "val", PredictionOptions(device="cpu"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_that_finds_nothing_says_so_and_writes_nothing(
    workspace: Path, toolkit: Command, data: Path, verb: tuple[str, ...]
) -> None:
    weights = checkpoint(workspace / "blind.pt", str(TINY), bias=-50)
    result = toolkit(verb[0], weights, *verb[1:], "--data", data, "--device", "cpu")
    assert (result.status, result.err.count("finds nothing in val")) == (1, 1)
    assert [path.name for path in workspace.iterdir()] == ["blind.pt"]
    found = predict(weights, data, "val", PredictionOptions(device="cpu"), may_find_nothing=True)
    assert (len(found), len(found.boxes)) == (6, 0)


def test_boxes_that_no_evaluator_takes_are_refused(
    monkeypatch: pytest.MonkeyPatch, data: Path, tiny: Path
) -> None:
    """The same rules as for other people's predictions."""

    def detect_oddly(*arguments: object) -> Detections:
        ids = index.load(data).split("val").image_ids
        counts = np.arange(len(ids) + 1).clip(max=1)
        return Detections(ids, counts, np.array([[0.0, 0, 9, 9]]), np.array([90.0]), np.array([53]))

    monkeypatch.setattr("toolkit.prediction.detect", detect_oddly)
    with pytest.raises(SubmissionError, match=r"score 90\.0 and label 53"):
        predict(tiny, data, "val", PredictionOptions(device="cpu"))


def test_suppression_of_overlaps_takes_as_long_as_it_takes(
    monkeypatch: pytest.MonkeyPatch, frames: DatasetIndex
) -> None:
    """A machine that was suspended within a batch: every clock reading is an hour after the one before."""
    from ultralytics.utils import nms

    hours = itertools.count(0, 3600)
    monkeypatch.setattr(nms.time, "time", lambda: next(hours))
    found = detect(Says((116, 116, 20, 40)), frames, "val", PredictionOptions())  # type: ignore[arg-type]
    assert found.counts.tolist() == [1] * 6


def test_suppression_is_torchvisions_in_a_process_that_has_not_imported_it() -> None:
    """Without it Ultralytics compares box by box in Python: 36 times as long for 18,900 boxes a frame."""
    program = """
import torch
from toolkit.prediction import PredictionOptions, suppress
from ultralytics.utils.nms import TorchNMS
TorchNMS.nms = None
output = torch.rand(1, 8, 50)
assert len(suppress(output, PredictionOptions(), end2end=False)[0])
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_boxes_are_counted_by_class(frames: DatasetIndex) -> None:
    """Three persons and a motorcycle of a lower score, all apart: two persons and the motorcycle stay."""
    model = Says((60, 60, 20, 40), (120, 60, 20, 40), (180, 60, 20, 40), (240, 60, 40, 20))
    model.found.data[4:, 3] = torch.tensor([0.0, 0, 0.3, 0])
    found = detect(model, frames, "val", PredictionOptions(max_det=2))  # type: ignore[arg-type]
    assert found.labels[:3].tolist() == [1, 1, 3]
    assert found.counts.tolist() == [3] * 6


def test_a_rider_stays_on_the_machine_unless_suppression_is_agnostic(frames: DatasetIndex) -> None:
    model = Says((60, 60, 20, 40), (60, 62, 20, 40))
    model.found.data[4:, 1] = torch.tensor([0.0, 0.4, 0, 0])
    for agnostic, labels in ((False, [1, 2]), (True, [1])):
        found = detect(model, frames, "val", PredictionOptions(agnostic=agnostic))  # type: ignore[arg-type]
        assert found.labels[: found.offsets[1]].tolist() == labels


def test_places_are_counted_within_each_class() -> None:
    assert place_in_class(torch.tensor([0, 2, 0, 0, 2])).tolist() == [0, 0, 1, 2, 1]
    assert place_in_class(torch.empty(0, dtype=torch.long)).tolist() == []


def test_flags_are_those_that_find_the_same_again() -> None:
    assert PredictionOptions(batch=2, device="cpu", workers=1, patches=False).flags() == ""
    told = PredictionOptions(imgsz=33, conf=0.25, iou=0.5, max_det=7, agnostic=True, tta=True).flags()
    assert told == "--imgsz 33 --conf 0.25 --iou 0.5 --max-det 7 --agnostic --tta"
    assert PredictionOptions(conf=0.1234567).flags() == "--conf 0.1234567", "all digits"
