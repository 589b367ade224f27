"""Before the first batch: who computes the convolutions of this model, by what its training step costs."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

import patches
from patches import dispatch
from toolkit.training.memory import where_it_suffices
from toolkit.training.steps import DetectorStep, random_batch


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
    graphed, way, session = False, "", dispatch.current()
    if device.type != "cpu":
        with where_it_suffices(), torch.random.fork_rng([device]):
            autocast = torch.autocast(device.type, half, enabled=half is not None)
            step = DetectorStep(deepcopy(model).train(), random_batch(images, device), autocast)
            patches.settle(step)
            way = "" if session is None else session.way
            graphed = graphs and patches.settle_graph(step, step.recorded)
        torch.cuda.empty_cache()
    return Settled(graphed, way)
