"""A lock on an open file that other processes see, with what the system has for it."""

from __future__ import annotations

import sys
import time
from typing import IO, Any

_PAUSE = 0.05
"""Seconds between two attempts where the system cannot wait for a lock itself."""


def hold(file: IO[Any]) -> None:
    """Wait for the lock of a file and take it; closing the file gives it back.

    Raises:
        OSError: the file system has no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        while not _taken(msvcrt, file):
            time.sleep(_PAUSE)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _taken(msvcrt: Any, file: IO[Any]) -> bool:
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except PermissionError:  # another process has it
        return False
    return True
