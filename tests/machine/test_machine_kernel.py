"""What the kernel says, on machines that were written down."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from patches.runtime import Runtime
from toolkit.machine import kernel
from toolkit.machine.checks import GIB

TREES = Path(__file__).parent.parent / "fixtures/sysfs"


def test_integrated_graphics_count_the_memory_they_share() -> None:
    (card,) = kernel.read(TREES / "strix-halo").cards
    assert card.integrated
    assert card.shared
    assert card.memory_bytes > 60 * GIB


def test_a_carve_out_is_memory_of_the_cards_own(tmp_path: Path) -> None:
    shutil.copytree(TREES / "strix-halo", tmp_path, dirs_exist_ok=True)
    (tmp_path / "class/drm/renderD128/device/mem_info_vram_total").write_text(f"{96 * GIB}\n")
    (card,) = kernel.read(tmp_path).cards
    assert not card.shared
    assert card.memory_bytes == 96 * GIB
    assert card.memory_used_bytes > 0


@pytest.mark.parametrize(
    ("version", "arch"),
    [(100100, "gfx1010"), (100302, "gfx1032"), (110501, "gfx1151"), (90010, "gfx90a"), (120001, "gfx1201")],
)
def test_architecture_names_are_those_of_llvm(version: int, arch: str) -> None:
    assert kernel.arch_name(version) == arch


@pytest.mark.parametrize(
    ("uid", "groups", "allowed"), [(0, {5}, True), (1000, {992}, True), (1000, {44}, False), (7, {44}, True)]
)
def test_permissions_follow_owner_group_and_others(uid: int, groups: set[int], allowed: bool) -> None:
    node = kernel.DeviceNode("/dev/kfd", 0o660, 7, 992)
    assert node.allows(uid, frozenset(groups)) is allowed


def test_a_right_that_is_no_groups_counts() -> None:
    node = kernel.DeviceNode("/dev/kfd", 0o660, 0, 992, usable=True)
    assert node.allows(1000, frozenset())
    assert not msgspec.structs.replace(node, usable=False).allows(1000, frozenset({992}))


def test_what_a_limited_container_keeps_of_files_is_free(tmp_path: Path) -> None:
    mib = 1 << 20
    for name, content in (
        ("memory.max", 512 * mib),
        ("memory.current", 500 * mib),
        ("memory.stat", f"anon {60 * mib}\ninactive_file {400 * mib}"),
    ):
        (tmp_path / name).write_text(f"{content}\n")
    assert kernel.memory(tmp_path) == (512 * mib, 412 * mib)


def test_what_was_recorded_reads_like_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = TREES / "two-cards"
    monkeypatch.setattr(kernel, "SYSFS", source)
    kernel.record(tmp_path / "copy", Runtime(torch="2.11.0"), tmp_path)
    monkeypatch.undo()
    copy = kernel.read(tmp_path / "copy")
    assert copy.cards == kernel.read(source).cards
    assert copy.driver == "6.12.12"
    assert copy.surroundings.runtime == Runtime(torch="2.11.0")
    assert copy.surroundings.disk_free_bytes
    assert copy.surroundings.cpus >= 1
    assert 0 < copy.surroundings.memory_free_bytes <= copy.surroundings.memory_bytes


def test_what_cannot_be_recorded_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(TREES / "two-cards", tmp_path / "sys")
    unreadable = tmp_path / "sys/class/kfd/kfd/topology/nodes/1/properties"
    unreadable.unlink()
    unreadable.mkdir()  # root may read whatever is a file
    monkeypatch.setattr(kernel, "SYSFS", tmp_path / "sys")
    kernel.record(tmp_path / "copy", Runtime())
    assert "not recorded" in capsys.readouterr().err
    assert [card.arch for card in kernel.read(tmp_path / "copy").cards] == ["gfx1031"]
