"""A competition as Codabench tells it; what was told last is kept beside the data, lists of ids too."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from submission import SubmissionError, templates
from submission.answers import Competition, Phase
from submission.codabench import Codabench, find_phase, plain
from submission.competitions import PHASES, others_open, phase_of
from submission.errors import NO_JSON
from submission.kits import template_in
from toolkit import console
from toolkit.errors import ToolkitError, reason
from toolkit.files import replacing
from toolkit.phases import Template, shipped


class KeptTemplate(msgspec.Struct, frozen=True):
    """Where the ids in ``codabench-<number>-<phase>.json`` are from.

    Attributes:
        kit: the server's key of the starting kit; another kit has another one.
        member: the file in it.
        read: when, ISO 8601.
    """

    kit: str
    member: str
    read: str


class KeptCompetition(msgspec.Struct, frozen=True):
    """``codabench-<number>.json`` beside the data.

    Attributes:
        url: the instance that was asked.
        read: when, ISO 8601.
        competition: phases, dates, quotas and the leaderboard's columns.
        templates: number of a phase -> the list of ids that its starting kit has.
    """

    url: str
    read: str
    competition: Competition
    templates: dict[int, KeptTemplate] = {}


def ask(client: Codabench, number: int, data: Path | None = None) -> KeptCompetition:
    """Ask for a competition; keep the answer and the lists of ids beside the data, where that can be written.

    Returns:
        What is known now; without templates where there is no data, or nothing can be written beside it.

    Raises:
        SubmissionError: there is no such competition, or the token may not see it.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    told = KeptCompetition(client.url, now, client.competition(number))
    if data is None:
        return told
    try:
        whole = msgspec.structs.replace(told, templates=_keep_templates(client, told, number, data))
        _write(_path(data, number), msgspec.json.format(msgspec.json.encode(whole)))
    except ToolkitError as error:
        console.note(f"the competition's dates are not kept: {error.line()}")
        return told
    return whole


def kept(data: Path, number: int) -> KeptCompetition | None:
    """What was told last; None if nothing was, with a warning if the file is none."""
    path = _path(data, number)
    try:
        return _read(path)
    except FileNotFoundError:
        return None
    except (OSError, *NO_JSON) as error:
        console.warn(f"{path} is no competition: {reason(error)}")
        return None


def template_of(told: KeptCompetition, data: Path, number: int, phase: int) -> Template | None:
    """The ids of a phase by its number at Codabench, as they were told last; None if they were not.

    Raises:
        SubmissionError: the file that they are kept in is missing or damaged.
    """
    if phase not in told.templates:
        return None
    title = next((plain(each.name) for each in told.competition.phases if each.id == phase), "")
    read = told.templates[phase].read[:10]
    words = f"the template of phase {phase} {title!r}, as {told.url} gave it on {read}"
    return Template(templates.read(template_path(data, number, phase)), words)


def template_path(data: Path, number: int, phase: int) -> Path:
    """Where the ids of a phase, by its number at Codabench, are kept."""
    return data / f"codabench-{number}-{phase}.json"


def templates_of(told: KeptCompetition | None, data: Path, number: int) -> Mapping[str, Template]:
    """The ids of each phase of ours: the shipped ones, or what a competition's starting kits have instead.

    Raises:
        SubmissionError: a file of kept ids is missing or damaged.
    """
    known = shipped()
    if told is None or not told.templates:
        return known
    for name in known:
        try:
            found = find_phase(told.competition, name, number).id
        except SubmissionError:  # no phase of the competition has this name
            continue
        theirs = template_of(told, data, number, found)
        if theirs is not None and not np.array_equal(np.sort(theirs.ids), np.sort(known[name].ids)):
            known = {**known, name: theirs}
    return known


def warn_of_the_end(told: KeptCompetition, number: int, phase: str) -> None:
    """Warn if a phase is over by what was told last; nobody is asked."""
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


def _keep_templates(
    client: Codabench, told: KeptCompetition, number: int, data: Path
) -> dict[int, KeptTemplate]:
    """Read the starting kits that are new, and keep the ids that they have for their phases.

    A kit that cannot be used is said to be so; what was kept of an earlier one is then no longer told.

    Raises:
        ToolkitError: the ids cannot be written.
    """
    before: Mapping[int, KeptTemplate] = {}
    with suppress(OSError, *NO_JSON):  # what cannot be read is about to be replaced
        last = _read(_path(data, number))
        before = last.templates if last.url == told.url else before
    found: dict[int, KeptTemplate] = {}
    kits: dict[str, bytes] = {}
    for phase in told.competition.phases:
        key = phase.starting_kit.key if phase.starting_kit is not None else ""
        path = template_path(data, number, phase.id)
        if not key:
            continue
        if phase.id in before and before[phase.id].kit == key and path.is_file():
            found[phase.id] = before[phase.id]
            continue
        try:
            if key not in kits:
                kits[key] = client.file(key)
            member, ids = _template_in(kits[key], phase, number)
        except SubmissionError as error:
            console.note(
                f"no list of ids from the starting kit of phase {phase.id} {plain(phase.name)!r}: "
                f"{plain(str(error))}; --template names one"
            )
            continue
        _write(path, msgspec.json.encode({str(image): {} for image in ids.tolist()}))
        found[phase.id] = KeptTemplate(key, member, told.read)
        console.note(f"phase {phase.id} {plain(phase.name)!r} expects {len(ids):,} ids, kept as {path}")
    return found


def _template_in(kit: bytes, phase: Phase, number: int) -> tuple[str, npt.NDArray[np.int64]]:
    """The list of ids that a kit has for a phase: by the words of its known name, else by its own title."""
    known = [each for name in PHASES if (each := phase_of(number, name)) and each.is_called(phase.name)]
    words = known[0].words if len(known) == 1 else (phase.name.lower(),)
    return template_in(kit, "the starting kit", lambda name: any(word in name.lower() for word in words))


def _read(path: Path) -> KeptCompetition:
    return msgspec.json.decode(path.read_bytes(), type=KeptCompetition)


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content + b"\n")


def _path(data: Path, number: int) -> Path:
    return data / f"codabench-{number}.json"
