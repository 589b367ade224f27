"""The trainer's sign of life: where it is and how it is doing, in a small file that others read."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from contextlib import suppress
from typing import Literal

import msgspec

from submission.errors import NO_JSON
from toolkit.runs.folder import Batch, RunFiles

INTERVAL = 2.0
"""Seconds between two writes of the heartbeat while a phase lasts."""

TRIES = 5
"""Times that a heartbeat is read before it counts as none: on a full disk it may be half written over."""

Phase = Literal["starting", "training", "validating", "finished"]


class Beat(msgspec.Struct, frozen=True):
    """One heartbeat.

    Attributes:
        pid: of the trainer.
        count: beats so far; what moves is alive, whatever the clocks say.
        phase: what the trainer is doing.
        epoch, epochs: counted from 0; how many there are.
        batch, batches: batches done in this epoch; how many it has.
        loss: components of the last loss, by name; NaN and infinity are null.
        median_loss: running median of the sum.
        learning_rate: of the first parameter group.
        images_per_second: over the last batches.
        loader_wait: fraction of the time spent waiting for the loader, over the last batches.
        step_seconds: quartiles of the time of a batch (25 %, 50 %, 75 %), over the last batches.
        validation_seconds: how long the last validation took, with its share of the scoring; 0 before the
            first.
        validated_every: epochs from one validation to the next; the last one is validated as well.
        gpu_memory: bytes reserved on the device; 0 on a CPU.
        memory: bytes that the trainer holds, and what its loader's workers have added to theirs; not counting
            pages of files, such as the frame cache's, which the system may take back.
        updates: of the weights in this process, those left out included.
        skipped_updates: updates left out because of a loss or gradient that was not finite.
        skipped_in_a_row: how many of them since the last good update.
        frames, bad_frames: frames that this trainer and the workers ahead of it have read at most, and those
            replaced because they did not decode.
        best: highest so far of what chooses best.pt; null before the first validation.
    """

    pid: int
    count: int
    phase: Phase
    epoch: int = 0
    epochs: int = 0
    batch: int = 0
    batches: int = 0
    loss: dict[str, float | None] = {}
    median_loss: float | None = None
    learning_rate: float = 0.0
    images_per_second: float = 0.0
    loader_wait: float = 0.0
    step_seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    validation_seconds: float = 0.0
    validated_every: int = 1
    gpu_memory: int = 0
    memory: int = 0
    updates: int = 0
    skipped_updates: int = 0
    skipped_in_a_row: int = 0
    frames: int = 0
    bad_frames: int = 0
    best: float | None = None

    @property
    def total_loss(self) -> float | None:
        """Sum of the components, or None when one is not finite."""
        values = list(self.loss.values())
        if not values or any(value is None for value in values):
            return None
        return sum(value for value in values if value is not None)

    def seconds_left(self) -> tuple[float, float, float] | None:
        """Time to the end of training, from the quartiles of the time of a batch: low, middle, high."""
        if not self.step_seconds[1]:
            return None
        batches = max(self.epochs * self.batches - self.epoch * self.batches - self.batch, 0)
        validations = -(-self.epochs // self.validated_every) - self.epoch // self.validated_every
        validating = max(validations, 0) * self.validation_seconds
        low, middle, high = (batches * seconds + validating for seconds in self.step_seconds)
        return low, middle, high


def write(files: RunFiles, beat: Beat) -> None:
    """Replace the heartbeat, without a flush to the disk: it is old news after a power cut.

    A full disk has no room for a second file. The beat is then written over the last one, in the block that
    is there: a run whose beats are lost would look like one that hangs.
    """
    content = msgspec.json.encode(beat)
    temporary = files.run / ".heartbeat.tmp"
    try:
        temporary.write_bytes(content)
        temporary.replace(files.heartbeat)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
            with files.heartbeat.open("r+b") as file:
                file.write(content)
                file.truncate()


def read(files: RunFiles) -> Beat | None:
    """The newest heartbeat; None where there is none yet."""
    with suppress(OSError):
        for _ in range(TRIES):
            with suppress(*NO_JSON):
                return msgspec.json.decode(files.heartbeat.read_bytes(), type=Beat)
            time.sleep(0.01)
    return None


class MemoryGauge:
    """Measures :attr:`Beat.memory`; to be asked again and again by the process that it is about."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}

    def read(self) -> int:
        """Bytes. A worker begins as a copy that shares memory with the others: only what it adds counts."""
        grown = 0
        for child in multiprocessing.active_children():
            if child.pid is not None and (now := _anonymous(child.pid)) is not None:
                grown += now - self._first.setdefault(child.pid, now)
        return (_anonymous(os.getpid()) or 0) + grown


def _anonymous(process: int) -> int | None:
    """Resident bytes of a process that belong to no file; None if it has ended.

    They are what /proc/PID/status has as RssAnon, from a file that the kernel makes in less time.
    """
    with suppress(OSError):
        handle = os.open(f"/proc/{process}/statm", os.O_RDONLY)
        try:
            _, resident, of_files, *_ = map(int, os.read(handle, 256).split())
        finally:
            os.close(handle)
        return (resident - of_files) * mmap.PAGESIZE if resident else None  # 0: it has ended
    return None


class Cursor:
    """The exact batch that the trainer is working on: one short write a batch, in place.

    It outlives a kill -9 (the page cache keeps it), so that two faults can be told to have happened
    in the same batch. A batch that is in the file already is not written again: it is named when the one
    before it ends, and once more when it begins. Memory mapped from the file would be cheaper to write to,
    but a full disk could kill the process there.
    """

    def __init__(self, files: RunFiles) -> None:
        self._handle = os.open(files.cursor, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._written: Batch | None = None

    def set(self, batch: Batch) -> None:
        """The trainer begins this batch."""
        if batch == self._written:
            return
        try:
            os.pwrite(self._handle, b"%8d %12d %8d\n" % batch, 0)
            self._written = batch
        except OSError:
            self._written = None  # it is tried again

    @staticmethod
    def read(files: RunFiles) -> Batch | None:
        """The batch; None before the first."""
        try:
            epoch, first, size = files.cursor.read_text().split()
            return Batch(int(epoch), int(first), int(size))
        except (OSError, ValueError):
            return None
