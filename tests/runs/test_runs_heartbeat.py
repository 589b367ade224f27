"""The cursor: which batch is named when, and what it costs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.runs.folder import Batch, RunFiles
from toolkit.runs.heartbeat import Cursor

batches = st.builds(Batch, st.integers(0, 3), st.integers(0, 40), st.integers(1, 4))


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was written, write by write."""
    done: list[bytes] = []
    write = os.pwrite

    def watched(handle: int, content: bytes, offset: int) -> int:
        done.append(content)
        return write(handle, content, offset)

    monkeypatch.setattr(os, "pwrite", watched)
    return done


def test_a_batch_that_is_named_already_is_not_written_again(tmp_path: Path, writes: list[bytes]) -> None:
    files = RunFiles(tmp_path)
    cursor = Cursor(files)
    for number in range(10):
        for _ in ("as the one that follows", "as the one that begins"):
            cursor.set(Batch(0, 8 * number, 8))
            assert Cursor.read(files) == Batch(0, 8 * number, 8)
    assert len(writes) == 10


def test_a_write_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, full = RunFiles(tmp_path), [False]
    write = os.pwrite

    def on_a_full_disk(handle: int, content: bytes, offset: int) -> int:
        if full[0]:
            raise OSError(errno.ENOSPC, "no space left on device")
        return write(handle, content, offset)

    monkeypatch.setattr(os, "pwrite", on_a_full_disk)
    cursor, first, second = Cursor(files), Batch(0, 0, 8), Batch(0, 8, 8)
    cursor.set(first)
    full[0] = True
    cursor.set(second)
    assert Cursor.read(files) == first
    full[0] = False
    cursor.set(second)
    assert Cursor.read(files) == second


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(named=st.lists(batches, min_size=1, max_size=20))
def test_the_file_names_the_newest_batch_at_any_time(tmp_path: Path, named: list[Batch]) -> None:
    files = RunFiles(tmp_path)
    cursor = Cursor(files)
    for batch in named:
        cursor.set(batch)
        assert Cursor.read(files) == batch
