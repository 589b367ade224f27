"""A command in a container is as one outside: streams, status, signals, terminal; and it sees what it may."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
import urllib3
from container_commands import GID, UID, call, clone, command, containers, environment

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


@contextmanager
def waiting(workspace: Path, stderr: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A command in a container that is ready to be stopped and says by what; its end is waited for."""
    line = command("run", workspace, "python", "-c", SAY_WHEN_STOPPED)
    with subprocess.Popen(
        line, env=environment(workspace), stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


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
    with waiting(workspace) as process:
        process.send_signal(number)
        assert process.stdout is not None
        assert process.stdout.readline() == f"got {arrives.name}\n"
    assert process.returncode == 40 + arrives


def test_stopping_the_container_reaches_the_command_inside(
    workspace: Path, client: docker.DockerClient
) -> None:
    with waiting(workspace) as process:
        (container,) = containers(client, workspace)
        container.stop(timeout=30)
    assert process.returncode == 40 + signal.SIGTERM


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
    assert not containers(client, workspace, all=True)


def test_what_is_piped_in_arrives(workspace: Path) -> None:
    line = command("run", workspace, "sh", "-c", "wc -c; exit 3")
    result = call(line, workspace, input="a" * 300_000, stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout.strip()) == (3, "300000")


def test_a_command_that_ends_without_reading_its_input_ends(workspace: Path) -> None:
    result = call(command("run", workspace, "true"), workspace, input="a" * 300_000)
    assert result.returncode == 0


def test_a_killed_container_says_that_it_was_killed(workspace: Path, client: docker.DockerClient) -> None:
    with waiting(workspace, stderr=subprocess.PIPE) as process:
        containers(client, workspace)[0].kill()
        assert process.stderr is not None
        assert "was killed; found status 137" in process.stderr.read()
    assert process.returncode == 137


def test_a_command_that_is_killed_outside_leaves_nothing_behind_for_long(
    workspace: Path, client: docker.DockerClient
) -> None:
    with waiting(workspace) as process:
        process.kill()
    (left,) = containers(client, workspace)
    left.stop(timeout=30)
    assert call(command("run", workspace, "true"), workspace).returncode == 0
    assert not containers(client, workspace, all=True)


def test_a_detached_container_is_found_followed_and_stopped(
    workspace: Path, client: docker.DockerClient, tmp_path: Path
) -> None:
    """By its own checkout, which has no other, whatever else runs on the engine."""
    apart = clone(tmp_path / "apart")
    line = command("run", workspace, "--detach", "--name=ltdv2-apart", "python", "-c", SAY_WHEN_STOPPED)
    assert call(line, workspace, checkout=apart).returncode == 0
    container_command = [sys.executable, "-m", "toolkit", "container"]
    listed = call([*container_command, "ps", "--json"], workspace, checkout=apart, stdout=subprocess.PIPE)
    assert [one["name"] for one in json.loads(listed.stdout)] == ["ltdv2-apart"]
    with subprocess.Popen(
        [*container_command, "attach"],
        cwd=workspace,  # and not the checkout that the tests run in, whose toolkit would be taken
        env=environment(workspace, apart),
        stdout=subprocess.PIPE,
        text=True,
    ) as attached:
        assert attached.stdout is not None
        assert attached.stdout.readline() == "ready\n"
        elsewhere = call([*container_command, "stop", "ltdv2-apart"], workspace, capture_output=True)
        assert "no running container ltdv2-apart" in elsewhere.stderr
        assert call([*container_command, "stop"], workspace, checkout=apart).returncode == 0
        assert attached.stdout.readline() == "got SIGTERM\n"
    assert attached.returncode == 40 + signal.SIGTERM
    line = [*container_command, "logs", "ltdv2-apart"]
    printed = call(line, workspace, checkout=apart, stdout=subprocess.PIPE)
    assert printed.stdout == "ready\ngot SIGTERM\n"
    client.containers.get("ltdv2-apart").remove()


SAY_WHAT_IS_GIVEN = """
import http.server, os, pathlib, shutil
limits = map(pathlib.Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"))
memory = next(path for path in limits if path.exists()).read_text().strip()
shown = pathlib.Path("/shown/word").read_text() + ("" if os.access("/shown", os.W_OK) else " read-only")
page = pathlib.Path("/tmp/page")
page.mkdir()
os.chdir(page)
said = [os.environ["WORD"], os.environ["CALLERS"], shutil.disk_usage("/dev/shm").total, memory, shown]
page.joinpath("index.html").write_text("; ".join(map(str, said)))
http.server.HTTPServer(("", 8000), http.server.SimpleHTTPRequestHandler).handle_request()
"""


def test_what_docker_run_takes_reaches_the_container(
    workspace: Path, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = workspace / "shown"
    shown.mkdir()
    shown.chmod(0o777)
    (shown / "word").write_text("a file")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("CALLERS", "the caller's")
    given = ["-v", f"{shown}:/shown:ro", "-e", "WORD=a word", "-e", "CALLERS", "-p", f"127.0.0.1:{port}:8000"]
    given += ["--memory=512m", "--shm-size=96m", "--name=ltdv2-given", "--detach"]
    assert (
        call(command("run", workspace, *given, "python", "-c", SAY_WHAT_IS_GIVEN), workspace).returncode == 0
    )
    made = client.containers.get("ltdv2-given")
    try:
        retries = urllib3.Retry(connect=30, read=30, backoff_factor=0.1, backoff_max=1)
        page = urllib3.PoolManager().request("GET", f"http://127.0.0.1:{port}/", retries=retries)
    finally:
        made.remove(force=True)
    assert page.data.decode() == f"a word; the caller's; {96 << 20}; {512 << 20}; a file read-only"


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
