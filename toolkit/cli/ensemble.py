"""``toolkit ensemble``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from toolkit.cli import completion
from toolkit.cli.options import require_place, require_predictions


def ensemble(
    predictions: Annotated[
        list[Path],
        typer.Argument(metavar="A.json B.json ...", help="At least two.", autocompletion=completion.found),
    ],
    method: Annotated[
        Literal["wbf", "nms", "soft-nms", "nmw"], typer.Option(help="wbf averages the boxes of an object.")
    ] = "wbf",
    weights: Annotated[
        str | None, typer.Option(help="Trust in each file: 2,1,1; or validation: by the AP of each class.")
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(help="For `--weights validation`: scores.json of each file; default: its run's."),
    ] = None,
    iou: Annotated[float, typer.Option(min=0, max=1, help="Overlap of boxes of one object.")] = 0.55,
    max_det: Annotated[
        int, typer.Option(min=1, max=100_000, help="Boxes kept of each class in a frame.")
    ] = 100,
    out: Annotated[Path, typer.Option(help="Where the fused predictions go.")] = Path("ensemble.json"),
) -> None:
    """Fuse several sets of predictions into one.

    Example: [bold]toolkit ensemble runs/a/predictions-test.json runs/b/predictions-test.json[/bold]
    Example: [bold]toolkit ensemble runs/*/predictions-test.json --weights validation[/bold]
    """
    from submission import Detections
    from submission.validate import check_same_images, check_values
    from toolkit import assessment, belonging, console, workspace
    from toolkit.errors import CallError
    from toolkit.evaluation.ensemble import LEAST_TRUST, FusionOptions, fuse, weights_by_class

    require_place(out, ".json", predictions)
    by_validation = weights == "validation"
    if scores and not by_validation:
        raise CallError("--scores is read with `--weights validation` alone")
    trust = _numbers(weights) if weights and not by_validation else None
    require_predictions(predictions)
    place, by_class = workspace.current(), None
    if by_validation:
        assessment.warn_of_seen(place, scores or predictions, "val")
        by_class = weights_by_class(scores or [_scores_of(path) for path in predictions])
        if all(trusted == LEAST_TRUST for each in by_class.values() for trusted in each):
            console.warn("no class has an AP above 0 in any scores.json: every file is trusted alike")
    sets = [Detections.read(console.reading(path)) for path in predictions]
    classes = belonging.classes_of(place, place.of_a_run(predictions), lambda: sets[0].image_ids)
    for line in check_same_images(dict(zip(map(str, predictions), sets, strict=True))):
        console.warn(f"{line}; fused as if nothing was found there, which lowers the others' scores")
    for path, detections in zip(predictions, sets, strict=True):  # of other data are also its labels
        check_values(detections, str(path), classes)
    fused = fuse(sets, FusionOptions(method, trust, by_class, iou, max_det)).rounded()
    check_values(fused, "what came of fusing", classes)
    fused.write(out)
    typer.echo(out)


def _numbers(weights: str) -> tuple[float, ...]:
    from toolkit.errors import CallError

    try:
        return tuple(float(part) for part in weights.split(","))
    except ValueError as error:
        raise CallError(
            f"--weights {weights} are no numbers", expected="such as 2,1,1, or validation"
        ) from error


def _scores_of(predictions: Path) -> Path:
    from toolkit import provenance, workspace

    place = workspace.current()
    made_by = provenance.weights_of(predictions, provenance.origin_of(predictions), workspace.BEST)
    beside = place.evaluation(predictions, "val", weights=made_by) / "scores.json"
    if beside.is_file():
        return beside
    # Its run's; of a file of no run, where 0.1.0 wrote them.
    return (place.run_of(predictions) or predictions.parent) / workspace.EVALUATION / "scores.json"
