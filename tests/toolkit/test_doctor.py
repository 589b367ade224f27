"""The doctor on seven machines that were written down, and on children that misbehave."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from patches.convolution import routes, selftest
from toolkit import doctor, machine
from toolkit.cli import app
from toolkit.doctor import GIB, ROUTES, Report, SelfTest, Verdict, diagnose, step_bytes
from toolkit.errors import ToolkitError
from toolkit.runtime import Runtime, RuntimeDevice, ask

TREES = Path(__file__).parent.parent / "fixtures/sysfs"
PLENTY = 200 * GIB


def diagnosed(tree: str, *self_tests: SelfTest, disk_free: int = PLENTY) -> Report:
    found = machine.read(TREES / tree)
    runtime = msgspec.convert(found.surroundings.runtime, Runtime)
    return diagnose(found, runtime, self_tests, disk_free)


def verdicts(report: Report) -> dict[str, Verdict]:
    return {finding.subject: finding.verdict for finding in report.findings}


def said(report: Report, subject: str) -> str:
    return next(
        f"{finding.found} | {finding.advice}" for finding in report.findings if finding.subject == subject
    )


GPU = RuntimeDevice("a GPU", "sm_90", 80 * GIB)
PASSED = SelfTest("triton", "cuda", True, "", 1.0), SelfTest("gemm", "cuda", True, "", 1.0)


@pytest.mark.parametrize(
    ("tree", "verdict", "profile", "device", "batch"),
    [
        ("rx5600xt", Verdict.FINE, "rdna1", "0", "16"),
        ("rx5600xt-override", Verdict.LIMITS, "rdna1", "0", "16"),
        ("rx6700xt", Verdict.FINE, "rdna2", "0", "32"),
        ("strix-halo", Verdict.FINE, "rdna3", "0", "64"),
        ("two-cards", Verdict.FINE, "rdna2", "1", "32"),
        ("no-card", Verdict.LIMITS, "cpu", "cpu", "4"),
        ("no-permission", Verdict.FAILS, "rdna1", "0", "16"),
    ],
)
def test_each_machine_gets_its_verdict_and_settings(
    tree: str, verdict: Verdict, profile: str, device: str, batch: str
) -> None:
    report = diagnosed(tree, *(() if tree == "no-card" else PASSED))
    chosen = report.recommendation
    assert report.verdict == verdict
    assert (chosen.profile.value, chosen.device.value, chosen.batch.value) == (profile, device, batch)
    assert all(choice.reason for choice in msgspec.structs.astuple(chosen))


def test_the_true_architecture_survives_an_override() -> None:
    report = diagnosed("rx5600xt-override", *PASSED)
    assert said(report, "architecture").startswith(
        "true gfx1010; runtime reports gfx1030; override to gfx1030"
    )
    assert said(report, "rocBLAS").startswith("kernels for gfx1030")
    assert said(report, "MIOpen").startswith("no kernels for gfx1010")


def test_a_missing_permission_names_the_group_to_join() -> None:
    report = diagnosed("no-permission")
    assert verdicts(report)["/dev/kfd"] == verdicts(report)["/dev/dri/renderD128"] == Verdict.FAILS
    assert "usermod -aG render" in said(report, "/dev/kfd")
    assert "--group-add 992" in said(report, "/dev/kfd")


def test_integrated_graphics_count_the_memory_they_share() -> None:
    (card,) = machine.read(TREES / "strix-halo").cards
    assert card.integrated
    assert card.memory_bytes > 60 * GIB


def test_a_route_that_fails_its_self_test_is_struck_off() -> None:
    hung = SelfTest("triton", "cuda", False, "no answer within 60 s", 60.0)
    report = diagnosed("rx5600xt", hung, SelfTest("gemm", "cuda", True, "", 1.0))
    assert report.verdict == verdicts(report)["route triton"] == Verdict.LIMITS
    assert report.recommendation.route.value == "gemm"
    nothing = diagnosed("rx5600xt", hung)
    assert nothing.recommendation.route.value == "native"


def test_the_routes_that_are_tried_are_those_that_exist() -> None:
    assert set(ROUTES) == set(routes.NAMES)


@pytest.mark.parametrize(
    ("devices", "triton", "tried"),
    [
        ((), "3.8.0", [("gemm", "cpu")]),
        ((GPU,), "3.8.0", [(route, "cuda") for route in ROUTES]),
        ((GPU,), "", [(route, "cuda") for route in ROUTES if route != "triton"]),
    ],
)
def test_every_route_is_tried_on_the_gpu_and_one_on_the_cpu_without(
    devices: tuple[RuntimeDevice, ...],
    triton: str,
    tried: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(route: str, device: str, timeout: float) -> selftest.SelfTestResult:
        return selftest.SelfTestResult(route, route != "library", "silent zeros", timeout)

    monkeypatch.setattr(selftest, "run", run)
    runtime = Runtime(torch="2.14.1", torchvision="0.29.1", triton=triton, cuda="13.0", devices=devices)
    monkeypatch.setattr(doctor, "ask", lambda timeout: runtime)
    report = doctor.examine(timeout=7.0)
    assert [(test.route, test.device) for test in report.self_tests] == tried
    if devices:
        assert verdicts(report)["route library"] == Verdict.LIMITS
        assert report.recommendation.route.value == "auto"
        assert "struck off: library" in report.recommendation.route.reason


def test_a_full_disk_and_little_shared_memory_are_limits() -> None:
    assert verdicts(diagnosed("rx6700xt", *PASSED, disk_free=GIB))["disk"] == Verdict.LIMITS
    found = machine.read(TREES / "rx6700xt")
    surroundings = msgspec.structs.replace(found.surroundings, shared_memory_bytes=16 << 20)
    cramped = machine.Machine(found.cards, found.hidden_nodes, found.driver, surroundings)
    report = diagnose(cramped, msgspec.convert(surroundings.runtime, Runtime), PASSED, disk_free=PLENTY)
    assert report.recommendation.workers.value == "0"
    assert verdicts(report)["shared memory"] == Verdict.LIMITS
    assert "--shm-size" in said(report, "shared memory")


def test_buffer_operations_left_on_are_found() -> None:
    found = machine.read(TREES / "rx5600xt")
    surroundings = msgspec.structs.replace(found.surroundings, environment={"AMDGCN_USE_BUFFER_OPS": "1"})
    risky = machine.Machine(found.cards, (), found.driver, surroundings)
    report = diagnose(risky, msgspec.convert(surroundings.runtime, Runtime), PASSED, PLENTY)
    assert verdicts(report)["buffer operations"] == Verdict.LIMITS


@pytest.mark.parametrize(
    ("version", "arch"),
    [(100100, "gfx1010"), (100302, "gfx1032"), (110501, "gfx1151"), (90010, "gfx90a"), (120001, "gfx1201")],
)
def test_architecture_names_are_those_of_llvm(version: int, arch: str) -> None:
    assert machine.arch_name(version) == arch


def test_a_malformed_override_is_refused() -> None:
    assert machine.override_name("10.3.0") == "gfx1030"
    with pytest.raises(ToolkitError, match="three numbers"):
        machine.override_name("gfx1030")


@pytest.mark.parametrize(
    ("uid", "groups", "allowed"), [(0, {5}, True), (1000, {992}, True), (1000, {44}, False), (7, {44}, True)]
)
def test_permissions_follow_owner_group_and_others(uid: int, groups: set[int], allowed: bool) -> None:
    node = machine.DeviceNode("/dev/kfd", 0o660, 7, 992)
    assert node.allows(uid, frozenset(groups)) is allowed


def test_a_card_that_the_container_does_not_get_is_counted_as_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> dict[str, int]:
        raise PermissionError

    monkeypatch.setattr(machine, "_properties", refuse)
    found = machine.read(TREES / "rx5600xt")
    report = diagnose(found, Runtime(torch="2.11.0", torchvision="0.26.0"), (), PLENTY)
    assert found.hidden_nodes == (0, 1)
    assert report.verdict == Verdict.FAILS
    assert "--device /dev/kfd" in said(report, "card")


def test_what_was_recorded_reads_like_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = TREES / "two-cards"
    monkeypatch.setattr(machine, "SYSFS", source)
    machine.record(tmp_path / "copy", {"torch": "2.11.0"})
    monkeypatch.undo()
    copy = machine.read(tmp_path / "copy")
    assert copy.cards == machine.read(source).cards
    assert copy.driver == "6.12.12"
    assert copy.surroundings.runtime == {"torch": "2.11.0"}
    assert copy.surroundings.cpus >= 1
    assert 0 < copy.surroundings.memory_free_bytes <= copy.surroundings.memory_bytes


def test_a_damaged_or_absent_recording_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="no such folder"):
        machine.read(tmp_path / "absent")
    (tmp_path / "recorded.json").write_text('{"uid": "zero"}')
    with pytest.raises(ToolkitError, match=r"cannot read .*recorded\.json"):
        machine.read(tmp_path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("exec sleep 30", "no answer from PyTorch within 1 s"),
        ("kill -11 $$", "killed by signal 11"),
        ("echo 'ImportError: libamdhip64.so' >&2; exit 1", "ImportError: libamdhip64.so"),
    ],
)
def test_a_runtime_that_hangs_or_dies_is_reported(
    body: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{body}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    runtime = ask(timeout=1.0)
    assert reason in runtime.error
    report = diagnose(machine.read(TREES / "rx5600xt"), runtime, (), PLENTY)
    assert verdicts(report)["torch"] == Verdict.FAILS


def test_the_memory_estimate_follows_the_measured_steps() -> None:
    measured = {4: 0.8, 16: 3.1, 32: 6.1}  # GiB, YOLOv8n, fp32, 640 px, library off, one H100
    for batch, gib in measured.items():
        assert gib * 0.95 <= step_bytes(batch, 640) / GIB <= gib * 1.4


def test_the_command_ends_with_the_verdict_and_prints_json() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json", "--sysfs", str(TREES / "no-permission")])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["recommendation"]["profile"]["value"] == "rdna1"
    table = CliRunner().invoke(app, ["doctor", "--sysfs", str(TREES / "no-permission")])
    assert "will not work" in table.stdout
