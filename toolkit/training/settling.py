"""Before the first batch: who computes the convolutions of this model, by what its training step costs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import patches
from patches import dispatch
from patches.graphs import GraphedModule
from toolkit.training.steps import mixed_precision

BOXES = 3
"""Boxes an image, about LTDv2's mean."""


def rehearse_convolutions(device: str, amp: object) -> None:
    """Begin the self-tests of a card that is new while the trainer gets ready (:func:`patches.rehearse`).

    Args:
        device: of the training, in Ultralytics' words; of several the first, whose kind the others are.
        amp: Ultralytics' argument, by which the dtype of the convolutions goes.
    """
    if device != "cpu":
        half = torch.bfloat16 if amp == "bf16" else torch.float16
        mixed = mixed_precision("cuda", amp if isinstance(amp, str) else bool(amp))
        patches.rehearse(half if mixed else torch.float32, f"cuda:{device.partition(',')[0]}")


@dataclass(frozen=True)
class Settled:
    """Who computes the convolutions of a model.

    Attributes:
        graphed: whether steps are to be replayed from CUDA graphs (:func:`patches.settle_graph`).
        way: that serves best without them.
    """

    graphed: bool
    way: str

    def without_graphs(self) -> None:
        """Have that way serve, where the graphs are not to be had or are gone."""
        session = dispatch.current()
        if session is not None and self.graphed:
            session.use(self.way)


def settle_convolutions(
    model: nn.Module, images: tuple[int, int, int], half: torch.dtype | None, graphs: bool = False
) -> Settled:
    """Have the patches judge their choices (:func:`patches.settle`) by steps of a copy of the model.

    The model, its statistics and the random generators stay as they are. Does nothing on a CPU, and leaves
    the plan's choices where the memory does not suffice.

    Args:
        model: an Ultralytics detector on its device, without DDP around it.
        images: images a step, channels, and side of the square images in pixels.
        half: what the loss is computed in under autocast; None: in fp32, without.
        graphs: whether CUDA graphs may serve.

    """
    device = next(model.parameters()).device
    graphed, session = False, dispatch.current()
    way = "" if session is None else session.way
    if device.type != "cpu":
        with suppress(torch.cuda.OutOfMemoryError), torch.random.fork_rng([device]):
            step = Step(deepcopy(model).train(), images, half)
            patches.settle(step)
            way = "" if session is None else session.way
            graphed = graphs and patches.settle_graph(step, step.recorded)
        torch.cuda.empty_cache()
    return Settled(graphed, way)


class Step:
    """Forward and backward of a detector on random images, which leaves no gradient.

    Args:
        model, images, half: as in :func:`settle_convolutions`; the statistics of ``model`` move.
    """

    def __init__(self, model: nn.Module, images: tuple[int, int, int], half: torch.dtype | None) -> None:
        self.model: Any = model
        count, channels, size = images
        device = next(model.parameters()).device
        self._autocast = torch.autocast(device.type, half, enabled=half is not None)
        self._batch = {
            "img": torch.rand(count, channels, size, size, device=device),
            "cls": torch.zeros(count * BOXES, 1, device=device),
            "bboxes": torch.rand(count * BOXES, 4, device=device) * 0.3 + 0.2,
            "batch_idx": torch.arange(count, device=device).repeat_interleave(BOXES).float(),
        }

    def __call__(self) -> None:
        self._run(self.model)

    def recorded(self) -> Callable[[], None]:
        """The same step, whose network is replayed from CUDA graphs that are recorded now."""
        with self._autocast:
            graphed = GraphedModule(self.model, self._batch["img"], self._loss)
        return partial(self._run, graphed)

    def _run(self, network: Callable[[Tensor], Any]) -> None:
        with self._autocast:
            loss = self._loss(network(self._batch["img"]))
        torch.autograd.backward(loss)
        self.model.zero_grad()

    def _loss(self, outputs: Any) -> Tensor:
        loss: Tensor = self.model.loss(self._batch, outputs)[0].sum()
        return loss
