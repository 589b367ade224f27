"""What a container is given: devices, folders, environment, rights."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import msgspec
import pytest
from recorded_engine import TREES, arguments

from toolkit import configuration
from toolkit.container import create, profiles
from toolkit.container.mounts import Mounts
from toolkit.container.request import EngineOptions
from toolkit.errors import ToolkitError
from toolkit.machine import kernel
from toolkit.machine.checks import GIB
from toolkit.supervision.recovery import Patience

WORKSPACE = ("TOOLKIT_WORKSPACE", "TOOLKIT_DATA")


def environment_of(given: dict[str, Any]) -> dict[str, str]:
    """The environment, but for where the workspace and its data are."""
    return {name: value for name, value in given["environment"].items() if name not in WORKSPACE}


def test_a_radeon_gets_its_devices_and_the_hosts_numeric_groups(places: create.Places) -> None:
    given = arguments("rdna1", "rx5600xt", "toolkit", "train", places=places)
    host = given["host_config"]
    assert host["devices"] == ["/dev/kfd:/dev/kfd:rwm", "/dev/dri:/dev/dri:rwm"]
    assert host["group_add"] == [44, 992]
    assert host["security_opt"] == ["no-new-privileges", "seccomp=unconfined"]
    assert given["user"] == "1000:100"


def test_the_cpu_gets_no_device_and_no_privilege(places: create.Places) -> None:
    given = arguments("cpu", "no-card", "toolkit", "train", places=places)
    host = given["host_config"]
    assert not {"devices", "group_add", "privileged", "cap_add", "device_requests"} & set(host)
    assert (host["security_opt"], host["cap_drop"]) == (["no-new-privileges"], ["ALL"])


@pytest.mark.parametrize("profile", ["rdna1", "rdna2", "rocm52"])
def test_a_profile_for_a_card_says_so_where_there_is_none(profile: str, places: create.Places) -> None:
    with pytest.raises(ToolkitError, match=r"no AMD GPU .* found no /dev/kfd and no /dev/dri.*--profile=cpu"):
        arguments(profile, "no-card", "toolkit", "train", places=places)


def mounted(given: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Source and mode of each mount, by where the container has it."""
    return {
        mount["Target"]: (mount["Source"], "ro" if mount["ReadOnly"] else "rw")
        for mount in given["host_config"]["mounts"]
    }


def test_data_is_read_only_runs_are_not_and_caches_are_kept(places: create.Places) -> None:
    given = arguments("rdna2", "rx6700xt", "toolkit", "train", places=places)
    assert mounted(given) == {
        str(places.data): (str(places.data), "ro"),
        str(places.runs): (str(places.runs), "rw"),
        "/cache": ("ltdv2-cache-rdna2-1000", "rw"),
    }
    assert places.data is not None
    places.mounts.add(places.data, write=True)
    given = arguments("rdna2", "rx6700xt", "toolkit", "train", places=places)
    assert mounted(given)[str(places.data)] == (str(places.data), "rw")


def test_defaults_of_the_workspace_hold_inside_but_where_its_data_is(tmp_path: Path) -> None:
    defaults, elsewhere, shown = tmp_path / "toolkit.toml", tmp_path / "elsewhere", Mounts()
    shown.add(defaults)
    places = create.Places(tmp_path, tmp_path / "runs", elsewhere, shown)
    given = arguments("cpu", "no-card", "toolkit", "train", places=places, environment={})
    assert mounted(given)[str(defaults)] == (str(defaults), "ro")
    assert given["environment"] == {"TOOLKIT_WORKSPACE": str(tmp_path), "TOOLKIT_DATA": str(elsewhere)}


def test_shared_memory_is_ample_but_within_the_ram(places: create.Places) -> None:
    assert arguments("rdna1", "rx5600xt", "true", places=places)["host_config"]["shm_size"] == 8 * GIB
    small = kernel.Machine((), (), "", kernel.Surroundings(memory_bytes=4 * GIB))
    given = create.create_arguments(profiles.load_profile("cpu"), small, places, ["true"], "1:1")
    assert given["host_config"]["shm_size"] == 2 * GIB


def test_stopping_waits_as_long_as_the_supervisor_does(places: create.Places) -> None:
    given = arguments("cpu", "no-card", "toolkit", "train", places=places)
    assert given["stop_timeout"] > Patience().stop_grace


def test_the_engine_takes_every_argument(places: create.Places) -> None:
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
    create.make_folder(tmp_path / "new/runs", "1000:100")
    create.make_folder(tmp_path / "new/runs", "1000:100")
    assert given == [(tmp_path / "new/runs", 1000, 100), (tmp_path / "new", 1000, 100)]


@pytest.mark.parametrize("user", ["banana", "1000", "1000:", ":100", "-1:100"])
def test_a_user_without_numbers_is_one_clear_line(tmp_path: Path, user: str) -> None:
    with pytest.raises(ToolkitError, match="expected uid:gid"):
        create.make_folder(tmp_path / "runs", user)


def test_only_named_variables_go_in(places: create.Places) -> None:
    passed = {"HF_TOKEN": "secret", "TOOLKIT_CONV_ROUTE": "gemm", "ROCR_VISIBLE_DEVICES": "1"}
    environment = {"PATH": "/bin", "HSA_OVERRIDE_GFX_VERSION": "10.3.0", **passed}
    given = arguments("cpu", "no-card", "true", places=places, environment=environment)
    assert environment_of(given) == passed


def test_every_variable_that_a_command_reads_reaches_the_container() -> None:
    """Or is the container's own: where it works, and the image's folders for settings and caches."""
    places = {"TOOLKIT_WORKSPACE", "TOOLKIT_RUNS", "TOOLKIT_DATA", "TOOLKIT_SETTINGS"}
    own = {*places, "XDG_CONFIG_HOME", "XDG_CACHE_HOME"}
    assert configuration.VARIABLES.keys() - own <= set(create.PASSED_ON)


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
    name: str | None, environment: dict[str, str], left: dict[str, str], places: create.Places
) -> None:
    found = kernel.read(TREES / "two-cards")
    found = replace(found, surroundings=msgspec.structs.replace(found.surroundings, environment=environment))
    profile = profiles.choose_profile(name, found)
    given = create.create_arguments(profile, found, places, ["true"], "1:1", environment=environment)
    assert environment_of(given) == left


def test_all_cards_that_the_image_has_kernels_for_are_seen(places: create.Places) -> None:
    found = kernel.read(TREES / "two-cards")
    pair = replace(found, cards=(found.cards[1], replace(found.cards[1], node=3)))
    profile = profiles.choose_profile(None, pair)
    given = create.create_arguments(profile, pair, places, ["true"], "1:1", environment={})
    assert environment_of(given) == {}


def test_a_profile_without_kernels_for_the_card_is_built_but_not_run(places: create.Places) -> None:
    found = kernel.read(TREES / "rx5600xt")
    profile = profiles.choose_profile("rdna3", found)
    assert profile.variant == "rdna3"
    with pytest.raises(ToolkitError, match=r"rdna3 holds no kernels for gfx1010; say --profile=rdna1"):
        create.create_arguments(profile, found, places, ["true"], "1:1")


def test_under_sudo_files_belong_to_who_typed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", "1001")
    monkeypatch.setenv("SUDO_GID", "1002")
    assert create.default_user() == "1001:1002"
    monkeypatch.setattr(os, "geteuid", lambda: 1003)
    monkeypatch.setattr(os, "getegid", lambda: 1004)
    assert create.default_user() == "1003:1004"


def test_what_docker_run_takes_is_handed_on(places: create.Places, tmp_path: Path) -> None:
    options = EngineOptions(
        volumes=[f"{tmp_path}:/more:ro", "kept:/kept"],
        environment=["ONE=1", "FROM_CALLER", "NOT_SET"],
        publish=["127.0.0.1:8888:8888"],
        memory="2g",
        shm_size="64m",
    )
    given = arguments(
        "cpu", "no-card", "true", places=places, options=options, environment={"FROM_CALLER": "2"}
    )
    assert mounted(given)["/more"] == (str(tmp_path), "ro")
    assert mounted(given)["/kept"] == ("kept", "rw")
    assert environment_of(given) == {"ONE": "1", "FROM_CALLER": "2"}
    host = docker.types.HostConfig(version="1.41", **given["host_config"])
    assert (host["Memory"], host["ShmSize"]) == (2 * GIB, 64 << 20)
    assert host["PortBindings"] == {"8888/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8888"}]}
    config = docker.types.ContainerConfig(version="1.41", **{**given, "host_config": host})
    assert config["ExposedPorts"] == {"8888/tcp": {}}


@pytest.mark.parametrize("volume", ["/data", "/data:inside", "/data:/inside:rx", "a:/b:ro:z"])
def test_a_volume_that_is_none_is_one_clear_line(volume: str, places: create.Places) -> None:
    with pytest.raises(ToolkitError, match="expected HOST:/CONTAINER"):
        arguments("cpu", "no-card", "true", places=places, options=EngineOptions(volumes=[volume]))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (EngineOptions(memory="lots"), "no size --memory lots; expected a number and b, k, m or g, as 16g"),
        (EngineOptions(shm_size="2 cups"), "no size --shm-size 2 cups; expected a number"),
        (EngineOptions(publish=["x:y"]), r"cannot publish x:y; expected \[ADDRESS:\]PORT:PORT"),
    ],
)
def test_an_option_that_docker_run_would_refuse_is_one_clear_line(
    options: EngineOptions, line: str, places: create.Places
) -> None:
    with pytest.raises(ToolkitError) as raised:
        arguments("cpu", "no-card", "true", places=places, options=options)
    assert re.match(line, raised.value.line())


def test_a_path_with_a_colon_is_a_mount_like_any_other(tmp_path: Path) -> None:
    shown = Mounts()
    shown.add(tmp_path / "a:b")
    given = arguments(
        "cpu", "no-card", "true", places=create.Places(tmp_path, tmp_path / "runs", None, shown)
    )
    assert mounted(given)[str(tmp_path / "a:b")] == (str(tmp_path / "a:b"), "ro")


def test_the_toolkits_own_verbs_get_a_read_only_root(places: create.Places) -> None:
    host = arguments("cpu", "no-card", "true", places=places, closed=True)["host_config"]
    assert host["read_only"] is True
    assert set(host["tmpfs"]) == {"/tmp", "/home/toolkit"}
    assert "read_only" not in arguments("cpu", "no-card", "true", places=places)["host_config"]


def test_root_keeps_what_it_needs_to_write_others_files(places: create.Places) -> None:
    chosen, found = profiles.load_profile("cpu"), kernel.read(TREES / "no-card")
    host = create.create_arguments(chosen, found, places, ["true"], "0:0")["host_config"]
    assert (host["cap_drop"], host["cap_add"]) == (["ALL"], ["CHOWN", "DAC_OVERRIDE", "FOWNER"])


def test_nvidias_cards_are_asked_for_as_the_engine_has_them(
    places: create.Places, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(profiles, "NVIDIA_SIGNS", (tmp_path / "nvidiactl",))
    with pytest.raises(ToolkitError, match=r"no NVIDIA GPU .* --profile=cpu"):
        arguments("nvidia", "no-card", "true", places=places)
    (tmp_path / "nvidiactl").touch()
    host = arguments("nvidia", "no-card", "true", places=places)["host_config"]
    assert host["device_requests"][0]["Count"] == -1
    assert host["device_requests"][0]["Capabilities"] == [["gpu"]]
    assert create.nvidia_request(cdi=True)[0]["DeviceIDs"] == ["nvidia.com/gpu=all"]
    assert create.has_cdi({"Runtimes": {"runc": {}}, "CDISpecDirs": ["/etc/cdi"]})
    assert not create.has_cdi({"Runtimes": {"nvidia": {}}, "CDISpecDirs": ["/etc/cdi"]})
