"""What an image must do, done: scripts/container-test runs this on a machine that has built one.

These tests are outside tests/, because they need a container engine. The commands inside run as a user that
neither the image nor the host knows.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import re
import shlex
import shutil
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
from typing import Any

import docker
import pytest

from toolkit.runs.folder import RunFiles
from toolkit.runs.heartbeat import Cursor

PROFILE = os.environ.get("LTDV2_PROFILE", "cpu")
IMAGE = os.environ["LTDV2_IMAGE"]
BASE = os.environ.get("LTDV2_BASE", "")
UID, GID = 12345, 23456
ROOT = Path(__file__).resolve().parents[1]
SAY_WHEN_STOPPED = """
import os, signal, sys, time
def end(number, frame):  # which may interrupt the print below, so that it prints nothing itself
    os.write(1, f"got {signal.Signals(number).name}\\n".encode())
    sys.exit(40 + number)
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True, scope="session")
def terminals_may_close() -> None:
    """Under ``nohup`` a closed terminal would stop nothing, as it should not."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
    options = [f"--profile={PROFILE}", f"--image={IMAGE}", f"--user={UID}:{GID}", *places]
    return [sys.executable, "-m", "toolkit", "container", verb, *options, *arguments]


def environment(workspace: Path) -> dict[str, str]:
    """That of a command which works in ``workspace``."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "TOOLKIT_WORKSPACE": str(workspace)}


def call(line: Sequence[str], workspace: Path, **options: object) -> subprocess.CompletedProcess[str]:
    if "input" not in options:
        options = {"stdin": subprocess.DEVNULL, **options}
    given = environment(workspace)
    return subprocess.run(line, cwd=workspace, env=given, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def running(client: docker.DockerClient) -> list[Any]:
    """Containers of this project that run."""
    return client.containers.list(filters={"label": "io.ltdv2-toolkit.command"})


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
    image = client.images.get(IMAGE)
    labels = image.labels
    assert labels["io.ltdv2-toolkit.profile"] == PROFILE
    assert labels["org.opencontainers.image.version"]
    assert labels["org.opencontainers.image.revision"]
    assert labels["org.opencontainers.image.licenses"] == "AGPL-3.0-or-later"
    assert labels["org.opencontainers.image.created"].endswith("Z")
    assert labels["org.opencontainers.image.base.name"]
    assert image.attrs["Config"]["Healthcheck"]["Test"] == ["CMD", "/opt/build/healthcheck"]
    assert image.attrs["Config"]["User"] == "1000:1000"


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
    with subprocess.Popen(line, env=environment(workspace), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == f"got {arrives.name}\n"
    assert process.returncode == 40 + arrives


def test_stopping_the_container_reaches_the_command_inside(
    workspace: Path, client: docker.DockerClient
) -> None:
    line = command("run", workspace, "python", "-c", SAY_WHEN_STOPPED)
    with subprocess.Popen(line, env=environment(workspace), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (container,) = running(client)
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
        (container,) = running(client)
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
    line = command("shell", workspace)
    with subprocess.Popen(
        line, env=environment(workspace), stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
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


def test_what_is_piped_in_arrives(workspace: Path) -> None:
    line = command("run", workspace, "sh", "-c", "wc -c; exit 3")
    result = call(line, workspace, input="a" * 300_000, stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout.strip()) == (3, "300000")


def test_a_command_that_ends_without_reading_its_input_ends(workspace: Path) -> None:
    result = call(command("run", workspace, "true"), workspace, input="a" * 300_000)
    assert result.returncode == 0


def test_a_killed_container_says_that_it_was_killed(workspace: Path, client: docker.DockerClient) -> None:
    line = command("run", workspace, "python", "-c", SAY_WHEN_STOPPED)
    with subprocess.Popen(
        line, env=environment(workspace), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        running(client)[0].kill()
        assert "was killed; found status 137" in process.stderr.read()
    assert process.returncode == 137


def test_a_command_that_is_killed_outside_leaves_nothing_behind_for_long(
    workspace: Path, client: docker.DockerClient
) -> None:
    line = command("run", workspace, "python", "-c", SAY_WHEN_STOPPED)
    with subprocess.Popen(line, env=environment(workspace), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
    (left,) = running(client)
    left.stop(timeout=30)
    assert call(command("run", workspace, "true"), workspace).returncode == 0
    assert not client.containers.list(all=True, filters={"label": "io.ltdv2-toolkit.command"})


def test_a_detached_container_is_found_followed_and_stopped(
    workspace: Path, client: docker.DockerClient
) -> None:
    line = command("run", workspace, "--detach", "--name=ltdv2-apart", "python", "-c", SAY_WHEN_STOPPED)
    assert call(line, workspace).returncode == 0
    container_command = [sys.executable, "-m", "toolkit", "container"]
    listed = call([*container_command, "ps", "--json"], workspace, stdout=subprocess.PIPE)
    assert [one["name"] for one in json.loads(listed.stdout)] == ["ltdv2-apart"]
    with subprocess.Popen(
        [*container_command, "attach"], env=environment(workspace), stdout=subprocess.PIPE, text=True
    ) as attached:
        assert attached.stdout is not None
        assert attached.stdout.readline() == "ready\n"
        assert call([*container_command, "stop"], workspace).returncode == 0
        assert attached.stdout.readline() == "got SIGTERM\n"
    assert attached.returncode == 40 + signal.SIGTERM
    printed = call([*container_command, "logs", "ltdv2-apart"], workspace, stdout=subprocess.PIPE)
    assert printed.stdout == "ready\ngot SIGTERM\n"
    client.containers.get("ltdv2-apart").remove()


def test_a_verb_has_no_rights_that_it_does_not_need(workspace: Path, client: docker.DockerClient) -> None:
    """What a verb runs in, looked at from inside by a stand-in for the toolkit."""
    spy = workspace / "spy"
    spy.write_text(
        "#!/bin/sh\ngrep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status\n"
        "touch /opt/toolkit/x 2>/dev/null || touch /usr/x 2>/dev/null || echo sealed\n"
        "touch /tmp/x runs/x && echo writes\n"
    )
    spy.chmod(0o755)
    line = command("runs", workspace, "-v", f"{spy}:/opt/toolkit/bin/toolkit:ro")
    result = call(line, workspace, stdout=subprocess.PIPE)
    assert result.stdout.split() == [
        *["CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1", "sealed", "writes"]
    ]


def test_runs_that_cannot_be_written_are_one_line(workspace: Path) -> None:
    os.chown(workspace / "runs", 0, 0)
    (workspace / "data/Train.json").touch()
    result = call(command("train", workspace), workspace, capture_output=True)
    assert result.returncode == 1
    assert f"user {UID}:{GID} of this container cannot write to {workspace}/runs" in result.stderr
    assert "found 0:0, mode 755" in result.stderr
    assert "Traceback" not in result.stderr


def test_linked_data_in_a_folder_with_a_colon_is_verified(workspace: Path, tmp_path: Path) -> None:
    sample = ["toolkit", "dataset", "sample", str(workspace / "data"), "--train=4", "--val=2", "--test=2"]
    assert call(command("run", workspace, "--writable-data", *sample), workspace).returncode == 0
    linked, store = workspace / "a: b", tmp_path / "store"
    linked.mkdir()
    (workspace / "data").rename(store)
    for number, file in enumerate(sorted(store.iterdir())):
        if file.is_file():
            (linked / file.name).symlink_to(file if number % 2 else os.path.relpath(file, linked))
    os.chown(linked, UID, GID)
    line = [arg for arg in command("prepare", workspace) if not arg.startswith("--data")]
    assert call([*line, f"--data={linked}"], workspace).returncode == 0
    line = [arg for arg in command("verify", workspace) if not arg.startswith("--data")]
    assert call([*line, f"--data={linked}", "--deep"], workspace).returncode == 0


def write_wheel(path: Path) -> None:
    """A package of one module, for ``pip install`` without a network."""
    files = {
        "extra_wish.py": "VALUE = 41 + 1\n",
        "extra_wish-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: extra-wish\nVersion: 1.0\n",
        "extra_wish-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "extra_wish-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def test_something_can_be_built_on_top_and_torch_stays(workspace: Path, client: docker.DockerClient) -> None:
    wheel, derived = "extra_wish-1.0-py3-none-any.whl", "ltdv2-toolkit-test:on-top"
    write_wheel(workspace / wheel)
    (workspace / "Dockerfile").write_text(
        f"FROM {IMAGE}\nUSER root\nCOPY {wheel} /tmp/\nRUN pip install --no-index /tmp/{wheel}\n"
        "RUN ! pip install --no-index 'torch==1.0'\nUSER 1000:1000\n"
    )
    client.images.build(path=str(workspace), tag=derived, rm=True, forcerm=True)
    try:
        show = ["python", "-c", "import extra_wish, torch; print(extra_wish.VALUE)"]
        line = command("run", workspace, f"--image={derived}", *show)
        assert call(line, workspace, stdout=subprocess.PIPE).stdout == "42\n"
    finally:
        client.images.remove(derived)


def test_a_plain_docker_run_takes_a_verb(workspace: Path, client: docker.DockerClient) -> None:
    volumes = {str(workspace): {"bind": "/workspace", "mode": "rw"}}
    options = {"user": f"{UID}:{GID}", "volumes": volumes, "remove": True}
    client.containers.run(IMAGE, ["sample", "data/x", "--train=4", "--val=2", "--test=2"], **options)
    assert (workspace / "data/x/frames.zip").stat().st_uid == UID
    assert b"ltdv2-toolkit" in client.containers.run(IMAGE, ["--version"], **options)


@pytest.mark.timeout(1800)  # a suite in a test, with limits of its own
def test_the_convolution_tests_pass_inside(workspace: Path) -> None:
    # What computes here; the other files of the folder examine the source, which is the same everywhere.
    files = "test_convolution_*.py test_normalization.py test_patches_*.py test_triton_cuda.py"
    tests = f"python -m pytest -q -p no:cacheprovider {files} test_triton_route.py"
    script = f"cd /opt/ltdv2/tests/patches && HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis {tests}"
    inside = ["sh", "-c", script]
    assert call(command("run", workspace, *inside), workspace).returncode == 0


def test_the_demo_on_read_only_data_leaves_a_submission_that_the_caller_owns(workspace: Path) -> None:
    sample = ["toolkit", "dataset", "sample", "data", "--train=320", "--val=48", "--test=54"]
    assert call(command("run", workspace, "--writable-data", *sample), workspace).returncode == 0
    demo = ["/opt/ltdv2/scripts/demo", "data", "runs/demo"]
    assert call(command("run", workspace, *demo), workspace).returncode == 0
    archive = workspace / "runs/demo/submission.zip"
    assert (archive.stat().st_uid, archive.stat().st_gid) == (UID, GID)
    with zipfile.ZipFile(archive) as opened:
        assert opened.namelist() == ["predictions.json"]


def clone(folder: Path) -> Path:
    """A checkout of this commit that builds on the same base, with the same authorities."""
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(folder)], check=True)
    for path in (ROOT / "docker/certs").glob("*.crt"):
        shutil.copy(path, folder / "docker/certs")
    return folder


def make(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """What a user of the checkout types."""
    left_out = ("TOOLKIT_WORKSPACE", "MAKEFLAGS", "MAKELEVEL")
    given = {name: value for name, value in os.environ.items() if name not in left_out}
    environment = Path(sys.executable).parents[1]
    words = [*shlex.split(line), f"VENV={environment}", "-o", f"{environment}/.installed"]
    return subprocess.run(words, cwd=folder, env=given, capture_output=True, text=True, check=False)


@pytest.fixture
def checkouts(tmp_path: Path, client: docker.DockerClient) -> Iterator[tuple[Path, Path]]:
    """Two checkouts, the second of another commit; their images are removed."""
    one, other = clone(tmp_path / "one"), clone(tmp_path / "other")
    text = (other / "toolkit/__init__.py").read_text()
    (other / "toolkit/__init__.py").write_text(text.replace('__version__ = "', '__version__ = "9.'))
    git = ["git", "-C", str(other), "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    subprocess.run([*git, "commit", "-qam", "Be another"], check=True)
    yield one, other
    for folder in (one, other):
        owner = hashlib.sha256(f"{os.getuid()}:{folder}".encode()).hexdigest()[:16]
        for image in client.images.list(
            "ltdv2-toolkit", filters={"label": f"io.ltdv2-toolkit.builder={owner}"}
        ):
            for tag in image.tags:
                client.images.remove(tag)


def test_two_checkouts_on_one_engine_run_their_own_code_and_six_commands_make_a_zip(
    checkouts: tuple[Path, Path], workspace: Path
) -> None:
    one, other = checkouts
    options = f"PROFILE={PROFILE} BASE={BASE}"
    for folder in (one, other, one):  # the second build leaves the first alone
        version = make(folder, f"make -s docker-run {options} ARGS='toolkit --version'")
        assert version.returncode == 0, version.stderr
        assert ("ltdv2-toolkit 9." in version.stdout) == (folder == other)
    (other / "toolkit/__init__.py").write_text(
        (one / "toolkit/__init__.py").read_text()
    )  # the image of the commit is old now
    removed = make(other, "make -s docker-prune").stdout.splitlines()
    assert len(removed) == 1 and removed[0].startswith("image ltdv2-toolkit:cpu-")
    line = f"make docker-sample {options} DATA=data/small ARGS='--train=64 --val=16 --test=8'"
    typed = []
    while line:
        done = make(one, line)
        assert done.returncode == 0, done.stderr
        typed.append(line.split()[1])
        following = re.findall(r"^next: `(.*)`$", done.stderr, flags=re.MULTILINE)
        line = following[-1] if following else ""
    assert typed == [
        f"docker-{verb}" for verb in ["sample", "prepare", "train", "evaluate", "predict", "submit"]
    ]
    assert zipfile.ZipFile(one / "runs/train-1/submission.zip").namelist() == ["predictions.json"]
    written = json.loads((one / "runs/train-1/weights/environment.json").read_text())
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=one, capture_output=True, text=True, check=True)
    assert written["commit"] == head.stdout.strip()
