"""A CUDA graph of a whole YOLOv8n training step with the patches on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import patches

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")

WARM_UP, STEPS = 3, 8


class Step:
    """Forward, backward, clipping and SGD against fixed targets.

    Ultralytics' own loss cannot be recorded: it asks the card how many objects there are, and waits.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.model, self.image = model, image
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def __call__(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.stack([(found - 1).square().mean() for found in tensors(self.model(self.image))]).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        return loss.detach()


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors that require a gradient, wherever the model's answer holds them."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
    else:
        for each in value.values() if isinstance(value, dict) else value:
            yield from tensors(each)


@pytest.mark.parametrize("route", ["triton", "auto"])
def test_a_recorded_yolov8n_step_trains_like_an_eager_one(route: str) -> None:
    from ultralytics import YOLO

    torch.manual_seed(0)
    model = YOLO("yolov8n.yaml").model.cuda().train().requires_grad_(True)
    image = torch.rand(2, 3, 160, 160, device="cuda")
    recorded, eager = Step(model, image), Step(copy.deepcopy(model), image)
    with patches.enabled("cuda", route):
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                recorded()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = recorded()
        truths = [float(eager()) for _ in range(WARM_UP + STEPS)][WARM_UP:]
        found = []
        for _ in range(STEPS):
            graph.replay()
            found.append(float(loss))
    assert found == pytest.approx(truths, rel=1e-3)
    assert found[-1] < found[0]
