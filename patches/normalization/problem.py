"""What identifies a batch norm with its activation: the type that all of its implementations share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

ACTIVATIONS = ("identity", "silu", "relu", "leaky_relu", "hardswish")


@dataclass(frozen=True)
class NormProblem:
    """Everything that decides how a batch norm with its activation is computed; hashable.

    Attributes:
        batch, channels, height, width: of input and output.
        dtype: of input and output; arithmetic is fp32.
        channels_last: whether input and output are stored NHWC.
        activation: one of :data:`ACTIVATIONS`.
        slope: of "leaky_relu" below zero.
        training: whether the statistics are those of the batch; else the running ones.
        affine: whether there are a weight and a bias.
        tracked: whether there are running statistics; without ``training`` there are.
    """

    batch: int
    channels: int
    height: int
    width: int
    dtype: torch.dtype
    channels_last: bool = False
    activation: str = "silu"
    slope: float = 0.0
    training: bool = True
    affine: bool = True
    tracked: bool = True

    @property
    def memory_format(self) -> torch.memory_format:
        """Of input and output."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def count(self) -> int:
        """Elements of a channel."""
        return self.batch * self.height * self.width

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.channels}x{self.height}x{self.width}"
        parts = [f"batch norm + {self.activation}, {shape}"]
        parts += ["channels_last"] if self.channels_last else []
        parts += [] if self.training else ["frozen"]
        parts += [] if self.affine else ["not affine"]
        return f"{', '.join(parts)}, {str(self.dtype).removeprefix('torch.')}"


class Parameters(NamedTuple):
    """What a batch norm module holds: tensors of (channels,), and how the running ones move.

    Attributes:
        weight, bias: None when not affine.
        running_mean, running_var: None when there are none.
        batches: int64 scalar, how many batches the running statistics have seen; None when nobody counts.
        momentum: share of a batch in the running statistics.
        eps: added to the variance.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    batches: Tensor | None
    momentum: float
    eps: float

    def to(self, device: str) -> Parameters:
        """The same on another device."""
        tensors = [None if each is None else each.to(device) for each in self[:5]]
        weight, bias, mean, var, batches = tensors
        return Parameters(weight, bias, mean, var, batches, self.momentum, self.eps)
