"""The list of ids in a phase's starting kit: which file of it that is, and what it holds."""

from __future__ import annotations

import gzip
import io
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from submission import templates
from submission.errors import SubmissionError

LARGEST = 64 << 20
"""Bytes of JSON; a million ids of LTDv2's length with an empty object each are 23 MB."""


def template_in(
    kit: bytes, source: str, is_called: Callable[[str], bool]
) -> tuple[str, npt.NDArray[np.int64]]:
    """The template in a starting kit: the one file with "template" in its name, or the phase's of several.

    Args:
        kit: a zip, as the organisers gave it.
        source: names it in messages.
        is_called: whether a name is the phase's.

    Returns:
        The file's name in the kit, and (images,) int64 in its order, each id once.

    Raises:
        SubmissionError: it is no zip, is damaged, has no template or several of the phase, or what it has is
            none or names no id.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(kit)) as archive:
            name = _chosen([each for each in archive.namelist() if _may_be(each)], source, is_called)
            with archive.open(name) as member:
                stream = gzip.GzipFile(fileobj=member) if name.endswith(".gz") else member
                data = stream.read(LARGEST + 1)
    # RuntimeError and NotImplementedError: encrypted, or packed in a way that zipfile does not know.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise SubmissionError(f"{source} cannot be read", found=str(error), expected="a zip") from error
    if len(data) > LARGEST:
        raise SubmissionError(f"{name} in {source} is too large", expected=f"at most {LARGEST:,} bytes")
    ids = templates.loads(data, f"{name} in {source}")
    if not len(ids):
        raise SubmissionError(f"{name} in {source} names no id", expected="the ids of a phase")
    return name, ids


def _may_be(name: str) -> bool:
    """Whether a member may be a template; what macOS adds is none of the organisers'."""
    path = PurePosixPath(name.lower())
    return (
        "template" in path.name
        and path.name.endswith((".json", ".json.gz"))
        and "__macosx" not in path.parts
        and not path.name.startswith(".")
    )


def _chosen(names: list[str], source: str, is_called: Callable[[str], bool]) -> str:
    if len(names) > 1:
        names = [name for name in names if is_called(PurePosixPath(name).name)] or names
    if len(names) != 1:
        raise SubmissionError(
            f"{source} has {'several templates' if names else 'no template'}",
            found=", ".join(names[:5]),
            expected='one file with "template" and the phase in its name',
        )
    return names[0]
