"""What is really in the frames: the challenge's truth file, a COCO file, or the dataset's index."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from submission.detections import locate, parse_ids, read_bytes, refuse_repeated_keys, to_offsets
from submission.errors import NO_JSON, SubmissionError
from toolkit.dataset.own.translating import translate
from toolkit.errors import ToolkitError
from toolkit.ltdv2 import ANNOTATIONS, SplitName
from toolkit.vocabulary import LTDV2, Vocabulary, of_data


class _Entry(msgspec.Struct, gc=False):
    boxes: list[tuple[float, float, float, float]]
    labels: list[int]
    scores: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Image(msgspec.Struct, gc=False):
    id: int
    part: str = ""


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]


class _Coco(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation] | msgspec.UnsetType = msgspec.UNSET
    annotation: list[_Annotation] | msgspec.UnsetType = msgspec.UNSET


class _Lists(msgspec.Struct):
    annotations: list[msgspec.Raw] = []


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """True boxes of many images, as columns.

    The order of images and of the boxes of an image is the file's: it decides between equal scores and
    equal overlaps, so it is part of the score.

    Attributes:
        image_ids: (images,) int64, each once.
        offsets: (images + 1,) int64; image ``i`` owns rows ``offsets[i]:offsets[i + 1]``.
        boxes: (n, 4) float64, corners x1, y1, x2, y2 in absolute pixels.
        labels: (n,) int64, 0 to 255 (the evaluator keeps them in a byte).
        vocabulary: names of the classes, and of the parts that the consistency is taken over.
        parts: (images,) int64, the number that each image's part has in the vocabulary; None for LTDv2, whose
            ids say the month.
    """

    image_ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    vocabulary: Vocabulary = LTDV2
    parts: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.boxes).all():
            row = int(np.flatnonzero(~np.isfinite(self.boxes).all(axis=1))[0])
            raise ToolkitError(
                "the truth has a box that is no box",
                found=f"{self.boxes[row].tolist()} in image {self.image_ids[self._owner(row)]}",
                expected="finite coordinates",
            )
        wrong = np.flatnonzero((self.labels < 0) | (self.labels > 255))
        if len(wrong):
            row = int(wrong[0])
            raise ToolkitError(
                "the truth has an unknown label",
                found=f"{self.labels[row]} in image {self.image_ids[self._owner(row)]}",
                expected=", ".join(f"{k} {name}" for k, name in self.vocabulary.classes.items()),
            )

    def _owner(self, row: int) -> int:
        return int(np.searchsorted(self.offsets, row, side="right")) - 1

    def __len__(self) -> int:
        """Number of images, those without a box included."""
        return len(self.image_ids)

    @classmethod
    def read(cls, path: Path, data: Path | None = None) -> GroundTruth:
        """Read the challenge's ``{"<id>": {"boxes", "labels"}}`` or a COCO file, told apart by content.

        Args:
            path: the file.
            data: the folder of the data that it is about. Of data of one's own any COCO file will do, such as
                its source's, see :func:`toolkit.dataset.own.translating.translate`.

        Raises:
            ToolkitError: the file is neither, holds predictions or no boxes, lists an image twice, or has a
                box of an image that it does not list.
            SubmissionError: the file cannot be read, or its keys are no ids or name one twice.
        """
        content = read_bytes(path)
        try:
            if content.lstrip()[:1] == b"[":
                raise _swapped(path, "a JSON list")
            if "images" in msgspec.json.decode(content, type=dict[str, msgspec.Raw]):
                words = of_data(path.parent)
                if data is not None and not words.is_own and of_data(data).is_own:
                    translated = translate(content, path, data)
                    return _from_coco(msgspec.convert(translated, _Coco), path, of_data(data))
                return _from_coco(msgspec.json.decode(content, type=_Coco), path, words)
            entries = msgspec.json.decode(content, type=dict[str, _Entry])
            truth = _from_challenge(entries, path)
            refuse_repeated_keys(content, len(truth), str(path))
            return truth
        except NO_JSON as error:
            raise ToolkitError(
                f"{path} is no truth file",
                found=str(error),
                expected='the challenge\'s {"<id>": {"boxes", "labels"}} or a COCO file such as Valid.json',
            ) from error


def answers_of(data: Path, split: SplitName) -> Path:
    """The file with the true boxes of a split of a data folder.

    Raises:
        ToolkitError: the split is not there, or has none: LTDv2's test split, or one of other data.
    """
    path = data / ANNOTATIONS[split]
    if split != "test":  # which always has some, see ``toolkit dataset prepare``
        return path
    if not path.is_file():
        raise ToolkitError(f"{data} has no {split} split", expected=str(path))
    with suppress(*NO_JSON):  # whatever else is wrong with it is said where it is read
        if not msgspec.json.decode(read_bytes(path), type=_Lists).annotations:
            own = of_data(data).is_own
            raise ToolkitError(
                f"the {split} split of {data} has no true boxes to score against",
                found=f"images alone in {path.name}",
                expected="labels in its source" if own else "the organisers keep them to themselves",
                fix=f"a file that has them: --truth FILE; without: toolkit predict best.pt --split {split}",
            )
    return path


def _swapped(path: Path, found: str) -> ToolkitError:
    return ToolkitError(
        f"{path} holds predictions",
        found=found,
        expected="the truth",
        fix="truth and predictions look swapped: toolkit evaluate PREDICTIONS.json --truth TRUTH.json",
    )


def _from_challenge(entries: dict[str, _Entry], path: Path) -> GroundTruth:
    if any(entry.scores is not msgspec.UNSET for entry in entries.values()):
        raise _swapped(path, "scores beside its boxes")
    ids = parse_ids(entries, str(path))
    counts = np.array([len(entry.boxes) for entry in entries.values()], np.int64)
    labels = np.array([len(entry.labels) for entry in entries.values()], np.int64)
    if (counts != labels).any():
        i = int(np.flatnonzero(counts != labels)[0])
        raise ToolkitError(
            f"{path}: lists of different lengths",
            found=f"{counts[i]} boxes and {labels[i]} labels in image {ids[i]}",
            expected="one label a box",
        )
    n = int(counts.sum())
    boxes = chain.from_iterable(chain.from_iterable(entry.boxes for entry in entries.values()))
    return GroundTruth(
        ids,
        to_offsets(counts),
        np.fromiter(boxes, np.float64, 4 * n).reshape(n, 4),
        np.fromiter(chain.from_iterable(entry.labels for entry in entries.values()), np.int64, n),
    )


def _from_coco(coco: _Coco, path: Path, vocabulary: Vocabulary) -> GroundTruth:
    annotations = coco.annotation if coco.annotations is msgspec.UNSET else coco.annotations
    if annotations is msgspec.UNSET:
        raise ToolkitError(
            f"{path} has no true boxes", found="images alone", expected="a COCO file with annotations"
        )
    ids = np.array([image.id for image in coco.images], np.int64)
    if len(np.unique(ids)) != len(ids):
        raise ToolkitError(f"{path} lists an image id twice", expected="every id once")
    n = len(annotations)
    owners = np.fromiter((a.image_id for a in annotations), np.int64, n)
    image = locate(owners, ids)
    if (image < 0).any():
        raise ToolkitError(
            f"{path} has annotations of images that it does not list",
            found=f"image id {owners[image < 0][0]}",
            expected="every image_id among images",
        )
    order = np.argsort(image, kind="stable")
    xywh = np.fromiter(chain.from_iterable(a.bbox for a in annotations), np.float64, 4 * n)
    xywh = xywh.reshape(n, 4)
    # Corners first, in double precision: the organisers write their truth file so.
    corners = np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
    labels = np.fromiter((a.category_id for a in annotations), np.int64, n)
    counts = np.bincount(image, minlength=len(ids))
    parts = None
    if vocabulary.is_own:
        parts = np.array([vocabulary.parts.get(image.part, -1) for image in coco.images], np.int64)
    return GroundTruth(ids, to_offsets(counts), corners[order], labels[order], vocabulary, parts)


__all__ = ["GroundTruth", "SubmissionError"]
