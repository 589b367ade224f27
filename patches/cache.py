"""The folder for what may be deleted: tuned plans, compiled kernels."""

from __future__ import annotations

import functools
import os
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

NAME = "convroutes"
"""The folder of this package; a program that has files of its own to keep names another."""


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
