"""Several splits as one, for a last training that uses all that is labelled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from toolkit.dataset.frames import Frames
from toolkit.dataset.index import DatasetIndex, Split, TrainingTables

if TYPE_CHECKING:
    import polars as pl


class JoinedSplit(Split):
    """The images of several splits, one split after the other.

    Args:
        index: the opened index.
        names: of the splits.
    """

    def __init__(self, index: DatasetIndex, names: Sequence[str]) -> None:
        super().__init__(index, ",".join(names))
        self.parts = [index.split(name) for name in names]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def table(self, *columns: str) -> pl.DataFrame:
        """Columns of the Parquet file for these splits."""
        import polars as pl

        return pl.concat([part.table(*columns) for part in self.parts])

    @cached_property
    def training(self) -> TrainingTables:
        """The tables that training reads, in memory."""
        tables = [part.training for part in self.parts]
        widest = max((table.images.dtype for table in tables), key=lambda kind: kind["name"].itemsize)
        images = np.concatenate([table.images.astype(widest) for table in tables])
        before = np.cumsum([0, *(len(table.boxes) for table in tables[:-1])])
        images["box"] += np.repeat(before, [len(table.images) for table in tables])
        return TrainingTables(images, np.concatenate([table.boxes for table in tables]))

    def frames(self) -> Frames:
        """The frames of these splits, row for row."""
        return JoinedFrames([part.frames() for part in self.parts])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}


def open_split(index: DatasetIndex, name: str) -> Split:
    """The split of that name, or of several names with commas between them as one."""
    names = name.split(",")
    return index.split(name) if len(names) == 1 else JoinedSplit(index, names)


class JoinedFrames:
    """Frames of several sources, one after the other."""

    def __init__(self, parts: Sequence[Frames]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _find(self, row: int) -> tuple[Frames, int]:
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[part], row - int(self.starts[part])

    def name(self, row: int) -> str:
        """Of a frame."""
        frames, own = self._find(row)
        return frames.name(own)

    def read(self, row: int) -> bytes:
        """The encoded bytes of a frame."""
        frames, own = self._find(row)
        return frames.read(own)

    def probe(self, row: int) -> None:
        """Raises FrameError: it cannot be read."""
        frames, own = self._find(row)
        frames.probe(own)

    def grey(self, row: int) -> npt.NDArray[np.uint8]:
        """(height, width) pixels of a frame."""
        frames, own = self._find(row)
        return frames.grey(own)
