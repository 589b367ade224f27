"""The step by which convolutions are judged before a training leaves everything as it was."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import patches
from patches import dispatch
from patches import settling as settling_ways
from toolkit.training import replay, settling, worker
from toolkit.training.settling import Settled, settle_convolutions
from toolkit.training.steps import DetectorStep


def test_a_step_runs_and_leaves_no_gradient() -> None:
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", ch=1, nc=4, verbose=False).train()
    model.args = get_cfg()
    before = deepcopy(model.state_dict())
    settle_convolutions(model, (2, 1, 64), None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    DetectorStep(model, (2, 1, 64), torch.autocast("cpu", enabled=False))()
    assert all(each.grad is None for each in model.parameters())


def test_a_new_card_is_tested_once_the_loaders_server_has_started_and_not_by_a_spare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(worker.loader, "start_server", lambda: done.append("server"))
    monkeypatch.setattr(settling, "rehearse_convolutions", lambda device, amp: done.append(f"test {device}"))
    plan = SimpleNamespace(arguments={"workers": 2}, patches=True, device="0")
    worker._get_ready(plan, testing=True)
    assert done == ["server", "test 0"]
    done.clear()
    worker._get_ready(plan)
    assert done == ["server"]


def test_a_graph_that_is_not_to_be_had_brings_back_the_way_that_is_best_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no memory\nand more")

    events: list[tuple[str, str, str]] = []
    graph = replay.NetworkGraph(lambda *event: events.append(event))
    monkeypatch.setattr(
        replay, "settle_convolutions", lambda *_, graphs: Settled(graphs, settling_ways.ASIDE)
    )
    monkeypatch.setattr(replay, "GraphedModule", fails)
    with patches.enabled("cpu"):
        session = dispatch.current()
        assert session is not None
        graph.settle(nn.Identity(), (1, 1, 32), None, True)
        assert (graph.wanted, session.way) == (True, settling_ways.PLAN)
        assert graph.loss(lambda batch: ("loss", batch), {"img": torch.zeros(1)})[0] == "loss"
        assert session.way == settling_ways.ASIDE
    assert events == [("no CUDA graph", "training goes on without", "no memory")]
