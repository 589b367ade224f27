"""``toolkit predict``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from toolkit.cli import completion
from toolkit.cli.options import Agnostic, Iou, MaxDet, number, refuse_flags, require_place

if TYPE_CHECKING:
    from toolkit.prediction import PredictionOptions
    from toolkit.workspace import Workspace


class Format(str, Enum):
    """Files that the boxes of a source are written to; an enum, because Typer repeats no ``Literal``."""

    json = "json"
    coco = "coco"
    yolo = "yolo"


SOURCE = (
    "A picture, folder, glob, video, frames.zip or a folder in it (frames.zip/frames/20200514), "
    "a camera's number, a stream."
)


# Long: the flags of a verb.
def predict(
    weights: Annotated[
        str,
        typer.Argument(
            help="A checkpoint; best.pt: the newest run's; a run: its best.",
            autocompletion=completion.weights,
        ),
    ],
    source: Annotated[str | None, typer.Argument(help=SOURCE)] = None,
    split: Annotated[
        Literal["val", "test"] | None,
        typer.Option(help="Instead: val is the development phase, test the testing phase."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Default: predictions-SPLIT.json in the run; of a source, a folder predict-N there."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with LTDv2's files; default: the run's.")] = None,
    imgsz: Annotated[int | None, number("imgsz", "Default: as trained.")] = None,
    batch: Annotated[int, number("batch", "Frames at a time.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, 0; default: the first GPU or the CPU.")] = None,
    workers: Annotated[int, number("workers", "Loader processes, for a split.")] = 4,
    conf: Annotated[
        float | None, typer.Option(min=0, max=1, help="Lowest score kept; default: 0.001, of a source 0.25.")
    ] = None,
    iou: Iou = 0.6,
    max_det: MaxDet = 100,
    agnostic: Agnostic = False,
    tta: Annotated[
        bool, typer.Option("--tta", help="Each frame at three sizes, one of them mirrored: twice the time.")
    ] = False,
    no_patches: Annotated[bool, typer.Option("--no-patches", help="PyTorch's own convolutions.")] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Also draw: a picture a frame, of a video a video.")
    ] = False,
    video: Annotated[bool, typer.Option("--video", help="Draw one video, of pictures too.")] = False,
    format: Annotated[
        list[Format] | None,
        typer.Option(help="Of a source: json (default), coco (results and images), yolo (text). Repeatable."),
    ] = None,
    values: Annotated[
        str,
        typer.Option(
            "--range", metavar="LOW:HIGH", help="Of frames with 16 bits: black and white, or percentiles."
        ),
    ] = "0.5%:99.5%",
    colour: Annotated[
        bool, typer.Option("--colour", help="Keep colours, for weights that learnt from them; else grey.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Frames of a video or camera to stop after.")
    ] = None,
    bad_frames: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Part of the frames that may be unreadable; default: toolkit.toml's, 0.01."
        ),
    ] = None,
    as_split: Annotated[
        bool,
        typer.Option("--as-split", help="Pad as a split's: its boxes bit for bit, not `yolo predict`'s."),
    ] = False,
) -> None:
    """Predict a split and write the challenge's JSON, or predict anything and write what you need.

    Example: [bold]toolkit predict best.pt --split test[/bold]
    Example: [bold]toolkit predict best.pt harbour.mp4 --save --format coco[/bold]
    """
    from toolkit import prediction, workspace
    from toolkit.errors import CallError

    place = workspace.current()
    if (source is None) == (split is None):
        raise CallError(
            "it is not clear what to predict",
            found="a source and --split" if source else "neither a source nor --split",
            expected="one of the two: predict best.pt SOURCE, or --split val or test",
            fix="toolkit predict --help",
        )
    if split is not None:
        of_source = {
            "--save": save,
            "--video": video,
            "--format": format,
            "--colour": colour,
            "--limit": limit,
            "--as-split": as_split,
        }
        refuse_flags(of_source, "a source, not a split")
    else:
        refuse_flags({"--tta": tta, "--data": data}, "a split, not a source")
    checkpoint = place.weights(weights)
    options = prediction.PredictionOptions(
        imgsz=imgsz,
        batch=batch,
        device=device,
        workers=workers,
        conf=conf if conf is not None else 0.001 if split else 0.25,
        iou=iou,
        max_det=max_det,
        agnostic=agnostic,
        tta=tta,
        patches=not no_patches,
    )
    if split is not None:
        target = _predict_split(place, checkpoint, split, out, data, options, bad_frames)
    else:
        assert source is not None
        kinds = tuple(dict.fromkeys(each.value for each in format or [Format.json]))
        from toolkit.sources.command import Wanted, predict_to_folder

        wanted = Wanted(kinds, save or video, video, values, colour, limit, as_split, bad_frames)
        target = predict_to_folder(place, checkpoint, source, out, options, wanted)
    typer.echo(target)


def _predict_split(
    place: Workspace,
    checkpoint: Path,
    split: Literal["val", "test"],
    out: Path | None,
    data: Path | None,
    options: PredictionOptions,
    bad_frames: float | None,
) -> Path:
    from dataclasses import replace

    from toolkit import console, prediction, provenance, vocabulary
    from toolkit.runs import health
    from toolkit.weights import Detector

    target = out or (place.run_of(checkpoint) or place.root) / f"predictions-{split}.json"
    require_place(target, ".json")
    known, classes = place.known_data(checkpoint, data)
    detector = Detector.read(checkpoint, classes)  # refused before its data is
    frames = known or place.data_of(checkpoint, data)
    allowed = health.of(place, frames).frames_allowed() if bad_frames is None else bad_frames
    detections = prediction.predict(detector, frames, split, replace(options, bad_frames=allowed))
    detections.write(target)
    digest, flags = provenance.sha256(checkpoint), options.flags()
    provenance.record(target, split, checkpoint.name, digest, flags=flags)
    if split == "test" and not vocabulary.of_data(frames).is_own:  # the challenge takes its own frames alone
        console.note(f"next: `toolkit submit {quote(str(target))} --zip`")
    return target
