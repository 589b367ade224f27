"""A run whose epochs show a part of the frames is validated and saved once a pass, and at its end."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import Trace, plan, train

from toolkit.dataset.frequency import Frequency
from toolkit.runs import results
from toolkit.runs.folder import RunFiles
from toolkit.runs.heartbeat import Beat
from toolkit.runs.plan import TrainingPlan
from toolkit.supervision import status
from toolkit.training.passes import Passes
from toolkit.training.trainer import SCORES, LTDv2Trainer
from toolkit.training.weights import fitness_of


def thinned(data: Path, run: Path, every: int, **arguments: Any) -> TrainingPlan:
    return replace(plan(data, run, **arguments), frequency=Frequency(every))


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as file:
        return list(csv.DictReader(file))


def weights(path: Path) -> dict[str, torch.Tensor]:
    loaded = torch.load(path, weights_only=False)
    state: dict[str, torch.Tensor] = (loaded["ema"] or loaded["model"]).state_dict()
    return state


class Watched:
    """The epochs, counted from 1, that a training validated and saved, with scores that are made up."""

    def __init__(self, score: Any = None) -> None:
        self.validated: list[int] = []
        self.saved: list[int] = []
        self.score = score

    def prepare(self, trainer: LTDv2Trainer) -> None:
        trainer.add_callback("on_val_start", lambda _: self.validated.append(trainer.epoch + 1))
        trainer.add_callback("on_model_save", lambda _: self.saved.append(trainer.epoch + 1))
        if self.score is not None:
            trainer.score_epoch = lambda: dict.fromkeys(SCORES, self.score(trainer.epoch + 1))  # type: ignore[method-assign]

    def train(self, planned: TrainingPlan) -> Trace:
        return train(planned, prepare=self.prepare)


@pytest.mark.parametrize(
    ("every", "epochs", "arguments", "validated", "saved"),
    [
        (2, 5, {"save_period": 3}, [2, 4, 5], [2, 3, 4, 5]),
        (3, 2, {}, [2], [2]),
        (2, 4, {"val": False}, [4], [2, 4]),
        (2, 3, {"save": False}, [2, 3], [3]),
        (1, 2, {}, [1, 2], [1, 2]),
    ],
    ids=["kept", "shorter than a pass", "unvalidated", "unsaved", "all frames"],
)
def test_what_an_epoch_ends_with(
    data: Path,
    tmp_path: Path,
    every: int,
    epochs: int,
    arguments: dict[str, Any],
    validated: list[int],
    saved: list[int],
) -> None:
    planned = thinned(data, tmp_path / "run", every, epochs=epochs, **arguments)
    watched = Watched()
    trace = watched.train(planned)
    assert {step.epoch for step in trace.steps} == set(range(epochs))
    assert (watched.validated, watched.saved) == (validated, saved)
    kept = {f"epoch{n}.pt" for n in range(1, epochs + 1) if n == arguments.get("save_period")}
    names = {path.name for path in (planned.run / "weights").glob("*.pt")}
    assert names == {"best.pt", "last.pt", *kept}
    told = [row["epoch"] for row in rows(planned.run) if math.isfinite(float(row["metrics/mAP50(B)"]))]
    if arguments.get("val", True):
        assert told == [str(epoch) for epoch in validated]


def test_rows_without_scores_have_their_columns_and_nobody_reads_them_as_scores(
    data: Path, tmp_path: Path
) -> None:
    planned = replace(thinned(data, tmp_path / "run", 2, epochs=5), score_every=2)
    watched = Watched(lambda epoch: epoch / 10)
    watched.train(planned)
    table = rows(planned.run)
    assert [row["global_map_bal"] for row in table] == ["NaN", "0.2", "NaN", "0.4", "0.5"]
    assert [row["val/box_loss"] == "NaN" for row in table] == [True, False, True, False, False]
    assert all(math.isfinite(float(row["train/box_loss"])) for row in table)
    shown = status.Watch(RunFiles(planned.run)).look()
    assert (shown.map50, shown.global_map_bal) == (0.0, 0.5)
    assert "mAP@0.5 is 0 after each of 3 validated epochs" in results.nothing_learned(
        planned.run / "results.csv"
    )
    carried = torch.load(planned.run / "weights" / "last.pt", weights_only=False)["train_results"]
    assert carried["global_map_bal"] == pytest.approx([math.nan, 0.2, math.nan, 0.4, 0.5], nan_ok=True)


def test_the_last_epoch_is_scored_though_none_was_due(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Watched().train(replace(thinned(data, tmp_path / "run", 2, epochs=3), score_every=5))
    said = capsys.readouterr().err
    assert "epoch 3: global_map_50" in said
    assert "epoch 2: global_map_50" not in said


def test_patience_counts_validations_and_best_pt_is_of_the_best_of_them(data: Path, tmp_path: Path) -> None:
    planned = thinned(data, tmp_path / "run", 2, epochs=30, patience=2)
    watched = Watched(lambda epoch: 1 / epoch)
    trace = watched.train(replace(planned, score_every=1, select_by="global_map_bal"))
    assert trace.steps[-1].epoch == 5
    assert watched.validated == [2, 4, 6]
    assert fitness_of(planned.run / "weights" / "best.pt") == 0.5


@pytest.mark.parametrize("cut", [1, 3, 4, 6, 8])
def test_cut_anywhere_it_ends_as_the_run_that_was_not(data: Path, tmp_path: Path, cut: int) -> None:
    """Three batches an epoch: within a pass, between its epochs, at its end."""
    whole, planned = (
        replace(thinned(data, tmp_path / name, 2, epochs=3), score_every=1) for name in ("whole", "cut")
    )
    undisturbed = train(whole)
    first = train(planned, stop_after=cut)
    assert first.stopped
    assert first.steps + train(planned).steps == undisturbed.steps
    for name in ("last.pt", "best.pt"):
        kept = weights(planned.run / "weights" / name)
        for key, value in weights(whole.run / "weights" / name).items():
            assert torch.equal(value, kept[key]), (name, key)
    one, other = ([list(row.items())[2:] for row in rows(run)] for run in (whole.run, planned.run))
    assert one == other


def test_a_time_that_is_over_within_a_pass_ends_with_a_validation(data: Path, tmp_path: Path) -> None:
    planned, watched = thinned(data, tmp_path / "run", 4, time=1e-9), Watched()
    watched.train(planned)
    assert (watched.validated, watched.saved) == ([1], [1])
    assert RunFiles(planned.run).best.is_file()


def test_a_time_that_is_over_just_behind_an_epoch_that_is_not_validated_goes_on_to_one_that_is(
    data: Path, tmp_path: Path
) -> None:
    planned, watched = thinned(data, tmp_path / "run", 4, time=1.0), Watched()

    def prepare(trainer: LTDv2Trainer) -> None:
        watched.prepare(trainer)
        save_metrics = trainer.save_metrics

        def slowly(metrics: dict[str, float]) -> None:
            save_metrics(metrics)
            trainer.train_time_start -= 3601 if trainer.epoch == 1 else 0

        trainer.save_metrics = slowly  # type: ignore[method-assign]

    trace = train(planned, prepare=prepare)
    assert (watched.validated, watched.saved) == ([3], [3])
    assert [step.epoch for step in trace.steps] == [0, 0, 1, 1], "an update more, which has no batch's end"
    assert fitness_of(RunFiles(planned.run).best) is not None


def test_a_run_on_both_splits_keeps_the_last_epoch_of_a_pass_that_did_not_end(
    data: Path, tmp_path: Path
) -> None:
    planned = replace(thinned(data, tmp_path / "run", 2, epochs=3), train_on=("train", "val"))
    train(planned)
    best, last = (weights(planned.run / "weights" / f"{name}.pt") for name in ("best", "last"))
    assert all(value.equal(last[name]) for name, value in best.items())


@given(every=st.integers(1, 12), epochs=st.integers(1, 60), data=st.data())
def test_the_validations_that_are_left_are_those_that_will_be(
    every: int, epochs: int, data: st.DataObject
) -> None:
    passes, begun = Passes(every), data.draw(st.integers(0, epochs - 1))
    due = [epoch for epoch in range(epochs) if passes.ends_with(epoch) or epoch + 1 == epochs]
    assert Frequency(every).validations(epochs) == len(due)
    beat = Beat(
        pid=1,
        count=1,
        phase="training",
        epoch=begun,
        epochs=epochs,
        step_seconds=(1.0, 1.0, 1.0),
        validation_seconds=2.0,
        validated_every=every,
    )
    left = beat.seconds_left()
    assert left is not None
    assert left[1] == 2.0 * sum(epoch >= begun for epoch in due)
