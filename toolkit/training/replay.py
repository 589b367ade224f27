"""The network of a training as CUDA graphs, where replaying them was found to be quicker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from patches.graphs import GraphedModule
from toolkit.training.settling import Settled, settle_convolutions


def alike(arguments: Any) -> bool:
    """Whether batches have one size and no compiler is at work, by Ultralytics' training arguments."""
    return not (arguments.compile or arguments.multi_scale or arguments.rect)


class NetworkGraph:
    """Records the network with the first batch after it was wanted, and serves the batches like it.

    Args:
        record_event: told of a graph that is not to be had: kind, action, detail.

    Attributes:
        wanted: whether to record one with the next batch.
    """

    def __init__(self, record_event: Callable[[str, str, str], None]) -> None:
        self.wanted = False
        self._settled = Settled(False, "")
        self._record_event = record_event
        self._graph: GraphedModule | None = None

    def settle(
        self, model: nn.Module, images: tuple[int, int, int], half: torch.dtype | None, may: bool
    ) -> None:
        """Settle who computes, and whether by graphs; arguments of :func:`settle_convolutions`."""
        self._settled = settle_convolutions(model, images, half, graphs=may)
        self.wanted = self._settled.graphed

    def loss(self, model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch on the device and its components, by the graph or by the network itself.

        Args:
            model: an Ultralytics detector in training mode; where a graph is wanted, without DDP around it.
            batch: with its images in ``img``.
        """
        images: Tensor = batch["img"]
        if self.wanted:
            self.wanted = False
            self._graph = self._recorded(model, batch)
        graphed = self._graph
        found: tuple[Tensor, dict[str, Tensor]] = (
            model.loss(batch, graphed(images)) if graphed and graphed.accepts(images) else model(batch)
        )
        return found

    def drop(self) -> None:
        """Give the memory back, and record none any more."""
        self.wanted, self._graph = False, None
        self._settled.without_graphs()

    def _recorded(self, model: Any, batch: dict[str, Any]) -> GraphedModule | None:
        try:
            return GraphedModule(model, batch["img"], lambda found: model.loss(batch, found)[0].sum())
        except RuntimeError as error:  # memory that does not suffice is one
            detail = str(error).partition("\n")[0]
            self._record_event("no CUDA graph", "training goes on without", detail)
            self._settled.without_graphs()
            return None
