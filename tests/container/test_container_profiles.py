"""Every profile is complete, and the card chooses one."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from packaging.requirements import Requirement
from recorded_engine import TREES

from toolkit.container import profiles
from toolkit.errors import ToolkitError
from toolkit.machine import kernel
from toolkit.machine.cards import PROFILES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.mark.parametrize(
    ("tree", "variant", "extra"),
    [
        ("rx5600xt", "rdna1", "device-gfx1010"),
        ("rx5600xt-override", "rdna1", "device-gfx1010"),
        ("rx6700xt", "rdna2-gfx1031", "device-gfx1031"),
        ("strix-halo", "rdna3-gfx1151", "device-gfx1151"),
        ("two-cards", "rdna2-gfx1031", "device-gfx1031"),
    ],
)
def test_the_card_chooses_profile_and_kernels(tree: str, variant: str, extra: str) -> None:
    profile = profiles.choose_profile(None, kernel.read(TREES / tree))
    assert (profile.variant, profile.pins["TORCH_EXTRA"]) == (variant, extra)


def test_a_hidden_card_chooses_no_profile() -> None:
    found = kernel.read(TREES / "two-cards")
    hidden = msgspec.structs.replace(found.surroundings, environment={"HIP_VISIBLE_DEVICES": "0"})
    assert profiles.choose_profile(None, replace(found, surroundings=hidden)).name == "rdna1"


def test_without_a_card_the_cpu_profile_is_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(profiles, "NVIDIA_SIGNS", (tmp_path / "nvidiactl",))
    found = kernel.read(TREES / "no-card")
    with pytest.raises(ToolkitError, match="--profile=cpu"):
        profiles.choose_profile(None, found)
    assert profiles.choose_profile("cpu", found).variant == "cpu"
    with pytest.raises(ToolkitError, match=r"no profile cuda; expected cpu, nvidia, rdna1"):
        profiles.choose_profile("cuda", found)


def test_profiles_are_complete_and_agree_with_their_locks_and_the_doctor() -> None:
    for name in profiles.profile_names():
        profile = profiles.load_profile(name)
        pins = profile.pins
        assert {"BASE", "PYTHON", "LOCK", "TORCH", "TORCHVISION", "TORCH_INDEX"} <= set(pins)
        lock = (profiles.ROOT / f"docker/locks/{pins['LOCK']}.txt").read_text()
        assert f"\nnumpy=={pins['NUMPY']} " in lock
        assert f"\nultralytics-opencv-headless=={pins['ULTRALYTICS']} " in lock
        assert re.search(rf"python:{re.escape(pins['PYTHON'])}\.\d+-.*@sha256:[0-9a-f]{{64}}$", pins["BASE"])
        assert "TRITON" in pins or name == "cpu"  # there it depends on the base
        if name != "rocm52":  # on request only: the doctor never chooses it
            assert set(profile.cards) == {arch for arch, profile in PROFILES.items() if profile == name}


def test_locks_hold_no_package_of_the_torch_family_and_a_hash_for_every_other() -> None:
    for path in (profiles.ROOT / "docker/locks").glob("*.txt"):
        entries = re.split(r"\n(?=\w)", path.read_text())[1:]
        assert entries
        for entry in entries:
            assert "--hash=sha256:" in entry
            assert not re.match(r"(torch|torchvision|triton|nvidia-c|cuda-)", entry), entry


def test_locks_hold_whatever_the_project_requires() -> None:
    project = tomllib.loads((profiles.ROOT / "pyproject.toml").read_text())["project"]
    required = [
        Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"]["fast"])
    ]
    for name in profiles.profile_names():
        pins = profiles.load_profile(name).pins
        lines = (profiles.ROOT / f"docker/locks/{pins['LOCK']}.txt").read_text().splitlines()
        locked = dict(line.split(" ")[0].split("==") for line in lines if "==" in line)
        for one in required:
            python = {"python_version": pins["PYTHON"], "python_full_version": f"{pins['PYTHON']}.0"}
            if one.name not in ("torch", "torchvision") and (
                one.marker is None or one.marker.evaluate(python)
            ):
                assert one.specifier.contains(locked[one.name]), f"{one} in {name}: run scripts/lock"


def test_nvidias_driver_chooses_its_profile_where_amds_has_no_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(profiles, "NVIDIA_SIGNS", (tmp_path,))
    chosen = profiles.choose_profile(None, kernel.read(TREES / "no-card"))
    assert (chosen.name, chosen.nvidia, chosen.cards) == ("nvidia", True, ())
    assert profiles.choose_profile(None, kernel.read(TREES / "rx5600xt")).name == "rdna1"


@pytest.mark.parametrize("name", [None, "cpu"])
def test_an_installed_package_says_where_images_are_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | None
) -> None:
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    with pytest.raises(ToolkitError, match="expected a checkout of the project; clone it"):
        profiles.choose_profile(name, kernel.read())
