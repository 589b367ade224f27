"""What a container gets: devices, folders, environment, and no more rights than its work needs."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patches import variables
from patches.findings import VISIBILITY
from toolkit import console
from toolkit.container.images import builder
from toolkit.container.mounts import Mounts, lexical
from toolkit.container.profiles import Profile, has_nvidia
from toolkit.container.request import EngineOptions
from toolkit.errors import CallError, ToolkitError, reason
from toolkit.machine.cards import best_card, recommend_profile
from toolkit.machine.checks import GIB
from toolkit.machine.kernel import Machine

SHARED_MEMORY = 8 * GIB
"""Most that a container gets of ``/dev/shm``; never more than half of the RAM. Docker's own default, 64 MiB,
does not hold two batches."""

STOP_SECONDS = 70
"""What ``docker stop`` waits before it kills, ten seconds more than the supervisor does for a trainer.
Docker's own default is ten seconds in all."""

SERVICES = ("HF_TOKEN", "HF_ENDPOINT", "CODABENCH_TOKEN", "CODABENCH_URL")
PASSED_ON = (*variables.KERNELS, *SERVICES, *VISIBILITY, "TERM")
"""Environment variables that a container gets from its caller."""

COMMAND = "io.ltdv2-toolkit.command"
OWNER = "io.ltdv2-toolkit.owner"
ATTACHED = "io.ltdv2-toolkit.attached"
STANDS = "io.ltdv2-toolkit.stands"
"""Labels of a container: what runs in it, whose it is, whether a command in the foreground stands for it, and
the number of that command's process."""

ROOT_NEEDS = ("CHOWN", "DAC_OVERRIDE", "FOWNER")
"""Capabilities without which root could not write other users' files."""

SELINUX = Path("/sys/fs/selinux/enforce")


@dataclass(frozen=True)
class Places:
    """Where a container works.

    Attributes:
        workspace: the folder with data and runs in it.
        runs: the host's folder for runs, which the workspace's ``runs`` is too.
        data: LTDv2's files, or None.
        mounts: what it sees of the host.
        here: the folder that relative paths begin in.
    """

    workspace: Path
    runs: Path
    data: Path | None = None
    mounts: Mounts = field(default_factory=Mounts)
    here: Path = field(default_factory=Path.cwd)


# Long: one call of docker-py, field by field.
def create_arguments(
    profile: Profile,
    found: Machine,
    places: Places,
    command: Sequence[str],
    user: str,
    *,
    image: str = "",
    tty: bool = False,
    stdin: bool = False,
    closed: bool = False,
    options: EngineOptions | None = None,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """What docker-py's ``create_container`` is called with, its ``host_config`` still a dictionary.

    Args:
        command: runs in the container; ``["toolkit", "train"]``.
        user: "uid:gid", numbers.
        image: name or id.
        tty: whether to give it a terminal.
        stdin: whether to connect standard input.
        closed: whether the image's own files are read-only; right for the toolkit's verbs.
        options: for the engine.
        environment: of the caller; :data:`PASSED_ON` of it go in.

    Raises:
        ToolkitError: the profile is for a card and the driver shows none, or none that it serves.
    """
    given = options or EngineOptions()
    passed = {name: environment[name] for name in PASSED_ON if name in environment}
    passed["TOOLKIT_WORKSPACE"] = str(places.workspace)
    if places.data is not None:
        passed["TOOLKIT_DATA"] = str(places.data)  # whatever toolkit.toml says
    if (runs := lexical(places.runs)) != lexical(places.workspace / "runs"):
        passed["TOOLKIT_RUNS"] = str(runs)
    memory = found.surroundings.memory_bytes
    shared = _size("--shm-size", given.shm_size) if given.shm_size else min(SHARED_MEMORY, memory // 2)
    host: dict[str, Any] = {
        "mounts": _mounts(profile, places, user, given),
        "shm_size": shared or SHARED_MEMORY,
        "security_opt": ["no-new-privileges"],
        "cap_drop": ["ALL"],
    }
    if user.partition(":")[0] == "0":
        host["cap_add"] = list(ROOT_NEEDS)
    if closed:
        host |= {"read_only": True, "tmpfs": {"/tmp": "exec,mode=1777", "/home/toolkit": "mode=1777"}}
    if SELINUX.exists():
        host["security_opt"].append("label=disable")
    if given.memory:
        host["mem_limit"] = _size("--memory", given.memory)
    _add_devices(host, profile, found)
    if profile.cards:
        passed = _only_served(profile, found, passed)
    arguments: dict[str, Any] = {
        "image": image,
        "command": list(command),
        "user": user,
        "tty": tty,
        "stdin_open": stdin,
        "working_dir": str(places.here),
        "environment": {**passed, **_environment(given.environment, environment)},
        "labels": {
            COMMAND: shlex.join(command),
            OWNER: builder(),
            ATTACHED: "no" if given.detach else "yes",
            STANDS: str(os.getpid()),
        },
        "stop_timeout": STOP_SECONDS,
        "host_config": host,
    }
    if given.publish:
        bindings = _port_bindings(given.publish)
        host["port_bindings"] = bindings
        arguments["ports"] = [tuple(port.split("/")) if "/" in port else port for port in bindings]
    return arguments


def _mounts(profile: Profile, places: Places, user: str, given: EngineOptions) -> list[Any]:
    from docker.types import Mount

    shown = [
        Mount(str(path), str(places.mounts.sources.get(path, path)), type="bind", read_only=not write)
        for path, write in sorted(places.mounts.writable.items())
    ]
    inside, runs = places.workspace / "runs", places.runs.absolute()
    shown.append(Mount(str(inside), str(runs), type="bind"))
    # What a volume holds belongs to who wrote it: each user has one.
    cache = f"ltdv2-cache-{profile.name}-{user.partition(':')[0]}"
    shown.append(Mount("/cache", cache, type="volume"))
    for volume in given.volumes:
        parts = volume.split(":")
        if len(parts) not in (2, 3) or not parts[1].startswith("/") or parts[2:] not in ([], ["ro"], ["rw"]):
            raise CallError(f"no volume {volume}", expected="HOST:/CONTAINER or HOST:/CONTAINER:ro")
        is_path = "/" in parts[0] or parts[0].startswith(".")
        read_only = parts[2:] == ["ro"]
        if is_path:
            source = str(lexical(Path(parts[0]).expanduser()))
            shown.append(Mount(parts[1], source, type="bind", read_only=read_only))
        else:
            shown.append(Mount(parts[1], parts[0], type="volume", read_only=read_only))
    return list({mount["Target"]: mount for mount in shown}.values())  # what is named last holds


def _size(option: str, text: str) -> int:
    """Bytes that an option says in the words of ``docker run``."""
    from docker.errors import DockerException
    from docker.utils import parse_bytes

    try:
        return int(parse_bytes(text))
    except DockerException as error:
        raise CallError(f"no size {option} {text}", expected="a number and b, k, m or g, as 16g") from error


def _port_bindings(given: Sequence[str]) -> dict[str, Any]:
    """What the engine binds the container's ports to."""
    from docker.utils.ports import build_port_bindings

    try:
        return dict(build_port_bindings(list(given)))
    except ValueError as error:
        raise CallError(
            f"cannot publish {' '.join(given)}", expected="[ADDRESS:]PORT:PORT, as 127.0.0.1:8888:8888"
        ) from error


def _environment(given: Sequence[str], caller: Mapping[str, str]) -> dict[str, str]:
    """Variables of ``-e``: with a value, or with the caller's if it has one."""
    pairs = (text.partition("=") for text in given)
    named = {name: value if equals else caller.get(name) for name, equals, value in pairs}
    return {name: value for name, value in named.items() if value is not None}


def _add_devices(host: dict[str, Any], profile: Profile, found: Machine) -> None:
    if profile.nvidia:
        if not has_nvidia():
            raise ToolkitError(
                f"no NVIDIA GPU for the profile {profile.name}",
                "no /dev/nvidiactl",
                fix="load NVIDIA's driver, or say --profile=cpu to go without a card",
            )
        host["device_requests"] = nvidia_request(cdi=False)
    if profile.cards:
        _check_devices(profile, found)
        host["devices"] = ["/dev/kfd:/dev/kfd:rwm", "/dev/dri:/dev/dri:rwm"]
        host["group_add"] = sorted({node.gid for node in found.surroundings.devices} - {0})
        host["security_opt"].append("seccomp=unconfined")


def nvidia_request(*, cdi: bool) -> list[Any]:
    """All of NVIDIA's cards: as ``--gpus all`` asks for them, or by the container device interface."""
    from docker.types import DeviceRequest

    if cdi:
        return [DeviceRequest(driver="cdi", device_ids=["nvidia.com/gpu=all"])]
    return [DeviceRequest(count=-1, capabilities=[["gpu"]])]


def has_cdi(engine: Mapping[str, Any]) -> bool:
    """Whether an engine, by its ``info``, takes NVIDIA's cards by CDI and not by a runtime of its own."""
    return "nvidia" not in engine.get("Runtimes", {}) and bool(engine.get("CDISpecDirs"))


def _check_devices(profile: Profile, found: Machine) -> None:
    paths = [node.path for node in found.surroundings.devices]
    wanted = ("/dev/kfd", "/dev/dri")
    missing = [name for name in wanted if not any(path.startswith(name) for path in paths)]
    if missing:
        raise ToolkitError(
            f"no AMD GPU for the profile {profile.name}",
            "no " + " and no ".join(missing),
            fix="load the driver amdgpu, or say --profile=cpu to go without a card",
        )


def _only_served(profile: Profile, found: Machine, passed: dict[str, str]) -> dict[str, str]:
    """The variables ``passed``, changed so that the container sees no card that its image has no kernels for.

    PyTorch's first device would otherwise be such a card, an integrated one say.

    Raises:
        ToolkitError: the image has kernels for no card.
    """
    card = best_card(found, profile.cards)
    if card is None:  # none is visible
        return passed
    if card.arch not in profile.cards:
        choice = recommend_profile(card)
        raise ToolkitError(
            f"the profile {profile.name} holds no kernels for {card.arch}",
            fix=f"say --profile={choice.value}",
        )
    served = [one for one in found.visible if one.arch == card.arch]
    if len(served) == len(found.visible):
        return passed
    numbers = ",".join(str(found.cards.index(one)) for one in served)
    console.note(f"the container sees {card.arch} alone: ROCR_VISIBLE_DEVICES={numbers}")
    others = {name: value for name, value in passed.items() if name not in VISIBILITY}
    return {**others, "ROCR_VISIBLE_DEVICES": numbers}


def default_user() -> str:
    """Whose files a container writes: this user's, or under sudo those of the user who typed it."""
    uid = os.environ.get("SUDO_UID") if os.geteuid() == 0 else None
    gid = os.environ.get("SUDO_GID") if os.geteuid() == 0 else None
    return f"{uid or os.geteuid()}:{gid or os.getegid()}"


def make_folder(folder: Path, user: str) -> None:
    """Make a folder that a container writes to, if it is missing, and give it to the user of the container.

    Raises:
        ToolkitError: ``user`` is not "uid:gid" in numbers, or the folder cannot be made.
    """
    uid, separator, gid = user.partition(":")
    if not (separator and uid.isdecimal() and gid.isdecimal()):
        raise CallError(f"no user {user}", expected="uid:gid, numbers such as 1000:1000")
    if folder.is_dir():
        return
    try:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True)
        if os.geteuid() == 0:
            for path in missing:
                os.chown(path, int(uid), int(gid))
    except OSError as error:
        raise ToolkitError(
            f"cannot make the folder {folder}", reason(error), fix="name another, or make it yours"
        ) from error
