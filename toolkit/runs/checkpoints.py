"""Checkpoints inside an epoch: written whole or not at all, each with its own checksum, a few kept.

The name carries the cursor and the checksum, ``image-000012345-<16 hex digits of SHA-256>.pt``. The cursor is
counted in images, because a run may go on with batches of another size. Renaming the finished file publishes
both at once, and a reader can tell a damaged file without any other.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from toolkit import console
from toolkit.files import replacing

KEEP = 3
"""The newest checkpoint and the two before it."""

_NAME = re.compile(r"image-(\d+)-([0-9a-f]{16})\.pt")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file.

    Attributes:
        path: the file.
        images: images trained on in the whole run when it was written.
        checksum: the first 16 hex digits of its SHA-256.
    """

    path: Path
    images: int
    checksum: str

    def intact(self) -> bool:
        """Whether the content can be read and is what was written."""
        try:
            return _checksum(self.path.read_bytes()) == self.checksum
        except OSError:
            return False

    def put_aside(self) -> None:
        """Rename it, so that no run goes on from it: a disk that could not be read may be better tomorrow."""
        with suppress(FileNotFoundError):
            self.path.replace(self.path.with_suffix(".damaged"))


def listed(folder: Path) -> list[Checkpoint]:
    """Checkpoints in ``folder``, newest first, not yet checked."""
    names = ((path, _NAME.fullmatch(path.name)) for path in folder.glob("image-*.pt"))
    found = [Checkpoint(path, int(match[1]), match[2]) for path, match in names if match]
    return sorted(found, key=lambda c: (c.images, _modified(c.path)), reverse=True)


def newest(folder: Path, before: int | None = None) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """The newest intact checkpoint and the damaged ones that were passed over.

    Args:
        folder: of the checkpoints.
        before: only those with fewer images than this.
    """
    damaged: list[Checkpoint] = []
    for checkpoint in listed(folder):
        if before is not None and checkpoint.images >= before:
            continue
        if checkpoint.intact():
            return checkpoint, damaged
        damaged.append(checkpoint)
    return None, damaged


def write(folder: Path, images: int, content: bytes | memoryview) -> Checkpoint:
    """Write a checkpoint of a run that has trained on so many images, and drop the oldest files.

    Older checkpoints are removed only after the new one is on the disk.

    Raises:
        ToolkitError: the disk is full or the folder cannot be written; older checkpoints are as they were.
    """
    checksum = _checksum(content)
    path = folder / f"image-{images:012d}-{checksum}.pt"
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    kept: set[int] = set()
    for one in listed(folder):
        if len(kept) == KEEP or one.images in kept:  # a run that went back comes to the same cursor again
            with suppress(OSError):
                one.path.unlink()
        kept.add(one.images)
    return Checkpoint(path, images, checksum)


def discard_after(folder: Path, images: int) -> None:
    """Remove checkpoints with more images than ``images``: the run has gone back before them."""
    for checkpoint in listed(folder):
        if checkpoint.images > images:
            checkpoint.path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left behind."""
    for path in folder.glob(".image-*.tmp"):
        with suppress(OSError):
            path.unlink()
            console.note(f"removed {path.name}, which a killed writer left behind")


def _modified(path: Path) -> int:
    with suppress(FileNotFoundError):  # another rank has just removed it
        return path.stat().st_mtime_ns
    return 0


def _checksum(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
