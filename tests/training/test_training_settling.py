"""The step by which convolutions are judged before a training leaves everything as it was."""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch

from toolkit.training import settling, worker
from toolkit.training.settling import Step, settle_convolutions


def test_a_step_runs_and_leaves_no_gradient() -> None:
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov8n.yaml", ch=1, nc=4, verbose=False).train()
    model.args = get_cfg()
    before = deepcopy(model.state_dict())
    settle_convolutions(model, (2, 1, 64), None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    Step(model, (2, 1, 64), None)()
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
