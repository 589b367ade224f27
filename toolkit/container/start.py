"""From a request to a running container: the card and the data are looked at first, then the image."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import console, workspace
from toolkit.container import build, create, images, manage, mounts, profiles, running
from toolkit.container.create import Places
from toolkit.container.engine import engine
from toolkit.container.mounts import Mounts
from toolkit.container.request import Request
from toolkit.container.verbs import VERBS, compose
from toolkit.container.words import VARIABLE
from toolkit.errors import ToolkitError
from toolkit.machine import kernel

if TYPE_CHECKING:
    from docker import DockerClient

CHECK = "TOOLKIT_MUST_WRITE"
"""Environment variable with the folders that the entrypoint finds writable before the command begins."""


def verb(request: Request, name: str, arguments: Sequence[str]) -> int:
    """Run one of :data:`toolkit.container.verbs.VERBS`.

    Returns:
        The exit status of the command inside.

    Raises:
        ToolkitError: the card, the data, the image or the engine is not there.
    """
    wanted, place = VERBS[name], workspace.current()
    data = request.data
    if wanted.data == "makes":
        data = data or place.root / wanted.where
    elif wanted.data != "none":
        try:
            data = place.data_dir(data)
        except ToolkitError:
            # A run that goes on knows its data.
            if data is not None or (wanted.data != "reads" and "--resume" not in arguments):
                raise
    user = request.user or create.default_user()
    shown = Mounts()
    if data is not None:
        data = data.absolute()
        writes = wanted.data in ("makes", "writes")
        if wanted.data == "makes":
            create.make_folder(data, user)
        shown.add(data, write=writes)
    runs = (request.runs or place.runs).absolute()
    command = compose(name, arguments, data, runs, named=request.data is not None)
    must_write = [str(runs)] if wanted.writes_runs else []
    if wanted.data == "makes" and data is not None:
        must_write.append(str(data))
    return _start(request, place, data, shown, command, user, closed=True, must_write=must_write)


def command(request: Request, line: Sequence[str], *, writable: bool = False, shell: bool = False) -> int:
    """Run any command; a shell gets the keyboard, another what is piped in.

    Raises:
        ToolkitError: see :func:`verb`.
    """
    place = workspace.current()
    data = request.data
    try:
        data = place.data_dir(data).absolute()
    except ToolkitError:
        if data is not None:
            raise
    shown = Mounts()
    if data is not None:
        shown.add(data, write=writable)
    user = request.user or create.default_user()
    return _start(request, place, data, shown, line, user, shell=shell)


def _start(
    request: Request,
    place: workspace.Workspace,
    data: Path | None,
    shown: Mounts,
    line: Sequence[str],
    user: str,
    *,
    closed: bool = False,
    shell: bool = False,
    must_write: Sequence[str] = (),
) -> int:
    runs = request.runs or place.runs
    create.make_folder(runs, user)
    shown.add_runs(runs)
    if (place.root / "toolkit.toml").is_file():
        shown.add(place.root / "toolkit.toml")
    settings = _own_settings(user)
    if settings is not None:
        shown.add(settings)
    if request.data is None:
        for other in mounts.of_runs(runs):
            if not shown.shows(other):
                shown.add(other)
    if place.submissions.is_dir() or "--upload" in line:
        create.make_folder(place.submissions, user)
        shown.add(place.submissions.absolute(), write=True)
    if line[0] == "toolkit" or closed:
        shown.add_arguments([*line, *_models(place, data)])
    if _makes_a_folder_here(place, line):
        shown.add(place.root, write=True)
    found = kernel.read()
    chosen = profiles.choose_profile(request.profile, found)
    where = Places(place.root.absolute(), runs, data, shown)
    arguments = create.create_arguments(
        chosen,
        found,
        where,
        line,
        user,
        tty=sys.stdout.isatty() and not request.engine.detach and (shell or not _is_piped()),
        stdin=shell or (not closed and not request.engine.detach and _is_piped()),
        closed=closed,
        options=request.engine,
    )
    arguments["environment"][VARIABLE] = request.caller
    if settings is not None:
        arguments["environment"]["TOOLKIT_SETTINGS"] = str(settings)
    arguments["environment"][CHECK] = os.pathsep.join(must_write)
    with engine() as client:
        arguments = _for_engine(client.info(), arguments, request, chosen)
        source = images.source(chosen, request.base)
        if request.image is not None:
            image = images.named(client, request.image, source.commit)
        else:
            image = images.ensure(client, source, lambda: build.build(client, source))
        arguments = {**arguments, "image": request.image or images.name_of(image)}
        name = request.engine.name or name_for(line)
        return running.run(client, image, name, arguments)


def _makes_a_folder_here(place: workspace.Workspace, line: Sequence[str]) -> bool:
    """Whether a source is predicted with weights of no run, whose folder is then made in the workspace."""
    given = line[2:4]
    if line[:2] != ["toolkit", "predict"] or len(given) < 2 or any(word.startswith("-") for word in given):
        return False
    weights = Path(given[0])
    named = any(word.partition("=")[0] == "--out" for word in line)
    return not named and weights.is_file() and place.run_of(weights) is None


def _own_settings(user: str) -> Path | None:
    """The caller's own toolkit.toml, if there is one and the container's user can get at it there."""
    path = mounts.lexical(workspace.user_settings())
    hidden = user.partition(":")[0] != "0" and path.is_relative_to("/root")
    return path if path.is_file() and not hidden else None


def _models(place: workspace.Workspace, data: Path | None) -> list[str]:
    """The model that toolkit.toml names."""
    model = place.defaults(data).model
    return [model] if model else []


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file, not a terminal and not nothing."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):  # closed, or none
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def _for_engine(
    info: Mapping[str, Any], arguments: dict[str, Any], request: Request, profile: profiles.Profile
) -> dict[str, Any]:
    """The arguments as this engine needs them.

    In a rootless engine the container's root is the engine's user, and nobody else in it may write that
    user's files; under ``userns-remap`` nobody at all may, so that the container asks to be left out of it.
    """
    security = ",".join(info.get("SecurityOptions") or ())
    host = dict(arguments["host_config"])
    rootless = "name=rootless" in security or info.get("Rootless", False)  # Docker's word, and Podman's
    if rootless and request.user is None:
        arguments = {**arguments, "user": "0:0"}
        host["cap_add"] = list(create.ROOT_NEEDS)
    if "name=userns" in security:
        host["userns_mode"] = "host"
    if profile.nvidia and create.has_cdi(info):
        host["device_requests"] = create.nvidia_request(cdi=True)
    return {**arguments, "host_config": host}


def name_for(line: Sequence[str]) -> str:
    """A container's name: what runs in it, and the name of the run."""
    program, *rest = line
    words = [word for word in rest if not word.startswith("-") and word != "dataset"]
    what = words[0] if Path(program).name == "toolkit" and words else Path(program).name
    given = [*rest, ""]
    named = [given[at + 1] for at, word in enumerate(rest) if word == "--name"]
    named += [word.partition("=")[2] for word in rest if word.startswith("--name=")]
    text = "-".join(["ltdv2", what, *named[:1]])
    return re.sub(r"[^a-zA-Z0-9_.-]+", "-", text)[:60].strip("-.")


def prune(client: DockerClient, *, dry_run: bool) -> list[str]:
    """Remove what :func:`toolkit.container.manage.prune` finds, for this checkout as it is now."""
    every = [profiles.load_profile(name) for name in profiles.profile_names()]
    wheels = {build.wheels_tag(client, profile) for profile in every}
    runs = workspace.current().runs
    gone = manage.prune(client, images.source(every[0]).commit, sorted(wheels), runs, dry_run=dry_run)
    if not gone:
        console.note("nothing to remove")
    return gone
