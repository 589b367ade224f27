"""Uploads: an archive sent to Codabench once, and what is known of those that were sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from submission import SubmissionError
from submission.codabench import (
    COMPETITION,
    LONGEST_NAME,
    Codabench,
    Phase,
    UncertainError,
    find_phase,
)
from toolkit import console
from toolkit.entry import write_json, write_receipt
from toolkit.errors import ToolkitError
from toolkit.files import turn

AGAIN = ("Failed", "Cancelled")
"""States of a submission after which the same archive may be sent again: it has no score."""


class _Sent(msgspec.Struct):
    """Where an archive was sent to; no number: the answer was lost."""

    url: str
    phase: int
    submission: int | None = None


class _Kept(msgspec.Struct):
    """The receipt of an upload."""

    created: str
    archive: dict[str, str]
    codabench: _Sent


@dataclass(frozen=True)
class Upload:
    """One archive on its way to one phase.

    Attributes:
        client: from :func:`check_upload`.
        archive: the checked zip.
        receipt: of the archive, from :func:`make_receipt`.
        folder: where the receipts of all uploads are kept, one file each.
        competition: Codabench's number of the competition.
    """

    client: Codabench
    archive: Path
    receipt: Mapping[str, Any]
    folder: Path
    competition: int = COMPETITION

    def send(self, phase: str | None, phase_id: int | None = None, again: bool = False) -> dict[str, Any]:
        """Send the archive and make it a submission.

        The receipt is written before the request that makes the submission, so that an upload whose answer
        was lost is known to the next one.

        Args:
            phase: of the challenge, whose name finds Codabench's.
            phase_id: Codabench's number of the phase; wins over ``phase``.
            again: send it although the same archive was sent to this phase before.

        Returns:
            What the receipt records: instance, competition, phase and number of the submission.

        Raises:
            ToolkitError: the phase takes nothing now, or the same archive was sent to it before.
            SubmissionError: Codabench refuses it or does not answer.
        """
        with turn(self.folder):
            chosen = self._open_phase(phase, phase_id)
            if not again:
                self._refuse_again(chosen.id)
            self.client.check_quota(chosen.id)
            key = self.client.store(self.archive.read_bytes(), self.name, self.competition)
            record = self.folder / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}-{self.digest[:12]}.json"
            self._record(record, chosen.id, None)
            try:
                made = self.client.make(key, chosen.id)
            except UncertainError as error:
                made = self._find_made(chosen.id, error)
            except SubmissionError:
                record.unlink()
                raise
            return self._record(record, chosen.id, made)

    @property
    def digest(self) -> str:
        """SHA-256 of the archive."""
        return str(self.receipt["archive"]["sha256"])

    @property
    def name(self) -> str:
        """The file's name at Codabench: it says which archive it is, also to another machine."""
        return f"{self.archive.stem[: LONGEST_NAME - 13]}-{self.digest[:12]}.zip"

    def _open_phase(self, phase: str | None, phase_id: int | None) -> Phase:
        competition = self.client.competition(self.competition)
        if phase_id is None:
            chosen = find_phase(competition, str(phase), self.competition)
        else:
            numbered = {each.id: each for each in competition.phases}
            if phase_id not in numbered:
                raise ToolkitError(
                    f"competition {self.competition} has no phase {phase_id}",
                    found=competition.listed(),
                )
            chosen = numbered[phase_id]
        if chosen not in competition.open_phases:
            ended = chosen.status == "Previous"
            raise ToolkitError(
                f"phase {chosen.id} {chosen.name!r} of competition {self.competition} "
                + (f"ended {chosen.end or ''}".rstrip() if ended else f"begins {chosen.start or 'later'}"),
                found=competition.listed(),
                expected="an open phase",
            )
        return chosen

    def _refuse_again(self, phase_id: int) -> None:
        """Refuse an archive that this phase has: our receipts know it, or the server, by its name."""
        theirs = {made.filename: made for made in reversed(self.client.submissions(phase_id))}
        number, when = self._sent_before(phase_id)
        made = theirs.get(self.name) if number is None else self.client.submission(number)
        if made is not None and made.status not in AGAIN:
            raise ToolkitError(
                "this archive was uploaded before",
                found=f"submission {made.id} ({made.status}) of {made.created_when or when}",
                expected="another archive",
                fix="if it is meant to use up one more submission: --upload-again",
            )

    def _sent_before(self, phase_id: int) -> tuple[int | None, str]:
        """Number and date of the newest submission of this archive to this phase, by our receipts."""
        newest: tuple[int | None, str] = None, ""
        for path in sorted(self.folder.glob(f"*-{self.digest[:12]}.json")):
            try:
                kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
            except (OSError, msgspec.DecodeError):
                continue
            sent = kept.codabench
            same = (kept.archive.get("sha256"), sent.url, sent.phase) == (
                self.digest,
                self.client.url,
                phase_id,
            )
            if same and sent.submission is not None:
                newest = sent.submission, kept.created
        return newest

    def _find_made(self, phase_id: int, error: UncertainError) -> int:
        """Look whether a submission was made although its answer was lost."""
        console.note(f"{error.what}; looking whether it was made all the same")
        for made in self.client.submissions(phase_id):
            if made.filename == self.name and made.status not in AGAIN:
                return made.id
        raise error

    def _record(self, record: Path, phase_id: int, number: int | None) -> dict[str, Any]:
        sent = {
            "url": self.client.url,
            "competition": self.competition,
            "phase": phase_id,
            "file": self.name,
            "submission": number,
        }
        whole = {**self.receipt, "codabench": sent}
        write_json(record, whole)
        if number is not None:
            write_receipt(self.archive, whole)
        return sent
