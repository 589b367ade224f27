"""What the supervisor does about each way in which a trainer can end, with a stand-in for the trainer."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_run import HELPERS, plan

from toolkit.errors import ToolkitError
from toolkit.machine import checks
from toolkit.runs import checkpoints, events, reproduction
from toolkit.runs.folder import Exit, Instructions, RunFiles, read_summary, state_of, write_json
from toolkit.runs.health import Action, Rule, Rules
from toolkit.settings import Restarts
from toolkit.supervision.recovery import Patience
from toolkit.supervision.supervisor import _Supervisor, supervise
from toolkit.training.state import save_state

FAKE = HELPERS / "fake_trainer.py"
NAN = {"skipped_in_a_row": 12, "loss": {"box": None}}


class Stage:
    """A run whose trainer plays the given lives, the last of them again and again."""

    def __init__(self, run: Path, data: Path) -> None:
        self.files, self.data = RunFiles(run), data
        run.mkdir()

    def play(
        self, *lives: dict[str, Any], rules: Rules | None = None, device: str = "cpu", **policy: Any
    ) -> None:
        (self.files.run / "script.jsonl").write_text("\n".join(map(json.dumps, lives)))
        planned = plan(self.data, self.files.run, workers=policy.pop("workers", 0))
        restarts = Restarts(an_hour=policy.pop("restarts", 10))
        planned = replace(planned, rules=rules or Rules(), device=device, restarts=restarts)
        planned = replace(planned, train_on=policy.pop("train_on", ("train",)))
        patience = {"look": 0.05, "poll": 0.02, "stop_grace": 5.0, "pause": 0.01} | policy
        supervise(planned, Patience(**patience), [sys.executable, str(FAKE), str(self.files.run)])

    @property
    def instructions(self) -> list[dict[str, Any]]:
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


def test_a_trainer_that_falls_over_after_it_has_finished_is_not_started_again(stage: Stage) -> None:
    save_state(stage.files.checkpoints, 10, {"images": 10})
    stage.play({"written": 0, "exit": -11})
    assert (stage.actions, len(stage.instructions)) == ([], 1)
    assert state_of(stage.files) == "finished"
    assert not stage.files.checkpoints.exists()


def test_the_checkpoints_outlive_a_supervisor_that_could_not_write_that_the_run_has_finished(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_state(stage.files.checkpoints, 10, {"images": 10})

    def full(*_: Any) -> None:
        raise ToolkitError("No space left on device")

    monkeypatch.setattr("toolkit.runs.summary.write_json", full)
    stage.play({"exit": 0})
    assert checkpoints.newest(stage.files.checkpoints)[0]


def test_an_error_that_trying_again_would_not_mend_is_not_tried_again(stage: Stage) -> None:
    with pytest.raises(ToolkitError, match="was given up"):
        stage.play({"exit": int(Exit.FAILED)})
    assert len(stage.instructions) == 1
    assert state_of(stage.files) == "failed"


def test_a_group_that_has_saved_is_not_waited_for_when_it_is_stopped(stage: Stage) -> None:
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(ToolkitError, match="was stopped") as stopped:
        stage.play({"seconds": 30, "exit": 0, "lingers": 4}, linger=0.2)
    assert stopped.value.exit_code == Exit.STOPPED
    assert not (stage.files.run / "lingered").exists()


def test_a_trainer_that_never_gets_to_a_batch_is_given_up_after_three_lives(stage: Stage) -> None:
    with pytest.raises(ToolkitError, match="3 times at the same place"):
        stage.play({"exit": -9})
    assert stage.actions == ["restarted", "restarted", "given up"]


def test_faults_at_different_places_are_restarted_until_the_hour_is_used_up(stage: Stage) -> None:
    lives = [{"exit": 70, "place": [0, 8 * n, 8]} for n in range(9)]
    with pytest.raises(ToolkitError, match="4 restarts within the hour"):
        stage.play(*lives, restarts=4)
    assert stage.actions == ["restarted"] * 4 + ["given up"]
    assert all(order["skip"] == [] for order in stage.instructions)


def test_the_next_trainer_is_ready_when_a_silent_one_counts_as_hanging(stage: Stage) -> None:
    hang = Rules(hang=Rule(4.0, Action.RESTART))
    stage.play({"silent": 60, "exit": 0}, {"exit": 0}, rules=hang, hang_grace=0.0)
    assert stage.actions == ["restarted"]
    assert [order["spare"] for order in stage.instructions] == [False, True]


def test_a_trainer_that_was_only_slow_is_left_alone(stage: Stage) -> None:
    stage.play({"silent": 5, "exit": 0}, rules=Rules(hang=Rule(8.0, Action.RESTART)))
    assert (stage.files.run / "spare").exists()
    assert (stage.actions, len(stage.instructions)) == ([], 1)
    assert not stage.files.is_locked()


def test_a_batch_that_fails_twice_is_skipped_and_stays_skipped_after_a_resume(stage: Stage) -> None:
    fault = {"exit": -11, "place": [3, 112, 8]}
    with pytest.raises(ToolkitError, match="was given up"):
        stage.play(fault, fault, {"exit": -11, "place": [3, 120, 8]}, restarts=2)
    assert [order["skip"] for order in stage.instructions] == [[], [], [[3, 112, 8]]]
    stage.play({"exit": 0})
    assert stage.instructions[-1]["skip"] == [[3, 112, 8]]
    summary = read_summary(stage.files)
    assert summary is not None
    assert summary.skipped_batches == 1


def test_a_trainer_that_died_is_followed_by_one_whose_faults_name_their_batch(stage: Stage) -> None:
    stage.play({"exit": -11, "place": [3, 112, 8]}, {"exit": 0})
    assert [order["exact"] for order in stage.instructions] == [False, True]


def test_nan_in_every_batch_goes_back_further_each_time_with_half_the_rate_then_gives_up(
    stage: Stage,
) -> None:
    for images in (10, 20, 30):
        save_state(stage.files.checkpoints, images, {"images": images})
    with pytest.raises(ToolkitError, match="3 roll-backs within the hour"):
        stage.play({"seconds": 30, "exit": 0, "beat": NAN})
    assert [order["lr_scale"] for order in stage.instructions] == [1.0, 0.5, 0.25, 0.125]
    assert [order["before"] for order in stage.instructions] == [None, 31, 21, 11]
    assert stage.actions[0] == "rolled back to image 30, learning rate x 0.5"
    assert stage.actions[1] == "rolled back to image 20, learning rate x 0.25"
    assert stage.actions[2] == "rolled back to image 10, learning rate x 0.125"
    assert stage.actions[-1] == "given up"


def test_weights_that_are_not_finite_roll_back_too(stage: Stage) -> None:
    stage.play({"exit": int(Exit.ROLL_BACK)}, {"exit": 0})
    assert stage.actions == ["rolled back to the start, learning rate x 0.5"]


def test_a_stopped_trainer_is_killed_without_the_time_to_answer(stage: Stage) -> None:
    frozen = {"exit": -19, "place": [1, 8, 8]}  # SIGSTOP
    rules = Rules(hang=Rule(1.0, Action.RESTART))
    stage.play(frozen, {"exit": 0}, rules=rules, hang_grace=3600.0)
    (event,) = events.read(stage.files.events)
    assert (event.kind, event.action, event.epoch, event.batch) == ("hang", "restarted", 1, 1)


def test_too_many_bad_frames_end_the_run_with_the_reason(stage: Stage) -> None:
    beat = {"frames": 1000, "bad_frames": 30}
    stage.files.skipped_frames.write_text("{}\n" * 30)
    with pytest.raises(ToolkitError, match="30 of 1,000 frames did not decode"):
        stage.play({"seconds": 30, "exit": 0, "beat": beat})
    summary = read_summary(stage.files)
    assert summary is not None
    assert summary.bad_frames == 30
    assert summary.reason.startswith("bad_frames")


def test_a_rule_that_only_notes_does_so_once_while_it_applies(stage: Stage) -> None:
    stage.play({"seconds": 0.5, "exit": 0}, rules=Rules(disk=Rule(1e9, Action.NOTE)))
    assert [(e.kind, e.action) for e in events.read(stage.files.events)] == [("disk", "noted")]


def test_a_trainer_that_somebody_else_told_to_stop_is_started_again(stage: Stage) -> None:
    stage.play({"exit": int(Exit.STOPPED), "place": [0, 8, 8]}, {"exit": 0})
    (event,) = events.read(stage.files.events)
    assert event.line() == "trainer died at epoch 1, batch 1: asked to end by another process; restarted"


def test_a_silent_trainer_is_not_waited_for_when_the_run_is_to_stop(stage: Stage) -> None:
    def stop_when_silent() -> None:
        while not stage.files.heartbeat.exists():
            time.sleep(0.05)
        time.sleep(3.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_silent, daemon=True).start()
    with pytest.raises(ToolkitError, match="was stopped"):
        stage.play({"exit": 0, "silent": 60, "deaf": True}, stop_grace=3600.0, silence=1.0, hang_grace=0.1)


def test_a_second_ctrl_c_ends_a_trainer_that_is_still_saving_and_says_so(stage: Stage) -> None:
    def press_twice() -> None:
        while not (stage.files.run / "pid").exists():
            time.sleep(0.05)
        for _ in range(2):
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_twice, daemon=True).start()
    with pytest.raises(ToolkitError, match="was stopped") as stopped:
        stage.play({"seconds": 60, "exit": 0, "deaf": True}, stop_grace=3600.0, silence=3600.0)
    assert stopped.value.exit_code == 130
    assert stage.actions == ["on request"]
    assert state_of(stage.files) == "stopped"
    assert not psutil.pid_exists(int((stage.files.run / "pid").read_text()))


def test_what_a_killed_torchrun_leaves_is_killed_before_the_next_one(stage: Stage) -> None:
    """Ranks have sessions of their own; two groups would train one run."""
    leaving = {"exit": -9, "leaves": True, "seconds": 2.0, "place": [0, 8, 8]}
    stage.play(leaving, {"exit": 0}, device="0,1")
    assert stage.actions == ["restarted"]
    left = int((stage.files.run / "left").read_text())
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE


def test_a_frozen_trainer_whose_supervisor_is_gone_does_not_keep_the_run(stage: Stage) -> None:
    reproduction.record(plan(stage.data, stage.files.run))
    (stage.files.run / "script.jsonl").write_text(json.dumps({"exit": -19}))
    write_json(stage.files.instructions, Instructions(supervisor=99_999_999))
    with stage.files.locked() as lock:
        frozen = subprocess.Popen(
            [sys.executable, str(FAKE), str(stage.files.run)], pass_fds=[lock], start_new_session=True
        )
    os.waitid(os.P_PID, frozen.pid, os.WSTOPPED)
    assert stage.files.is_locked()
    reaper = threading.Thread(target=frozen.wait, daemon=True)
    reaper.start()
    stage.play({"exit": 0})
    reaper.join(timeout=10.0)
    assert not reaper.is_alive()  # the frozen trainer has ended
    assert stage.actions == ["ended"]


def test_a_refusal_names_no_process_that_has_gone_as_if_it_were_there(stage: Stage) -> None:
    with stage.files.locked() as lock:
        with pytest.raises(ToolkitError) as refused, stage.files.locked():
            pass
        assert refused.value.found == f"process {os.getpid()}"
        os.pwrite(lock, b"99999999", 0)
        with pytest.raises(ToolkitError, match="a trainer that it left"), stage.files.locked():
            pass


def test_restarts_from_the_same_checkpoint_wait_longer_each_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(_Supervisor, "_wait", lambda _, seconds: waited.append(seconds))
    lives = [{"exit": 70, "place": [0, 8 * n, 8]} for n in range(9)]
    with pytest.raises(ToolkitError, match="6 restarts within the hour"):
        stage.play(*lives, restarts=6, pause=2.0, longest_pause=10.0)
    assert waited == [0.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_sigterm_ends_the_wait_before_a_restart(stage: Stage) -> None:
    def stop_in_the_wait() -> None:
        while len(events.read(stage.files.events)) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_in_the_wait, daemon=True).start()
    lives = [{"exit": 70, "place": [0, 8 * n, 8]} for n in range(2)]
    with pytest.raises(ToolkitError, match="was stopped") as stopped:
        stage.play(*lives, pause=3600.0, longest_pause=3600.0)
    assert stopped.value.exit_code == Exit.STOPPED
    assert len(stage.instructions) == 2


def test_a_trainer_that_has_not_begun_is_stopped_at_once(stage: Stage) -> None:
    """It has nothing to save, and would listen only after its first batch."""
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    frozen = {"exit": 0, "seconds": 30, "deaf": True, "beat": {"phase": "starting"}}
    with pytest.raises(ToolkitError, match="was stopped") as stopped:
        stage.play(frozen, stop_grace=3600.0)
    assert stopped.value.exit_code == Exit.STOPPED


def test_a_trainer_that_even_sigkill_does_not_end_is_reported_with_where_it_is(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = os.killpg
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    monkeypatch.setattr(psutil.Process, "kill", lambda _: None)
    monkeypatch.setattr(_Supervisor, "prepare_spare", lambda *_: None)
    rules = Rules(hang=Rule(1.0, Action.RESTART))
    try:
        with pytest.raises(ToolkitError, match="stuck in the kernel, in a disk"):
            stage.play({"exit": -19, "place": [1, 8, 8]}, rules=rules, kill_grace=0.2)
    finally:
        killed(int((stage.files.run / "pid").read_text()), signal.SIGKILL)
    assert [(e.kind, e.action) for e in events.read(stage.files.events)] == [("trainer stuck", "given up")]
    assert state_of(stage.files) in ("running", "failed")  # the stuck process holds the run
    summary = read_summary(stage.files)
    assert summary is not None
    assert (summary.state, summary.reason.split(" is ")[0].split()[0]) == ("failed", "process")


def test_a_full_disk_at_a_restart_is_waited_for(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    full = iter([False, True, True, True])

    def write(path: Path, value: Any) -> None:
        if next(full, False):
            raise ToolkitError("No space left on device")
        write_json(path, value)

    monkeypatch.setattr("toolkit.supervision.supervisor.write_json", write)
    stage.play({"exit": -9, "place": [0, 8, 8]}, {"exit": 0})
    assert stage.actions == ["restarted", "waiting for room", "there is room again"]
    assert state_of(stage.files) == "finished"


def test_an_error_after_a_batch_was_trained_is_tried_again(stage: Stage) -> None:
    """Data on a disk that is away for a moment is an error like one that nothing mends."""
    failed = {"exit": int(Exit.FAILED)}
    stage.play({"exit": -9, "place": [0, 8, 8]}, failed, failed, failed, failed, {"exit": 0})
    assert stage.actions == ["restarted"] * 5


def test_a_trainer_that_ends_before_its_first_batch_takes_nothing_from_the_summary(stage: Stage) -> None:
    done = {"exit": -9, "place": [2, 8, 8], "beat": {"epoch": 2, "epochs": 5, "best": 0.25}}
    with pytest.raises(ToolkitError, match="was given up"):
        stage.play(done, {"exit": -9, "beat": {"phase": "starting"}}, restarts=2)
    summary = read_summary(stage.files)
    assert summary is not None
    assert (summary.epochs, summary.epochs_planned, summary.best, summary.restarts) == (2, 5, 0.25, 2)


def test_a_run_that_finished_meanwhile_is_not_trained_again(stage: Stage) -> None:
    stage.play({"exit": 0})
    with pytest.raises(ToolkitError, match="has finished"):
        stage.play({"exit": 0})
    assert len(stage.instructions) == 1


@pytest.mark.parametrize("phase", ["validating", "finished"])
def test_a_fault_behind_the_last_batch_names_none_to_leave_out(stage: Stage, phase: str) -> None:
    with pytest.raises(ToolkitError, match="3 times at the same place"):
        stage.play({"exit": -11, "place": [0, 48, 8], "beat": {"phase": phase}})
    assert stage.actions == ["restarted", "restarted", "given up"]


def test_the_same_exception_at_two_starts_ends_the_run_and_is_quoted(stage: Stage) -> None:
    lives = [
        {"exit": 70, "error": f"RuntimeError: no kernel image at 0x7f{n:04x} (pid {n})"} for n in range(3)
    ]
    with pytest.raises(ToolkitError) as refused:
        stage.play(*lives)
    assert stage.actions == ["restarted", "given up"]
    assert "RuntimeError: no kernel image" in refused.value.line()
    assert "exit status 70" not in refused.value.line()


def test_another_exception_at_the_next_start_may_pass(stage: Stage) -> None:
    """A port that is taken and a driver that wakes up are no reason to end a run."""
    stage.play(
        {"exit": 70, "error": "OSError: in use"}, {"exit": 70, "error": "RuntimeError: busy"}, {"exit": 0}
    )
    assert stage.actions == ["restarted", "restarted"]


def test_an_exception_that_comes_again_after_a_batch_was_trained_is_waited_out(stage: Stage) -> None:
    fault = {"exit": 70, "error": "OSError: [Errno 5] Input/output error"}
    stage.play({"exit": -9, "place": [0, 8, 8]}, fault, fault, fault, {"exit": 0})
    assert stage.actions == ["restarted"] * 4


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("RuntimeError: DataLoader worker (pid 8) is killed by signal: Bus error.", "--shm-size 2g"),
        (
            "RuntimeError: unable to write to </torch_1>: No space left on device",
            "free some space",
        ),
        ("RuntimeError: received 0 items of ancdata", "ulimit -n"),
        ("OSError: [Errno 24] Too many open files", "ulimit -n"),
        ("RuntimeError: can't start new thread", "--pids-limit"),
    ],
)
def test_a_fault_of_the_machine_is_blamed_on_no_batch(stage: Stage, error: str, advice: str) -> None:
    with pytest.raises(ToolkitError, match=re.escape(advice)):
        stage.play({"exit": 70, "place": [3, 112, 8], "error": error})
    assert [order["skip"] for order in stage.instructions] == [[], [], []]
    assert stage.actions == ["restarted", "restarted", "given up"]


def test_a_trainer_that_died_of_little_shared_memory_says_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it died of: the check is the doctor's."""
    monkeypatch.setattr(checks, "free_bytes", lambda _: 64 << 10)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    with pytest.raises(ToolkitError, match=r"shared memory: .*2 loader workers.*--shm-size 2g.*--workers 0"):
        stage.play({"exit": -7, "place": [3, 112, 8]}, workers=2)
    assert all(order["skip"] == [] for order in stage.instructions)


def test_a_trainer_that_the_kernel_killed_for_memory_says_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter(range(100))
    monkeypatch.setattr("toolkit.machine.kernel.killed_for_memory", lambda: next(kills))
    with pytest.raises(ToolkitError, match=r"RAM: the kernel was out of it.*--workers"):
        stage.play({"exit": -9, "place": [3, 112, 8]})
    assert all(order["skip"] == [] for order in stage.instructions)


ROWS = "epoch,time,train/box_loss,train/cls_loss,metrics/mAP50(B),metrics/mAP50-95(B)\n"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            "1,9,3.0,4.0,0,0\n2,9,3.1,4.2,0,0\n",
            "mAP@0.5 is 0 after each of 2 epochs and the training loss did",
        ),
        ("1,9,3.0,4.0,0,0\n2,9,2.0,2.2,0,0\n", "mAP@0.5 is 0 after each of 2 epochs"),
        ("1,9,3.0,4.0,nan,nan\n", "mAP@0.5 is 0 after the only epoch"),
        ("1,9,3.0,4.0,0.1,0.05\n2,9,3.0,4.0,0.1,0.05\n", "the training loss did not fall: 7 at first, 7"),
        ("1,9,3.0,4.0,0.1,0.05\n2,9,nan,4.0,0.1,0.05\n", "the training loss of an epoch is no number"),
    ],
)
def test_a_run_that_learned_nothing_does_not_say_that_nothing_happened(
    stage: Stage, capsys: pytest.CaptureFixture[str], rows: str, words: str
) -> None:
    stage.files.results.write_text(ROWS + rows)
    stage.play({"exit": 0})
    said = " ".join(capsys.readouterr().err.split())
    assert f"nothing was learned: {words}" in said
    assert "what happened: nothing " not in said.replace("nothing was learned", "")
    summary = read_summary(stage.files)
    assert summary is not None
    assert summary.nothing_learned.startswith(words)


def test_a_run_that_chooses_nothing_has_no_best_score(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    """What stands for the score of an epoch is then its number, which says nothing to anybody."""
    stage.play({"exit": 0}, train_on=("train", "val"))
    assert re.search(r"epochs \d+ of \d+, best\.pt of the last one\n", capsys.readouterr().err)


def test_a_run_that_learned_something_has_nothing_to_say(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.files.results.write_text(ROWS + "1,9,3.0,4.0,0,0\n2,9,3.2,4.2,0.01,0.001\n3,9,2.9,3.0,0,0\n")
    stage.play({"exit": 0})
    assert "what happened: nothing\n" in capsys.readouterr().err
