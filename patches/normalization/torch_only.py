"""The same operation from PyTorch's own kernels: it keeps as little, and needs no Triton.

The vendor's library is not asked: ``native_batch_norm`` is PyTorch's own on every card. What the fused
kernels read twice, this reads four times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..convolution.statistics import TileStatistics
from .problem import NormProblem, Parameters

_aten: Any = torch.ops.aten


class TorchOnly:
    """An ``Implementation``; see :mod:`patches.normalization.operation`."""

    def __init__(self, problem: NormProblem) -> None:
        self.problem = problem

    def forward(
        self,
        x: Tensor,
        held: Parameters,
        tiles: TileStatistics | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Output; mean and 1 / standard deviation. PyTorch's kernel finds the statistics itself."""
        p, running_mean, running_var = self.problem, held.running_mean, held.running_var
        if p.training and held.batches is not None:
            held.batches.add_(1)
        normal, mean, inverse = torch.native_batch_norm(
            x, held.weight, held.bias, running_mean, running_var, p.training, held.momentum, held.eps
        )
        if not p.training:
            assert running_mean is not None and running_var is not None
            wide = torch.promote_types(running_mean.dtype, torch.float32)
            mean = running_mean.to(wide, copy=True)
            inverse = (running_var.to(wide) + held.eps).rsqrt()
        found = activate(p, normal)
        return found if out is None else out.copy_(found), (mean, inverse)

    def backward(
        self, x: Tensor, grad: Tensor, held: Parameters, kept: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of input, weight and bias."""
        p, (mean, inverse) = self.problem, kept
        variance = inverse.pow(-2) - held.eps
        if p.activation != "identity":
            z = torch.native_batch_norm(x, held.weight, held.bias, mean, variance, False, 0.0, held.eps)[0]
            grad = activation_gradient(p, grad, z)
            del z
        found: tuple[Tensor, Tensor | None, Tensor | None] = _aten.native_batch_norm_backward(
            grad,
            x,
            held.weight,
            None if p.training else mean,
            None if p.training else variance,
            mean,
            inverse,
            p.training,
            held.eps,
            [True, p.affine, p.affine],
        )
        return found[0], found[1] if p.affine else None, found[2] if p.affine else None

    def again(
        self, x: Tensor, held: Parameters, kept: Sequence[Tensor], pixels: int | None, summed: bool
    ) -> Tensor:
        """The output once more, and its statistics: from mean and deviation some bits would differ.

        Running ones that nobody reads stand in for those that have moved: by their dtype PyTorch decides
        what it computes in.
        """
        mean, var = (None if each is None else torch.zeros_like(each) for each in held[2:4])
        z = torch.native_batch_norm(x, held.weight, held.bias, mean, var, True, held.momentum, held.eps)[0]
        return activate(self.problem, z)


def activate(p: NormProblem, z: Tensor) -> Tensor:
    """The activation of a problem; for a tensor that nobody else needs."""
    if p.activation == "silu":
        return F.silu(z)
    if p.activation == "relu":
        return z.relu_()
    if p.activation == "leaky_relu":
        return F.leaky_relu_(z, p.slope)
    if p.activation == "hardswish":
        return F.hardswish(z)
    return z


def activation_gradient(p: NormProblem, grad: Tensor, z: Tensor) -> Tensor:
    """The gradient behind the activation, which was applied to ``z``."""
    found: Tensor
    if p.activation == "silu":
        found = _aten.silu_backward(grad, z)
    elif p.activation == "relu":
        found = _aten.threshold_backward(grad, z, 0)
    elif p.activation == "leaky_relu":
        found = _aten.leaky_relu_backward(grad, z, p.slope, False)
    elif p.activation == "hardswish":
        found = _aten.hardswish_backward(grad, z)
    else:
        found = grad
    return found
