"""An update of the weights: when it is due, at which learning rate, and not with what is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from ultralytics.utils.torch_utils import unwrap_model

LARGEST_NORM = 10.0
"""Gradients are clipped to this norm, as Ultralytics clips them."""


class WarmUp(NamedTuple):
    """Ultralytics' warm-up as a function of the batch; beyond its end its values stay where it ended.

    Attributes:
        batches: that it lasts; 0: there is none.
        accumulate: batches to an update after it.
        bias_rate: learning rate of biases that it begins with; that of all other weights begins at 0.
        momentum: that it begins and ends with.
    """

    batches: int
    accumulate: int
    bias_rate: float
    momentum: tuple[float, float]

    def set(self, groups: list[dict[str, Any]], step: int, factor: float) -> int:
        """Set learning rate and momentum of an optimiser's groups of parameters.

        Args:
            groups: with the rate that a schedule begins with as ``initial_lr``.
            step: the batch, counted over the whole run.
            factor: of the schedule in this epoch.

        Returns:
            Batches to an update.
        """
        if not self.batches:
            return self.accumulate
        span = [0, self.batches]
        for group in groups:
            first = self.bias_rate if group.get("param_group") == "bias" else 0.0
            group["lr"] = float(np.interp(step, span, [first, group["initial_lr"] * factor]))
            if "momentum" in group:
                group["momentum"] = float(np.interp(step, span, self.momentum))
        return max(1, int(np.interp(step, span, [1, self.accumulate]).round()))


def update(
    weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, scaler: Any
) -> tuple[bool, torch.Tensor]:
    """Update the weights, unless a gradient is not finite, and drop the gradients.

    Args:
        weights: all of the model, in its order, which the norm's last bits follow.
        optimizer: of these.
        scaler: of their gradients.

    Returns:
        Whether the weights were updated, and the norm of the gradients.
    """
    scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(weights, max_norm=LARGEST_NORM)
    finite = math.isfinite(norm.item())
    if finite or scaler.is_enabled():
        scaler.step(optimizer)  # an enabled scaler leaves out such an update on its own
        scaler.update()
    optimizer.zero_grad()
    return finite, norm


def heal_buffers(model: nn.Module, averaged: nn.Module) -> None:
    """Running statistics that a NaN went through never recover on their own: take the average's."""
    good = dict(averaged.named_buffers())
    for name, buffer in unwrap_model(model).named_buffers():
        if buffer.is_floating_point() and not torch.isfinite(buffer).all():
            buffer.copy_(good[name])


def all_finite(state: Mapping[str, torch.Tensor]) -> bool:
    """Whether every weight and statistic of a model's state is."""
    return all(bool(torch.isfinite(value).all()) for value in state.values() if value.is_floating_point())
