"""``toolkit predict WEIGHTS SOURCE``: a folder with everything that was asked for, or nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from toolkit import console, provenance
from toolkit.errors import ToolkitError
from toolkit.prediction import PredictionOptions
from toolkit.runs import health
from toolkit.sources import outputs
from toolkit.sources.outputs import Found
from toolkit.sources.predicting import Result, predict_source
from toolkit.sources.reading import Pixels, Source, Video, open_source
from toolkit.workspace import Workspace

PICTURES_RATE = 10.0
"""Frames a second of a video that is drawn of pictures."""

USED = ("imgsz", "conf", "iou", "max_det", "agnostic")
"""The options that decide which boxes there are, as they are written down."""


@dataclass(frozen=True)
class Wanted:
    """What to make of a source.

    Attributes:
        formats: of :data:`toolkit.sources.outputs.FORMATS`.
        drawn: whether boxes are drawn. video: into one video, of pictures too.
        range: see :class:`toolkit.sources.depth.ToBytes`.
        colour: whether colours are kept.
        limit: frames of a video or camera to stop after.
        as_split: see :class:`toolkit.sources.predicting.Fit`.
        bad_frames: part of the frames that may be unreadable; None: what toolkit.toml says.
    """

    formats: tuple[str, ...]
    drawn: bool
    video: bool
    range: str
    colour: bool
    limit: int | None
    as_split: bool = False
    bad_frames: float | None = None


def predict_to_folder(
    place: Workspace,
    weights: Path,
    text: str,
    out: Path | None,
    options: PredictionOptions,
    wanted: Wanted,
) -> Path:
    """Predict a source and return the folder that was written.

    Args:
        place: where runs are.
        weights: the checkpoint.
        text: the source, see :func:`toolkit.sources.reading.open_source`.
        out: the folder; ``predict-1``, ``predict-2``, ... in the weights' run by default.
        options: see :class:`PredictionOptions`.
        wanted: see :class:`Wanted`.

    Raises:
        ToolkitError: see :func:`open_source` and :func:`predict_source`; or the folder cannot be written.
    """
    allowed = health.of(place).frames_allowed() if wanted.bad_frames is None else wanted.bad_frames
    options = replace(options, bad_frames=allowed)
    source = open_source(text, colour=wanted.colour, limit=wanted.limit)
    target = out or outputs.next_folder(place.run_of(weights) or place.root, "predict")
    with outputs.new_folder(target) as folder:
        sink = _sink(folder, source, wanted)

        def draw(found: Found, pixels: Pixels) -> None:
            if sink is not None:
                sink(found.names[-1], outputs.drawn(found, pixels))

        result = predict_source(weights, source, options, wanted.range, draw, as_split=wanted.as_split)
        if sink is not None:
            sink.close()
        _write(result, folder, text, weights, options, wanted)
    found = result.found
    boxes = ", ".join(f"{count:,} {name}" for name, count in found.by_class().items()) or "nothing found"
    console.note(f"{len(found.names):,} frames: {boxes}")
    if result.stopped and not source.endless:
        raise ToolkitError(
            f"stopped after {len(found.names):,} frames of {text}",
            found=f"what was found in them is in {target}",
            exit_code=130,
        )
    return target


def _sink(folder: Path, source: Source, wanted: Wanted) -> outputs.Pictures | outputs.Video | None:
    if not wanted.drawn:
        return None
    if wanted.video or isinstance(source, Video):
        return outputs.Video(folder / f"{source.title}.mp4", source.rate or PICTURES_RATE)
    return outputs.Pictures(folder)


def _write(
    result: Result, folder: Path, text: str, weights: Path, options: PredictionOptions, wanted: Wanted
) -> None:
    used = {**asdict(options), "imgsz": result.side}
    about = {
        "weights": weights.name,
        "weights_sha256": provenance.sha256(weights),
        "source": text,
        "complete": not result.stopped,
        "range": [result.range.low, result.range.high] if result.range else None,
        "colour": wanted.colour,
        "as_split": wanted.as_split,
        **{name: used[name] for name in USED},
    }
    if "json" in wanted.formats:
        outputs.write_json(result.found, folder / "predictions.json", about)
    if "coco" in wanted.formats:
        outputs.write_coco(result.found, folder)
    if "yolo" in wanted.formats:
        outputs.write_yolo(result.found, folder)
