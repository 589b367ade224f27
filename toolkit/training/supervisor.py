"""The parent that keeps a run alive: starts the trainer, watches it, ends it when it hangs, starts it again.

It runs nothing on a GPU, so that what brings a trainer down does not bring it down as well.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec
import psutil

from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.training import checkpoints, events, health, heartbeat, sensors, session, summary, worker
from toolkit.training.health import Action
from toolkit.training.rundir import (
    Batch,
    Exit,
    RunFiles,
    RunState,
    Summary,
    read_orders,
    read_summary,
    write_json,
)

HOUR = 3600.0
LOWER = 0.5
"""Factor on the learning rate at each roll-back."""


@dataclass(frozen=True)
class Policy:
    """How patient the supervisor is.

    Attributes:
        poll: seconds between two looks at the trainer.
        look: seconds between two checks of the health rules.
        stop_grace: seconds that the trainer has to save when it is asked to stop.
        hang_grace: the same for one that hangs.
        silence: seconds without a sign of life, beyond three usual batches, after which a trainer that is to
            stop is not given more than that.
        kill_grace: seconds until a trainer that was killed must be gone.
        pause: seconds before the second restart from the same checkpoint, doubled for each one more.
        longest_pause: where that ends.
        linger: seconds to end after the status has been written.
    """

    poll: float = 0.2
    look: float = 1.0
    stop_grace: float = 60.0
    hang_grace: float = 5.0
    silence: float = 10.0
    kill_grace: float = 60.0
    pause: float = 5.0
    longest_pause: float = 60.0
    linger: float = 2.0


@dataclass(frozen=True)
class _End:
    """How one trainer process ended: its exit status, and why the supervisor ended it, if it did."""

    code: int
    verdict: health.Verdict | None = None


def trainer_command(plan: session.TrainingPlan) -> list[str]:
    """The command of the process, or of the group of ranks, that trains ``plan``."""
    worker = ["-m", "toolkit.training.worker", str(plan.run)]
    ranks = plan.ranks
    if ranks == 1:
        return [sys.executable, *worker]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, f"--nproc-per-node={ranks}", *worker]


def supervise(
    plan: session.TrainingPlan, policy: Policy = Policy(), command: Sequence[str] | None = None
) -> Path:
    """Train ``plan`` to its end and print how it went.

    Args:
        plan: what the run uses.
        policy: how patient to be.
        command: the trainer's command line; by default :func:`trainer_command`.

    Returns:
        The best weights.

    Raises:
        ToolkitError: the run is being trained already, was stopped (exit code 75 after SIGTERM, 130 after
            Ctrl-C), or could not be kept alive.
    """
    files = RunFiles(plan.run)
    _end_orphan(files)
    with files.locked() as lock:
        before = read_summary(files)
        if before is not None and before.state == "finished":  # between planning and the lock
            raise ToolkitError(f"run {plan.run.name} has finished", found=str(files.best))
        session.record(plan)
        keeper = _Supervisor(plan, files, policy, list(command or trainer_command(plan)), lock)
        with keeper.signals():
            try:
                return keeper.run()
            finally:
                keeper.prepare_spare(False)


@dataclass
class _Supervisor:
    plan: session.TrainingPlan
    files: RunFiles
    policy: Policy
    command: list[str]
    lock: int
    stopped_by: int = 0
    restarts: list[float] = field(default_factory=list)
    roll_backs: list[float] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    spare: subprocess.Popen[bytes] | None = None
    last_fault: Batch | None = None
    faults_there: int = 0
    restarted_from: int | None = None
    restarts_from_there: int = 0
    restarted: int = 0
    has_trained: bool = False
    rolled_back_to: int | None = None
    family: list[psutil.Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start = time.monotonic()
        self.read_sensors = sensors.in_background(self.plan.device)
        self.orders = msgspec.structs.replace(read_orders(self.files), supervisor=os.getpid(), before=None)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM, Ctrl-C and a closed terminal stop the run, which is saved first.

        A second Ctrl-C does not wait for that.
        """

        def on_signal(number: int, frame: FrameType | None) -> None:
            if self.stopped_by and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.stopped_by = number

        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # not under nohup
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self) -> Path:
        """Start the trainer until it finishes, is stopped, or cannot be helped."""
        while True:
            self._stop_if_wanted()
            self._summarise("running")
            self._write_orders()
            end = self._attempt()
            if end.code == Exit.FINISHED:
                console.note(self._describe(self._summarise("finished")))
                return self.files.best
            self._stop_if_wanted()
            self.has_trained = self.has_trained or heartbeat.Place.read(self.files) is not None
            if end.code == Exit.FAILED and end.verdict is None and not self.has_trained:
                reason = "the trainer reported an error that trying again would not mend"
                self._record("trainer died", "given up", reason)
                self._fail(reason)
            self._decide(end)

    def _write_orders(self) -> None:
        """Tell the next trainer what to do; on a full disk, where it could not begin, wait for room."""
        problem = self._try_orders()
        if problem is None:
            return
        self._record("disk full", "waiting for room", problem)
        while self._try_orders() is not None:
            self._wait(self.policy.pause)
            self._stop_if_wanted()
        self._record("disk full", "there is room again", "")

    def _try_orders(self) -> str | None:
        """Write the orders, or say why that is not possible."""
        try:
            write_json(self.files.orders, self.orders)
        except ToolkitError as error:
            return error.line()
        return None

    def _attempt(self) -> _End:
        """Run one trainer process to its end, and end it if a rule says so."""
        # The place as well: a trainer that dies before its first batch is no second fault of the last one's.
        for path in (self.files.heartbeat, self.files.exit_status, self.files.place):
            path.unlink(missing_ok=True)
        history = health.History()
        self.active.clear()
        child = self._launch()
        verdict, grace = None, 0.0
        try:
            verdict = self._watch(child, history)
            grace = self._grace(history, verdict)
        finally:
            code = self._end(child, grace)
        return _End(self._status(code), verdict)

    def _watch(self, child: subprocess.Popen[bytes], history: health.History) -> health.Verdict | None:
        """Look at the trainer until it has ended, is to stop, or a rule says that it must."""
        next_look = 0.0
        while child.poll() is None and not self.stopped_by:
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + self.policy.look
                verdict = self._look(history)
                if self.plan.ranks == 1:
                    self.prepare_spare(health.hang_is_near(history, self.plan.rules))
                else:
                    self.family = _family(child)  # of a torchrun that is killed the ranks live on
                if verdict is not None:
                    return verdict
            time.sleep(self.policy.poll)
        return None

    def _grace(self, history: health.History, verdict: health.Verdict | None) -> float:
        """Seconds that the trainer is given to save before it is killed."""
        if verdict is None or verdict.action is Action.GIVE_UP:
            beat = heartbeat.read(self.files)
            if beat is None or beat.phase == "starting":
                return 0.0  # it has nothing to save, and does not listen
            patience = self.policy.silence + 3 * beat.step_seconds[1]
            silent = history.now - history.last_progress > patience
            return self.policy.hang_grace if silent else self.policy.stop_grace
        return self.policy.hang_grace if verdict.action is Action.RESTART else 0.0

    def _launch(self) -> subprocess.Popen[bytes]:
        """The trainer that was prepared, told to begin; without one, a new one."""
        spare, self.spare = self.spare, None
        if spare is not None and spare.stdin is not None:
            with suppress(BrokenPipeError):
                spare.stdin.write(b"\n")
                return spare
        return self._spawn(None, os.environ)

    def _spawn(self, stdin: int | None, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command,
            bufsize=0,
            stdin=stdin,
            # As Ultralytics sets it, which is too late in a process that has imported torch before.
            env={"OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,
            pass_fds=[self.lock],
        )

    def prepare_spare(self, wanted: bool) -> None:
        """Have a trainer ready that has imported all it needs, or none: the import is most of a restart."""
        if wanted and self.spare is None:
            self.spare = self._spawn(subprocess.PIPE, {**os.environ, worker.SPARE: "1"})
        elif not wanted and self.spare is not None:
            self._end(self.spare, 0.0)
            self.spare = None

    def _status(self, code: int) -> int:
        """The trainer's own status: torchrun turns it into 1, and so does Python when an import fails.

        A trainer that had written that it finished has, whatever its teardown came to.
        """
        status: int = Exit.FAULT
        with suppress(OSError, ValueError):
            status = int(self.files.exit_status.read_text())
        if code != 1 and status != Exit.FINISHED:
            return code
        return status

    def _look(self, history: health.History) -> health.Verdict | None:
        """Observe the trainer; note what is to be noted; return what needs more than that."""
        free = shutil.disk_usage(self.files.run).free
        history.add(time.monotonic(), heartbeat.read(self.files), self.read_sensors(), free)
        verdicts = health.check(history, self.plan.rules)
        for verdict in verdicts:
            if verdict.action is Action.NOTE and verdict.rule not in self.active:
                self._record(verdict.rule, "noted", verdict.detail)
        self.active = {verdict.rule for verdict in verdicts}
        return next((verdict for verdict in verdicts if verdict.action is not Action.NOTE), None)

    def _end(self, child: subprocess.Popen[bytes], grace: float) -> int:
        """Ask the trainer to end, wait for ``grace`` seconds, then kill it and everything it started.

        Raises:
            ToolkitError: something of it cannot be killed.
        """
        family = [*_family(child), *self.family]
        self.family = []
        if grace and child.poll() is None:
            child.terminate()
            deadline = time.monotonic() + grace
            while child.poll() is None and time.monotonic() < deadline:
                if any(_state(process) == psutil.STATUS_STOPPED for process in family):
                    break  # SIGSTOP: it does not hear what it is asked
                time.sleep(self.policy.poll)
                # The first rank writes its status when all is saved; torchrun then waits half a minute for
                # ranks that wait in a collective for the first.
                if self.files.exit_status.exists():
                    deadline = min(deadline, time.monotonic() + self.policy.linger)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what the trainer left behind in its group
        for process in family:  # and what made a group of its own
            with suppress(psutil.NoSuchProcess):
                process.kill()
        deadline = time.monotonic() + self.policy.kill_grace
        while left := [process for process in family if _state(process) not in _GONE]:
            if time.monotonic() > deadline:
                self._fail_stuck(left[0])
            time.sleep(self.policy.poll)
        return child.wait()

    def _decide(self, end: _End) -> None:
        """After a trainer that did not finish: how to start the next one, or to give up."""
        verdict = end.verdict
        if verdict is not None and verdict.action is Action.GIVE_UP:
            self._record(verdict.rule, "given up", verdict.detail)
            self._fail(f"{verdict.rule}: {verdict.detail}")
        if end.code == Exit.ROLL_BACK or (verdict is not None and verdict.action is Action.ROLL_BACK):
            self._roll_back(verdict)
        else:
            self._restart(end)
        pause = self._seconds_to_pause()
        console.note("starting the trainer again" + (f" in {pause:.0f} s" if pause else ""))
        self._wait(pause)

    def _restart(self, end: _End) -> None:
        place = heartbeat.Place.read(self.files)
        kind = end.verdict.rule if end.verdict else "trainer died"
        detail = end.verdict.detail if end.verdict else _describe_code(end.code)
        self.faults_there = self.faults_there + 1 if place == self.last_fault else 1
        self.last_fault = place
        if not _allowed(self.restarts, self.plan.restarts.an_hour):
            self._record(kind, "given up", detail)
            self._fail(f"{kind} ({detail}), and {len(self.restarts)} restarts within the hour did not help")
        beat = heartbeat.read(self.files)
        validating = beat is not None and beat.phase == "validating"  # behind the last batch
        skip = place is not None and place not in self.orders.skip and self.faults_there >= 2
        skip = skip and not validating
        # What worked before and fails before its first batch may wait for a disk or a card that is away.
        hopeless = place is not None or not self.has_trained
        if self.faults_there >= 3 and not skip and hopeless:
            self._record(kind, "given up", detail)
            self._fail(f"{kind} ({detail}) {self.faults_there} times at the same place")
        self.orders = msgspec.structs.replace(
            self.orders, before=None, skip=(*self.orders.skip, place) if skip and place else self.orders.skip
        )
        self.restarted += 1
        self._record(kind, "restarted without this batch" if skip else "restarted", detail)

    def _roll_back(self, verdict: health.Verdict | None) -> None:
        kind, detail = (verdict.rule, verdict.detail) if verdict else ("weights not finite", "")
        if not _allowed(self.roll_backs, self.plan.restarts.roll_backs):
            self._record(kind, "given up", detail)
            self._fail(
                f"{kind} ({detail}), and {len(self.roll_backs)} roll-backs within the hour did not help"
            )
        # The first roll-back within the hour uses the newest checkpoint, each further one an older one.
        further = len(self.roll_backs) > 1
        target, _ = checkpoints.newest(self.files.checkpoints, self.rolled_back_to if further else None)
        if target is None:
            kept = reversed(checkpoints.listed(self.files.checkpoints))
            target = next((one for one in kept if one.intact()), None)
        self.rolled_back_to = target.images if target else None
        before = target.images + 1 if target else None
        scale = self.orders.lr_scale * LOWER
        self.orders = msgspec.structs.replace(self.orders, before=before, lr_scale=scale)
        where = f"image {target.images:,}" if target else "the start"
        self._record(kind, f"rolled back to {where}, learning rate x {scale:g}", detail)

    def _stop_if_wanted(self) -> None:
        if self.stopped_by:
            self._stop()

    def _stop(self) -> NoReturn:
        self._summarise("stopped", "stopped on request")
        code = 130 if self.stopped_by == signal.SIGINT else int(Exit.STOPPED)
        self._record("stopped", "on request", signal.Signals(self.stopped_by).name)
        saved = checkpoints.newest(self.files.checkpoints)[0]
        raise ToolkitError(
            f"run {self.files.run.name} was stopped",
            found=f"saved after {saved.images:,} images" if saved else "nothing to save yet",
            fix=f"continue it: toolkit train --resume --name {self.files.run.name}",
            exit_code=code,
        )

    def _fail(self, reason: str) -> NoReturn:
        console.note(self._describe(self._summarise("failed", reason)))
        raise ToolkitError(
            f"run {self.files.run.name} was given up",
            found=reason,
            fix=f"what happened is in {self.files.events}; then toolkit train --resume "
            f"--name {self.files.run.name}",
        )

    def _fail_stuck(self, process: psutil.Process) -> NoReturn:
        """Give up: a second trainer beside one that the kernel holds would meet what holds it."""
        holder = "a disk"
        if self.plan.device != "cpu":
            holder = "the GPU's driver, which a reset of the card or a reboot frees, or a disk"
        detail = (
            f"process {process.pid} is still there {self.policy.kill_grace:.0f} s after SIGKILL "
            f"({_state(process)}): it is stuck in the kernel, in {holder}"
        )
        self._record("trainer stuck", "given up", detail)
        self._fail(detail)

    def _wait(self, seconds: float) -> None:
        """Sleep, unless the run is to stop."""
        end = time.monotonic() + seconds
        while not self.stopped_by and time.monotonic() < end:
            time.sleep(self.policy.poll)

    def _seconds_to_pause(self) -> float:
        """None before the first restart from a checkpoint, then longer ones while no newer one is written."""
        newest = next((one.images for one in checkpoints.listed(self.files.checkpoints)), 0)
        self.restarts_from_there = self.restarts_from_there + 1 if newest == self.restarted_from else 0
        self.restarted_from = newest
        doubled = self.policy.pause * 2 ** (self.restarts_from_there - 1)
        return min(doubled, self.policy.longest_pause) if self.restarts_from_there else 0.0

    def _record(self, kind: str, action: str, detail: str) -> None:
        event = events.record(self.files.events, kind, action, detail, heartbeat.Place.read(self.files))
        console.warn(event.line())

    def _summarise(self, state: RunState, reason: str = "") -> Summary:
        seconds = time.monotonic() - self.start
        return summary.write(self.files, state, reason, seconds=seconds, restarts=self.restarted)

    def _describe(self, went: Summary) -> str:
        """The summary for a person."""
        happened = ", ".join(f"{n} x {kind}" for kind, n in went.events.items()) or "nothing"
        best = "none yet" if went.best is None else f"{went.best:.4f}"
        lines = [
            f"run {self.files.run.name}: {went.state}{f' ({went.reason})' if went.reason else ''}",
            f"  epochs {went.epochs} of {went.epochs_planned}, best {self.plan.select_by} {best}",
            f"  restarts {went.restarts}, updates skipped {went.skipped_updates}, "
            f"batches skipped {went.skipped_batches}, frames replaced {went.bad_frames}",
            f"  what happened: {happened}",
        ]
        return "\n".join(lines)


_GONE = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}


def _family(child: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The trainer and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        trainer = psutil.Process(child.pid)
        return [trainer, *trainer.children(recursive=True)]
    return []


def _end_orphan(files: RunFiles) -> None:
    """Kill a trainer that is frozen and whose supervisor is gone: it holds the run and cannot end itself."""
    beat, supervisor = heartbeat.read(files), read_orders(files).supervisor
    if beat is None or not supervisor or psutil.pid_exists(supervisor) or not files.is_locked():
        return
    with suppress(psutil.Error, OSError):
        trainer = psutil.Process(beat.pid)
        silent = time.time() - files.heartbeat.stat().st_mtime > 2 * worker.ORPHAN_GRACE
        frozen = silent or trainer.status() == psutil.STATUS_STOPPED
        if frozen and str(files.run) in trainer.cmdline():
            os.killpg(beat.pid, signal.SIGKILL)
            trainer.wait(5.0)
            detail = f"process {beat.pid} without a supervisor"
            console.warn(events.record(files.events, "trainer frozen", "ended", detail).line())


def _state(process: psutil.Process) -> str:
    """What the kernel says that a process is doing."""
    with suppress(psutil.NoSuchProcess):
        if process.is_running():
            return str(process.status())
    return str(psutil.STATUS_DEAD)


def _allowed(times: list[float], limit: int, clock: Callable[[], float] = time.monotonic) -> bool:
    """Record an attempt now, unless there have been ``limit`` within the last hour."""
    now = clock()
    times[:] = [moment for moment in times if now - moment < HOUR]
    if len(times) >= limit:
        return False
    times.append(now)
    return True


def _describe_code(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    if code == Exit.STOPPED:
        return "asked to end by another process"
    return f"exit status {code}"
