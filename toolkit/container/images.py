"""Which image a command runs: the one of this source, found, pulled or built, or the one that was named.

An image's name says what is in it, ``ltdv2-toolkit:<profile>-<commit>``: users and checkouts that share
an engine never run each other's code, and no name ever moves. What git does not know and the image holds
(another base, ``docker/extra.txt``, certificate authorities) is in the name as a digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit import __version__, console
from toolkit.container import profiles
from toolkit.container.profiles import Profile
from toolkit.errors import ToolkitError
from toolkit.provenance import commit

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.images import Image

REPOSITORY = "ltdv2-toolkit"
REVISION = "org.opencontainers.image.revision"
PROFILE = "io.ltdv2-toolkit.profile"
BUILDER = "io.ltdv2-toolkit.builder"
"""Labels: the commit, the profile, and whose checkout an image was built in (a digest, no path)."""

EXTRA = "docker/extra.txt"
"""Requirements that the user of a checkout wants in the image; git ignores the file."""

SOURCES = ("patches", "submission", "toolkit", "scripts", "tests", "docker")


class Unreachable(ToolkitError):
    """Something that a build must fetch is out of reach."""


@dataclass(frozen=True)
class Source:
    """What an image is made from.

    Attributes:
        profile: its pins.
        commit: of the code, with what differs from it.
        base: image to build on instead of the profile's; one that already holds PyTorch keeps it.
        name: of the image, instead of one that says what is in it.
    """

    profile: Profile
    commit: str
    base: str | None = None
    name: str | None = None

    @property
    def tag(self) -> str:
        """Name of the image."""
        if self.name is not None:
            return self.name
        head, _, dirty = self.commit.partition("-")
        code = head[:12] + (f"-{dirty}" if dirty else "")
        added = additions(self.base)
        return f"{REPOSITORY}:{self.profile.variant}-{code}" + (f"-{added}" if added else "")


def source(profile: Profile, base: str | None = None, name: str | None = None) -> Source:
    """What an image of this checkout, as it is now, is made from."""
    return Source(profile, commit() or f"tree{tree_digest()}", base, name)


def tree_digest() -> str:
    """Digest of the files that go into an image, for a checkout without git."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((profiles.ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(profiles.ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def additions(base: str | None) -> str:
    """Digest of what the image holds beside the source and the pins; "" for nothing."""
    parts = [base.encode()] if base else []
    parts += [path.read_bytes() for path in sorted((profiles.ROOT / "docker/certs").glob("*.crt"))]
    if wanted := extra():
        parts.append("\n".join(wanted).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8] if parts else ""


def extra() -> list[str]:
    """Requirements of ``docker/extra.txt``, without comments."""
    try:
        lines = (profiles.ROOT / EXTRA).read_text().splitlines()
    except OSError:
        return []
    return [text for line in lines if (text := line.partition(" #")[0].strip()) and text[0] != "#"]


def builder() -> str:
    """Who builds here: this user in this checkout, as a digest."""
    return hashlib.sha256(f"{os.getuid()}:{profiles.ROOT}".encode()).hexdigest()[:16]


def published(wanted: Source) -> str | None:
    """Where the image of this source was published; None if it is of no release.

    The workflow pushes to ``ghcr.io`` under the repository's own name; ``TOOLKIT_REGISTRY`` names another.
    """
    if wanted.base or wanted.name or additions(None) or wanted.profile.variant != wanted.profile.name:
        return None
    if f"v{__version__}" not in _git("tag", "--points-at", wanted.commit).split():
        return None
    place = os.environ.get("TOOLKIT_REGISTRY", "")
    if not place and (repository := github()):
        place = f"ghcr.io/{repository.lower()}"
    return f"{place}:{wanted.profile.name}-{__version__}" if place else None


def github() -> str:
    """Owner and name of the repository on GitHub that this checkout is a clone of; "" if it is elsewhere."""
    found = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(\.git)?$", _git("remote", "get-url", "origin"))
    return found[1] if found else ""


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(profiles.ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def ensure(client: DockerClient, wanted: Source, build: Callable[[], str]) -> Image:
    """The image of this source: the one that is there, the published one, or one that ``build`` makes.

    Where nothing can be fetched, the newest image of this checkout and profile runs instead, and the
    difference is said.

    Raises:
        ToolkitError: there is none, and none could be made.
    """
    from docker.errors import ImageNotFound

    with suppress(ImageNotFound):
        return client.images.get(wanted.tag)
    if (image := pulled(client, wanted)) is not None:
        return image
    console.note(f"building {wanted.tag}")
    try:
        build()
    except Unreachable as error:
        older = newest(client, wanted.profile)
        if older is None:
            raise
        console.warn(error.line())
        say_difference(older, name_of(older), wanted.commit)
        return older
    return client.images.get(wanted.tag)


def pulled(client: DockerClient, wanted: Source) -> Image | None:
    """The published image of this source, under the name that a build here would give it."""
    from docker.errors import DockerException

    name = published(wanted)
    if name is None:
        return None
    console.note(f"pulling {name}")
    try:
        image = client.images.pull(name)
    except (DockerException, OSError) as error:
        console.note(f"not there ({' '.join(str(error).split())}): it is built here instead")
        return None
    processor, inside = image.attrs.get("Architecture", ""), image.labels.get(REVISION)
    if processor and processor != client.version().get("Arch"):
        console.note(f"{name} is for {processor}: it is built here instead")
        return None
    if inside != wanted.commit:
        console.warn(f"{name} is of commit {inside}, not {wanted.commit}: it is built here instead")
        return None
    image.tag(wanted.tag)
    return client.images.get(wanted.tag)  # what was pulled does not know of its new name


def named(client: DockerClient, name: str, commit: str) -> Image:
    """The image called ``name``, pulled if it is not here; says so when its code is not this checkout's.

    Raises:
        ToolkitError: there is no such image, here or where it could be pulled from.
    """
    from docker.errors import DockerException, ImageNotFound

    try:
        try:
            image = client.images.get(name)
        except ImageNotFound:
            console.note(f"pulling {name}")
            image = client.images.pull(name)
    except (DockerException, OSError) as error:
        found = " ".join(str(getattr(error, "explanation", None) or error).split())
        raise ToolkitError(
            f"no image {name}", found, fix="leave --image out to run this checkout's"
        ) from error
    say_difference(image, name, commit)
    return image


def say_difference(image: Image, name: str, commit: str) -> None:
    """Warn if an image holds other code than this checkout."""
    inside = image.labels.get(REVISION, "")
    if inside != commit:
        console.warn(f"the image {name} is of commit {inside or 'unknown'}, this checkout is {commit}")


def newest(client: DockerClient, profile: Profile) -> Image | None:
    """The image of this checkout and profile that was built last."""
    labels = [f"{PROFILE}={profile.name}", f"{BUILDER}={builder()}"]
    found = client.images.list(REPOSITORY, filters={"label": labels})
    found = [image for image in found if name_of(image).startswith(f"{REPOSITORY}:{profile.variant}-")]
    return max(found, key=lambda image: image.attrs.get("Created", ""), default=None)


def name_of(image: Image) -> str:
    """The name that a build here gives an image, or another of its names, or its id."""
    ours = [tag for tag in image.tags if tag.startswith(f"{REPOSITORY}:")]
    return next(iter([*ours, *image.tags]), image.id or "")


def of_runs(runs: Iterable[Path]) -> set[str]:
    """Ids of the images that runs were made with, by their environment.json."""
    found = set()
    for path in runs:
        with suppress(OSError, ValueError, AttributeError):
            found.add(str(json.loads(path.read_bytes()).get("image", "")))
    return found - {""}
