"""The step by which convolutions are judged before a training leaves everything as it was."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from called_again import CalledAgain
from torch import nn

import patches
from patches import dispatch
from patches import settling as settling_ways
from toolkit.training import graphed, replay, settling, worker
from toolkit.training.settling import Settled, settle_convolutions
from toolkit.training.steps import DetectorStep, random_batch


def test_a_step_runs_and_leaves_no_gradient() -> None:
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", ch=1, nc=4, verbose=False).train()
    model.args = get_cfg()
    before = deepcopy(model.state_dict())
    settle_convolutions(model, (2, 1, 64), None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    DetectorStep(model, random_batch((2, 1, 64), "cpu"), torch.autocast("cpu", enabled=False))()
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize("words", ["CUDA out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "another"])
def test_memory_that_a_step_to_judge_by_lacks_leaves_the_training_its_own_try(
    monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """A smaller batch may do, and it is the loop that takes one."""

    def fails(*_: object) -> None:
        raise RuntimeError(f"{words} when calling it")

    monkeypatch.setattr(settling, "DetectorStep", fails)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    model = nn.ParameterList([nn.Parameter(torch.zeros(1, device="meta"))])
    if words == "another":
        with pytest.raises(RuntimeError, match=words):
            settle_convolutions(model, (2, 1, 64), torch.bfloat16)
    else:
        assert not settle_convolutions(model, (2, 1, 64), torch.bfloat16).graphed


def test_a_new_card_is_tested_once_the_loaders_server_has_started_and_not_by_a_spare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(worker.loader, "start_server", lambda: done.append("server"))
    monkeypatch.setattr(worker, "rehearse_convolutions", lambda device, amp: done.append(f"test {device}"))
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
    monkeypatch.setattr(graphed, "GraphedModule", fails)
    with patches.enabled("cpu"):
        session = dispatch.current()
        assert session is not None
        graph.settle(nn.Identity(), (1, 1, 32), None, True)
        assert (graph.wanted, session.way) == (True, settling_ways.PLAN)
        assert graph.loss(lambda batch: ("loss", batch), {"img": torch.zeros(1)})[0] == "loss"
        assert session.way == settling_ways.ASIDE
    assert events == [("no CUDA graph", "training goes on without", "no memory")]


class FailsToCompile(Exception):
    """As Triton's errors: none of PyTorch's."""


def test_a_kernel_that_triton_cannot_compile_leaves_the_training_without_a_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(kind: type[Exception]) -> None:
        def record(*_: object) -> None:
            raise kind("shared memory\nand more")

        monkeypatch.setattr(graphed, "GraphedModule", record)
        graph.settle(nn.Identity(), (1, 1, 32), None, True)

    events: list[tuple[str, str, str]] = []
    graph = replay.NetworkGraph(lambda *event: events.append(event))
    monkeypatch.setattr(replay, "settle_convolutions", lambda *_, graphs: Settled(graphs, ""))
    monkeypatch.setitem(sys.modules, "triton.errors", SimpleNamespace(TritonError=FailsToCompile))
    fails(FailsToCompile)
    for _ in range(2):
        assert graph.loss(lambda batch: ("loss", batch), {"img": torch.zeros(1)})[0] == "loss"
    detail = "FailsToCompile: shared memory"
    assert events == [("no CUDA graph", "training goes on without", detail)], "once"
    fails(KeyError)
    with pytest.raises(KeyError):
        graph.loss(lambda batch: ("loss", batch), {"img": torch.zeros(1)})


class ReadsBoxesWhereThereAreSome(nn.Module):
    """A detector whose loss does as that of Ultralytics 8.4.100."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.boxes, self.scores = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, found: Any) -> Any:
        if isinstance(found, dict):
            return self.loss(found, self(found["img"]))
        features = self.stem(found)
        return {"boxes": self.boxes(features), "scores": self.scores(features)}

    def loss(self, batch: dict[str, Any], outputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        loss = outputs["scores"].square().mean()
        if len(batch["cls"]):
            loss = loss + (outputs["boxes"] - batch["bboxes"].mean()).square().mean()
        return loss, {}


def test_a_first_batch_without_boxes_does_not_hide_what_the_loss_needs_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = ReadsBoxesWhereThereAreSome().train()
    twin = deepcopy(model)
    images = [torch.randn(2, 1, 8, 8) for _ in range(3)]
    full = {"cls": torch.zeros(3, 1), "bboxes": torch.rand(3, 4), "batch_idx": torch.tensor([0.0, 0.0, 1.0])}
    empty = {name: value[:0] for name, value in full.items()}
    events: list[tuple[str, str, str]] = []
    graph = replay.NetworkGraph(lambda *event: events.append(event))
    monkeypatch.setattr(replay, "settle_convolutions", lambda *_, graphs: Settled(graphs, ""))
    monkeypatch.setattr(graphed, "GraphedModule", CalledAgain)
    graph.settle(model, (2, 1, 8), None, True)
    before = torch.random.get_rng_state()
    for image, boxes in zip(images, (empty, full, empty), strict=True):
        batch = {"img": image, **boxes}
        loss, _ = graph.loss(model, batch)
        wanted, _ = twin(batch)
        assert torch.equal(loss, wanted)
        loss.backward()
        wanted.backward()
    assert torch.equal(torch.random.get_rng_state(), before), "boxes to record with cost no random numbers"
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
    assert not events
