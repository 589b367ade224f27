"""The process that trains: ``python -m toolkit.training.worker RUN [LEVEL]``, started by the supervisor."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import msgspec
import psutil

from toolkit import console
from toolkit.dataset import loader
from toolkit.errors import ToolkitError
from toolkit.quiet import keep_libraries_quiet
from toolkit.runs import events
from toolkit.runs.folder import ORPHAN_GRACE, SPARE, Exit, Instructions, RunFiles
from toolkit.runs.plan import TrainingPlan, read_plan
from toolkit.training.precision import rehearse_convolutions


class StopRequest:
    """Becomes true on SIGTERM, on Ctrl-C, and when the supervisor is gone.

    A trainer that is stuck when its supervisor goes ends itself after :data:`ORPHAN_GRACE`: the run is free.
    """

    def __init__(self, supervisor: int, files: RunFiles) -> None:
        self._wanted = threading.Event()
        self._files = files
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        threading.Thread(target=self._watch, args=(supervisor,), daemon=True).start()

    def __call__(self) -> bool:
        return self._wanted.is_set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._wanted.set()

    def _watch(self, supervisor: int) -> None:
        try:
            process = psutil.Process(supervisor)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.5)
        except psutil.NoSuchProcess:
            pass
        if not self() and _is_first():
            events.record(self._files.events, "supervisor gone", "saving and ending")
        self._wanted.set()
        time.sleep(ORPHAN_GRACE)
        os._exit(Exit.FAULT)


def main(run: Path, level: console.Level | None = None) -> int:
    """Train a run as its plan and its instructions say; the return value is an :class:`Exit`.

    Args:
        run: the folder.
        level: how much is said; as much as now if it is not given.
    """
    console.speak(level or console.level())
    keep_libraries_quiet()
    files = RunFiles(run)
    if os.environ.pop(SPARE, None) and not _told_to_begin(files):
        return Exit.STOPPED
    console.outlive_readers()
    status = _train(files)
    if _is_first():
        with suppress(OSError):
            files.exit_status.write_text(str(int(status)))
    return status


def run(plan: TrainingPlan, instructions: Instructions, stop_wanted: Callable[[], bool]) -> None:
    """Train in this process, from the newest checkpoint if there is one, to the end.

    Raises:
        Stopped, RollBackNeeded: see :mod:`toolkit.training.resumable`.
        ToolkitError: the data is not prepared, or the run could not produce weights.
    """
    import patches
    from toolkit.dataset import index
    from toolkit.machine.device import running

    frames = index.load(plan.data)
    with running(plan.device, patched=plan.patches, compiled=bool(plan.arguments.get("compile"))):
        from toolkit.training.trainer import LTDv2Trainer

        trainer = LTDv2Trainer(plan, frames, instructions, stop_wanted)
        try:
            trainer.train()
        finally:
            trainer.close()
        if plan.patches:
            shares = [f"{route} {calls:,}" for route, calls in patches.report().by_route().items()]
            console.note("convolution calls by route: " + ", ".join(shares))
    if not trainer.best.is_file():
        raise ToolkitError("training ended without weights", expected=str(trainer.best))


def _is_first() -> bool:
    """Whether this is the only process that trains, or the first of several ranks."""
    return os.environ.get("RANK", "0") == "0"


def _told_to_begin(files: RunFiles) -> bool:
    """Get ready and wait; False if the supervisor has gone."""
    _get_ready(read_plan(files))
    return bool(sys.stdin.buffer.read(1))


def _get_ready(plan: TrainingPlan, *, testing: bool = False) -> None:
    """Import what trains, in this process and in the server of the loader's workers at once.

    Args:
        plan: of the run.
        testing: whether the first rank tests a new card meanwhile. Not before the server has started, which
            hides the card from this process for a moment, but before torch is imported; nor in a process that
            may not be needed.
    """
    if plan.arguments.get("workers"):
        loader.start_server()
    if testing and plan.patches and _is_first():
        rehearse_convolutions(plan.device, plan.arguments.get("amp", True))
    import toolkit.training.trainer  # noqa: F401


def _train(files: RunFiles) -> int:
    try:
        plan = read_plan(files)
        instructions = msgspec.json.decode(files.instructions.read_bytes(), type=Instructions)
        stop = StopRequest(instructions.supervisor or os.getppid(), files)
        _get_ready(plan, testing=True)
        from toolkit.training.resumable import RollBackNeeded, Stopped

        try:
            run(plan, instructions, stop)
        except Stopped:
            return Exit.STOPPED
        except RollBackNeeded:
            events.record(files.events, "weights not finite", "no checkpoint written")
            return Exit.ROLL_BACK
    except ToolkitError as error:
        console.fail(error)
        _report(files, error.line())
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        _report(files, _in_a_line(error))
        return Exit.FAULT
    return Exit.FINISHED


def _report(files: RunFiles, line: str) -> None:
    """Leave an error for the supervisor."""
    if _is_first():
        with suppress(OSError):
            files.refusal.write_text(line)


def _in_a_line(error: Exception) -> str:
    """An exception's kind and what it says: of many lines the first and the last, where a loader's worker
    has its own exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = " ... ".join(dict.fromkeys((lines[0], lines[-1]))) if lines else ""
    return f"{type(error).__name__}: {words[:500]}" if words else type(error).__name__


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *(console.Level[name] for name in sys.argv[2:])))
