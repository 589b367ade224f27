"""The folder for what may be deleted: tuned plans, compiled kernels; and how each part of it is bounded."""

from __future__ import annotations

import functools
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

NAME = "convroutes"
"""The folder of this package; a program that has files of its own to keep names another."""
GRACE = 3600.0
"""What was used in so many seconds stays whatever it takes: somebody may be writing it."""


def cache_folder(name: str = NAME) -> Path:
    """In ``XDG_CACHE_HOME`` or ``~/.cache``; a temporary folder for a user without a home. It need not exist.

    A relative ``XDG_CACHE_HOME`` counts for nothing, as the XDG base directory specification has it.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):  # noqa: PTH117 - of a string that may be empty
        return Path(named) / name
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry in the passwd file, as in a container run as any uid
        return _temporary(name, 0 if sys.platform == "win32" else os.getuid())
    return home / ".cache" / name


@functools.cache
def _temporary(name: str, user: int) -> Path:
    """The user's folder among the temporary files; compiled kernels are run, so nobody else's will do."""
    place = Path(tempfile.gettempdir()) / f"{name}-{user}"
    with suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
        status = place.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == user and not status.st_mode & 0o022:
            return place
    return Path(tempfile.mkdtemp(prefix=f"{name}-"))


class _Entry(NamedTuple):
    """A file, or a folder with all in it: when it was last used, seconds since the epoch, and its bytes."""

    used: float
    size: int
    path: Path


def trim(folder: Path, days: float, limit: int) -> None:
    """Remove what nothing used for some days, then what was unused longest, until the rest fits.

    A file is used when it is written or read, as far as the file system notes that; a folder in ``folder``
    goes as a whole, by the last use of anything in it. What another process removes meanwhile, and what
    cannot be removed, is passed over.

    Args:
        folder: it need not exist; limit: bytes of all files that may stay.
    """
    now, kept = time.time(), 0
    for entry in sorted(_entries(folder), reverse=True):
        kept += entry.size
        idle = now - entry.used
        if idle > days * 86_400 or (kept > limit and idle > GRACE):
            if entry.path.is_dir() and not entry.path.is_symlink():
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    entry.path.unlink()


def size(folder: Path) -> int:
    """Bytes of all files in a folder, which need not exist."""
    return sum(entry.size for entry in _entries(folder))


def _entries(folder: Path) -> Iterator[_Entry]:
    try:
        paths = list(folder.iterdir())
    except OSError:  # none yet, or not ours to read
        return
    for path in paths:
        with suppress(OSError):
            status = path.lstat()
            used, size = status.st_mtime, 0  # not atime of a folder: this very walk changes it
            for each in path.rglob("*") if stat.S_ISDIR(status.st_mode) else (path,):
                status = each.lstat()
                used = max(used, status.st_mtime)
                if stat.S_ISREG(status.st_mode):
                    used, size = max(used, status.st_atime), size + status.st_size
            yield _Entry(used, size, path)
