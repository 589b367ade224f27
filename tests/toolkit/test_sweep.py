"""A grid of settings on kept outputs: the same boxes as predicting with them, the best with its gain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command import Command
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import plan, train
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import non_max_suppression

from submission import Detections
from submission.validate import LABELS
from toolkit import sweep
from toolkit.dataset import index
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.errors import ToolkitError
from toolkit.evaluation.context import Context
from toolkit.evaluation.truth import GroundTruth
from toolkit.ltdv2 import ANNOTATIONS
from toolkit.prediction import PredictionOptions, predict
from toolkit.soup import _write

OPTIONS = PredictionOptions(device="cpu", conf=0.0005, iou=0.6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "ltdv2"
    write_sample(folder, train=32, val=24, test=2, seed=4, scene="street")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def weights(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    planned = plan(data, tmp_path_factory.mktemp("runs") / "one", epochs=2, lr0=0.05, warmup_epochs=0.0)
    train(planned)
    return planned.run / "weights" / "best.pt"


def swept(
    weights: Path, data: Path, names: tuple[str, ...], options: PredictionOptions = OPTIONS
) -> sweep.Sweep:
    answers = data / ANNOTATIONS["val"]
    truth = GroundTruth.read(answers)
    context = Context.read(answers, truth.image_ids)
    return sweep.sweep(weights, index.load(data), "val", truth, context, options, names)


def test_every_point_of_the_grid_is_what_predicting_with_it_gives(
    weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "CONFS", (0.002,))
    monkeypatch.setattr(sweep, "IOUS", (0.3, 0.8))
    monkeypatch.setattr(sweep, "SIZES", (1.0, 1.5))
    kept: dict[tuple[float, float, int], Detections] = {}
    score = sweep._tried
    monkeypatch.setattr(
        sweep, "_tried", lambda at, found, scores: [kept.update({at: found}), score(at, found, scores)][1]
    )
    found = swept(weights, data, ("conf", "iou", "imgsz"))
    assert len(found.tried) == 2 * 3 * 2 == len(kept)
    for (conf, iou, imgsz), detections in kept.items():
        alone = predict(weights, data, "val", replace(OPTIONS, conf=conf, iou=iou, imgsz=imgsz))
        np.testing.assert_array_equal(detections.offsets, alone.offsets)
        np.testing.assert_array_equal(detections.labels, alone.labels)
        np.testing.assert_allclose(detections.scores, alone.scores, atol=2e-5)
        np.testing.assert_allclose(detections.boxes, alone.boxes, atol=2e-3)
    values = [sweep._value(each, found.key) for each in found.tried]
    assert values == sorted(values, reverse=True)
    assert found.now.flags == "--conf 0.0005 --iou 0.6 --imgsz 64"
    assert found.gain.change == pytest.approx(values[0] - sweep._value(found.now, found.key), abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95), st.booleans())
def test_suppression_is_ultralytics_own(seed: int, iou: float, agnostic: bool) -> None:
    torch.manual_seed(seed)
    raw = torch.rand(1, 8, 60)
    raw[:, :4] *= 40
    raw[:, 2:4] += 1
    options = {"multi_label": True, "agnostic": agnostic, "max_det": 300, "max_time_img": 1e9}
    (wanted,) = non_max_suppression(raw.clone(), 0.3, iou, **options)
    (candidates,) = non_max_suppression(raw.clone(), 0.3, 1.0, **options)
    torch.testing.assert_close(candidates[sweep.nms(candidates, iou, agnostic)], wanted, rtol=0, atol=0)


def test_of_equal_scores_the_given_settings_are_the_best(
    weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_value", lambda tried, key: 0.25)
    found = swept(weights, data, ("conf",))
    assert found.tried[0] == found.now


def test_what_is_not_swept_stays_as_it_was_given(weights: Path, data: Path) -> None:
    found = swept(weights, data, ("conf",), replace(OPTIONS, iou=0.35, max_det=7))
    assert {each.iou for each in found.tried} == {0.35}
    assert {each.imgsz for each in found.tried} == {64}
    assert {each.conf for each in found.tried} == {0.0005, *sweep.CONFS}
    assert found.now in found.tried


@pytest.mark.parametrize("text", ["", "conf,", "max_det", "conf;iou"])
def test_what_cannot_be_swept_is_named(text: str) -> None:
    with pytest.raises(ToolkitError, match="cannot be swept; expected some of conf,iou,imgsz"):
        sweep.parse(text)


def test_a_head_that_suppresses_nothing_is_refused(data: Path, tmp_path: Path) -> None:
    from ultralytics.cfg import get_cfg

    model = DetectionModel("yolo26n.yaml", ch=1, nc=4, verbose=False)
    model.end2end = True  # Ultralytics leaves such a head its suppression otherwise
    model.names = {label - 1: name for label, name in LABELS.items()}
    model.args = vars(get_cfg(overrides={"imgsz": 64}))
    _write(tmp_path / "none.pt", model)
    with pytest.raises(ToolkitError, match=r"suppresses no overlaps.*sweep conf and imgsz"):
        swept(tmp_path / "none.pt", data, ("iou",))


def test_the_command_prints_the_best_and_its_gain(toolkit: Command, weights: Path, data: Path) -> None:
    result = toolkit("evaluate", weights, "--data", data, "--device", "cpu", "--sweep", "conf,iou")
    assert result.status == 0, result.err
    assert "best of 28 settings" in " ".join(result.out.split())
    said = " ".join(result.err.split())
    assert "best: --conf" in said
    assert ("95 % interval" in said) is not ("no other point of the grid scores more" in said)
    refused = toolkit("evaluate", data / ANNOTATIONS["val"], "--data", data, "--sweep", "conf")
    assert refused.status == 1
    assert "--sweep needs weights" in refused.err


def test_a_sweep_needs_no_place_for_scores(
    data: Path, weights: Path, workspace: Path, toolkit: Command
) -> None:
    (workspace / "notes").write_text("a file, not a folder")
    words = ["--data", data, "--device", "cpu", "--sweep", "conf", "--out", workspace / "notes" / "here"]
    result = toolkit("evaluate", weights, *words)
    assert result.status == 0, result.err
