"""What becomes of uploads: followed to their score, listed with what they were made from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from submission import SubmissionError
from submission.answers import Competition, Made
from submission.codabench import Codabench, RefusedError, plain
from toolkit import console
from toolkit.competition import ask
from toolkit.competition import kept as kept_competition
from toolkit.errors import ToolkitError
from toolkit.uploads import Kept, complete, kept_in

POLL = 5.0
"""Seconds between the first two looks; each further pause is half as long again."""

LONGEST_POLL = 60.0
"""Seconds; also how long the state is left unsaid."""

PATIENCE = 24 * 3600.0
"""Seconds after which nobody waits any more; submissions have hung for hours (codabench 2151, 1546)."""

SCORELESS_LOOKS = 3
"""Looks at a finished submission until it is believed to have no score."""


def follow(
    client: Codabench,
    number: int,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Made:
    """Look at a submission until it is over; every change of its state is a line.

    A server that does not answer, or answers something else, is asked again for as long as
    :data:`PATIENCE` allows: the submission goes on without us.

    Args:
        client: the account that made it.
        number: of the submission.
        sleep, clock: waiting and its clock; seconds.

    Raises:
        SubmissionError: the server refuses to show it.
        ToolkitError: it was not over in time.
    """
    began = said = clock()
    shown, scoreless, pause = "", 0, POLL
    while True:
        try:
            made = client.submission(number)
            state = plain(made.status)[:40] or "unknown"
        except RefusedError:
            raise
        except SubmissionError as error:
            made, state = None, f"no answer ({error.what})"
        now = clock()
        if state != shown or now - said >= LONGEST_POLL:
            console.note(f"submission {number}: {state}" + (f", {now - began:.0f} s" if shown else ""))
            pause = pause if state == shown else POLL
            shown, said = state, now
        if made is not None and made.over:
            scoreless += made.status == "Finished" and not made.values
            if made.status != "Finished" or made.values or scoreless >= SCORELESS_LOOKS:
                return made
        if now - began >= PATIENCE:
            raise ToolkitError(
                f"submission {number} is not over after {PATIENCE / 3600:.0f} hours",
                found=state,
                fix="it goes on at Codabench; `toolkit submissions` shows what becomes of it",
            )
        sleep(pause)
        pause = min(1.5 * pause, LONGEST_POLL)


def outcome(client: Codabench, made: Made) -> dict[str, float]:
    """The scores of a submission that is over.

    Raises:
        ToolkitError: it failed or was cancelled, with the server's message; or it has no score.
    """
    if made.status == "Finished" and made.values:
        return made.values
    said = [plain(made.status_details or "")]
    with suppress(SubmissionError):  # the phase may hide its logs
        said.append(client.log(made.id))
    told = "; ".join(each for each in said if each) or "no message; the phase may hide its logs"
    what = "finished without a score" if made.status == "Finished" else made.status.lower()
    raise ToolkitError(
        f"submission {made.id} {what}",
        found=told,
        fix=f"{client.url} shows it under My Submissions; a failed one does not count for the quota",
    )


KEYS = ("global_map_bal", "global_map_50", "global_map_con")
"""The scores that a narrow table shows, if the server has them."""


@dataclass(frozen=True)
class Line:
    """A submission, as ``toolkit submissions`` shows it.

    Attributes:
        number: Codabench's; None where the answer to the upload was lost.
        created: ISO 8601.
        phase: its name, or its number where the server was not asked.
        status: the server's, or the last one that a receipt has seen.
        scores: column -> number.
        validation: the scores that the same weights got on the validation split, if known.
        weights: name and hash of the checkpoint; empty where it was made elsewhere.
        commit: of the source that trained them.
        file: the name it was sent under.
    """

    number: int | None
    created: str
    phase: str
    status: str
    scores: dict[str, float]
    validation: dict[str, float | str | None]
    weights: dict[str, str]
    commit: str
    file: str


@dataclass(frozen=True)
class Quota:
    """What is left of a phase; None for no limit."""

    phase: int
    name: str
    status: str
    ends: str | None
    left_today: int | None
    left: int | None


@dataclass(frozen=True)
class Overview:
    """All that is known of an account's submissions to a competition."""

    competition: int
    title: str
    ranking_key: str
    quotas: tuple[Quota, ...]
    lines: tuple[Line, ...]


def overview(folder: Path, number: int, client: Codabench | None, data: Path | None = None) -> Overview:
    """What the server says of a competition's phases and submissions, joined with the receipts.

    Receipts whose submission has moved on are completed.

    Args:
        folder: of the receipts of uploads.
        number: of the competition.
        client: None where there is no token; then the receipts alone are told.
        data: LTDv2's files, beside which the competition is kept; None where they are not known.

    Raises:
        SubmissionError: the server refuses or does not answer.
        ToolkitError: a receipt cannot be written.
    """
    receipts = [(path, kept) for path, kept in kept_in(folder) if kept.codabench.competition == number]
    if client is None:
        told = kept_competition(data, number) if data is not None else None
        names = {p.id: plain(p.name) for p in told.competition.phases} if told is not None else {}
        key = told.competition.ranking_key if told is not None else ""
        lines = [
            _line(None, kept, names.get(kept.codabench.phase, str(kept.codabench.phase)))
            for _, kept in reversed(receipts)
        ]
        return Overview(number, "", key, (), tuple(lines))
    competition = ask(client, number, data).competition
    receipts = [(path, kept) for path, kept in receipts if kept.codabench.url == client.url]
    lines = []
    for phase in competition.phases:
        unseen = {path: kept for path, kept in receipts if kept.codabench.phase == phase.id}
        for made in client.submissions(phase.id):
            path = next((path for path, kept in unseen.items() if _is_of(made, kept)), None)
            kept = unseen.pop(path) if path is not None else None
            if path is not None:
                complete(path, made)
            lines.append(_line(made, kept, plain(phase.name)))
        lines += [_line(None, kept, plain(phase.name)) for kept in unseen.values()]
    return Overview(
        number, plain(competition.title), competition.ranking_key, _quotas(competition), tuple(lines)
    )


def _is_of(made: Made, kept: Kept) -> bool:
    sent = kept.codabench
    return made.id == sent.submission if sent.submission is not None else made.filename == sent.file


def _quotas(competition: Competition) -> tuple[Quota, ...]:
    return tuple(
        Quota(p.id, plain(p.name), plain(p.status), p.end, p.left_today, p.left) for p in competition.phases
    )


def _line(made: Made | None, kept: Kept | None, phase: str) -> Line:
    sent = kept.codabench if kept is not None else None
    status = made.status if made is not None else (sent.status if sent is not None else "")
    return Line(
        number=made.id if made is not None else sent.submission if sent is not None else None,
        created=plain((made.created_when if made is not None else "") or (kept.created if kept else "")),
        phase=phase,
        status=plain(status) or ("answer lost" if sent is not None and sent.submission is None else "sent"),
        scores=made.values if made is not None else sent.scores if sent is not None else {},
        validation=kept.validation if kept is not None else {},
        weights=kept.weights if kept is not None else {},
        commit=kept.commit if kept is not None else "",
        file=plain((made.filename if made is not None else "") or (sent.file if sent is not None else "")),
    )


def score_table(scores: Mapping[str, float], kept: Kept | None) -> Table:
    """A row for each score of Codabench's, beside what the same weights got on the validation split."""
    validation = kept.validation if kept is not None else {}
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in ("Codabench", *["validation"] * bool(validation)):
        table.add_column(name, justify="right")
    for key, score in scores.items():
        ours = validation.get(key)
        cells = [f"{ours:.4f}" if isinstance(ours, float) else "-"] if validation else []
        table.add_row(escape(plain(key)), f"{score:.4f}", *cells)
    return table


def quota_lines(seen: Overview) -> list[str]:
    """What is left of each phase, a line each."""
    return [
        f"{quota.name} ({quota.phase}): {_STATES.get(quota.status, quota.status)}"
        + (f", until {quota.ends}" if quota.ends and quota.status == "Current" else "")
        + f"; {_amount(quota.left_today)} left today, {_amount(quota.left)} of the phase"
        for quota in seen.quotas
    ]


def overview_table(seen: Overview) -> Table:
    """A row for each submission, the newest of each phase first."""
    keys = [key for key in (seen.ranking_key, *KEYS) if key]
    shown = [key for key in dict.fromkeys(keys) if any(key in line.scores for line in seen.lines)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("submission", "made", "phase", "state", *shown, "validation", "weights", "commit"):
        table.add_column(name, justify="right" if name in shown else "left", overflow="fold")
    for line in seen.lines:
        ours = line.validation.get(seen.ranking_key or KEYS[0])
        table.add_row(
            str(line.number or "-"),
            line.created[:16].replace("T", " "),
            escape(line.phase),
            escape(line.status),
            *(f"{line.scores[key]:.4f}" if key in line.scores else "-" for key in shown),
            f"{ours:.4f}" if isinstance(ours, float) else "-",
            escape(", ".join(f"{name} {digest[:8]}" for name, digest in line.weights.items())) or "-",
            line.commit[:12] or "-",
        )
    return table


_STATES = {"Current": "open", "Previous": "ended", "Next": "not begun", "": "state unknown"}


def _amount(left: int | None) -> str:
    return "any number" if left is None else str(left)
