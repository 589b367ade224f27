"""Check frames against the index: every bad one is named, none stops the check."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import msgspec

from toolkit import console
from toolkit.dataset.frames import FrameError, Frames, ZipFrames, decode_grey
from toolkit.dataset.index import FILES, DatasetIndex
from toolkit.errors import ToolkitError

THREADS = 4
"""Reading and decoding release the interpreter lock; more threads than this do not help a single disk."""


class BadFrame(msgspec.Struct, frozen=True):
    """A frame that cannot be used: which split lists it, its path, and why."""

    split: str
    frame: str
    reason: str


class Verification(msgspec.Struct, frozen=True):
    """What was looked at, and all that was bad."""

    frames: int
    deep: bool
    bad: list[BadFrame]


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
    total = 0
    for name in FILES:
        if not index.manifest.images.get(name):
            continue
        split = index.split(name)
        frames, sizes = split.frames(), list(zip(split.heights.tolist(), split.widths.tolist(), strict=True))

        def check(row: int, frames: Frames = frames, sizes: list[tuple[int, int]] = sizes) -> str:
            try:
                _check(frames, row, sizes[row], deep)
            except FrameError as error:
                return error.line()
            return ""

        total += len(split)
        with ThreadPoolExecutor(THREADS) as pool:
            results = _map(pool, check, len(split))
            for row, reason in enumerate(console.track(results, f"checking {name}", total=len(split))):
                if reason:
                    bad.append(BadFrame(name, frames.name(row), reason))
    return Verification(total, deep, bad)


def _map(pool: ThreadPoolExecutor, check: object, count: int) -> Iterator[str]:
    """``pool.map`` that keeps a thousand tasks in hand instead of a million."""
    rows = iter(range(count))
    while chunk := list(islice(rows, 1_000)):
        yield from pool.map(check, chunk)  # type: ignore[arg-type]


def _check(frames: Frames, row: int, size: tuple[int, int], deep: bool) -> None:
    if not deep:
        frames.probe(row)
        return
    data = frames.read_checked(row) if isinstance(frames, ZipFrames) else frames.read(row)
    height, width = decode_grey(frames.name(row), data).shape
    if (height, width) != size:
        raise FrameError(
            frames.name(row), "has another size", f"{width} x {height}", f"{size[1]} x {size[0]} pixels"
        )


def require_sound(result: Verification) -> None:
    """Raise ToolkitError when a frame is bad."""
    if result.bad:
        raise ToolkitError(
            f"{len(result.bad):,} of {result.frames:,} frames cannot be used",
            fix="training skips and counts them; a new download replaces them: toolkit dataset download DIR",
        )
