"""Check frames against the index: every bad one is named, none stops the check."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import msgspec

from toolkit import console
from toolkit.dataset.archive import LET_READ, ZipFrames
from toolkit.dataset.download import is_the_hubs
from toolkit.dataset.frames import FrameError, Frames, decode_listening
from toolkit.dataset.index import DatasetIndex
from toolkit.errors import ToolkitError
from toolkit.ltdv2 import ANNOTATIONS

THREADS = 4
"""Reading and decoding release the interpreter lock; more threads than this do not help a single disk."""


class BadFrame(msgspec.Struct, frozen=True):
    """A frame that cannot be used: which split lists it, its path, and why."""

    split: str
    frame: str
    reason: str


class Verification(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was looked at, all that was bad, and the frames that decode with a warning of the decoder."""

    frames: int
    deep: bool
    bad: list[BadFrame]
    warned: list[BadFrame] = []


def verify(index: DatasetIndex, *, deep: bool = False) -> Verification:
    """Check every frame of the index.

    Args:
        index: the opened index.
        deep: read all frames, compare their CRC-32 and decode them; otherwise only look whether each is where
            the index says (a folder: whether the file exists; an archive: whether a member begins there).

    Returns:
        The number of frames checked and the bad ones.
    """
    bad: list[BadFrame] = []
    warned: list[BadFrame] = []
    total = 0
    for name in ANNOTATIONS:
        if not index.manifest.images.get(name):
            continue
        split = index.split(name)
        frames, sizes = split.frames(), list(zip(split.heights.tolist(), split.widths.tolist(), strict=True))

        def check(row: int, frames: Frames = frames, sizes: list[tuple[int, int]] = sizes) -> tuple[str, str]:
            try:
                return "", _check(frames, row, sizes[row], deep)
            except FrameError as error:
                return error.line(), ""

        total += len(split)
        with ThreadPoolExecutor(THREADS) as pool:
            results = _map(pool, check, len(split))
            tracked = console.track(results, f"checking {name}", total=len(split))
            for row, (reason, warning) in enumerate(tracked):
                if reason:
                    bad.append(BadFrame(name, frames.name(row), reason))
                elif warning:
                    said = f"frame {frames.name(row)} decodes with a warning: {warning}"
                    warned.append(BadFrame(name, frames.name(row), said))
    return Verification(total, deep, bad, warned)


def _map(pool: ThreadPoolExecutor, check: object, count: int) -> Iterator[tuple[str, str]]:
    """``pool.map`` that keeps a thousand tasks in hand instead of a million."""
    rows = iter(range(count))
    while chunk := list(islice(rows, 1_000)):
        yield from pool.map(check, chunk)  # type: ignore[arg-type]


def _check(frames: Frames, row: int, size: tuple[int, int], deep: bool) -> str:
    """What the decoder warns of. Raises FrameError."""
    if not deep:
        frames.probe(row)
        return ""
    data = frames.read_checked(row) if isinstance(frames, ZipFrames) else frames.read(row)
    pixels, warning = decode_listening(frames.name(row), data)
    height, width = pixels.shape
    if (height, width) != size:
        raise FrameError(
            frames.name(row), "has another size", f"{width} x {height}", f"{size[1]} x {size[0]} pixels"
        )
    return warning


def require_sound(result: Verification, index: DatasetIndex) -> None:
    """Raise ToolkitError when a frame is bad, with what helps in this case."""
    if result.bad:
        raise ToolkitError(
            f"{len(result.bad):,} of {result.frames:,} frames cannot be used",
            fix=f"training skips and counts them; {_remedy(index)}",
        )


def _remedy(index: DatasetIndex) -> str:
    archive = index.data / index.manifest.frames
    if archive.is_dir():
        return f"unpack or copy these files into {archive} again, then: toolkit dataset prepare {index.data}"
    if not archive.is_file():
        return f"{archive} is gone: put it back"
    if not os.access(archive, os.R_OK):
        return LET_READ.format(archive)
    if is_the_hubs(archive):
        return f"{archive} is the hub's own, so another download brings the same"
    return f"`toolkit dataset download {index.data}` compares {archive.name} with the hub's hash"
