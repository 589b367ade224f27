from __future__ import annotations

import os
import pickle
import random
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from small_jpeg import jpeg

from toolkit.dataset import frames
from toolkit.dataset.frames import FolderFrames, FrameError, Frames, decode_grey, decode_listening
from toolkit.dataset.index import DatasetIndex


def test_folder_and_archive_give_the_same_pixels(index: DatasetIndex, tmp_path: Path) -> None:
    split = index.split("train")
    zipped = split.frames()
    with zipfile.ZipFile(index.data / "frames.zip") as file:
        file.extractall(tmp_path)
    folder = FolderFrames(tmp_path, split.file_names)
    for row in range(len(split)):
        np.testing.assert_array_equal(zipped.grey(row), folder.grey(row))
        assert zipped.grey(row).shape == (split.heights[row], split.widths[row])


def _read_all(source: Frames) -> list[bytes]:
    return [source.read(row) for row in range(len(source))]


def test_threads_and_spawned_processes_read_the_same(index: DatasetIndex) -> None:
    source = index.split("val").frames()
    expected = _read_all(source)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(_read_all, [source] * 16):
            assert found == expected
    with get_context("spawn").Pool(1) as processes:
        assert processes.apply(_read_all, (source,)) == expected
    assert pickle.loads(pickle.dumps(source)).read(0) == expected[0]


def test_a_cut_off_jpeg_does_not_decode() -> None:
    data = jpeg()
    assert decode_grey("x", data).shape == (24, 32)
    for part in (data[: len(data) // 2], data[:-2], b"", b"no image at all"):
        with pytest.raises(FrameError, match="frame x"):
            decode_grey("x", part)


def claiming(height: int, width: int) -> bytes:
    data = bytearray(jpeg())
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


@pytest.mark.parametrize("height, width", [(65_500, 65_500), (30_000, 30_000), (1, 65_535)])
def test_a_jpeg_that_claims_to_be_huge_is_refused_undecoded(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int
) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_PIXELS", 24 * 32)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(FrameError, match=f"x is too large.*claim {width:,} x {height:,} pixels"):
        decode_grey("x", claiming(height, width))


def test_the_size_of_a_jpeg_is_found_behind_other_segments_and_fill_bytes() -> None:
    data = jpeg()
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data
    assert decode_grey("x", data[:2] + thumbnail + b"\xff\xff" + data[2:]).shape == (24, 32)


def test_what_the_decoder_throws_names_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    def throw(*_: object) -> None:
        raise cv2.error("out of memory")

    monkeypatch.setattr(cv2, "imdecode", throw)
    with pytest.raises(FrameError, match="frame x does not decode"):
        decode_grey("x", jpeg())


def test_damaged_jpegs_decode_or_name_the_frame() -> None:
    rng = random.Random(5)
    for _ in range(300):
        data = bytearray(jpeg())
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(2, 700)] = rng.randrange(256)
        with suppress(FrameError):
            assert decode_grey("x", bytes(data)).size <= frames.MAX_FRAME_PIXELS


def test_a_frame_error_survives_pickling() -> None:
    error = FrameError("frames/a.jpg", "is cut off", "1 byte", "2")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.name, copy.line()) == (error.name, error.line())


def test_bytes_behind_the_end_marker_are_no_fault() -> None:
    data = jpeg()
    for more in (bytes(512), random.Random(1).randbytes(700), data):
        np.testing.assert_array_equal(decode_grey("x", data + more), decode_grey("x", data))


def test_a_jpeg_cut_off_before_other_bytes_is_refused() -> None:
    data = jpeg()
    for more in (bytes(512), b"\n" * 70):
        with pytest.raises(FrameError, match="frame x is cut off"):
            decode_grey("x", data[: len(data) // 2] + more)


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_frame() -> None:
    data = jpeg()
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data
    with pytest.raises(FrameError, match="frame x is cut off"):
        decode_grey("x", data[:2] + thumbnail + data[2:-2] + bytes(512))


def test_what_the_decoder_warns_of_is_heard_and_the_rest_of_standard_error_goes_on(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpeg()
    assert decode_listening("x", data)[1] == ""
    pixels, warning = decode_listening("x", data[: len(data) // 2] + b"\xff\xd9")
    assert pixels.shape == (24, 32)
    assert "premature end of data segment" in warning
    assert capfd.readouterr().err == ""
    decode = frames.decode_grey

    def speaking(*arguments: Any) -> Any:
        os.write(2, b"progress 12 %\n")
        return decode(*arguments)

    monkeypatch.setattr(frames, "decode_grey", speaking)
    assert decode_listening("x", data)[1] == ""
    assert capfd.readouterr().err == "progress 12 %\n"
    with pytest.raises(FrameError):
        decode_listening("x", b"no image")
    os.write(2, b"still open\n")
    assert capfd.readouterr().err == "progress 12 %\nstill open\n"
