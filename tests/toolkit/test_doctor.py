"""The doctor on eight machines that were written down, and on children that misbehave."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from typer.testing import CliRunner

from patches.convolution import registry, routes, selftest
from patches.convolution.problem import ConvProblem
from patches.runtime import Runtime, RuntimeDevice, ask
from toolkit import doctor
from toolkit.cli import app
from toolkit.doctor import CPU_ROUTES, ROUTES, Report, SelfTest, diagnose, step_bytes
from toolkit.errors import ToolkitError
from toolkit.machine import kernel
from toolkit.machine.cards import recommend_profile
from toolkit.machine.checks import GIB, Verdict
from toolkit.machine.device import resolve_device
from toolkit.machine.kernel import Card, Machine

TREES = Path(__file__).parent.parent / "fixtures/sysfs"


def changed(tree: str, **surroundings: Any) -> Machine:
    """A machine of the fixtures with other surroundings."""
    found = kernel.read(TREES / tree)
    return replace(found, surroundings=msgspec.structs.replace(found.surroundings, **surroundings))


def diagnosed(tree: str, *self_tests: SelfTest, **surroundings: Any) -> Report:
    found = changed(tree, **surroundings)
    return diagnose(found, found.surroundings.runtime or Runtime(), self_tests)


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
    assert said(report, "rocBLAS").startswith("kernels for gfx1010")


@pytest.mark.parametrize(("mode", "gid"), [(0o600, 992), (0o660, 0)])
def test_where_no_group_can_help_none_is_advised(mode: int, gid: int) -> None:
    devices = [
        msgspec.structs.replace(node, mode=mode, gid=gid)
        for node in kernel.read(TREES / "rx5600xt").surroundings.devices
    ]
    report = diagnosed("rx5600xt", *PASSED, devices=tuple(devices))
    assert verdicts(report)["/dev/kfd"] == Verdict.FAILS
    assert "udev rule" in said(report, "/dev/kfd")
    assert "usermod" not in said(report, "/dev/kfd")


def test_memory_shared_with_the_system_is_no_more_than_is_free_there() -> None:
    report = diagnosed("strix-halo", *PASSED, memory_free_bytes=8 * GIB)
    assert report.recommendation.batch.value == "16"
    assert said(report, "GPU memory").startswith("8.0 GiB free")
    assert verdicts(report)["RAM"] == Verdict.FINE
    report = diagnosed("strix-halo", *PASSED, memory_free_bytes=3 * GIB)
    assert report.recommendation.batch.value == "1"
    assert verdicts(report)["RAM"] == Verdict.LIMITS


@pytest.mark.parametrize(
    ("variables", "device", "arch", "batch"),
    [
        ({"HIP_VISIBLE_DEVICES": "0"}, "0", "gfx1010", "16"),
        ({"HIP_VISIBLE_DEVICES": "1"}, "0", "gfx1031", "32"),
        ({"ROCR_VISIBLE_DEVICES": "1"}, "0", "gfx1031", "32"),
        ({"CUDA_VISIBLE_DEVICES": "1,0"}, "0", "gfx1031", "32"),
        ({"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "1"}, "0", "gfx1010", "16"),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, "0", "gfx1010", "16"),
        ({"ROCR_VISIBLE_DEVICES": "GPU-0123456789abcdef"}, "1", "gfx1031", "32"),
        ({"HIP_VISIBLE_DEVICES": "0,7,1"}, "0", "gfx1010", "16"),
        ({"HIP_VISIBLE_DEVICES": "-1"}, "cpu", "", "4"),
        ({"HIP_VISIBLE_DEVICES": ""}, "1", "gfx1031", "32"),
        ({"ROCR_VISIBLE_DEVICES": "0,foo,1"}, "0", "gfx1010", "16"),
        ({"ROCR_VISIBLE_DEVICES": " 1, 0"}, "0", "gfx1031", "32"),
        ({"ROCR_VISIBLE_DEVICES": "0,0,1"}, "0", "gfx1010", "16"),
    ],
)
def test_only_a_card_that_is_left_visible_is_recommended(
    variables: dict[str, str], device: str, arch: str, batch: str
) -> None:
    found = changed("two-cards", environment=variables)
    runtime = found.surroundings.runtime
    assert runtime is not None
    seen = [one for card in found.visible for one in runtime.devices if one.arch == card.arch]
    report = diagnose(found, replace(runtime, devices=tuple(seen)), PASSED)
    chosen = report.recommendation
    assert (chosen.device.value, chosen.batch.value) == (device, batch)
    assert chosen.device.reason.startswith(arch)
    if arch:
        assert report.verdict == Verdict.FINE
    else:
        assert said(report, "card").startswith("none left by HIP_VISIBLE_DEVICES=-1")
        assert report.verdict == Verdict.LIMITS


@pytest.mark.parametrize("value", ["", "foo", "7"])
def test_a_list_without_a_card_hides_them_all(value: str) -> None:
    found = changed("two-cards", environment={"ROCR_VISIBLE_DEVICES": value})
    report = diagnose(found, Runtime(torch="2.11.0", torchvision="0.26.0", hip="7.14"), PASSED)
    assert f"none left by ROCR_VISIBLE_DEVICES={value}" in said(report, "card")
    assert report.recommendation.profile.value == "cpu"


def test_a_card_is_chosen_by_the_name_that_the_runtime_gives_it() -> None:
    found = changed("two-cards", environment={"ROCR_VISIBLE_DEVICES": "GPU-00000000000000ab"})
    cards = [
        replace(card, uuid=f"GPU-{number:016x}") for card, number in zip(found.cards, (1, 0xAB), strict=True)
    ]
    assert replace(found, cards=tuple(cards)).visible == (cards[1],)


def test_one_card_of_two_that_the_container_does_not_get_leaves_the_other_fine() -> None:
    found = kernel.read(TREES / "two-cards")
    runtime = found.surroundings.runtime
    assert runtime is not None
    one = replace(found, cards=found.cards[:1], hidden_nodes=(2,))
    report = diagnose(one, replace(runtime, devices=runtime.devices[:1]), PASSED)
    assert report.verdict == Verdict.FINE
    assert "1 GPU that the kernel hides" in said(report, "card")


def test_a_card_that_kfd_leaves_out_is_named_with_where_the_reason_is() -> None:
    report = diagnosed("no-atomics")
    assert "1002:731f, 6.0 GiB VRAM, /dev/dri/renderD128" in said(report, "card")
    assert "dmesg | grep -i kfd" in said(report, "card")
    assert "PCI rejects atomics" in said(report, "card")
    assert "no GPU" not in said(report, "card")
    assert (report.verdict, report.recommendation.device.value) == (Verdict.LIMITS, "cpu")


def test_a_kernel_without_kfd_is_another_reason(tmp_path: Path) -> None:
    shutil.copytree(TREES / "no-atomics", tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "class/kfd")
    found = kernel.read(tmp_path)
    report = diagnose(found, Runtime(torch="2.11.0", torchvision="0.26.0", hip="7.14"), ())
    assert "CONFIG_HSA_AMD" in said(report, "card")
    assert "atomics" not in said(report, "card")


def test_a_card_left_out_beside_one_that_computes_is_no_limit(tmp_path: Path) -> None:
    shutil.copytree(TREES / "rx5600xt", tmp_path, dirs_exist_ok=True)
    other = tmp_path / "class/drm/renderD129/device"
    other.mkdir(parents=True)
    (other / "mem_info_vram_total").write_text(f"{8 * GIB}\n")  # its PCI numbers were not recorded
    found = kernel.read(tmp_path)
    report = diagnose(found, found.surroundings.runtime or Runtime(), PASSED)
    assert "8.0 GiB VRAM, /dev/dri/renderD129" in said(report, "card")
    assert report.verdict == Verdict.FINE


def test_without_a_flag_commands_take_the_card_that_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    found = kernel.read(TREES / "two-cards")
    runtime = found.surroundings.runtime
    assert runtime is not None
    monkeypatch.setattr(kernel, "read", lambda *_: found)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(runtime.devices))
    monkeypatch.setattr(torch.version, "hip", "7.14.0")
    assert resolve_device(None) == diagnose(found, runtime, PASSED).recommendation.device.value == "1"


def test_a_torch_for_other_cards_does_not_count_amds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards of AMD's for the pictures, two others to compute: PyTorch's numbers are theirs."""
    found = kernel.read(TREES / "two-cards")
    runtime = Runtime(torch="2.14.1", torchvision="0.29.1", cuda="13.0", devices=(GPU, GPU))
    monkeypatch.setattr(kernel, "read", lambda *_: found)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.version, "hip", None)
    assert resolve_device(None) == diagnose(found, runtime, PASSED).recommendation.device.value == "0"


def test_a_device_that_may_not_be_opened_says_so_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = kernel.read(TREES / "no-permission")
    monkeypatch.setattr(kernel, "read", lambda *_: found)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "hip", "7.14.0")
    with pytest.raises(ToolkitError, match=r"no device 0.*/dev/kfd mode 0660.*usermod -aG render"):
        resolve_device("0")


def card(arch: str, memory: int, *, integrated: bool = False) -> Card:
    return Card(1, arch, "", "/dev/dri/renderD128", memory * GIB, 0, 36, integrated, integrated)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (card("gfx1012", 4), "the card with the most memory"),
        (card("gfx1036", 16, integrated=True), "the discrete card with the most memory"),
        (card("gfx906", 16), "the card with the most memory that a profile serves"),
    ],
)
def test_the_reason_for_a_card_is_true_of_it(other: Card, reason: str) -> None:
    found = kernel.read(TREES / "rx5600xt")
    both = replace(found, cards=(other, *found.cards))
    runtime = found.surroundings.runtime
    assert runtime is not None
    report = diagnose(both, replace(runtime, devices=runtime.devices * 2), PASSED)
    assert report.recommendation.device.value == "1"
    assert report.recommendation.device.reason.endswith(f", {reason}")


def test_a_route_that_fails_its_self_test_is_struck_off() -> None:
    hung = SelfTest("triton", "cuda", False, "no answer within 60 s", 60.0)
    report = diagnosed("rx5600xt", hung, SelfTest("gemm", "cuda", True, "", 1.0))
    assert report.verdict == verdicts(report)["route triton"] == Verdict.LIMITS
    assert report.recommendation.route.value == "gemm"


@pytest.mark.parametrize("tree", ["rx5600xt", "no-card"])
def test_a_machine_on_which_no_route_works_will_not_work(tree: str) -> None:
    broken = [SelfTest(route, "cpu", False, "silent zeros", 1.0) for route in ("native", "gemm")]
    report = diagnosed(tree, *broken)
    assert report.verdict == verdicts(report)["convolutions"] == Verdict.FAILS
    assert report.recommendation.route.value == "none"


def test_the_routes_that_are_tried_are_those_that_exist() -> None:
    assert set(ROUTES) == set(routes.NAMES)
    one = ConvProblem(2, 16, 8, 8, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1, False, torch.float32, "cpu", False)
    serving = {
        kind.name for kind in registry.ROUTES if not kind.package and routes.make(kind.name).supports(one)
    }
    assert set(CPU_ROUTES) == serving


@pytest.mark.parametrize(
    ("devices", "triton", "tried"),
    [
        ((), "3.8.0", [("native", "cpu"), ("gemm", "cpu")]),
        ((GPU,), "3.8.0", [(route, "cuda:0") for route in ROUTES]),
        ((GPU,), "", [(kind.name, "cuda:0") for kind in registry.ROUTES if not kind.package]),
    ],
)
def test_every_route_is_tried_where_it_can_run(
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


def test_a_route_that_is_not_meant_for_the_card_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(route: str, device: str, timeout: float) -> selftest.SelfTestResult:
        meant = route != "winograd"
        return selftest.SelfTestResult(route, meant, "" if meant else selftest.NOT_MEANT, 1.0)

    monkeypatch.setattr(selftest, "run", run)
    runtime = Runtime(torch="2.14.1", torchvision="0.29.1", triton="3.8.0", cuda="13.0", devices=(GPU,))
    monkeypatch.setattr(doctor, "ask", lambda timeout: runtime)
    report = doctor.examine(timeout=7.0)
    assert "route winograd" not in verdicts(report) and "route triton" in verdicts(report)
    assert "struck off" not in report.recommendation.route.reason


def test_the_routes_are_tried_on_the_card_that_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    found = kernel.read(TREES / "two-cards")
    runtime = found.surroundings.runtime
    monkeypatch.setattr(kernel, "read", lambda sysfs, data: found)
    monkeypatch.setattr(doctor, "ask", lambda timeout: runtime)
    monkeypatch.setattr(
        selftest, "run", lambda route, device, timeout: selftest.SelfTestResult(route, True, "", 1.0)
    )
    report = doctor.examine()
    assert {test.device for test in report.self_tests} == {f"cuda:{report.recommendation.device.value}"}


def test_without_a_gpu_a_route_that_fails_is_not_recommended() -> None:
    wrong = SelfTest("native", "cpu", False, "wrong", 1.0)
    report = diagnosed("no-card", wrong, SelfTest("gemm", "cpu", True, "", 1.0))
    assert report.recommendation.route.value == "gemm"


def test_a_full_disk_and_little_shared_memory_are_limits() -> None:
    assert verdicts(diagnosed("rx6700xt", *PASSED, disk_free_bytes=GIB))["disk"] == Verdict.LIMITS
    report = diagnosed("rx6700xt", *PASSED, shared_memory_bytes=16 << 20)
    assert report.recommendation.workers.value == "0"
    assert verdicts(report)["shared memory"] == Verdict.LIMITS
    assert "--shm-size" in said(report, "shared memory")


def test_buffer_operations_left_on_are_found() -> None:
    report = diagnosed("rx5600xt", *PASSED, environment={"AMDGCN_USE_BUFFER_OPS": "1"})
    assert verdicts(report)["buffer operations"] == Verdict.LIMITS


@pytest.mark.parametrize("value", ["gfx1030", "99.3.0", "10.300.0", "10.3", "10.3.0.0", "-1.3.0", "ten"])
def test_a_malformed_override_is_a_row_of_the_report(value: str) -> None:
    report = diagnosed("rx5600xt", *PASSED, environment={"HSA_OVERRIDE_GFX_VERSION": value})
    assert report.verdict == verdicts(report)["override"] == Verdict.FAILS
    assert "three numbers such as 10.3.0" in said(report, "override")


def test_the_part_of_the_dataset_that_is_there_needs_no_more_room() -> None:
    there = diagnosed("rx6700xt", *PASSED, disk_free_bytes=10 * GIB, dataset_bytes=50 * GIB)
    assert verdicts(there)["disk"] == Verdict.FINE
    assert said(there, "disk").startswith("10.0 GiB free; a run and what the full dataset has beyond")


def test_a_card_that_the_container_does_not_get_is_counted_as_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> dict[str, int]:
        raise PermissionError

    monkeypatch.setattr(kernel, "_properties", refuse)
    found = kernel.read(TREES / "rx5600xt")
    report = diagnose(found, Runtime(torch="2.11.0", torchvision="0.26.0"), ())
    assert found.hidden_nodes == (0, 1)
    assert report.verdict == Verdict.FAILS
    assert "--device /dev/kfd" in said(report, "card")


@pytest.mark.parametrize("content", [b"gfx_target_version abc\n", b"\xff\xfe 1\n"])
def test_a_damaged_tree_is_no_verdict(content: bytes, tmp_path: Path) -> None:
    shutil.copytree(TREES / "rx5600xt", tmp_path, dirs_exist_ok=True)
    (tmp_path / "class/kfd/kfd/topology/nodes/1/properties").write_bytes(content)
    result = CliRunner().invoke(app, ["doctor", "--sysfs", str(tmp_path)])
    assert isinstance(result.exception, ToolkitError)
    assert result.exception.exit_code == Verdict.FAILS


def test_an_examination_that_breaks_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise IndexError("nobody thought of this")

    monkeypatch.setattr(doctor, "examine", fail)
    result = CliRunner().invoke(app, ["doctor"])
    assert isinstance(result.exception, ToolkitError)
    assert result.exception.exit_code == Verdict.FAILS


def test_one_machine_is_not_written_down_as_another(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["doctor", "--sysfs", str(TREES / "rx6700xt"), "--record", str(tmp_path / "new")]
    )
    assert isinstance(result.exception, ToolkitError)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "content",
    [None, b'{"uid": "zero"}', b'{"runtime": {"devices": 1}}', b'{"runtime": []}', b'{"kernel": "\xff"}'],
)
def test_a_damaged_or_absent_recording_is_one_clear_line_and_no_verdict(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "recorded.json").write_bytes(content)
    result = CliRunner().invoke(app, ["doctor", "--sysfs", str(tmp_path)])
    assert isinstance(result.exception, ToolkitError)
    assert re.match(r"cannot read .*recorded\.json; found ", result.exception.line())
    assert result.exception.exit_code == Verdict.FAILS


def test_the_disk_of_a_recorded_machine_is_its_own(tmp_path: Path) -> None:
    shutil.copytree(TREES / "rx5600xt", tmp_path, dirs_exist_ok=True)
    file = tmp_path / "recorded.json"
    recorded = json.loads(file.read_text())
    recorded["disk_free_bytes"] = 3 * GIB
    file.write_text(json.dumps(recorded))
    assert said(doctor.examine(tmp_path), "disk").startswith("3.0 GiB free")
    del recorded["disk_free_bytes"]
    file.write_text(json.dumps(recorded))
    assert said(doctor.examine(tmp_path), "disk").startswith("not recorded")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("exec sleep 30", "no answer from PyTorch within 1 s"),
        ("kill -11 $$", "killed by signal 11"),
        ("echo 'ImportError: libamdhip64.so' >&2; exit 1", "ImportError: libamdhip64.so"),
        ("exit 0", "without an answer"),
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
    report = diagnose(kernel.read(TREES / "rx5600xt"), runtime, ())
    assert verdicts(report)["torch"] == Verdict.FAILS


def test_what_a_library_prints_is_no_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho loading\necho \'{"torch": "2.11.0"}\'\necho bye\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    assert ask() == Runtime(torch="2.11.0")


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


def test_a_card_of_nvidias_has_a_profile_and_an_unknown_one_has_not() -> None:
    assert recommend_profile(None, (GPU,)).value == "nvidia"
    assert recommend_profile(None, (RuntimeDevice("another", "xpu", GIB),)).value == "cpu"
