"""Decoded frames in memory that a loader's workers share: where all fit, each is decoded once a training.

A cache (``cache.py``) is for data that only a disk holds, and somebody has to make it.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from contextlib import suppress
from multiprocessing import context, reduction
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.dataset.frames import Frames, FramesOf
from toolkit.machine.kernel import memory

SHARE = 0.25
"""Part of the free memory that frames may take, those of all ranks on the machine together.

Less than a cache may take (``cache.MEMORY_SHARE``), whose pages the kernel drops when memory is short."""

Grey = npt.NDArray[np.uint8]


class Store:
    """Memory for decoded frames of one size, shared with the processes that are started with it.

    Neither a disk nor the size of ``/dev/shm`` bounds it: it belongs to no file system. A page is taken when
    a frame is written to it.

    Args:
        frames: that there are.
        size: height and width of each, pixels.
        handle: of the memory, which another process has made; new memory by default.
    """

    def __init__(self, frames: int, size: tuple[int, int], handle: int | None = None) -> None:
        self.frames, self.size = frames, size
        self._handle = os.memfd_create("frames") if handle is None else handle
        weakref.finalize(self, os.close, self._handle)
        self._bytes = math.prod(size)
        whole = frames * (self._bytes + 1)
        os.ftruncate(self._handle, whole)
        mapped = np.frombuffer(mmap.mmap(self._handle, whole, prot=mmap.PROT_READ), np.uint8)
        self._pixels = mapped[: frames * self._bytes].reshape(frames, *size)
        self._there = mapped[frames * self._bytes :]

    def get(self, row: int) -> Grey | None:
        """(height, width) pixels of a frame, which cannot be written; None: they are not here."""
        return self._pixels[row] if self._there[row] else None

    def put(self, row: int, pixels: Grey) -> None:
        """Keep a frame, unless it has another size or memory is short.

        It is written, not mapped: where memory is short, a write is an error and a mapped page a deadly
        signal. A mark behind all of its pixels says that it is there.
        """
        if pixels.shape != self.size:
            return
        with suppress(OSError):
            if os.pwrite(self._handle, np.ascontiguousarray(pixels), row * self._bytes) == self._bytes:
                os.pwrite(self._handle, b"\1", self.frames * self._bytes + row)

    def __reduce__(self) -> tuple[Any, ...]:
        if context.get_spawning_popen() is None:
            return Store, (self.frames, self.size)  # nobody to hand the memory to: an empty one
        return _handed_over, (self.frames, self.size, reduction.DupFd(self._handle))


def _handed_over(frames: int, size: tuple[int, int], handle: Any) -> Store:
    return Store(frames, size, handle.detach())


def store_for(
    rows: int, touched: int, sizes: npt.NDArray[Any], ranks: int | None = None
) -> tuple[Store | None, str]:
    """Memory for the frames of a training; None where they do not fit, or are not of one size. Why, in words.

    Limits of the process (``ulimit -v``, ``ulimit -f``) may forbid what the machine has room for.

    Args:
        rows: of the split.
        touched: frames that will be asked for, at most.
        sizes: (n,) "height" and "width" of the frames.
        ranks: on the machine, each of which keeps them; by default those that torchrun has started.
    """
    different = np.unique(sizes[["height", "width"]])
    if len(different) != 1:
        return None, "whenever it is shown: they are not of one size"
    size = int(different["height"][0]), int(different["width"][0])
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if ranks is None else ranks
    wanted, room = ranks * touched * math.prod(size), SHARE * memory()[1]
    words = f"{wanted / 1e9:.1f} GB" + (f" in {ranks} ranks" if ranks > 1 else "")
    if wanted > room:
        return None, f"whenever it is shown: {words} are more than the {room / 1e9:.1f} that frames may take"
    try:
        return Store(rows, size), f"once: {words} fit into memory and stay"
    except OSError as error:
        return None, f"whenever it is shown: no memory for {words}, {error.strerror}"


class SharedFrames(FramesOf):
    """Frames that are decoded when they are first asked for. What the store has cannot be written.

    What does not decode is tried again whenever it is asked for.

    Args:
        source: where they come from.
        store: where they stay.
    """

    def __init__(self, source: Frames, store: Store) -> None:
        super().__init__(source)
        self.store = store

    def grey(self, row: int) -> Grey:
        stored = self.store.get(row)
        if stored is None:
            pixels = self.source.grey(row)
            self.store.put(row, pixels)
            stored = self.store.get(row)
            if stored is None:
                return pixels
        return stored
