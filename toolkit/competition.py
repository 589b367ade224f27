"""A competition as Codabench tells it; what was told last is kept beside the data."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import msgspec

from submission import SubmissionError
from submission.answers import Competition
from submission.codabench import Codabench, find_phase, plain
from submission.competitions import others_open
from submission.errors import NO_JSON
from toolkit import console
from toolkit.errors import ToolkitError, reason
from toolkit.files import replacing


class KeptCompetition(msgspec.Struct, frozen=True):
    """``codabench-<number>.json`` beside the data.

    Attributes:
        url: the instance that was asked.
        read: when, ISO 8601.
        competition: phases, dates, quotas and the leaderboard's columns.
    """

    url: str
    read: str
    competition: Competition


def ask(client: Codabench, number: int, data: Path | None = None) -> Competition:
    """Ask for a competition and keep the answer beside the data, where that can be written.

    Raises:
        SubmissionError: there is no such competition, or the token may not see it.
    """
    found = client.competition(number)
    if data is not None:
        kept = KeptCompetition(client.url, datetime.now(timezone.utc).isoformat(timespec="seconds"), found)
        try:
            with replacing(_path(data, number)) as temporary:
                temporary.write_bytes(msgspec.json.format(msgspec.json.encode(kept)) + b"\n")
        except ToolkitError as error:
            console.note(f"the competition's dates are not kept: {error.line()}")
    return found


def kept(data: Path, number: int) -> KeptCompetition | None:
    """What was told last; None if nothing was, with a warning if the file is none."""
    path = _path(data, number)
    try:
        return msgspec.json.decode(path.read_bytes(), type=KeptCompetition)
    except FileNotFoundError:
        return None
    except (OSError, *NO_JSON) as error:
        console.warn(f"{path} is no competition: {reason(error)}")
        return None


def warn_of_the_end(data: Path, number: int, phase: str) -> None:
    """Warn if a phase is over by what was told last; nobody is asked."""
    told = kept(data, number)
    if told is None:
        return
    try:
        found = find_phase(told.competition, phase, number)
        end = datetime.fromisoformat((found.end or "").replace("Z", "+00:00"))
        ended = end < datetime.now(timezone.utc)
    except (SubmissionError, ValueError, TypeError):
        return  # no such phase, no end, or a date that is none: the upload asks again
    if ended:
        others = others_open(number, datetime.now(timezone.utc).date())
        console.warn(
            f"phase {found.id} {found.name!r} of competition {number} ended {plain(found.end or '')}, "
            f"as {told.url} said on {told.read[:10]}" + (f"; also known: {others}" if others else "")
        )


def _path(data: Path, number: int) -> Path:
    return data / f"codabench-{number}.json"
