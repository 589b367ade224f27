"""Weights that cannot serve are refused with the reason."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command

from toolkit.errors import ToolkitError
from toolkit.training.model import check_model
from toolkit.weights import image_size, input_channels, load_model

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


TINY = Path(__file__).parents[1] / "helpers" / "tiny.yaml"
NAMES = {0: "person", 1: "bicycle", 2: "motorcycle", 3: "vehicle"}


def tiny(**attributes: Any) -> Any:
    """A detector of the challenge's classes with random weights."""
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model = DetectionModel(str(TINY), ch=1, nc=4, verbose=False)
    model.names = NAMES
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def saved(path: Path, model: Any, **others: Any) -> Path:
    torch.save({"model": model, **others}, path)
    return path


def zipped(path: Path, *members: str) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, b"")
    return path.read_bytes()


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"", "an empty file"),
        (bytes(5000), "zero bytes, as a power cut"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n  <html lang='en'>", "a web page"),
        (struct.pack("<Q", 10) + b'{"a":1234}data', "a safetensors file"),
        (b"\x08\x07\x12\x07pytorch", "an ONNX model"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"GGUF\x03", "a GGUF model"),
        (b"PK\x03\x04 cut off", "a zip archive that is cut off"),
        (b'{"boxes": []}', "text"),
        (b"\xff\xd8\xff\xe0", "a JPEG picture"),
        (b"\x80\x04K\x01.", "a pickle"),
        (b"\x01\x02\x03\x04\x05", "bytes of no known kind"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_as_what_it_is(
    tmp_path: Path, content: bytes, kind: str
) -> None:
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(ToolkitError, match=rf"best\.pt is no YOLO checkpoint; found {kind}"):
        load_model(tmp_path / "best.pt", CPU)


@pytest.mark.parametrize("part", [0.001, 0.01, 0.1, 0.5, 0.999])
def test_a_checkpoint_that_is_cut_off_anywhere_is_called_so(tmp_path: Path, part: float) -> None:
    saved(tmp_path / "best.pt", tiny())
    whole = (tmp_path / "best.pt").read_bytes()
    (tmp_path / "best.pt").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ToolkitError, match=r"a zip archive that is cut off or damaged; .*copy or download"):
        load_model(tmp_path / "best.pt", CPU)


def test_archives_are_told_apart(tmp_path: Path) -> None:
    zipped(tmp_path / "frames.pt", "frames/a.jpg")
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)), tmp_path / "script.pt")
    saved(tmp_path / "best.pth", tiny())
    torch.save(tiny().state_dict(), tmp_path / "state.pt")
    for name, kind in {
        "frames.pt": "a zip archive of frames/a.jpg",
        "script.pt": "a TorchScript archive",
        "best.pth": r"a PyTorch file whose name ends in \.pth",
        "state.pt": "a PyTorch file without a model, with model.0.conv.weight",
    }.items():
        with pytest.raises(ToolkitError, match=f"no YOLO checkpoint; found {kind}"):
            load_model(tmp_path / name, CPU)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["model.0.conv.weight", "model.0.bn.running_var"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, name: str, bad: float) -> None:
    model = tiny()
    model.state_dict()[name].flatten()[0] = bad
    with pytest.raises(ToolkitError, match=rf"no finite numbers; found NaN or infinity in 1 of .*{name}"):
        load_model(saved(tmp_path / "best.pt", model), CPU)


def test_weights_beyond_half_precision_become_infinite_and_are_refused(tmp_path: Path) -> None:
    model = tiny()
    model.state_dict()["model.0.conv.weight"].flatten()[0] = 1e6
    with pytest.raises(ToolkitError, match="no finite numbers"):
        load_model(saved(tmp_path / "best.pt", model.half()), CPU)


def test_a_checkpoint_of_an_older_ultralytics(tmp_path: Path) -> None:
    """Its YAML says `ch`, its names are a list, its image size has two sides."""
    model = tiny(names=list(NAMES.values()))
    model.yaml["ch"] = model.yaml.pop("channels")
    model = load_model(saved(tmp_path / "best.pt", model, train_args={"imgsz": [320, 192]}), CPU)
    assert (input_channels(model), image_size(model)) == (1, 320)


def test_a_head_for_more_classes_than_it_has_names_for(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel(str(TINY), ch=1, nc=7, verbose=False)
    model.names = NAMES
    with pytest.raises(ToolkitError, match="other classes; found a head for 7 classes"):
        load_model(saved(tmp_path / "best.pt", model), CPU)


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_an_ordinary_checkpoint_is_opened_as_data_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = []
    load = torch.load

    def spy(*arguments: Any, **options: Any) -> Any:
        loaded.append(options.get("weights_only"))
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", spy)
    load_model(saved(tmp_path / "best.pt", tiny(), date="today", train_args={"imgsz": 64}), CPU)
    assert loaded == [True]
    assert capsys.readouterr().err == ""


def test_a_checkpoint_that_would_run_code_is_named_before_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = saved(tmp_path / "bad.pt", tiny(), extra=Payload(tmp_path / "made"))
    load_model(weights, CPU)
    said = capsys.readouterr().err
    assert f"{weights} holds types that cannot be opened as data alone" in said.replace("\n", " ")
    assert "mkdir" in said


OTHER_TASKS = {
    "yolov8n-pose.yaml": "Pose, for pose",
    "yolo11n-obb.yaml": "OBB, for oriented boxes",
    "yolo11n-seg.yaml": "Segment, for segmentation",
    "yolo11n-cls.yaml": "Classify, for classification",
    "rtdetr-l.yaml": "RTDETRDecoder, for RT-DETR",
    "yolov8s-world.yaml": "WorldDetect, for an open vocabulary",
    "yolov8s-worldv2.yaml": "WorldDetect, for an open vocabulary",
    "yoloe-11s.yaml": "YOLOEDetect, for an open vocabulary",
    "yoloe-11s-seg.yaml": "YOLOESegment.*, for (segmentation|an open vocabulary)",
    "yolo26n-depth.yaml": "Depth, for depth",
    "yolo26n-sem.yaml": "SemanticSegment, for semantic segmentation",
    "yolo26n-pose.yaml": "Pose26, for pose",
}


@pytest.mark.parametrize("model", OTHER_TASKS)
def test_an_architecture_of_another_task_is_refused(model: str) -> None:
    with pytest.raises(ToolkitError, match=f"{model[:-5]} is no detector; found a head {OTHER_TASKS[model]}"):
        check_model(model)


@pytest.mark.parametrize(
    "model",
    ["yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n"],
)
def test_detectors_are_not(model: str) -> None:
    assert check_model(f"{model}.yaml") == f"{model}.yaml"


def test_a_checkpoint_as_pytorch_wrote_them_before_1_6(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": tiny()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    load_model(tmp_path / "old.pt", CPU)
    assert "an old pickle" in capsys.readouterr().err


def test_an_architecture_that_ends_in_no_head(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "nc: 4\nbackbone:\n  - [-1, 1, Conv, [8, 3, 2]]\nhead:\n  - [-1, 1, Conv, [8]]\n"
    )
    with pytest.raises(ToolkitError, match=r"own\.yaml is no detector; found a head Conv"):
        check_model(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    "command",
    [
        ("train", "--dry-run", "--device", "cpu", "--model"),
        ("evaluate",),
        ("predict", "--split", "val"),
        ("bench", "train", "--device", "cpu", "--model"),
        ("bench", "conv", "--device", "cpu", "--model"),
    ],
)
def test_weights_of_another_task_are_refused_by_every_verb(
    workspace: Path, toolkit: Command, command: tuple[str, ...]
) -> None:
    from ultralytics.nn.tasks import PoseModel

    from toolkit.dataset.sample import write_sample

    write_sample(workspace / "data", train=2, val=2, test=2, seed=0, scene="street")
    weights = saved(
        workspace / "pose.pt", PoseModel("yolov8n-pose.yaml", nc=4, data_kpt_shape=(17, 3), verbose=False)
    )
    result = toolkit(*command, weights)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert f"{weights} is no detector; found a head Pose, for pose" in result.err


@pytest.mark.parametrize("command", [("evaluate",), ("predict", "--split", "val")])
def test_weights_that_diverged_write_nothing(
    workspace: Path, toolkit: Command, command: tuple[str, ...]
) -> None:
    model = tiny()
    model.state_dict()["model.0.conv.weight"].fill_(math.nan)
    saved(workspace / "nan.pt", model)
    result = toolkit(command[0], "nan.pt", *command[1:])
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "no finite numbers" in result.err
    assert [path.name for path in workspace.iterdir()] == ["nan.pt"]
