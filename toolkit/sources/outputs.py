"""What was found in a source, in the field's formats: JSON, COCO results, YOLO text, pictures, a video."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from submission import Detections
from submission.detections import to_offsets
from toolkit.errors import ToolkitError, reason
from toolkit.files import replacing
from toolkit.sources.drawing import draw
from toolkit.sources.reading import Pixels

FORMATS = ("json", "coco", "yolo")


@dataclass(eq=False)
class Found:
    """What was found in the frames of a source so far.

    Attributes:
        classes: name of each label; labels begin at 1.
        names: of the frames, in order. sizes: their height and width, pixels; zeros where unreadable.
        faults: why a frame could not be read, by its name.
        rows: of each frame (n, 6) float64: x1, y1, x2, y2 in its pixels, score, label.
    """

    classes: Mapping[int, str]
    names: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    rows: list[npt.NDArray[np.float64]] = field(default_factory=list)

    def add(self, name: str, size: tuple[int, int], rows: npt.NDArray[np.float64], fault: str = "") -> None:
        """Append a frame."""
        self.names.append(name)
        self.sizes.append(size)
        self.rows.append(rows)
        if fault:
            self.faults[name] = fault

    def image_ids(self) -> npt.NDArray[np.int64]:
        """(frames,) int64: the numbers that the frames' stems are, where all are different numbers of at most
        18 digits; else 1, 2, 3, ..."""
        stems = [Path(name).stem for name in self.names]
        if all(re.fullmatch(r"0|[1-9][0-9]{0,17}", stem) for stem in stems) and len(set(stems)) == len(stems):
            return np.array([int(stem) for stem in stems], np.int64)
        return np.arange(1, len(stems) + 1)

    def detections(self) -> Detections:
        """As columns, under :meth:`image_ids`."""
        rows = np.concatenate([np.empty((0, 6)), *self.rows])
        counts = np.array([len(each) for each in self.rows], np.int64)
        return Detections(
            self.image_ids(), to_offsets(counts), rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)
        )

    def rounded(self) -> Found:
        """The same with boxes and scores rounded as in a submission."""
        d = self.detections().rounded()
        rows = np.column_stack([d.boxes, d.scores, d.labels])
        return replace(self, rows=np.split(rows, d.offsets[1:-1]) if self.rows else [])

    def by_class(self) -> dict[str, int]:
        """Boxes of each class that was found."""
        labels = np.concatenate([np.empty(0), *(rows[:, 5] for rows in self.rows)]).astype(np.int64)
        return {self.classes[label]: n for label, n in sorted(Counter(labels.tolist()).items())}


def write_json(found: Found, path: Path, about: Mapping[str, Any]) -> None:
    """``predictions.json``: what ``about`` says (weights, source, range, ...), and a line a frame."""
    encoder = msgspec.json.Encoder()
    lines = []
    for name, (height, width), rows in zip(found.names, found.sizes, found.rows, strict=True):
        frame: dict[str, Any] = {"name": name, "width": width, "height": height}
        if name in found.faults:
            frame["unreadable"] = found.faults[name]
        frame |= {"boxes": rows[:, :4].tolist(), "scores": rows[:, 4].tolist()}
        frame["labels"] = rows[:, 5].astype(int).tolist()
        lines.append(encoder.encode(frame))
    head = encoder.encode({**about, "classes": {str(k): v for k, v in found.classes.items()}})
    with replacing(path) as temporary:
        temporary.write_bytes(head[:-1] + b',"frames":[\n' + b",\n".join(lines) + b"\n]}\n")


def write_coco(found: Found, folder: Path) -> None:
    """``coco-results.json``, what ``COCO.loadRes`` of pycocotools takes, and ``coco-images.json``, the images
    and categories that its numbers mean."""
    ids, encoder = found.image_ids().tolist(), msgspec.json.Encoder()
    results = [
        {
            "image_id": image,
            "category_id": int(row[5]),
            "bbox": [row[0], row[1], round(row[2] - row[0], 3), round(row[3] - row[1], 3)],
            "score": row[4],
        }
        for image, rows in zip(ids, found.rows, strict=True)
        for row in rows.tolist()
    ]
    images = [
        {"id": image, "file_name": name, "width": width, "height": height}
        for image, name, (height, width) in zip(ids, found.names, found.sizes, strict=True)
    ]
    categories = [{"id": label, "name": name} for label, name in found.classes.items()]
    dataset = {"images": images, "annotations": [], "categories": categories}
    for name, value in (("coco-results.json", results), ("coco-images.json", dataset)):
        with replacing(folder / name) as temporary:
            temporary.write_bytes(encoder.encode(value) + b"\n")


def write_yolo(found: Found, folder: Path) -> None:
    """``labels/<frame>.txt``: class from 0, centre, width and height as parts of the frame, and score; as
    Ultralytics' ``save_txt save_conf``. A frame in which nothing was found has an empty file."""
    for name, (height, width), rows in zip(
        _unique(found.names, ".txt"), found.sizes, found.rows, strict=True
    ):
        path = folder / "labels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        low, high = rows[:, :2], rows[:, 2:4]
        size = np.array([max(width, 1), max(height, 1)])
        middle, extent = (low + high) / 2 / size, (high - low) / size
        table = np.column_stack([rows[:, 5] - 1, middle, extent, rows[:, 4]])
        path.write_text("".join("{:.0f} {:.6f} {:.6f} {:.6f} {:.6f} {:.5f}\n".format(*row) for row in table))


class Pictures:
    """Drawn pictures, one a frame, below ``pictures/``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.taken = folder / "pictures", set[str]()

    def __call__(self, name: str, pixels: Pixels) -> None:
        """Write one. Raises ToolkitError if the disk is full."""
        path = self.folder / _free(name, ".jpg", self.taken)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
        except OSError as error:
            raise ToolkitError(f"cannot write {path}", found=reason(error)) from error

    def close(self) -> None:
        """Nothing is left to be done."""


class Video:
    """A drawn video, ``<title>.mp4``.

    Args:
        path: the file.
        rate: frames a second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self.writer: Any = None

    def __call__(self, name: str, pixels: Pixels) -> None:
        """Append a frame; one of another size than the first is made to fit.

        Raises:
            ToolkitError: this OpenCV writes no MPEG-4.
        """
        if self.writer is None:
            size = (pixels.shape[1] // 2 * 2, pixels.shape[0] // 2 * 2)
            self.size = size
            self.writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self.rate, size)
            if not self.writer.isOpened():
                raise ToolkitError(f"cannot write {self.path}", found="an OpenCV without MPEG-4")
        width, height = self.size
        times = min(width / pixels.shape[1], height / pixels.shape[0])
        if times < 1 or pixels.shape[1] < width or pixels.shape[0] < height:
            pixels = cv2.resize(pixels, None, fx=min(times, 1), fy=min(times, 1))
        page = np.zeros((height, width, 3), np.uint8)
        part = pixels[:height, :width]
        page[: part.shape[0], : part.shape[1]] = part
        self.writer.write(page)

    def close(self) -> None:
        """Finish the file."""
        if self.writer is not None:
            self.writer.release()


def drawn(found: Found, pixels: Pixels) -> Pixels:
    """The last frame of ``found`` with its boxes."""
    rows = found.rows[-1]
    return draw(pixels, rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64), found.classes)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill beside ``path``, which becomes it at the end; on an error nothing is left.

    Raises:
        ToolkitError: ``path`` exists and is not empty, or its place cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ToolkitError(
            f"{path} exists", expected="a new or an empty folder", fix="name another with --out"
        )
    try:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ToolkitError(f"cannot write {path}", found=reason(error)) from error
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def next_folder(parent: Path, stem: str) -> Path:
    """``<parent>/<stem>-1``, or the first such name with a higher number that is free."""
    number = 1
    while (parent / f"{stem}-{number}").exists():
        number += 1
    return parent / f"{stem}-{number}"


def _unique(names: list[str], suffix: str) -> list[str]:
    taken: set[str] = set()
    return [_free(name, suffix, taken) for name in names]


def _free(name: str, suffix: str, taken: set[str]) -> str:
    """The frame's name with another suffix; behind its own where another frame has taken that."""
    plain = str(Path(name).with_suffix(suffix)) if Path(name).suffix else name + suffix
    chosen = name + suffix if plain in taken else plain
    taken.add(chosen)
    return chosen
