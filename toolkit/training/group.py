"""One rank of a group that the user's own torchrun has started, on one machine or on several.

The first rank plans the run and writes its files, the others follow it. torchrun starts the group again when
a rank or a machine is lost (``--max-restarts``); the group then goes on with the run that this very torchrun
began, known by its rendezvous id. Data and runs are folders that all machines see. Nobody supervises the
ranks here, so each of them watches the run's heartbeat itself.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.training import events, health, heartbeat, session, summary, watching, worker
from toolkit.training.health import Action
from toolkit.training.rundir import Exit, RunFiles, RunState, read_orders, state_of, write_json
from toolkit.workspace import Workspace

LOOK = 1.0
"""Seconds between two looks at the heartbeat."""

ENDED: dict[int, RunState] = {Exit.FINISHED: "finished", Exit.STOPPED: "stopped", Exit.FAILED: "failed"}
"""What a run is after a first rank that ended with this status; after any other it is interrupted."""


def train(place: Workspace, options: session.Options, resume: bool) -> int:
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
        return _lead(place, options, resume, lambda run: store.set("toolkit run", str(run)))
    files = RunFiles(Path(store.get("toolkit run").decode()))
    if state_of(files) == "finished":
        return Exit.FINISHED
    with _watched(files):
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


def _lead(
    place: Workspace, options: session.Options, resume: bool, announce: Callable[[Path], object]
) -> int:
    """Begin the run or go on with it, say which it is, train, and write down how it ended."""
    from torch import cuda

    begun = _begun_by_this_job(place, options.name)
    if begun is not None and state_of(begun) == "finished":
        announce(begun.run)
        console.note(f"run {begun.run.name} has finished")
        return Exit.FINISHED
    if options.device is None and cuda.is_available():
        here = range(int(os.environ["LOCAL_WORLD_SIZE"]))
        options = replace(options, device=",".join(map(str, here)))
    if begun is not None:
        options = replace(options, name=begun.run.name)
    plan = session.plan_resume(place, options) if begun or resume else session.plan(place, options)
    files = RunFiles(plan.run)
    with files.locked():
        session.record(plan)
        if begun is not None:
            ranks = int(os.environ["WORLD_SIZE"])
            events.record(files.events, "group restarted", "resumed", f"{ranks} rank{'s'[: ranks - 1]}")
        write_json(files.orders, msgspec.structs.replace(read_orders(files), supervisor=0, before=None))
        files.heartbeat.unlink(missing_ok=True)
        summary.write(files, "running")
        announce(files.run)
        with _watched(files):
            status = worker.main(files.run)
        if status in ENDED:
            summary.write(files, ENDED[status])
        return status


def _begun_by_this_job(place: Workspace, name: str | None) -> RunFiles | None:
    """The run that an earlier start of this group began; None if this is the first."""
    job = os.environ["TORCHELASTIC_RUN_ID"]
    for files in watching.all_runs(place.runs):
        if name in (None, files.run.name):
            if job == "none":  # torchrun without a rendezvous of its own, which counts its restarts at least
                return files if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" else None
            with suppress(ToolkitError):
                if place.record(files.run).job == job:
                    return files
    return None


@contextmanager
def _watched(files: RunFiles) -> Iterator[None]:
    """Inside, this process ends itself when the run hangs: a collective waits hours for a lost machine."""
    done = threading.Event()
    rules = session.read_plan(files).rules

    def watch() -> None:
        history = health.History()
        while not done.wait(LOOK):
            history.add(time.monotonic(), heartbeat.read(files), None, sys.maxsize)
            for verdict in health.check(history, rules):
                if verdict.action is Action.RESTART:
                    if os.environ["RANK"] == "0":
                        events.record(files.events, verdict.rule, "group ended", verdict.detail)
                    console.warn(f"{verdict.rule}: {verdict.detail}")
                    os._exit(Exit.FAULT)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
