"""LTDv2's frames through one interface, out of an archive (``archive.py``) or a folder, and decoded."""

from __future__ import annotations

import os
import re
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

import numpy as np
import numpy.typing as npt

from toolkit.errors import ToolkitError

MAX_FRAME_PIXELS = 1 << 24
"""A JPEG that claims to have more is refused: 40 kB can claim 900 million, which take 10 s and 1.8 GB."""

BAD_FRAMES = 0.01
"""Part of the frames that may be missing or unreadable; above it training and prediction stop."""


class FrameError(ToolkitError):
    """A frame that cannot be read or decoded. ``name`` is its path below the data folder."""

    def __init__(self, name: str, what: str, found: str = "", expected: str = "") -> None:
        self.name = name
        super().__init__(f"frame {name} {what}", found, expected)

    def __reduce__(self) -> tuple[type[FrameError], tuple[str, str, str, str]]:
        what = self.what.removeprefix(f"frame {self.name} ")
        return FrameError, (self.name, what, self.found, self.expected)


class Frames(Protocol):
    """Frames by row number. Safe in many threads and processes at once; pickles without open files."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Path of the frame below the data folder."""
        ...

    def read(self, row: int) -> bytes:
        """The JPEG file's bytes. Raises FrameError."""
        ...

    def grey(self, row: int) -> npt.NDArray[np.uint8]:
        """The pixels, (height, width) uint8. Raises FrameError."""
        ...

    def probe(self, row: int) -> None:
        """Look whether the frame is there, without reading it. Raises FrameError."""
        ...


def decode_grey(name: str, data: bytes) -> npt.NDArray[np.uint8]:
    """Decode a JPEG to grey, (height, width) uint8. Bytes behind its end marker are no fault.

    One without the marker is refused: where other bytes follow, as the zeros of a file whose space was taken
    before it was written, the decoder would fill what is missing and say nothing. Data other than LTDv2 may
    have PNG, TIFF, BMP or WebP, whose 16 bits become 8.

    Raises:
        FrameError: the bytes are no JPEG or a part of one, or claim more pixels than a frame can have.
    """
    import cv2  # here, because making an index decodes nothing

    at, height, width = _frame_header(data)
    if data.startswith(_PNG) and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)  # of its first chunk, IHDR
    if data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9", at) < 0:
        raise FrameError(name, "is cut off", f"{len(data):,} bytes without an end marker")
    if height * width > MAX_FRAME_PIXELS:
        found = f"{len(data):,} bytes that claim {width:,} x {height:,} pixels"
        raise FrameError(name, "is too large", found, f"at most {MAX_FRAME_PIXELS:,} pixels")
    image = None
    if height * width or data.startswith(_OTHER_PICTURES):
        with suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise FrameError(name, "does not decode", f"{len(data):,} bytes that are no JPEG")
    return image  # type: ignore[return-value]


def decode_listening(name: str, data: bytes) -> tuple[npt.NDArray[np.uint8], str]:
    """:func:`decode_grey`, and what the decoder warned of, empty if nothing.

    libjpeg, inside OpenCV, writes its warnings to the process's standard error and decodes on: the pixels
    behind such a place may be wrong. One thread listens at a time; what else was written meanwhile is passed
    on.

    Raises:
        FrameError: see :func:`decode_grey`.
    """
    with _LISTENING, TemporaryFile() as heard:
        kept = os.dup(2)
        os.dup2(heard.fileno(), 2)
        try:
            pixels = decode_grey(name, data)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            heard.seek(0)
            said = heard.read()
            if other := _WARNING.sub(b"", said):
                os.write(2, other)
    warnings = [line.strip().decode(errors="replace") for line in _WARNING.findall(said)]
    return pixels, ", ".join(warnings)


_LISTENING = threading.Lock()
_WARNING = re.compile(
    rb"(?:Corrupt JPEG data|Premature end of JPEG|Inconsistent progression|Invalid SOS)[^\n]*\n"
)


_PNG = b"\x89PNG\r\n\x1a\n"
_OTHER_PICTURES = (_PNG, b"II*\0", b"MM\0*", b"BM", b"RIFF")
"""How PNG, TIFF (two orders of bytes), BMP and WebP begin."""

_SEGMENT = struct.Struct(">BHxHH")
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xD8), 0xFF))


def _frame_header(data: bytes) -> tuple[int, int, int]:
    """Where a JPEG's frame header is, height and width (ITU-T T.81, B.1.1 and B.2.2); zeros without one."""
    if data[:2] != b"\xff\xd8":
        return 0, 0, 0
    at = 2
    with suppress(ValueError, struct.error):
        while True:
            at = data.index(0xFF, at) + 1
            marker, length, height, width = _SEGMENT.unpack_from(data, at)
            if marker in _FRAME_HEADERS:
                return at, height, width
            if marker not in _WITHOUT_LENGTH:
                at += 1 + length
    return 0, 0, 0


class FramesOf:
    """What frames whose pixels come from elsewhere still take from their source: names and encoded bytes.

    Args:
        source: where they were decoded from.
    """

    def __init__(self, source: Frames) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def name(self, row: int) -> str:
        return self.source.name(row)

    def read(self, row: int) -> bytes:
        return self.source.read(row)

    def probe(self, row: int) -> None:
        self.source.probe(row)


class FolderFrames:
    """Frames as files below a folder.

    Args:
        root: the folder that the names are relative to.
        names: (n,) bytes, UTF-8.
        prefixes: what may lie between the root and a name: frames/ unpacked into frames/ gives "frames/".
        prefix_of: (n,) which of them a frame has; the first by default.
    """

    def __init__(
        self,
        root: Path,
        names: npt.NDArray[np.bytes_],
        prefixes: Sequence[str] = ("",),
        prefix_of: npt.NDArray[np.int32] | None = None,
    ) -> None:
        self.root, self.names, self.prefixes = root, names, tuple(prefixes)
        self.prefix_of = np.zeros(len(names), np.int32) if prefix_of is None else prefix_of

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return bytes(self.names[row]).decode(errors="replace")

    def path(self, row: int) -> Path:
        """Where the frame is."""
        return self.root / (self.prefixes[int(self.prefix_of[row])] + self.name(row))

    def read(self, row: int) -> bytes:
        name = self.name(row)
        try:
            return self.path(row).read_bytes()
        except OSError as error:
            raise FrameError(name, "cannot be read", error.strerror or str(error)) from error

    def grey(self, row: int) -> npt.NDArray[np.uint8]:
        return decode_grey(self.name(row), self.read(row))

    def probe(self, row: int) -> None:
        name = self.name(row)
        try:
            size = self.path(row).stat().st_size
        except OSError as error:
            raise FrameError(name, "cannot be read", error.strerror or str(error)) from error
        if not size:
            raise FrameError(name, "is cut off", "an empty file")
