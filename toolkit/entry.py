"""From predictions to what is handed in: which ids a submission must have, and the checked detections."""

from __future__ import annotations

import json
import os
import platform
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from submission import Detections, templates
from submission.archive import MEMBER, is_zip, pack, unpack
from submission.atomic import write_bytes
from submission.codabench import URL, Codabench
from submission.errors import NO_JSON
from submission.validate import check_ids, check_values
from submission.worth import Usual, Worth, assess
from toolkit import __version__, belonging, console
from toolkit.dataset.export import stems
from toolkit.dataset.index import load, prepared_folder, read_manifest
from toolkit.errors import CallError, ToolkitError, reason
from toolkit.files import write_json
from toolkit.ltdv2 import ANNOTATIONS, SPLITS
from toolkit.phases import Template, guess_phase, refuse_another_phase, shipped
from toolkit.provenance import origin_of, sha256
from toolkit.workspace import ENVIRONMENT, Workspace, own_evaluation

PACKAGES = ("torch", "torchvision", "ultralytics", "ultralytics-opencv-headless", "numpy")
"""Packages whose versions a receipt records."""


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
    phase: str | None
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


def read(path: Path, coco: bool = False, names: Callable[[], Mapping[str, int]] | None = None) -> Detections:
    """Read predictions: the challenge's JSON or COCO results, as a file or as the one file of a zip.

    Args:
        path: the file; a zip is looked into, and what is in it is said.
        coco: the file is a list of COCO results.
        names: see :meth:`submission.Detections.read_coco`.

    Raises:
        SubmissionError: the file is not what it should be.
    """
    if not is_zip(path):
        console.reading(path)
        return Detections.read_coco(path, names) if coco else Detections.read(path)
    member, data = unpack(path)
    console.note(f"{path} holds {member}, {len(data):,} bytes")
    if member != MEMBER:
        console.warn(f"the organisers open {MEMBER} at the top of a zip, not {member}")
    source = f"{path}, {member}"
    return Detections.loads_coco(data, source, names) if coco else Detections.loads(data, source)


@dataclass(frozen=True)
class Entry:
    """A file of predictions, read, checked and looked at.

    Attributes:
        submission: what is in it.
        worth: what of it could score.
        run: the run that predicted it, if known.
        data: LTDv2's files, if known.
    """

    submission: Submission
    worth: Worth
    run: Path | None
    data: Path | None


def opened(
    place: Workspace, predictions: Path, data: Path | None = None, coco: bool = False
) -> tuple[Detections, Path | None]:
    """What a file holds, and LTDv2's files for it: as named, its run's, the workspace's or those of its ids.

    Args:
        place: finds the run and the data that belong to the file.
        predictions: see :func:`read`.
        data: LTDv2's files, if named; they know the frames of COCO results.
        coco: the file is a list of COCO results.

    Raises:
        SubmissionError: the file is not what it should be.
        ToolkitError: ``data`` is no folder.
    """
    folder = place.data_dir(data) if data is not None else None
    with suppress(ToolkitError):
        folder = folder or place.data_of(predictions)

    def names() -> dict[str, int]:
        return stems(load(folder or place.data_dir(data)))

    detections = read(predictions, coco, names)
    with suppress(ToolkitError):  # nothing tells: they must be complete
        folder = folder or belonging.data_of(place, predictions, lambda: detections.image_ids)
    return detections, folder


def enter(
    place: Workspace,
    predictions: Path,
    detections: Detections,
    folder: Path | None = None,
    phase: str | None = None,
    template: Path | None = None,
    allow_missing: bool = False,
    known: Mapping[str, Template] | None = None,
) -> Entry:
    """Check predictions as the organisers do, and warn of what would not score.

    Args:
        place: finds the run that belongs to the file.
        predictions: the file.
        detections, folder: what :func:`opened` returned. Without a folder they must be complete.
        phase, template, allow_missing, known: see :func:`prepare`.

    Raises:
        SubmissionError: the organisers would refuse it.
        ToolkitError: no phase has the ids.
    """
    run = place.run_of(predictions)
    data_template = None
    if template is None and (run is not None or folder is not None):
        phase = phase or guess_phase(detections.image_ids, str(predictions), known)
        if folder is not None:
            data_template = folder / ANNOTATIONS[SPLITS[phase]]
    checked = prepare(
        detections,
        source=str(predictions),
        phase=phase,
        template=template,
        data_template=data_template,
        of_data=run is not None,
        allow_missing=allow_missing,
        known=known,
    )
    if checked.rehearsal:
        console.warn(
            f"a rehearsal: the data is a sample, {checked.filled:,} of {len(checked.detections):,} ids have "
            "empty lists; Codabench would accept the zip and score next to nothing"
        )
    elif checked.filled:
        console.warn(f"{checked.filled:,} ids had no entry and got empty lists")
    return Entry(checked, look_at(checked, folder), run, folder)


def prepare(
    detections: Detections,
    *,
    source: str,
    phase: str | None = None,
    template: Path | None = None,
    data_template: Path | None = None,
    of_data: bool = True,
    allow_missing: bool = False,
    known: Mapping[str, Template] | None = None,
) -> Submission:
    """Check detections against the ids of a phase and round them.

    A data folder that holds only a part of the phase's images (``toolkit dataset sample``) cannot yield
    all predictions. All images that it has must then be there; the others get empty lists, so that the
    zip is one that the organisers accept, and ``rehearsal`` says that its score will mean nothing. That zip
    is a rehearsal again. Predictions with a box in any other image, of the whole phase, are none.

    Args:
        detections: what was predicted, in any order.
        source: names them in messages.
        phase: None finds the phase whose template has all ids.
        template: ids to check against instead of a phase's: a template or a COCO file.
        data_template: the annotation file of the data that was predicted, if known.
        of_data: whether that is certain; else only predictions of all images of a sample are a rehearsal.
        allow_missing: give ids without an entry empty lists instead of refusing.
        known: the template of each phase; None: :func:`shipped`.

    Raises:
        SubmissionError: values or ids that the organisers would refuse.
        ToolkitError: no phase was named and the ids belong to none.
    """
    check_values(detections, source)
    known = known or shipped()
    if template is not None:
        phase, wanted = None, Template(templates.read(template), str(template))
    else:
        phase = phase or guess_phase(detections.image_ids, source, known)
        wanted = known[phase]
    expected, against = wanted.ids, wanted.words
    refuse_another_phase(detections.image_ids, wanted, source, known)
    rehearsal, sample = False, None
    if template is None and data_template is not None and data_template.is_file():
        held = templates.read(data_template)
        if len(held) < len(expected) and np.isin(held, expected).all():
            sample = _of_sample(detections, held, expected)
            rehearsal = sample is not None and (
                of_data or set(held.tolist()) == set(sample.image_ids.tolist())
            )
        if rehearsal and sample is not None:
            detections = sample
            whose = f"the sample, {data_template}"
            check_ids(sample, held, allow_missing=allow_missing, source=source, whose=whose)
    whole = check_ids(detections, expected, allow_missing=allow_missing or rehearsal, source=source)
    filled = int((~np.isin(expected, detections.image_ids)).sum())
    return Submission(whole.rounded(), phase, against, filled, rehearsal)


def _of_sample(
    detections: Detections, held: npt.NDArray[np.int64], expected: npt.NDArray[np.int64]
) -> Detections | None:
    """Predictions of a phase's part; without the empty lists, where an earlier rehearsal filled them in.

    None: they are of the whole phase, with boxes in images that the part does not have.
    """
    if not np.isin(expected, detections.image_ids).all():
        return detections
    elsewhere = ~np.isin(detections.image_ids, held)
    return None if detections.counts[elsewhere].any() else detections.select(np.sort(held))


def check_place(archive: Path) -> None:
    """Make sure that writing the archive and its receipt replaces nothing but their like.

    Raises:
        ToolkitError: the archive is not called ``.zip``, or there is another kind of file, such as the
            predictions, in its place or in the receipt's.
    """
    if archive.suffix != ".zip":
        raise CallError(f"{archive} is no name for an archive", expected="a name that ends in .zip")
    for path, kind, is_one in (
        (archive, "submission", _is_archive),
        (receipt_of(archive), "receipt", _is_receipt),
    ):
        if _exists(path) and not is_one(path):
            raise ToolkitError(
                f"{path} exists and would be overwritten",
                expected=f"nothing, or an earlier {kind}",
                fix="name another archive: --out",
            )


def write_archive(
    archive: Path, checked: Submission, predictions: Path, run: Path | None = None
) -> dict[str, Any]:
    """Write the zip and, beside it, its receipt.

    A zip that was given as the predictions is left as it is, with the receipt that it has.

    Args:
        archive: the zip.
        checked: what goes into it.
        predictions: the file that it is made from.
        run: the run that predicted, if known.

    Returns:
        The receipt.

    Raises:
        ToolkitError: the predictions are a zip of that name with other bytes.
        SubmissionError: the zip cannot be written.
    """
    data = pack(checked.detections)
    given = archive.exists() and archive.samefile(predictions)
    if given and archive.read_bytes() != data:
        raise ToolkitError(
            f"{archive} would be overwritten",
            found="a zip that `toolkit submit` did not write",
            fix="name another archive: --out",
        )
    if given and _is_receipt(receipt_of(archive)):
        kept: dict[str, Any] = json.loads(receipt_of(archive).read_bytes())
        if kept["archive"].get("sha256") == sha256(archive):
            return kept
    if not given:
        write_bytes(archive, data)
    receipt = make_receipt(archive, checked, predictions, run)
    write_receipt(archive, receipt)
    return receipt


def make_receipt(archive: Path, checked: Submission, predictions: Path, run: Path | None) -> dict[str, Any]:
    """What is handed in, and what it was made from.

    Args:
        archive: the zip.
        checked: what is in it.
        predictions: the file that it was made from.
        run: the run that predicted, if known. Weights are recorded if the predictions' origin is known,
            the run's validation scores if the same weights got them.
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
        commit = _commit_of(run)
        if commit:
            receipt["commit"] = commit
    origin = origin_of(predictions)
    if origin is not None:
        receipt["weights"] = {origin.weights: origin.weights_sha256}
    if origin is not None and run is not None:
        scores = own_evaluation(run, origin.weights) / "scores.json"
        scored = origin_of(scores)
        if scored and (scored.split, scored.weights_sha256) == ("val", origin.weights_sha256):
            values = json.loads(scores.read_text(encoding="utf-8"))
            keys = ("global_map_bal", "global_map_50", "global_map_con", "global_map")
            receipt["validation"] = {key: values.get(key) for key in keys}
            receipt["validation"]["truth_sha256"] = scored.truth_sha256
    return receipt


def write_receipt(archive: Path, receipt: Mapping[str, Any]) -> Path:
    """Write ``<archive>.json`` beside the zip.

    Raises:
        ToolkitError: it cannot be written.
    """
    path = receipt_of(archive)
    write_json(path, receipt)
    return path


def look_at(checked: Submission, data: Path | None = None) -> Worth:
    """Look at what of a submission could score, and warn of what could not and of what is odd.

    Args:
        checked: what is to be handed in; nothing is said of a rehearsal.
        data: LTDv2's files, if known; where they are prepared, they say how many objects a frame has.
    """
    if checked.rehearsal:
        return Worth((), ())
    worth = assess(checked.detections, _usual_in(data) if data is not None else None)
    for line in (*worth.objections, *worth.remarks):
        console.warn(line)
    return worth


def _usual_in(data: Path) -> Usual | None:
    """How many objects the frames of the validation split have; None where the data is not prepared."""
    try:
        manifest = read_manifest(prepared_folder(data))
    except ToolkitError:
        return None
    images, boxes = (counts.get("val", 0) for counts in (manifest.images, manifest.boxes))
    return Usual(boxes / images, f"the validation frames of {data}") if images and boxes else None


def account() -> Codabench | None:
    """The account of the token in ``CODABENCH_TOKEN``, at ``CODABENCH_URL``; None without a token.

    Raises:
        SubmissionError: the token would travel in clear.
    """
    token = os.environ.get("CODABENCH_TOKEN")
    if not token:
        return None
    return Codabench(token, os.environ.get("CODABENCH_URL", URL).rstrip("/"), note=console.note)


def check_upload(
    checked: Submission, worth: Worth, phase_id: int | None = None, sparse: bool = False
) -> Codabench:
    """Make sure, before anything is written, that a submission may be uploaded.

    Args:
        checked: what is to be sent.
        worth: what of it could score.
        phase_id: Codabench's number of the phase, if known.
        sparse: send it even if it would score next to nothing.

    Raises:
        ToolkitError: there is no token, the submission is a rehearsal or would score next to nothing, or
            nothing tells its phase.
        SubmissionError: the token would travel in clear.
    """
    client = account()
    if client is None:
        raise ToolkitError("no token for Codabench", fix="set CODABENCH_TOKEN to your account's API token")
    if checked.rehearsal:
        raise ToolkitError(
            "a rehearsal is not uploaded: it would use up a submission for next to nothing",
            found=f"{checked.filled:,} ids without predictions",
            expected="predictions of the whole split",
        )
    if worth.objections and not sparse:
        raise ToolkitError(
            "this is not uploaded: it would use up a submission for next to nothing",
            found="; ".join(worth.objections),
            fix="if that is meant: --upload-sparse",
        )
    if phase_id is None and checked.phase is None:
        raise ToolkitError("cannot tell which phase to submit to", fix="name it: --phase or --phase-id")
    return client


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a folder that may not be searched, a name of 300 characters
        raise ToolkitError(f"cannot write {path}", found=reason(error), fix="name another: --out") from error


def receipt_of(archive: Path) -> Path:
    """Where the receipt of an archive lies."""
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
    except (OSError, *NO_JSON):
        return False
    return True


class _Environment(msgspec.Struct):
    """The part of a run's environment that a receipt records."""

    commit: str = ""


def _commit_of(run: Path) -> str:
    """The source's commit that trained a run; empty where its environment.json does not say."""
    try:
        return msgspec.json.decode((run / ENVIRONMENT).read_bytes(), type=_Environment).commit
    except (OSError, *NO_JSON):
        return ""


class _Receipt(msgspec.Struct):
    """What a receipt is known by."""

    archive: dict[str, str]
    predictions: dict[str, str]


def _versions() -> dict[str, str]:
    installed = {d.metadata["Name"]: d.version for d in distributions()}
    return {package: installed[package] for package in PACKAGES if package in installed}
