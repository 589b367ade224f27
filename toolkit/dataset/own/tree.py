"""The files of a source, in a folder or a zip archive, under the same names in both."""

from __future__ import annotations

import errno
import os
import posixpath
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from toolkit.dataset.crosscheck import files_below
from toolkit.errors import ToolkitError, reason


@dataclass(frozen=True)
class Tree:
    """What a source holds.

    Attributes:
        root: the folder, or the archive.
        top: the folder in it that holds everything, with a slash at its end; empty where there is none.
        names: paths below ``top``, sorted, without hidden files and what macOS adds to archives.
        open: opens the file of such a name for reading; raises OSError.
    """

    root: Path
    top: str
    names: list[str]
    open: Callable[[str], IO[bytes]]


@dataclass(frozen=True)
class Places:
    """Files by their paths: those of a disk, or of an archive as if it were a folder.

    Attributes:
        is_file, is_dir: whether there is such a one.
        names: of what is in a folder itself, sorted.
        below: paths of the files in a folder and its folders, relative to it, sorted.
        open: opens a file for reading; raises OSError.
        base: the folder that names of frames are relative to; None: one that all of them are in.
    """

    is_file: Callable[[Path], bool]
    is_dir: Callable[[Path], bool]
    names: Callable[[Path], list[str]]
    below: Callable[[Path], list[str]]
    open: Callable[[Path], IO[bytes]]
    base: Path | None = None


ON_DISK = Places(
    Path.is_file,
    Path.is_dir,
    lambda folder: sorted(path.name for path in folder.iterdir()),
    lambda folder: sorted(os.fsdecode(path) for path in files_below(folder, ".")),
    lambda path: path.open("rb"),
)


def inside(tree: Tree) -> Places:
    """The files of a tree under paths that go on behind the archive's own."""
    base = tree.root / tree.top
    files = {base / name: name for name in tree.names}
    folders = {folder for path in files for folder in path.parents if folder.is_relative_to(tree.root)}

    def opened_file(path: Path) -> IO[bytes]:
        if path not in files:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return tree.open(files[path])

    def below(folder: Path) -> list[str]:
        return sorted(path.relative_to(folder).as_posix() for path in files if folder in path.parents)

    def names(folder: Path) -> list[str]:
        return sorted({path.relative_to(folder).parts[0] for path in files if folder in path.parents})

    return Places(files.__contains__, folders.__contains__, names, below, opened_file, base)


def inner(folder: Path) -> Path:
    """The folder that holds everything of this one: itself, or the only one in it, and so on."""
    while True:
        names = _visible(each.name for each in folder.iterdir())
        if len(names) != 1 or not (folder / names[0]).is_dir():
            return folder
        folder /= names[0]


@contextmanager
def opened(source: Path) -> Iterator[Tree]:
    """The tree of a folder or a zip archive, readable until the context ends.

    Raises:
        ToolkitError: it cannot be read.
    """
    if source.is_dir():
        names = _visible(os.fsdecode(path)[2:] for path in files_below(source, "."))
        top, below = _below_top(names)
        yield Tree(source, top, below, lambda name: (source / top / name).open("rb"))
        return
    try:
        archive = zipfile.ZipFile(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise ToolkitError(
            f"{source} cannot be read", found=reason(error), expected="a zip archive"
        ) from error
    with archive:
        members = {_name_of(info): info for info in archive.infolist() if not info.is_dir()}
        top, below = _below_top(_visible(members))
        yield Tree(source, top, below, lambda name: _open_member(archive, members[top + name]))


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return archive.open(member)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:  # damaged, packed, encrypted
        raise OSError(reason(error)) from error


def _name_of(member: zipfile.ZipInfo) -> str:
    """The name as ``archive.read_directory`` has it: bytes are UTF-8, whether a flag says so or not."""
    if member.flag_bits & 0x800:
        return member.filename
    return member.filename.encode("cp437", errors="replace").decode(errors="replace")


def _visible(names: Iterable[str]) -> list[str]:
    return sorted(
        name
        for name in names
        if not any(part.startswith(".") or part in ("", "__MACOSX") for part in name.split("/"))
    )


def _below_top(names: list[str]) -> tuple[str, list[str]]:
    """The folder that all of them are in, and their names below it."""
    common = posixpath.commonpath([name.rpartition("/")[0] for name in names]) if names else ""
    top = f"{common}/" if common else ""
    return top, [name[len(top) :] for name in names]
