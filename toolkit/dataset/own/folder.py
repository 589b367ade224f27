"""The files and links of a data folder of one's own: all of them, or those that were there before."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit import vocabulary
from toolkit.errors import ToolkitError, reason
from toolkit.files import SCRATCH, replacing, scratch
from toolkit.ltdv2 import ANNOTATIONS, ARCHIVE

FRAMES = "frames"


@dataclass(frozen=True)
class Content:
    """What a data folder has to hold.

    Attributes:
        files: name -> content: the annotation files and ``dataset.json``.
        links: path below the folder, ``frames/...`` or ``frames.zip`` -> the absolute path of its target.
    """

    files: Mapping[str, bytes]
    links: Mapping[str, Path]

    def target(self, data: Path, name: str) -> str:
        """What a link says: the way from its folder, so that data and source can be moved together."""
        return os.path.relpath(self.links[name], (data.resolve() / name).parent)


def is_taken(data: Path) -> bool:
    """Whether a folder holds something that is not what :func:`write` made, or left when it was killed."""
    if not data.exists() or (data / vocabulary.FILE).is_file():
        return False
    return not data.is_dir() or any(not path.match(SCRATCH) for path in data.iterdir())


def write(data: Path, content: Content) -> None:
    """Make the folder hold this; one that does is not touched, so that its index stays valid.

    Until everything is written nothing that was there changes. An error or Ctrl-C leaves nothing of the new.

    Raises:
        ToolkitError: the disk is full, the folder cannot be written, or holds frames that are no links.
    """
    try:
        if _holds(data, content):
            return
        with scratch(data) as folder:
            _fill(folder, data, content)
            _install(folder, data, content)
    except OSError as error:
        raise ToolkitError(
            f"cannot write {data}", found=reason(error), expected="a writable folder with space left"
        ) from error


def _holds(data: Path, content: Content) -> bool:
    there = {name: link for entry in (FRAMES, ARCHIVE) for name, link in _links_in(data, entry)}
    if there != {name: content.target(data, name) for name in content.links}:
        return False
    files = {name: data / name for name in (*ANNOTATIONS.values(), vocabulary.FILE)}
    return content.files == {name: path.read_bytes() for name, path in files.items() if path.exists()}


def _links_in(data: Path, name: str) -> Iterator[tuple[str, str]]:
    """Links below an entry of the folder, and what they say."""
    path = data / name
    if path.is_symlink():
        yield name, str(path.readlink())
    elif path.is_dir():
        for entry in os.scandir(path):
            yield from _links_in(data, f"{name}/{entry.name}")
    elif path.exists():
        raise ToolkitError(
            f"{path} is no link",
            found="a file that `toolkit dataset prepare` did not make",
            expected="links to the source's frames alone",
            fix=f"move it out of {data}",
        )


def _fill(folder: Path, data: Path, content: Content) -> None:
    for name in content.links:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(content.target(data, name))
    for name, text in content.files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(text)


def _install(folder: Path, data: Path, content: Content) -> None:
    """Bring what is in ``folder`` into ``data``, ``dataset.json`` first: it says what is to be there."""
    for name in (vocabulary.FILE, ARCHIVE, FRAMES, *ANNOTATIONS.values()):
        old, new = data / name, folder / name
        if old.is_dir() and not old.is_symlink():
            old.rename(folder / f"old-{name}")
        elif not os.path.lexists(new):
            old.unlink(missing_ok=True)
        if os.path.lexists(new):
            new.replace(old)
