"""What a container sees of the host: the same files under the same paths.

A path that is printed inside is one that the host has, a path that is given is one that the container has,
and a run that was begun in a container goes on outside. Everything is read-only but the folder for runs and
what a command is to write.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.workspace import RunRecord

OF_THE_IMAGE: tuple[str, ...] = (
    *(
        "/bin",
        "/dev",
        "/etc",
        "/lib",
        "/lib64",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/sys",
        "/usr",
        "/var/lib",
    ),
    *("/cache", "/home/toolkit", "/opt/build", "/opt/ltdv2", "/opt/toolkit", "/opt/torch"),
)
"""Folders that the image needs as they are; a folder of the host that holds one would hide it."""

OUTPUTS = ("--out", "--record")
"""Options of the toolkit's verbs that name what is to be written."""

FILES = (".json", ".pt", ".toml", ".yaml", ".yml", ".zip")
"""Suffixes of what is a file's name even without a slash."""


@dataclass
class Mounts:
    """Folders and files of the host.

    Attributes:
        writable: whether the container may write to it, by path.
        sources: where the host has it, if not under the same path: what a link in a linked folder points to.
    """

    writable: dict[Path, bool] = field(default_factory=dict)
    sources: dict[Path, Path] = field(default_factory=dict)

    def add(self, path: Path, *, write: bool = False) -> None:
        """Show ``path``, and what the links in it point to.

        Raises:
            ToolkitError: the path would hide a folder of the image, or a link in it points to nothing.
        """
        path = _showable(path)
        self.writable[path] = write or self.writable.get(path, False)
        if path.is_dir():
            with suppress(PermissionError):  # what this user may not list, the container's may not either
                for entry in path.iterdir():
                    if entry.is_symlink():
                        self._follow(entry)

    def add_runs(self, runs: Path) -> None:
        """Show the folder for runs, writable, and so the runs in it that are links to another disk.

        Raises:
            ToolkitError: it would hide a folder of the image.
        """
        self.writable[_showable(runs)] = True
        with suppress(OSError):  # what this user may not list, the container's may not either
            for entry in runs.iterdir():
                if entry.is_symlink() and entry.is_dir():
                    self._follow(entry, write=True)

    def _follow(self, link: Path, *, write: bool = False) -> None:
        """Show what ``link`` points to, step by step, until it is outside of what is shown already."""
        where = link
        for _ in range(40):  # the kernel's own limit
            if not where.is_symlink():
                break
            where = lexical(where.parent / where.readlink())
            if where in self.sources or not self.shows(where):
                break
        if link.exists():
            if not self.shows(where):
                self.writable[where] = write
                self.sources[where] = Path(os.path.realpath(link))
        elif link.suffix in FILES:
            raise ToolkitError(
                f"{link} points to nothing",
                str(link.readlink()),
                "a file that exists",
                "mount the disk that it is on, or put the file there",
            )

    def shows(self, path: Path) -> bool:
        """Whether the container sees ``path``."""
        return any(lexical(path).is_relative_to(shown) for shown in self.writable)

    def add_arguments(self, arguments: Sequence[str]) -> None:
        """Show the files that the arguments of one of the toolkit's verbs name, and where they write."""
        before = ""
        for argument in arguments:
            option, separator, value = argument.partition("=")
            if not (separator and option.startswith("--")):
                option, value = before, argument
            before = argument
            path = Path(value).expanduser()
            if option in OUTPUTS:
                self._add_output(path)
            elif ("/" in value or path.suffix in FILES) and path.exists() and not self.shows(path):
                self.add(path)

    def _add_output(self, path: Path) -> None:
        folder = lexical(path) if path.is_dir() else lexical(path).parent
        if not folder.is_dir():
            parents = [parent for parent in folder.parents if parent.is_dir()]
            folder = parents[0]
        shown = [place for place in self.writable if folder.is_relative_to(place)]
        if not any(self.writable[place] for place in shown):
            self.add(folder, write=True)


def _showable(path: Path) -> Path:
    """``path``, lexical, if a container can have it under the same name.

    Raises:
        ToolkitError: it would hide a folder of the image.
    """
    path = lexical(path)
    if any(Path(name).is_relative_to(path) for name in OF_THE_IMAGE):
        raise ToolkitError(
            f"a container cannot have {path}",
            "a folder that would hide the image's own",
            fix="put the files into a folder below it",
        )
    return path


def lexical(path: Path) -> Path:
    """A path from the root on, without ``..``, its links left as they are."""
    return Path(os.path.normpath(path.absolute()))


def of_runs(runs: Path) -> Iterable[Path]:
    """Folders of data that the runs in a folder were started with and that exist."""
    found = {}
    for run in sorted(runs.glob("*")):
        with suppress(ToolkitError):
            found[Path(RunRecord.read(run).data)] = True
    return [path for path in found if path.is_dir()]
