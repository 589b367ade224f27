"""``toolkit predict``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from toolkit.cli.options import Agnostic, Conf, Iou, MaxDet, number


class Split(str, Enum):
    """Splits that predictions are made for."""

    val = "val"
    test = "test"


def predict(
    weights: Annotated[str, typer.Argument(help="A checkpoint; best.pt: the newest run's; a run: its best.")],
    split: Annotated[Split, typer.Option(help="val is the development phase, test the testing phase.")],
    out: Annotated[Path | None, typer.Option(help="Default: predictions-SPLIT.json in the run.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with LTDv2's files; default: the run's.")] = None,
    imgsz: Annotated[int | None, number("imgsz", "Default: as trained.")] = None,
    batch: Annotated[int, number("batch", "Frames at a time.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, 0; default: the first GPU or the CPU.")] = None,
    workers: Annotated[int, number("workers", "Loader processes.")] = 4,
    conf: Conf = 0.001,
    iou: Iou = 0.6,
    max_det: MaxDet = 100,
    agnostic: Agnostic = False,
    tta: Annotated[
        bool, typer.Option("--tta", help="Each frame at three sizes, one of them mirrored: twice the time.")
    ] = False,
    no_patches: Annotated[bool, typer.Option("--no-patches", help="PyTorch's own convolutions.")] = False,
) -> None:
    """Predict a split and write the challenge's JSON.

    Example: [bold]toolkit predict best.pt --split test[/bold]
    """
    from toolkit import console, prediction, provenance, workspace
    from toolkit.runs import health
    from toolkit.weights import Detector

    place = workspace.current()
    checkpoint = place.weights(weights)
    detector = Detector.read(checkpoint)  # before its data is looked for
    source = place.data_of(checkpoint, data)
    options = prediction.PredictionOptions(
        imgsz=imgsz,
        batch=batch,
        device=device,
        workers=workers,
        conf=conf,
        iou=iou,
        max_det=max_det,
        agnostic=agnostic,
        tta=tta,
        patches=not no_patches,
        bad_frames=health.load(place.defaults(source).health).frames_allowed(),
    )
    detections = prediction.predict(detector, source, split.value, options)
    run = place.run_of(checkpoint)
    target = out or (run or place.root) / f"predictions-{split.value}.json"
    detections.write(target)
    provenance.record(target, split.value, checkpoint.name, provenance.sha256(checkpoint))
    if split is Split.test:
        console.note(f"next: `toolkit submit {quote(str(target))} --zip`")
    typer.echo(target)
