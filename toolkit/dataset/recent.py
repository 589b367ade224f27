"""Frames that were decoded a moment ago, for samples that show their neighbours in the order of time."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from toolkit.dataset.frames import Frames, FramesOf

RECENT_BYTES = 8 << 20
"""Of pixels that a process keeps: 75 of LTDv2's frames, so that the farthest neighbour is among them."""


class RecentFrames(FramesOf):
    """Frames of which the last ones stay decoded, as many as :data:`RECENT_BYTES` hold, or one.

    Their pixels cannot be written. What does not decode is tried again whenever it is asked for.

    Args:
        source: where they come from.
        largest: pixels of the largest frame.
    """

    def __init__(self, source: Frames, largest: int) -> None:
        super().__init__(source)
        self.largest = largest
        self.grey = lru_cache(max(1, RECENT_BYTES // largest))(self._decoded)

    def _decoded(self, row: int) -> npt.NDArray[np.uint8]:
        pixels = self.source.grey(row)
        pixels.flags.writeable = False
        return pixels

    def __reduce__(self) -> tuple[type[RecentFrames], tuple[Frames, int]]:
        return RecentFrames, (self.source, self.largest)  # another process keeps its own
