"""The challenge's scores during training: in results.csv, equal to `toolkit evaluate`, choosing best.pt."""

from __future__ import annotations

import csv
import itertools
import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs
from tiny_run import HELPERS, MODEL, Trace, plan, train
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import nms

from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.errors import ToolkitError
from toolkit.evaluation.scoring import score
from toolkit.evaluation.truth import GroundTruth
from toolkit.prediction import PredictionOptions, predict
from toolkit.runs import checkpoints, events, heartbeat, reproduction
from toolkit.runs.folder import RunFiles
from toolkit.runs.plan import SelectBy, TrainingPlan
from toolkit.settings import Saving
from toolkit.supervision import status
from toolkit.supervision.recovery import Patience
from toolkit.supervision.supervisor import supervise
from toolkit.training import deciding, estimate
from toolkit.training.options import Options
from toolkit.training.state import load_state
from toolkit.training.trainer import SCORES, LTDv2Trainer, Validator
from toolkit.workspace import Workspace


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as file:
        return list(csv.DictReader(file))


def learning(data: Path, run: Path, **arguments: Any) -> TrainingPlan:
    """A run whose model learns to find something."""
    planned = plan(
        data, run, imgsz=192, epochs=12, nbs=8, optimizer="AdamW", lr0=0.02, mosaic=0.0, close_mosaic=0
    )
    return replace(planned, **arguments)


def test_an_epochs_scores_are_those_of_toolkit_evaluate(data: Path, tmp_path: Path) -> None:
    """Those of the last epoch, whose weights are last.pt."""
    planned = learning(data, tmp_path / "run", score_every=4)
    trace = train(planned)
    assert trace.trainer is not None
    options = PredictionOptions(device="cpu", patches=False)
    found = predict(planned.run / "weights" / "last.pt", data, "val", options)
    scores = score(GroundTruth.read(data / "Valid.json"), found).as_dict()
    assert scores["global_map_50"] > 0.02
    for key in SCORES:
        assert trace.trainer.metrics[key] == pytest.approx(scores[key], abs=1e-6), key
    table = rows(planned.run)
    assert [math.isnan(float(row["global_map_50"])) for row in table] == [True, True, True, False] * 3
    assert float(table[-1]["global_map_50"]) == pytest.approx(scores["global_map_50"], abs=1e-6)


@dataclass
class Made:
    """A run of three epochs with scores that were made up, and the weights of each epoch."""

    plan: TrainingPlan
    scores: tuple[float, ...]
    by_epoch: dict[int, bytes] = field(default_factory=dict)

    def train(self, stop_after: int | None = None) -> Trace:
        return train(self.plan, stop_after=stop_after, prepare=self._prepare)

    def best(self) -> int:
        """The epoch that best.pt is of."""
        best = weights(RunFiles(self.plan.run).best)
        return next(epoch for epoch, found in self.by_epoch.items() if found == best)

    def _prepare(self, trainer: LTDv2Trainer) -> None:
        trainer.score_epoch = lambda: dict.fromkeys(SCORES, self.scores[trainer.epoch])  # type: ignore[method-assign]
        trainer.add_callback("on_model_save", lambda t: self.by_epoch.update({t.epoch: weights(t.last)}))


def weights(path: Path) -> bytes:
    loaded = torch.load(path, weights_only=False)
    state = (loaded["ema"] or loaded["model"]).state_dict()
    return b"".join(value.half().numpy().tobytes() for value in state.values())


def made(data: Path, run: Path, *scores: float, select_by: SelectBy = "global_map_bal") -> Made:
    return Made(replace(plan(data, run), score_every=1, select_by=select_by), scores)


def test_best_pt_is_of_the_epoch_with_the_best_score_whatever_its_fitness(data: Path, tmp_path: Path) -> None:
    """Ultralytics' fitness is 0 in all three epochs, and takes the last of equals."""
    by_fitness = made(data, tmp_path / "fitness", 0.1, 0.5, 0.2, select_by="fitness")
    by_fitness.train()
    assert by_fitness.best() == 2
    by_score = made(data, tmp_path / "score", 0.1, 0.5, 0.2)
    by_score.train()
    assert by_score.best() == 1
    assert [row["global_map_bal"] for row in rows(by_score.plan.run)] == ["0.1", "0.5", "0.2"]
    assert status.Watch(RunFiles(by_score.plan.run)).look().global_map_bal == 0.5
    assert status.describe(RunFiles(by_score.plan.run)).global_map_bal == 0.5


def test_an_undefined_score_is_worse_than_a_negative_one(data: Path, tmp_path: Path) -> None:
    run = made(data, tmp_path / "run", math.nan, -0.2, math.nan)
    run.train()
    assert run.best() == 1


def test_an_undefined_score_is_a_number_among_the_results_that_a_checkpoint_carries(
    data: Path, tmp_path: Path
) -> None:
    run = made(data, tmp_path / "run", math.nan, 0.2, math.nan)
    run.train()
    results = torch.load(run.plan.run / "weights" / "last.pt", weights_only=False)["train_results"]
    assert results["global_map_bal"] == pytest.approx(list(run.scores), nan_ok=True)


def test_early_stopping_waits_for_the_score(data: Path, tmp_path: Path) -> None:
    run = made(data, tmp_path / "run", 0.5, 0.4, 0.6)
    run.plan = replace(run.plan, arguments={**run.plan.arguments, "patience": 1})
    run.train()
    assert run.best() == 0
    assert len(rows(run.plan.run)) == 2


@pytest.mark.parametrize("cut", [7, 12, 15])
def test_a_resumed_run_keeps_the_best_score(data: Path, tmp_path: Path, cut: int) -> None:
    """Cut in the second epoch, at its end before it is scored, and in the third."""
    run = made(data, tmp_path / "run", 0.5, 0.4, 0.3)
    assert run.train(stop_after=cut).stopped
    run.train()
    assert run.best() == 0
    assert len(rows(run.plan.run)) == 3


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_best_score(data: Path, tmp_path: Path) -> None:
    """best.pt carries results.csv up to its own epoch."""
    planned = learning(
        data, tmp_path / "run", score_every=1, select_by="global_map_bal", saving=Saving(batches=4)
    )
    worker = [sys.executable, str(HELPERS / "faulty_worker.py"), str(planned.run)]
    supervise(planned, Patience(look=0.2), [*worker, "kill:5:2", "kill:10:0"])
    files = RunFiles(planned.run)
    assert [event.action for event in events.read(files.events)] == ["restarted", "restarted"]
    scores = [float(row["global_map_bal"]) for row in rows(planned.run)]
    assert len(scores) == 12
    results = torch.load(files.best, weights_only=False)["train_results"]
    best = [float(value) for value in results["global_map_bal"]]
    assert best[-1] == np.nanmax(scores)
    assert best == pytest.approx(scores[: len(best)], nan_ok=True)


def test_a_stop_during_scoring_scores_the_epoch_after_the_resume(data: Path, tmp_path: Path) -> None:
    run = made(data, tmp_path / "run", 0.5, 0.6, 0.3)

    def stop_in_second(trainer: LTDv2Trainer) -> None:
        run._prepare(trainer)
        scores = trainer.score_epoch

        def stop_or_score() -> dict[str, float]:
            if trainer.epoch == 1:
                trainer.stop_wanted = lambda: True
                trainer._on_validation_batch()
            return scores()

        trainer.score_epoch = stop_or_score  # type: ignore[method-assign]

    assert train(run.plan, prepare=stop_in_second).stopped
    state = checkpoints.newest(RunFiles(run.plan.run).checkpoints)[0]
    assert state is not None
    assert load_state(state)["best_fitness"] == 0.5
    run.train()
    assert run.best() == 1


def test_scoring_is_a_sign_of_life(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule about hangs sees a beat for each batch that is predicted."""
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.0)
    phases: list[tuple[str, bool]] = []
    scoring = False
    written = heartbeat.write

    def write(files: RunFiles, beat: heartbeat.Beat) -> None:
        phases.append((beat.phase, scoring))
        written(files, beat)

    def watch(trainer: LTDv2Trainer) -> None:
        score_epoch = trainer.score_epoch

        def watched() -> dict[str, float]:
            nonlocal scoring
            scoring = True
            found = score_epoch()
            scoring = False
            return found

        trainer.score_epoch = watched  # type: ignore[method-assign]

    monkeypatch.setattr(heartbeat, "write", write)
    trace = train(replace(plan(data, tmp_path / "run", epochs=1), score_every=1), prepare=watch)
    assert ("validating", True) in phases
    assert trace.trainer is not None
    assert trace.trainer._scoring_seconds > 0


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    write_sample(tmp_path / "data", train=4, val=24, test=2, seed=0, scene="street")
    prepare(tmp_path / "data")
    return Workspace(tmp_path)


def test_selecting_by_the_score_scores_every_epoch_and_a_dry_run_says_so(place: Workspace) -> None:
    options = Options(device="cpu", preset="smoke", select_by="global_map_bal", model=str(MODEL), imgsz=64)
    planned = deciding.plan(place, options)
    assert (planned.score_every, planned.select_by) == (1, "global_map_bal")
    lines = list(estimate.dry_run(place, options).lines())
    assert "best.pt      by global_map_bal, every epoch scored" in lines
    planned = deciding.plan(place, Options(device="cpu", preset="smoke", score_every=5))
    assert (planned.score_every, planned.select_by) == (5, "fitness")


def test_what_cannot_choose_is_refused(place: Workspace, tmp_path: Path) -> None:
    wanted = Options(device="cpu", preset="smoke", select_by="global_map_bal")
    with pytest.raises(ToolkitError, match=r"score in every epoch.*--score-every 3"):
        deciding.plan(place, structs.replace(wanted, score_every=3))
    with pytest.raises(ToolkitError, match=r"of all months; found validation on feb alone"):
        deciding.plan(place, structs.replace(wanted, val_months="feb"))
    write_sample(tmp_path / "few", train=4, val=2, test=2, seed=0, scene="street")
    prepare(tmp_path / "few")
    with pytest.raises(ToolkitError, match=r"no true boxes in .*aug.*Valid\.json"):
        deciding.plan(place, structs.replace(wanted, data=tmp_path / "few"))
    assert not place.runs.exists()


def test_a_resumed_run_is_scored_as_it_was_begun(place: Workspace) -> None:
    begun = deciding.plan(place, Options(device="cpu", preset="smoke", name="one", score_every=2))
    reproduction.record(begun)
    assert deciding.plan_resume(place, Options(score_every=2)) == begun
    assert deciding.plan_again(place, reproduction.here(begun).plan, Options()).score_every == 2
    with pytest.raises(ToolkitError, match=r"another --score-every; found .* 3; expected --score-every 2"):
        deciding.plan_resume(place, Options(score_every=3))
    with pytest.raises(ToolkitError, match=r"another --select-by.*start a new run"):
        deciding.plan_resume(place, Options(select_by="global_map_bal"))


def test_validation_finds_what_ultralytics_finds_and_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks at the clock of a suspended machine an hour passes."""
    torch.manual_seed(0)
    raw = torch.cat([torch.rand(3, 4, 50) * 100 + 50, torch.rand(3, 4, 50)], 1)
    args = get_cfg(overrides={"conf": 0.001, "iou": 0.6, "max_det": 20})
    ours, theirs = (kind(save_dir=tmp_path, args=args) for kind in (Validator, DetectionValidator))
    ours.end2end = theirs.end2end = False
    expected = theirs.postprocess(raw.clone())
    hours = itertools.count(0, 3600)
    monkeypatch.setattr(nms.time, "time", lambda: next(hours))
    found = ours.postprocess(raw.clone())
    assert [len(each["conf"]) for each in found] == [20, 20, 20]
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in other)
    assert len(theirs.postprocess(raw.clone())[2]["conf"]) == 0
