"""What a convolution leaves of its output's statistics for the batch norm behind it, and how it gets there.

Autograd stands between a block of a model and the route, and hands through one tensor. So the block asks in
its own thread, the next convolution of that thread answers, and the answer counts for the very tensor that
comes back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .problem import ConvProblem


class TileStatistics(NamedTuple):
    """Statistics of runs of pixels; pixels count through images, rows and columns.

    Attributes:
        table: float32, (2, runs, channels): mean of the values as stored, and sum of their squared distances
            from it.
        pixels: of a run; the last has those that are left.
    """

    table: Tensor
    pixels: int

    @classmethod
    def of(cls, out: Tensor, pixels: int) -> TileStatistics:
        """Those of a tensor (batch, channels, height, width), in float64 by PyTorch."""
        runs = torch.split(out.double().permute(0, 2, 3, 1).reshape(-1, out.shape[1]), pixels)
        means = torch.stack([each.mean(0) for each in runs])
        squares = [(each - mean).square().sum(0) for each, mean in zip(runs, means, strict=True)]
        return cls(torch.stack((means, torch.stack(squares))), pixels)


@runtime_checkable
class Summing(Protocol):
    """A route that can leave statistics."""

    def sums(self, problem: ConvProblem) -> bool:
        """Whether it can for a problem that it serves."""
        ...

    def forward_with_statistics(
        self, problem: ConvProblem, x: Tensor, weight: Tensor
    ) -> tuple[Tensor, TileStatistics]:
        """As ``Route.forward``, for a problem without a bias."""
        ...


class Question(threading.local):
    """What a thread wants to know, and the answer.

    Attributes:
        open: whether the next convolution is to leave statistics.
        answer: its output, and what it left.
    """

    open = False
    answer: tuple[Tensor, TileStatistics] | None = None


QUESTION = Question()


def answering(route: Summing, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A route's forward pass, of which the statistics go to who asked."""
    out, statistics = route.forward_with_statistics(problem, x, weight)
    QUESTION.open, QUESTION.answer = False, (out, statistics)
    return out


def with_statistics(convolve: Callable[..., Tensor], *args: object) -> tuple[Tensor, TileStatistics | None]:
    """The output of a call, and its statistics where it came from a convolution that left them."""
    QUESTION.open = True
    try:
        out = convolve(*args)
        found = QUESTION.answer
    finally:
        QUESTION.open, QUESTION.answer = False, None
    return out, found[1] if found is not None and found[0] is out else None
