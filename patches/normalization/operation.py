"""act(batch_norm(x)) as one operation of autograd, which keeps x and two numbers a channel.

PyTorch keeps the input of the normalisation and that of the activation; here the latter is computed again in
the backward pass, where it costs no access to memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..convolution.statistics import TileStatistics
from . import torch_only
from .concatenation import Part
from .problem import NormProblem, Parameters
from .recomputing import Recipe

Kept = Sequence[Tensor]
Gradients = tuple[Tensor, "Tensor | None", "Tensor | None"]


class Implementation(Protocol):
    """One way to compute one problem on one device: a pair of functions over plain tensors, below autograd.

    ``x`` is dense in the problem's memory format, ``grad`` has any strides.
    """

    @property
    def problem(self) -> NormProblem:
        """What it computes."""
        ...

    def forward(
        self,
        x: Tensor,
        held: Parameters,
        tiles: TileStatistics | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Kept]:
        """The output, and what the backward pass needs beside ``x``; moves the running statistics.

        ``tiles`` has the statistics of ``x``, for who would read it to find them. ``out`` is where the output
        is to be written: channels of a tensor in the problem's memory format.
        """
        ...

    def backward(self, x: Tensor, grad: Tensor, held: Parameters, kept: Kept) -> Gradients:
        """Gradients of input, weight and bias; the latter None when not affine."""
        ...

    def again(self, x: Tensor, held: Parameters, kept: Kept, pixels: int | None, summed: bool) -> Tensor:
        """The output of a forward pass in training once more, bit for bit; running statistics stay.

        Args:
            kept: what that pass returned.
            pixels: of the tiles whose statistics it was told; None: it found the statistics itself.
            summed: whether no backward pass got ``kept`` since. Otherwise the statistics are found anew, and
                may differ by rounding.
        """
        ...


class ComputationError(Exception):
    """An implementation could not compute a problem; the cause says why."""


def _computed(
    x: Tensor, held: Parameters, by: Implementation, tiles: TileStatistics | None, part: Part | None
) -> tuple[Tensor, Kept]:
    try:
        return by.forward(x, held, tiles, None if part is None else part.room(x))
    except Exception as error:
        raise ComputationError from error


class _Operation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        held: Parameters,
        by: Implementation,
        tiles: TileStatistics | None,
        part: Part | None,
        recomputed: bool,
    ) -> Tensor:
        out, kept = _computed(x, held, by, tiles, part)
        ctx.save_for_backward(x, weight, bias, *kept)
        ctx.by, ctx.eps = by, held.eps
        remade = recomputed and part is None and by.problem.training
        ctx.recipe = Recipe(by, x, held, kept, tiles, out) if remade else None
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight, bias, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            found = _differentiable(ctx.by.problem, x, weight, bias, grad, kept, ctx.eps)
        else:
            held = Parameters(weight, bias, None, None, None, 0.0, ctx.eps)
            if ctx.recipe is not None:
                ctx.recipe.summed = False
            found = ctx.by.backward(x, grad, held, kept)
        return (*found, None, None, None, None, None)


def _differentiable(
    p: NormProblem,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    grad: Tensor,
    kept: list[Tensor],
    eps: float,
) -> tuple[Tensor | None, ...]:
    """The gradients as a graph, for who asks for second derivatives (``create_graph``)."""
    with torch.enable_grad():
        if p.training:
            z = F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
        else:
            mean, inverse = kept if len(kept) == 2 else kept[0][: 2 * p.channels].chunk(2)
            z = F.batch_norm(x, mean, inverse.pow(-2) - eps, weight, bias, False, 0.0, eps)
        out = torch_only.activate(p, z)
        leaves = [each for each in (x, weight, bias) if each is not None and each.requires_grad]
        found = iter(torch.autograd.grad(out, leaves, grad, create_graph=True))
        return tuple(
            next(found) if each is not None and each.requires_grad else None for each in (x, weight, bias)
        )


def apply(
    x: Tensor,
    held: Parameters,
    by: Implementation,
    tiles: TileStatistics | None = None,
    part: Part | None = None,
    recomputed: bool = False,
) -> Tensor:
    """act(batch_norm(x)) by an implementation, recorded by autograd where a gradient is wanted.

    Args:
        tiles: the statistics of ``x``, where somebody has them.
        part: where the output belongs, if anywhere; it goes there if it fits.
        recomputed: whether a convolution that reads the output may compute it again (``recomputing``).

    Raises:
        ComputationError: the implementation failed.
    """
    weight, bias = held.weight, held.bias
    wanted = torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
    )
    if wanted:
        out: Tensor = _Operation.apply(x, weight, bias, held, by, tiles, part, recomputed)
        return out
    with torch.no_grad():
        return _computed(x, held, by, tiles, part)[0]
