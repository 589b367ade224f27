"""Making the image of a source with docker-py's classic builder."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from patches import children
from toolkit import __version__, console
from toolkit.container import images, profiles
from toolkit.container.images import BUILDER, Source, Unreachable, builder
from toolkit.container.profiles import Profile
from toolkit.errors import ToolkitError, reason
from toolkit.machine.checks import GIB

if TYPE_CHECKING:
    from docker import DockerClient

BUILD_BYTES = {"cpu": 4 * GIB, "nvidia": 16 * GIB}
ROCM_BUILD_BYTES = 20 * GIB
"""Disk that building an image for the first time needs. The ROCm figure is derived: an engineer of AMD gives
5.7 to 6.2 GB for PyTorch with the kernels of one card, installed (pull request 24137 of Ultralytics). The
classic builder holds a layer twice while it commits it: 12.4 GB. Base, packages and wheels add 2 GB; the rest
is room, and for rocm52, whose size nobody has measured here. PyTorch with NVIDIA's libraries is 5.5 GB,
installed, on Debian 12 (``scripts/make-cpu-base``): 11 GB by the same sum."""

NAMED = {"x86_64": "amd64", "aarch64": "arm64"}
"""Processor architectures, as wheels and as engines name them."""

MAKE_ROOM = "`toolkit container prune` removes this checkout's older images and nothing else"


def wheels(client: DockerClient, profile: Profile) -> str:
    """Name of the image that holds the wheels of the profile's lock and nothing else, made if it is missing.

    It keeps the wheels between builds, and out of the build context, which would carry them to the engine at
    every change of code. Those of other locks stay: another checkout may build with them.

    Raises:
        Unreachable: pip could not fetch them.
    """
    from docker.errors import ImageNotFound

    lock = _lock(profile)
    processor = architecture(client)
    tag = wheels_tag(client, profile)
    with suppress(ImageNotFound):
        client.images.get(tag)
        return tag
    console.note(f"fetching the wheels of {lock.name}")
    with tempfile.TemporaryDirectory() as folder:
        _fetch(lock, profile.pins["PYTHON"], Path(folder, "wheels"), processor)
        archive = Path(folder, "wheels.tar")
        with tarfile.open(archive, "w") as tar:
            tar.add(Path(folder, "wheels"), "wheels")
        label = f"LABEL {BUILDER}={builder()}"
        repository, _, version = tag.partition(":")
        client.api.import_image(str(archive), repository, version, changes=[label])
    return tag


def wheels_tag(client: DockerClient, profile: Profile) -> str:
    """Name of the image that holds the wheels of the profile's lock for this engine."""
    processor = architecture(client)
    version = hashlib.sha256(_lock(profile).read_bytes()).hexdigest()[:12]
    suffix = "" if processor == "x86_64" else f"-{processor}"
    return f"ltdv2-wheels-{profile.pins['LOCK']}:{version}{suffix}"


def _lock(profile: Profile) -> Path:
    return profiles.ROOT / "docker/locks" / f"{profile.pins['LOCK']}.txt"


def architecture(client: DockerClient) -> str:
    """Processor architecture of the engine, which need not be this machine's, as wheels name it."""
    found = str(client.version().get("Arch", "amd64"))
    return next((name for name, engines in NAMED.items() if found in (name, engines)), found)


def _fetch(lock: Path, python: str, folder: Path, processor: str = "x86_64") -> None:
    old = ("1", "2010", "2014") if processor == "x86_64" else ("2014",)
    platforms = [f"manylinux_2_{minor}_{processor}" for minor in range(5, 35)]
    platforms += [*(f"manylinux{name}_{processor}" for name in old), "any"]
    command = children.command("pip", "download", "--quiet", "--no-deps", "--require-hashes")
    command += ["--only-binary=:all:", f"--python-version={python}"]
    command += [f"--platform={platform}" for platform in platforms]
    command += [f"--requirement={lock}", f"--dest={folder}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise Unreachable(
            f"cannot fetch the wheels of {lock.name}",
            (done.stderr.strip().splitlines() or [f"pip ended with status {done.returncode}"])[-1],
            fix="try again with a network, or with pip set to an index that has them",
        )


def build(client: DockerClient, wanted: Source) -> str:
    """Build the image of a source.

    Returns:
        The image's id.

    Raises:
        Unreachable: the base image or the wheels cannot be fetched.
        ToolkitError: the disk is too full, or a step of the build failed.
    """
    from docker.errors import APIError

    _check_certificates()
    _check_disk(client, wanted)
    arguments = {
        **wanted.profile.pins,
        "PROFILE": wanted.profile.name,
        "VERSION": __version__,
        "COMMIT": wanted.commit,
        "CREATED": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "BUILDER": builder(),
        "SOURCE": f"https://github.com/{repository}" if (repository := images.github()) else "",
        "EXTRA": "\n".join(images.extra()),
    }
    if wanted.base is not None:
        arguments["BASE"] = wanted.base
    image = step = last = ""
    try:
        arguments["WHEELS"] = wheels(client, wanted.profile)
        for event in client.api.build(
            path=str(profiles.ROOT),
            dockerfile="docker/Dockerfile",
            tag=wanted.tag,
            buildargs=arguments,
            network_mode="host",
            rm=True,
            forcerm=True,
            decode=True,
        ):
            if "error" in event:
                raise _build_error(arguments["BASE"], wanted.tag, str(event["error"]), step, last)
            if text := str(event.get("stream", "")).rstrip():
                console.note(text)
                last = text
                if text.startswith("Step "):
                    step = text
            image = event.get("aux", {}).get("ID", image)
    except APIError as error:
        found = str(error.explanation or error)
        raise _build_error(arguments["BASE"], wanted.tag, found, step, last) from error
    except OSError as error:  # no room for the wheels, or the engine went away
        raise _build_error(arguments["BASE"], wanted.tag, reason(error), step, last) from error
    return image


def _build_error(base: str, image: str, error: str, step: str, last: str) -> ToolkitError:
    if "no space left on device" in error.lower():
        return ToolkitError("the disk is too full for the image", error, fix=f"make room; {MAKE_ROOM}")
    if " : FROM ${BASE}" in step:
        return Unreachable(
            f"cannot get the base image {base}",
            error,
            fix="pull it, or name another with --base: `sudo scripts/make-cpu-base` makes"
            " ltdv2-cpu-base:bookworm for the profile cpu",
        )
    return ToolkitError(f"building {image} failed", f"{error} (after: {''.join(last.splitlines()[-1:])})")


def _check_certificates() -> None:
    for path in (profiles.ROOT / "docker/certs").glob("*.crt"):
        if b"PRIVATE KEY" in path.read_bytes():
            raise ToolkitError(f"{path} must not go into an image", "a private key", "certificates alone")


def _check_disk(client: DockerClient, wanted: Source) -> None:
    """Whether a first build has room; once there is an image of the profile, most layers are there."""
    names = (tag for image in client.images.list(wanted.tag.rpartition(":")[0]) for tag in image.tags)
    if any(name.startswith(f"{wanted.tag.rpartition(':')[0]}:{wanted.profile.variant}") for name in names):
        return
    need = BUILD_BYTES.get(wanted.profile.name, ROCM_BUILD_BYTES)
    folder = Path(client.info().get("DockerRootDir", "/var/lib/docker"))
    with suppress(OSError):  # an engine on another machine, or a folder that only root may see
        free = shutil.disk_usage(folder).free
        if free < need:
            raise ToolkitError(
                "the disk is too full for the image",
                f"{free / GIB:.1f} GiB free in {folder}",
                f"{need / GIB:.0f} GiB",
                f"make room; {MAKE_ROOM}",
            )
