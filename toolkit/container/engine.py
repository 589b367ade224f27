"""The connection to the container engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from docker import DockerClient

OLDEST_API = (1, 40)
"""API of Docker 19.03, the first engine that is known to take every option that is used here."""


@contextmanager
def engine() -> Iterator[DockerClient]:
    """A connection to the container engine.

    Raises:
        ToolkitError: no engine answers, this user may not speak to it, or it is too old.
    """
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=60)
        found = client.version()["ApiVersion"]
    except DockerException as error:
        raise _engine_error(str(error)) from error
    except OSError as error:  # requests' connection errors are OSErrors
        raise _engine_error(str(error)) from error
    try:
        if tuple(int(part) for part in found.split(".")) < OLDEST_API:
            raise ToolkitError(
                "the container engine is too old",
                f"API {found}",
                f"API {'.'.join(map(str, OLDEST_API))} or later (Docker 19.03)",
                "update the engine",
            )
        yield client
    finally:
        client.close()


def _engine_error(text: str) -> ToolkitError:
    where = os.environ.get("DOCKER_HOST", "/var/run/docker.sock")
    if "Permission denied" in text or "PermissionError" in text:
        return ToolkitError(
            "this user may not use the container engine",
            f"no permission on {where}",
            fix="sudo usermod -aG docker $USER and log in again",
        )
    if "no longer supported" in text:  # docker-py's own lower limit
        return ToolkitError("the container engine is too old", text, fix="update the engine")
    return ToolkitError(
        "no container engine",
        f"{' '.join(text.split())} on {where}",
        "a running Docker, or Podman with its socket",
        "install and start docker, or name its socket in DOCKER_HOST",
    )
