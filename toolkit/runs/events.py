"""``events.jsonl``: every fault of a run and every intervention, one line each, oldest first."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from submission.errors import NO_JSON
from toolkit.runs.folder import Batch


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened to a run.

    Attributes:
        time: wall clock in ISO 8601, for people; nothing is computed from it.
        kind: a rule of :mod:`toolkit.runs.health`, or what the trainer met ("worker died").
        action: what was done about it.
        detail: the numbers.
        epoch, batch: where, counted from 0; -1 outside the epochs.
    """

    time: str
    kind: str
    action: str
    detail: str = ""
    epoch: int = -1
    batch: int = -1

    def line(self) -> str:
        """The event for a person."""
        where = f" at epoch {self.epoch + 1}, batch {self.batch}" if self.epoch >= 0 else ""
        return f"{self.kind}{where}: {self.detail + '; ' if self.detail else ''}{self.action}"


def record(path: Path, kind: str, action: str, detail: str = "", place: Batch | None = None) -> Event:
    """Append an event. A full disk loses the line, never the run."""
    epoch, batch = (place.epoch, place.number) if place else (-1, -1)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    event = Event(now, kind, action, detail, epoch, batch)
    line = msgspec.json.encode(event) + b"\n"
    with suppress(OSError):
        # One write with O_APPEND: lines of the supervisor and of the trainer never mix.
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            size = os.fstat(handle).st_size
            torn = size and os.pread(handle, 1, size - 1) != b"\n"  # by a full disk or a power cut
            os.write(handle, b"\n" + line if torn else line)
        finally:
            os.close(handle)
    return event


def read(path: Path) -> list[Event]:
    """All events; a line that a crash or a full disk cut short is left out."""
    events = []
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        with suppress(*NO_JSON):
            events.append(msgspec.json.decode(line, type=Event))
    return events


def count(events: Iterable[Event]) -> dict[str, int]:
    """Number of events of each kind, most frequent first."""
    return dict(Counter(event.kind for event in events).most_common())
