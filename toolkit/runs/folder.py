"""What a run keeps in its folder, and the lock that makes the folder one process's own."""

from __future__ import annotations

import enum
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from submission.errors import NO_JSON
from toolkit.errors import ToolkitError
from toolkit.files import replacing

ORPHAN_GRACE = 30.0
"""Seconds that a trainer without a supervisor has to save and end before it ends itself."""

SPARE = "TOOLKIT_SPARE_TRAINER"
"""Set for a trainer that gets ready and waits for a byte on its standard input before it begins."""


class Exit(enum.IntEnum):
    """Status that a training process ends with, and ``toolkit train`` with it."""

    FINISHED = 0
    FAILED = 1  # nothing that trying again would mend
    FAULT = 70  # sysexits' EX_SOFTWARE: an exception in training; the supervisor tries again
    ROLL_BACK = 73  # the weights are not finite; the supervisor goes back to an older checkpoint
    STOPPED = 75  # sysexits' EX_TEMPFAIL: saved and stopped on request; `toolkit train --resume` goes on


class Batch(NamedTuple):
    """Which samples of a run's shuffled epochs a batch holds, whatever the size of the batches around it.

    Attributes:
        epoch: counted from 0.
        first: sample of the epoch that it begins with.
        size: of a whole batch; the last one of an epoch may hold less.
    """

    epoch: int
    first: int
    size: int

    @property
    def number(self) -> int:
        """In its epoch, if all batches are of this size."""
        return self.first // self.size


class Instructions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the supervisor tells a trainer that it starts.

    Attributes:
        supervisor: its process id; the trainer saves and stops when that process is gone. 0: the process that
            started the trainer.
        before: resume from the newest checkpoint with fewer images than this; None: from the newest.
        lr_scale: part of the planned learning rate to use.
        skip: batches to leave out; with another size there are none such.
        exact: wait for the card after each batch until the second checkpoint: a fault names its batch.
    """

    supervisor: int = 0
    before: int | None = None
    lr_scale: float = 1.0
    skip: tuple[Batch, ...] = ()
    exact: bool = False


def read_instructions(files: RunFiles) -> Instructions:
    """What an earlier supervisor of the run had learned; of a new run nothing."""
    try:
        return msgspec.json.decode(files.instructions.read_bytes(), type=Instructions)
    except (OSError, *NO_JSON):
        return Instructions()


@dataclass(frozen=True)
class RunFiles:
    """Names inside ``runs/<name>``.

    A property is called as its file. Where it is called by what it holds, it says the file's name and why.

    Attributes:
        run: the folder.
    """

    run: Path

    @property
    def plan(self) -> Path:
        """Everything the run uses (``plan.json``)."""
        return self.run / "plan.json"

    @property
    def instructions(self) -> Path:
        """``orders.json``, the :class:`Instructions`; an order is that of samples in the rest of the code."""
        return self.run / "orders.json"

    @property
    def attempts(self) -> Path:
        """``tried.json``, what recovery calls its attempts: those for a group, for the group's next start."""
        return self.run / "tried.json"

    @property
    def heartbeat(self) -> Path:
        """The newest :class:`toolkit.runs.heartbeat.Beat`."""
        return self.run / "heartbeat.json"

    @property
    def cursor(self) -> Path:
        """``place``, the :class:`Batch` in work, written before each; ``heartbeat.Cursor`` writes it, and
        a place is a workspace in most of the code."""
        return self.run / "place"

    @property
    def exit_status(self) -> Path:
        """``exit``, the status of the trainer that ended last: torchrun does not hand on that of its ranks.
        A property of that name would read as a call."""
        return self.run / "exit"

    @property
    def refusal(self) -> Path:
        """The error line of a trainer that reported one, until the next begins."""
        return self.run / "refusal"

    @property
    def events(self) -> Path:
        """One line for each thing that went wrong and what was done."""
        return self.run / "events.jsonl"

    @property
    def skipped_frames(self) -> Path:
        """One line for each frame that did not decode, each time it was drawn."""
        return self.run / "skipped_frames.jsonl"

    @property
    def summary(self) -> Path:
        """How the run ended, or that it is under way (``summary.json``)."""
        return self.run / "summary.json"

    @property
    def results(self) -> Path:
        """Ultralytics' row an epoch."""
        return self.run / "results.csv"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints inside an epoch; gone once the run has finished."""
        return self.run / "checkpoints"

    @property
    def best(self) -> Path:
        """``weights/best.pt``, Ultralytics' name."""
        return self.run / "weights" / "best.pt"

    @property
    def last(self) -> Path:
        """``weights/last.pt``, of the last epoch that ended, Ultralytics' name."""
        return self.run / "weights" / "last.pt"

    def bad_frames(self) -> int:
        """How often a frame did not decode and was replaced, in the whole run."""
        try:
            return self.skipped_frames.read_bytes().count(b"\n")
        except OSError:
            return 0

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the run for this process and for those that inherit the yielded file descriptor.

        The kernel drops the lock when the last of them ends, however it ends.

        Raises:
            ToolkitError: somebody else is training this run.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.run / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _lock(handle):
                holder = os.pread(handle, 32, 0).decode().strip()
                found = f"process {holder}" if holder else ""
                if not Path("/proc", holder).exists():  # or on another machine
                    found += ", or a trainer that it left, which saves and ends within a minute"
                raise ToolkitError(
                    f"run {self.run.name} is being trained already",
                    found=found,
                    fix=f"watch it with `toolkit monitor {self.run.name}`, or give this one another --name",
                )
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            yield handle
        finally:
            os.close(handle)

    def is_locked(self) -> bool:
        """Whether some process is training this run."""
        try:
            handle = os.open(self.run / ".lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False


def _lock(handle: int) -> bool:
    """Lock an open file, unless another process keeps it for longer than :meth:`RunFiles.is_locked` does."""
    for _ in range(100):
        with suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.01)
    return False


RunState = Literal["running", "interrupted", "stopped", "finished", "failed"]


class Summary(msgspec.Struct, frozen=True):
    """How a run went (``summary.json``), rewritten when it starts and when it ends.

    Attributes:
        state: as of the last writing; "running" of a run that nobody holds means interrupted.
        reason: why it ended, unless it finished.
        epochs, epochs_planned: done and wanted.
        best: highest of what chooses best.pt.
        images_per_second: over the last batches.
        gpu_memory: bytes reserved on the device.
        seconds: since `toolkit train` was started, the last time.
        restarts: of the trainer, in this call of `toolkit train`.
        skipped_updates, bad_frames: over the whole run.
        skipped_batches: batches left out because they failed again and again.
        events: number of events of each kind, over the whole run.
        nothing_learned: why its weights are of no use, where a run that finished learned nothing.
    """

    state: RunState
    reason: str = ""
    epochs: int = 0
    epochs_planned: int = 0
    best: float | None = None
    images_per_second: float = 0.0
    gpu_memory: int = 0
    seconds: float = 0.0
    restarts: int = 0
    skipped_updates: int = 0
    bad_frames: int = 0
    skipped_batches: int = 0
    events: dict[str, int] = {}
    nothing_learned: str = ""


def read_summary(files: RunFiles) -> Summary | None:
    """The summary; None where there is none."""
    try:
        return msgspec.json.decode(files.summary.read_bytes(), type=Summary)
    except (OSError, *NO_JSON):
        return None


def state_of(files: RunFiles) -> RunState:
    """What the run is doing now."""
    if files.is_locked():
        return "running"
    summary = read_summary(files)
    return summary.state if summary is not None and summary.state != "running" else "interrupted"


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` (structs, dataclasses, paths) as JSON."""
    text = msgspec.json.format(encode_json(value), indent=2)
    with replacing(path) as temporary:
        temporary.write_bytes(text + b"\n")


def encode_json(value: Any) -> bytes:
    """``value`` (structs, dataclasses, paths) as JSON."""
    return msgspec.json.encode(value, enc_hook=_encode)


def _encode(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value)} in JSON")


def decode_path(kind: type, value: Any) -> Any:
    """msgspec's hook for paths, which JSON keeps as text."""
    if issubclass(kind, Path):
        return kind(value)
    raise NotImplementedError(f"{kind} from JSON")


def next_number(runs: Path) -> Path:
    number = 1
    while (runs / f"train-{number}").exists():
        number += 1
    return runs / f"train-{number}"


def named(runs: Path, name: str) -> RunFiles:
    """The run of that name, or the one whose folder it is, as a shell completes it. It need not exist."""
    folder = Path(name).absolute()
    return RunFiles(folder if (folder / "plan.json").is_file() else runs / name)


def all_runs(runs: Path) -> Iterator[RunFiles]:
    """Runs in the folder ``runs``, the one that was begun or resumed last first."""
    plans = sorted(runs.glob("*/plan.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in plans:
        yield RunFiles(path.parent)
