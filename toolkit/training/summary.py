"""Writing ``summary.json``: how a run is going or went."""

from __future__ import annotations

from contextlib import suppress

from toolkit.errors import ToolkitError
from toolkit.training import events, heartbeat
from toolkit.training.rundir import RunFiles, RunState, Summary, read_orders, write_json


def write(
    files: RunFiles, state: RunState, reason: str = "", *, seconds: float = 0.0, restarts: int = 0
) -> Summary:
    """Put together from the run's files what happened, and keep it; a full disk loses the file only."""
    beat = heartbeat.read(files) or heartbeat.Beat(pid=0, count=0, phase="starting")
    summary = Summary(
        state=state,
        reason=reason,
        epochs=beat.epoch,
        epochs_planned=beat.epochs,
        best=beat.best,
        images_per_second=beat.images_per_second,
        gpu_memory=beat.gpu_memory,
        seconds=seconds,
        restarts=restarts,
        skipped_updates=beat.skipped_updates,
        bad_frames=beat.bad_frames,
        skipped_batches=len(read_orders(files).skip),
        events=events.count(events.read(files.events)),
    )
    with suppress(ToolkitError):
        write_json(files.summary, summary)
    return summary
