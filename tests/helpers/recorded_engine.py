"""A container engine that remembers what it was asked, and what it is asked on a recorded machine."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from docker.errors import APIError, ImageNotFound

from toolkit.container import create, profiles, running
from toolkit.container.images import Source
from toolkit.container.mounts import Mounts
from toolkit.machine import kernel

TREES = Path(__file__).parent.parent / "fixtures/sysfs"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def places(folder: Path) -> create.Places:
    """A workspace with data that is shown read-only."""
    shown = Mounts()
    shown.add(folder / "data")
    return create.Places(folder, folder / "runs", folder / "data", shown, folder)


def arguments(
    profile: str, tree: str, *command: str, places: create.Places, **options: Any
) -> dict[str, Any]:
    """What the engine is asked for on the machine recorded in ``tree``."""
    chosen, found = profiles.load_profile(profile), kernel.read(TREES / tree)
    return create.create_arguments(chosen, found, places, command, "1000:100", **options)


def source(profile: str, base: str | None = None) -> Source:
    """A clean checkout's image."""
    return Source(profiles.load_profile(profile), COMMIT, base)


class FakeImage(SimpleNamespace):
    """An image with labels, as it was when the engine was asked for it."""

    def __init__(self, client: FakeClient, tags: list[str], labels: Mapping[str, str], made: str) -> None:
        super().__init__(id=f"sha256:{made}", tags=tags, labels=dict(labels), attrs={"Created": made})
        self.client = client

    def tag(self, name: str) -> None:
        """Give the image one more name in the engine; this object is as it was."""
        known = self.client.known
        known[known.index(self)] = FakeImage(
            self.client, [*self.tags, name], self.labels, self.attrs["Created"]
        )


class FakeClient:
    """A docker-py client that remembers what it was asked.

    Attributes:
        tags: names of images of which nothing else is known.
        known: images with labels.
        served: images that a registry has, by name.
    """

    def __init__(self, *, api: str = "1.41", root: Path = Path("/"), events: Any = ()) -> None:
        self.asked: dict[str, Any] = {}
        self.tags: list[str] = []
        self.known: list[FakeImage] = []
        self.served: dict[str, FakeImage] = {}
        self.found, self.root, self.events = api, root, events
        self.running: list[Any] = []
        self.images = SimpleNamespace(
            get=self.get, list=self.list_images, remove=self.remove_image, pull=self.pull
        )
        self.containers = SimpleNamespace(list=self.list_containers)
        self.api = SimpleNamespace(
            build=self.build, import_image=self.import_image, remove_container=lambda *_, **__: None
        )

    def version(self) -> dict[str, str]:
        return {"ApiVersion": self.found, "Arch": "amd64"}

    def info(self) -> dict[str, Any]:
        return {"DockerRootDir": str(self.root)}

    def image(self, name: str, **labels: str) -> FakeImage:
        """An image that the engine has from now on."""
        made = FakeImage(self, [name], labels, f"{len(self.known)}")
        self.known.append(made)
        return made

    def get(self, name: str) -> Any:
        for image in self.known:
            if name in (*image.tags, image.id):
                return image
        if name not in self.tags:
            raise ImageNotFound("no such image")
        return FakeImage(self, [name], {}, "0")

    def pull(self, name: str) -> Any:
        self.asked["pull"] = name
        if name not in self.served:
            raise APIError("manifest unknown")
        self.known.append(self.served[name])
        return self.served[name]

    def list_images(
        self, repository: str | None = None, filters: Mapping[str, Any] | None = None
    ) -> list[Any]:
        wanted = (filters or {}).get("label", [])
        pairs = dict(one.split("=", 1) for one in ([wanted] if isinstance(wanted, str) else wanted))
        found: list[Any] = [image for image in self.known if pairs.items() <= image.labels.items()]
        if not pairs:
            found += [SimpleNamespace(id=tag, tags=[tag], labels={}) for tag in self.tags]
        named = repository or ""
        return [image for image in found if any(tag.startswith(named) for tag in image.tags)]

    def remove_image(self, name: str) -> None:
        for image in self.known:
            if name in image.tags:
                image.tags.remove(name)
        self.known = [image for image in self.known if image.tags]

    def list_containers(self, **_: Any) -> list[Any]:
        return self.running

    def import_image(self, archive: str, repository: str, tag: str, changes: Sequence[str] = ()) -> None:
        with tarfile.open(archive) as opened:
            self.asked = {"files": [Path(name).name for name in opened.getnames()]}
        self.tags.append(f"{repository}:{tag}")

    def build(self, **arguments: Any) -> Iterator[dict[str, Any]]:
        self.asked = arguments
        yield from self.events
        self.tags.append(arguments["tag"])

    def close(self) -> None:
        pass


class Engine:
    """Runs one container, which ends at once; ``before`` is called before each request to it.

    Attributes:
        taken: names of containers of others.
        status: that it ends with.
        state: of the container, as far as the engine has come with it.
    """

    def __init__(self, before: Callable[[str], None] = lambda _: None) -> None:
        self.before, self.state = before, "none"
        self.taken: list[str] = []
        self.name, self.status = "", 0
        self.inspected: dict[str, Any] = {"State": {"Status": "running"}, "Config": {"Labels": {}}}
        self.images = SimpleNamespace(get=lambda name: SimpleNamespace(id="sha256:1", attrs={}))
        self.containers = SimpleNamespace(list=lambda **_: [])
        self.api = self

    def create_host_config(self, **options: object) -> dict[str, object]:
        return options

    def create_container(self, *, name: str, **_: object) -> None:
        self.before("create")
        if name in self.taken:
            raise APIError(
                "409", explanation=f'The container name "/{name}" is already in use by container 1'
            )
        self.name, self.state = name, "created"

    def inspect_container(self, name: str) -> dict[str, Any]:
        return self.inspected

    def attach(self, name: str, **_: object) -> Iterator[tuple[bytes, None]]:
        return iter(())

    def start(self, name: str) -> None:
        self.before("start")
        self.state = "running"

    def wait(self, name: str) -> dict[str, int]:
        self.before("wait")
        return {"StatusCode": self.status}

    def kill(self, name: str, signal: str) -> None:
        raise APIError("not running")

    def remove_container(self, name: str, force: bool = False) -> None:
        self.taken = [one for one in self.taken if one != name]
        self.state = "removed"

    def run(self, places: create.Places, **options: Any) -> int:
        """Run ``true`` in it."""
        given = arguments("cpu", "no-card", "true", places=places, **options)
        image: Any = SimpleNamespace(id="sha256:1", attrs={})
        return running.run(self, image, "ltdv2-true", given)  # type: ignore[arg-type]
