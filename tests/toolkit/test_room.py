"""CI says what disk it needs before it installs anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOM = Path(__file__).resolve().parents[2] / ".ci" / "room"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the script needs bash")


def room(folder: Path, free: int, installed: bool = False) -> subprocess.CompletedProcess[str]:
    """The script in a checkout of its own, on a disk with so many GB left."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOM, folder / ".ci")
    (folder / "bin").mkdir()
    df = folder / "bin" / "df"
    df.write_text(f"#!/bin/sh\necho Filesystem\necho /dev/x 1 1 {free * 1_000_000} 1% /disk\n")
    df.chmod(0o755)
    if installed:
        for name in (".venv", ".venv-rocm52"):
            (folder / name).mkdir()
            (folder / name / ".installed").touch()
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(folder / "cache")}
    command = ["bash", str(folder / ".ci" / "room")]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)


def test_a_full_disk_is_said_in_one_line_with_what_is_missing(tmp_path: Path) -> None:
    done = room(tmp_path, 6)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("ci: /disk has 6 GB free, install needs ") and ".venv (7)" in line


def test_what_is_installed_needs_no_room(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    new, old = room(tmp_path / "new", 0), room(tmp_path / "old", 0, installed=True)
    assert ".venv (7)" in new.stderr and ".venv" not in old.stderr


def test_room_enough_is_silence(tmp_path: Path) -> None:
    done = room(tmp_path, 500)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
