"""A training in a container saves itself when stopped, and goes on; the demo leaves its zip to the caller."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import termios
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import docker
import pytest
from container_commands import GID, UID, call, command, containers, environment

from toolkit.runs.folder import RunFiles
from toolkit.runs.heartbeat import Cursor


@pytest.fixture
def prepared(workspace: Path) -> Path:
    """A workspace with data that a container prepared, read-only: the index is in the named volume."""
    sample = ["toolkit", "dataset", "sample", "data", "--train=96", "--val=16", "--test=8"]
    assert call(command("run", workspace, "--writable-data", *sample), workspace).returncode == 0
    assert call(command("run", workspace, "toolkit", "dataset", "prepare", "data"), workspace).returncode == 0
    return workspace


@contextmanager
def training(
    workspace: Path, *arguments: str, terminal: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A training in a container, in the middle of an epoch; at the end it is waited for.

    With a terminal it runs as a shell would run it there: keys that make signals make them.
    """
    files = RunFiles(workspace / "runs/first")
    seen = {Cursor.read(files)}
    with subprocess.Popen(
        command("train", workspace, "--name=first", "--device=cpu", *arguments),
        env=environment(workspace),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=None if terminal is None else lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0),
    ) as process:
        while process.poll() is None and len(seen) < 3:  # the batch that is due, and the one behind it
            time.sleep(0.05)
            seen.add(Cursor.read(files))
        yield process


def copy(terminal: int) -> None:
    """Show what is written to the other end of a terminal, until that is closed."""
    with suppress(OSError):
        while data := os.read(terminal, 4096):
            os.write(2, data)


def saved(workspace: Path) -> int:
    """Images that the newest checkpoint of the run has been trained on."""
    found = (workspace / "runs/first/checkpoints").glob("image-*.pt")
    return max(int(path.name.split("-")[1]) for path in found)


def test_a_stopped_training_is_saved_and_goes_on(prepared: Path, client: docker.DockerClient) -> None:
    with training(prepared, "--preset=smoke", "--epochs=2", "--imgsz=64") as process:
        (container,) = containers(client, prepared)
        assert container.exec_run("/opt/build/healthcheck").output == b"alive\n"
        start = time.monotonic()
        container.stop()
        process.wait()
    print(f"\ndocker stop: {time.monotonic() - start:.1f} s until the training was saved and gone")
    assert process.returncode == 75
    stopped = saved(prepared)

    ours, theirs = pty.openpty()
    threading.Thread(target=copy, args=(ours,), daemon=True).start()
    with training(prepared, "--resume", terminal=theirs) as process:
        start = time.monotonic()
        os.write(ours, b"\x03")
        process.wait()
    os.close(theirs)
    print(f"\nCtrl-C: {time.monotonic() - start:.1f} s until the training was saved and gone")
    assert process.returncode == 130
    interrupted = saved(prepared)
    assert interrupted > stopped > 0

    with training(prepared, "--resume") as process:
        place = Cursor.read(RunFiles(prepared / "runs/first"))
        process.wait()
    assert place is not None
    assert 96 * place.epoch + place.first + place.size > interrupted  # no image is trained twice
    assert process.returncode == 0
    assert len((prepared / "runs/first/results.csv").read_text().splitlines()) == 3


def test_the_demo_on_read_only_data_leaves_a_submission_that_the_caller_owns(workspace: Path) -> None:
    sample = ["toolkit", "dataset", "sample", "data", "--train=48", "--val=16", "--test=18"]
    assert call(command("run", workspace, "--writable-data", *sample), workspace).returncode == 0
    demo = ["/opt/ltdv2/scripts/demo", "data", "runs/demo"]
    assert call(command("run", workspace, *demo), workspace).returncode == 0
    archive = workspace / "runs/demo/submission.zip"
    assert (archive.stat().st_uid, archive.stat().st_gid) == (UID, GID)
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == ["predictions.json"]
