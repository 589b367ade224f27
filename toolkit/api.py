"""For notebooks and scripts: load a dataset, predict, score, compare and match, in a few names.

Importing it changes nothing in the process and takes milliseconds; what is heavy is imported when it is used.
Example: ``docs/python.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import polars as pl

    from submission import Detections
    from toolkit.dataset.index import DatasetIndex
    from toolkit.evaluation.compare import Comparison
    from toolkit.evaluation.scoring import Scores
    from toolkit.evaluation.truth import GroundTruth
    from toolkit.ltdv2 import SplitName

    # What a name takes may be what another one returned, or the path of its file or folder.
    Dataset: TypeAlias = DatasetIndex | Path | str
    Truth: TypeAlias = GroundTruth | Path | str
    Found: TypeAlias = Detections | Path | str

__all__ = ["boxes", "clips", "compare", "frames", "load", "match", "predict", "score", "train", "truth"]


def load(data: Path | str) -> DatasetIndex:
    """Open a prepared dataset; ``load(...).split("val")`` has its columns as numpy arrays.

    Raises:
        ToolkitError: it is not prepared.
    """
    from toolkit.dataset import index

    return index.load(Path(data))


def frames(dataset: Dataset, split: SplitName) -> pl.DataFrame:
    """A row a frame: ``image_id`` int64, ``file_name``, ``clip``, ``part`` (LTDv2: YYYYMM), ``date``,
    ``width``, ``height`` in pixels, ``boxes`` (their number), and a column for each number of ``meta``."""
    import numpy as np
    import polars as pl

    opened = _opened(dataset).split(split)
    table = opened.table("image_id", "file_name", "clip", "date", "width", "height")
    own = [pl.Series("part", opened.part_names), pl.Series("boxes", np.diff(opened.box_offsets))]
    return table.hstack(own).hstack(opened.meta().rename(lambda key: f"meta.{key}"))


def boxes(dataset: Dataset, split: SplitName) -> pl.DataFrame:
    """A row a true box: ``image_id`` int64, ``part``, ``class``, ``label``, ``x1``, ``y1``, ``x2``, ``y2`` in
    pixels, float64, exactly as in the file."""
    import numpy as np
    import polars as pl

    opened = _opened(dataset).split(split)
    counts = np.diff(opened.box_offsets)
    names = opened.vocabulary.classes
    return pl.DataFrame(
        {
            "image_id": np.repeat(opened.image_ids, counts),
            "part": np.repeat(opened.part_names, counts),
            "class": [names[label] for label in opened.labels.tolist()],
            "label": opened.labels,
            **{name: opened.boxes[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))},
        }
    )


def clips(dataset: Dataset, split: SplitName) -> pl.DataFrame:
    """A row a clip: ``clip``, ``part``, ``frames``, ``boxes``, ``first`` and ``last`` (``date_captured``)."""
    import polars as pl

    grouped = frames(dataset, split).group_by("clip", "part", maintain_order=True)
    first, last = pl.col("date").min().alias("first"), pl.col("date").max().alias("last")
    return grouped.agg(pl.len().alias("frames"), pl.col("boxes").sum(), first, last)


def truth(source: Dataset, split: SplitName = "val") -> GroundTruth:
    """The true boxes of a split of a dataset, or of a truth file.

    Raises:
        ToolkitError: the file is none, or the split has no true boxes, as LTDv2's test split.
    """
    from toolkit.dataset.index import DatasetIndex
    from toolkit.evaluation.truth import GroundTruth, answers_of

    data = source.data if isinstance(source, DatasetIndex) else Path(source)
    return GroundTruth.read(answers_of(data, split) if data.is_dir() else data)


def _opened(dataset: Dataset) -> DatasetIndex:
    return load(dataset) if isinstance(dataset, (str, Path)) else dataset


def _true(true: Truth) -> GroundTruth:
    return truth(true) if isinstance(true, (str, Path)) else true


def _detections(found: Found, true: GroundTruth) -> Detections:
    from submission import Detections
    from submission.validate import check_values

    if not isinstance(found, (str, Path)):
        return found
    read = Detections.read(Path(found))
    check_values(read, str(found), true.vocabulary.classes)
    return read


def _known(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Options by names that there are; a device may be the number of a card."""
    from toolkit.errors import ToolkitError

    known = list(names)
    for name in options:
        if name not in known:
            raise ToolkitError(f"no option named {name}", expected=", ".join(known))
    return {k: str(v) if k == "device" and isinstance(v, int) else v for k, v in options.items()}


def predict(weights: Path | str, dataset: Dataset, split: SplitName, **options: Any) -> Detections:
    """Detections of every frame of a split, as ``toolkit predict`` writes them.

    Args:
        weights: a YOLO checkpoint with the dataset's classes, a run, or ``best.pt`` for the newest run's.
        dataset: what :func:`load` returned, or its folder.
        split: "train", "val" or "test".
        options: fields of :class:`toolkit.prediction.PredictionOptions`, such as ``device`` or ``imgsz``.

    Raises:
        ToolkitError: no such option; see :func:`toolkit.prediction.predict`.
    """
    from dataclasses import fields

    from toolkit.quiet import keep_libraries_quiet

    keep_libraries_quiet()  # before Ultralytics is first imported
    from toolkit import prediction, workspace

    known = _known(options, (field.name for field in fields(prediction.PredictionOptions)))
    checkpoint = workspace.current().weights(str(weights))
    return prediction.predict(checkpoint, _opened(dataset), split, prediction.PredictionOptions(**known))


def score(true: Truth, found: Found) -> Scores:
    """The challenge's numbers; ``.balanced`` is ``global_map_bal``, ``.as_dict()`` has every key."""
    from toolkit.evaluation.scoring import score as scored

    known = _true(true)
    return scored(known, _detections(found, known))


def compare(true: Truth, a: Found, b: Found, annotations: Path | str, resamples: int = 1000) -> Comparison:
    """The difference of two sets of predictions, with an interval from resampled clips.

    Args:
        true: ground truth.
        a, b: predictions.
        annotations: the COCO file of the truth, which says the clip of each frame.
        resamples: number of bootstrap samples.

    Raises:
        ToolkitError: the file does not know the images, or there is one clip alone.
    """
    from toolkit.evaluation.compare import compare as compared
    from toolkit.evaluation.context import Context

    known = _true(true)
    both = _detections(a, known), _detections(b, known)
    return compared(known, *both, Context.read(Path(annotations), known.image_ids), resamples=resamples)


def match(true: Truth, found: Found, annotations: Path | str | None = None) -> pl.DataFrame:
    """What found what, a row a detection and a row a missed object: see
    :func:`toolkit.evaluation.matched.match_table`.

    Args:
        true: ground truth.
        found: predictions.
        annotations: the COCO file of the truth, for frames, clips, hours and weather.
    """
    from toolkit.evaluation.context import Context
    from toolkit.evaluation.matched import match_table

    known = _true(true)
    context = Context.read(Path(annotations), known.image_ids) if annotations is not None else None
    return match_table(known, _detections(found, known), context)


def train(workspace: Path | str = ".", **options: Any) -> Path:
    """Train as ``toolkit train`` does, under its supervisor, and return the path of ``best.pt``.

    Args:
        workspace: the folder of runs and settings.
        options: fields of :class:`toolkit.training.options.Options`, such as ``data``, ``preset``; paths may
            be text.

    Raises:
        ToolkitError: no such option, one of another type, options that cannot be met, or a run given up.
    """
    import msgspec

    from toolkit.quiet import keep_libraries_quiet

    keep_libraries_quiet()
    from toolkit.runs.folder import decode_path
    from toolkit.settings import refusal
    from toolkit.supervision import supervisor
    from toolkit.training import deciding
    from toolkit.training.options import Options
    from toolkit.workspace import Workspace

    known = _known(options, Options.__struct_fields__)
    try:
        chosen = msgspec.convert(known, Options, dec_hook=decode_path)
    except msgspec.ValidationError as error:
        raise refusal("train cannot use this option", known, error) from error
    planned = deciding.plan(Workspace(Path(workspace).absolute()), chosen)
    return supervisor.train(planned, numbered="name" not in options)
