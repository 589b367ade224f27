"""``toolkit submit``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class PhaseName(str, Enum):
    """Phases of the challenge: development is split val, testing is split test."""

    development = "development"
    testing = "testing"


def submit(
    predictions: Annotated[
        Path | None,
        typer.Argument(metavar="[PREDICTIONS.json]", help="Default: the newest."),
    ] = None,
    zip: Annotated[bool, typer.Option("--zip", help="Write the archive; without it only check.")] = False,
    phase: Annotated[
        PhaseName | None, typer.Option(help="Whose ids must all be there; default: the one that has them.")
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
        bool, typer.Option("--upload-sparse", help="Upload even if most ids have no entry.")
    ] = False,
    phase_id: Annotated[
        int | None, typer.Option(help="Codabench's number of the phase; default: found by its name.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Check predictions as the organisers do, and write the zip that Codabench takes.

    A receipt beside the zip (submission.json) records hashes, versions and validation scores.

    Example: [bold]toolkit submit --zip[/bold]
    Example: [bold]toolkit submit predictions.json --phase testing --zip --out entry.zip[/bold]
    """
    from contextlib import suppress

    from submission import Detections, archive
    from submission.templates import Phase
    from toolkit import console, entry, workspace
    from toolkit.errors import ToolkitError

    place = workspace.current()
    if predictions is None:
        predictions = place.newest_predictions()
        console.note(f"newest predictions: {predictions}")
    target = out or (predictions.parent / "submission.zip" if zip or upload else None)
    if target is not None:
        entry.check_place(target)
    detections = Detections.read_coco(predictions) if from_coco else Detections.read(predictions)
    run = place.run_of(predictions)
    chosen: Phase | None = phase.value if phase else None
    data_template = None
    if run is not None and template is None:
        chosen = chosen or entry.guess_phase(detections.image_ids, str(predictions))
        with suppress(ToolkitError):  # without its data the predictions must be complete
            data_template = place.data_of(predictions) / workspace.ANNOTATIONS[workspace.PHASES[chosen]]
    checked = entry.prepare(
        detections,
        source=str(predictions),
        phase=chosen,
        template=template,
        data_template=data_template,
        allow_missing=allow_missing or from_coco,
    )
    if checked.rehearsal:
        console.warn(
            f"a rehearsal: the data is a sample, {checked.filled:,} of {len(checked.detections):,} ids have "
            "empty lists; Codabench would accept the zip and score next to nothing"
        )
    elif checked.filled:
        console.warn(f"{checked.filled:,} ids had no entry and got empty lists")
    client = entry.check_upload(checked, phase_id, upload_sparse) if upload else None
    sent: dict[str, Any] = {}
    if target is not None:
        archive.write(target, checked.detections)
        # Before the upload too: when it fails, an earlier archive's receipt must not stay beside this one.
        entry.write_receipt(target, checked, predictions, run, sent)
        if client is not None:
            sent = entry.upload(client, target, checked, phase_id)
            entry.write_receipt(target, checked, predictions, run, sent)
    if json:
        files = {"predictions": str(predictions), "zip": str(target) if target else None}
        console.print_json({**files, **checked.as_dict(), "codabench": sent or None})
        return
    console.note(
        f"{predictions}: nothing to object to, {len(checked.detections.scores):,} boxes in "
        f"{len(checked.detections):,} images, checked against {checked.against}"
    )
    if sent:
        console.note(f"submission {sent['submission']} in phase {sent['phase']} of {sent['url']}")
    if target is None:
        console.note("nothing written; --zip writes the archive")
    else:
        typer.echo(target)
