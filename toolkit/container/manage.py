"""Finding this checkout's containers and images again: ps, logs, attach, stop, prune."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import console
from toolkit.container import running
from toolkit.container.create import COMMAND, OWNER, STOP_SECONDS
from toolkit.container.images import BUILDER, REPOSITORY, REVISION, builder, of_runs
from toolkit.errors import ToolkitError
from toolkit.workspace import ENVIRONMENT

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container


def containers(client: DockerClient) -> list[Container]:
    """Those of this user and checkout, the newest first."""
    found = client.containers.list(all=True, filters={"label": f"{OWNER}={builder()}"}, ignore_removed=True)
    return list(found)


def rows(client: DockerClient) -> list[dict[str, str]]:
    """Name, state, command, image and beginning of each container, for a table or as JSON."""
    lines = []
    for one in containers(client):
        state = one.attrs["State"]
        health = state.get("Health", {}).get("Status", "")
        shown = f"{one.status} ({health})" if health and one.status == "running" else one.status
        if one.status == "exited":
            shown += f" ({state['ExitCode']})"
        lines.append(
            {
                "name": str(one.name),
                "state": shown,
                "command": " ".join(one.labels.get(COMMAND, "").split()),  # a script may have lines
                "image": one.attrs["Config"]["Image"],
                "begun": state.get("StartedAt", "")[:16],
            }
        )
    return lines


def find(client: DockerClient, name: str | None, *, alive: bool = False) -> Container:
    """The container of this checkout called ``name``; without a name the only one, the running one first.

    Args:
        alive: whether it must be running.

    Raises:
        ToolkitError: there is none, or more than one and no name.
    """
    found = [one for one in containers(client) if one.status == "running" or not alive]
    chosen = [one for one in found if one.name == name] if name is not None else found
    if name is None and len(chosen) > 1:
        chosen = [one for one in found if one.status == "running"] or chosen[:1]
    if len(chosen) == 1:
        return chosen[0]
    kind = "running container" if alive else "container"
    known = ", ".join(str(one.name) for one in found) or f"no {kind} of this checkout"
    what = f"no {kind} {name}" if name is not None else f"which {kind}?" if found else f"no {kind}"
    raise ToolkitError(what, known, fix="`toolkit container ps` lists them")


def logs(client: DockerClient, name: str | None, *, follow: bool) -> None:
    """Print what a container has printed, and go on while it runs; ending this does not end it."""
    one = find(client, name)
    if follow and one.status == "running":
        tty = _has_terminal(one)
        running.watch(client.api, str(one.name), running.logs_of(client.api, str(one.name), tty=tty), tty=tty)
    else:
        running.copy(iter([one.logs(stdout=True, stderr=False), (None, one.logs(stdout=False, stderr=True))]))


def attach(client: DockerClient, name: str | None) -> int:
    """Stand for a container that runs: its output from the beginning, our signals, its exit status."""
    one = find(client, name, alive=True)
    tty = _has_terminal(one)
    made = running.Made(client.api, str(one.name))
    with running.forwarding(client.api, made, tty=tty, shell=False):
        outputs = running.logs_of(client.api, made.name, tty=tty)
        return running.watch(client.api, made.name, outputs, tty=tty)


def stop(client: DockerClient, name: str | None) -> None:
    """Ask a container to end, wait for it, and say how it ended. A training saves a checkpoint first."""
    from docker.errors import APIError

    one = find(client, name, alive=True)
    one.stop(timeout=STOP_SECONDS)
    with suppress(APIError):  # whoever stood for it removed it
        one.reload()
        console.note(f"{one.name} ended with status {one.attrs['State']['ExitCode']}")
        return
    console.note(f"{one.name} has ended")


def _has_terminal(one: Container) -> bool:
    return bool(one.attrs["Config"]["Tty"])


def prune(
    client: DockerClient, commit: str, current: Sequence[str], runs: Path, *, dry_run: bool
) -> list[str]:
    """Remove this checkout's ended containers and the images that nothing here needs any more.

    Images stay that are of this source, that a run's environment.json names, or that a container uses. What
    is another user's, checkout's or project's stays.

    Args:
        commit: of this checkout; images of it stay, whatever they are built on.
        current: names of images to keep.
        runs: the folder of runs.

    Returns:
        What was removed.
    """
    from docker.errors import APIError

    gone = []
    for one in containers(client):
        if one.status in ("exited", "created", "dead"):
            gone.append(f"container {one.name}")
            if not dry_run:
                one.remove()
    kept = of_runs(runs.glob(f"*/{ENVIRONMENT}"))
    ours: list[Any] = client.images.list(filters={"label": f"{BUILDER}={builder()}"})
    used = {one.attrs["Image"] for one in client.containers.list(all=True, ignore_removed=True)}
    for image in ours:
        if image.labels.get(REVISION) == commit or image.id in kept | used or set(image.tags) & set(current):
            continue
        names = list(image.tags)
        if not any(name.startswith((f"{REPOSITORY}:", "ltdv2-wheels-")) for name in names):
            continue  # a layer of another image, or built on top of ours
        with suppress(APIError):  # another build is using it
            for tag in names:
                if not dry_run:
                    client.images.remove(tag)
            gone += [f"image {tag}" for tag in names]
    return gone
