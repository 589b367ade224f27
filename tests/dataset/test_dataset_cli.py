from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from submission import Detections, archive
from toolkit.cli import app
from toolkit.dataset.archive import ZipFrames
from toolkit.dataset.export import export_yolo
from toolkit.dataset.index import DatasetIndex, load
from toolkit.dataset.prepare import prepare
from toolkit.errors import ToolkitError

runner = CliRunner()

TINY = str(Path(__file__).parents[1] / "helpers" / "tiny.yaml")


def damage(folder: Path, row: int) -> str:
    """Overwrite the middle of a frame of the training split; its name."""
    split = load(folder).split("train")
    members = split.frames().members  # type: ignore[attr-defined]
    with (folder / "frames.zip").open("r+b") as file:
        file.seek(int(members.offsets[row]) + int(members.sizes[row]) // 2)
        file.write(b"\xab" * 64)
    return split.file_names[row].decode()


def test_sample_prepare_and_verify_work_from_the_command_line(tmp_path: Path) -> None:
    folder = str(tmp_path / "d")
    counts = ["--train", "16", "--val", "8", "--test", "9"]
    assert runner.invoke(app, ["dataset", "sample", folder, *counts]).exit_code == 0
    done = runner.invoke(app, ["dataset", "prepare", folder, "--json"])
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert result["images"] == {"train": 16, "val": 8, "test": 9}
    assert result["unchanged"] is False
    done = runner.invoke(app, ["dataset", "prepare", folder])
    assert "nothing to do" in done.stderr
    done = runner.invoke(app, ["dataset", "verify", folder, "--deep", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == {"frames": 33, "deep": True, "bad": []}


def test_verify_lists_every_bad_frame_and_fails(copy: Path) -> None:
    prepare(copy)
    bad = sorted([damage(copy, 3), damage(copy, 30)])
    assert runner.invoke(app, ["dataset", "verify", str(copy)]).exit_code == 0
    done = runner.invoke(app, ["dataset", "verify", str(copy), "--deep", "--json"])
    assert isinstance(done.exception, ToolkitError)
    assert "2 of 90 frames" in done.exception.line()
    found = json.loads(done.stdout)["bad"]
    assert sorted(b["frame"] for b in found) == bad
    assert all("CRC" in b["reason"] for b in found)


def test_verify_deep_reads_every_frame_once(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = ZipFrames._pread
    monkeypatch.setattr(
        ZipFrames, "_pread", lambda self, row, size: read.append(row) or real(self, row, size)
    )
    assert runner.invoke(app, ["dataset", "verify", str(sample), "--deep"]).exit_code == 0
    assert len(read) == 48 + 24 + 18


def test_verify_without_deep_notices_a_shortened_archive(copy: Path) -> None:
    prepare(copy)
    data = (copy / "frames.zip").read_bytes()
    (copy / "frames.zip").write_bytes(data[: len(data) * 2 // 3])
    done = runner.invoke(app, ["dataset", "verify", str(copy)])
    assert isinstance(done.exception, ToolkitError)
    assert len(done.stdout.splitlines()) > 10


def test_verify_without_deep_names_empty_members_and_claims_no_decoding(copy: Path) -> None:
    prepare(copy)
    with zipfile.ZipFile(copy / "frames.zip") as file:
        members = {name: file.read(name) for name in file.namelist()}
    done = runner.invoke(app, ["dataset", "verify", str(copy)])
    assert "none decoded" in done.stderr, done.stderr
    empty = next(name for name in members if name.endswith(".jpg"))
    with zipfile.ZipFile(copy / "frames.zip", "w") as file:
        for name, content in members.items():
            file.writestr(name, b"" if name == empty else content)
    prepare(copy)
    done = runner.invoke(app, ["dataset", "verify", str(copy), "--json"])
    assert isinstance(done.exception, ToolkitError)
    (bad,) = json.loads(done.stdout)["bad"]
    assert bad["reason"] == f"frame {empty} is cut off in frames.zip; found an empty file"


def test_export_links_frames_of_a_folder_under_unique_names(copy: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(copy / "frames.zip") as file:
        file.extractall(copy)
    (copy / "frames.zip").unlink()
    prepare(copy)
    written = export_yolo(load(copy), tmp_path / "yolo")
    content = yaml.safe_load(written.read_text())
    assert content["names"] == {0: "person", 1: "bicycle", 2: "motorcycle", 3: "vehicle"}
    links = sorted((tmp_path / "yolo/images/train").iterdir())
    assert len(links) == 48
    assert all(link.is_symlink() and link.resolve().is_file() for link in links)
    text = (tmp_path / "yolo/labels/train" / links[0].name).with_suffix(".txt").read_text()
    assert all(len(line.split()) == 5 for line in text.splitlines())
    export_yolo(load(copy), tmp_path / "yolo")


def test_export_from_an_archive_says_that_links_cannot_point_into_it(
    index: DatasetIndex, tmp_path: Path
) -> None:
    with pytest.raises(ToolkitError, match="--extract"):
        export_yolo(index, tmp_path / "yolo")
    assert not (tmp_path / "yolo").exists()
    export_yolo(index, tmp_path / "yolo", extract=True)
    assert len(list((tmp_path / "yolo/images/val").iterdir())) == 24
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("x")
    with pytest.raises(ToolkitError, match="not empty"):
        export_yolo(index, tmp_path / "other", extract=True)


@pytest.mark.parametrize("verb", ["download", "sample", "prepare", "verify", "cache", "stats", "export"])
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    done = runner.invoke(app, ["dataset", verb, "--help"])
    assert done.exit_code == 0
    assert f"toolkit dataset {verb}" in done.stdout


def test_predictions_of_an_export_come_back_as_a_submission(sample: Path, tmp_path: Path) -> None:
    """Ultralytics writes the stem of a frame's file as image_id, or a number where it is all digits."""
    index = load(sample)
    export_yolo(index, tmp_path / "yolo", extract=True)
    images = sorted((tmp_path / "yolo" / "images" / "test").iterdir())
    found = [
        {"image_id": image.stem, "category_id": 1, "bbox": [n, 5, 20, 30], "score": 0.5}
        for n, image in enumerate(images)
    ]
    (tmp_path / "predictions.json").write_text(json.dumps(found))
    template = str(sample / "TestNoLabels.json")
    options = ["--from-coco", "--data", str(sample), "--template", template, "--zip"]
    result = runner.invoke(app, ["submit", str(tmp_path / "predictions.json"), *options])
    assert result.exit_code == 0, result.output
    split = index.split("test")
    stems = {
        name.decode().removeprefix("frames/").replace("/", "-").removesuffix(".jpg"): number
        for name, number in zip(split.file_names.tolist(), split.image_ids.tolist(), strict=True)
    }
    made = Detections.loads(archive.unpack(tmp_path / "submission.zip")[1])
    boxes = dict(zip(made.image_ids.tolist(), made.boxes.tolist(), strict=True))
    assert boxes == {stems[image.stem]: [n, 5, n + 20, 35] for n, image in enumerate(images)}


def test_verify_names_frames_that_the_decoder_warns_of_and_does_not_fail(copy: Path) -> None:
    with zipfile.ZipFile(copy / "frames.zip") as file:
        file.extractall(copy)
    (copy / "frames.zip").unlink()
    prepare(copy)
    frames = load(copy).split("val").frames()
    path = copy / frames.name(3)
    path.write_bytes(path.read_bytes()[:9000] + b"\xff\xd9")
    done = runner.invoke(app, ["dataset", "verify", str(copy), "--deep", "--json"])
    assert done.exit_code == 0
    (warned,) = json.loads(done.stdout)["warned"]
    assert (warned["split"], warned["frame"]) == ("val", frames.name(3))
    assert "premature end of data segment" in warned["reason"]
    assert "warned of 1 of 90 frames" in done.stderr


def test_advice_fits_what_the_frames_come_from(copy: Path) -> None:
    prepare(copy)
    damage(copy, 3)
    line = str(runner.invoke(app, ["dataset", "verify", str(copy), "--deep"]).exception)
    assert f"`toolkit dataset download {copy}` compares frames.zip with the hub's hash" in line
    stat = (copy / "frames.zip").stat()
    entry = {"size": stat.st_size, "modified": stat.st_mtime_ns, "digest": "0" * 64}
    (copy / "download.json").write_text(json.dumps({"frames.zip": entry}))
    line = str(runner.invoke(app, ["dataset", "verify", str(copy), "--deep"]).exception)
    assert "is the hub's own, so another download brings the same" in line
    with zipfile.ZipFile(copy / "frames.zip") as file:
        for name in file.namelist():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(b"")
    (copy / "frames.zip").unlink()
    prepare(copy)
    line = str(runner.invoke(app, ["dataset", "verify", str(copy)]).exception)
    assert "90 of 90 frames" in line
    assert f"unpack or copy these files into {copy / 'frames'} again" in line


@pytest.mark.parametrize("channels", [1, 3])
def test_plain_ultralytics_validates_a_model_of_the_toolkit_on_an_export(
    index: DatasetIndex, tmp_path: Path, channels: int
) -> None:
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel(TINY, ch=channels, nc=4, verbose=False)
    model.names = {0: "person", 1: "bicycle", 2: "motorcycle", 3: "vehicle"}
    torch.save({"model": model}, tmp_path / "best.pt")
    out = tmp_path / "yolo"
    words = ["dataset", "export", str(index.data), "--extract", "--out", str(out)]
    assert runner.invoke(app, [*words, *(["--channels", "3"] if channels == 3 else [])]).exit_code == 0
    assert yaml.safe_load((out / "data.yaml").read_text())["channels"] == channels
    results = YOLO(tmp_path / "best.pt").val(
        data=str(out / "data.yaml"), device="cpu", imgsz=96, workers=0, plots=False, project=str(tmp_path)
    )
    assert 0 <= results.box.map50 <= 1
