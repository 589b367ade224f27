"""``toolkit evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolkit.cli import completion
from toolkit.cli.options import (
    Agnostic,
    Conf,
    EngineChoice,
    Iou,
    MaxDet,
    Scored,
    given,
    number,
    refuse_flags,
)

if TYPE_CHECKING:
    from toolkit.assessment import Assessment, Task

PREDICTING = ("imgsz", "batch", "device", "conf", "iou", "max_det", "agnostic", "tta", "no_patches")
"""Parameters that say how weights predict."""


# Long: the flags of a verb.
def evaluate(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS|PREDICTIONS.json",
            help="Weights to predict with (best.pt: the newest run's; a run: its best), or predictions.",
            autocompletion=completion.predictions,
        ),
    ] = "best.pt",
    split: Scored = "val",
    truth: Annotated[
        Path | None, typer.Option(help="The challenge's truth file or a COCO file; default: the split's.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for scores.json; default: evaluation/ in the run: best.pt on its validation split."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print scores.json instead of a table.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder with LTDv2's files; default: the run's.")] = None,
    engine: EngineChoice = "auto",
    report: Annotated[
        bool, typer.Option("--report", help="Also draw report.html: months, classes, weather, worst frames.")
    ] = False,
    tables: Annotated[
        bool, typer.Option("--tables", help="Also write matches.parquet and coco-results.json.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse missing and unknown ids instead of counting them.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, 0; default: the first GPU or the CPU.")] = None,
    imgsz: Annotated[int | None, number("imgsz", "Default: as trained.")] = None,
    batch: Annotated[int, number("batch", "Frames at a time.")] = 16,
    conf: Conf = 0.001,
    iou: Iou = 0.6,
    max_det: MaxDet = 100,
    agnostic: Agnostic = False,
    tta: Annotated[
        bool, typer.Option("--tta", help="Predict each frame at three sizes, one of them mirrored.")
    ] = False,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="conf,iou,imgsz", help="Try a grid of these, and print the best with its gain."),
    ] = None,
    no_patches: Annotated[bool, typer.Option("--no-patches", help="PyTorch's own convolutions.")] = False,
) -> None:
    """Score weights or predictions exactly as the challenge does.

    Example: [bold]toolkit evaluate best.pt --report[/bold]
    Example: [bold]toolkit evaluate best.pt --sweep conf,iou[/bold]
    Example: [bold]toolkit evaluate predictions.json --truth Valid.json --json[/bold]
    """
    from toolkit import assessment, console, workspace

    if sweep is not None:
        from toolkit import sweep as sweeping

        writing = {"--json": json, "--report": report, "--tables": tables, "--strict": strict}
        refuse_flags(writing, "scores, which a sweep does not write")
        names = sweeping.parse(sweep)
    place = workspace.current()
    task = assessment.task(place, target, split, truth, data, out)
    if sweep is None and task.detector is None:
        refuse_flags(given(context, PREDICTING), f"weights: {target} is predicted already")
    assessment.warn_of_seen(place, [task.path], split)
    options = {
        "imgsz": imgsz,
        "batch": batch,
        "device": device,
        "conf": conf,
        "iou": iou,
        "max_det": max_det,
        "agnostic": agnostic,
        "tta": tta,
        "patches": not no_patches,
    }
    if sweep is not None:
        _sweep(task, options, names)
        return
    done = assessment.assess(task, options, engine, strict)
    _show(done, json)
    console.note(f"{task.folder / 'scores.json'} (engine {done.scores.engine})")
    if report:
        console.note(str(assessment.report(task, done)))
    if tables:
        for written in assessment.tables(task, done):
            console.note(str(written))
    if (
        split != "test"
        and task.run is not None
        and done.index is not None
        and done.index.manifest.images.get("test")
    ):
        verb = (
            "evaluate" if done.index.manifest.boxes.get("test") else "predict"
        )  # its boxes are there, or not
        console.note(f"next: `toolkit {verb} {quote(task.run.name)} --split test`")


def _show(done: Assessment, as_json: bool) -> None:
    """Print the scores and what has to be known of them."""
    from toolkit import console, tables
    from toolkit.evaluation.table import month_table

    if as_json:
        console.print_json(done.scores.as_dict())
    else:
        tables.show(month_table(done.scores))
    for remark in done.remarks():
        console.warn(remark)


def _sweep(task: Task, options: Mapping[str, Any], wanted: tuple[str, ...]) -> None:
    """Print the best of a grid of settings, and what it gains."""
    from rich.table import Table

    from toolkit import assessment, console, tables
    from toolkit import sweep as sweeping
    from toolkit.evaluation.context import Context
    from toolkit.evaluation.truth import GroundTruth

    detector = assessment.require_weights(task)
    truth, frames = GroundTruth.read(task.answers, task.data), assessment.opened(task)
    context, given = Context.read(task.answers, truth.image_ids), assessment.options_of(task, options)
    found = sweeping.sweep(detector, frames, task.split, truth, context, given, wanted)
    table = Table(title=f"the best of {len(found.tried)} settings by {found.key}")
    for column in ("conf", "iou", "imgsz", "global_map_bal", "global_map_50", "boxes"):
        table.add_column(column, justify="right")
    for each in found.tried[:10]:
        scored = f"{each.balanced:.4f}", f"{each.map_50:.4f}", f"{each.boxes:,}"
        table.add_row(f"{each.conf:g}", f"{each.iou:g}", str(each.imgsz), *scored)
    tables.show(table, lead=3)
    gain, best = found.gain, found.tried[0]
    if best == found.now:
        console.note(f"best: {best.flags}, as given: no other point of the grid scores more")
        return
    said = f"{gain.change:+.4f} against {found.now.flags} (95 % interval {gain.low:+.4f} to {gain.high:+.4f})"
    console.note(f"best: {best.flags}, {found.key} {said}{'' if gain.certain else ', which may be no gain'}")
