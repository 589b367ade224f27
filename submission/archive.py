"""The zip that Codabench takes: one member, ``predictions.json``; the same detections, the same bytes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from submission.atomic import write_bytes
from submission.detections import Detections

MEMBER = "predictions.json"
"""The file name that the organisers' evaluator opens."""


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
