"""Frames that could not be used: told once, counted, and written down for all processes of a run."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from toolkit import console
from toolkit.dataset.frames import FrameError


class Skips:
    """The frames of one process that could not be used.

    Args:
        log: a line of JSON for each is appended to it; worker processes share it. None: nothing is written.

    Attributes:
        frames: name -> how often it was met.
    """

    def __init__(self, log: Path | None = None) -> None:
        self.log = log
        self.frames: dict[str, int] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"log": self.log, "frames": {}}  # another process counts its own

    def note(self, error: FrameError) -> None:
        """Count a frame."""
        if error.name not in self.frames:
            console.warn(f"{error.line()}; skipped")
        self.frames[error.name] = self.frames.get(error.name, 0) + 1
        if self.log is not None:
            line = json.dumps({"frame": error.name, "reason": error.line()}) + "\n"
            # One write of a short line at the end of the file: lines of several workers do not mix.
            with suppress(OSError), self.log.open("ab", buffering=0) as file:  # the disk may be full
                file.write(line.encode())
