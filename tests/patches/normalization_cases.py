"""The batch norms on which every implementation is judged, and the judge: float64 on the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from convolution_cases import relative_error
from hypothesis import strategies as st
from torch import Tensor

from patches.normalization.concatenation import Part, Whole
from patches.normalization.operation import Implementation, apply
from patches.normalization.problem import ACTIVATIONS, NormProblem, Parameters
from patches.normalization.selftest import NAMES, operands, reference
from patches.normalization.torch_only import activate

TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
"""Largest relative error in the Frobenius norm: a few rounding steps of each dtype."""


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> NormProblem:
    """Small batch norms of every kind; at least two elements a channel."""
    small = st.integers(1, 9)
    batch, height, width = draw(st.tuples(small, small, small).filter(lambda size: size != (1, 1, 1)))
    training, channels_last = draw(st.booleans()), draw(st.booleans())
    # A block of channels is at most 64 wide in channels_last, 16 where the statistics of tiles are joined.
    channels = draw(st.integers(1, 70 if channels_last else 20))
    return NormProblem(
        batch,
        channels,
        height,
        width,
        draw(st.sampled_from(dtypes)),
        channels_last=channels_last,
        activation=draw(st.sampled_from(ACTIVATIONS)),
        slope=draw(st.sampled_from([0.01, 0.2])),
        training=training,
        affine=draw(st.booleans()),
        tracked=not training or draw(st.booleans()),
    )


def pytorch(p: NormProblem, x: Tensor, grad: Tensor, held: Parameters) -> dict[str, Tensor]:
    """Output and input gradient as PyTorch comes, in the problem's dtype."""
    leaf = x.detach().requires_grad_()
    mean, var = (None if each is None else each.clone() for each in held[2:4])
    out = activate(
        p, F.batch_norm(leaf, mean, var, held.weight, held.bias, p.training, held.momentum, held.eps)
    )
    return {"output": out.detach(), "input gradient": torch.autograd.grad(out, leaf, grad)[0]}


def in_layout(p: NormProblem, t: Tensor) -> Tensor:
    """The same values in the problem's memory format."""
    return t.contiguous(memory_format=p.memory_format)


def assert_correct(by: Implementation, seed: int = 0, wider: bool = False) -> None:
    """Run forward and backward through autograd and compare everything with float64.

    Args:
        wider: output and output gradient are slices of tensors of twice the channels.
    """
    p = by.problem
    x, grad, held = operands(p, seed)
    expected = reference(p, x, grad, held)
    usual = pytorch(p, x, grad, held)
    x, grad = in_layout(p, x), in_layout(p, grad)
    part = None
    if wider:
        whole = Whole(2 * p.channels)
        beside, part = whole.room(0, x), Part(whole, p.channels)
        assert beside is not None
        beside.fill_(7)
        grad = in_layout(p, torch.cat((torch.zeros_like(grad), grad), 1))[:, p.channels :]
    leaves = [each.requires_grad_() for each in (x, held.weight, held.bias) if each is not None]
    out = apply(x, held, by, part=part)
    gradients = torch.autograd.grad(out, leaves, grad)
    assert out.dtype == p.dtype
    if part is None:
        assert out.stride() == x.stride()
    else:
        assert part.whole.has(part.first, out) and bool((beside == 7).all())
    values = (out, *gradients, *(() if p.affine else (None, None)), held.running_mean, held.running_var)
    for name, value, truth in zip(NAMES, values, expected, strict=True):
        if value is None or truth is None:
            assert value is truth, name
            continue
        assert value.shape == truth.shape, name
        error = relative_error(value.detach(), truth)
        if truth.dim() == 1:
            # A sum of terms that may cancel: what was lost counts against the terms.
            terms = grad.double().abs() * x.detach().double().abs().clamp_min(1)
            error *= float(truth.norm() / terms.sum((0, 2, 3)).norm().clamp_min(float(truth.norm())))
        # Where a derivative jumps, a z that PyTorch rounds to half precision falls on the other side.
        own = relative_error(usual[name], truth) if name in usual else 0.0
        assert error <= max(TOLERANCE[p.dtype], 2 * own), f"{name} of {p}: {error:.1e}"
    if p.training and held.batches is not None:
        assert int(held.batches) == 1
