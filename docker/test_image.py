"""What an image must do, done: scripts/container-test runs this on a machine that has built one.

These tests are outside tests/, because they need a container engine. The commands inside run as a user that
neither the image nor the host knows.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import docker
import pytest

from toolkit.runs.folder import RunFiles
from toolkit.runs.heartbeat import Cursor

PROFILE = os.environ.get("LTDV2_PROFILE", "cpu")
UID, GID = 12345, 23456
ROOT = Path(__file__).resolve().parents[1]
SAY_WHEN_STOPPED = """
import signal, sys, time
def end(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    sys.exit(40 + number)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A folder with data/ and runs/ that belong to the user of the containers."""
    if os.geteuid() != 0:
        pytest.fail("these tests give folders to another user: run them as root")
    for folder in (tmp_path, tmp_path / "data", tmp_path / "runs"):
        folder.mkdir(exist_ok=True)
        os.chown(folder, UID, GID)
    return tmp_path


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


def command(verb: str, workspace: Path, *arguments: str) -> list[str]:
    """The command line of ``toolkit container``."""
    places = [] if verb == "doctor" else [f"--runs={workspace / 'runs'}", f"--data={workspace / 'data'}"]
    options = [f"--profile={PROFILE}", f"--user={UID}:{GID}", *places]
    return [sys.executable, "-m", "toolkit", "container", verb, *options, *arguments]


def call(line: Sequence[str], workspace: Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOOLKIT_WORKSPACE": str(workspace)}
    return subprocess.run(line, cwd=workspace, env=environment, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_the_doctor_knows_where_it_is(workspace: Path) -> None:
    start = time.monotonic()
    result = call(command("doctor", workspace, "--json"), workspace, stdout=subprocess.PIPE)
    print(f"\ndoctor: {time.monotonic() - start:.1f} s with the start of the container")
    report = json.loads(result.stdout)
    assert result.returncode == report["verdict"] <= 1
    if PROFILE == "cpu":
        assert report["recommendation"]["profile"]["value"] == "cpu"


def test_extra_certificate_authorities_are_trusted(workspace: Path) -> None:
    bundle = call(
        command("run", workspace, "cat", "/etc/ssl/certs/ca-certificates.crt"),
        workspace,
        stdout=subprocess.PIPE,
    )
    added = sorted((ROOT / "docker/certs").glob("*.crt"))
    print(f"\n{len(added)} extra certificate authorities")
    for path in added:
        first = path.read_text().split("-----BEGIN CERTIFICATE-----")[1].split()[0]
        assert first in bundle.stdout, path.name


def test_the_image_says_what_it_is(client: docker.DockerClient) -> None:
    labels = client.images.get(f"ltdv2-toolkit:{PROFILE}").labels
    assert labels["io.ltdv2-toolkit.profile"] == PROFILE
    assert labels["org.opencontainers.image.version"]
    assert labels["org.opencontainers.image.revision"]
    assert labels["org.opencontainers.image.licenses"] == "AGPL-3.0-or-later"


def test_output_streams_and_exit_status_come_through(workspace: Path) -> None:
    line = command("run", workspace, "--", "sh", "-c", "echo result; echo note >&2; exit 7")
    result = call(line, workspace, capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (7, "result\n", "note\n")


def test_the_data_is_read_only_unless_asked(workspace: Path) -> None:
    write = ["sh", "-c", "touch data/file"]
    assert call(command("run", workspace, *write), workspace, capture_output=True).returncode != 0
    assert call(command("run", workspace, "--writable-data", *write), workspace).returncode == 0
    assert (workspace / "data/file").stat().st_uid == UID


@pytest.mark.parametrize(
    ("number", "arrives"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM),  # the terminal was closed
    ],
)
def test_a_signal_reaches_the_command_inside(
    number: signal.Signals, arrives: signal.Signals, workspace: Path
) -> None:
    line = command("run", workspace, "python", "-c", SAY_WHEN_STOPPED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOOLKIT_WORKSPACE": str(workspace)}
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"got {arrives.name}\n"
    assert process.returncode == 40 + arrives


def test_stopping_the_container_reaches_the_command_inside(
    workspace: Path, client: docker.DockerClient
) -> None:
    line = command("run", workspace, "python", "-c", SAY_WHEN_STOPPED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOOLKIT_WORKSPACE": str(workspace)}
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (container,) = client.containers.list(filters={"label": "io.ltdv2-toolkit.command"})
        container.stop(timeout=30)
    assert process.returncode == 40 + signal.SIGTERM


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
        env={**os.environ, "PYTHONPATH": str(ROOT), "TOOLKIT_WORKSPACE": str(workspace)},
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
        (container,) = client.containers.list(filters={"label": "io.ltdv2-toolkit.command"})
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


def test_a_terminal_outside_is_a_terminal_inside(workspace: Path) -> None:
    ours, theirs = pty.openpty()
    line = command("run", workspace, "--", "sh", "-c", "test -t 1 && printf 'one\\rtwo'; exit 3")
    result = call(line, workspace, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert result.returncode == 3
    assert b"one\rtwo" in os.read(ours, 4096)


@contextmanager
def shell(workspace: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A shell in a container at its prompt, and the other end of its terminal; it is waited for."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOOLKIT_WORKSPACE": str(workspace)}
    line = command("shell", workspace)
    with subprocess.Popen(line, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while b"$" not in seen:
            seen += os.read(ours, 4096)
        yield process, ours


def test_a_shell_takes_what_is_typed(workspace: Path) -> None:
    with shell(workspace) as (process, terminal):
        os.write(terminal, b"id -u; exit 5\r")
    seen = b""
    while str(UID).encode() not in seen:
        seen += os.read(terminal, 4096)
    assert process.returncode == 5


def test_a_shell_ends_with_its_terminal(workspace: Path, client: docker.DockerClient) -> None:
    with shell(workspace) as (process, terminal):
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
    assert not client.containers.list(all=True, filters={"label": "io.ltdv2-toolkit.command=bash"})


@pytest.mark.timeout(1800)  # a suite in a test, with limits of its own
def test_the_convolution_tests_pass_inside(workspace: Path) -> None:
    tests = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "/opt/ltdv2/tests/patches"]
    inside = ["sh", "-c", f"cd /opt/ltdv2 && HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis {' '.join(tests)}"]
    assert call(command("run", workspace, *inside), workspace).returncode == 0


def test_the_demo_on_read_only_data_leaves_a_submission_that_the_caller_owns(workspace: Path) -> None:
    sample = ["toolkit", "dataset", "sample", "data", "--train=160", "--val=48", "--test=54"]
    assert call(command("run", workspace, "--writable-data", *sample), workspace).returncode == 0
    demo = ["/opt/ltdv2/scripts/demo", "data", "runs/demo"]
    assert call(command("run", workspace, *demo), workspace).returncode == 0
    archive = workspace / "runs/demo/submission.zip"
    assert (archive.stat().st_uid, archive.stat().st_gid) == (UID, GID)
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == ["predictions.json"]
