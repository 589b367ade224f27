"""What a container is given, and what a person reads when there is no engine; no engine needed."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import docker
import msgspec
import pytest
import requests
from docker.errors import APIError, DockerException, ImageNotFound
from docker.utils.build import exclude_paths
from packaging.requirements import Requirement
from typer.testing import CliRunner

from toolkit import containers, machine
from toolkit.cards import PROFILES
from toolkit.checks import GIB
from toolkit.cli import app
from toolkit.errors import ToolkitError
from toolkit.supervision.recovery import Patience

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TREES = Path(__file__).parent.parent / "fixtures/sysfs"


def arguments(
    profile: str, tree: str, *command: str, places: containers.Places, **options: Any
) -> dict[str, Any]:
    return containers.create_arguments(
        containers.load_profile(profile), machine.read(TREES / tree), places, command, "1000:100", **options
    )


@pytest.fixture
def places(tmp_path: Path) -> containers.Places:
    return containers.Places(tmp_path / "data", tmp_path / "runs")


def test_a_radeon_gets_its_devices_and_the_hosts_numeric_groups(places: containers.Places) -> None:
    given = arguments("rdna1", "rx5600xt", "toolkit", "train", places=places)
    assert given["image"] == "ltdv2-toolkit:rdna1"
    host = given["host_config"]
    assert host["devices"] == ["/dev/kfd:/dev/kfd:rwm", "/dev/dri:/dev/dri:rwm"]
    assert host["group_add"] == [44, 992]
    assert host["security_opt"] == ["seccomp=unconfined"]
    assert given["user"] == "1000:100"


def test_the_cpu_gets_no_device_and_no_privilege(places: containers.Places) -> None:
    given = arguments("cpu", "no-card", "toolkit", "train", places=places)
    assert not {"devices", "group_add", "security_opt", "privileged"} & set(given["host_config"])


@pytest.mark.parametrize("profile", ["rdna1", "rdna2", "rocm52"])
def test_a_profile_for_a_card_says_so_where_there_is_none(profile: str, places: containers.Places) -> None:
    with pytest.raises(ToolkitError, match=r"no AMD GPU .* found no /dev/kfd and no /dev/dri.*PROFILE=cpu"):
        arguments(profile, "no-card", "toolkit", "train", places=places)


def test_data_is_read_only_runs_are_not_and_caches_are_kept(places: containers.Places) -> None:
    given = arguments("rdna2", "rx6700xt", "toolkit", "train", places=places)
    assert given["host_config"]["binds"] == {
        str(places.data): {"bind": "/workspace/data", "mode": "ro"},
        str(places.runs): {"bind": "/workspace/runs", "mode": "rw"},
        "ltdv2-cache-rdna2-1000": {"bind": "/cache", "mode": "rw"},
    }
    writable = containers.Places(places.data, places.runs, writable=True)
    given = arguments("rdna2", "rx6700xt", "toolkit", "train", places=writable)
    assert given["host_config"]["binds"][str(places.data)]["mode"] == "rw"


def test_defaults_of_the_workspace_hold_inside_but_where_its_data_is(tmp_path: Path) -> None:
    defaults = tmp_path / "toolkit.toml"
    places = containers.Places(tmp_path / "elsewhere", tmp_path / "runs", defaults=defaults)
    given = arguments("cpu", "no-card", "toolkit", "train", places=places, environment={})
    bound = given["host_config"]["binds"][str(defaults)]
    assert bound == {"bind": "/workspace/toolkit.toml", "mode": "ro"}
    assert given["environment"] == {"TOOLKIT_DATA": "/workspace/data"}


def test_shared_memory_is_ample_but_within_the_ram(places: containers.Places) -> None:
    assert arguments("rdna1", "rx5600xt", "true", places=places)["host_config"]["shm_size"] == 8 * GIB
    small = machine.Machine((), (), "", machine.Surroundings(memory_bytes=4 * GIB))
    given = containers.create_arguments(containers.load_profile("cpu"), small, places, ["true"], "1:1")
    assert given["host_config"]["shm_size"] == 2 * GIB


def test_stopping_waits_as_long_as_the_supervisor_does(places: containers.Places) -> None:
    given = arguments("cpu", "no-card", "toolkit", "train", places=places)
    assert given["stop_timeout"] > Patience().stop_grace


def test_the_engine_takes_every_argument(places: containers.Places) -> None:
    given = arguments("rdna1", "rx5600xt", "toolkit", "train", places=places)
    host = docker.types.HostConfig(version="1.41", **given.pop("host_config"))
    config = docker.types.ContainerConfig(version="1.41", host_config=host, **given)
    assert config["StopTimeout"] == given["stop_timeout"]
    assert config["HostConfig"]["Devices"][0]["PathOnHost"] == "/dev/kfd"


def test_a_new_folder_for_runs_belongs_to_the_user_of_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[object, ...]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda *arguments: given.append(arguments))
    containers.make_runs(tmp_path / "runs", "1000:100")
    containers.make_runs(tmp_path / "runs", "1000:100")
    assert given == [(tmp_path / "runs", 1000, 100)]


@pytest.mark.parametrize("user", ["banana", "1000", "1000:", ":100", "-1:100"])
def test_a_user_without_numbers_is_one_clear_line(tmp_path: Path, user: str) -> None:
    with pytest.raises(ToolkitError, match="expected uid:gid"):
        containers.make_runs(tmp_path / "runs", user)


def test_only_named_variables_go_in(places: containers.Places) -> None:
    passed = {"HF_TOKEN": "secret", "TOOLKIT_CONV_ROUTE": "gemm", "ROCR_VISIBLE_DEVICES": "1"}
    environment = {"PATH": "/bin", "HSA_OVERRIDE_GFX_VERSION": "10.3.0", **passed}
    given = arguments("cpu", "no-card", "true", places=places, environment=environment)
    assert given["environment"] == passed


@pytest.mark.parametrize(
    ("tree", "image", "extra"),
    [
        ("rx5600xt", "ltdv2-toolkit:rdna1", "device-gfx1010"),
        ("rx5600xt-override", "ltdv2-toolkit:rdna1", "device-gfx1010"),
        ("rx6700xt", "ltdv2-toolkit:rdna2-gfx1031", "device-gfx1031"),
        ("strix-halo", "ltdv2-toolkit:rdna3-gfx1151", "device-gfx1151"),
        ("two-cards", "ltdv2-toolkit:rdna2-gfx1031", "device-gfx1031"),
    ],
)
def test_the_card_chooses_profile_and_kernels(tree: str, image: str, extra: str) -> None:
    profile = containers.choose_profile(None, machine.read(TREES / tree))
    assert (profile.image, profile.pins["TORCH_EXTRA"]) == (image, extra)


@pytest.mark.parametrize(
    ("name", "environment", "left"),
    [
        (None, {}, {"ROCR_VISIBLE_DEVICES": "1"}),
        ("rdna1", {}, {"ROCR_VISIBLE_DEVICES": "0"}),
        (None, {"ROCR_VISIBLE_DEVICES": "1,0"}, {"ROCR_VISIBLE_DEVICES": "1"}),
        (None, {"HIP_VISIBLE_DEVICES": "1,0"}, {"ROCR_VISIBLE_DEVICES": "1"}),
        (None, {"HIP_VISIBLE_DEVICES": "1"}, {"HIP_VISIBLE_DEVICES": "1"}),
    ],
)
def test_a_container_sees_no_card_that_its_image_has_no_kernels_for(
    name: str | None, environment: dict[str, str], left: dict[str, str], places: containers.Places
) -> None:
    found = machine.read(TREES / "two-cards")
    found = replace(found, surroundings=msgspec.structs.replace(found.surroundings, environment=environment))
    profile = containers.choose_profile(name, found)
    given = containers.create_arguments(profile, found, places, ["true"], "1:1", environment=environment)
    assert given["environment"] == left


def test_all_cards_that_the_image_has_kernels_for_are_seen(places: containers.Places) -> None:
    found = machine.read(TREES / "two-cards")
    pair = replace(found, cards=(found.cards[1], replace(found.cards[1], node=3)))
    profile = containers.choose_profile(None, pair)
    given = containers.create_arguments(profile, pair, places, ["true"], "1:1", environment={})
    assert given["environment"] == {}


def test_a_profile_without_kernels_for_the_card_is_built_but_not_run(places: containers.Places) -> None:
    found = machine.read(TREES / "rx5600xt")
    profile = containers.choose_profile("rdna3", found)
    assert profile.image == "ltdv2-toolkit:rdna3"
    with pytest.raises(ToolkitError, match=r"rdna3 holds no kernels for gfx1010; say PROFILE=rdna1"):
        containers.create_arguments(profile, found, places, ["true"], "1:1")


def test_a_hidden_card_chooses_no_profile() -> None:
    found = machine.read(TREES / "two-cards")
    hidden = msgspec.structs.replace(found.surroundings, environment={"HIP_VISIBLE_DEVICES": "0"})
    assert containers.choose_profile(None, replace(found, surroundings=hidden)).name == "rdna1"


def test_without_a_card_the_cpu_profile_is_offered() -> None:
    found = machine.read(TREES / "no-card")
    with pytest.raises(ToolkitError, match="PROFILE=cpu"):
        containers.choose_profile(None, found)
    assert containers.choose_profile("cpu", found).image == "ltdv2-toolkit:cpu"
    with pytest.raises(ToolkitError, match=r"no profile cuda; expected cpu, rdna1"):
        containers.choose_profile("cuda", found)


def test_profiles_are_complete_and_agree_with_their_locks_and_the_doctor() -> None:
    for name in containers.profile_names():
        profile = containers.load_profile(name)
        pins = profile.pins
        assert {"BASE", "PYTHON", "LOCK", "TORCH", "TORCHVISION", "TORCH_INDEX"} <= set(pins)
        lock = (containers.ROOT / f"docker/locks/{pins['LOCK']}.txt").read_text()
        assert f"\nnumpy=={pins['NUMPY']} " in lock
        assert f"\nultralytics-opencv-headless=={pins['ULTRALYTICS']} " in lock
        assert re.search(rf"python:{re.escape(pins['PYTHON'])}\.\d+-.*@sha256:[0-9a-f]{{64}}$", pins["BASE"])
        assert "TRITON" in pins or name == "cpu"  # there it depends on the base
        if name != "rocm52":  # on request only: the doctor never chooses it
            assert set(profile.cards) == {arch for arch, profile in PROFILES.items() if profile == name}


def test_locks_hold_no_package_of_the_torch_family_and_a_hash_for_every_other() -> None:
    for path in (containers.ROOT / "docker/locks").glob("*.txt"):
        entries = re.split(r"\n(?=\w)", path.read_text())[1:]
        assert entries
        for entry in entries:
            assert "--hash=sha256:" in entry
            assert not re.match(r"(torch|torchvision|triton|nvidia-c|cuda-)", entry), entry


def test_locks_hold_whatever_the_project_requires() -> None:
    project = tomllib.loads((containers.ROOT / "pyproject.toml").read_text())["project"]
    required = [
        Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"]["fast"])
    ]
    for name in containers.profile_names():
        pins = containers.load_profile(name).pins
        lines = (containers.ROOT / f"docker/locks/{pins['LOCK']}.txt").read_text().splitlines()
        locked = dict(line.split(" ")[0].split("==") for line in lines if "==" in line)
        for one in required:
            python = {"python_version": pins["PYTHON"], "python_full_version": f"{pins['PYTHON']}.0"}
            if one.name not in ("torch", "torchvision") and (
                one.marker is None or one.marker.evaluate(python)
            ):
                assert one.specifier.contains(locked[one.name]), f"{one} in {name}: run scripts/lock"


class FakeClient:
    """A docker-py client that remembers what it was asked."""

    def __init__(self, *, api: str = "1.41", root: Path = Path("/"), events: Any = ()) -> None:
        self.asked: dict[str, Any] = {}
        self.tags: list[str] = []
        self.images = SimpleNamespace(get=self.get, list=self.list_images, remove=self.tags.remove)
        self.api = SimpleNamespace(
            build=self.build, import_image=self.import_image, remove_container=lambda *_, **__: None
        )
        self.found, self.root, self.events = api, root, events

    def version(self) -> dict[str, str]:
        return {"ApiVersion": self.found}

    def info(self) -> dict[str, str]:
        return {"DockerRootDir": str(self.root)}

    def get(self, name: str) -> Any:
        if name not in self.tags:
            raise ImageNotFound("no such image")

    def list_images(self, repository: str) -> list[Any]:
        return [SimpleNamespace(tags=[tag]) for tag in self.tags if tag.startswith(f"{repository}:")]

    def import_image(self, archive: str, repository: str, tag: str) -> None:
        with tarfile.open(archive) as opened:
            self.asked = {"files": [Path(name).name for name in opened.getnames()]}
        self.tags.append(f"{repository}:{tag}")

    def build(self, **arguments: Any) -> Iterator[dict[str, Any]]:
        self.asked = arguments
        yield from self.events

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("Error while fetching: PermissionError(13, 'Permission denied')", "usermod -aG docker"),
        ("Error while fetching: FileNotFoundError(2)", "install and start docker"),
        ("API versions below 1.24 are no longer supported by this library.", "too old"),
    ],
)
def test_an_engine_that_cannot_be_used_is_one_clear_line(
    reason: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise DockerException(reason)

    monkeypatch.setattr(docker, "from_env", refuse)
    with pytest.raises(ToolkitError, match=line), containers.engine():
        pass


def test_an_engine_that_is_too_old_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "from_env", lambda **_: FakeClient(api="1.39"))
    with (
        pytest.raises(ToolkitError, match=r"too old; found API 1\.39; expected API 1\.40"),
        containers.engine(),
    ):
        pass


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "wheels", lambda client, profile: "ltdv2-wheels-cpu:0")


def test_wheels_are_fetched_once_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(lock: Path, python: str, folder: Path) -> None:
        folder.mkdir()
        (folder / f"{lock.stem}-{python}.whl").touch()

    monkeypatch.setattr(containers, "_fetch", fetch)
    client, profile = FakeClient(), containers.load_profile("cpu")
    client.tags += ["ltdv2-wheels-cpu:before", "ltdv2-wheels-rdna:kept"]
    tag = containers.wheels(client, profile)  # type: ignore[arg-type]
    assert client.asked["files"] == ["wheels", "cpu-3.11.whl"]
    assert client.tags == ["ltdv2-wheels-rdna:kept", tag]

    client.asked.clear()
    assert containers.wheels(client, profile) == tag  # type: ignore[arg-type]
    assert not client.asked


def test_wheels_out_of_reach_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: No matching distribution\n")

    monkeypatch.setattr(containers.subprocess, "run", fail)
    with pytest.raises(ToolkitError, match=r"wheels of cpu\.txt; found ERROR: No matching"):
        containers.wheels(FakeClient(), containers.load_profile("cpu"))  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_wheels")
def test_a_build_hands_over_every_pin_and_says_what_it_is() -> None:
    client = FakeClient(events=[{"stream": "Step 1/2\n"}, {"aux": {"ID": "sha256:1234"}}])
    profile = containers.load_profile("cpu")
    assert containers.build(client, profile, base="local") == "sha256:1234"  # type: ignore[arg-type]
    given = client.asked["buildargs"]
    assert given["BASE"] == "local"
    assert {key: given[key] for key in profile.pins if key != "BASE"} == {
        key: value for key, value in profile.pins.items() if key != "BASE"
    }
    assert given["PROFILE"] == "cpu"
    assert client.asked["tag"] == "ltdv2-toolkit:cpu"
    text = (containers.ROOT / "docker/Dockerfile").read_text()
    assert set(given) <= set(re.findall(r"^ARG (\w+)", text, flags=re.MULTILINE))


@pytest.mark.usefixtures("no_wheels")
@pytest.mark.parametrize(
    ("step", "error", "line"),
    [
        ("RUN false", "write /layer: no space left on device", "the disk is too full for the image"),
        ("FROM ${WHEELS} AS wheels", "pull access denied", "building ltdv2-toolkit:cpu failed"),
        ("FROM ${BASE} AS base", "manifest for python:3 not found", "cannot get the base image mine:1"),
        (
            "FROM ${BASE} AS base",
            "Get https://registry/v2/: dial tcp: refused",
            "cannot get the base image mine:1",
        ),
        ("RUN false", "The command returned a non-zero code: 1", "building ltdv2-toolkit:cpu failed"),
        (
            "RUN gcc",
            "The command 'gcc' failed: gcc: not found",
            r"building .* failed.*\(after: .*gcc: not found\)",
        ),
    ],
)
def test_a_build_that_fails_is_one_clear_line(step: str, error: str, line: str) -> None:
    events = [
        {"stream": f"Step 9/9 : {step}\n"},
        {"stream": "/bin/sh: 1: gcc: not found\n"},
        {"error": error},
    ]
    with pytest.raises(ToolkitError, match=line):
        containers.build(FakeClient(events=events), containers.load_profile("cpu"), "mine:1")  # type: ignore[arg-type]


def test_no_room_for_the_wheels_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_fetch", lambda lock, python, folder: folder.mkdir())
    for error in (APIError("no space left on device"), OSError(errno.ENOSPC, "No space left on device")):
        client = FakeClient()
        client.api.import_image = Mock(side_effect=error)
        with pytest.raises(ToolkitError, match="the disk is too full for the image"):
            containers.build(client, containers.load_profile("cpu"))  # type: ignore[arg-type]


def test_another_build_may_keep_the_wheels_of_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "_fetch", lambda lock, python, folder: folder.mkdir())
    client, profile = FakeClient(), containers.load_profile("cpu")
    client.tags.append("ltdv2-wheels-cpu:before")
    client.images.remove = Mock(side_effect=APIError("conflict: the image is being used"))
    assert containers.wheels(client, profile) in client.tags  # type: ignore[arg-type]


def test_a_private_key_among_the_certificates_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "ROOT", tmp_path)
    (tmp_path / "docker/certs").mkdir(parents=True)
    (tmp_path / "docker/certs/proxy.crt").write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(ToolkitError, match=r"proxy\.crt must not go into an image"):
        containers._check_certificates()


def sent(root: Path) -> set[str]:
    """What the engine is sent of the checkout ``root``."""
    lines = (containers.ROOT / ".dockerignore").read_text().splitlines()
    names = exclude_paths(str(root), [line for line in lines if not line.startswith("#")])
    return {name for name in names if (root / name).is_file()}


def test_secrets_that_are_kept_in_a_checkout_stay_there(tmp_path: Path) -> None:
    kept = {"docker/certs/proxy.crt", "toolkit/cli/__init__.py", "scripts/demo"}
    secret = {
        "docker/certs/proxy.key",
        "docker/certs/key.txt",
        "toolkit/.env",
        "tests/.aws/login",
        "tests/a.pem",
    }
    for name in kept | secret:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert sent(tmp_path) - {"docker/Dockerfile", ".dockerignore"} == kept


def test_the_image_is_sent_all_of_the_project() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "patches", "submission", "toolkit", "scripts", "tests"],
        cwd=containers.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(listed.stdout.splitlines()) <= sent(containers.ROOT)


@pytest.mark.usefixtures("no_wheels")
def test_a_full_disk_does_not_keep_an_image_that_exists_from_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers.shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB))
    client = FakeClient(events=[{"aux": {"ID": "sha256:1234"}}])
    client.tags.append("ltdv2-toolkit:rdna1")
    assert containers.build(client, containers.load_profile("rdna1")) == "sha256:1234"  # type: ignore[arg-type]


def test_a_full_disk_is_noticed_before_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers.shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB))
    client = FakeClient()
    with pytest.raises(ToolkitError, match=r"too full for the image; found 1\.0 GiB free"):
        containers.build(client, containers.load_profile("rdna1"))  # type: ignore[arg-type]
    assert not client.asked


def test_a_missing_image_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @contextmanager
    def fake() -> Iterator[FakeClient]:
        yield FakeClient()

    monkeypatch.setattr(containers, "engine", fake)
    monkeypatch.setenv("TOOLKIT_WORKSPACE", str(tmp_path))
    result = CliRunner().invoke(app, ["container", "evaluate", "--profile", "cpu", "--report"])
    assert isinstance(result.exception, ToolkitError)
    assert "make docker-build PROFILE=cpu" in result.exception.line()


def test_training_without_data_ends_before_a_container_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "Train.json").touch()
    monkeypatch.setenv("TOOLKIT_WORKSPACE", str(tmp_path))
    result = CliRunner().invoke(app, ["container", "train", "--profile", "cpu"])
    assert isinstance(result.exception, ToolkitError)
    assert "cannot tell where the data is; found " in result.exception.line()


def test_the_image_of_another_card_is_built_by_its_profiles_name(places: containers.Places) -> None:
    found = machine.read(TREES / "rx6700xt")
    profile = containers.choose_profile(None, found)
    given = containers.create_arguments(profile, found, places, ["true"], "1:1")
    with pytest.raises(
        ToolkitError, match=r"no image ltdv2-toolkit:rdna2-gfx1031; make docker-build PROFILE=rdna2 "
    ):
        containers.run(FakeClient(), profile, given)  # type: ignore[arg-type]


def test_a_container_knows_its_image_and_where_that_is_served(places: containers.Places) -> None:
    given: dict[str, Any] = {}

    def create(**arguments: Any) -> None:
        given.update(arguments)
        raise APIError("no more is needed")

    def gone(*_: object, **__: object) -> None:
        raise APIError("no such container")

    image = SimpleNamespace(id="sha256:1", attrs={"RepoDigests": ["one@sha256:2", "other@sha256:2"]})
    client: Any = SimpleNamespace(
        images=SimpleNamespace(get=lambda name: image),
        api=SimpleNamespace(create_host_config=dict, create_container=create, remove_container=gone),
    )
    with pytest.raises(ToolkitError, match="the engine refused the container"):
        containers.run(
            client, containers.load_profile("cpu"), arguments("cpu", "no-card", "true", places=places)
        )
    assert given["environment"]["TOOLKIT_IMAGE"] == "sha256:1"
    assert given["environment"]["TOOLKIT_IMAGE_DIGESTS"] == "one@sha256:2 other@sha256:2"


def test_an_examination_that_fails_is_no_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_: object) -> None:
        raise DockerException("FileNotFoundError(2)")

    monkeypatch.setattr(docker, "from_env", refuse)
    monkeypatch.setenv("TOOLKIT_WORKSPACE", str(tmp_path))
    result = CliRunner().invoke(app, ["container", "doctor", "--profile", "cpu"])
    assert isinstance(result.exception, ToolkitError)
    assert result.exception.exit_code == 2


class Engine:
    """Runs one container, which ends at once; ``before`` is called before each request to it."""

    def __init__(self, before: Callable[[str], None] = lambda _: None) -> None:
        self.before, self.state = before, "none"
        self.images = SimpleNamespace(get=lambda name: SimpleNamespace(id="sha256:1", attrs={}))
        self.api = self

    def create_host_config(self, **options: object) -> dict[str, object]:
        return options

    def create_container(self, **_: object) -> None:
        self.before("create")
        self.state = "created"

    def attach(self, name: str, **_: object) -> Iterator[tuple[bytes, None]]:
        return iter(())

    def start(self, name: str) -> None:
        self.before("start")
        self.state = "running"

    def wait(self, name: str) -> dict[str, int]:
        self.before("wait")
        return {"StatusCode": 0}

    def kill(self, name: str, signal: str) -> None:
        raise APIError("not running")

    def remove_container(self, name: str, force: bool) -> None:
        self.state = "removed"

    def run(self, places: containers.Places) -> int:
        given = arguments("cpu", "no-card", "true", places=places)
        return containers.run(self, containers.load_profile("cpu"), given)  # type: ignore[arg-type]


@pytest.mark.parametrize("request_", ["create", "start"])
def test_a_signal_before_the_command_runs_ends_it(request_: str, places: containers.Places) -> None:
    def interrupt(request: str) -> None:
        if request == request_:
            os.kill(os.getpid(), signal.SIGINT)

    engine = Engine(before=interrupt)
    assert engine.run(places) == 130
    assert engine.state == "removed"


def test_a_second_signal_ends_the_wait_for_an_engine_that_hangs(places: containers.Places) -> None:
    def hang(request: str) -> None:
        if request == "create":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    engine = Engine(before=hang)
    with pytest.raises(KeyboardInterrupt):
        engine.run(places)
    assert engine.state == "removed"


def test_an_engine_that_goes_away_leaves_the_container_alone_and_names_it(places: containers.Places) -> None:
    def vanish(request: str) -> None:
        if request == "wait":
            raise requests.exceptions.ConnectionError("connection aborted")

    engine = Engine(before=vanish)
    with pytest.raises(ToolkitError, match=r"went away; found connection aborted; .*docker logs -f ltdv2-"):
        engine.run(places)
    assert engine.state == "running"


def test_the_status_waits_for_the_reader_of_the_output(
    places: containers.Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []
    monkeypatch.setattr(threading.Thread, "join", lambda thread, timeout=None: limits.append(timeout))
    assert Engine().run(places) == 0
    assert limits == [None]


@pytest.mark.parametrize(("shell", "sent"), [(False, "SIGTERM"), (True, "SIGHUP")])
def test_a_closed_terminal_stops_the_container(shell: bool, sent: str) -> None:
    kills: list[str] = []
    api: Any = SimpleNamespace(kill=lambda name, signal: kills.append(signal))
    before = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with containers._forwarding(api, "name", tty=False, shell=shell):
            os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with containers._forwarding(api, "name", tty=False, shell=shell):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert kills == [sent]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What make would run."""
    return subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *arguments],
        cwd=containers.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )


def test_make_hands_over_a_folder_with_a_space() -> None:
    assert (
        '--profile "cpu" --data "my data/ltdv2"'
        in make("docker-shell", "PROFILE=cpu", "DATA=my data/ltdv2").stdout
    )


def test_making_the_small_environment_leaves_the_systems_python_alone(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        '[ "$2" = venv ] || { echo "$2" >> calls; exit; }\n'
        'mkdir -p "$3/bin"; ln -s "$0" "$3/bin/python"\n'
    )
    python.chmod(0o755)
    os.utime(python, (1, 1))  # older than anything, as the system's is
    (tmp_path / "docker").mkdir()
    for name in ("Makefile", "docker/docker.mk", "docker/constraints.txt"):
        shutil.copy(containers.ROOT / name, tmp_path / name)
    for _ in range(2):
        subprocess.run(["make", "docker-build", f"PYTHON={python}"], cwd=tmp_path, check=True)
    assert python.stat().st_mtime == 1
    assert (tmp_path / "calls").read_text().split() == ["pip", "toolkit", "toolkit"]


def test_an_environment_of_another_python_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "lib/python3.12/site-packages/torch").mkdir(parents=True)
    (tmp_path / "docker").symlink_to("/bin/false")  # no such image
    result = subprocess.run(
        [sys.executable, containers.ROOT / "scripts/make-cpu-base", "--torch-from", tmp_path],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == f"make-cpu-base: {tmp_path} has no PyTorch for Python 3.11\n"


def test_a_profile_that_does_not_exist_is_refused_before_anything_is_installed() -> None:
    result = subprocess.run(
        [containers.ROOT / "scripts/container-test", "nope"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == (
        "container-test: no profile nope; expected cpu, rdna1, rdna2, rdna3, rdna4, rocm52\n"
    )


def test_under_sudo_files_belong_to_who_typed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers.os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", "1001")
    monkeypatch.setenv("SUDO_GID", "1002")
    assert containers.default_user() == "1001:1002"
    monkeypatch.setattr(containers.os, "geteuid", lambda: 1003)
    monkeypatch.setattr(containers.os, "getegid", lambda: 1004)
    assert containers.default_user() == "1003:1004"


def test_a_small_environment_is_enough_to_drive_an_engine(tmp_path: Path) -> None:
    given = (containers.ROOT / "docker/docker.mk").read_text()
    assert "docker msgspec numpy rich typer\n" in given  # what .venv-docker holds
    program = (
        "import sys\n"
        "for name in 'torch torchvision ultralytics polars cv2 yaml pycocotools psutil'.split():\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['toolkit', 'container', 'run', '--profile', 'none', 'true']\n"
        "from toolkit.cli import main\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(containers.ROOT), "TOOLKIT_WORKSPACE": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stderr == "error: no profile none; expected cpu, rdna1, rdna2, rdna3, rdna4, rocm52\n"


def test_the_caller_overrules_the_profile_and_the_profile_the_defaults(tmp_path: Path) -> None:
    given = tmp_path / "environment"
    given.write_text("AMDGCN_USE_BUFFER_OPS=0\nTRITON_CACHE_DIR=/cache/own\nTRITON_CACHE_DIR=/cache/triton\n")
    script = (
        (containers.ROOT / "docker/entrypoint").read_text().replace("/opt/toolkit/environment", str(given))
    )
    show = "echo $AMDGCN_USE_BUFFER_OPS $TRITON_CACHE_DIR $USER"
    result = subprocess.run(
        ["sh", "-c", script, "entrypoint", "sh", "-c", show],
        env={"PATH": os.environ["PATH"], "AMDGCN_USE_BUFFER_OPS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "1 /cache/own toolkit\n"


@pytest.fixture
def check_image(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(containers.ROOT / "docker"))
    for name in ("find_torch", "check_image"):
        sys.modules.pop(name, None)
    spec = importlib.util.spec_from_file_location("check_image", containers.ROOT / "docker/check_image.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_build_fails_when_torch_was_replaced_or_a_pin_is_off(
    check_image: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    record = tmp_path / "torch.pth"
    monkeypatch.setattr(check_image, "TORCH_BEFORE", record)
    monkeypatch.setenv("PYTHON", ".".join(str(part) for part in sys.version_info[:2]))
    monkeypatch.setenv("TORCH", str(torch.__version__).partition("+")[0])
    for variable in ("TORCHVISION", "TRITON", "NUMPY", "ULTRALYTICS"):
        monkeypatch.setenv(variable, "")
    folder = Path(torch.__file__).parents[1]
    record.write_text(f"{folder}\n# {check_image.fingerprint()}\n")
    assert check_image.problems() == []

    record.write_text(f"{folder}\n# torch 1.13.1 0000\n")
    assert "PyTorch was replaced" in check_image.problems()[0]
    record.write_text(f"/elsewhere\n# {check_image.fingerprint()}\n")
    assert "PyTorch was replaced" in check_image.problems()[0]

    record.write_text(f"{folder}\n# {check_image.fingerprint()}\n")
    monkeypatch.setenv("NUMPY", "1.0.0")
    monkeypatch.setenv("PYTHON", "2.7")
    assert [line.partition(":")[0] for line in check_image.problems()] == ["numpy", "Python"]


def test_a_pin_may_say_that_a_package_is_absent(check_image: ModuleType) -> None:
    assert check_image.installed("no-such-package") == "none"
    assert check_image.installed("numpy") != "none"
