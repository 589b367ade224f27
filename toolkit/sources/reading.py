"""Frames of a source: a picture, a folder, a glob, a zip archive, a video, a camera or a stream."""

from __future__ import annotations

import glob
import re
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from toolkit.dataset.archive import ZipFrames, read_directory
from toolkit.dataset.frames import FrameError, decode_grey
from toolkit.errors import ToolkitError, reason

Pixels = npt.NDArray[Any]
"""(height, width) grey or (height, width, 3) blue, green, red; uint8, or wider: uint16 or float32."""

PICTURES = frozenset(
    (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
VIDEOS = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv"))

DESCRIPTIONS = frozenset((".json", ".yaml", ".yml"))
"""Files that say where pictures are."""

STREAM = re.compile(r"(rtsp|rtmp|https?|tcp|udp)://")


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a source.

    Attributes:
        name: below the source, with the picture's suffix; of a video and a camera its number behind the name.
        pixels: see :data:`Pixels`; None where it cannot be read.
        fault: why it cannot be read, a sentence; else empty.
    """

    name: str
    pixels: Pixels | None
    fault: str = ""


class Source(ABC):
    """Frames in order. ``title`` names it in a path, ``rate`` is a video's frames a second, else 0."""

    title: str
    rate: float = 0.0
    endless: bool = False

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...

    def count(self) -> int | None:
        """Frames that there are; None where only the end will tell."""
        return None

    def sample(self, most: int) -> Iterator[Frame]:
        """Up to ``most`` frames spread over the source; none of a source that can be read only once, whose
        frames have 8 bits."""
        return iter(())


class Pictures(Source):
    """Picture files.

    Args:
        root: what the names are relative to.
        paths: the files.
        colour: keep the colours of those that have some.
    """

    def __init__(self, title: str, root: Path, paths: Sequence[Path], colour: bool) -> None:
        self.title, self.root, self.paths, self.colour = title, root, paths, colour

    def count(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Frame]:
        return map(self._frame, self.paths)

    def sample(self, most: int) -> Iterator[Frame]:
        return map(self._frame, _spread(self.paths, most))

    def _frame(self, path: Path) -> Frame:
        name = path.relative_to(self.root).as_posix()
        try:
            return Frame(name, decode(name, path.read_bytes(), colour=self.colour))
        except OSError as error:
            return Frame(name, None, f"{name} cannot be read: {reason(error)}")
        except FrameError as error:
            return Frame(name, None, error.line())


class Archive(Source):
    """Pictures inside a zip archive, read where they lie.

    Args:
        path: the archive.
        inside: a folder or a glob of members; all of them if empty.
        colour: keep the colours of those that have some.
    """

    def __init__(self, path: Path, inside: str, colour: bool) -> None:
        members = read_directory(path)
        names = [bytes(name).decode(errors="replace") for name in members.names]
        wanted = [row for row, name in enumerate(names) if _is_picture(name) and _is_inside(name, inside)]
        if not wanted:
            raise ToolkitError(
                f"no pictures {f'{inside} ' if inside else ''}in {path}",
                found=", ".join(names[:3]) or "an empty archive",
                expected="pictures such as " + " ".join(sorted(PICTURES)),
            )
        self.frames, self.colour = ZipFrames(path, members), colour
        self.rows = sorted(wanted, key=lambda row: _natural(names[row]))
        self.title = Path(inside).name if inside and not glob.has_magic(inside) else path.stem

    def count(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Frame]:
        return map(self._frame, self.rows)

    def sample(self, most: int) -> Iterator[Frame]:
        return map(self._frame, _spread(self.rows, most))

    def _frame(self, row: int) -> Frame:
        name = self.frames.name(row)
        try:
            return Frame(name, decode(name, self.frames.read(row), colour=self.colour))
        except FrameError as error:
            return Frame(name, None, error.line())


class Video(Source):
    """A video, a stream or a camera, as OpenCV opens it: 8 bits a channel.

    Args:
        what: a file, an address, or a camera's number.
        colour: keep the colours.
        limit: frames to stop after; all by default.
    """

    def __init__(self, what: str | int, colour: bool, limit: int | None = None) -> None:
        self.what, self.colour, self.limit = what, colour, limit
        self.endless = isinstance(what, int) or bool(STREAM.match(what))
        self.title = f"camera-{what}" if isinstance(what, int) else re.sub(r"\W+", "-", Path(what).stem)
        self.capture = cv2.VideoCapture(what)
        if not self.capture.isOpened():
            self.capture.release()
            raise ToolkitError(
                f"cannot open {'camera ' * isinstance(what, int)}{what}",
                found="no frames, says OpenCV",
                expected="a camera that this user may read" if isinstance(what, int) else "a video or stream",
            )
        self.rate = float(self.capture.get(cv2.CAP_PROP_FPS)) or 25.0

    def count(self) -> int | None:
        known = None if self.endless else int(self.capture.get(cv2.CAP_PROP_FRAME_COUNT))
        counts = [each for each in (known, self.limit) if each is not None and each > 0]
        return min(counts, default=None)

    def __iter__(self) -> Iterator[Frame]:
        number = 0
        try:
            while self.limit is None or number < self.limit:
                there, pixels = self.capture.read()
                if not there:
                    break
                number += 1
                yield Frame(f"{self.title}_{number:06d}", pixels if self.colour else _grey(pixels))
        finally:
            self.capture.release()


def open_source(text: str, *, colour: bool = False, limit: int | None = None) -> Source:
    """The frames that a word of the command line names.

    Args:
        text: a picture, a folder (not those below it), a glob, a video, ``frames.zip`` or a folder or glob in
            it (``frames.zip/frames/20200514``), a camera's number, or the address of a stream.
        colour: keep the colours of pictures that have some; else everything is grey.
        limit: frames of a video or camera to stop after.

    Raises:
        ToolkitError: there is nothing of the kind, or nothing in it.
    """
    path = Path(text)
    if STREAM.match(text):
        return Video(text, colour, limit)
    if text.isdecimal() and not path.exists():
        return Video(int(text), colour, limit)
    archive = _archive_in(path)
    if archive is not None:
        return Archive(archive, path.relative_to(archive).as_posix() if path != archive else "", colour)
    if path.is_file():
        if path.suffix.lower() in VIDEOS:
            return Video(text, colour, limit)
        if path.suffix.lower() in DESCRIPTIONS:
            raise ToolkitError(
                f"{text} describes a dataset, and is no picture",
                expected="a picture, folder, glob, video, frames.zip, a camera's number or a stream",
                fix=f"prepare it: toolkit dataset prepare {text}; then: toolkit predict best.pt --split val",
            )
        return Pictures(path.stem, path.parent, [path], colour)
    if path.is_dir():
        found = [each for each in path.iterdir() if _is_picture(each.name) and each.is_file()]
        return Pictures(path.resolve().name, path, _some(found, f"no pictures in {path}", path), colour)
    if glob.has_magic(text):
        magic = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
        root, pattern = Path(*path.parts[:magic]), "/".join(path.parts[magic:])
        matches = [each for each in root.glob(pattern) if each.is_file() and _is_picture(each.name)]
        pictures = _some(matches, f"no pictures {text}", None)
        return Pictures(root.resolve().name, root, pictures, colour)
    raise ToolkitError(
        f"no source {text}",
        expected="a picture, folder, glob, video, frames.zip, a camera's number or the address of a stream",
    )


def decode(name: str, data: bytes, *, colour: bool = False) -> Pixels:
    """The pixels of a picture file; see :data:`Pixels`. A JPEG in grey is decoded as a dataset's frame is.

    Raises:
        FrameError: the bytes are no picture, or only a part of one.
    """
    jpeg = data[:2] == b"\xff\xd8"
    if jpeg and not colour:
        return decode_grey(name, data)
    kind = cv2.IMREAD_COLOR if jpeg else cv2.IMREAD_UNCHANGED
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), kind) if data else None
    except cv2.error:
        pixels = None
    if pixels is None:
        raise FrameError(name, "does not decode", f"{len(data):,} bytes that are no picture")
    if pixels.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise FrameError(name, "has pixels of another type", str(pixels.dtype), "8 or 16 bits, or floats")
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if pixels.shape[2] < 3 else np.ascontiguousarray(pixels[..., :3])
    return pixels if colour and pixels.dtype == np.uint8 else _grey(pixels)


def ahead(frames: Iterable[Frame], depth: int) -> Generator[Frame, None, None]:
    """The same frames, of which a thread reads up to ``depth`` before they are asked for."""
    reading = iter(frames)
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, reading, None) for _ in range(depth))
        while (frame := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, reading, None))
            yield frame


def _grey(pixels: Pixels) -> Pixels:
    if pixels.ndim == 2:
        return pixels
    if pixels.dtype == np.float64:
        pixels = pixels.astype(np.float32)
    grey: Pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    return grey


def _archive_in(path: Path) -> Path | None:
    """The zip archive that a path is, or leads into."""
    return next(
        (each for each in (path, *path.parents) if each.suffix.lower() == ".zip" and each.is_file()), None
    )


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in PICTURES and not Path(name).name.startswith(".")


def _is_inside(name: str, inside: str) -> bool:
    """Whether a member lies in a folder, is it, or fits a glob, which may leave the first folders out."""
    inside = inside.strip("/")
    ends = [name, *(name[match.end() :] for match in re.finditer("/", name))]
    return not inside or any(
        end == inside or end.startswith(f"{inside}/") or fnmatchcase(end, inside) for end in ends
    )


def _some(paths: list[Path], what: str, folder: Path | None) -> list[Path]:
    if not paths:
        there = sorted(folder.iterdir()) if folder else []
        fix = "name a video itself" if any(each.suffix.lower() in VIDEOS for each in there) else ""
        if any(each.is_dir() for each in there):
            fix = f"name those below: '{folder}/**/*.jpg'"
        raise ToolkitError(
            what,
            found=", ".join(each.name for each in there[:3]) or "nothing",
            expected="files such as " + " ".join(sorted(PICTURES)),
            fix=fix,
        )
    return sorted(paths, key=lambda path: _natural(path.as_posix()))


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sorts numbers in names by their value: frame_9 before frame_10."""
    parts = re.split(r"(\d+)", text)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def _spread(items: Sequence[Any], most: int) -> Sequence[Any]:
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in places.tolist()]
