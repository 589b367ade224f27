"""Uploads: an archive sent to Codabench once, and what is known of those that were sent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from submission import SubmissionError
from submission.answers import Competition, Made, Phase
from submission.codabench import LONGEST_NAME, Codabench, RefusedError, UncertainError, find_phase, plain
from submission.competitions import DEFAULT, others_open
from submission.errors import NO_JSON
from toolkit import console
from toolkit.competition import KeptCompetition, ask, template_of
from toolkit.entry import receipt_of, write_receipt
from toolkit.errors import ToolkitError, reason
from toolkit.files import turn, write_json

LOOKS = (0.0, 5.0, 15.0)
"""Seconds before each look for a submission whose answer was lost."""

AGAIN = ("Failed", "Cancelled")
"""States of a submission after which the same archive may be sent again: it has no score."""


class Sent(msgspec.Struct):
    """Where an archive was sent to, and what came of it.

    Attributes:
        url, competition, phase: instance, and Codabench's numbers.
        submission: its number; None where the answer was lost.
        file: the name that it was sent under.
        receipt: path of the receipt beside the archive.
        status: the last one that was seen.
        scores: column -> number, of a submission that has finished.
    """

    url: str
    phase: int
    submission: int | None = None
    competition: int = 0
    file: str = ""
    receipt: str = ""
    status: str = ""
    scores: dict[str, float] = {}


class Kept(msgspec.Struct):
    """The receipt of an upload, as far as it is read again."""

    created: str
    archive: dict[str, str]
    codabench: Sent
    weights: dict[str, str] = {}
    validation: dict[str, float | str | None] = {}
    run: str = ""
    commit: str = ""


def kept_in(folder: Path) -> list[tuple[Path, Kept]]:
    """The receipts of all uploads, the oldest first; what is no receipt is passed over with a warning.

    Args:
        folder: :attr:`toolkit.workspace.Workspace.submissions`.
    """
    found = ((path, read(path)) for path in sorted(folder.glob("*.json")))
    return [(path, kept) for path, kept in found if kept is not None]


def read(path: Path) -> Kept | None:
    """The receipt of an upload; None, with a warning, where the file is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except (OSError, *NO_JSON) as error:
        console.warn(f"{path} is no receipt of an upload: {reason(error)}")
        return None


def complete(path: Path, made: Made) -> None:
    """Write state and scores of a submission into the receipt of its upload and the one beside its archive.

    Raises:
        ToolkitError: one of them cannot be written.
    """
    whole: dict[str, Any] = json.loads(path.read_bytes())
    sent = {**whole["codabench"], "submission": made.id, "status": plain(made.status)}
    if made.values:
        sent["scores"] = made.values
    if sent == whole["codabench"]:
        return
    write_json(path, {**whole, "codabench": sent})
    beside = Path(sent.get("receipt", ""))
    try:
        of_archive = json.loads(beside.read_bytes())
        same = of_archive["archive"]["sha256"] == whole["archive"]["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return  # moved, or of another archive by now
    if same:
        write_json(beside, {**of_archive, "codabench": sent})


@dataclass(frozen=True)
class Upload:
    """One archive on its way to one phase.

    Attributes:
        client: from :func:`check_upload`.
        archive: the checked zip.
        receipt: of the archive, from :func:`make_receipt`.
        folder: where the receipts of all uploads are kept, one file each.
        competition: Codabench's number of the competition.
        data: LTDv2's files, beside which the competition is kept; None where they are not known.
        ids: (images,) int64, what the archive was checked against; None: a template of one's own.
    """

    client: Codabench
    archive: Path
    receipt: Mapping[str, Any]
    folder: Path
    competition: int = DEFAULT
    data: Path | None = None
    ids: npt.NDArray[np.int64] | None = None

    def send(
        self, phase: str | None, phase_id: int | None = None, again: bool = False
    ) -> tuple[Path, dict[str, Any]]:
        """Send the archive and make it a submission.

        The receipt is written before the request that makes the submission, so that an upload whose answer
        was lost is known to the next one.

        Args:
            phase: of the challenge, whose name finds Codabench's.
            phase_id: Codabench's number of the phase; wins over ``phase``.
            again: send it although the same archive was sent to this phase before.

        Returns:
            The receipt of the upload, and what it records: instance, competition, phase and number of the
            submission.

        Raises:
            ToolkitError: the phase takes nothing now, expects other ids, or was sent the same archive before.
            SubmissionError: Codabench refuses it or does not answer.
        """
        with turn(self.folder):
            told = ask(self.client, self.competition, self.data)
            chosen = self._open_phase(told.competition, phase, phase_id)
            self._refuse_other_ids(told, chosen)
            theirs = self.client.submissions(chosen.id)
            if not again:
                self._refuse_again(chosen.id, theirs)
            self.client.check_quota(chosen.id)
            key = self.client.store(self.archive.read_bytes(), self.name, self.competition)
            record = self.folder / f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S%f}-{self.digest[:12]}.json"
            self._record(record, chosen.id, None)
            try:
                made = self.client.make(key, chosen.id)
            except UncertainError as error:
                made = self._find_made(chosen.id, {each.id for each in theirs}, error)
            except SubmissionError:
                record.unlink()
                raise
            return record, self._record(record, chosen.id, made)

    @property
    def digest(self) -> str:
        """SHA-256 of the archive."""
        return str(self.receipt["archive"]["sha256"])

    @property
    def name(self) -> str:
        """The file's name at Codabench: it says which archive it is, also to another machine."""
        return f"{self.archive.stem[: LONGEST_NAME - 13]}-{self.digest[:12]}.zip"

    def _is_this(self, made: Made) -> bool:
        """Whether a submission is of this archive, whatever it was called."""
        return (made.filename or "").endswith(f"-{self.digest[:12]}.zip")

    def _open_phase(self, competition: Competition, phase: str | None, phase_id: int | None) -> Phase:
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
            others = others_open(self.competition, datetime.now(timezone.utc).date())
            raise ToolkitError(
                f"phase {chosen.id} {chosen.name!r} of competition {self.competition} "
                + (f"ended {chosen.end or ''}".rstrip() if ended else f"begins {chosen.start or 'later'}"),
                found=competition.listed(),
                expected="an open phase",
                fix=f"also known: {others}, --competition" if others else "",
            )
        return chosen

    def _refuse_other_ids(self, told: KeptCompetition, phase: Phase) -> None:
        """Refuse an archive where the phase's list of ids, as Codabench has just told it, is another."""
        if self.ids is None or self.data is None:
            return
        theirs = template_of(told, self.data, self.competition, phase.id)
        if theirs is None or np.array_equal(np.sort(self.ids), np.sort(theirs.ids)):
            return
        lacking, foreign = (
            np.setdiff1d(one, other) for one, other in ((theirs.ids, self.ids), (self.ids, theirs.ids))
        )
        raise ToolkitError(
            f"phase {phase.id} {plain(phase.name)!r} expects other ids than these",
            found=f"{len(lacking):,} of its {len(theirs.ids):,} ids missing, {len(foreign):,} that it lacks",
            expected=theirs.words,
            fix="nothing was sent; name the phase that is meant, or predict these images",
        )

    def _refuse_again(self, phase_id: int, theirs: Sequence[Made]) -> None:
        """Refuse an archive that this phase has: our receipts know it, or the server, by its name."""
        for made in (*theirs, *self._sent_before(phase_id, {made.id for made in theirs})):
            if self._is_this(made) and made.status not in AGAIN:
                raise ToolkitError(
                    "this archive was uploaded before",
                    found=f"submission {made.id} ({plain(made.status)}) of {plain(made.created_when or '')}",
                    expected="another archive",
                    fix="if it is meant to use up one more submission: --upload-again",
                )

    def _sent_before(self, phase_id: int, listed: Set[int]) -> list[Made]:
        """Submissions of this archive that our receipts know and the server did not list, but still has."""
        numbers = {
            kept.codabench.submission
            for _, kept in kept_in(self.folder)
            if (kept.codabench.url, kept.codabench.phase) == (self.client.url, phase_id)
            and kept.archive.get("sha256") == self.digest
        }
        found = []
        for number in sorted(number for number in numbers if number is not None and number not in listed):
            with suppress(RefusedError):  # it was deleted there
                found.append(msgspec.structs.replace(self.client.submission(number), filename=self.name))
        return found

    def _find_made(self, phase_id: int, before: Set[int], error: UncertainError) -> int:
        """Look whether a submission was made although its answer was lost; a server may be slow to show it.

        Raises:
            UncertainError: it is not to be seen.
        """
        console.note(f"{error.what}; looking whether it was made all the same")
        for pause in LOOKS:
            self.client.sleep(pause)
            with suppress(SubmissionError):
                for made in self.client.submissions(phase_id):
                    if self._is_this(made) and made.id not in before:
                        return made.id
        raise error

    def _record(self, record: Path, phase_id: int, number: int | None) -> dict[str, Any]:
        sent = {
            "url": self.client.url,
            "competition": self.competition,
            "phase": phase_id,
            "file": self.name,
            "receipt": str(receipt_of(self.archive).absolute()),
            "submission": number,
        }
        whole = {**self.receipt, "codabench": sent}
        write_json(record, whole)
        if number is not None:
            write_receipt(self.archive, whole)
        return sent
