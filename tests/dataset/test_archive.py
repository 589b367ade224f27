from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_jpeg import jpeg

from toolkit.dataset import archive as archive_module
from toolkit.dataset.archive import ZipFrames, read_directory
from toolkit.dataset.frames import FrameError
from toolkit.dataset.index import DatasetIndex
from toolkit.errors import ToolkitError


def archive(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


names = st.text(st.characters(codec="utf-8", exclude_characters="\0/\\:.", categories=["L", "N"]), min_size=1)


@settings(max_examples=40)
@example(members={}, methods=[zipfile.ZIP_STORED] * 8, comment=b"PK\x05\x06", lead=b"")
@given(
    members=st.dictionaries(names.map("frames/{}.jpg".format), st.binary(max_size=3000), max_size=8),
    methods=st.lists(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]), min_size=8, max_size=8),
    comment=st.binary(max_size=30),
    lead=st.binary(max_size=20),
)
def test_members_are_what_zipfile_reads(
    tmp_path: Path, members: dict[str, bytes], methods: list[int], comment: bytes, lead: bytes
) -> None:
    """Stored and deflated, with a comment, with bytes in front of the archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for (name, data), method in zip(members.items(), methods, strict=False):
            file.writestr(name, data, method)
        file.comment = comment
    path = tmp_path / "a.zip"
    path.write_bytes(lead + buffer.getvalue())
    source = ZipFrames(path, read_directory(path))
    assert {source.name(i): source.read(i) for i in range(len(source))} == members
    for i in range(len(source)):
        source.read_checked(i)


def test_offsets_beyond_four_gigabytes_are_read(tmp_path: Path) -> None:
    """A sparse file: the second member begins after 5 GiB, so the archive needs ZIP64 fields."""
    path = tmp_path / "big.zip"
    with path.open("wb") as raw, zipfile.ZipFile(raw, "w") as file:
        file.writestr("frames/a.jpg", b"first")
        raw.seek(5 << 30)
        file.start_dir = raw.tell()
        file.writestr("frames/b.jpg", b"second")
    source = ZipFrames(path, read_directory(path))
    assert source.members.offsets[1] == 5 << 30
    assert [source.read(0), source.read(1)] == [b"first", b"second"]


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "frames/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", "../x.jpg", "x\0y.jpg"]
)
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.zip", {"frames/ok.jpg": b"x", "PLACEHOLDER": b"y"})
    data = path.read_bytes().replace(b"PLACEHOLDER", name.encode().ljust(11, b"_")[:11])
    if len(name) <= 11:
        path.write_bytes(data)
    else:
        archive(path, {"frames/ok.jpg": b"x", name: b"y"})
    with pytest.raises(ToolkitError, match=r"refused.*path"):
        read_directory(path)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"frames/a.jpg": b"x", "frames/b.jpg": b"y"})
    path.write_bytes(path.read_bytes().replace(b"frames/b.jpg", b"frames/a.jpg"))
    with pytest.raises(ToolkitError, match=r"occurs twice; found frames/a\.jpg"):
        read_directory(path)


@pytest.mark.parametrize("wide", [False, True])
def test_a_directory_of_more_members_than_its_end_record_counts_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide: bool
) -> None:
    if wide:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    path = archive(tmp_path / "a.zip", {f"frames/{i}.jpg": b"x" for i in range(5)})
    data = bytearray(path.read_bytes())
    at, kind = (data.rindex(b"PK\x06\x06") + 24, "<QQ") if wide else (data.rindex(b"PK\x05\x06") + 8, "<HH")
    assert struct.unpack_from(kind, data, at) == (5, 5)
    struct.pack_into(kind, data, at, 3, 3)
    path.write_bytes(data)
    with pytest.raises(ToolkitError, match=r"is damaged; found 5 directory entries.*counts 3"):
        read_directory(path)


def test_a_count_of_which_only_16_bits_were_written_is_no_damage(tmp_path: Path) -> None:
    """As archivers that know no ZIP64 leave it beyond 65,535 members."""
    one = archive(tmp_path / "one.zip", {"frames/00000": b""}).read_bytes()
    local, entry = one[:30], one[42:88]
    names = [b"frames/%05d" % i for i in range(65_540)]
    members = b"".join(local + name for name in names)
    directory = b"".join(entry[:42] + struct.pack("<I", 42 * i) + name for i, name in enumerate(names))
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 4, 4, len(directory), len(members), 0)
    path = tmp_path / "a.zip"
    path.write_bytes(members + directory + end)
    assert read_directory(path).names.tolist() == names


def test_a_member_that_claims_to_be_huge_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_module, "MAX_FRAME_BYTES", 1 << 20)
    path = archive(tmp_path / "a.zip", {"frames/bomb.jpg": b"\0" * (2 << 20)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ToolkitError, match=r"claims more than 1 MiB; found frames/bomb\.jpg"):
        read_directory(path)


@pytest.mark.parametrize(
    ("size", "refusal"),
    [(2 << 20, "claims more than 1 MiB"), (1_000, "is stored as it is and yet claims two sizes")],
)
def test_a_stored_member_that_understates_its_inflated_size_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, refusal: str
) -> None:
    monkeypatch.setattr(archive_module, "MAX_FRAME_BYTES", 1 << 20)
    path = archive(tmp_path / "a.zip", {"frames/bomb.jpg": b"\0" * size})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.rindex(b"PK\x01\x02") + 24, 10)
    path.write_bytes(data)
    with pytest.raises(ToolkitError, match=rf"{refusal}; found frames/bomb\.jpg"):
        read_directory(path)


def test_a_size_that_64_signed_bits_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("frames/a.jpg", b"x")
        file.filelist[0].file_size = file.filelist[0].compress_size = 2**64 - 5
    with pytest.raises(ToolkitError, match="claims more than 32 MiB"):
        read_directory(path)


def test_a_member_that_inflates_beyond_its_stated_size_is_stopped(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", {"frames/bomb.jpg": b"\0" * 100_000}, zipfile.ZIP_DEFLATED)
    data = path.read_bytes().replace(struct.pack("<I", 100_000), struct.pack("<I", 10))
    path.write_bytes(data)
    source = ZipFrames(path, read_directory(path))
    with pytest.raises(FrameError, match="stated size"):
        source.read(0)


def flag(data: bytearray, entry: int) -> None:
    data[entry + 8] |= 1


def method(data: bytearray, entry: int) -> None:
    data[entry + 10] = 12


def volume(data: bytearray, entry: int) -> None:
    data[data.rindex(b"PK\x05\x06") + 4] = 1


def elsewhere(data: bytearray, entry: int) -> None:
    data[entry + 34] = 1


def volumes(data: bytearray, entry: int) -> None:
    end = data.rindex(b"PK\x05\x06")
    count, size, offset = struct.unpack_from("<HII", data, end + 10)
    wide = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, size, offset)
    data[end:end] = wide + struct.pack("<IIQI", 0x07064B50, 0, end, 2)


def overlap(data: bytearray, entry: int) -> None:
    data[entry + 20 : entry + 24] = struct.pack("<I", 1 << 20)


def signature(data: bytearray, entry: int) -> None:
    data[entry : entry + 2] = b"XX"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flag, "encrypted"),
        (method, "unknown compression"),
        (volume, "split archive"),
        (volumes, "split archive"),
        (elsewhere, "another volume of a split archive"),
        (overlap, "overlaps"),
        (signature, "damaged"),
    ],
)
def test_an_archive_that_cannot_be_trusted_is_refused(
    tmp_path: Path, damage: Callable[[bytearray, int], None], reason: str
) -> None:
    path = archive(tmp_path / "a.zip", {"frames/a.jpg": jpeg(), "frames/b.jpg": jpeg(1)})
    data = bytearray(path.read_bytes())
    damage(data, data.index(b"PK\x01\x02"))
    path.write_bytes(data)
    with pytest.raises(ToolkitError, match=reason):
        read_directory(path)


def test_damaged_archives_never_raise_anything_else(tmp_path: Path) -> None:
    """Cut anywhere, or with bytes changed: refused, or read, or a FrameError; never another exception."""
    original = archive(tmp_path / "a.zip", {f"frames/{i}.jpg": jpeg(i) for i in range(4)}).read_bytes()
    rng = random.Random(11)
    path = tmp_path / "b.zip"
    for _ in range(400):
        data = bytearray(original)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        for _ in range(rng.randrange(1, 6)):
            start = max(len(data) - 400, 0) if rng.random() < 0.7 else 0
            if data:
                data[rng.randrange(start, len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            source = ZipFrames(path, read_directory(path))
            for row in range(len(source)):
                source.name(row)
                source.read_checked(row)
        except ToolkitError:
            pass


def test_an_archive_that_changed_after_prepare_is_noticed(index: DatasetIndex, tmp_path: Path) -> None:
    source = index.split("train").frames()
    assert isinstance(source, ZipFrames)
    other = tmp_path / "frames.zip"
    other.write_bytes(b"\0" * 100 + (index.data / "frames.zip").read_bytes())
    with pytest.raises(FrameError, match="not where the index says"):
        ZipFrames(other, source.members).read(3)


def test_another_member_at_the_place_of_a_frame_is_noticed(tmp_path: Path) -> None:
    names = ("frames/a.jpg", "frames/b.jpg")
    members = read_directory(archive(tmp_path / "a.zip", dict.fromkeys(names, b"x")))
    other = archive(tmp_path / "b.zip", dict.fromkeys(reversed(names), b"x"))
    with pytest.raises(
        FrameError, match=r"a\.jpg is not where the index says.*found frames/b\.jpg at byte 0"
    ):
        ZipFrames(other, members).read(0)


def test_an_archive_that_may_not_be_read_is_no_reason_to_download_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the refusal is planted."""
    archive = tmp_path / "frames.zip"
    archive.write_bytes(b"PK")

    def closed(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(
        ToolkitError, match=r"cannot read .*; let this user read it: chmod a\+r .*frames\.zip"
    ):
        read_directory(archive)
