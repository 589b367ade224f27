"""The parent that keeps a run alive: starts the trainer, watches it, ends it when it hangs, starts it again.

It runs nothing on a GPU, so that what brings a trainer down does not bring it down as well.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec
import psutil

from patches import children
from toolkit import console
from toolkit.dataset import backgrounds, index
from toolkit.errors import ToolkitError
from toolkit.runs import checkpoints, events, health, heartbeat, reproduction
from toolkit.runs.folder import (
    ORPHAN_GRACE,
    SPARE,
    Exit,
    RunFiles,
    next_number,
    read_instructions,
    read_summary,
    write_json,
)
from toolkit.runs.health import Action
from toolkit.runs.plan import TrainingPlan, count_images, describe
from toolkit.supervision.recovery import End, Patience, RecoveryPolicy


def trainer_command(plan: TrainingPlan) -> list[str]:
    """The command of the process, or of the group of ranks, that trains ``plan``."""
    level = console.level()
    said = () if level is console.Level.NORMAL else (level.name,)
    worker = ("toolkit.training.worker", str(plan.run), *said)
    if plan.ranks == 1:
        return children.command(*worker)
    ranks = f"--nproc-per-node={plan.ranks}"
    return children.command("torch.distributed.run", "--standalone", ranks, "-m", *worker)


def train(plan: TrainingPlan, *, numbered: bool = False, opened: index.Opener = index.load) -> Path:
    """Run the training to its end in a process of its own, restarted when it fails.

    Args:
        plan: of the run.
        numbered: whether the run is new and nobody chose its name: :func:`claim`.
        opened: gives the index of its data; a command that has it open already gives that.

    Returns:
        The best weights.

    Raises:
        ToolkitError: the data is not prepared, the run was stopped, or it could not be kept alive.
    """
    console.outlive_readers()
    prepared = opened(plan.data)
    images = count_images(plan, prepared)
    if plan.subsets:
        counted = ", ".join(f"{count:,} {split} images" for split, count in images.items())
        console.note(f"{describe(plan.subsets, plan.data)} ({counted})")
    if not plan.frequency.is_plain:
        often = plan.frequency.words(prepared.manifest.vocabulary.classes)
        console.note(f"{often}: {images['train']:,} samples an epoch")
        if (every := plan.frequency.every) > 1:
            console.note(
                f"validated and saved every {every} epochs and after the last; patience counts validations"
            )
    if "background" in plan.views.words:
        for name in dict.fromkeys((*plan.train_on, "val")):
            backgrounds.ensure(prepared.split(name))
    if not plan.chooses:
        console.warn(
            "the validation split is trained on: nothing is left to choose by. Scores on it say nothing, and "
            "best.pt is that of the last epoch"
        )
    return supervise(claim(plan) if numbered else plan, opened=lambda _: prepared)


def claim(plan: TrainingPlan) -> TrainingPlan:
    """The plan with a folder that this call made: two trainings that start together never share one.

    The plan's own folder, or the next free number where another training took that first.
    """
    runs = plan.run.parent
    runs.mkdir(parents=True, exist_ok=True)
    run = plan.run
    while True:
        try:
            run.mkdir()
        except FileExistsError:
            run = next_number(runs)
            continue
        if run != plan.run:
            console.note(f"another training took {plan.run.name}: this is run {run}")
        return replace(plan, run=run)


def supervise(
    plan: TrainingPlan,
    patience: Patience | None = None,
    command: Sequence[str] | None = None,
    opened: index.Opener = index.load,
) -> Path:
    """Train ``plan`` to its end and print how it went.

    Args:
        plan: what the run uses.
        patience: how patient to be.
        command: the trainer's command line; by default :func:`trainer_command`.
        opened: see :func:`train`.

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
        reproduction.record(plan, opened)
        command = list(command or trainer_command(plan))
        supervisor = _Supervisor(plan, files, patience or Patience(), command, lock)
        with supervisor.signals():
            try:
                return supervisor.run()
            finally:
                supervisor.prepare_spare(False)


@dataclass
class _Supervisor:
    plan: TrainingPlan
    files: RunFiles
    patience: Patience
    command: list[str]
    lock: int
    stopped_by: int = 0
    hurried: bool = False
    spare: subprocess.Popen[bytes] | None = None
    family: set[psutil.Process] = field(default_factory=set)

    def __post_init__(self) -> None:
        learned = msgspec.structs.replace(read_instructions(self.files), supervisor=os.getpid(), before=None)
        self.recovery = RecoveryPolicy(self.plan, self.files, self.patience, learned)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM, Ctrl-C and a closed terminal stop the run, which is saved first.

        A second Ctrl-C does not wait for that.
        """

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.hurried = bool(self.stopped_by) and number == signal.SIGINT
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
            self.recovery.summarise("running")
            self._write_instructions()
            end = self._attempt()
            if end.code == Exit.FINISHED:
                self.recovery.finish()
                return self.files.best
            self._stop_if_wanted()
            self.recovery.decide(end)
            pause = self.recovery.pause
            console.note("starting the trainer again" + (f" in {pause:.0f} s" if pause else ""))
            self._wait(pause)

    def _write_instructions(self) -> None:
        """Tell the next trainer what to do; on a full disk, where it could not begin, wait for room."""
        problem = self._try_instructions()
        if problem is None:
            return
        self.recovery.record("disk full", "waiting for room", problem)
        while self._try_instructions() is not None:
            self._wait(self.patience.pause)
            self._stop_if_wanted()
        self.recovery.record("disk full", "there is room again", "")

    def _try_instructions(self) -> str | None:
        """Write the instructions, or say why that is not possible."""
        try:
            write_json(self.files.instructions, self.recovery.instructions)
        except ToolkitError as error:
            return error.line()
        return None

    def _attempt(self) -> End:
        """Run one trainer process to its end, and end it if a rule says so."""
        # The place as well: a trainer that dies before its first batch is no second fault of the last one's.
        files = self.files
        for path in (files.heartbeat, files.exit_status, files.refusal, files.cursor):
            path.unlink(missing_ok=True)
        history = health.History()
        child = self._launch()
        verdict, grace = None, 0.0
        try:
            verdict = self._watch(child, history)
            grace = self._grace(history, verdict)
        finally:
            code = self._end(child, grace)
        return End(self._status(code), verdict)

    def _watch(self, child: subprocess.Popen[bytes], history: health.History) -> health.Verdict | None:
        """Look at the trainer until it has ended, is to stop, or a rule says that it must."""
        next_look = 0.0
        while child.poll() is None and not self.stopped_by:
            if time.monotonic() >= next_look:
                next_look = time.monotonic() + self.patience.look
                verdict = self.recovery.look(history)
                if self.plan.ranks == 1:
                    self.prepare_spare(health.hang_is_near(history, self.plan.rules))
                else:
                    # Of a torchrun that is killed the ranks live on, and are then nobody's children.
                    known = {*self.family, *_family(child)}
                    self.family = {process for process in known if _state(process) not in _GONE}
                if verdict is not None:
                    return verdict
            time.sleep(self.patience.poll)
        return None

    def _grace(self, history: health.History, verdict: health.Verdict | None) -> float:
        """Seconds that the trainer is given to save before it is killed."""
        if verdict is None or verdict.action is Action.GIVE_UP:
            beat = heartbeat.read(self.files)
            if beat is None or beat.phase == "starting":
                return 0.0  # it has nothing to save, and does not listen
            patience = self.patience.silence + 3 * beat.step_seconds[1]
            silent = history.now - history.last_progress > patience
            return self.patience.hang_grace if silent else self.patience.stop_grace
        return self.patience.hang_grace if verdict.action is Action.RESTART else 0.0

    def _launch(self) -> subprocess.Popen[bytes]:
        """The trainer that was prepared, told to begin; without one, a new one."""
        spare, self.spare = self.spare, None
        if spare is not None and spare.stdin is not None:
            with suppress(BrokenPipeError):
                spare.stdin.write(b"\n")
                return spare
        return self._spawn(None, children.environment())

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
            self.spare = self._spawn(subprocess.PIPE, {**children.environment(), SPARE: "1"})
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

    def _end(self, child: subprocess.Popen[bytes], grace: float) -> int:
        """Ask the trainer to end, wait for ``grace`` seconds, then kill it and everything it started.

        Raises:
            ToolkitError: something of it cannot be killed.
        """
        family = {*_family(child), *self.family}
        self.family = set()
        if grace and child.poll() is None:
            child.terminate()
            deadline = time.monotonic() + grace
            while child.poll() is None and not self.hurried and time.monotonic() < deadline:
                if any(_state(process) == psutil.STATUS_STOPPED for process in family):
                    break  # SIGSTOP: it does not hear what it is asked
                time.sleep(self.patience.poll)
                # The first rank writes its status when all is saved; torchrun then waits half a minute for
                # ranks that wait in a collective for the first.
                if self.files.exit_status.exists():
                    deadline = min(deadline, time.monotonic() + self.patience.linger)
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what the trainer left behind in its group
        for process in family:  # and what made a group of its own
            with suppress(psutil.NoSuchProcess):
                process.kill()
        deadline = time.monotonic() + self.patience.kill_grace
        while left := [process for process in family if _state(process) not in _GONE]:
            if time.monotonic() > deadline:
                self._fail_stuck(left[0])
            time.sleep(self.patience.poll)
        return child.wait()

    def _stop_if_wanted(self) -> None:
        if self.stopped_by:
            self._stop()

    def _stop(self) -> NoReturn:
        self.recovery.summarise("stopped", "stopped on request")
        code = 130 if self.stopped_by == signal.SIGINT else int(Exit.STOPPED)
        self.recovery.record("stopped", "on request", signal.Signals(self.stopped_by).name)
        saved = checkpoints.newest(self.files.checkpoints)[0]
        raise ToolkitError(
            f"run {self.files.run.name} was stopped",
            found=f"saved after {saved.images:,} images" if saved else "nothing to save yet",
            fix=f"continue it: toolkit train --resume --name {self.files.run.name}",
            exit_code=code,
        )

    def _fail_stuck(self, process: psutil.Process) -> NoReturn:
        """Give up: a second trainer beside one that the kernel holds would meet what holds it."""
        holder = "a disk"
        if self.plan.device != "cpu":
            holder = "the GPU's driver, which a reset of the card or a reboot frees, or a disk"
        detail = (
            f"process {process.pid} is still there {self.patience.kill_grace:.0f} s after SIGKILL "
            f"({_state(process)}): it is stuck in the kernel, in {holder}"
        )
        self.recovery.record("trainer stuck", "given up", detail)
        self.recovery.fail(detail)

    def _wait(self, seconds: float) -> None:
        """Sleep, unless the run is to stop."""
        end = time.monotonic() + seconds
        while not self.stopped_by and time.monotonic() < end:
            time.sleep(self.patience.poll)


_GONE = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}


def _family(child: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The trainer and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        trainer = psutil.Process(child.pid)
        return [trainer, *trainer.children(recursive=True)]
    return []


def _end_orphan(files: RunFiles) -> None:
    """Kill a trainer that is frozen and whose supervisor is gone: it holds the run and cannot end itself."""
    beat, supervisor = heartbeat.read(files), read_instructions(files).supervisor
    if beat is None or not supervisor or psutil.pid_exists(supervisor) or not files.is_locked():
        return
    with suppress(psutil.Error, OSError):
        trainer = psutil.Process(beat.pid)
        silent = time.time() - files.heartbeat.stat().st_mtime > 2 * ORPHAN_GRACE
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
