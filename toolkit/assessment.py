"""From weights or predictions to a split's scores on disk: ``toolkit evaluate`` between flags and table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submission import Detections
from submission.validate import check_overlap, check_values
from toolkit import belonging, console, provenance, vocabulary
from toolkit.dataset.frames import BAD_FRAMES
from toolkit.errors import ToolkitError
from toolkit.evaluation.engines import Engine
from toolkit.evaluation.matched import write_tables
from toolkit.evaluation.scoring import MANY, Scores, score
from toolkit.evaluation.truth import GroundTruth, answers_of
from toolkit.ltdv2 import SplitName
from toolkit.machine import checks
from toolkit.runs import health
from toolkit.workspace import BEST, Workspace, is_other_data, record_of

if TYPE_CHECKING:
    from toolkit.dataset.index import DatasetIndex
    from toolkit.prediction import PredictionOptions
    from toolkit.weights import Detector


PREDICTIONS = "predictions.json"
"""What weights found, beside their scores."""


@dataclass(frozen=True)
class Task:
    """What is scored, against what, and where the result goes.

    Attributes:
        path: weights or predictions.
        detector: the weights, opened; None for predictions.
        origin: of predictions, what made them, where that was noted.
        run: the run that ``path`` lies in, if any.
        split: the split that is scored.
        answers: the file with its true boxes. published: they are the split's own, in the data's folder.
        truth_sha256: gives their hash, which is taken once.
        data: the folder of the frames; None where nothing needs it.
        folder: where scores, predictions and the report go.
        bad_frames: part of the frames that may be missing or unreadable.
        own: whether the data is the run's own.
    """

    path: Path
    detector: Detector | None
    origin: provenance.Origin | None
    run: Path | None
    split: SplitName
    answers: Path
    truth_sha256: Callable[[], str]
    published: bool
    data: Path | None
    folder: Path
    bad_frames: float
    own: bool = True

    @property
    def title(self) -> str:
        """The run or file, the split, and whose it is where it is not the run's own."""
        title = f"{self.run.name if self.run else self.path.stem}, split {self.split}"
        return title if self.own or not self.published else f"{title} of {self.answers.parent.resolve().name}"


@dataclass(frozen=True)
class Assessment:
    """A split's truth, what was found, and the scores, which are on disk."""

    truth: GroundTruth
    detections: Detections
    scores: Scores
    index: DatasetIndex | None

    def remarks(self) -> Iterator[str]:
        """What a reader of the scores has to know."""
        scores, objects = self.scores, len(self.truth.labels)
        if scores.missing or scores.ignored:
            yield (
                f"{scores.missing:,} images of the truth have no predictions (scored as empty), "
                f"{scores.ignored:,} predicted images are not in the truth (ignored)"
            )
        if scores.left_out:
            yield (
                f"no true boxes in {', '.join(scores.left_out)}: the number that ranks is taken over the "
                f"other {len(scores.months):,} parts by {scores.by}"
            )
        if scores.overall.map_50 <= 0 < objects:
            yield (
                f"nothing was found: none of {len(self.detections.boxes):,} boxes lies on one of {objects:,} "
                "objects with its class; the weights have learnt too little, or belong to other frames"
            )


def task(
    place: Workspace,
    target: str,
    split: SplitName,
    truth: Path | None = None,
    data: Path | None = None,
    out: Path | None = None,
) -> Task:
    """Find everything that an evaluation needs, before any of its work.

    Args:
        place: finds runs, weights and data.
        target: weights, a run or predictions (``.json``).
        split: the split that is scored.
        truth: another file with its true boxes.
        data: the folder of the data; None: the run's, or the workspace's.
        out: the folder of the result; None: see :meth:`Workspace.evaluation`.

    Raises:
        ToolkitError: something is not there, or the weights are no detector of the data's classes.
    """
    path = place.weights(target)
    run = place.run_of(path)
    detector: Detector | None = None
    known: Path | None = None
    if path.suffix != ".json":
        from toolkit.weights import Detector  # here: predictions are scored without PyTorch

        known, classes = place.known_data(path, data)
        detector = Detector.read(path, classes)  # refused before its data is
    needs_data = truth is None or detector is not None or data is not None
    source = known or (data_behind(place, path, split, data) if needs_data or run is not None else None)
    if source is None and truth is not None and not vocabulary.of_data(truth.parent).is_own:
        near, _ = place.known_data(path)  # a file from elsewhere is in the words of its source
        source = near if near is not None and vocabulary.of_data(near).is_own else None
    answers = truth or answers_of(source or place.data_dir(), split)
    origin = provenance.origin_of(path) if detector is None else None
    made_by = provenance.weights_of(path, origin, BEST) if detector is None else path.name
    own = run is not None and (data is None or source is None or not is_other_data(run, source))
    folder = out or place.evaluation(path, split, source, truth, data is not None, made_by)
    digest = cache(partial(provenance.sha256, answers))
    if (out is not None or truth is not None or not own) and answers.is_file():
        folder = _unshared(folder, None if run else path, answers, digest, out is not None)
    allowed = health.of(place, source).frames_allowed() if detector else BAD_FRAMES
    return Task(
        path, detector, origin, run, split, answers, digest, truth is None, source, folder, allowed, own
    )


def _unshared(
    folder: Path, target: Path | None, answers: Path, digest: Callable[[], str], named: bool
) -> Path:
    """``folder``, or one numbered after it where that has the scores of something else: said in a line."""
    for number in count(1):
        tried = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        held = provenance.subject_of(tried / "scores.json")
        other = held is not None and not held.is_of(provenance.subject(tried, target, answers, digest()))
        if other and named:
            console.warn(f"{tried} has scores against {_held(tried, held)}, which are replaced")
        if not other or named:
            return tried
        console.note(f"{tried} has scores against {_held(tried, held)}: these go elsewhere")
    raise AssertionError


def _held(folder: Path, held: provenance.Subject | None) -> str:
    assert held is not None
    return f"{(folder / held.truth).resolve()}" + (f" of {held.target}" if held.target else "")


def options_of(wanted: Task, fields: Mapping[str, Any]) -> PredictionOptions:
    """Fields of :class:`PredictionOptions`, and the limit of bad frames."""
    from toolkit.prediction import PredictionOptions  # here: predictions are scored without PyTorch

    return PredictionOptions(**fields, bad_frames=wanted.bad_frames)


def assess(
    wanted: Task, fields: Mapping[str, Any], engine: Engine = "auto", strict: bool = False
) -> Assessment:
    """Predict if need be, score, and write ``scores.json`` with its origin.

    Args:
        wanted: what is scored, see :func:`task`.
        fields: of :class:`PredictionOptions`; nothing is made of them where predictions were given.
        engine: the evaluator of the COCO protocol.
        strict: refuse missing and unknown ids instead of counting them.

    Raises:
        ToolkitError: the folder of the result cannot be written; see :func:`toolkit.prediction.predict`.
        SubmissionError: a file is not what it should be, or shares no image with the truth.
    """
    checks.writable(wanted.folder)
    path, answers = wanted.path, wanted.answers
    index: DatasetIndex | None = None
    if wanted.detector is None:
        detections = Detections.read(console.reading(path))
        truth = GroundTruth.read(answers, wanted.data)
        check_overlap(
            detections, truth.image_ids, str(path), str(answers)
        )  # of other data are also its labels
        check_values(detections, str(path), truth.vocabulary.classes)
        origin = wanted.origin
    else:
        truth, index = GroundTruth.read(answers, wanted.data), opened(wanted)
        detections, origin = _predicted(wanted, index, fields)
    if len(detections.scores) > MANY:
        console.note(f"scoring {len(detections.scores):,} detections in {len(truth):,} images")
    scores = score(truth, detections, engine=engine, strict=strict, source=str(path))
    scores.write(wanted.folder / "scores.json")
    target = None if wanted.run else path
    of = provenance.subject(wanted.folder, target, answers, wanted.truth_sha256())
    provenance.record_subject(wanted.folder / "scores.json", of)
    if origin is not None and origin.split == wanted.split and wanted.published:
        hashes = origin.weights_sha256, wanted.truth_sha256()
        provenance.record(
            wanted.folder / "scores.json", wanted.split, origin.weights, *hashes, flags=origin.flags
        )
    return Assessment(truth, detections, scores, index)


def _predicted(
    wanted: Task, index: DatasetIndex, fields: Mapping[str, Any]
) -> tuple[Detections, provenance.Origin]:
    """What the weights find, written with its origin."""
    from toolkit import prediction  # here: predictions are scored without PyTorch

    assert wanted.detector is not None
    options = options_of(wanted, fields)
    detections = prediction.predict(wanted.detector, index, wanted.split, options)
    written, path = wanted.folder / PREDICTIONS, wanted.path
    detections.write(written)
    digest, flags = provenance.sha256(path), options.flags()
    return detections, provenance.record(written, wanted.split, path.name, digest, flags=flags)


def named(place: Workspace, names: Iterable[str], split: SplitName) -> list[Path]:
    """Weights (``.pt``) or files of predictions: by their names, or of a run what its best weights found.

    Of a run without predictions of the split its best weights, which are still to find them. Says which of
    them :func:`warn_of_seen` finds.

    Raises:
        ToolkitError: see :meth:`Workspace.weights` and :meth:`Workspace.predictions`.
    """
    found = [_named(place, name, split) for name in names]
    warn_of_seen(place, found, split)
    return found


def _named(place: Workspace, name: str, split: SplitName) -> Path:
    if Path(name).suffix == ".pt":
        return place.weights(name)
    origins = cache(provenance.origin_of)
    path = place.predictions(name, split, lambda file: _by_best(place, file, origins(file)))
    if path.suffix == ".pt":
        return path
    if path != Path(name):
        made_by = provenance.weights_of(path, origins(path), "")
        console.note(
            f"{name} is {path}" + (f", which {made_by} found" if made_by else "") + _how(origins(path))
        )
        run = place.run_of(path)
        if run is not None and _by_best(place, path, origins(path)) == _OTHERS:
            console.warn(
                f"{path} is not what {BEST} of run {run.name} finds now; to compare that, name it: "
                f"{run / 'weights' / BEST}"
            )
    return path


def _how(origin: provenance.Origin | None) -> str:
    return f" with {origin.flags}" if origin is not None and origin.flags else ""


_OTHERS, _UNKNOWN, _BEST = range(3)


def _by_best(place: Workspace, predictions: Path, origin: provenance.Origin | None) -> int:
    """Whether a run's best weights made a file, as they are now; unknown where nothing was noted of it."""
    run = place.run_of(predictions)
    best = run / "weights" / BEST if run is not None else None
    if best is None or not best.is_file() or provenance.weights_of(predictions, origin, "") == "":
        return _UNKNOWN
    made = origin is not None and origin.weights_sha256 == provenance.sha256(best)
    return _BEST if made else _OTHERS


def predictions_of(place: Workspace, path: Path, split: SplitName, data: Path | None = None) -> Path:
    """A file of predictions itself; of weights those that they made, now if need be.

    Args:
        place: finds runs and data.
        path: what :func:`named` returned.
        split: that is predicted.
        data: for weights: the folder of the data; None: their run's, or the workspace's.

    Raises:
        ToolkitError: see :func:`task` and :func:`toolkit.prediction.predict`.
    """
    if path.suffix != ".pt":
        return path
    wanted = task(place, str(path), split, data=data)
    written = wanted.folder / PREDICTIONS
    origin = provenance.origin_of(written)
    made = origin is not None and (origin.split, origin.weights_sha256)
    if made != (split, provenance.sha256(wanted.path)):
        checks.writable(wanted.folder)
        console.note(f"predicting split {split} of {wanted.data} with {wanted.path}, for {written}")
        _predicted(wanted, opened(wanted), {})
    elif how := _how(origin):
        console.note(f"{wanted.path} found {written}{how}")
    return written


def warn_of_seen(place: Workspace, paths: Iterable[Path], split: SplitName) -> None:
    """Say which of these weights and predictions are of runs that trained on the split that scores them."""
    for run in dict.fromkeys(filter(None, map(place.run_of, paths))):
        record = None
        with suppress(ToolkitError):  # of a run without its record nothing is known
            record = record_of(run)
        if record is not None and split in record.train_on:
            console.warn(
                f"run {run.name} was trained on split {split} too: scores on it say what the weights "
                "remember, not what they find in other frames"
            )


def data_of_all(place: Workspace, paths: Sequence[Path], data: Path | None = None) -> Path | None:
    """The data of what :func:`named` returned: that which a flag named, else that of the first of a run.

    None: it is of no run, or its run's data is not there.
    """
    first = place.of_a_run(paths)
    return data or (place.known_data(first)[0] if place.run_of(first) is not None else None)


def data_behind(place: Workspace, path: Path, split: SplitName, data: Path | None = None) -> Path:
    """The data of weights, or of predictions by what :func:`toolkit.belonging.data_of` asks.

    Raises:
        ToolkitError: nothing tells.
        SubmissionError: it depends on a file that is no predictions.
    """
    if path.suffix != ".json":
        return place.data_of(path, data)
    return belonging.data_of(place, path, lambda: Detections.read(path).image_ids, data, (split,))


def opened(wanted: Task) -> DatasetIndex:
    """The index of the data that weights are scored on.

    Raises:
        ToolkitError: it is not prepared.
    """
    from toolkit.dataset import index

    assert wanted.data is not None  # weights need data
    return index.load(wanted.data)


def report(wanted: Task, done: Assessment) -> Path:
    """Draw the report, and return its page."""
    from toolkit.report.page import report_on  # here: it draws, and a table needs no Matplotlib

    console.note("drawing the report")
    source = done.index or wanted.data
    return report_on(
        wanted.folder,
        wanted.title,
        done.scores,
        done.truth,
        done.detections,
        wanted.answers,
        source,
        wanted.split,
    )


def tables(wanted: Task, done: Assessment) -> list[Path]:
    """Write matches and COCO results, and return the files."""
    console.note("writing matches and COCO results")
    return list(write_tables(wanted.folder, done.truth, done.detections, wanted.answers))


def require_weights(wanted: Task) -> Detector:
    """The opened weights, for what needs the boxes before their suppression.

    Raises:
        ToolkitError: predictions were given.
    """
    if wanted.detector is None:
        raise ToolkitError(
            "--sweep needs weights",
            found=str(wanted.path),
            expected="a checkpoint: predictions are suppressed already",
        )
    return wanted.detector
