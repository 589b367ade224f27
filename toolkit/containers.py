"""Images and containers of this project: which profile, which devices, built and run through docker-py.

A profile is ``docker/profiles/<name>.env``, every pin of one image. :func:`create_arguments` decides what a
container gets; :func:`run` starts it, passes its output through byte by byte (progress bars survive),
forwards signals, and returns its exit status.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patches import children
from toolkit import __version__, console
from toolkit.cards import best_card
from toolkit.checks import GIB
from toolkit.doctor import recommend_profile
from toolkit.errors import ToolkitError, reason
from toolkit.machine import VISIBILITY, Machine
from toolkit.runs.reproduction import commit

if TYPE_CHECKING:
    from docker import APIClient, DockerClient

ROOT = Path(__file__).resolve().parents[1]
"""The checkout that images are built from."""

OLDEST_API = (1, 40)
"""API of Docker 19.03, the first engine that is known to take every option that is used here."""

BUILD_BYTES = {"cpu": 4 * GIB}
ROCM_BUILD_BYTES = 20 * GIB
"""Disk that building an image for the first time needs. The ROCm figure is derived: an engineer of AMD gives
5.7 to 6.2 GB for PyTorch with the kernels of one card, installed (pull request 24137 of Ultralytics). The
classic builder holds a layer twice while it commits it: 12.4 GB. Base, packages and wheels add 2 GB; the rest
is room, and for rocm52, whose size nobody has measured here."""

SHARED_MEMORY = 8 * GIB
"""Most that a container gets of ``/dev/shm``; never more than half of the RAM. Docker's own default, 64 MiB,
does not hold two batches."""

STOP_SECONDS = 70
"""What ``docker stop`` waits before it kills, ten seconds more than the supervisor does for a trainer.
Docker's own default is ten seconds in all."""

PASSED_ON = ("TOOLKIT_CONV_ROUTE", "HF_TOKEN", *VISIBILITY, "TERM")
"""Environment variables that a container gets from its caller."""


@dataclass(frozen=True)
class Profile:
    """The pins of one image.

    Attributes:
        name: of its file, without ``.env``.
        cards: architectures that it serves; none for the CPU.
        pins: what the Dockerfile takes as build arguments.
    """

    name: str
    cards: tuple[str, ...]
    pins: Mapping[str, str]

    def for_card(self, arch: str) -> Profile:
        """This profile with the kernels of ``arch`` instead of those of its usual card."""
        extra = self.pins.get("TORCH_EXTRA", "")
        if not extra or arch not in self.cards:
            return self
        return Profile(self.name, self.cards, {**self.pins, "TORCH_EXTRA": f"device-{arch}"})

    @property
    def image(self) -> str:
        """Tag of the image; with another card's kernels than the usual ones, their architecture too."""
        usual = load_profile(self.name).pins.get("TORCH_EXTRA", "")
        extra = self.pins.get("TORCH_EXTRA", "")
        suffix = "" if extra == usual else "-" + extra.removeprefix("device-")
        return f"ltdv2-toolkit:{self.name}{suffix}"


def profile_names() -> list[str]:
    """Names of the profiles in ``docker/profiles``."""
    return sorted(path.stem for path in (ROOT / "docker/profiles").glob("*.env"))


def load_profile(name: str) -> Profile:
    """Read a profile.

    Raises:
        ToolkitError: there is none of that name, or a line of it is not KEY=VALUE.
    """
    path = ROOT / "docker/profiles" / f"{name}.env"
    if name not in profile_names():
        where = ", ".join(profile_names()) or f"a checkout of the project, not {ROOT}"
        raise ToolkitError(f"no profile {name}", expected=where)
    pins = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            key, separator, value = line.partition("=")
            if not separator:
                raise ToolkitError(f"cannot read {path}", repr(line), "KEY=VALUE")
            pins[key] = value
    return Profile(name, tuple(pins.pop("CARDS", "").split()), pins)


def choose_profile(name: str | None, found: Machine) -> Profile:
    """The named profile, or the one for this machine's card, with that card's kernels.

    Raises:
        ToolkitError: no name was given and there is no AMD GPU, or no profile for it.
    """
    if name is None:
        choice = recommend_profile(best_card(found))
        if choice.value == "cpu":
            raise ToolkitError(
                "no profile fits this machine",
                choice.reason,
                fix="say PROFILE=cpu (--profile cpu) to go without",
            )
        name = choice.value
    profile = load_profile(name)
    card = best_card(found, profile.cards)
    return profile.for_card(card.arch) if card else profile


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
        "a running Docker",
        "install and start docker, or name its socket in DOCKER_HOST",
    )


def wheels(client: DockerClient, profile: Profile) -> str:
    """Name of the image that holds the wheels of the profile's lock and nothing else, made if it is missing.

    It keeps the wheels between builds, and out of the build context, which would carry them to the engine at
    every change of code. The image of the lock before is removed.

    Raises:
        ToolkitError: pip could not fetch them.
    """
    from docker.errors import APIError, ImageNotFound

    name = profile.pins["LOCK"]
    lock = ROOT / "docker/locks" / f"{name}.txt"
    repository, version = f"ltdv2-wheels-{name}", hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    tag = f"{repository}:{version}"
    with suppress(ImageNotFound):
        client.images.get(tag)
        return tag
    console.note(f"fetching the wheels of {lock.name}")
    with tempfile.TemporaryDirectory() as folder:
        _fetch(lock, profile.pins["PYTHON"], Path(folder, "wheels"))
        archive = Path(folder, "wheels.tar")
        with tarfile.open(archive, "w") as tar:
            tar.add(Path(folder, "wheels"), "wheels")
        client.api.import_image(str(archive), repository, version)
    for old in client.images.list(repository):
        for other in set(old.tags) - {tag}:
            with suppress(APIError):  # another build is using it
                client.images.remove(other)
    return tag


def _fetch(lock: Path, python: str, folder: Path) -> None:
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(5, 35)]
    platforms += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64", "any"]
    command = children.command("pip", "download", "--quiet", "--no-deps", "--require-hashes")
    command += ["--only-binary=:all:", f"--python-version={python}"]
    command += [f"--platform={platform}" for platform in platforms]
    command += [f"--requirement={lock}", f"--dest={folder}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ToolkitError(
            f"cannot fetch the wheels of {lock.name}",
            (done.stderr.strip().splitlines() or [f"pip ended with status {done.returncode}"])[-1],
            fix="try again with a network, or with pip set to an index that has them",
        )


def build(client: DockerClient, profile: Profile, base: str | None = None) -> str:
    """Build the image of a profile.

    Args:
        base: image to build on instead of the profile's; one that already holds PyTorch keeps it.

    Returns:
        The image's id.

    Raises:
        ToolkitError: the disk is too full, the wheels are out of reach, or a step of the build failed.
    """
    from docker.errors import APIError

    _check_certificates()
    _check_disk(client, profile)
    arguments = {**profile.pins, "PROFILE": profile.name, "VERSION": __version__, "COMMIT": commit()}
    if base is not None:
        arguments["BASE"] = base
    image = step = last = ""
    try:
        arguments["WHEELS"] = wheels(client, profile)
        for event in client.api.build(
            path=str(ROOT),
            dockerfile="docker/Dockerfile",
            tag=profile.image,
            buildargs=arguments,
            network_mode="host",
            rm=True,
            forcerm=True,
            decode=True,
        ):
            if "error" in event:
                raise _build_error(arguments["BASE"], profile.image, str(event["error"]), step, last)
            if text := str(event.get("stream", "")).rstrip():
                console.note(text)
                last = text
                if text.startswith("Step "):
                    step = text
            image = event.get("aux", {}).get("ID", image)
    except APIError as error:
        found = str(error.explanation or error)
        raise _build_error(arguments["BASE"], profile.image, found, step, last) from error
    except OSError as error:  # no room for the wheels, or the engine went away
        raise _build_error(arguments["BASE"], profile.image, reason(error), step, last) from error
    return image


def _build_error(base: str, image: str, error: str, step: str, last: str) -> ToolkitError:
    if "no space left on device" in error.lower():
        return ToolkitError(
            "the disk is too full for the image", error, fix="docker system prune, or make room"
        )
    if " : FROM ${BASE}" in step:
        return ToolkitError(
            f"cannot get the base image {base}", error, fix="pull it, or name one with --base"
        )
    return ToolkitError(f"building {image} failed", f"{error} (after: {''.join(last.splitlines()[-1:])})")


def _check_certificates() -> None:
    for path in (ROOT / "docker/certs").glob("*.crt"):
        if b"PRIVATE KEY" in path.read_bytes():
            raise ToolkitError(f"{path} must not go into an image", "a private key", "certificates alone")


def _check_disk(client: DockerClient, profile: Profile) -> None:
    from docker.errors import ImageNotFound

    with suppress(
        ImageNotFound
    ):  # built before: most layers are there, and a build that finds no room says so
        client.images.get(profile.image)
        return
    need = BUILD_BYTES.get(profile.name, ROCM_BUILD_BYTES)
    folder = Path(client.info().get("DockerRootDir", "/var/lib/docker"))
    with suppress(OSError):  # an engine on another machine, or a folder that only root may see
        free = shutil.disk_usage(folder).free
        if free < need:
            raise ToolkitError(
                "the disk is too full for the image",
                f"{free / GIB:.1f} GiB free in {folder}",
                f"{need / GIB:.0f} GiB",
                "docker system prune, or make room",
            )


@dataclass(frozen=True)
class Places:
    """Folders of the host that a container sees.

    Attributes:
        data: LTDv2's files, or None.
        runs: where runs are written.
        writable: whether the container may write to ``data``.
        defaults: ``toolkit.toml`` of the workspace, or None.
    """

    data: Path | None
    runs: Path
    writable: bool = False
    defaults: Path | None = None


def create_arguments(
    profile: Profile,
    found: Machine,
    places: Places,
    command: Sequence[str],
    user: str,
    *,
    tty: bool = False,
    stdin: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """What docker-py's ``create_container`` is called with, its ``host_config`` still a dictionary.

    Args:
        command: runs in the container; ``["toolkit", "train"]``.
        user: "uid:gid", numbers.
        tty: whether to give it a terminal.
        stdin: whether to connect standard input.
        environment: of the caller; :data:`PASSED_ON` of it go in.

    Raises:
        ToolkitError: the profile is for a card and the kernel driver shows none, or none that it serves.
    """
    here = found.surroundings
    passed = {name: environment[name] for name in PASSED_ON if name in environment}
    volumes = {
        str(places.runs.absolute()): {"bind": "/workspace/runs", "mode": "rw"},
        # What a volume holds belongs to who wrote it: each user has one.
        f"ltdv2-cache-{profile.name}-{user.partition(':')[0]}": {"bind": "/cache", "mode": "rw"},
    }
    if places.data is not None:
        mode = "rw" if places.writable else "ro"
        volumes[str(places.data.absolute())] = {"bind": "/workspace/data", "mode": mode}
    if places.defaults is not None:
        volumes[str(places.defaults.absolute())] = {"bind": "/workspace/toolkit.toml", "mode": "ro"}
        passed["TOOLKIT_DATA"] = "/workspace/data"  # whatever toolkit.toml calls it outside
    host: dict[str, Any] = {
        "binds": volumes,
        "shm_size": min(SHARED_MEMORY, here.memory_bytes // 2) or SHARED_MEMORY,
    }
    if profile.cards:
        _check_devices(profile, found)
        passed = _only_served(profile, found, passed)
        host |= {
            "devices": ["/dev/kfd:/dev/kfd:rwm", "/dev/dri:/dev/dri:rwm"],
            "group_add": sorted({node.gid for node in here.devices} - {0}),
            "security_opt": ["seccomp=unconfined"],
        }
    return {
        "image": profile.image,
        "command": list(command),
        "user": user,
        "tty": tty,
        "stdin_open": stdin,
        "environment": passed,
        "labels": {"io.ltdv2-toolkit.command": " ".join(command)},
        "stop_timeout": STOP_SECONDS,
        "host_config": host,
    }


def _check_devices(profile: Profile, found: Machine) -> None:
    paths = [node.path for node in found.surroundings.devices]
    wanted = ("/dev/kfd", "/dev/dri")
    missing = [name for name in wanted if not any(path.startswith(name) for path in paths)]
    if missing:
        raise ToolkitError(
            f"no AMD GPU for the profile {profile.name}",
            "no " + " and no ".join(missing),
            fix="load the driver amdgpu, or say PROFILE=cpu (--profile cpu) to go without",
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
            fix=f"say PROFILE={choice.value} (--profile {choice.value})",
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


def make_runs(folder: Path, user: str) -> None:
    """Make the folder for runs, if it is missing, and give it to the user of the container.

    Raises:
        ToolkitError: ``user`` is not "uid:gid" in numbers, or the folder cannot be made.
    """
    uid, separator, gid = user.partition(":")
    if not (separator and uid.isdecimal() and gid.isdecimal()):
        raise ToolkitError(f"no user {user}", expected="uid:gid, numbers such as 1000:1000")
    if folder.is_dir():
        return
    try:
        folder.mkdir(parents=True)
        if os.geteuid() == 0:
            os.chown(folder, int(uid), int(gid))
    except OSError as error:
        raise ToolkitError(
            f"cannot make the folder {folder}", reason(error), fix="name one with --runs"
        ) from error


def run(client: DockerClient, profile: Profile, arguments: Mapping[str, Any]) -> int:
    """Run a container to its end; its output is ours, our signals are its own.

    Ctrl-C and SIGTERM are forwarded as they are, so that training inside saves its checkpoint and decides how
    to end; a terminal that is closed counts as SIGTERM. The container is removed afterwards.

    Args:
        profile: whose image is run.
        arguments: of :func:`create_arguments`.

    Returns:
        The exit status of the command inside.

    Raises:
        ToolkitError: the image does not exist, or the engine refused the container.
    """
    from docker.errors import APIError, ImageNotFound

    tty, stdin = bool(arguments["tty"]), bool(arguments["stdin_open"])
    name = f"ltdv2-{uuid.uuid4().hex[:12]}"  # known before it exists, to be removed whatever happens
    lost = False
    try:
        with _forwarding(client.api, name, tty=tty, shell=stdin) as early:
            image = client.images.get(arguments["image"])
            environment = {
                **arguments["environment"],
                "TOOLKIT_IMAGE": image.id or "",
                "TOOLKIT_IMAGE_DIGESTS": " ".join(image.attrs.get("RepoDigests") or ()),
            }
            host = client.api.create_host_config(**arguments["host_config"])
            created = {**arguments, "environment": environment, "host_config": host}
            client.api.create_container(name=name, **created)
            return _follow(client.api, name, early, tty=tty, stdin=stdin)
    except ImageNotFound as error:
        fix = f"make docker-build PROFILE={profile.name} (toolkit container build --profile {profile.name})"
        raise ToolkitError(f"no image {profile.image}", fix=fix) from error
    except APIError as error:
        raise ToolkitError("the engine refused the container", str(error.explanation or error)) from error
    except OSError as error:  # requests' connection errors are OSErrors
        lost = True
        raise ToolkitError(
            "the engine went away",
            str(error),
            fix=f"if the container goes on: docker logs -f {name}, docker stop {name}",
        ) from error
    finally:
        if not lost:
            with suppress(OSError):  # APIError is one
                client.api.remove_container(name, force=True)


def _follow(api: APIClient, name: str, early: Sequence[int], *, tty: bool, stdin: bool) -> int:
    """Start the container and pass its output on; a signal that came before it started ends it."""
    output: Iterator[Any]
    with ExitStack() as stack:
        if stdin:
            both = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            socket = api.attach_socket(name, params=both)
            socket = getattr(socket, "_sock", socket)
            threading.Thread(target=_type, args=(socket,), daemon=True).start()
            output = iter(lambda: socket.recv(4096), b"")
            stack.enter_context(_raw_terminal())
        elif tty:
            output = api.attach(name, stream=True, logs=True)
        else:
            output = api.attach(name, stream=True, logs=True, demux=True)
        pump = threading.Thread(target=_copy, args=(output,), daemon=True)
        if not early:
            api.start(name)
        if early:
            return 128 + early[0]
        pump.start()
        if tty:
            _resize(api, name)
        status = api.wait(name)["StatusCode"]
        pump.join(timeout=10 if stdin else None)  # a reader may be slow
    return int(status)


def _copy(stream: Iterator[Any]) -> None:
    for chunk in stream:
        out, err = chunk if isinstance(chunk, tuple) else (chunk, None)
        for data, target in ((out, sys.stdout.buffer), (err, sys.stderr.buffer)):
            if data:
                with suppress(OSError):  # the terminal is gone; what nobody reads would stop the container
                    target.write(data)
                    target.flush()


def _type(socket: Any) -> None:
    with suppress(OSError):  # the terminal is gone
        while data := os.read(sys.stdin.fileno(), 4096):
            socket.sendall(data)


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the container's terminal, Ctrl-C included, which makes signals of them."""
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setraw(keyboard)
        yield
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


@contextmanager
def _forwarding(api: APIClient, name: str, *, tty: bool, shell: bool) -> Iterator[list[int]]:
    """Hand SIGINT, SIGTERM and changes of the window's size on to the container.

    A closed terminal stops it like SIGTERM (a shell, which heeds SIGHUP alone, gets that); under nohup not.

    Yields:
        The signals that could not be handed on, because the container does not run yet, or no longer. The
        second of them interrupts this process.
    """
    missed: list[int] = []

    def forward(number: int, _frame: object) -> None:
        given = "SIGTERM" if number == signal.SIGHUP and not shell else signal.Signals(number).name
        try:
            api.kill(name, given)
        except OSError:  # APIError is one
            missed.append(number)
            if len(missed) > 1:
                raise KeyboardInterrupt from None

    handlers: dict[int, Any] = {signal.SIGINT: forward, signal.SIGTERM: forward}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        handlers[signal.SIGHUP] = forward
    if tty:
        handlers[signal.SIGWINCH] = lambda _number, _frame: _resize(api, name)
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield missed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _resize(api: APIClient, name: str) -> None:
    size = shutil.get_terminal_size()
    with suppress(OSError):  # APIError is one
        api.resize(name, height=size.lines, width=size.columns)
