"""What a data folder of one's own was made of: kept in its ``dataset.json`` beside the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from submission.errors import NO_JSON
from toolkit import vocabulary
from toolkit.errors import ToolkitError
from toolkit.vocabulary import Vocabulary


class Origin(msgspec.Struct, frozen=True):
    """The source of a data folder and the settings that it was read with.

    Attributes:
        source: absolute path of the source.
        by, classes: the flags as they were given; empty: the default.
        val: the share of the images that was chosen to validate; 0 where the source has a validation split.
        top: of an archive, the folder in it that the names of the frames are relative to, with a slash at its
            end.
    """

    source: str
    by: str = ""
    classes: str = ""
    val: float = 0
    top: str = ""

    def renamed(self) -> dict[str, str] | None:
        """The source's class in small letters -> what it became; None where all kept their names."""
        if not self.classes:
            return None
        pairs = (pair.partition("=") for pair in self.classes.split(","))
        return {name.lower(): target or name for name, _, target in pairs}

    def differences(self, other: Origin) -> Iterator[tuple[str, str]]:
        """What differs, as ``self`` and ``other`` have it, in words."""
        if self.source != other.source:
            yield self.source, other.source
        for flag, mine, theirs in (("--by", self.by, other.by), ("--classes", self.classes, other.classes)):
            if mine != theirs:
                yield f"{flag} {mine or 'not given'}", f"{flag} {theirs or 'not given'}"
        if self.val and other.val and self.val != other.val:
            yield f"--val-part {self.val:g}", f"--val-part {other.val:g}"


class _File(msgspec.Struct):
    origin: Origin | None = None


def read(data: Path) -> Origin | None:
    """What a data folder was made of; None of LTDv2's, and of one whose ``dataset.json`` says it no more."""
    try:
        file = msgspec.json.decode((data / vocabulary.FILE).read_bytes(), type=_File)
    except (OSError, *NO_JSON):
        return None
    return file.origin


def encode(words: Vocabulary, origin: Origin) -> bytes:
    """The content of ``dataset.json``."""
    content = {**msgspec.to_builtins(words, str_keys=True), "origin": msgspec.to_builtins(origin)}
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def refuse_another(data: Path, wanted: Origin) -> None:
    """Refuse to make something else of a folder that is prepared: runs that were trained on it refer to it.

    Raises:
        ToolkitError: it was made of another source, or with other settings.
    """
    there = read(data)
    differences = list(there.differences(wanted)) if there else []
    if differences:
        raise ToolkitError(
            f"{data} is prepared already, and differently",
            found=", ".join(mine for mine, _ in differences),
            expected=f"what is asked for now: {', '.join(asked for _, asked in differences)}",
            fix="make another folder (--out DIR), or replace it (--replace): runs of it lose their data",
        )
