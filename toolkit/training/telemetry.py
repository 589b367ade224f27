"""What a training tells about itself: heartbeat, cursor and events, and the clocks behind their figures."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import deque
from typing import Any

from ultralytics.utils import RANK

from toolkit import console
from toolkit.dataset.loader import PREFETCH
from toolkit.runs import events, heartbeat
from toolkit.runs.folder import Batch, RunFiles

WINDOW = 200
"""Batches that rates, waits and the running median of the loss look back on."""

MAIN = RANK in {-1, 0}
"""Whether this process writes files and decides: the only one, or the first of several ranks."""


class Telemetry:
    """Writes the heartbeat, the cursor and the events of a run; of several ranks the first does.

    Attributes:
        beats: so far, written or not.
        losses: sums of the last batches' components, of those that were finite.
        frames: that training and validation have read.
        validation_seconds: how long the last validation took, with its share of the scoring.

    Args:
        files: of the run, whose folder is there.
    """

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        self.beats = self.frames = 0
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.validation_seconds = 0.0
        self._newest_loss: dict[str, float] = {}
        self._bad_before = files.bad_frames()
        self._phase: heartbeat.Phase | None = None
        self._last_beat = self._last_batch_end = self._validation_start = time.monotonic()
        self._warm, self._wait = False, 0.0
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._waits: deque[float] = deque(maxlen=WINDOW)
        self._memory = heartbeat.MemoryGauge()
        self._cursor = heartbeat.Cursor(files)

    def record(self, kind: str, action: str, detail: str = "") -> None:
        """An event of the run, told to whoever watches the terminal as well."""
        if MAIN:
            event = events.record(self.files.events, kind, action, detail, heartbeat.Cursor.read(self.files))
            console.warn(event.line())

    def epoch_begins(self) -> None:
        """The next batch is waited for from now on."""
        self._last_batch_end = time.monotonic()

    def batch_begins(self, batch: Batch) -> None:
        """``batch`` is there, and is named before anything in it can kill the process."""
        if MAIN:
            self._cursor.set(batch)
        self._wait = time.monotonic() - self._last_batch_end

    def loss_arrives(self, components: dict[str, float]) -> bool:
        """The loss of a batch is known, on a card a batch later than it ended; whether it is finite."""
        self._newest_loss = components
        finite = math.isfinite(loss := sum(components.values()))
        if finite:
            self.losses.append(loss)
        return finite

    def batch_ends(self, following: Batch, frames: int) -> None:
        """A batch has been trained.

        Args:
            following: the batch that is due.
            frames: that all ranks read for it.
        """
        self.frames += frames
        if MAIN:
            self._cursor.set(following)
        now = time.monotonic()
        if self._warm:  # the first batch of a process, which compiles and tunes, is no usual one
            self._seconds.append(now - self._last_batch_end)
            self._waits.append(self._wait)
        self._warm = True
        self._last_batch_end = now

    def validation_begins(self, frames: int) -> None:
        """So many frames are going to be validated."""
        self._validation_start = time.monotonic()
        self.frames += frames

    def validation_ends(self) -> None:
        """The clock of the validation stops."""
        self.validation_seconds = time.monotonic() - self._validation_start

    def beat(self, phase: heartbeat.Phase, trainer: Any) -> None:
        """A sign of life; written when the phase changes, and every :data:`heartbeat.INTERVAL` seconds.

        Args:
            phase: what the trainer is doing.
            trainer: a :class:`toolkit.training.resumable.ResumableTrainer`, at any point of its life.
        """
        self.beats += 1
        clock = time.monotonic()
        if not MAIN or (phase == self._phase and clock - self._last_beat < heartbeat.INTERVAL):
            return
        self._last_beat, self._phase = clock, phase
        loader, optimizer = getattr(trainer, "train_loader", None), getattr(trainer, "optimizer", None)
        # Workers may have met, and found bad, frames for batches that are not trained yet.
        ahead = loader.num_workers * PREFETCH * trainer.batch_size if loader else 0
        seconds = sum(self._seconds)
        beat = heartbeat.Beat(
            pid=os.getpid(),
            count=self.beats,
            phase=phase,
            epoch=max(trainer.progress.epoch, 0),
            epochs=trainer.epochs,
            batch=loader.batch_number + 1 if loader and trainer.progress.samples else 0,
            batches=len(loader) if loader else 0,
            loss={name: _finite_or_none(value) for name, value in self._newest_loss.items()},
            median_loss=statistics.median(self.losses) if self.losses else None,
            learning_rate=optimizer.param_groups[0]["lr"] if optimizer else 0.0,
            images_per_second=len(self._seconds) * trainer.batch_size / seconds if seconds else 0.0,
            loader_wait=min(sum(self._waits) / seconds, 1.0) if seconds else 0.0,
            step_seconds=_quartiles(self._seconds),
            validation_seconds=self.validation_seconds,
            validated_every=trainer.passes.every,
            gpu_memory=int(trainer._get_memory() * 2**30),
            memory=self._memory.read(),
            updates=trainer.updates,
            skipped_updates=trainer.skipped_updates,
            skipped_in_a_row=trainer.skipped_in_a_row,
            frames=self.frames + round(ahead * frames_a_sample(trainer)),
            bad_frames=self.files.bad_frames() - self._bad_before,
            best=None if trainer.best_fitness is None else float(trainer.best_fitness),
        )
        heartbeat.write(self.files, beat)


def frames_a_sample(trainer: Any) -> float:
    """Frames that a training sample of this epoch is made of, in the mean: a mosaic takes three more."""
    args = trainer.args
    closed = args.close_mosaic and trainer.progress.epoch >= trainer.epochs - args.close_mosaic
    return 1.0 if closed else 1.0 + 3.0 * args.mosaic


def _finite_or_none(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _quartiles(values: deque[float]) -> tuple[float, float, float]:
    if not values:
        return 0.0, 0.0, 0.0
    low, middle, high = statistics.quantiles([*values, *values], n=4, method="inclusive")
    return low, middle, high
