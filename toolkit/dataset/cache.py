"""Decoded frames of a split in one .npy file, mapped into memory, for machines with the room for it.

A frame is 384 x 288 bytes as pixels and about 45,000 as JPEG, so the cache of LTDv2's training and validation
splits takes 41 GB instead of 17. It saves decoding, and it turns the archive's scattered reads into reads of
one dense file. Rows are those of the split; the file is usable by anything that reads .npy.
"""

from __future__ import annotations

import os
import shutil
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from toolkit import console
from toolkit.dataset.frames import FrameError, Frames
from toolkit.dataset.index import DatasetIndex, Split
from toolkit.errors import ToolkitError
from toolkit.files import replacing
from toolkit.machine import memory

BLOCK = 512
"""Frames written, hashed and recorded together: 57 MB."""

MEMORY_SHARE = 0.7
"""Part of the available memory that a cache may take and still count as fitting."""

PROBES = 48
"""Frames read at random from each source to compare them."""


class CacheState(msgspec.Struct):
    """What is written of a cache (a .json file beside it).

    Attributes:
        crcs: CRC-32 of each finished block of :data:`BLOCK` frames.
        bad: rows of frames that could not be decoded; their pixels are 0.
    """

    crcs: list[int]
    bad: list[int]


class CachePlan(msgspec.Struct, frozen=True):
    """What a cache will take: bytes on the disk in all, bytes still to write, seconds that takes about."""

    size: int
    left: int
    seconds: float


class CachedFrames:
    """Frames from a cache; names, encoded bytes and bad frames come from where it was made of."""

    def __init__(self, source: Frames, pixels: npt.NDArray[np.uint8], bad: Sequence[int]) -> None:
        self.source, self.pixels, self.bad = source, pixels, frozenset(bad)

    def __len__(self) -> int:
        return len(self.source)

    def name(self, row: int) -> str:
        return self.source.name(row)

    def read(self, row: int) -> bytes:
        return self.source.read(row)

    def probe(self, row: int) -> None:
        self.source.probe(row)

    def grey(self, row: int) -> npt.NDArray[np.uint8]:
        if row in self.bad:
            return self.source.grey(row)
        return np.array(self.pixels[row])


def _paths(split: Split) -> tuple[Path, Path]:
    stem = split.index.path.with_suffix("")
    return Path(f"{stem}-{split.name}-grey.npy"), Path(f"{stem}-{split.name}-grey.json")


def _partial(split: Split) -> Path:
    return Path(f"{_paths(split)[0]}.part")


def _state(split: Split) -> CacheState:
    try:
        return msgspec.json.decode(_paths(split)[1].read_bytes(), type=CacheState)
    except (OSError, msgspec.DecodeError):
        return CacheState([], [])


def _shape(split: Split) -> tuple[int, int, int]:
    images = split.training.images
    sizes = np.unique(images[["height", "width"]])
    if len(sizes) != 1:
        raise ToolkitError(
            f"the frames of {split.name} have {len(sizes)} sizes", expected="one size, as in LTDv2"
        )
    return len(split), int(sizes["height"][0]), int(sizes["width"][0])


def plan(index: DatasetIndex, splits: Sequence[str]) -> CachePlan:
    """Size and time of a cache, from the number of frames and a few of them decoded."""
    size = left = frames = 0
    rate = 1.0
    for name in splits:
        split = index.split(name)
        count, height, width = _shape(split)
        size += count * height * width
        if not _paths(split)[0].exists():
            missing = count - min(BLOCK * len(_state(split).crcs), count)
            left += missing * height * width
            frames += missing
            rate = 1 / _seconds_per_frame(split.frames(), len(split))
    threads = len(os.sched_getaffinity(0))
    return CachePlan(size, left, frames / (rate * threads))


def build(index: DatasetIndex, splits: Sequence[str]) -> None:
    """Write the caches of these splits, from where an earlier run stopped.

    Raises:
        ToolkitError: the disk has too little space or is written to the full.
    """
    needed = plan(index, splits)
    free = shutil.disk_usage(index.path.parent).free
    if needed.left > free:
        raise ToolkitError(
            f"{index.path.parent} has too little space for the cache",
            found=f"{free / 1e9:.1f} GB free",
            expected=f"{needed.left / 1e9:.1f} GB",
        )
    for name in splits:
        split = index.split(name)
        if not _paths(split)[0].exists():
            _build(split)


def _build(split: Split) -> None:
    final, record = _paths(split)
    partial, state, frames = _partial(split), _state(split), split.frames()
    shape = _shape(split)
    if not partial.exists():
        state = CacheState([], [])
    try:
        mode = "r+" if state.crcs else "w+"
        options: dict[str, Any] = {} if state.crcs else {"dtype": np.uint8, "shape": shape}
        pixels = np.lib.format.open_memmap(partial, mode=mode, **options)
        with (
            ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
            console.progress(f"caching {split.name}", len(split)) as advance,
        ):
            advance(min(BLOCK * len(state.crcs), len(split)))
            for start in range(BLOCK * len(state.crcs), len(split), BLOCK):
                rows = range(start, min(start + BLOCK, len(split)))
                images = pool.map(lambda row: _grey(frames, row, shape[1:]), rows)
                for row, image in zip(rows, images, strict=True):
                    pixels[row] = 0 if image is None else image
                    if image is None:
                        state.bad.append(row)
                pixels.flush()
                state.crcs.append(zlib.crc32(pixels[rows.start : rows.stop]))
                with replacing(record) as temporary:
                    temporary.write_bytes(msgspec.json.encode(state))
                advance(len(rows))
        del pixels
        partial.replace(final)
    except OSError as error:
        raise ToolkitError(
            f"cannot write {partial}",
            found=error.strerror or str(error),
            fix="free some space; the next run continues where this one stopped",
        ) from error


def _grey(frames: Frames, row: int, size: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    try:
        image = frames.grey(row)
    except FrameError as error:
        console.warn(f"{error.line()}; left out of the cache")
        return None
    return image if image.shape == size else None


def check(split: Split) -> list[int]:
    """Blocks of a finished cache whose bytes have changed since they were written."""
    final, _ = _paths(split)
    pixels, state = np.load(final, mmap_mode="r"), _state(split)
    blocks = console.track(list(enumerate(state.crcs)), f"checking {final.name}", unit="blocks")
    return [i for i, crc in blocks if zlib.crc32(pixels[i * BLOCK : (i + 1) * BLOCK]) != crc]


def remove(split: Split) -> None:
    """Delete a split's cache, finished or not."""
    for path in (*_paths(split), _partial(split)):
        path.unlink(missing_ok=True)


def open_cache(split: Split) -> CachedFrames | None:
    """The finished cache of a split, or None if there is none."""
    final, _ = _paths(split)
    if not final.exists():
        return None
    return CachedFrames(split.frames(), np.load(final, mmap_mode="r"), _state(split).bad)


def choose(split: Split) -> tuple[bool, str]:
    """Whether a split's frames should come from its cache; where they come from and why, in words."""
    cached, archive = open_cache(split), split.index.manifest.frames
    if cached is None:
        return False, f"decoded from {archive}: there is no cache"
    size, (_, free) = cached.pixels.nbytes, memory()
    if size <= MEMORY_SHARE * free:
        fits = f"its {size / 1e9:.1f} GB fit into the {free / 1e9:.1f} GB that are free"
        return True, f"from the cache in memory: {fits}"
    ours, theirs = (1e6 * _seconds_per_frame(frames, len(split)) for frames in (cached, split.frames()))
    if ours < theirs:
        return True, f"from the cache on disk: {ours:.0f} us a frame, {theirs:.0f} us decoded from {archive}"
    return False, f"decoded from {archive}: {theirs:.0f} us a frame, {ours:.0f} us from the cache on disk"


def _seconds_per_frame(frames: Frames, count: int) -> float:
    rows = np.random.default_rng().integers(0, count, PROBES).tolist()
    start = time.perf_counter()
    for row in rows:
        with suppress(FrameError):
            frames.grey(row)
    return (time.perf_counter() - start) / PROBES
