"""Users of one engine run their own code, from nothing to a zip."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import docker
import pytest
from container_commands import BASE, GID, PROFILE, UID, clone, write_wheel


def make(folder: Path, line: str, *, other_user: bool = False) -> subprocess.CompletedProcess[str]:
    """What a user of the checkout types; the other user may use the engine and read this one's Python."""
    left_out = ("TOOLKIT_WORKSPACE", "MAKEFLAGS", "MAKELEVEL")
    given = {name: value for name, value in os.environ.items() if name not in left_out}
    environment = Path(sys.executable).parents[1]
    words = [*shlex.split(line), f"VENV={environment}", "-o", f"{environment}/.installed"]
    if other_user:
        allowed = f"--groups={Path('/var/run/docker.sock').stat().st_gid}"
        reads = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        words = ["setpriv", f"--reuid={UID}", f"--regid={GID}", allowed, *reads, *words]
        given["HOME"] = str(folder)
    return subprocess.run(words, cwd=folder, env=given, capture_output=True, text=True, check=False)


@pytest.fixture
def checkouts(client: docker.DockerClient) -> Iterator[tuple[Path, Path]]:
    """Two checkouts, the second of another commit and another user; their images are removed."""
    with tempfile.TemporaryDirectory(prefix="checkouts-") as folder:
        Path(folder).chmod(0o755)
        one, other = clone(Path(folder, "one")), clone(Path(folder, "other"))
        text = (other / "toolkit/__init__.py").read_text()
        (other / "toolkit/__init__.py").write_text(text.replace('__version__ = "', '__version__ = "9.'))
        git = ["git", "-C", str(other), "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
        subprocess.run([*git, "commit", "-qam", "Be another"], check=True)
        subprocess.run(["chown", "-R", f"{UID}:{GID}", str(other)], check=True)
        yield one, other
        for user, checkout in ((os.getuid(), one), (UID, other)):
            owner = hashlib.sha256(f"{user}:{checkout}".encode()).hexdigest()[:16]
            labelled = {"label": f"io.ltdv2-toolkit.builder={owner}"}
            for image in client.images.list("ltdv2-toolkit", filters=labelled):
                for tag in image.tags:
                    client.images.remove(tag)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The files of a folder at an address of this machine, for a build that has no other network."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_two_users_with_a_checkout_each_run_their_own_code_and_packages_and_six_commands_make_a_zip(
    checkouts: tuple[Path, Path], workspace: Path
) -> None:
    one, other = checkouts
    options = f"PROFILE={PROFILE} BASE={BASE}"
    write_wheel(workspace / "extra_wish-1.0-py3-none-any.whl")
    with served(workspace) as address:
        (other / "docker/extra.txt").write_text(f"--no-index\n--find-links {address}\nextra-wish\n")
        for folder in (one, other, one):  # the second build leaves the first alone
            line = f"make -s docker-run {options} ARGS='toolkit --version'"
            version = make(folder, line, other_user=folder == other)
            assert version.returncode == 0, version.stderr
            assert ("ltdv2-toolkit 9." in version.stdout) == (folder == other)
    assert (other / "runs").stat().st_uid == UID
    wish = f"make -s docker-run {options} ARGS='python -c \"import extra_wish; print(extra_wish.VALUE)\"'"
    assert make(other, wish, other_user=True).stdout == "42\n"
    assert make(one, wish).returncode != 0
    (other / "toolkit/__init__.py").write_text(
        (one / "toolkit/__init__.py").read_text()
    )  # the image of the commit is old now
    removed = make(other, "make -s docker-prune", other_user=True).stdout.splitlines()
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
