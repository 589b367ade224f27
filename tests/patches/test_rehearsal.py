"""A card is tested while the program gets ready, and the verdicts reach who serves through the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_convolution_plan import CARD, Examiner

import patches
from patches import compiling, dispatch, rehearsal
from patches.convolution import planfile, processes, selftest
from patches.convolution.planfile import PlanFile
from patches.convolution.problem import Route
from patches.convolution.tuning import Planner


@pytest.fixture
def examiner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Examiner:
    """Of a machine with a card that has PyTorch's kernels and the route gemm."""
    monkeypatch.setenv("CONVROUTES_PLAN", str(tmp_path / "plan.json"))
    found = Examiner()

    def on_card(device: str, routes: dict[str, Route], note: object) -> Planner:
        return Planner("cpu", {name: routes[name] for name in ("native", "gemm")}, print, CARD, found)

    monkeypatch.setattr(dispatch, "Planner", on_card)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda.device, "__enter__", lambda self: None)
    monkeypatch.setattr(torch.cuda.device, "__exit__", lambda self, *error: None)
    return found


def test_verdicts_are_there_when_they_are_asked_for(examiner: Examiner, tmp_path: Path) -> None:
    rehearsal.rehearse("float16").join(60)
    assert {"gemm float16", "native float16"} <= set(examiner.asked)
    verdicts = PlanFile(tmp_path / "plan.json", CARD, print).verdicts
    assert verdicts["gemm float16"].passed
    before = len(examiner.asked)
    rehearsal.rehearse("float16").join(60)
    assert len(examiner.asked) == before


def test_nothing_is_tested_where_another_route_is_forced_or_on_a_cpu(
    examiner: Examiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches.rehearse(torch.float32, "cpu")
    monkeypatch.setenv("CONVROUTES_ROUTE", "gemm")
    rehearsal.rehearse("float32").join(60)
    assert not examiner.asked


def test_a_machine_without_a_card_is_left_to_who_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    noted: list[object] = []
    monkeypatch.setattr(rehearsal.threading, "excepthook", noted.append)
    rehearsal.rehearse("float32").join(60)
    assert not noted


EARLY = """
import sys
from patches.convolution import processes
class Process:
    def __init__(self, *test, early):
        print(*test, early, "torch" in sys.modules)
processes.Process = Process
from patches import rehearsal
rehearsal.begin("float16", 1)
"""


@pytest.mark.parametrize("case", ["new", "known", "other kernels", "damaged", "forced", "norms forced"])
def test_what_has_kernels_to_compile_begins_before_torch_is_imported_unless_a_plan_has_its_verdict(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="nothing has kernels without")
    monkeypatch.setenv("CONVROUTES_PLAN", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    if case == "forced":
        monkeypatch.setenv("CONVROUTES_ROUTE", "gemm")
    elif case == "norms forced":
        monkeypatch.setenv("CONVROUTES_NORMALIZATION", "off")
    elif case != "new":
        known = {"triton float16": {}, "fused batch norm float32": {}}
        version = planfile.version() if case == "known" else "another"
        text = json.dumps({"version": version, "self_tests": known})
        (tmp_path / "plan.json").write_text(text[: 10 if case == "damaged" else None])
    done = subprocess.run([sys.executable, "-c", EARLY], check=True, stdout=subprocess.PIPE, text=True)
    begun = {"known": ["fused batch norm"], "forced": [], "norms forced": ["triton"]}
    wanted = begun.get(case, ["triton", "fused batch norm"])
    assert done.stdout.splitlines() == [f"{test} cuda:1 float16 True False" for test in wanted]


def test_a_test_that_began_early_goes_on_when_it_is_wanted() -> None:
    processes.begin("gemm", "cpu", "float32")
    result = selftest.run("gemm", "cpu", "float32")
    assert (result.passed, result.reason) == (True, "")
    assert "waiting to be wanted" in result.phases
    assert processes.taken("gemm", "cpu", "float32") is None


def test_a_test_that_began_early_ends_when_it_is_not_wanted() -> None:
    processes.begin("gemm", "cpu", "float32")
    process = processes._early["gemm", "cpu", "float32"]
    processes.drop()
    assert process._child.returncode is not None
    assert processes.taken("gemm", "cpu", "float32") is None


def test_a_test_that_began_early_tests_nothing_when_its_parent_is_gone() -> None:
    process = processes.Process("gemm", "cpu", "float32", early=True)
    assert process._child.stdin is not None
    process._child.stdin.close()
    assert process._child.wait(120) == 1
    process._child.stdin = None
    assert process.finish(1.0) == (1, ["not wanted"])


def test_the_batch_norm_s_test_waits_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="it is of Triton's kernels")
    monkeypatch.setenv(compiling.HANDED_DOWN, json.dumps(["cuda", 90, 32, 132]))
    process = processes.Process("fused batch norm", "cuda:0", "float16", early=True)
    assert process._child.stdin is not None
    process._child.stdin.close()
    assert process._child.wait(240) == 1
    process._child.stdin = None
    status, said = process.finish(1.0)
    assert (status, said[-1]) == (1, "not wanted"), said


def test_nothing_begins_for_a_device_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    monkeypatch.setattr(rehearsal, "begin", lambda *given: begun.append(given))
    for device in ("cuda:-1", "cuda:x"):
        with pytest.raises(ValueError, match="expected one of"):
            patches.rehearse("float16", device)
    assert not begun
