"""Frames that cannot be decoded, in an archive that is otherwise whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from toolkit.dataset.index import load


def damage(folder: Path, name: str) -> None:
    """Cut a frame's JPEG short without moving anything in the archive."""
    split_rows = [load(folder).split(s) for s in ("train", "val", "test")]
    for split in split_rows:
        for row in np.flatnonzero(split.file_names == name.encode()).tolist():
            members = split.frames().members  # type: ignore[attr-defined]
            with (folder / "frames.zip").open("r+b") as file:
                file.seek(int(members.offsets[row]) + 30 + len(name) + int(members.sizes[row]) // 2)
                file.write(b"\0" * (int(members.sizes[row]) // 2))
