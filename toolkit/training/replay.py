"""The network of a training as CUDA graphs, where replaying them was found to be quicker."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from patches.graphs import UnexpectedGradient, failures
from toolkit.training.graphed import GraphedDetector, Loss, Recorder, add_targets
from toolkit.training.memory import no_memory
from toolkit.training.settling import Settled, settle_convolutions

T = TypeVar("T")
Move = Callable[[dict[str, Any]], dict[str, Any]]


def alike(arguments: Any) -> bool:
    """Whether batches have one size and no compiler is at work, by Ultralytics' training arguments."""
    return not (arguments.compile or arguments.multi_scale or arguments.rect)


class NetworkGraph:
    """Records the network with the first batch after it was wanted, and serves the batches like it.

    Args:
        record_event: told of a graph that is not to be had, or is given up: kind, action, detail.

    Attributes:
        wanted: whether to record one with the next batch.
    """

    def __init__(self, record_event: Callable[[str, str, str], None]) -> None:
        self.wanted = False
        self._settled = Settled(False, "")
        self._record_event = record_event
        self._graph: GraphedDetector | None = None
        self._record, self._places, self._images = Recorder(judge=True), 0, 0
        self._take_back: Callable[[], None] = _nothing

    def settle(
        self, model: nn.Module, images: tuple[int, int, int], half: torch.dtype | None, may: bool
    ) -> None:
        """Settle who computes, and whether by graphs; arguments of :func:`settle_convolutions`."""
        self._settled = settle_convolutions(model, images, half, graphs=may)
        self.wanted, self._images = self._settled.graphed, images[0]

    def moved(self, batch: dict[str, Any], move: Move) -> dict[str, Any]:
        """A copy of a batch on the device, whose images and boxes lie where a graph reads them.

        Args:
            batch: on the host; images are uint8, (N, C, H, W).
            move: Ultralytics' ``preprocess_batch``, by which images become float32 in [0, 1].
        """
        batch = self._laid_out(dict(batch))  # it may be needed again as it was
        images = batch["img"]
        if self._graph is None or images.shape != self._graph.images.shape:
            return move(batch)
        # That divides into another tensor: two of float32, which a card keeps for good, beside the graph's.
        there = images.to(self._graph.images.device, non_blocking=True)
        batch = move({**batch, "img": images[:0]})
        batch["img"] = self._graph.images.copy_(there).div_(255)
        return batch

    def _laid_out(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Lay out the boxes for a graph. Where it has too few places for them, another one is recorded."""
        if len(batch["img"]) < self._images:
            return batch  # the last of an epoch: few are like it
        if self.wanted or (self._graph is not None and self._graph.whole):
            places = add_targets(batch, self._places)
            if self._graph is not None and places > self._places:
                self.wanted, self._graph, self._take_back = True, None, _nothing
            self._places = places
        return batch

    def loss(self, model: Any, batch: dict[str, Any]) -> Loss:
        """The loss of a batch on the device and its components, by the graph or by the network itself.

        Args:
            model: an Ultralytics detector in training mode; where a graph is wanted, without DDP around it.
            batch: of :meth:`moved`.
        """
        if self.wanted and len(batch["img"]) >= self._images:
            self.wanted = False
            self._graph = self._recorded(model, batch)
        graphed = self._graph
        if graphed and graphed.accepts(batch):
            self._take_back = graphed.take_back
            return graphed.loss(batch)
        self._take_back = _to_now(model) if graphed else _nothing
        found: Loss = model(batch)
        return found

    def beside(self, call: Callable[[], T]) -> T:
        """What a call returns that computes beside the graph, and with it by :meth:`loss`.

        Where there is too little memory beside the graph, or the loss wants a gradient that the graph does
        not have, the graph is given up, and the call made again. Buffers and gradients of the network are
        then as they were before the call.

        Raises:
            RuntimeError: of the call, when there is no graph, or it says something else.
        """
        self._take_back = _nothing
        try:
            return call()
        except RuntimeError as error:
            if self._graph is None or not (no_memory(error) or isinstance(error, UnexpectedGradient)):
                raise
            self._record_event("CUDA graph dropped", "the same again without", _first_line(error))
        # Here nothing holds what the call made any more, as the error does above.
        self._take_back()
        self.drop()
        gc.collect()
        torch.cuda.empty_cache()
        return call()

    def drop(self) -> None:
        """Give the memory back, and record none any more."""
        self.wanted, self._graph, self._take_back = False, None, _nothing
        self._settled.without_graphs()

    def _recorded(self, model: Any, batch: dict[str, Any]) -> GraphedDetector | None:
        try:
            return self._record(model, batch)
        except failures() as error:  # memory that does not suffice is one
            self._record_event("no CUDA graph", "training goes on without", _first_line(error))
            self._settled.without_graphs()
            return None


def _nothing() -> None:
    """Nothing is to be taken back."""


def _to_now(model: nn.Module) -> Callable[[], None]:
    """What puts the buffers and gradients of a model back to what they are now."""
    buffers = [(each, each.clone()) for each in model.buffers()]
    gradients = [(each, None if each.grad is None else each.grad.clone()) for each in model.parameters()]

    def take_back() -> None:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for parameter, gradient in gradients:
            parameter.grad = gradient

    return take_back


def _first_line(error: Exception) -> str:
    line = str(error).partition("\n")[0]
    return line if isinstance(error, RuntimeError) else f"{type(error).__name__}: {line}"
