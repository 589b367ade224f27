"""An Ultralytics detector and the loss of its batches as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees
from ultralytics.nn.tasks import BaseModel

from patches.graphs import GraphedModule, as_before, failures
from patches.settling import timed
from toolkit.training.dense_loss import DenseLoss, boxes, padded, places

TARGETS = "targets"
"""Key of a batch: its boxes in as many places an image (:func:`toolkit.training.dense_loss.padded`)."""

AGREE = 1e-3
"""Of the norm of a gradient, by how much that of the dense loss may be off. It is off by rounding where
Ultralytics computes what is known here, and by much more where another version computes something else."""

SCALE = 1024.0
"""What losses are multiplied by before their gradients are compared: in float16 small ones would be zero."""

OTHERWISE = (AttributeError, KeyError, TypeError)
"""What comes of a release of Ultralytics whose losses are made of other parts."""

Loss = tuple[Tensor, dict[str, Tensor]]
"""The components of a loss with a gradient, and as they are shown, by name; as Ultralytics returns it."""


def add_targets(batch: dict[str, Any], least: int = 0) -> int:
    """Lay the boxes of a batch on the host out for a graph; the places an image, ``least`` or more."""
    count = max(places(batch), least)
    found = padded(batch, count)
    batch[TARGETS] = found.pin_memory() if batch["img"].is_pinned() else found
    return count


def with_boxes(images: Tensor) -> dict[str, Tensor]:
    """A batch of these images, on their device, with boxes that are made up and laid out for a graph."""
    batch = {"img": images, **boxes(len(images))}
    add_targets(batch)
    return {name: each.to(images.device) for name, each in batch.items()}


class GraphedDetector:
    """A detector, replayed for batches like the one that it was recorded with.

    Args:
        model: in training mode, on a card.
        batch: on the card. It is where the graphs read from: each later batch overwrites it.
        whole: record the loss too; else Ultralytics computes it of the network's outputs.

    Attributes:
        whole: whether the loss is recorded too.

    Raises:
        RuntimeError: see :class:`patches.graphs.GraphedModule`.
    """

    def __init__(self, model: Any, batch: Mapping[str, Tensor], whole: bool) -> None:
        self.whole, self._model = whole, model
        if not whole:
            images = batch["img"]

            def loss_of_some(outputs: Any) -> Tensor:
                # Without any box, some losses need the gradients of fewer outputs.
                found: Tensor = model.loss({**batch, **with_boxes(images)}, outputs)[0].sum()
                return found

            self._graph = GraphedModule(model, images, loss_of_some)
            return
        self._loss = loss = DenseLoss(_criterion(model))
        self._gains = torch.tensor(loss.gains(), device=batch["img"].device)
        self._known = loss.gains()
        self._graph = GraphedModule(
            model,
            self._inputs(batch),
            lambda found: found[0].sum(),
            lambda images, targets, gains: loss(model(images), targets, gains),
        )

    @property
    def images(self) -> Tensor:
        """Where the graphs read them: those of a batch that lie here are not copied."""
        return self._graph.inputs[0]

    def accepts(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether a batch on the card is like the one that was recorded with."""
        return (not self.whole or TARGETS in batch) and self._graph.accepts(*self._inputs(batch))

    def loss(self, batch: Mapping[str, Tensor]) -> Loss:
        """The loss of a batch that :meth:`accepts` takes, as ``model(batch)`` returns it."""
        found = self._graph(*self._inputs(batch))
        if not self.whole:
            told: Loss = self._model.loss(batch, found)
            return told
        # The next replay writes where these lie.
        return found[0], dict(zip(self._loss.names, found[1].clone().unbind(), strict=True))

    def take_back(self) -> None:
        """See :meth:`patches.graphs.GraphedModule.take_back`."""
        self._graph.take_back()

    def _inputs(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if not self.whole:
            return (batch["img"],)
        if (gains := self._loss.gains()) != self._known:
            self._gains, self._known = torch.tensor(gains, device=self._gains.device), gains
        return batch["img"], batch[TARGETS], self._gains


class Recorder:
    """Records detectors, with the loss where that is quicker.

    Computing all pairs of boxes and anchors costs a card more, and waiting for it costs the host: both ways
    are timed once.

    Args:
        judge: whether to time them; else the loss is recorded wherever it can be.
    """

    def __init__(self, judge: bool) -> None:
        self._judge, self._rival = judge, 0.0
        self._whole: bool | None = None

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> GraphedDetector:
        """A detector recorded with a batch, which leaves gradients, statistics and generators as they are.

        Raises:
            RuntimeError: see :class:`patches.graphs.GraphedModule`.
        """
        if self._whole is None:
            self._whole = TARGETS in batch and _agrees(model, batch)
            if self._whole and self._judge:
                self._rival = _seconds(GraphedDetector(model, batch, whole=False), model, batch)
        if self._whole:
            found = self._recorded_whole(model, batch)
            if found is not None:
                return found
            self._whole = False  # what it took is given back before the next one
        return GraphedDetector(model, batch, whole=False)

    def _recorded_whole(self, model: Any, batch: Mapping[str, Tensor]) -> GraphedDetector | None:
        try:
            found = GraphedDetector(model, batch, whole=True)
            return found if not self._judge or _seconds(found, model, batch) < self._rival else None
        except failures():
            return None


def _criterion(model: Any) -> Any:
    if getattr(model, "criterion", None) is None:
        model.criterion = model.init_criterion()
    return model.criterion


def _seconds(detector: GraphedDetector, model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    """Median seconds of a loss and its gradients; the model keeps those that it had."""
    kept = [(each, each.grad) for each in model.parameters()]

    def step() -> None:
        model.zero_grad(set_to_none=False)
        torch.autograd.backward(detector.loss(batch)[0].sum())

    try:
        for each, _ in kept:
            each.grad = None
        with as_before(model, batch["img"].device):
            return timed(step)
    finally:
        for each, gradient in kept:
            each.grad = gradient


def _agrees(model: Any, batch: Mapping[str, Tensor]) -> bool:
    """Whether the model's loss is Ultralytics' own, and the dense loss of a batch has the same gradients."""
    own = "loss" not in vars(model) and getattr(type(model), "loss", None) is BaseModel.loss
    if not own or not DenseLoss.serves(_criterion(model)):
        return False
    try:
        return _same_gradients(model, batch)
    except OTHERWISE:
        return False
    except failures():  # memory that does not suffice for all pairs is one
        return False


def _same_gradients(model: Any, batch: Mapping[str, Tensor]) -> bool:
    dense = DenseLoss(_criterion(model))
    if not len(batch["batch_idx"]):  # all of the loss is to be compared
        batch = with_boxes(batch["img"])
    gains = torch.tensor(dense.gains(), device=batch["img"].device)
    with as_before(model, batch["img"].device), torch.no_grad():
        outputs, form = trees.tree_flatten(model(batch["img"]))
    with torch.enable_grad():
        wanted = _gradients(outputs, form, lambda found: model.loss(batch, found)[0])
        found = _gradients(outputs, form, lambda found: dense(found, batch[TARGETS], gains)[0])
    return all(map(_close, wanted, found))


def _close(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool((one - other).norm() <= AGREE * one.norm())


def _gradients(outputs: list[Any], form: Any, loss: Callable[[Any], Tensor]) -> list[Tensor | None]:
    """Of the sum of a loss, by the outputs; last the loss itself."""
    leaves = [
        each.detach().requires_grad_(each.is_floating_point()) if isinstance(each, Tensor) else each
        for each in outputs
    ]
    inputs = [each for each in leaves if isinstance(each, Tensor) and each.requires_grad]
    found = loss(trees.tree_unflatten(leaves, form)).sum()
    slopes = torch.autograd.grad(found * SCALE, inputs, allow_unused=True)
    return [*(None if each is None else each.float() for each in slopes), found.detach()]
