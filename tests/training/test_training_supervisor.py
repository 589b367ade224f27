"""What the supervisor does about each way in which a trainer can end, with a stand-in for the trainer."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import plan

from toolkit.errors import ToolkitError
from toolkit.training import checkpoints, events
from toolkit.training.health import Action, Rule, Rules
from toolkit.training.rundir import Exit, RunFiles, read_summary, state_of
from toolkit.training.supervisor import Policy, supervise

FAKE = Path(__file__).parent / "fake_trainer.py"
NAN = {"skipped_in_a_row": 12, "loss": {"box": None}}


class Stage:
    """A run whose trainer plays the given lives, the last of them again and again."""

    def __init__(self, run: Path, data: Path) -> None:
        self.files, self.data = RunFiles(run), data
        run.mkdir()

    def play(self, *lives: dict[str, Any], rules: Rules | None = None, **policy: Any) -> None:
        (self.files.run / "script.jsonl").write_text("\n".join(map(json.dumps, lives)))
        planned = plan(self.data, self.files.run)
        planned = replace(planned, rules=rules or Rules())
        patience = Policy(look=0.05, poll=0.02, stop_grace=5.0, **policy)
        supervise(planned, patience, [sys.executable, str(FAKE), str(self.files.run)])

    @property
    def orders(self) -> list[dict[str, Any]]:
        """What each life was told."""
        return [json.loads(line) for line in (self.files.run / "lives.jsonl").read_text().splitlines()]

    @property
    def actions(self) -> list[str]:
        """What was done, in order."""
        return [event.action for event in events.read(self.files.events)]


@pytest.fixture
def stage(tmp_path: Path, data: Path) -> Stage:
    return Stage(tmp_path / "run", data)


def test_a_trainer_that_finishes_is_left_alone(stage: Stage) -> None:
    stage.play({"exit": 0})
    assert stage.actions == []
    assert state_of(stage.files) == "finished"


def test_an_error_that_trying_again_would_not_mend_is_not_tried_again(stage: Stage) -> None:
    with pytest.raises(ToolkitError, match="was given up"):
        stage.play({"exit": int(Exit.FAILED)})
    assert len(stage.orders) == 1
    assert state_of(stage.files) == "failed"


def test_a_trainer_that_never_gets_to_a_batch_is_given_up_after_three_lives(stage: Stage) -> None:
    with pytest.raises(ToolkitError, match="3 times at the same place"):
        stage.play({"exit": -9})
    assert stage.actions == ["restarted", "restarted", "given up"]


def test_faults_at_different_places_are_restarted_until_the_hour_is_used_up(stage: Stage) -> None:
    lives = [{"exit": 70, "place": [0, n]} for n in range(9)]
    with pytest.raises(ToolkitError, match="4 restarts within the hour"):
        stage.play(*lives, restarts=4)
    assert stage.actions == ["restarted"] * 4 + ["given up"]
    assert all(order["skip"] == [] for order in stage.orders)


def test_the_next_trainer_is_ready_when_a_silent_one_counts_as_hanging(stage: Stage) -> None:
    hang = Rules(hang=Rule(4.0, Action.RESTART))
    stage.play({"silent": 60, "exit": 0}, {"exit": 0}, rules=hang, hang_grace=0.0)
    assert stage.actions == ["restarted"]
    assert [order["spare"] for order in stage.orders] == [False, True]


def test_a_trainer_that_was_only_slow_is_left_alone(stage: Stage) -> None:
    stage.play({"silent": 5, "exit": 0}, rules=Rules(hang=Rule(8.0, Action.RESTART)))
    assert (stage.files.run / "spare").exists()
    assert (stage.actions, len(stage.orders)) == ([], 1)
    assert not stage.files.is_locked()


def test_a_batch_that_fails_twice_is_skipped_and_stays_skipped_after_a_resume(stage: Stage) -> None:
    fault = {"exit": -11, "place": [3, 14]}
    stage.play(fault, fault, {"exit": 0})
    assert [order["skip"] for order in stage.orders] == [[], [], [[3, 14]]]
    stage.play({"exit": 0})
    assert stage.orders[-1]["skip"] == [[3, 14]]
    summary = read_summary(stage.files)
    assert summary is not None
    assert summary.skipped_batches == 1


def test_nan_in_every_batch_goes_back_further_each_time_with_half_the_rate_then_gives_up(
    stage: Stage,
) -> None:
    for batches in (10, 20, 30):
        checkpoints.write(stage.files.checkpoints, batches, {"batches_done": batches})
    with pytest.raises(ToolkitError, match="3 roll-backs within the hour"):
        stage.play({"seconds": 30, "exit": 0, "beat": NAN})
    assert [order["lr_scale"] for order in stage.orders] == [1.0, 0.5, 0.25, 0.125]
    assert [order["before"] for order in stage.orders] == [None, None, 30, 30]
    assert stage.actions[0] == "rolled back to batch 30, learning rate x 0.5"
    assert stage.actions[1] == "rolled back to batch 20, learning rate x 0.25"
    assert stage.actions[-1] == "given up"


def test_weights_that_are_not_finite_roll_back_too(stage: Stage) -> None:
    stage.play({"exit": int(Exit.ROLL_BACK)}, {"exit": 0})
    assert stage.actions == ["rolled back to the start, learning rate x 0.5"]


def test_a_hang_that_ignores_the_request_to_end_is_killed(stage: Stage) -> None:
    frozen = {"exit": -19, "place": [1, 1]}  # SIGSTOP
    rules = Rules(hang=Rule(1.0, Action.RESTART))
    stage.play(frozen, {"exit": 0}, rules=rules, hang_grace=0.2)
    (event,) = events.read(stage.files.events)
    assert (event.kind, event.action, event.epoch, event.batch) == ("hang", "restarted", 1, 1)


def test_too_many_bad_frames_end_the_run_with_the_reason(stage: Stage) -> None:
    beat = {"frames": 1000, "bad_frames": 30}
    with pytest.raises(ToolkitError, match="30 of 1,000 frames did not decode"):
        stage.play({"seconds": 30, "exit": 0, "beat": beat})
    summary = read_summary(stage.files)
    assert summary is not None
    assert summary.bad_frames == 30
    assert summary.reason.startswith("bad_frames")


def test_a_rule_that_only_notes_does_so_once_while_it_applies(stage: Stage) -> None:
    stage.play({"seconds": 0.5, "exit": 0}, rules=Rules(disk=Rule(1e9, Action.NOTE)))
    assert [(e.kind, e.action) for e in events.read(stage.files.events)] == [("disk", "noted")]


def test_a_trainer_that_was_told_to_stop_by_somebody_else_is_not_started_again(stage: Stage) -> None:
    with pytest.raises(ToolkitError, match="was stopped") as stopped:
        stage.play({"exit": int(Exit.STOPPED)})
    assert stopped.value.exit_code == Exit.STOPPED
    assert state_of(stage.files) == "stopped"
