"""Weights that cannot serve are refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import Command

from toolkit.errors import ToolkitError
from toolkit.prediction import load_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    weights = tmp_path / "best.pt"
    weights.write_bytes(content)
    with pytest.raises(ToolkitError, match=r"best\.pt is no YOLO checkpoint"):
        load_model(weights, CPU)


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "best.pt")
    with pytest.raises(ToolkitError, match="is no YOLO checkpoint"):
        load_model(tmp_path / "best.pt", CPU)


def test_a_detector_of_other_classes(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", ch=3, nc=80, verbose=False)
    torch.save({"model": model}, tmp_path / "coco.pt")
    with pytest.raises(
        ToolkitError, match=r"other classes.*and 74 more.*0 person, 1 bicycle, 2 motorcycle, 3 vehicle"
    ):
        load_model(tmp_path / "coco.pt", CPU)


def test_a_model_that_is_no_detector(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import ClassificationModel

    model = ClassificationModel("yolov8n-cls.yaml", nc=4, verbose=False)
    torch.save({"model": model}, tmp_path / "cls.pt")
    with pytest.raises(ToolkitError, match=r"no detector.*ClassificationModel"):
        load_model(tmp_path / "cls.pt", CPU)


@pytest.mark.parametrize("command", [("evaluate",), ("predict", "--split", "val")])
def test_a_run_stands_for_its_best_weights(
    workspace: Path, toolkit: Command, command: tuple[str, ...]
) -> None:
    best = workspace / "runs" / "a" / "weights" / "best.pt"
    best.parent.mkdir(parents=True)
    best.write_text("junk")
    assert "runs/a/weights/best.pt is no YOLO checkpoint" in toolkit(command[0], "a", *command[1:]).err


@pytest.mark.parametrize("command", [("evaluate",), ("predict", "--split", "val")])
def test_a_file_that_is_no_checkpoint_is_named_before_missing_data(
    workspace: Path, toolkit: Command, command: tuple[str, ...]
) -> None:
    (workspace / "junk.pt").write_text("junk")
    result = toolkit(command[0], "junk.pt", *command[1:])
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "junk.pt is no YOLO checkpoint" in result.err
