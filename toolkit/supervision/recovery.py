"""What is done about a run in trouble: note it, start again, leave a batch out, go back, or give up.

The supervisor asks after the end of each trainer. Under the user's own torchrun the first rank asks before it
ends, or, if it was killed, when the group starts again.
"""

from __future__ import annotations

import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

import msgspec

from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.machine import kernel, sensors
from toolkit.runs import checkpoints, events, health, heartbeat, needs, summary
from toolkit.runs.folder import Batch, Exit, Instructions, RunFiles, RunState, Summary
from toolkit.runs.health import Action
from toolkit.runs.plan import TrainingPlan

HOUR = 3600.0
LOWER = 0.5
"""Factor on the learning rate at each roll-back."""


@dataclass(frozen=True)
class Patience:
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
    longest_pause: float = 600.0
    linger: float = 2.0


class GivenUp(ToolkitError):
    """A run that trying again does not help, until its user has looked at it."""

    def __init__(self, files: RunFiles, reason: str) -> None:
        super().__init__(
            f"run {files.run.name} was given up",
            found=reason,
            fix=f"what happened is in {files.events}; then toolkit train --resume --name {files.run.name}",
        )


@dataclass(frozen=True)
class End:
    """How one trainer process ended: its exit status, and the rule that ended it, if one did."""

    code: int
    verdict: health.Verdict | None = None


class Attempts(msgspec.Struct):
    """What has been done about a run since its user began it or went on with it.

    Attributes:
        restarts, roll_backs: when, in seconds since the machine was started, within the last hour.
        restarted: how often in all.
        last_fault: the batch of the last fault.
        faults_there: faults in a row at that batch.
        restarted_from: images of the newest checkpoint at the last decision.
        restarts_from_there: decisions since that checkpoint was written, after the first.
        has_trained: whether any trainer has come to its first batch.
        rolled_back_to: images of the checkpoint that the last roll-back went on from.
        last_error: what the last trainer reported that came to no batch.
    """

    restarts: list[float] = []
    roll_backs: list[float] = []
    restarted: int = 0
    last_fault: Batch | None = None
    faults_there: int = 0
    restarted_from: int | None = None
    restarts_from_there: int = 0
    has_trained: bool = False
    rolled_back_to: int | None = None
    last_error: str = ""


@dataclass
class RecoveryPolicy:
    """Decides about one run.

    Attributes:
        plan: what the run uses.
        files: of the run.
        patience: how patient to be.
        instructions: for the next trainer.
        attempts: what has been done before.
        again: what an event says of a trainer that is to be started again.
    """

    plan: TrainingPlan
    files: RunFiles
    patience: Patience
    instructions: Instructions
    attempts: Attempts = field(default_factory=Attempts)
    again: str = "restarted"

    def __post_init__(self) -> None:
        self._start = time.monotonic()
        self._noted = health.Noted()
        self._read_sensors = sensors.in_background(self.plan.device)
        self._killed_for_memory = kernel.killed_for_memory()

    def look(self, history: health.History) -> health.Verdict | None:
        """Observe the trainer; note what is to be noted; return what needs more than that."""
        if history.newest is None:
            self._noted = health.Noted()
        free = sys.maxsize
        with suppress(OSError):  # a folder that is away for a moment is no full disk
            free = shutil.disk_usage(self.files.run).free
        history.add(time.monotonic(), heartbeat.read(self.files), self._read_sensors(), free)
        verdicts = health.check(history, self.plan.rules)
        for verdict in self._noted.news(history, verdicts, self.plan.rules):
            if verdict.action is Action.NOTE:
                self.record(verdict.rule, "noted", verdict.detail)
        return next((verdict for verdict in verdicts if verdict.action is not Action.NOTE), None)

    def decide(self, end: End) -> None:
        """After a trainer that did not finish: how to start the next one.

        Raises:
            GivenUp: its summary says so as well.
        """
        verdict, attempts = end.verdict, self.attempts
        attempts.has_trained = attempts.has_trained or heartbeat.Cursor.read(self.files) is not None
        if verdict is not None and verdict.action is Action.GIVE_UP:
            self._give_up(verdict.rule, verdict.detail, f"{verdict.rule}: {verdict.detail}")
        if end.code == Exit.FAILED and verdict is None and not attempts.has_trained:
            reason = self._why(end.code)
            self._give_up("trainer died", reason, reason)
        if end.code == Exit.ROLL_BACK or (verdict is not None and verdict.action is Action.ROLL_BACK):
            self._roll_back(verdict)
        else:
            if end.code == Exit.FAULT and verdict is None and not attempts.has_trained:
                self._refuse_repetition()
            self._restart(end)
        newest = next((one.images for one in checkpoints.listed(self.files.checkpoints)), 0)
        again = newest == attempts.restarted_from
        attempts.restarts_from_there = attempts.restarts_from_there + 1 if again else 0
        attempts.restarted_from = newest

    @property
    def pause(self) -> float:
        """Seconds to wait before the next trainer: none at first, then ever more until a checkpoint is
        written."""
        doubled = self.patience.pause * 2 ** (self.attempts.restarts_from_there - 1)
        return min(doubled, self.patience.longest_pause) if self.attempts.restarts_from_there else 0.0

    def record(self, kind: str, action: str, detail: str) -> None:
        """Write an event and print it."""
        event = events.record(self.files.events, kind, action, detail, heartbeat.Cursor.read(self.files))
        console.warn(event.line())

    def summarise(self, state: RunState, reason: str = "") -> Summary:
        """Write the summary."""
        seconds = time.monotonic() - self._start
        return summary.write(self.files, state, reason, seconds=seconds, restarts=self.attempts.restarted)

    def finish(self) -> None:
        """Write that the run has finished, and print how it went."""
        console.note(self._describe(self.summarise("finished")))

    def fail(self, reason: str) -> NoReturn:
        """Write that the run has failed, and print how it went.

        Raises:
            GivenUp: always.
        """
        console.note(self._describe(self.summarise("failed", reason)))
        raise GivenUp(self.files, reason)

    def _why(self, code: int) -> str:
        """The error that the trainer reported, else what its status means."""
        return self._reported() or _describe_code(code)

    def _reported(self) -> str:
        with suppress(OSError):
            return self.files.refusal.read_text()
        return ""

    def _refuse_repetition(self) -> None:
        """The same exception at two starts, before any batch, comes at each further one as well.

        Raises:
            GivenUp: it is.
        """
        error = self._reported()
        same = bool(error) and _without_numbers(error) == _without_numbers(self.attempts.last_error)
        self.attempts.last_error = error
        if same:
            blame = "".join(f"; {words}" for words in self._surroundings(Exit.FAULT))
            self._give_up("trainer died", error + blame, f"{error}, at two starts{blame}")

    def _surroundings(self, code: int) -> list[str]:
        """What is wrong with the machine rather than with the data, now that a trainer has died."""
        found = [
            f"{finding.subject}: {finding.found}: {finding.advice}"
            for finding in needs.after_a_death(self.plan.needs())
        ]
        before, self._killed_for_memory = self._killed_for_memory, kernel.killed_for_memory()
        if code == -signal.SIGKILL and self._killed_for_memory > before:
            found.append("RAM: the kernel was out of it and killed processes: lower --workers or --batch")
        error = self._reported()
        found += [advice for words, advice in _SURROUNDINGS.items() if words in error and not found]
        return found

    def _give_up(self, kind: str, detail: str, reason: str) -> NoReturn:
        self.record(kind, "given up", detail)
        self.fail(reason)

    def _restart(self, end: End) -> None:
        attempts, limit = self.attempts, self.plan.restarts.an_hour
        batch = heartbeat.Cursor.read(self.files)
        kind = end.verdict.rule if end.verdict else "trainer died"
        detail = end.verdict.detail if end.verdict else self._why(end.code)
        attempts.faults_there = attempts.faults_there + 1 if batch == attempts.last_fault else 1
        attempts.last_fault = batch
        if not _allowed(attempts.restarts, limit):
            reason = f"{kind} ({detail}), and {limit} restarts within the hour did not help"
            self._give_up(kind, detail, reason)
        beat = heartbeat.read(self.files)
        validating = beat is not None and beat.phase in ("validating", "finished")  # behind the last batch
        blame = self._surroundings(end.code) if end.verdict is None else []
        detail = "; ".join([detail, *blame])
        skip = batch is not None and batch not in self.instructions.skip and attempts.faults_there >= 2
        skip = skip and not validating and not blame
        # What worked before and fails before its first batch may wait for a disk or a card that is away.
        hopeless = batch is not None or not attempts.has_trained
        if attempts.faults_there >= 3 and not skip and hopeless:
            self._give_up(kind, detail, f"{kind} ({detail}) {attempts.faults_there} times at the same place")
        left_out = self.instructions.skip
        if skip and batch is not None:
            left_out = (*left_out, batch)
        self.instructions = msgspec.structs.replace(self.instructions, before=None, skip=left_out, exact=True)
        attempts.restarted += 1
        self.record(kind, f"{self.again} without this batch" if skip else self.again, detail)

    def _roll_back(self, verdict: health.Verdict | None) -> None:
        kind, detail = (verdict.rule, verdict.detail) if verdict else ("weights not finite", "")
        attempts, limit = self.attempts, self.plan.restarts.roll_backs
        if not _allowed(attempts.roll_backs, limit):
            reason = f"{kind} ({detail}), and {limit} roll-backs within the hour did not help"
            self._give_up(kind, detail, reason)
        # The first roll-back within the hour uses the newest checkpoint, each further one an older one.
        further = len(attempts.roll_backs) > 1
        target, _ = checkpoints.newest(self.files.checkpoints, attempts.rolled_back_to if further else None)
        if target is None:
            kept = reversed(checkpoints.listed(self.files.checkpoints))
            target = next((one for one in kept if one.intact()), None)
        attempts.rolled_back_to = target.images if target else None
        before = target.images + 1 if target else None
        scale = self.instructions.lr_scale * LOWER
        self.instructions = msgspec.structs.replace(self.instructions, before=before, lr_scale=scale)
        where = f"image {target.images:,}" if target else "the start"
        self.record(kind, f"rolled back to {where}, learning rate x {scale:g}", detail)

    def _describe(self, went: Summary) -> str:
        """The summary for a person."""
        happened = [f"{n} x {kind}" for kind, n in went.events.items()]
        if went.nothing_learned:
            happened.append(f"nothing was learned: {went.nothing_learned}; look at labels and learning rate")
        best = f"best {self.plan.select_by} {'none yet' if went.best is None else f'{went.best:.4f}'}"
        if not self.plan.chooses:
            best = "best.pt of the last one"
        lines = [
            f"run {self.files.run.name}: {went.state}{f' ({went.reason})' if went.reason else ''}",
            f"  epochs {went.epochs} of {went.epochs_planned}, {best}",
            f"  restarts {went.restarts}, updates skipped {went.skipped_updates}, "
            f"batches skipped {went.skipped_batches}, frames replaced {went.bad_frames}",
            f"  what happened: {', '.join(happened) or 'nothing'}",
        ]
        return "\n".join(lines)


def _allowed(times: list[float], limit: int, clock: Callable[[], float] = time.monotonic) -> bool:
    """Record an attempt now, unless there have been ``limit`` within the last hour."""
    now = clock()
    times[:] = [moment for moment in times if 0 <= now - moment < HOUR]
    if len(times) >= limit:
        return False
    times.append(now)
    return True


_SURROUNDINGS = {
    "shared memory": "give the container --shm-size 2g or --ipc host, or train with --workers 0",
    "Bus error": "/dev/shm is full: --shm-size 2g or --ipc host for the container, or --workers 0",
    "Too many open files": "raise the limit (ulimit -n 65536), or lower --workers",
    "ancdata": "raise the limit of open files (ulimit -n 65536), or lower --workers",
    "can't start new thread": "raise the limit of processes (ulimit -u; --pids-limit of the container)",
    "No space left on device": "free some space",
    "Read-only file system": "mount it for writing",
}
"""Words of an exception that no batch is the cause of, and what helps."""


def _without_numbers(text: str) -> str:
    """An error without what differs from process to process: addresses, process ids, ports."""
    return re.sub(r"0x[0-9a-fA-F]+|\d+", "#", text)


def _describe_code(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    if code == Exit.STOPPED:
        return "asked to end by another process"
    return f"exit status {code}"
