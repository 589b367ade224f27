"""A card is tested while the program gets ready, and the verdicts reach who serves through the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_convolution_plan import CARD, Examiner

import patches
from patches import dispatch, rehearsal
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
    rehearsal.rehearse(torch.float16).join(60)
    assert {"gemm float16", "native float16"} <= set(examiner.asked)
    verdicts = PlanFile(tmp_path / "plan.json", CARD, print).verdicts
    assert verdicts["gemm float16"].passed
    before = len(examiner.asked)
    rehearsal.rehearse(torch.float16).join(60)
    assert len(examiner.asked) == before


def test_nothing_is_tested_where_another_route_is_forced_or_on_a_cpu(
    examiner: Examiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches.rehearse(torch.float32, "cpu")
    monkeypatch.setenv("CONVROUTES_ROUTE", "gemm")
    rehearsal.rehearse(torch.float32).join(60)
    assert not examiner.asked


def test_a_machine_without_a_card_is_left_to_who_needs_one(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    noted: list[object] = []
    monkeypatch.setattr(rehearsal.threading, "excepthook", noted.append)
    rehearsal.rehearse(torch.float32).join(60)
    assert not noted
