"""What the one prediction path keeps of what a model says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from command import Command
from torch import nn
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT

from submission import Detections
from toolkit.dataset import index
from toolkit.dataset.annotations import CATEGORIES
from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.sample import write_sample
from toolkit.prediction import PredictionOptions, detect

TINY = Path(__file__).parents[1] / "training" / "tiny.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prediction") / "data"
    write_sample(folder, train=4, val=6, test=6, seed=0)
    index.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def frames(data: Path) -> DatasetIndex:
    return index.load(data)


class Says(nn.Module):
    """A model that finds the same boxes (centre, size, in pixels of its input) in every frame."""

    def __init__(self, *boxes: tuple[float, float, float, float]) -> None:
        super().__init__()
        self.yaml, self.args, self.stride = {"channels": 1}, {"imgsz": 384}, torch.tensor([32.0])
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
    """A checkpoint with random weights."""
    return checkpoint(tmp_path_factory.mktemp("weights") / "tiny.pt", str(TINY))


def checkpoint(path: Path, model: str) -> Path:
    torch.manual_seed(0)
    made = DetectionModel(model, ch=1, nc=4, verbose=False)
    made.names = {label - 1: name for label, name in CATEGORIES.items()}
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
