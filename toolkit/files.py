"""Writing files so that a reader sees the old content or the new, never a part."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

import msgspec

from submission.errors import remedy
from toolkit import console
from toolkit.errors import ToolkitError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; on success flush it and rename it to ``path``.

    On any exception, Ctrl-C included, the temporary file is removed and ``path`` is as it was. What a killed
    process left is removed by the next one that writes ``path``.

    Raises:
        ToolkitError: the disk is full or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, escape(path.name))
        handle, temporary = _temporary(path)
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, the whole of it or nothing; a number that is NaN or infinite becomes null.

    Raises:
        ToolkitError: it cannot be written.
    """
    text = msgspec.json.format(msgspec.json.encode(value), indent=2)
    with replacing(path) as temporary:
        temporary.write_bytes(text + b"\n")


def real(path: Path) -> Path:
    """Where a path leads, links followed; one in a circle of links leads to itself."""
    return Path(os.path.realpath(path))


SCRATCH = ".making.*.tmp"
"""What :func:`scratch` calls its folders (a glob)."""


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield a new folder in ``folder``, removed at the end with what is still in it, Ctrl-C included.

    What a killed process left is removed by the next call. Raises OSError.
    """
    for old in folder.glob(SCRATCH):
        with suppress(OSError), _locked(old):
            shutil.rmtree(old)
    before, after = SCRATCH.split("*")
    path = Path(tempfile.mkdtemp(dir=folder, prefix=before, suffix=after))
    try:
        with _locked(path):
            yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock. Raises BlockingIOError where another process does."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextmanager
def turn(folder: Path) -> Iterator[None]:
    """Wait until no other process has its turn in ``folder``, and keep others waiting.

    Raises:
        ToolkitError: the folder cannot be written.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _write_error(path, error) from error
    try:
        _wait(handle, folder)
        yield
    finally:
        os.close(handle)


@contextmanager
def turn_to_make(folder: Path) -> Iterator[None]:
    """:func:`turn` in a folder that is yet to be made, or is not to hold a file for it; left empty, it goes.

    Raises:
        ToolkitError: the folder cannot be made.
    """
    try:
        while True:
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
            _wait(handle, folder)
            if folder.is_dir() and os.path.samestat(os.fstat(handle), folder.stat()):
                break
            os.close(handle)  # who was waited for failed, and removed it
    except OSError as error:
        raise _write_error(folder, error) from error
    try:
        yield
    finally:
        with suppress(OSError):
            for path in missing:
                path.rmdir()  # fails where something is in it
        os.close(handle)


def _wait(handle: int, folder: Path) -> None:
    with suppress(OSError):  # a file system without locks
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.note(f"waiting for another process that writes in {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)


def _temporary(path: Path) -> tuple[int, Path]:
    """A new file beside ``path``, locked for as long as its handle is open.

    A lock ends with its process and is seen from other containers, which a process id in the name is not.
    """
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)  # another writer took it for abandoned before it was locked


def remove_abandoned(folder: Path, names: str) -> None:
    """Remove temporary files in ``folder`` of files with such names (a glob) that nobody holds a lock on."""
    for old in folder.glob(f".{names}.*.tmp"):
        with suppress(OSError), old.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            old.unlink()


def _flush_folder(folder: Path) -> None:
    """The new name outlives a power cut only if the folder is on the disk as well."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some file systems know no such thing
            os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _write_error(path: Path, error: OSError) -> ToolkitError:
    return ToolkitError(
        f"cannot write {path}",
        found=error.strerror or str(error),
        expected="a writable folder with space left",
        fix=remedy(error),
    )
