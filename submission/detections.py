"""The value type for detections, and the challenge's JSON in and out of it.

Files are converted to :class:`Detections` and from it at the edges, nowhere else.
"""

from __future__ import annotations

import json
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from shlex import quote
from typing import Any
from zipfile import is_zipfile

import msgspec
import numpy as np
import numpy.typing as npt

from submission.atomic import write_bytes
from submission.errors import NO_JSON, SubmissionError

NAMED_OFFENCES = 10
"""How many offences a message names before it only counts."""

NAMED_KEYS = 5
"""How many keys of an object that is none of predictions."""


_ID = re.compile(r"0|[1-9][0-9]{0,17}")
_ID_KEY = re.compile(rb'"[0-9]+"\s*:')


_ZIP = b"PK\x03\x04"
_OF_WEIGHTS, _FIRST_MEMBER = b"/data.pkl", 512
"""How the first member of a PyTorch checkpoint ends its name, and bytes within which that name lies."""

_PACKED = {_ZIP: "a zip archive", b"\x1f\x8b": "a file packed by gzip"}


class _Entry(msgspec.Struct, gc=False):
    boxes: list[tuple[float, float, float, float]]
    scores: list[float]
    labels: list[int]


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of many images, as columns.

    Image ``i`` owns rows ``offsets[i]:offsets[i + 1]`` of ``boxes``, ``scores`` and ``labels``.

    Attributes:
        image_ids: (images,) int64, LTDv2's 17-digit ids. Never pass them through a float: they exceed 2**53.
        offsets: (images + 1,) int64, non-decreasing, from 0 to the number of boxes.
        boxes: (n, 4) float64, corners x1, y1, x2, y2 in absolute pixels.
        scores: (n,) float64 in [0, 1].
        labels: (n,) int64, the challenge's labels 1 person, 2 bicycle, 3 motorcycle, 4 vehicle.
    """

    image_ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of images, those without a box included."""
        return len(self.image_ids)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(images,) int64, boxes of each image."""
        return np.diff(self.offsets)

    def select(self, image_ids: npt.NDArray[np.int64]) -> Detections:
        """The detections of exactly these ids in this order; an id that has no entry gets no boxes."""
        place = locate(image_ids, self.image_ids)
        starts = np.append(self.offsets[:-1], 0)[place]
        counts = np.append(self.counts, 0)[place]
        rows = spans(starts, counts)
        return Detections(
            image_ids, to_offsets(counts), self.boxes[rows], self.scores[rows], self.labels[rows]
        )

    def rounded(self, coordinates: int = 3, scores: int = 5) -> Detections:
        """The same detections with boxes and scores rounded to so many decimals.

        Measured (docs/scoring.md): this moves the score by less than 3e-5. With two decimals of coordinates a
        box that crosses IoU 0.5 moved it by 1.8e-4; with four of scores the many detections below 0.01 become
        ties, which moved it by 3.2e-4.
        """
        return Detections(
            self.image_ids,
            self.offsets,
            self.boxes.round(coordinates),
            self.scores.round(scores),
            self.labels,
        )

    def dumps(self) -> bytes:
        """The challenge's JSON: ids in ascending order, one image a line, shortest exact decimals.

        The same detections give the same bytes, and :func:`loads` gives back the same numbers.
        """
        encoder = msgspec.json.Encoder()
        ends = self.offsets.tolist()
        lines = []
        for i in np.argsort(self.image_ids, kind="stable").tolist():
            rows = slice(ends[i], ends[i + 1])
            entry = {
                "boxes": self.boxes[rows].tolist(),
                "scores": self.scores[rows].tolist(),
                "labels": self.labels[rows].tolist(),
            }
            lines.append(b'"%d":%b' % (self.image_ids[i], encoder.encode(entry)))
        return b"{\n" + b",\n".join(lines) + b"\n}\n"

    def write(self, path: Path) -> None:
        """Write the challenge's JSON to ``path``, the whole of it or nothing.

        Raises:
            SubmissionError: the file cannot be written.
        """
        write_bytes(path, self.dumps())

    @classmethod
    def read(cls, path: Path) -> Detections:
        """Read the challenge's JSON, ``{"<id>": {"boxes": ..., "scores": ..., "labels": ...}}``.

        The shape of the file is checked here; ids, labels and numbers by :mod:`submission.validate`.

        Raises:
            SubmissionError: the file is missing, cut off, no such JSON, another kind of file (a COCO
                list, a COCO dataset, a truth file), names an id twice, or has lists of different lengths.
        """
        return cls.loads(read_bytes(path), str(path))

    @classmethod
    def loads(cls, data: bytes, source: str = "the predictions") -> Detections:
        """Like :meth:`read`, from bytes; ``source`` names them in messages."""
        try:
            entries = msgspec.json.decode(data, type=dict[str, _Entry])
        except NO_JSON:
            # The slow way accepts NaN and Infinity, which Python writes and validation names, and can
            # say which id is at fault.
            entries = _explain(_parse(data, source), source)
        ids = parse_ids(entries, source)
        refuse_repeated_keys(data, len(ids), source)
        lengths = np.array([(len(e.boxes), len(e.scores), len(e.labels)) for e in entries.values()])
        lengths = lengths.reshape(-1, 3).astype(np.int64)
        uneven = np.flatnonzero((lengths != lengths[:, :1]).any(axis=1))
        refuse(
            source,
            len(uneven),
            (
                f"id {ids[i]} has {lengths[i, 0]} boxes, {lengths[i, 1]} scores, {lengths[i, 2]} labels"
                for i in uneven.tolist()
            ),
            expected="lists of one length in every image",
        )
        n = int(lengths[:, 0].sum())
        boxes = chain.from_iterable(chain.from_iterable(e.boxes for e in entries.values()))
        scores = chain.from_iterable(e.scores for e in entries.values())
        try:
            labels = np.fromiter(chain.from_iterable(e.labels for e in entries.values()), np.int64, n)
        except OverflowError as error:
            raise SubmissionError(f"{source}: a label is too large", expected="labels 1 to 4") from error
        return cls(
            ids,
            to_offsets(lengths[:, 0]),
            np.fromiter(boxes, np.float64, 4 * n).reshape(n, 4),
            np.fromiter(scores, np.float64, n),
            labels,
        )

    @classmethod
    def read_coco(cls, path: Path, names: Callable[[], Mapping[str, int]] | None = None) -> Detections:
        """Read COCO results, ``[{"image_id", "category_id", "bbox": [x, y, w, h], "score"}, ...]``.

        Images appear in the order of their first detection, detections of an image in file order.
        Images without a detection do not occur in such a file.

        Args:
            path: the file.
            names: gives file stem -> image id; asked when an ``image_id`` is no number. Ultralytics writes
                the stem of a frame's file there.

        Raises:
            SubmissionError: the file is missing, no JSON, not such a list, or has names that nobody knows.
        """
        return cls.loads_coco(read_bytes(path), str(path), names)

    @classmethod
    def loads_coco(
        cls, data: bytes, source: str, names: Callable[[], Mapping[str, int]] | None = None
    ) -> Detections:
        """Like :meth:`read_coco`, from bytes; ``source`` names them in messages."""
        try:
            results = msgspec.json.decode(data, type=list[_Result])
        except NO_JSON as error:
            raise SubmissionError(
                f"{source} is no list of COCO results",
                found=str(error),
                expected='[{"image_id": ..., "category_id": ..., "bbox": [x, y, w, h], "score": ...}, ...]',
            ) from error
        try:
            image = np.array(_coco_ids(results, source, names), np.int64)
            labels = np.array([r.category_id for r in results], np.int64)
        except OverflowError as error:
            raise SubmissionError(
                f"{source}: an image_id or a category_id is too large",
                expected="image ids such as 20200514222307015 and categories 1 to 4",
            ) from error
        xywh = np.array([r.bbox for r in results], np.float64).reshape(-1, 4)
        ids, first, inverse = np.unique(image, return_index=True, return_inverse=True)
        position = np.empty(len(ids), np.int64)
        position[np.argsort(first)] = np.arange(len(ids))
        owner = position[inverse]
        order = np.argsort(owner, kind="stable")
        counts = np.bincount(owner, minlength=len(ids))
        return cls(
            ids[np.argsort(first)],
            to_offsets(counts),
            np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])[order],
            np.array([r.score for r in results], np.float64)[order],
            labels[order],
        )


class _Result(msgspec.Struct, gc=False):
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


def _coco_ids(
    results: list[_Result], source: str, names: Callable[[], Mapping[str, int]] | None
) -> list[int]:
    """The image id of each result: a number, the digits of one, or a file stem that ``names`` knows."""
    stems = {r.image_id for r in results if isinstance(r.image_id, str) and not _ID.fullmatch(r.image_id)}
    known = names() if stems and names is not None else {}
    unknown = sorted(stems - known.keys())
    refuse(
        source,
        len(unknown),
        (f"image_id {name!r}" for name in unknown),
        expected="image ids such as 20200514222307015, or file stems of the frames that were exported",
        fix="name the data whose index knows them: --data" if names is not None else "",
    )
    return [
        r.image_id if isinstance(r.image_id, int) else known.get(r.image_id) or int(r.image_id)
        for r in results
    ]


def spans(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Row numbers ``starts[i] ... starts[i] + counts[i] - 1`` for every ``i``, concatenated; int64."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


def to_offsets(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each image's rows begin, and behind the last where they end; (images + 1,) int64."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def locate(wanted: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Position in ``ids`` of each of ``wanted``, -1 where it does not occur; int64."""
    if not len(ids):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(ids, kind="stable")
    place = np.searchsorted(ids, wanted, sorter=order).clip(max=len(ids) - 1)
    position = order[place]
    return np.where(ids[position] == wanted, position, -1).astype(np.int64)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, or of a pipe.

    Raises:
        SubmissionError: it is missing, a device (which may never end), or cannot be read.
    """
    try:
        kind = path.stat().st_mode
        if stat.S_ISCHR(kind) or stat.S_ISBLK(kind):
            raise SubmissionError(f"cannot read {path}", found="a device", expected="a file")
        return path.read_bytes()
    except OSError as error:
        raise SubmissionError(f"cannot read {path}", found=error.strerror or str(error)) from error


def parse_ids(keys: Iterable[str], source: str) -> npt.NDArray[np.int64]:
    """Ids of an object's keys, exactly; (images,) int64.

    Raises:
        SubmissionError: a key that is not a whole number of at most 18 digits, written plainly.
    """
    keys = list(keys)
    bad = [key for key in keys if not _ID.fullmatch(key)]
    refuse(source, len(bad), (f"key {key!r}" for key in bad), expected="image ids such as 20200514222307015")
    return np.array([int(key) for key in keys], np.int64)


def refuse_repeated_keys(data: bytes, distinct: int, source: str) -> None:
    """Refuse a JSON object of ids that has a key twice: a parser would silently keep the last entry.

    Keys of digits are counted, which is exact without backslashes unless entries have such keys inside.
    Only where the count is another than ``distinct`` the file is parsed a second time, slowly.

    Args:
        data: the JSON, known to be an object whose keys are ids.
        distinct: number of different keys.
        source: names the file in messages.

    Raises:
        SubmissionError: an id is there twice; the first ten are named.
    """
    if b"\\" not in data and len(_ID_KEY.findall(data)) == distinct:
        return
    counts = Counter(key for key, _ in _parse(data, source, object_pairs_hook=list))
    twice = [key for key, count in counts.items() if count > 1]
    refuse(source, len(twice), (f"id {key} twice" for key in twice), expected="every id once")


def refuse(source: str, count: int, offences: Iterable[str], expected: str, fix: str = "") -> None:
    """Raise one error that names the first ten offences and counts them all; nothing if there are none.

    Raises:
        SubmissionError: ``count`` is not 0.
    """
    if not count:
        return
    named = list(islice(offences, NAMED_OFFENCES))
    more = f", and {count - len(named):,} more" if count > len(named) else ""
    what = f"{source}: {count:,} offence{'s' if count > 1 else ''}"
    raise SubmissionError(what, found=", ".join(named) + more, expected=expected, fix=fix)


def _parse(
    data: bytes, source: str, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    try:
        return json.loads(data, object_pairs_hook=object_pairs_hook)
    except (ValueError, RecursionError) as error:
        packed = next((kind for start, kind in _PACKED.items() if data.startswith(start)), "")
        zipped = source.lower().endswith(".zip")
        if packed == _PACKED[_ZIP] and _OF_WEIGHTS in data[:_FIRST_MEMBER]:
            raise SubmissionError(
                f"{source} holds weights",
                found="a checkpoint of PyTorch",
                expected="predictions",
                fix=f"make some: toolkit predict {quote(source)} --split val --out predictions-val.json",
            ) from error
        if packed == _PACKED[_ZIP] and is_zipfile(BytesIO(data)):
            raise SubmissionError(
                f"{source} is a zip archive",
                expected="the predictions.json in it",
                fix="unpack it first",
            ) from error
        if zipped and packed == _PACKED[_ZIP]:
            raise SubmissionError(
                f"{source} is a zip archive that is cut off",
                found=f"{len(data):,} bytes without the directory at an archive's end",
                expected="a zip with predictions.json in it",
                fix="copy or make it again",
            ) from error
        raise SubmissionError(
            f"{source} is no zip archive, and no JSON" if zipped else f"{source} is no JSON, or is cut off",
            found=packed or _why(error),
            expected="a zip with predictions.json in it" if zipped else "one JSON object that closes",
            fix="unpack it first" if packed else "",
        ) from error


def _why(error: ValueError | RecursionError) -> str:
    """What a parser stumbled over, without its advice to programmers."""
    return "a number with thousands of digits" if type(error) is ValueError else str(error)


def _explain(value: Any, source: str) -> dict[str, _Entry]:
    """Convert a parsed file entry by entry, so that the error can name ids and other kinds of file."""
    if isinstance(value, list):
        raise SubmissionError(
            f"{source} is a list",
            found="COCO results ([x, y, width, height] boxes)" if _is_coco_results(value) else "a JSON list",
            expected="the challenge's object of ids",
            fix="convert it: toolkit submit --from-coco",
        )
    if not isinstance(value, Mapping):
        raise SubmissionError(
            f"{source} is no JSON object",
            found=type(value).__name__,
            expected="the challenge's object of ids",
        )
    if "images" in value:
        raise SubmissionError(
            f"{source} is a COCO dataset",
            found="the key 'images'",
            expected="predictions: the challenge's object of ids",
            fix="if truth and predictions are swapped, swap them",
        )
    if value and all(isinstance(e, Mapping) and "scores" not in e and "boxes" in e for e in value.values()):
        raise SubmissionError(
            f"{source} is a truth file",
            found="boxes without scores",
            expected="predictions with boxes, scores and labels",
            fix="if truth and predictions are swapped, swap them",
        )
    if value and not any(key.isdecimal() for key in value):
        raise SubmissionError(
            f"{source} is no file of predictions",
            found=f"the key{'s' if len(value) > 1 else ''} "
            + ", ".join(repr(key) for key in islice(value, NAMED_KEYS))
            + (", ..." if len(value) > NAMED_KEYS else ""),
            expected="the challenge's object of ids",
        )
    converted = {key: _convert(entry) for key, entry in value.items()}
    entries = {key: entry for key, entry in converted.items() if isinstance(entry, _Entry)}
    refuse(
        source,
        len(converted) - len(entries),
        (f"id {key}: {fault}" for key, fault in converted.items() if isinstance(fault, str)),
        expected="boxes [[x1, y1, x2, y2], ...], scores and labels for every id",
    )
    return entries


def _convert(entry: Any) -> _Entry | str:
    """The entry, or what is wrong with it. Labels such as 1.0 are whole numbers to the evaluator as well."""
    if isinstance(entry, Mapping) and isinstance(entry.get("labels"), list):
        whole = [int(v) if isinstance(v, float) and v.is_integer() else v for v in entry["labels"]]
        entry = {**entry, "labels": whole}
    try:
        return msgspec.convert(entry, _Entry)
    except msgspec.ValidationError as error:
        return str(error)[:1].lower() + str(error)[1:]


def _is_coco_results(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], Mapping) and {"image_id", "bbox"} <= value[0].keys()
