"""The README's first command, and what a person may do next in the same workspace."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from demo_run import Demo
from run_page import unnamed

pytestmark = pytest.mark.slow


def test_nothing_asked_for_the_network(demo: Demo) -> None:
    assert demo.network == ""


def test_the_zip_holds_one_file_with_every_frame_of_the_test_split(demo: Demo) -> None:
    with zipfile.ZipFile(demo.run / "submission.zip") as archive:
        assert archive.namelist() == ["predictions.json"]
        predictions = json.loads(archive.read("predictions.json"))
    wanted = {
        str(image["id"]) for image in json.loads((demo.data / "TestNoLabels.json").read_text())["images"]
    }
    assert wanted <= set(predictions)
    assert sum(len(predictions[i]["boxes"]) for i in wanted) > 0


def test_the_page_of_a_run_names_every_file_that_is_left(demo: Demo) -> None:
    assert (demo.run / "plan.json").is_file()
    assert not unnamed(demo.run)


def test_the_loss_falls(demo: Demo) -> None:
    with (demo.run / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    total = [sum(float(v) for k, v in row.items() if k.startswith("train/")) for row in rows]
    assert total[-1] < 0.9 * total[0]


def test_training_beats_no_training(demo: Demo, tmp_path: Path) -> None:
    import torch
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils import DEFAULT_CFG_DICT

    from submission.validate import LABELS

    model = DetectionModel("yolov8n.yaml", ch=1, nc=4, verbose=False)
    model.names = {label - 1: name for label, name in LABELS.items()}
    untrained = tmp_path / "untrained.pt"
    torch.save({"model": model, "train_args": {**DEFAULT_CFG_DICT, "imgsz": 192}}, untrained)
    demo.toolkit("evaluate", str(untrained), "--data", str(demo.data), "--out", str(tmp_path / "scores"))
    before = json.loads((tmp_path / "scores" / "scores.json").read_text())["global_map_50"]
    after = json.loads((demo.run / "evaluation" / "scores.json").read_text())["global_map_50"]
    assert after > before + 0.1


def test_the_patched_route_served_the_training(demo: Demo) -> None:
    assert "gemm" in demo.output


def test_best_pt_alone_is_enough_for_evaluate(demo: Demo) -> None:
    first = json.loads((demo.run / "evaluation" / "scores.json").read_text())
    again = json.loads(demo.toolkit("evaluate", "best.pt", "--json").stdout)
    assert again["global_map_bal"] == pytest.approx(first["global_map_bal"], abs=1e-6)


def test_submit_without_a_file_takes_the_newest_predictions_and_says_so(demo: Demo, tmp_path: Path) -> None:
    before = (demo.run / "submission.zip").read_bytes()
    result = demo.toolkit("submit", "--zip")
    assert "predictions-test.json" in result.stderr + result.stdout
    assert (demo.run / "submission.zip").read_bytes() == before


def test_plain_ultralytics_loads_the_checkpoint_and_agrees(demo: Demo, tmp_path: Path) -> None:
    """Plain: a process in which neither this package nor its patches can be imported."""
    import torch

    import patches
    from toolkit.weights import load_model

    script = """
import sys
sys.modules.update(dict.fromkeys(("toolkit", "patches", "submission")))
import torch
from ultralytics import YOLO
model = YOLO(sys.argv[1]).model.fuse().eval()
with torch.inference_mode():
    torch.save(model(torch.load(sys.argv[2]))[0], sys.argv[3])
"""
    images, answer = tmp_path / "images.pt", tmp_path / "answer.pt"
    torch.manual_seed(0)
    torch.save(torch.rand(2, 1, 192, 256), images)
    weights = demo.run / "weights" / "best.pt"
    subprocess.run(
        [sys.executable, "-c", script, weights, images, answer],
        env={**demo.environment, "YOLO_OFFLINE": "true", "PYTHONPATH": ""},
        cwd=tmp_path,
        check=True,
    )
    with patches.enabled("cpu", route="gemm"), torch.inference_mode():
        ours = load_model(weights, torch.device("cpu"))(torch.load(images))[0]
    torch.testing.assert_close(ours, torch.load(answer), rtol=1e-4, atol=1e-4)
