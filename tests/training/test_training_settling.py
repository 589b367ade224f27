"""The step by which convolutions are judged before a training leaves everything as it was."""

from __future__ import annotations

from copy import deepcopy

import torch

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
