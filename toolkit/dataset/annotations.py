"""LTDv2's annotation files, COCO format, as columns.

The files are large (Train.json is about 1 GB), so no list of a million objects is ever made: the file is
mapped, its top level is skimmed once, and the two long arrays are decoded in pieces of a few megabytes.
Image ids have 17 digits and stay Python and numpy integers throughout; a double would corrupt them.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from submission.errors import NO_JSON
from submission.validate import LABELS
from toolkit.errors import ToolkitError

S = TypeVar("S", bound=msgspec.Struct)

Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Size = Annotated[int, msgspec.Meta(ge=1, le=65_535)]
Pixels = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]

PIECE_BYTES = 8 << 20
"""Bytes of an array decoded at a time: 8 MiB of annotations are about 40,000 objects, 20 MB decoded."""


class _Image(msgspec.Struct, gc=False):
    id: Id
    file_name: str
    width: Size
    height: Size
    date_captured: str | int | float | None = None
    meta: msgspec.Raw = msgspec.Raw(b"{}")
    part: str = ""
    clip: str | None = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: Id
    category_id: int
    bbox: tuple[Pixels, Pixels, Pixels, Pixels]
    id: int | None = None


class _Category(msgspec.Struct):
    id: int
    name: str


class _File(msgspec.Struct):
    images: msgspec.Raw
    annotations: msgspec.Raw = msgspec.Raw(b"[]")
    categories: list[_Category] = []


@dataclass(frozen=True, eq=False)
class Annotations:
    """One COCO file as columns, in the file's order, nothing dropped.

    Attributes:
        image_ids: (images,) int64.
        file_names: path of each frame below the data folder, ``frames/20200514/clip_22_2307/image_0015.jpg``.
        widths, heights: (images,) int32, pixels.
        dates: ``date_captured`` as text, empty where the file has none.
        metas: the weather dictionary of each image as JSON text.
        parts: the part of each image in data other than LTDv2; empty texts there.
        clips: the clip of each image: what data other than LTDv2 says, else the folder of its frame below
            ``frames/``.
        annotation_ids: (boxes,) int64, -1 where the file gives none.
        box_image_ids: (boxes,) int64, the image that each box belongs to.
        boxes: (boxes, 4) float64, COCO's x, y, width, height in pixels, exactly as written.
        labels: (boxes,) int64, the category ids as written.
    """

    path: Path
    image_ids: npt.NDArray[np.int64]
    file_names: list[str]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    dates: list[str]
    metas: list[str]
    parts: list[str]
    clips: list[str]
    annotation_ids: npt.NDArray[np.int64]
    box_image_ids: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]


def read_annotations(path: Path, classes: Mapping[int, str] = LABELS) -> Annotations:
    """Read a COCO annotation file.

    Args:
        path: the file.
        classes: label -> name, as they have to be.

    Raises:
        ToolkitError: the file is missing, cut off, no JSON, no COCO file, names other categories than
            ``classes``, or has an id that is not an integer.
    """
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise _not_readable(path, "an empty file")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ToolkitError(
            f"cannot read {path}",
            found=error.strerror or str(error),
            expected="an annotation file of LTDv2 (COCO format)",
            fix="download it: toolkit dataset download DIR",
        ) from error
    top = _decode(path, msgspec.json.Decoder(_File), content, "")
    _check_categories(path, top.categories, classes)

    pieces = [_box_columns([])]
    pieces += [_box_columns(piece) for piece in _Pieces(path, top.annotations, _Annotation, "annotations")]
    annotation_ids, box_image_ids, labels, boxes = map(np.concatenate, zip(*pieces, strict=True))
    return Annotations(
        path=path,
        **_image_columns(path, top.images),
        annotation_ids=annotation_ids,
        box_image_ids=box_image_ids,
        boxes=boxes,
        labels=labels,
    )


def _image_columns(path: Path, array: msgspec.Raw) -> dict[str, Any]:
    """The columns of :class:`Annotations` with a row an image."""
    image_ids: list[int] = []
    widths: list[int] = []
    heights: list[int] = []
    names: list[str] = []
    dates: list[str] = []
    metas: list[str] = []
    parts: list[str] = []
    clips: list[str] = []
    for images in _Pieces(path, array, _Image, "images"):
        for image in images:
            image_ids.append(image.id)
            names.append(image.file_name)
            widths.append(image.width)
            heights.append(image.height)
            dates.append("" if image.date_captured is None else str(image.date_captured))
            metas.append(_text(path, image.meta))
            parts.append(image.part)
            clips.append(_folder_of(image.file_name) if image.clip is None else image.clip)
    return {
        "image_ids": np.array(image_ids, np.int64),
        "file_names": names,
        "widths": np.array(widths, np.int32),
        "heights": np.array(heights, np.int32),
        "dates": dates,
        "metas": metas,
        "parts": parts,
        "clips": clips,
    }


def _folder_of(file_name: str) -> str:
    """The folder of a frame of LTDv2 below ``frames/``."""
    return file_name.removeprefix("frames/").rpartition("/")[0]


def _text(path: Path, json: msgspec.Raw) -> str:
    try:
        return bytes(json).decode()
    except UnicodeDecodeError as error:
        raise _refusal(path, error, "images") from error


def _box_columns(piece: list[_Annotation]) -> tuple[npt.NDArray[Any], ...]:
    n = len(piece)
    return (
        np.fromiter((-1 if a.id is None else a.id for a in piece), np.int64, n),
        np.fromiter((a.image_id for a in piece), np.int64, n),
        np.fromiter((a.category_id for a in piece), np.int64, n),
        np.fromiter((v for a in piece for v in a.bbox), np.float64, 4 * n).reshape(n, 4),
    )


class _Pieces(Generic[S]):
    """Decode a long JSON array in pieces of about :data:`PIECE_BYTES`, without a scanner of our own.

    A piece is cut after a ``}`` that a comma and a ``{`` follow. Such a place may lie inside a string or a
    nested array; the piece is then no complete JSON array, decoding it fails, and the next place is tried:
    a cut that decodes is always a true one.
    """

    def __init__(self, path: Path, array: msgspec.Raw, item: type[S], name: str) -> None:
        self.path, self.name = path, name
        self.array = memoryview(array)
        self.decoder: msgspec.json.Decoder[list[S]] = msgspec.json.Decoder(list[item])  # type: ignore[valid-type]

    def __iter__(self) -> Iterator[list[S]]:
        body = self.array[1:-1]
        if bytes(self.array[:1]) != b"[":
            _decode(self.path, self.decoder, self.array, self.name)
        start, end, seen = 0, PIECE_BYTES, 0
        while start < len(body):
            cut = _next_cut(body, end)
            piece = b"[%b]" % bytes(body[start:cut])
            try:
                items = self.decoder.decode(piece)
            except NO_JSON as error:
                if cut < len(body) and not isinstance(error, msgspec.ValidationError | UnicodeDecodeError):
                    end = cut + 1
                    continue
                where = f"{self.name} from {seen:,} on" if seen else self.name
                raise _refusal(self.path, error, where) from error
            yield items
            seen += len(items)
            start, end = cut + 1, cut + PIECE_BYTES


def _next_cut(body: memoryview, start: int) -> int:
    """Index of the first comma at or after ``start`` that stands between ``}`` and ``{``, or the end."""
    window = 1 << 16
    while start < len(body):
        text = bytes(body[start : start + window])
        at = text.find(b"}")
        while at >= 0:
            after = text[at + 1 : at + 65].lstrip()
            if after[:1] == b"," and after[1:].lstrip()[:1] == b"{":
                return start + text.index(b",", at)
            at = text.find(b"}", at + 1)
        # The overlap keeps a boundary that straddles two windows.
        start += window - 128 if start + window < len(body) else window
    return len(body)


def _decode(path: Path, decoder: msgspec.json.Decoder[Any], content: Any, where: str) -> Any:
    try:
        return decoder.decode(content)
    except NO_JSON as error:
        raise _refusal(path, error, where) from error


def _refusal(path: Path, error: Exception, where: str) -> ToolkitError:
    if isinstance(error, UnicodeDecodeError):
        found = f"the byte 0x{error.object[error.start]:02x} in {where or 'the file'}, which is no UTF-8"
        return _not_readable(path, found)
    text = str(error)
    if isinstance(error, msgspec.ValidationError):
        place = text.rpartition(" - at ")[2].strip("`") if " - at " in text else ""
        key, kind = place.rpartition(".")[2], "a decimal number" if "`float`" in text else "text"
        no_integer = "`float`" in text or "`str`" in text
        if key == "category_id" and no_integer:
            return ToolkitError(
                f"{path} has a category that is not an integer ({where}, {place})",
                found=kind,
                expected=", ".join(f"{i} {name}" for i, name in LABELS.items()),
            )
        if key in ("id", "image_id") and where and no_integer:
            return ToolkitError(
                f"{path} has an id that is not an integer ({where}, {place})",
                found=kind,
                expected="integers of 17 digits: they exceed 2**53, so a program that kept them as decimal "
                "numbers has already changed them",
                fix="use the original file; toolkit dataset download DIR fetches it",
            )
        return ToolkitError(f"{path} is no COCO annotation file", found=f"{text} ({where or 'top level'})")
    if "truncated" in text:
        return _not_readable(path, "the end of the file in the middle of the JSON text")
    return _not_readable(path, text)


def _not_readable(path: Path, found: str) -> ToolkitError:
    return ToolkitError(
        f"{path} is cut off or damaged",
        found=found,
        expected="a complete JSON object with images and annotations",
        fix="download it again: toolkit dataset download DIR",
    )


def _check_categories(path: Path, categories: list[_Category], classes: Mapping[int, str]) -> None:
    found = {c.id: c.name for c in categories}
    wrong = {i: name for i, name in found.items() if i in classes and name.lower() != classes[i].lower()}
    if wrong:
        raise ToolkitError(
            f"{path} names the categories differently",
            found=", ".join(f"{i} {name}" for i, name in wrong.items()),
            expected=", ".join(f"{i} {name}" for i, name in classes.items()),
        )
