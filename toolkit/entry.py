"""From predictions to what is handed in: which ids a submission must have, and the checked detections."""

from __future__ import annotations

import json
import os
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from submission import Detections, templates
from submission.archive import MEMBER
from submission.codabench import COMPETITION, URL, Codabench
from submission.templates import PHASES, Phase
from submission.validate import check_ids, check_values
from toolkit import __version__, console
from toolkit.errors import ToolkitError
from toolkit.files import replacing
from toolkit.provenance import origin_of, sha256

PACKAGES = ("torch", "torchvision", "ultralytics", "ultralytics-opencv-headless", "numpy")
"""Packages whose versions a receipt records."""

SPARSE = 0.5
"""The largest share of ids without an entry that is uploaded without being asked for."""


@dataclass(frozen=True)
class Submission:
    """Detections that the organisers accept.

    Attributes:
        detections: one entry for every expected id, rounded.
        phase: the phase whose ids are expected; None with a template of one's own.
        against: what the ids were checked against, in words.
        filled: expected ids that had no entry and got empty lists.
        rehearsal: the data is a sample: all ids that it lacks are among ``filled``.
    """

    detections: Detections
    phase: Phase | None
    against: str
    filled: int
    rehearsal: bool

    def as_dict(self) -> dict[str, Any]:
        """Everything but the detections themselves."""
        return {
            "phase": self.phase,
            "checked_against": self.against,
            "images": len(self.detections),
            "boxes": len(self.detections.scores),
            "filled": self.filled,
            "rehearsal": self.rehearsal,
        }


def prepare(
    detections: Detections,
    *,
    source: str,
    phase: Phase | None = None,
    template: Path | None = None,
    data_template: Path | None = None,
    allow_missing: bool = False,
) -> Submission:
    """Check detections against the ids of a phase and round them.

    A data folder that holds only a part of the phase's images (``toolkit dataset sample``) cannot yield
    all predictions. All images that it has must then be there; the others get empty lists, so that the
    zip is one that the organisers accept, and ``rehearsal`` says that its score will mean nothing.

    Args:
        detections: what was predicted, in any order.
        source: names them in messages.
        phase: None finds the phase whose template has all ids.
        template: ids to check against instead of a phase's: a template or a COCO file.
        data_template: the annotation file of the data that was predicted, if known.
        allow_missing: give ids without an entry empty lists instead of refusing.

    Raises:
        SubmissionError: values or ids that the organisers would refuse.
        ToolkitError: no phase was named and the ids belong to none.
    """
    check_values(detections, source)
    rehearsal = False
    if template is not None:
        phase, expected, against = None, templates.read(template), str(template)
    else:
        phase = phase or guess_phase(detections.image_ids, source)
        expected, against = templates.template(phase), f"the {phase} template"
        if data_template is not None and data_template.is_file():
            held = templates.read(data_template)
            rehearsal = len(held) < len(expected) and bool(np.isin(held, expected).all())
            if rehearsal:
                check_ids(detections, held, allow_missing=allow_missing, source=source)
    whole = check_ids(detections, expected, allow_missing=allow_missing or rehearsal, source=source)
    filled = int((~np.isin(expected, detections.image_ids)).sum())
    return Submission(whole.rounded(), phase, against, filled, rehearsal)


def guess_phase(image_ids: npt.NDArray[np.int64], source: str) -> Phase:
    """The phase whose template contains all of these ids.

    Raises:
        ToolkitError: none does, or there are no ids.
    """
    if not len(image_ids):
        raise ToolkitError(f"{source} has no images", expected="predictions of at least one")
    shares = {phase: float(np.isin(image_ids, templates.template(phase)).mean()) for phase in PHASES}
    for phase, share in shares.items():
        if share == 1:
            return phase
    raise ToolkitError(
        f"{source} belongs to no phase",
        found=", ".join(f"{share:.1%} of its ids in {phase}" for phase, share in shares.items()),
        expected="ids of one phase",
        fix="name it to see the offending ids: --phase testing",
    )


def check_place(archive: Path) -> None:
    """Make sure that writing the archive and its receipt replaces nothing but their like.

    Raises:
        ToolkitError: the archive is not called ``.zip``, or there is another kind of file, such as the
            predictions, in its place or in the receipt's.
    """
    if archive.suffix != ".zip":
        raise ToolkitError(f"{archive} is no name for an archive", expected="a name that ends in .zip")
    for path, kind, is_one in (
        (archive, "submission", _is_archive),
        (_receipt_of(archive), "receipt", _is_receipt),
    ):
        if path.exists() and not is_one(path):
            raise ToolkitError(
                f"{path} exists and would be overwritten",
                expected=f"nothing, or an earlier {kind}",
                fix="name another archive: --out",
            )


def write_receipt(
    archive: Path, checked: Submission, predictions: Path, run: Path | None, codabench: Mapping[str, Any]
) -> Path:
    """Write ``<archive>.json`` beside the zip: what was handed in, and what it was made from.

    Args:
        archive: the zip.
        checked: what is in it.
        predictions: the file that it was made from.
        run: the run that predicted, if known. Weights are recorded if the predictions' origin is known,
            the run's validation scores if the same weights got them.
        codabench: answer of :func:`upload`; empty if it was not uploaded.
    """
    receipt: dict[str, Any] = {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "archive": {"file": archive.name, "sha256": sha256(archive)},
        "predictions": {"file": str(predictions), "sha256": sha256(predictions)},
        **checked.as_dict(),
        "versions": {"ltdv2-toolkit": __version__, "python": platform.python_version(), **_versions()},
    }
    if run is not None:
        receipt["run"] = run.name
    origin = origin_of(predictions)
    if origin is not None:
        receipt["weights"] = {origin.weights: origin.weights_sha256}
    if origin is not None and run is not None:
        scores = run / "evaluation" / "scores.json"
        scored = origin_of(scores)
        if scored and (scored.split, scored.weights_sha256) == ("val", origin.weights_sha256):
            values = json.loads(scores.read_text(encoding="utf-8"))
            keys = ("global_map_bal", "global_map_50", "global_map_con", "global_map")
            receipt["validation"] = {key: values.get(key) for key in keys}
            receipt["validation"]["truth_sha256"] = scored.truth_sha256
    if codabench:
        receipt["codabench"] = dict(codabench)
    path = _receipt_of(archive)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
    return path


def check_upload(checked: Submission, phase_id: int | None = None, sparse: bool = False) -> Codabench:
    """Make sure, before anything is written, that a submission may be uploaded.

    The token comes from ``CODABENCH_TOKEN``; ``CODABENCH_URL`` names another instance.

    Args:
        checked: what is to be sent.
        phase_id: Codabench's number of the phase, if known.
        sparse: send it even if most ids have no entry.

    Raises:
        ToolkitError: there is no token, the submission is a rehearsal or mostly empty, or nothing tells
            its phase.
        SubmissionError: the token would travel in clear.
    """
    token = os.environ.get("CODABENCH_TOKEN")
    if not token:
        raise ToolkitError("no token for Codabench", fix="set CODABENCH_TOKEN to your account's API token")
    if checked.rehearsal:
        raise ToolkitError(
            "a rehearsal is not uploaded: it would use up a submission for next to nothing",
            found=f"{checked.filled:,} ids without predictions",
            expected="predictions of the whole split",
        )
    if checked.filled > SPARSE * len(checked.detections) and not sparse:
        raise ToolkitError(
            "mostly empty predictions are not uploaded: they would use up a submission",
            found=f"{checked.filled:,} of {len(checked.detections):,} ids without an entry",
            expected=f"at most {SPARSE:.0%}",
            fix="if that is meant: --upload-sparse",
        )
    if phase_id is None and checked.phase is None:
        raise ToolkitError("cannot tell which phase to submit to", fix="name it: --phase or --phase-id")
    return Codabench(token, os.environ.get("CODABENCH_URL", URL), note=console.note)


def upload(
    client: Codabench, archive: Path, checked: Submission, phase_id: int | None = None
) -> dict[str, Any]:
    """Send a checked archive to Codabench.

    Args:
        client: from :func:`check_upload`.
        archive: the zip.
        checked: what is in it.
        phase_id: Codabench's number of the phase; None finds it by the phase's name.

    Returns:
        What the receipt records: instance, competition, phase and number of the submission.

    Raises:
        SubmissionError: Codabench refuses it or does not answer.
    """
    number = client.phase_id(str(checked.phase)) if phase_id is None else phase_id
    made = client.submit(archive.read_bytes(), number, archive.name)
    return {"url": client.url, "competition": COMPETITION, "phase": number, "submission": made}


def _receipt_of(archive: Path) -> Path:
    return archive.with_suffix(".json")


def _is_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as opened:
            return opened.namelist() == [MEMBER]
    except (OSError, zipfile.BadZipFile):
        return False


def _is_receipt(path: Path) -> bool:
    try:
        msgspec.json.decode(path.read_bytes(), type=_Receipt)
    except (OSError, msgspec.DecodeError):
        return False
    return True


class _Receipt(msgspec.Struct):
    """What a receipt is known by."""

    archive: dict[str, str]
    predictions: dict[str, str]


def _versions() -> dict[str, str]:
    installed = {d.metadata["Name"]: d.version for d in distributions()}
    return {package: installed[package] for package in PACKAGES if package in installed}
