"""``frames.zip``: its directory as columns, and frames read from it by position.

The archive has more than a million members. Its directory is read here with numpy (Python's zipfile takes
10.6 s and 1.4 GB for it), once, by ``toolkit dataset prepare``; afterwards a frame is one positioned read.
``os.pread`` keeps no position, so any number of threads and processes may share a source without a lock.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toolkit.dataset.frames import FrameError, decode_grey
from toolkit.errors import ToolkitError

STORED, DEFLATED = 0, 8


MAX_FRAME_BYTES = 32 << 20
"""A member that says it is larger than this is no frame (they have about 45 kB) but a zip bomb."""


_LOCAL_HEADER = 30


_LOCAL_EXTRA = 64
"""Bytes read beyond what a member should need: its local extra field, whose size the directory omits."""


@dataclass(frozen=True, eq=False)
class Members:
    """Where members of an archive are: columns with one row a member.

    Attributes:
        names: (n,) bytes, UTF-8.
        offsets: (n,) int64, position of the local header in the file; -1 for a frame the archive lacks.
        sizes: (n,) int64, bytes as stored. raw_sizes: (n,) int64, bytes once inflated.
        methods: (n,) uint8, 0 stored or 8 deflated.
        crcs: (n,) int64, CRC-32 of the inflated bytes.
    """

    names: npt.NDArray[np.bytes_]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    raw_sizes: npt.NDArray[np.int64]
    methods: npt.NDArray[np.uint8]
    crcs: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets)


class ZipFrames:
    """Frames inside an archive, found through ``members`` and read with one system call each."""

    def __init__(self, path: Path, members: Members) -> None:
        self.path, self.members = path, members
        self._fd: int | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "members": self.members, "_fd": None}

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", None), None
        if fd is not None:
            os.close(fd)

    def __len__(self) -> int:
        return len(self.members)

    def name(self, row: int) -> str:
        return bytes(self.members.names[row]).decode(errors="replace")

    def read(self, row: int) -> bytes:
        """The member's bytes, inflated.

        The local header is read along with them and must be that of a member whose name ends like the frame's
        (the archive may have a folder around ``frames/``). Raises FrameError.
        """
        members = self.members
        offset, size = int(members.offsets[row]), int(members.sizes[row])
        frame: bytes = members.names[row]
        wanted = _LOCAL_HEADER + len(frame) + _LOCAL_EXTRA + size
        data = self._pread(row, wanted)
        name_length, extra_length = struct.unpack_from("<HH", data, 26)
        start = _LOCAL_HEADER + name_length + extra_length
        if len(data) < start + size:
            data = self._pread(row, start + size)
        name = data[_LOCAL_HEADER : _LOCAL_HEADER + name_length]
        if not name.endswith(frame.removeprefix(b"frames/")):
            raise self._moved(row, f"{name.decode(errors='replace')} at byte {offset:,}")
        body = data[start : start + size]
        if len(body) < size:
            found = f"{len(body):,} of {size:,} bytes after {offset:,}"
            raise FrameError(self.name(row), f"is cut off in {self.path.name}", found)
        if members.methods[row] == STORED:
            return body
        return _inflate(self.name(row), body, int(members.raw_sizes[row]))

    def grey(self, row: int) -> npt.NDArray[np.uint8]:
        return decode_grey(self.name(row), self.read(row))

    def probe(self, row: int) -> None:
        self._pread(row, _LOCAL_HEADER)
        end = int(self.members.offsets[row]) + _LOCAL_HEADER + int(self.members.sizes[row])
        if end > self.path.stat().st_size:
            raise FrameError(self.name(row), f"is cut off in {self.path.name}")
        if not self.members.raw_sizes[row]:
            raise FrameError(self.name(row), f"is cut off in {self.path.name}", "an empty file")

    def read_checked(self, row: int) -> bytes:
        """:meth:`read`, and compare the CRC-32. Raises FrameError."""
        data = self.read(row)
        if zlib.crc32(data) != int(self.members.crcs[row]):
            raise FrameError(self.name(row), "is damaged", "another CRC-32 than the archive's directory has")
        return data

    def _pread(self, row: int, size: int) -> bytes:
        """Up to ``size`` bytes from the member's local header on; at least the whole header."""
        offset = int(self.members.offsets[row])
        if offset < 0:
            raise FrameError(self.name(row), f"is not in {self.path.name}")
        try:
            if self._fd is None:
                self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            data = os.pread(self._fd, size, offset)
        except OSError as error:
            raise FrameError(
                self.name(row), f"cannot be read from {self.path}", str(error.strerror)
            ) from error
        if len(data) < _LOCAL_HEADER or data[:4] != b"PK\x03\x04":
            raise self._moved(row, f"no member at byte {offset:,}")
        return data

    def _moved(self, row: int, found: str) -> FrameError:
        what = f"is not where the index says in {self.path.name}"
        return FrameError(
            self.name(row), what, found, "an archive that has not changed since `toolkit dataset prepare`"
        )


def _inflate(name: str, body: bytes, raw_size: int) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(body, raw_size + 1)
    except zlib.error as error:
        raise FrameError(name, "does not inflate", str(error)) from error
    if len(data) != raw_size:
        found = f"more than {raw_size:,}" if len(data) > raw_size else f"{len(data):,}"
        raise FrameError(name, "does not inflate to its stated size", f"{found} bytes", f"{raw_size:,}")
    return data


# The fixed part of a directory entry, PKWARE APPNOTE 6.3.10, section 4.3.12.
_ENTRY = np.dtype(
    [
        ("signature", "<u4"),
        ("made_by", "<u2"),
        ("needs", "<u2"),
        ("flags", "<u2"),
        ("method", "<u2"),
        ("time", "<u2"),
        ("date", "<u2"),
        ("crc", "<u4"),
        ("size", "<u4"),
        ("raw_size", "<u4"),
        ("name_length", "<u2"),
        ("extra_length", "<u2"),
        ("comment_length", "<u2"),
        ("disk", "<u2"),
        ("internal", "<u2"),
        ("external", "<u4"),
        ("offset", "<u4"),
    ]
)


_ENTRY_SIGNATURE = 0x02014B50


_32BIT_MAX = 0xFFFF_FFFF


LET_READ = "let this user read it: chmod a+r {}"
"""What helps where a file's rights are at fault."""


def read_directory(path: Path) -> Members:
    """All files of a zip archive, in the order of their bytes, ZIP64 included.

    Raises:
        ToolkitError: no archive, cut off, split over volumes, encrypted, compressed with a method other than
            deflate, members that overlap or leave the archive, a path that is absolute or goes up, two
            members of one name, or a member too large to be a frame or of contradicting sizes.
    """
    try:
        with path.open("rb") as file:
            start, size, count, shift = _find_directory(path, file.fileno())
            directory = os.pread(file.fileno(), size, start)
    except OSError as error:
        denied = isinstance(error, PermissionError)
        raise ToolkitError(
            f"cannot read {path}",
            found=error.strerror or str(error),
            fix=LET_READ.format(path) if denied else "toolkit dataset download DIR",
        ) from error
    entries, positions = _entries(path, directory, count)
    sizes, raw_sizes, offsets = _wide_sizes(path, directory, entries, positions)
    ends = positions + _ENTRY.itemsize + entries["name_length"]
    begins = positions + _ENTRY.itemsize
    names = [directory[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]

    offsets = offsets + shift
    _refuse_if(entries["flags"] & 1 != 0, names, path, "is encrypted")
    _refuse_if(~np.isin(entries["method"], (STORED, DEFLATED)), names, path, "uses an unknown compression")
    _refuse_if(entries["disk"] != 0, names, path, "lies in another volume of a split archive")
    unsafe = np.array([leaves(name) for name in names], np.bool_)
    _refuse_if(unsafe, names, path, "has a path that is absolute, goes up ('..') or holds a zero byte")

    is_file = np.array([not name.endswith(b"/") for name in names], np.bool_)
    order = np.flatnonzero(is_file)
    order = order[np.argsort(offsets[order], kind="stable")]
    names = [names[i] for i in order.tolist()]
    offsets, sizes, raw_sizes = offsets[order], sizes[order], raw_sizes[order]
    methods = entries["method"][order].astype(np.uint8)
    largest = np.maximum(sizes.view(np.uint64), raw_sizes.view(np.uint64))  # ZIP64's sizes have no sign
    _refuse_if(largest > MAX_FRAME_BYTES, names, path, f"claims more than {MAX_FRAME_BYTES >> 20} MiB")
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    member_ends = offsets + _LOCAL_HEADER + lengths + sizes
    limits = np.append(offsets[1:], start)
    _refuse_if((member_ends > limits) | (offsets < 0), names, path, "overlaps its neighbour or the directory")
    contradicts = (methods == STORED) & (sizes != raw_sizes)
    _refuse_if(contradicts, names, path, "is stored as it is and yet claims two sizes")
    if len(set(names)) < len(names):
        first = dict(zip(reversed(names), range(len(names) - 1, -1, -1), strict=True))
        twice = np.array([first[name] != i for i, name in enumerate(names)])
        _refuse_if(twice, names, path, "occurs twice")
    return Members(
        names=np.array(names, dtype=np.bytes_) if names else np.empty(0, "S1"),
        offsets=offsets,
        sizes=sizes,
        raw_sizes=raw_sizes,
        methods=methods,
        crcs=entries["crc"][order].astype(np.int64),
    )


def count_members(path: Path) -> int:
    """Members that an archive says it has, folders included; 0 for one that is cut off or none."""
    try:
        with path.open("rb") as file:
            return _find_directory(path, file.fileno())[2]
    except (OSError, ToolkitError):
        return 0


def _find_directory(path: Path, fd: int) -> tuple[int, int, int, int]:
    """Position, size and number of entries of the central directory (APPNOTE 4.3.14 to 4.3.16).

    The fourth value is the number of bytes in front of the archive, which no stored offset counts.
    """
    end = os.fstat(fd).st_size
    tail_start = max(0, end - 22 - 65_535)
    tail = os.pread(fd, end - tail_start, tail_start)
    places = [match.start() for match in re.finditer(b"PK\x05\x06", tail)]
    # The archive's comment may hold the signature too; the record's own comment ends where the file does.
    whole = [at for at in places if tail[at + 20 : at + 22] == struct.pack("<H", max(len(tail) - at - 22, 0))]
    at = (whole or places or [-1])[-1]
    if at < 0 or len(tail) - at < 22:
        raise ToolkitError(
            f"{path} is cut off or no zip archive",
            found=f"{end:,} bytes without a directory at the end",
            expected="a complete archive",
            fix="resume the download: toolkit dataset download DIR",
        )
    disk, directory_disk, _, count, size, offset = struct.unpack_from("<HHHHII", tail, at + 4)
    record = tail_start + at
    locator = os.pread(fd, 20, record - 20) if record >= 20 else b""
    if locator[:4] == b"PK\x06\x07":
        _, _, wide_at, volumes = struct.unpack("<IIQI", locator)
        wide = os.pread(fd, 56, wide_at)
        if wide[:4] != b"PK\x06\x06":
            # Bytes in front of the archive have moved the record; it still ends where its locator begins.
            wide_at = record - 20 - 56
            wide = os.pread(fd, 56, max(wide_at, 0))
        if wide[:4] != b"PK\x06\x06" or len(wide) < 56:
            raise ToolkitError(f"{path} is damaged", found="no ZIP64 end record", expected="a whole archive")
        disk, directory_disk, _, count, size, offset = struct.unpack_from("<IIQQQQ", wide, 16)
        record = wide_at
        disk = max(disk, volumes - 1)
    if disk or directory_disk:
        raise ToolkitError(f"{path} is one volume of a split archive", expected="a single file")
    start = record - size
    if start < offset or size < count * _ENTRY.itemsize:
        raise ToolkitError(f"{path} is damaged", found="a directory that does not fit into the file")
    return start, size, count, start - offset


def _entries(path: Path, directory: bytes, count: int) -> tuple[npt.NDArray[np.void], npt.NDArray[np.int64]]:
    """The fixed parts of all entries, and where each begins in ``directory``."""
    begins: list[int] = []
    at, lengths = 0, struct.Struct("<HHH").unpack_from
    try:
        while at < len(directory):
            begins.append(at)
            name, extra, comment = lengths(directory, at + 28)
            at += 46 + name + extra + comment
    except struct.error:
        at = len(directory) + 1
    if at > len(directory):
        raise ToolkitError(f"{path} is damaged", found="a directory that ends within an entry")
    if (len(begins) - count) % 65_536:  # archivers that know no ZIP64 write the lower 16 bits
        found = f"{len(begins):,} directory entries where its end record counts {count:,}"
        raise ToolkitError(f"{path} is damaged", found=found)
    buffer, positions = np.frombuffer(directory, np.uint8), np.array(begins, np.int64)
    fixed = buffer[positions[:, None] + np.arange(_ENTRY.itemsize)] if begins else buffer[:0]
    entries = np.ascontiguousarray(fixed).view(_ENTRY).reshape(-1)
    if (entries["signature"] != _ENTRY_SIGNATURE).any():
        raise ToolkitError(f"{path} is damaged", found="a directory entry without its signature")
    return entries, positions


def _wide_sizes(
    path: Path, directory: bytes, entries: npt.NDArray[np.void], positions: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Stored size, inflated size and offset of each entry, from the ZIP64 field where 32 bits are too few.

    The field (id 1) holds, in this order, only those of inflated size, stored size and offset whose 32-bit
    value is all ones (APPNOTE 4.5.3).
    """
    columns = [entries[name].astype(np.int64) for name in ("raw_size", "size", "offset")]
    buffer = np.frombuffer(directory, np.uint8)
    rows = np.flatnonzero(np.logical_or.reduce([column == _32BIT_MAX for column in columns]))
    if len(rows):
        at = positions[rows] + _ENTRY.itemsize + entries["name_length"][rows]
        ends = at + entries["extra_length"][rows]
        at = _find_wide_field(path, buffer, at, ends) + 4
        for column in columns:
            wide = column[rows] == _32BIT_MAX
            where = at[wide]
            if (where + 8 > ends[wide]).any():
                raise ToolkitError(f"{path} is damaged", found="a ZIP64 field that is too short")
            column[rows[wide]] = buffer[where[:, None] + np.arange(8)].view("<i8").reshape(-1)
            at = at + 8 * wide
    return columns[1], columns[0], columns[2]


def _find_wide_field(
    path: Path, buffer: npt.NDArray[np.uint8], at: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Where the extra field with id 1 begins, for every entry at once; other fields are stepped over."""
    at = at.copy()
    while True:
        if (at + 4 > ends).any():
            raise ToolkitError(f"{path} is damaged", found="an entry without the ZIP64 field it needs")
        head = buffer[at[:, None] + np.arange(4)].view("<u2").astype(np.int64)
        other = head[:, 0] != 1
        if not other.any():
            return at
        at[other] += 4 + head[other, 1]


def leaves(name: bytes) -> bool:
    """Whether a path is absolute or goes up, or ends somewhere else for the system than it reads."""
    parts = name.replace(b"\\", b"/").split(b"/")
    return name[:1] in (b"/", b"\\") or name[1:2] == b":" or b".." in parts or b"\0" in name


def _refuse_if(bad: npt.NDArray[np.bool_], names: Sequence[bytes], path: Path, what: str) -> None:
    if not bad.any():
        return
    rows = np.flatnonzero(bad)
    raise ToolkitError(
        f"{path} is refused: a member {what}",
        found=", ".join(names[i].decode(errors="replace") for i in rows[:3].tolist())
        + (f" and {len(rows) - 3:,} more" if len(rows) > 3 else ""),
        expected="an archive of frames as LTDv2 publishes it",
    )
