"""What the tests of an image do with containers, as a user of a checkout does it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import docker

PROFILE = os.environ.get("LTDV2_PROFILE", "cpu")
IMAGE = os.environ["LTDV2_IMAGE"]
BASE = os.environ.get("LTDV2_BASE", "")
UID, GID = 12345, 23456
ROOT = Path(__file__).resolve().parents[2]


def command(verb: str, workspace: Path, *arguments: str) -> list[str]:
    """The command line of ``toolkit container``."""
    places = [] if verb == "doctor" else [f"--runs={workspace / 'runs'}", f"--data={workspace / 'data'}"]
    options = [f"--profile={PROFILE}", f"--image={IMAGE}", f"--user={UID}:{GID}", *places]
    return [sys.executable, "-m", "toolkit", "container", verb, *options, *arguments]


def environment(workspace: Path, checkout: Path = ROOT) -> dict[str, str]:
    """That of a command of a checkout which works in ``workspace``."""
    return {**os.environ, "PYTHONPATH": str(checkout), "TOOLKIT_WORKSPACE": str(workspace)}


def call(
    line: Sequence[str], workspace: Path, *, checkout: Path = ROOT, **options: object
) -> subprocess.CompletedProcess[str]:
    if "input" not in options:
        options = {"stdin": subprocess.DEVNULL, **options}
    given = environment(workspace, checkout)
    return subprocess.run(line, cwd=workspace, env=given, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def containers(client: docker.DockerClient, workspace: Path, **options: Any) -> list[Any]:
    """Containers that work in ``workspace``; those that run, if the options do not say otherwise."""
    labelled = {"label": "io.ltdv2-toolkit.command"}
    found = client.containers.list(filters=labelled, ignore_removed=True, **options)
    return [one for one in found if f"TOOLKIT_WORKSPACE={workspace}" in one.attrs["Config"]["Env"]]


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


def clone(folder: Path) -> Path:
    """A checkout of this commit that builds on the same base, with the same authorities."""
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(folder)], check=True)
    for path in (ROOT / "docker/certs").glob("*.crt"):
        shutil.copy(path, folder / "docker/certs")
    return folder
