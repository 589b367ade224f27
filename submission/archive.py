"""The zip that Codabench takes: one member, ``predictions.json``; the same detections, the same bytes.

Other people's zips are looked into as well (:func:`unpack`).
"""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from submission.atomic import write_bytes
from submission.detections import Detections
from submission.errors import SubmissionError

MEMBER = "predictions.json"
"""The file name that the organisers' evaluator opens."""

LARGEST = 4 << 30
"""Bytes of JSON; 49,430 images of 100 boxes with all digits are 0.5 GB."""


def pack(detections: Detections) -> bytes:
    """The zip as bytes: no time, no user, no order of a dictionary gets into it."""
    info = zipfile.ZipInfo(MEMBER, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # Unix, whatever system runs this
    info.external_attr = 0o644 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, detections.dumps(), compresslevel=6)
    return buffer.getvalue()


def write(path: Path, detections: Detections) -> None:
    """Write the zip to ``path``, the whole of it or nothing.

    Raises:
        SubmissionError: the file cannot be written.
    """
    write_bytes(path, pack(detections))


def is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, whatever its name."""
    try:
        return zipfile.is_zipfile(path)
    except OSError:
        return False


def unpack(path: Path) -> tuple[str, bytes]:
    """The predictions in a zip, and the name of the member they are in.

    What macOS and Windows add (``__MACOSX/``, ``.DS_Store``, ``Thumbs.db``) is no member of anybody's.

    Raises:
        SubmissionError: it is damaged, encrypted or too large, or holds no file or several that could be the
            predictions.
    """
    try:
        with zipfile.ZipFile(path) as opened:
            members = [
                info for info in opened.infolist() if not info.is_dir() and not _is_litter(info.filename)
            ]
            chosen = [info for info in members if info.filename == MEMBER] or [
                info for info in members if info.filename.lower().endswith(".json")
            ]
            if len(chosen) != 1:
                raise SubmissionError(
                    f"{path} holds no predictions" if not chosen else f"{path} holds several files",
                    found=_listed(members),
                    expected=f"one file, {MEMBER}",
                )
            if chosen[0].file_size > LARGEST:
                raise SubmissionError(
                    f"{path} is too large", found=f"{chosen[0].file_size:,} bytes in {chosen[0].filename}"
                )
            return chosen[0].filename, opened.read(chosen[0])
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise SubmissionError(
            f"cannot read {path}",
            found=getattr(error, "strerror", None) or str(error),
            expected=f"a zip with one file, {MEMBER}, without a password",
        ) from error


def _is_litter(name: str) -> bool:
    path = PurePosixPath(name)
    return "__MACOSX" in path.parts or path.name in (".DS_Store", "Thumbs.db", "desktop.ini")


def _listed(members: list[zipfile.ZipInfo]) -> str:
    names = [info.filename for info in members[:5]]
    more = f" and {len(members) - 5:,} more" if len(members) > 5 else ""
    return (", ".join(names) or "nothing") + more
