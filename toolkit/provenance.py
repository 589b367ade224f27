"""Which weights predictions and scores were made with: a small file beside them, void once they change."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from submission.errors import NO_JSON
from toolkit.files import replacing


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """``<file>.origin``: what made a file of predictions or scores; hashes are SHA-256.

    Attributes:
        sha256: of the file itself.
        split: the split that was predicted.
        weights, weights_sha256: the checkpoint's name and hash.
        truth_sha256: of the truth, beside scores.
    """

    sha256: str
    split: str
    weights: str
    weights_sha256: str
    truth_sha256: str = ""


def record(file: Path, split: str, weights: str, weights_sha256: str, truth_sha256: str = "") -> Origin:
    """Write the origin of ``file`` beside it.

    Raises:
        ToolkitError: it cannot be written.
    """
    origin = Origin(sha256(file), split, weights, weights_sha256, truth_sha256)
    with replacing(_beside(file)) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(origin)) + b"\n")
    return origin


def origin_of(file: Path) -> Origin | None:
    """The recorded origin of ``file``; None if there is none or the file is another by now."""
    try:
        origin = msgspec.json.decode(_beside(file).read_bytes(), type=Origin)
        return origin if origin.sha256 == sha256(file) else None
    except (OSError, *NO_JSON):
        return None


def sha256(path: Path) -> str:
    """The hash of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _beside(file: Path) -> Path:
    return file.with_name(file.name + ".origin")
