"""Training on a part of the frames, on rare ones more often, on both splits: exact when cut, and said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from run_page import unnamed
from tiny_run import MODEL, plan, train

from toolkit.dataset import index
from toolkit.dataset.frequency import Frequency, Paste
from toolkit.errors import ToolkitError
from toolkit.evaluation import cells
from toolkit.evaluation.scoring import score
from toolkit.evaluation.truth import GroundTruth
from toolkit.ltdv2 import ANNOTATIONS
from toolkit.prediction import PredictionOptions, predict
from toolkit.runs import reproduction
from toolkit.runs.plan import TrainingPlan
from toolkit.soup import checkpoints_of
from toolkit.supervision import supervisor
from toolkit.training import deciding, estimate
from toolkit.training.options import Options
from toolkit.weights import load_model
from toolkit.workspace import Workspace


def rare(data: Path, run: Path) -> TrainingPlan:
    often, paste = Frequency.parse(every=2, repeat="bicycle=3"), Paste.parse("bicycle=0.5")
    return replace(plan(data, run), frequency=often, paste=paste)


@pytest.mark.parametrize("cut", [2, 7])
def test_a_run_that_is_cut_goes_on_with_the_frames_that_were_left(
    data: Path, tmp_path: Path, cut: int
) -> None:
    whole = train(rare(data, tmp_path / "whole"))
    first = train(rare(data, tmp_path / "cut"), stop_after=cut)
    assert first.stopped
    assert first.steps + train(rare(data, tmp_path / "cut")).steps == whole.steps
    epochs = {step.epoch: [s.images for s in whole.steps if s.epoch == step.epoch] for step in whole.steps}
    assert epochs[0] != epochs[1]


def test_the_last_run_trains_on_both_splits_and_keeps_its_last_epoch(data: Path, tmp_path: Path) -> None:
    planned = replace(plan(data, tmp_path / "run", save_period=2), train_on=("train", "val"))
    trace = train(planned)
    frames = index.load(data)
    names = {name.decode() for split in ("train", "val") for name in frames.split(split).file_names}
    assert {name for step in trace.steps for name in step.images} == names
    weights = planned.run / "weights"
    best, last = (load_model(weights / f"{name}.pt", torch.device("cpu")) for name in ("best", "last"))
    for one, other in zip(best.parameters(), last.parameters(), strict=True):
        assert one.equal(other)
    assert {path.name for path in weights.glob("*.pt")} == {"best.pt", "last.pt", "epoch2.pt"}
    assert not unnamed(planned.run), "docs/runs.md names every file of a run"
    assert weights / "epoch2.pt" in checkpoints_of(planned.run), "a soup finds it"
    assert "optimizer" not in torch.load(weights / "epoch2.pt", weights_only=False) or (
        torch.load(weights / "epoch2.pt", weights_only=False)["optimizer"] is None
    )


def test_best_pt_may_be_that_of_well_filled_cells(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "LEAST", 2)
    planned = replace(plan(data, tmp_path / "run"), score_every=1, select_by="cells")
    trace = train(planned)
    assert trace.trainer is not None
    lines = [line.split(",") for line in (planned.run / "results.csv").read_text().splitlines()]
    column = lines[0].index(cells.NAME)
    values = [float(line[column]) for line in lines[1:]]
    assert trace.trainer.best_fitness == pytest.approx(max(values), rel=1e-5)
    truth = GroundTruth.read(data / ANNOTATIONS["val"])
    found = predict(planned.run / "weights" / "best.pt", data, "val", PredictionOptions(device="cpu"))
    assert cells.mean(truth, score(truth, found)) == pytest.approx(max(values), rel=1e-5)


def options(data: Path, **more: object) -> Options:
    return Options(data=data, model=str(MODEL), preset="smoke", imgsz=64, device="cpu", name="one", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"every": 0}, "every 0th frame"),
        ({"repeat": "boat=2"}, "repeats no class"),
        ({"paste": "boat=0.2"}, "pastes nothing"),
        ({"train_on": "val"}, "no training on val; expected train, or train,val"),
        ({"train_on": "train,val", "select_by": "cells"}, "nothing is left to choose by"),
        ({"select_by": "cells"}, "nothing to choose by.*true boxes"),
        ({"select_by": "cells", "score_every": 2}, "needs a score in every epoch"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_begins(
    data: Path, place: Workspace, more: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "LEAST", 10_000)
    with pytest.raises(ToolkitError, match=message):
        deciding.plan(place, options(data, **more))
    assert not place.runs.exists()


def test_a_resumed_run_keeps_its_frequency_and_its_splits(data: Path, place: Workspace) -> None:
    begun = deciding.plan(
        place, options(data, every=2, repeat="bicycle=3", paste="bicycle=0.5", train_on="train,val")
    )
    reproduction.record(begun)
    same = deciding.plan_resume(place, Options(every=2, repeat="bicycle=3", train_on="train,val"))
    assert (same.frequency, same.train_on) == (begun.frequency, ("train", "val"))
    assert "bicycle 3 times" in reproduction.read(begun.run / "weights").images
    for other in (Options(every=3), Options(repeat="bicycle=3")):
        with pytest.raises(ToolkitError, match="shows its frames as often as it was started to"):
            deciding.plan_resume(place, other)
    with pytest.raises(ToolkitError, match=r"begun with another --paste; found bicycle=0\.4"):
        deciding.plan_resume(place, Options(paste="bicycle=0.4"))
    with pytest.raises(ToolkitError, match="begun with another --train-on"):
        deciding.plan_resume(place, Options(train_on="train"))


def test_a_dry_run_and_a_start_say_what_an_epoch_shows(
    data: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = estimate.dry_run(place, options(data, every=4, train_on="train,val", save_period=1))
    lines = "\n".join(planned.lines())
    assert "one frame in 4 of each clip (flag)" in lines
    assert "nothing is left to choose by" in lines
    assert "of the last epoch, validated every 4 epochs and after the last" in lines
    assert planned.images["train"] == 13, "a quarter of 44 and 8"
    monkeypatch.setattr(supervisor, "supervise", lambda plan, **_: plan.run)
    supervisor.train(planned.plan)
    said = capsys.readouterr().err
    assert "13 samples an epoch" in said
    assert "validated and saved every 4 epochs and after the last" in said.replace("\n", " ")
    assert "best.pt is that of the last epoch" in said.replace("\n", " ")


def test_a_month_without_a_class_is_said_where_the_balanced_score_chooses() -> None:
    ids = np.array([20210111101010101, 20210211101010101])
    found = cells.counts(ids, np.array([0, 1, 3]), np.array([1, 1, 3]))
    assert found[("jan", 1)] == 1
    assert found[("feb", 3)] == 1
    assert cells.lacking(found).endswith("motorcycle in jan, mar, apr, may, jun, jul, aug")
    assert "vehicle" not in cells.lacking(found), "a class that no month has says nothing about one"
