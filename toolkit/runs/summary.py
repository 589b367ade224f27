"""Writing ``summary.json``: how a run is going or went."""

from __future__ import annotations

import shutil
from contextlib import suppress

import msgspec

from toolkit.errors import ToolkitError
from toolkit.runs import events, heartbeat, results
from toolkit.runs.folder import RunFiles, RunState, Summary, read_instructions, read_summary, write_json


def write(
    files: RunFiles, state: RunState, reason: str = "", *, seconds: float = 0.0, restarts: int = 0
) -> Summary:
    """Put together from the run's files what happened, and keep it; a full disk loses the file only.

    The checkpoints go when it is on the disk that the run has finished: without both it would begin anew.
    """
    beat = heartbeat.read(files)
    summary = read_summary(files) or Summary(state)
    if beat is not None and beat.phase != "starting":  # one that starts knows less than the summary
        summary = msgspec.structs.replace(
            summary,
            epochs=beat.epoch,
            epochs_planned=beat.epochs,
            best=beat.best,
            images_per_second=beat.images_per_second,
            gpu_memory=beat.gpu_memory,
            skipped_updates=beat.skipped_updates,
        )
    summary = msgspec.structs.replace(
        summary,
        state=state,
        reason=reason,
        seconds=seconds,
        restarts=restarts,
        bad_frames=files.bad_frames(),
        skipped_batches=len(read_instructions(files).skip),
        events=events.count(events.read(files.events)),
        nothing_learned=results.nothing_learned(files.results) if state == "finished" else "",
    )
    with suppress(ToolkitError):
        write_json(files.summary, summary)
        if state == "finished":
            shutil.rmtree(files.checkpoints, ignore_errors=True)
    return summary
