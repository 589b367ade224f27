"""What the caller asks for, before anything is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class EngineOptions:
    """What is handed on to the engine, in the words of ``docker run``.

    Attributes:
        volumes: ``HOST:CONTAINER[:ro]``.
        environment: ``NAME=VALUE``, or ``NAME`` for the caller's value.
        publish: ``[ADDRESS:]PORT:PORT``.
        memory, shm_size: such as ``16g``.
        name: of the container; by default one that says what runs in it.
        detach: return as soon as it runs.
    """

    volumes: Sequence[str] = ()
    environment: Sequence[str] = ()
    publish: Sequence[str] = ()
    memory: str | None = None
    shm_size: str | None = None
    name: str | None = None
    detach: bool = False


@dataclass(frozen=True)
class Request:
    """What a container is wanted for; None: the default.

    Attributes:
        profile: name of a profile.
        base: image to build on.
        image: image to run instead of this checkout's.
        data: folder with LTDv2's files.
        runs: folder for runs.
        user: "uid:gid" that files are written as.
        engine: options for the engine.
        caller: how the toolkit was called, as :meth:`toolkit.container.words.Caller.encode` writes it.
    """

    profile: str | None = None
    base: str | None = None
    image: str | None = None
    data: Path | None = None
    runs: Path | None = None
    user: str | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    caller: str = "container"
