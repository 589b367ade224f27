"""The files of a source, in a folder or a zip archive, under the same names in both."""

from __future__ import annotations

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

    @property
    def is_archive(self) -> bool:
        return self.root.is_file()


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
