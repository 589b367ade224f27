"""``toolkit evaluate``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli import completion
from toolkit.cli.options import MANY, Agnostic, Conf, Iou, MaxDet, number
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.dataset.index import DatasetIndex
    from toolkit.evaluation.truth import GroundTruth
    from toolkit.ltdv2 import SplitName
    from toolkit.prediction import PredictionOptions
    from toolkit.weights import Detector


class Split(str, Enum):
    """Splits whose truth is published."""

    train = "train"
    val = "val"


class EngineName(str, Enum):
    """Evaluators of the COCO protocol; auto is hotcoco where it is installed."""

    auto = "auto"
    pycocotools = "pycocotools"
    hotcoco = "hotcoco"


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="WEIGHTS|PREDICTIONS.json",
            help="Weights to predict with (best.pt: the newest run's; a run: its best), or predictions.",
            autocompletion=completion.predictions,
        ),
    ] = "best.pt",
    split: Annotated[Split, typer.Option(help="Split that is predicted and scored.")] = Split.val,
    truth: Annotated[
        Path | None, typer.Option(help="The challenge's truth file or a COCO file; default: the split's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for scores.json; default: evaluation/ in the run.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print scores.json instead of a table.")] = False,
    data: Annotated[Path | None, typer.Option(help="Folder with LTDv2's files; default: the run's.")] = None,
    engine: Annotated[EngineName, typer.Option(help="Both give the same numbers.")] = EngineName.auto,
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
    from submission import Detections
    from submission.validate import check_overlap, check_values
    from toolkit import console, ltdv2, provenance, vocabulary, workspace
    from toolkit.evaluation.scoring import score
    from toolkit.evaluation.table import month_table
    from toolkit.evaluation.truth import GroundTruth

    place = workspace.current()
    path = place.weights(target)
    run = place.run_of(path)
    is_predictions = path.suffix == ".json"
    known: Path | None = None
    if not is_predictions:
        from toolkit import prediction
        from toolkit.dataset import index
        from toolkit.runs import health
        from toolkit.weights import Detector

        known, classes = place.known_data(path, data)
        detector = Detector.read(path, classes)  # refused before its data is
    needs_data = truth is None or not is_predictions or data is not None
    source = known or (place.data_of(path, data) if needs_data or run is not None else None)
    answers = truth or (source or place.data_dir()) / ltdv2.ANNOTATIONS[split.value]
    folder = out or (run or path.parent) / "evaluation"

    frames: DatasetIndex | None = None
    if is_predictions:
        if sweep:
            raise ToolkitError(
                "--sweep needs weights",
                found=str(path),
                expected="a checkpoint: predictions are suppressed already",
            )
        detections = Detections.read(path)
        check_values(detections, str(path), vocabulary.of_data(answers.parent).classes)
        origin = provenance.origin_of(path)
        true = GroundTruth.read(answers)
        check_overlap(detections, true.image_ids, str(path), str(answers))
    else:
        true = GroundTruth.read(answers)
        assert source is not None  # weights need data
        frames = index.load(source)
        options = prediction.PredictionOptions(
            imgsz=imgsz,
            batch=batch,
            device=device,
            conf=conf,
            iou=iou,
            max_det=max_det,
            agnostic=agnostic,
            tta=tta,
            patches=not no_patches,
            bad_frames=health.load(place.defaults(source).health).frames_allowed(),
        )
        if sweep:
            _sweep(detector, frames, split.value, true, answers, options, sweep)
            return
        detections = prediction.predict(detector, frames, split.value, options)
        predictions = folder / "predictions.json"
        detections.write(predictions)
        origin = provenance.record(predictions, split.value, path.name, provenance.sha256(path))
    if len(detections.scores) > MANY:
        console.note(f"scoring {len(detections.scores):,} detections in {len(true):,} images")
    scores = score(true, detections, engine=engine.value, strict=strict, source=str(path))
    scores.write(folder / "scores.json")
    if origin is not None and origin.split == split.value and truth is None:
        hashes = origin.weights_sha256, provenance.sha256(answers)
        provenance.record(folder / "scores.json", split.value, origin.weights, *hashes)
    if scores.missing or scores.ignored:
        console.warn(
            f"{scores.missing:,} images of the truth have no predictions (scored as empty), "
            f"{scores.ignored:,} predicted images are not in the truth (ignored)"
        )
    if json:
        console.print_json(scores.as_dict())
    else:
        console.out.print(month_table(scores))
    if scores.overall.map_50 <= 0 < len(true.labels):
        console.warn(
            f"nothing was found: none of {len(detections.boxes):,} boxes lies on one of {len(true.labels):,} "
            "objects with its class; the weights have learnt too little, or belong to other frames"
        )
    console.note(f"{folder / 'scores.json'} (engine {scores.engine})")
    if report:
        from toolkit.report.page import report_on

        title = f"{run.name if run else path.stem}, split {split.value}"
        if len(detections.scores) > MANY:
            console.note("drawing the report")
        opened = frames or source
        console.note(str(report_on(folder, title, scores, true, detections, answers, opened, split.value)))
    if tables:
        from toolkit.evaluation.matched import write_tables

        for written in write_tables(folder, true, detections, answers):
            console.note(str(written))
    if run is not None and not is_predictions:
        console.note(f"next: `toolkit predict {quote(run.name)} --split test`")


def _sweep(
    detector: Detector,
    frames: DatasetIndex,
    split: SplitName,
    truth: GroundTruth,
    answers: Path,
    options: PredictionOptions,
    names: str,
) -> None:
    """Print the best of a grid of settings, and what it gains."""
    from rich.table import Table

    from toolkit import console
    from toolkit import sweep as sweeping
    from toolkit.evaluation.context import Context

    context = Context.read(answers, truth.image_ids)
    wanted = sweeping.parse(names)
    found = sweeping.sweep(detector, frames, split, truth, context, options, wanted)
    table = Table(title=f"the best of {len(found.tried)} settings by {found.key}")
    for column in ("conf", "iou", "imgsz", "global_map_bal", "global_map_50", "boxes"):
        table.add_column(column, justify="right")
    for each in found.tried[:10]:
        scored = f"{each.balanced:.4f}", f"{each.map_50:.4f}", f"{each.boxes:,}"
        table.add_row(f"{each.conf:g}", f"{each.iou:g}", str(each.imgsz), *scored)
    console.out.print(table)
    gain, best = found.gain, found.tried[0]
    if best == found.now:
        console.note(f"best: {best.flags}, as given: no other point of the grid scores more")
        return
    said = f"{gain.change:+.4f} against {found.now.flags} (95 % interval {gain.low:+.4f} to {gain.high:+.4f})"
    console.note(f"best: {best.flags}, {found.key} {said}{'' if gain.certain else ', which may be no gain'}")
