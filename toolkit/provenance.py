"""Where results come from: the commit of the source, and the weights of predictions and scores.

The weights are named in a small file beside predictions and scores, which is void once they change.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import msgspec

from submission.errors import NO_JSON
from toolkit.files import replacing

ROOT = Path(__file__).resolve().parents[1]


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """``<file>.origin``: what made a file of predictions or scores; hashes are SHA-256.

    Attributes:
        sha256: of the file itself.
        split: the split that was predicted.
        weights, weights_sha256: the checkpoint's name and hash.
        truth_sha256: of the truth, beside scores.
        flags: how the weights predicted, where not as they do by themselves.
    """

    sha256: str
    split: str
    weights: str
    weights_sha256: str
    truth_sha256: str = ""
    flags: str = ""


class Subject(msgspec.Struct, frozen=True):
    """``scores.json.subject``: what scores are of; paths are relative to its folder.

    Attributes:
        target: the file that was scored; empty in a run, whose folders say it in their names.
        truth, truth_sha256: the file with the true boxes, and its hash.
    """

    target: str
    truth: str
    truth_sha256: str

    def is_of(self, other: Subject) -> bool:
        """Whether both are scores of one thing: the truth may have been edited, or moved."""
        truth = self.truth == other.truth or self.truth_sha256 == other.truth_sha256
        return truth and self.target == other.target


def subject(folder: Path, target: Path | None, truth: Path, truth_sha256: str) -> Subject:
    """Of scores in ``folder``."""
    return Subject(
        os.path.relpath(target, folder) if target else "", os.path.relpath(truth, folder), truth_sha256
    )


def subject_of(scores: Path) -> Subject | None:
    """What the scores in this file are of; None where nothing says it, or there are none."""
    try:
        return msgspec.json.decode(_subject(scores).read_bytes(), type=Subject) if scores.is_file() else None
    except (OSError, *NO_JSON):
        return None


def record_subject(scores: Path, of: Subject) -> None:
    """Write what scores are of beside them. Raises ToolkitError: it cannot be written."""
    with replacing(_subject(scores)) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(of)) + b"\n")


def _subject(scores: Path) -> Path:
    return scores.with_name(scores.name + ".subject")


def record(
    file: Path, split: str, weights: str, weights_sha256: str, truth_sha256: str = "", flags: str = ""
) -> Origin:
    """Write the origin of ``file`` beside it.

    Raises:
        ToolkitError: it cannot be written.
    """
    origin = Origin(sha256(file), split, weights, weights_sha256, truth_sha256, flags)
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


def weights_of(predictions: Path, origin: Origin | None, unnoted: str) -> str | None:
    """Name of the weights whose own predictions a file holds; ``unnoted`` where nothing was noted of it.

    Args:
        predictions: the file.
        origin: what :func:`origin_of` says of it.
        unnoted: what it is taken for.

    Returns:
        None where what was noted is of another content: something else was written in its place.
    """
    if origin is not None:
        return origin.weights
    return None if _beside(predictions).is_file() else unnoted


def sha256(path: Path) -> str:
    """The hash of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _beside(file: Path) -> Path:
    return file.with_name(file.name + ".origin")


def commit() -> str:
    """The source's commit: of the checkout, with a hash of what differs from it, or of the image."""
    if not (ROOT / ".git").exists():
        return os.environ.get("TOOLKIT_COMMIT", "")
    try:
        head = _git("rev-parse", "HEAD").decode().strip()
        changed = _git("diff", "--binary", "HEAD")
        untracked = _git("ls-files", "-z", "--others", "--exclude-standard").split(b"\0")[:-1]
    except (OSError, subprocess.CalledProcessError):
        return ""
    if not changed and not untracked:
        return head
    digest = hashlib.sha256(changed)
    for name in untracked:
        path = ROOT / os.fsdecode(name)
        if path.is_file():
            digest.update(name + b"\0" + sha256(path).encode())
    return f"{head}-dirty-{digest.hexdigest()[:12]}"


def _git(*arguments: str) -> bytes:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, check=True).stdout
