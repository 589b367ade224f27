"""One rank of a group that the user's own torchrun has started, on one machine or on several.

The first rank plans the run and writes its files, the others follow it. torchrun starts the group again when
a rank or a machine is lost (``--max-restarts``); the group then goes on with the run that this very torchrun
began, known by its rendezvous id. Data and runs are folders that all machines see. Nobody supervises the
ranks here: the first one decides as a supervisor would, before it ends, or when the group starts again if it
was killed. The others watch the run's heartbeat and end with it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import msgspec

from submission.errors import NO_JSON
from toolkit import console
from toolkit.dataset import index
from toolkit.errors import ToolkitError
from toolkit.runs import health, heartbeat, reproduction
from toolkit.runs.folder import (
    Exit,
    RunFiles,
    all_runs,
    read_instructions,
    read_summary,
    state_of,
    write_json,
)
from toolkit.runs.health import Action, Verdict
from toolkit.runs.plan import read_plan
from toolkit.supervision.recovery import Attempts, End, GivenUp, Patience, RecoveryPolicy
from toolkit.training import deciding, worker
from toolkit.training.options import Options
from toolkit.workspace import RunRecord, Workspace

AGENT = os.getppid()
"""The process of torchrun that started this rank."""


def train(place: Workspace, options: Options, resume: bool) -> int:
    """Train as the rank that the environment names, from the newest checkpoint if there is one.

    Returns:
        The status to end with, an :class:`Exit`.

    Raises:
        ToolkitError: the run cannot be begun or resumed, or somebody else is training it.
    """
    from torch.distributed.rendezvous import rendezvous

    _check_store()
    store, rank, _ = next(rendezvous("env://"))
    if rank == 0:
        try:
            return _lead(place, options, resume, lambda run: store.set("toolkit run", str(run)))
        except ToolkitError as error:
            if isinstance(error, GivenUp) or not _is_restart():  # a restart may find what is away now
                _end_torchrun()
            raise
    files = RunFiles(Path(store.get("toolkit run").decode()))
    ended = {"finished": Exit.FINISHED, "failed": Exit.FAILED}.get(state_of(files))
    if ended is not None:
        return ended
    with _following(files):
        return worker.main(files.run)


def _check_store() -> None:
    """Refuse what torchrun 2.14.1 does without the variable: ranks that it starts again get the store of
    those that ended, and wait at their addresses.

    Raises:
        ToolkitError: the group is to be restarted, and the store is shared.
    """
    environment = os.environ
    shared = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if shared and environment.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise ToolkitError(
            "torchrun could not restart this group",
            found="ranks that share torchrun's store, where ended ranks leave their addresses",
            expected="a store for each start",
            fix="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun",
        )


def _lead(place: Workspace, options: Options, resume: bool, announce: Callable[[Path], object]) -> int:
    """Begin the run or go on with it, say which it is, train, and write down how it ended."""
    from torch import cuda

    begun = _begun_by_this_job(place, options.name)
    if begun is not None and state_of(begun) == "finished":
        announce(begun.run)
        console.note(f"run {begun.run.name} has finished")
        return Exit.FINISHED
    if begun is not None and state_of(begun) == "failed" and (_is_restart() or not resume):
        announce(begun.run)
        went = read_summary(begun)
        raise GivenUp(begun, went.reason if went else "")
    if options.device is None and cuda.is_available():
        here = range(int(os.environ["LOCAL_WORLD_SIZE"]))
        options = msgspec.structs.replace(options, device=",".join(map(str, here)))
    if begun is not None:
        options = msgspec.structs.replace(options, name=begun.run.name)
    opened = cache(index.load)
    plan = (deciding.plan_resume if begun or resume else deciding.plan)(place, options, opened)
    files = RunFiles(plan.run)
    with files.locked():
        reproduction.record(plan, opened)
        learned = read_instructions(files)
        leader = _Leader(RecoveryPolicy(plan, files, Patience(), learned, again="to be restarted"))
        leader.begin(begun is not None and _is_restart())
        if begun is not None:
            ranks = int(os.environ["WORLD_SIZE"])
            leader.recovery.record("group restarted", "resumed", f"{ranks} rank{'s'[: ranks - 1]}")
        announce(files.run)
        with leader.watching():
            status = worker.main(files.run)
        return leader.end(status)


def _is_restart() -> bool:
    """Whether torchrun has started this group before."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"


class _Leader:
    """What the first rank of a group does beside training: it watches, decides, and leaves what it decided in
    the run for the next start of the group."""

    def __init__(self, recovery: RecoveryPolicy) -> None:
        self.recovery = recovery
        self.files = recovery.files
        self.verdict: Verdict | None = None
        self.ended = threading.Event()
        self.ending = threading.Lock()

    def begin(self, restarted: bool) -> None:
        """Take up what the last start of the group decided; decide now if it was killed before it could.

        Raises:
            GivenUp: trying again does not help.
        """
        recovery, files = self.recovery, self.files
        if restarted:
            with suppress(OSError, *NO_JSON):
                recovery.attempts = msgspec.json.decode(files.attempts.read_bytes(), type=Attempts)
            if not files.exit_status.exists():
                killed = Verdict("trainer died", Action.RESTART, "the first rank was killed")
                recovery.decide(End(Exit.FAULT, killed))
            time.sleep(recovery.pause)
        else:
            recovery.instructions = msgspec.structs.replace(recovery.instructions, supervisor=0, before=None)
        self._keep()
        for path in (files.heartbeat, files.exit_status, files.refusal, files.cursor):
            path.unlink(missing_ok=True)
        recovery.summarise("running")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the rules of health are looked after, and this process ends if one of them says so."""
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield
        finally:
            with self.ending:
                self.ended.set()

    def end(self, status: int) -> int:
        """Write down how this start of the group ended, and what the next one is to do.

        Raises:
            GivenUp: trying again does not help.
        """
        if status == Exit.FINISHED:
            self.recovery.finish()
            return status
        if status == Exit.STOPPED and self.verdict is None:
            self.recovery.instructions = msgspec.structs.replace(self.recovery.instructions, before=None)
            self.recovery.summarise("stopped")
        else:
            self.recovery.decide(End(status, self.verdict))
        with suppress(ToolkitError):  # a full disk
            self._keep()
        return status

    def _watch(self) -> None:
        history, patience = health.History(), self.recovery.patience
        grace = {Action.GIVE_UP: patience.stop_grace, Action.RESTART: patience.hang_grace}
        while not self.ended.wait(patience.look):
            self.verdict = self.recovery.look(history)
            if self.verdict is None:
                continue
            seconds = grace.get(self.verdict.action, 0.0)
            if seconds and history.beat is not None and history.beat.phase != "starting":
                os.kill(os.getpid(), signal.SIGTERM)  # it saves if it can
                self.ended.wait(seconds)
            with self.ending:
                if self.ended.is_set():
                    return
                status: int = Exit.FAULT
                try:
                    self.end(status)
                except GivenUp as error:
                    _end_torchrun()
                    console.fail(error)
                    status = error.exit_code
                with suppress(OSError):
                    self.files.exit_status.write_text(str(status))
                os._exit(status)

    def _keep(self) -> None:
        write_json(self.files.instructions, self.recovery.instructions)
        write_json(self.files.attempts, self.recovery.attempts)


def _end_torchrun() -> None:
    """Have torchrun end as well, if it would start the group again: it does so whatever the status but 0."""
    counts = [os.environ.get(f"TORCHELASTIC_{name}", "0") for name in ("RESTART_COUNT", "MAX_RESTARTS")]
    if counts[0] != counts[1] and os.environ["LOCAL_RANK"] == "0" and os.getppid() == AGENT:
        os.kill(AGENT, signal.SIGTERM)


def _begun_by_this_job(place: Workspace, name: str | None) -> RunFiles | None:
    """The run that an earlier start of this group began; None if this is the first."""
    job = os.environ["TORCHELASTIC_RUN_ID"]
    for files in all_runs(place.runs):
        if name in (None, files.run.name):
            if job == "none":  # torchrun without a rendezvous of its own, which counts its restarts at least
                return files if _is_restart() else None
            with suppress(ToolkitError):
                if RunRecord.read(files.run).job == job:
                    return files
    return None


@contextmanager
def _following(files: RunFiles) -> Iterator[None]:
    """Inside, this process ends itself when the run is given up, and when it hangs: a collective waits hours
    for a lost machine."""
    done = threading.Event()
    rules, patience = read_plan(files).rules, Patience()

    def watch() -> None:
        history = health.History()
        while not done.wait(patience.look):
            went = read_summary(files)
            if went is not None and went.state == "failed":
                _end_torchrun()
                os._exit(Exit.FAILED)
            history.add(time.monotonic(), heartbeat.read(files), None, sys.maxsize)
            for verdict in health.check(history, rules):
                if verdict.action is Action.RESTART and not done.wait(patience.hang_grace):
                    console.warn(f"{verdict.rule}: {verdict.detail}")
                    os._exit(Exit.FAULT)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
