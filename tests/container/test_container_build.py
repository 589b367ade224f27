"""An engine is found, and an image is built or the reason is one clear line."""

from __future__ import annotations

import errno
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import docker
import pytest
from docker.errors import APIError, DockerException
from docker.utils.build import exclude_paths
from recorded_engine import COMMIT, FakeClient, source

from toolkit.container import build, images, profiles
from toolkit.container.engine import engine
from toolkit.errors import ToolkitError
from toolkit.machine.checks import GIB

TAG = "ltdv2-toolkit:cpu-0123456789ab"


@pytest.fixture(autouse=True)
def nothing_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout without authorities and wishes of its user's."""
    monkeypatch.setattr(images, "additions", lambda base: "")
    monkeypatch.setattr(images, "extra", list)


@pytest.fixture
def no_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "wheels", lambda client, profile: "ltdv2-wheels-cpu:0")


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
    with pytest.raises(ToolkitError, match=line), engine():
        pass


def test_an_engine_that_is_too_old_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker, "from_env", lambda **_: FakeClient(api="1.39"))
    with (
        pytest.raises(ToolkitError, match=r"too old; found API 1\.39; expected API 1\.40"),
        engine(),
    ):
        pass


def test_wheels_are_fetched_once_a_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(lock: Path, python: str, folder: Path, processor: str) -> None:
        folder.mkdir()
        (folder / f"{lock.stem}-{python}.whl").touch()

    monkeypatch.setattr(build, "_fetch", fetch)
    client, profile = FakeClient(), profiles.load_profile("cpu")
    client.tags += ["ltdv2-wheels-cpu:before", "ltdv2-wheels-rdna:kept"]
    tag = build.wheels(client, profile)  # type: ignore[arg-type]
    assert client.asked["files"] == ["wheels", "cpu-3.11.whl"]
    # Another checkout may build with another lock: nothing of it goes.
    assert client.tags == ["ltdv2-wheels-cpu:before", "ltdv2-wheels-rdna:kept", tag]

    client.asked.clear()
    assert build.wheels(client, profile) == tag  # type: ignore[arg-type]
    assert not client.asked


def test_wheels_out_of_reach_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> SimpleNamespace:
        return SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: No matching distribution\n")

    monkeypatch.setattr(build.subprocess, "run", fail)
    with pytest.raises(ToolkitError, match=r"wheels of cpu\.txt; found ERROR: No matching"):
        build.wheels(FakeClient(), profiles.load_profile("cpu"))  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_wheels")
def test_a_build_hands_over_every_pin_and_says_what_it_is() -> None:
    client = FakeClient(events=[{"stream": "Step 1/2\n"}, {"aux": {"ID": "sha256:1234"}}])
    profile = profiles.load_profile("cpu")
    assert build.build(client, source("cpu", "local")) == "sha256:1234"  # type: ignore[arg-type]
    given = client.asked["buildargs"]
    assert given["BASE"] == "local"
    assert {key: given[key] for key in profile.pins if key != "BASE"} == {
        key: value for key, value in profile.pins.items() if key != "BASE"
    }
    assert given["PROFILE"] == "cpu"
    assert given["COMMIT"] == COMMIT
    assert client.asked["tag"] == TAG
    text = (profiles.ROOT / "docker/Dockerfile").read_text()
    assert set(given) <= set(re.findall(r"^ARG (\w+)", text, flags=re.MULTILINE))


@pytest.mark.usefixtures("no_wheels")
@pytest.mark.parametrize(
    ("step", "error", "line"),
    [
        ("RUN false", "write /layer: no space left on device", "the disk is too full for the image"),
        ("FROM ${WHEELS} AS wheels", "pull access denied", f"building {TAG} failed"),
        ("FROM ${BASE} AS base", "manifest for python:3 not found", "cannot get the base image mine:1"),
        (
            "FROM ${BASE} AS base",
            "Get https://registry/v2/: dial tcp: refused",
            "cannot get the base image mine:1",
        ),
        ("RUN false", "The command returned a non-zero code: 1", f"building {TAG} failed"),
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
        build.build(FakeClient(events=events), source("cpu", "mine:1"))  # type: ignore[arg-type]


def test_no_room_for_the_wheels_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_fetch", lambda lock, python, folder, processor: folder.mkdir())
    for error in (APIError("no space left on device"), OSError(errno.ENOSPC, "No space left on device")):
        client = FakeClient()
        client.api.import_image = Mock(side_effect=error)
        with pytest.raises(ToolkitError, match="the disk is too full for the image"):
            build.build(client, source("cpu"))  # type: ignore[arg-type]


def test_a_private_key_among_the_certificates_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    (tmp_path / "docker/certs").mkdir(parents=True)
    (tmp_path / "docker/certs/proxy.crt").write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(ToolkitError, match=r"proxy\.crt must not go into an image"):
        build._check_certificates()


def sent(root: Path) -> set[str]:
    """What the engine is sent of the checkout ``root``."""
    lines = (profiles.ROOT / ".dockerignore").read_text().splitlines()
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
        cwd=profiles.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(listed.stdout.splitlines()) <= sent(profiles.ROOT)


@pytest.mark.usefixtures("no_wheels")
def test_a_full_disk_does_not_keep_an_image_that_exists_from_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB))
    client = FakeClient(events=[{"aux": {"ID": "sha256:1234"}}])
    client.tags.append("ltdv2-toolkit:rdna1-of-another-commit")
    assert build.build(client, source("rdna1")) == "sha256:1234"  # type: ignore[arg-type]


def test_a_full_disk_is_noticed_before_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: SimpleNamespace(free=GIB))
    client = FakeClient()
    with pytest.raises(ToolkitError, match=r"too full for the image; found 1\.0 GiB free"):
        build.build(client, source("rdna1"))  # type: ignore[arg-type]
    assert not client.asked


@pytest.mark.usefixtures("no_wheels")
def test_a_full_disk_is_mended_by_what_touches_nobody_else() -> None:
    events = [{"error": "write /layer: no space left on device"}]
    with pytest.raises(ToolkitError) as caught:
        build.build(FakeClient(events=events), source("cpu"))  # type: ignore[arg-type]
    assert "toolkit container prune" in caught.value.fix
    assert "system prune" not in caught.value.fix


@pytest.mark.parametrize(("arch", "processor"), [("amd64", "x86_64"), ("arm64", "aarch64")])
def test_wheels_are_those_of_the_engines_processor(
    arch: str, processor: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        asked.extend(command)
        (tmp_path / "made").mkdir(exist_ok=True)
        Path(command[-1].removeprefix("--dest=")).mkdir()
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(build.subprocess, "run", run)
    client = FakeClient()
    client.version = lambda: {"ApiVersion": "1.41", "Arch": arch}  # type: ignore[method-assign]
    tag = build.wheels(client, profiles.load_profile("cpu"))  # type: ignore[arg-type]
    assert f"--platform=manylinux_2_28_{processor}" in asked
    assert tag.endswith("-aarch64") == (arch == "arm64")
