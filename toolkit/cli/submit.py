"""``toolkit submit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolkit.cli import completion
from toolkit.cli.options import Competition, PhaseName, require_predictions

if TYPE_CHECKING:
    from submission.codabench import Codabench


# Long: the flags of a verb.
def submit(
    predictions: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PREDICTIONS]",
            help="A .json or a .zip; default: the newest.",
            autocompletion=completion.entered,
        ),
    ] = None,
    zip: Annotated[bool, typer.Option("--zip", help="Write the archive; without it only check.")] = False,
    phase: Annotated[
        PhaseName | None,
        typer.Option(help="Whose ids must all be there; default: the one that has them."),
    ] = None,
    template: Annotated[
        Path | None, typer.Option(help="Ids to check against instead: a template or a COCO file.")
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Give ids without an entry empty lists.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The archive, written to here; --zip alone: submission.zip beside the predictions."
        ),
    ] = None,
    from_coco: Annotated[
        bool, typer.Option("--from-coco", help="The file is a list of COCO results, x, y, width, height.")
    ] = False,
    upload: Annotated[
        bool, typer.Option("--upload", help="Also send it to Codabench, with the token CODABENCH_TOKEN.")
    ] = False,
    upload_sparse: Annotated[
        bool, typer.Option("--upload-sparse", help="Upload even what would score next to nothing.")
    ] = False,
    upload_again: Annotated[
        bool, typer.Option("--upload-again", help="Upload even an archive that was uploaded before.")
    ] = False,
    phase_id: Annotated[
        int | None,
        typer.Option(min=1, max=2**31 - 1, help="Codabench's number of the phase; default: by its name."),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Follow the upload to its score; Ctrl-C leaves it running."),
    ] = False,
    competition: Competition = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with LTDv2's files; default: the run's. Knows file stems.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Check predictions as the organisers do, and write the zip that Codabench takes.

    A receipt beside the zip (submission.json) records hashes, versions and validation scores.

    Example: [bold]toolkit submit --zip[/bold]
    Example: [bold]toolkit submit predictions.json --phase testing --zip --out entry.zip[/bold]
    Example: [bold]toolkit submit --upload --wait[/bold]
    """
    from submission.archive import is_zip
    from toolkit import console, entry, provenance, uploads, workspace
    from toolkit.competition import kept, template_path, templates_of, warn_of_the_end
    from toolkit.errors import CallError

    place = workspace.current()
    if wait and not upload:
        raise CallError("--wait follows an upload", fix="--upload --wait, or look: toolkit submissions")
    place.competition(competition, data)  # a name that is none is said before anything is read
    if predictions is None:
        predictions = place.newest_predictions()
        made_by = provenance.origin_of(predictions)
        console.note(f"newest predictions: {predictions}" + (f", of {made_by.weights}" if made_by else ""))
    require_predictions([predictions])
    beside = predictions if is_zip(predictions) else predictions.parent / "submission.zip"
    target = out or (beside if zip or upload else None)
    if target is not None:
        entry.check_place(target)
    detections, folder = entry.opened(place, predictions, data, from_coco)
    number = place.competition(competition, folder)
    told = kept(folder, number) if folder is not None else None
    known = templates_of(told, folder, number) if folder is not None else None
    against = template
    if template is None and phase is None and folder is not None and told and phase_id in told.templates:
        against = template_path(folder, number, phase_id)
    may_lack = allow_missing or from_coco  # COCO results say nothing of an image without boxes
    entered = entry.enter(place, predictions, detections, folder, phase, against, may_lack, known)
    checked, worth = entered.submission, entered.worth
    if told is not None and checked.phase is not None and not upload:
        warn_of_the_end(told, number, checked.phase)
    client = entry.check_upload(checked, worth, phase_id, upload_sparse) if upload else None
    sent: dict[str, Any] = {}
    if target is not None:
        # Before the upload too: when it fails, an earlier archive's receipt must not stay beside this one.
        receipt = entry.write_archive(target, checked, predictions, entered.run)
        if client is not None:
            ids = checked.detections.image_ids if template is None else None
            sending = uploads.Upload(client, target, receipt, place.submissions, number, folder, ids)
            record, sent = sending.send(checked.phase, phase_id, upload_again)
            if wait:
                sent = _follow(client, record, sent, json)
    if json:
        files = {"predictions": str(predictions), "zip": str(target) if target else None}
        outcome = {"objections": worth.objections, "remarks": worth.remarks, "codabench": sent or None}
        console.print_json({**files, **checked.as_dict(), **outcome})
        return
    console.note(
        f"{predictions}: nothing the organisers would refuse, {len(checked.detections.scores):,} boxes in "
        f"{len(checked.detections):,} images, checked against {checked.against}"
    )
    if sent:
        console.note(f"submission {sent['submission']} in phase {sent['phase']} of {sent['url']}")
    if target is None:
        console.note("nothing written; --zip writes the archive")
    else:
        typer.echo(target)


def _follow(client: Codabench, record: Path, sent: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """Wait for a submission's score, write it into the receipts and print it beside the validation score."""
    from toolkit import console, submissions, tables, uploads

    number = int(sent["submission"])
    try:
        made = submissions.follow(client, number)
    except KeyboardInterrupt:
        console.note(
            f"submission {number} goes on at Codabench; `toolkit submissions` shows what becomes of it"
        )
        raise
    uploads.complete(record, made)
    scores = submissions.outcome(client, made)
    if not quiet:
        tables.show(submissions.score_table(scores, uploads.read(record)))
    return {**sent, "status": made.status, "scores": scores}
