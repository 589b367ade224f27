"""Decoded frames of a split in one .npy file, mapped into memory, for machines with the room for it.

A frame is 384 x 288 bytes as pixels and about 45,000 as JPEG, so the cache of LTDv2's training and validation
splits takes 41 GB instead of 17. It saves decoding, and it turns the archive's scattered reads into reads of
one dense file. Rows are those of the split; the file is usable by anything that reads .npy.
"""

from __future__ import annotations

import io
import os
import shutil
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from submission.errors import NO_JSON, remedy
from toolkit import console
from toolkit.dataset.frames import FrameError, Frames, FramesOf
from toolkit.dataset.index import DatasetIndex, Split, frame_cache, writable_folder
from toolkit.dataset.joined import JoinedFrames
from toolkit.errors import ToolkitError
from toolkit.files import replacing, turn
from toolkit.machine.kernel import memory

BLOCK = 512
"""Frames written, hashed and recorded together: 57 MB."""

MEMORY_SHARE = 0.7
"""Part of the available memory that a cache may take and still count as fitting."""

PROBES = 48
"""Frames read at random from each source to compare them."""


class CacheState(msgspec.Struct):
    """What is written of a cache (a .json file beside it).

    Attributes:
        crcs: CRC-32 of each block of :data:`BLOCK` frames; None: still to write.
        bad: rows of frames that could not be decoded; their pixels are 0.
    """

    crcs: list[int | None]
    bad: list[int]

    @property
    def missing(self) -> list[int]:
        """Blocks still to write."""
        return [i for i, crc in enumerate(self.crcs) if crc is None]


class CachePlan(msgspec.Struct, frozen=True):
    """What a cache will take: bytes on the disk in all, bytes still to write, seconds that takes about."""

    size: int
    left: int
    seconds: float


class CachedFrames(FramesOf):
    """Frames from a cache; names, encoded bytes and bad frames come from where it was made of."""

    def __init__(self, source: Frames, pixels: npt.NDArray[np.uint8], bad: Sequence[int]) -> None:
        super().__init__(source)
        self.pixels, self.bad = pixels, frozenset(bad)

    def grey(self, row: int) -> npt.NDArray[np.uint8]:
        if row in self.bad:
            return self.source.grey(row)
        return np.array(self.pixels[row])


def folder(index: DatasetIndex) -> Path:
    """Where new caches go: beside the index, or to the user's cache folder if that cannot be written."""
    beside = index.path.parent
    return beside if os.access(beside, os.W_OK) else writable_folder(index.data)


def _paths(split: Split) -> tuple[Path, Path, Path]:
    """The finished file, the record of what is written, the unfinished file."""
    index = split.index.path
    final, record, partial = frame_cache(index.parent, index.name, split.name)
    if final.exists() and record.exists():
        return final, record, partial
    return frame_cache(folder(split.index), index.name, split.name)


def _state(split: Split) -> CacheState:
    """What the record says; if it is lost or does not fit the files, nothing is written."""
    final, record, partial = _paths(split)
    blocks = -(-len(split) // BLOCK)
    with suppress(OSError, *NO_JSON):
        state = msgspec.json.decode(record.read_bytes(), type=CacheState)
        if len(state.crcs) == blocks and (final.exists() or partial.exists()):
            return state
    return CacheState([None] * blocks, [])


def _write_state(split: Split, state: CacheState) -> None:
    with replacing(_paths(split)[1]) as temporary:
        temporary.write_bytes(msgspec.json.encode(state))


def _pixels(split: Split) -> npt.NDArray[np.uint8] | None:
    """The finished file, mapped; None if there is none, it was cut off, or its record is not complete."""
    final, _, _ = _paths(split)
    try:
        pixels: npt.NDArray[np.uint8] = np.load(final, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return None if len(pixels) != len(split) or _state(split).missing else pixels


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
        if _pixels(split) is None:
            missing = sum(len(_rows(split, block)) for block in _state(split).missing)
            left += missing * height * width
            frames += missing
            rate = 1 / _seconds_per_frame(split.frames(), len(split))
    threads = len(os.sched_getaffinity(0))
    return CachePlan(size, left, frames / (rate * threads))


def _rows(split: Split, block: int) -> range:
    return range(block * BLOCK, min((block + 1) * BLOCK, len(split)))


def build(index: DatasetIndex, splits: Sequence[str]) -> None:
    """Write the caches of these splits, from where an earlier run stopped.

    Raises:
        ToolkitError: the disk has too little space or is written to the full.
    """
    place = folder(index)
    with turn(place):
        _build_all(index, splits, place)


def _build_all(index: DatasetIndex, splits: Sequence[str], place: Path) -> None:
    needed = plan(index, splits)
    try:
        sources = [index.split(name) for name in splits]
        files = [path for split in sources for path in _paths(split)[::2] if path.exists()]
        wanted = needed.size - sum(512 * path.stat().st_blocks for path in files)
        free = shutil.disk_usage(place).free
        if wanted > free:
            raise ToolkitError(
                f"{place} has too little space for the cache",
                found=f"{free / 1e9:.1f} GB free",
                expected=f"{wanted / 1e9:.1f} GB",
            )
        for split in sources:
            if _pixels(split) is None:
                _build(split)
    except OSError as error:
        raise ToolkitError(
            f"cannot write the cache in {place}",
            found=error.strerror or str(error),
            fix=f"{remedy(error)}; the next run continues where this one stopped",
        ) from error


def _build(split: Split) -> None:
    final, _, partial = _paths(split)
    state, shape, frames = _state(split), _shape(split), split.frames()
    header = _header(shape)
    if final.exists():  # and was cut off, or its record is lost
        final.replace(partial)
    partial.touch()
    with (
        partial.open("r+b") as file,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        console.progress(f"caching {split.name}", len(split)) as advance,
    ):
        file.write(header)
        missing = state.missing
        advance(len(split) - sum(len(_rows(split, block)) for block in missing))
        for block in missing:
            rows = _rows(split, block)
            pixels = np.zeros((len(rows), *shape[1:]), np.uint8)
            bad = {row for row in state.bad if row not in rows}
            images = pool.map(lambda row: _grey(frames, row, shape[1:]), rows)
            for place, (row, image) in enumerate(zip(rows, images, strict=True)):
                if image is None:
                    bad.add(row)
                else:
                    pixels[place] = image
            # Written, not mapped: a full disk is an error for a write, and a deadly signal for a mapped page.
            file.seek(len(header) + rows.start * pixels[0].size)
            file.write(pixels.data)
            file.flush()
            os.fsync(file.fileno())
            state.crcs[block], state.bad = zlib.crc32(pixels), sorted(bad)
            _write_state(split, state)
            advance(len(rows))
    partial.replace(final)


def _header(shape: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _grey(frames: Frames, row: int, size: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    try:
        image = frames.grey(row)
    except FrameError as error:
        console.warn(f"{error.line()}; left out of the cache")
        return None
    return image if image.shape == size else None


def check(split: Split) -> list[int]:
    """Blocks of a finished cache whose bytes have changed since they were written.

    A damaged cache is unfinished from then on: training does not use it, and :func:`build` writes these
    blocks again and no others.

    Raises:
        ToolkitError: there is no finished cache, or a damaged one cannot be taken out of use.
    """
    final, _, partial = _paths(split)
    state, shape = _state(split), _shape(split)
    if not final.exists() or state.missing:
        blocks = len(state.crcs)
        raise ToolkitError(
            f"there is no finished cache of {split.name}",
            found=f"{blocks - len(state.missing):,} of {blocks:,} blocks with a checksum",
            fix=f"toolkit dataset cache {split.index.data} --split {split.name}",
        )
    start, frame = len(_header(shape)), shape[1] * shape[2]
    bad = []
    with final.open("rb") as file:
        for block in console.track(range(len(state.crcs)), f"checking {final.name}", unit="blocks"):
            rows = _rows(split, block)
            file.seek(start + rows.start * frame)
            if zlib.crc32(file.read(len(rows) * frame)) != state.crcs[block]:
                bad.append(block)
    if not bad and _pixels(split) is None:
        bad = [0]  # the header; writing any block writes it too
    if bad:
        console.warn(f"{final.name} is damaged: {len(bad):,} of {len(state.crcs):,} blocks have changed")
        for block in bad:
            state.crcs[block] = None
        _write_state(split, state)
        final.replace(partial)
    return bad


def remove(split: Split) -> None:
    """Delete a split's cache, finished or not. Raises ToolkitError if its folder cannot be written."""
    final, *others = _paths(split)
    try:
        for path in (final, *others):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ToolkitError(f"cannot remove {final}", found=error.strerror or str(error)) from error


def open_frames(parts: Sequence[Split], cached: Sequence[bool]) -> Frames:
    """The frames of splits, one split after the other, each from its cache or from where it lies."""
    opened = [
        (open_cache(part) if from_cache else None) or part.frames()
        for part, from_cache in zip(parts, cached, strict=True)
    ]
    return opened[0] if len(opened) == 1 else JoinedFrames(opened)


def open_cache(split: Split) -> CachedFrames | None:
    """The finished cache of a split, or None if there is none."""
    pixels = _pixels(split)
    return None if pixels is None else CachedFrames(split.frames(), pixels, _state(split).bad)


def choose(split: Split) -> tuple[bool, str]:
    """Whether a split's frames should come from its cache; where they come from and why, in words."""
    cached, archive = open_cache(split), split.index.manifest.frames
    if cached is None:
        begun = any(path.exists() for path in _paths(split))
        return False, f"decoded from {archive}: {'its cache is unfinished' if begun else 'there is no cache'}"
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
