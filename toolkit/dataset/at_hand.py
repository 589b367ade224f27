"""Decoded frames that are at hand for the mosaics of later samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.dataset.order import EpochOrder
from toolkit.dataset.planes import Grey, Layers, channels_of

Array = npt.NDArray[Any]

Loaded = tuple[Grey | Layers, tuple[int, int], tuple[int, int]]
"""A frame, its size as recorded, and as enlarged to the longer side that is asked for."""

LANES = 8
"""Loaders deal batches to their workers in turn: of 1, 2, 4 or 8 workers one makes every eighth batch."""

NEIGHBOURS = 64
"""A mosaic's other three frames are among as many before it, in the batches that the same worker makes: they
are at hand, decoded for earlier samples. Ultralytics takes them from the last 128 at batch 16."""


class AtHand:
    """Frames of earlier samples, by lane, and the memory of those that are needed no more.

    Args:
        order: the samples of each epoch.
        images: their number without repetitions.
        batch: images a batch.
        recycles: keep the memory of dropped frames for new ones, which are in layers of one size then.

    Attributes:
        recent: image -> frame, of the lane whose turn it is.
    """

    def __init__(self, order: EpochOrder, images: int, batch: int, *, recycles: bool) -> None:
        self._epochs, self.images, self.batch, self.recycles = order, images, batch, recycles
        self.recent: dict[int, Loaded] = {}
        self.lanes: dict[int, dict[int, Loaded]] = {}
        self.spare: list[Grey] = []
        self._order: tuple[int, Array, Array] | None = None

    def emptied(self) -> AtHand:
        """Another with nothing at hand, for another process."""
        return AtHand(self._epochs, self.images, self.batch, recycles=self.recycles)

    def turn(self, epoch: int, drawn: int) -> list[int]:
        """Make it a sample's turn: the images before it in its lane, whose frames stay at hand."""
        lane, before = self._neighbours(epoch, drawn)
        wanted, held = {drawn % self.images, *before}, self.lanes.get(lane, {})
        self.recent = {image: loaded for image, loaded in held.items() if image in wanted}
        if self.recycles:
            dropped = (loaded[0] for image, loaded in held.items() if image not in wanted)
            self.spare += [plane for each in dropped for plane in channels_of(each) if plane.flags.writeable]
        self.lanes[lane] = self.recent
        return before

    def _neighbours(self, epoch: int, drawn: int) -> tuple[int, list[int]]:
        """A sample's lane, and the images before it there; the epoch's end comes before its beginning."""
        if self._order is None or self._order[0] != epoch:
            order = self._epochs.samples(epoch)
            self._order = epoch, order, np.argsort(order)
        _, order, places = self._order
        at = int(np.searchsorted(order, drawn, sorter=places))
        if at == len(order) or order[places[at]] != drawn:
            raise IndexError(f"sample {drawn} is none of epoch {epoch}")
        size = self._epochs.size
        count = max(1, min(NEIGHBOURS, size - 1))
        batch, column = divmod(int(places[at]), self.batch)
        turn, lane = divmod(batch, LANES)
        turns, columns = np.divmod(turn * self.batch + column - np.arange(1, count + 1), self.batch)
        before = (turns * LANES + lane) * self.batch + columns
        return lane, (order[before % size] % self.images).tolist()

    def kept(self, plane: Grey) -> Grey:
        """A channel in memory that stays: its own where it cannot be written, as in a store or a cache.

        What was decoded for this sample is copied into the memory that an earlier frame had. That is taken in
        blocks: a heap in which frames outlive the arrays made between them grows without need.
        """
        if not plane.flags.writeable:
            return plane
        if not self.spare or self.spare[-1].shape != plane.shape:
            self.spare = list(np.empty((NEIGHBOURS + 1, *plane.shape), np.uint8))
        memory = self.spare.pop()
        memory[...] = plane
        return memory
