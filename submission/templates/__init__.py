"""The image ids that each phase of the challenge expects, as the organisers published them (CC0)."""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from submission.competitions import PHASES
from submission.detections import parse_ids, read_bytes, refuse_repeated_keys
from submission.errors import NO_JSON, SubmissionError


class _Image(msgspec.Struct, gc=False):
    id: int


class _Coco(msgspec.Struct):
    images: list[_Image]


@cache
def template(phase: str) -> npt.NDArray[np.int64]:
    """Ids of a phase in the organisers' order: development has 46,013 (split val), testing 49,430.

    Args:
        phase: its name in :data:`submission.competitions.PHASES`.

    Returns:
        (images,) int64, each id once; read-only, because it is kept for the next call.

    Raises:
        SubmissionError: there is no such phase.
    """
    if phase not in PHASES:
        raise SubmissionError(f"there is no phase {phase!r}", expected=" or ".join(PHASES))
    data = gzip.decompress((files(__name__) / PHASES[phase].template).read_bytes())
    ids = parse_ids(msgspec.json.decode(data, type=dict[str, msgspec.Raw]), phase)
    ids.flags.writeable = False
    return ids


def read(path: Path) -> npt.NDArray[np.int64]:
    """Ids of a template file: the challenge's ``{"<id>": ...}`` or a COCO file such as TestNoLabels.json.

    Returns:
        (images,) int64 in the order of the file.

    Raises:
        SubmissionError: the file is missing, no JSON, neither of the two, or names an id twice.
    """
    return loads(read_bytes(path), str(path))


def loads(data: bytes, source: str) -> npt.NDArray[np.int64]:
    """Like :func:`read`, from bytes; ``source`` names them in messages."""
    try:
        keys = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        if "images" not in keys:
            ids = parse_ids(keys, source)
            refuse_repeated_keys(data, len(ids), source)
            return ids
        ids = np.array([image.id for image in msgspec.json.decode(data, type=_Coco).images], np.int64)
    except (*NO_JSON, OverflowError) as error:
        raise SubmissionError(
            f"{source} is no template",
            found=str(error),
            expected="the challenge's object of ids, or a COCO file with images",
        ) from error
    if len(np.unique(ids)) != len(ids):
        raise SubmissionError(f"{source} names an image id twice", expected="every id once")
    return ids
