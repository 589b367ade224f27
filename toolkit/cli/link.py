"""``toolkit link``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli import completion
from toolkit.cli.options import require_place, require_predictions


def link(
    predictions: Annotated[
        Path,
        typer.Argument(metavar="PREDICTIONS.json", help="Of one split.", autocompletion=completion.found),
    ],
    iou: Annotated[
        float, typer.Option(min=0, max=1, help="Overlap of a box with where its track should be.")
    ] = 0.2,
    gap: Annotated[int, typer.Option(min=0, max=10, help="Seconds without a box that are filled.")] = 2,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Part of the track's mean in a score; 0 leaves scores alone.")
    ] = 0.5,
    out: Annotated[
        Path | None, typer.Option(help="Where the linked predictions go; default: beside, -linked.")
    ] = None,
) -> None:
    """Join boxes over the seconds of a clip; vote on scores and classes along them.

    Example: [bold]toolkit link runs/a/predictions-test.json[/bold]
    """
    from submission import Detections
    from submission.validate import check_values
    from toolkit import belonging, console, workspace
    from toolkit.evaluation.sequences import LinkOptions, check_one_split
    from toolkit.evaluation.sequences import link as link_boxes

    written = out or predictions.with_name(f"{predictions.stem}-linked.json")
    require_place(written, ".json", [predictions])
    require_predictions([predictions])
    options = LinkOptions(iou=iou, gap=gap, share=share)
    detections = Detections.read(console.reading(predictions))
    classes = belonging.classes_of(workspace.current(), predictions, lambda: detections.image_ids)
    check_values(detections, str(predictions), classes)
    check_one_split(detections, str(predictions))
    result = link_boxes(detections, options)
    linked = result.detections.rounded()
    check_values(linked, "what came of linking", classes)
    linked.write(written)
    console.note(
        f"{result.clips:,} clips: {result.joined:,} of {len(detections.scores):,} boxes in {result.tracks:,} "
        f"tracks, {result.relabelled:,} with another class, {result.filled:,} filled in"
    )
    typer.echo(written)
