"""Faults in real processes: killed, frozen, stopped, broken. What is left is a run that went on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import HELPERS, Trace, plan, train

from toolkit.errors import ToolkitError
from toolkit.runs import events, reproduction
from toolkit.runs.folder import Exit, RunFiles, read_summary, state_of
from toolkit.runs.health import Action, Rule, Rules
from toolkit.settings import Saving
from toolkit.supervision.recovery import Patience
from toolkit.supervision.supervisor import supervise
from toolkit.training.state import save_state

pytestmark = pytest.mark.slow

WORKER = HELPERS / "faulty_worker.py"
HANG = Rules(hang=Rule(8.0, Action.RESTART))


def command(run: Path, *faults: str) -> list[str]:
    return [sys.executable, str(WORKER), str(run), *faults]


def trace(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]


def wait_for(what: str, condition: Callable[[], bool], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def battered(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose trainer is killed, frozen, and falls over one batch again and again."""
    planned = replace(
        plan(data, tmp_path_factory.mktemp("runs") / "battered", saving=Saving(batches=2)), rules=HANG
    )
    faults = ("kill:0:3", "freeze:1:2", "raise:2:1!")
    supervise(planned, Patience(look=0.2, hang_grace=0.5), command(planned.run, *faults))
    return planned.run


def happened(run: Path) -> list[tuple[str, str, int, int]]:
    return [(e.kind, e.action, e.epoch, e.batch) for e in events.read(RunFiles(run).events)]


def test_a_trainer_killed_in_mid_epoch_is_started_again(battered: Path) -> None:
    assert happened(battered)[0] == ("trainer died", "restarted", 0, 3)


def test_a_frozen_trainer_is_found_and_started_again(battered: Path) -> None:
    assert happened(battered)[1] == ("hang", "restarted", 1, 2)


def test_a_batch_that_fails_twice_is_recorded_and_left_out(battered: Path) -> None:
    assert happened(battered)[2:] == [
        ("trainer died", "restarted", 2, 1),
        ("trainer died", "restarted without this batch", 2, 1),
    ]
    assert (2, 1) not in {(step["epoch"], step["batch"]) for step in trace(battered)}


def test_the_battered_run_finishes_with_weights_and_a_true_summary(battered: Path) -> None:
    files = RunFiles(battered)
    summary = read_summary(files)
    assert summary is not None
    assert (summary.state, summary.epochs, summary.restarts, summary.skipped_batches) == ("finished", 3, 4, 1)
    assert summary.events == {"trainer died": 3, "hang": 1}
    assert files.best.is_file()
    assert not files.checkpoints.exists()


def test_no_more_than_the_interval_is_trained_twice_and_nothing_is_missed(battered: Path) -> None:
    steps = trace(battered)
    places = [(step["epoch"], step["batch"]) for step in steps]
    assert set(places) == {(e, b) for e in range(3) for b in range(6)} - {(2, 1)}
    assert len(places) - len(set(places)) <= 4 * 2
    seen: dict[tuple[int, int], dict[str, Any]] = {}
    for place, step in zip(places, steps, strict=True):
        first = seen.setdefault(place, step)
        assert step["images"] == first["images"]
        assert step["losses"] == pytest.approx(first["losses"], abs=1e-6)


def test_it_trained_what_an_undisturbed_run_trains(battered: Path, data: Path, tmp_path: Path) -> None:
    whole = train(plan(data, tmp_path / "whole"))
    expected = {(step.epoch, step.batch): step for step in whole.steps}
    for step in trace(battered):
        if (step["epoch"], step["batch"]) < (2, 1):
            same = expected[step["epoch"], step["batch"]]
            assert step["images"] == list(same.images)
            assert step["losses"] == pytest.approx(same.losses, abs=1e-6)


def test_the_summary_of_a_refused_run_quotes_the_error(data: Path, tmp_path: Path) -> None:
    planned = plan(data, tmp_path / "run")
    save_state(RunFiles(planned.run).checkpoints, 8, {"format": 99})
    with pytest.raises(ToolkitError, match="was given up"):
        supervise(planned)
    summary = read_summary(RunFiles(planned.run))
    assert summary is not None
    assert "found format 99" in summary.reason
    assert [e.detail for e in events.read(RunFiles(planned.run).events)] == [summary.reason]


def test_a_disk_that_answers_slowly_is_noted_and_waited_for(data: Path, tmp_path: Path) -> None:
    planned = plan(data, tmp_path / "slow", epochs=2)
    rules = Rules(starving=Rule(0.5, Action.NOTE, seconds=4.0))
    supervise(replace(planned, rules=rules), Patience(look=0.2), command(planned.run, "slow_disk"))
    assert [(e.kind, e.action) for e in events.read(RunFiles(planned.run).events)] == [("starving", "noted")]
    assert state_of(RunFiles(planned.run)) == "finished"
    assert [(step["epoch"], step["batch"]) for step in trace(planned.run)] == [
        (epoch, batch) for epoch in range(2) for batch in range(6)
    ]


@dataclass
class Interrupted:
    """A run that was stopped with SIGTERM, begun again, and lost its supervisor to a kill -9."""

    run: Path
    stopped: subprocess.CompletedProcess[str]
    seconds_to_stop: float
    refused: ToolkitError
    state_while_running: str
    state_after_stop: str
    batches_at_kill: int
    last: Trace


def start(run: Path) -> subprocess.Popen[str]:
    script = HELPERS / "start_run.py"
    return subprocess.Popen([sys.executable, script, run, "slow:*!"], stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def interrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    planned = plan(data, tmp_path_factory.mktemp("runs") / "interrupted")
    files = RunFiles(planned.run)
    planned.run.mkdir()
    reproduction.record(planned)

    first = start(planned.run)
    wait_for("three batches", lambda: (planned.run / "trace.jsonl").exists() and len(trace(planned.run)) >= 3)
    state_while_running = state_of(files)
    with pytest.raises(ToolkitError) as refused:
        supervise(planned)
    asked = time.monotonic()
    first.terminate()
    _, errors = first.communicate(timeout=60)
    seconds = time.monotonic() - asked
    stopped = subprocess.CompletedProcess("", first.returncode, "", errors)
    state_after_stop = state_of(files)

    second = start(planned.run)
    done = len(trace(planned.run))
    wait_for("three batches more", lambda: len(trace(planned.run)) >= done + 3)
    second.kill()
    second.communicate()
    wait_for("the trainer to notice", lambda: not files.is_locked())
    done = len(trace(planned.run))
    last = train(planned)
    return Interrupted(
        planned.run, stopped, seconds, refused.value, state_while_running, state_after_stop, done, last
    )


def test_sigterm_saves_and_ends_with_a_status_of_its_own(interrupted: Interrupted) -> None:
    assert interrupted.stopped.returncode == Exit.STOPPED == 75
    assert "saved after" in interrupted.stopped.stderr
    assert "toolkit train --resume --name interrupted" in interrupted.stopped.stderr
    assert interrupted.state_after_stop == "stopped"


def test_sigterm_is_answered_within_the_ten_seconds_that_docker_gives(interrupted: Interrupted) -> None:
    assert interrupted.seconds_to_stop < 10


def test_a_second_train_on_the_same_run_refuses(interrupted: Interrupted) -> None:
    assert interrupted.state_while_running == "running"
    assert "is being trained already" in interrupted.refused.line()
    assert "toolkit monitor interrupted" in interrupted.refused.line()


def test_a_trainer_without_supervisor_saves_and_the_run_goes_on_at_the_next_batch(
    interrupted: Interrupted, data: Path, tmp_path: Path
) -> None:
    done = trace(interrupted.run)
    assert len(done) == interrupted.batches_at_kill
    places = [(step["epoch"], step["batch"]) for step in done]
    places += [(step.epoch, step.batch) for step in interrupted.last.steps]
    assert places == [(e, b) for e in range(3) for b in range(6)]
    assert not interrupted.last.stopped
