"""A workspace of a user that neither the image nor the host knows."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from container_commands import GID, UID


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
