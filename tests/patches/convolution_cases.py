"""The problems on which every route is judged, and the judge: float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from patches.convolution.problem import ConvProblem, Gradients, Route

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Largest relative error in the Frobenius norm: a few rounding steps of each dtype."""


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> ConvProblem:
    """Small 2-d convolutions of every kind: strides, padding wider than the kernel, dilation, groups."""
    small = st.integers(1, 3)
    pair = st.tuples(small, small)
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 1), (4, 4)]))
    stride, dilation = draw(pair), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    groups = draw(st.sampled_from([1, 1, 2, 5]))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    return ConvProblem(
        batch=draw(small),
        channels_in=groups * draw(small),
        height=least[0] + draw(st.integers(0, 7)),
        width=least[1] + draw(st.integers(0, 7)),
        channels_out=groups * draw(small),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        dtype=draw(st.sampled_from(dtypes)),
        device="cpu",
        channels_last=draw(st.booleans()),
    )


def tensors(problem: ConvProblem, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Seeded input, weight, bias and output gradient of a problem."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(problem.dtype)

    x = normal(problem.batch, problem.channels_in, problem.height, problem.width)
    if problem.channels_last:
        x = x.to(memory_format=torch.channels_last)
    weight = normal(problem.channels_out, problem.channels_in // problem.groups, *problem.kernel)
    bias = normal(problem.channels_out) if problem.bias else None
    return x, weight, bias, normal(problem.batch, problem.channels_out, *problem.output_size)


def reference(
    problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor
) -> tuple[Tensor, ...]:
    """Output and gradients of input, weight and bias in float64, by PyTorch's own kernels and autograd."""
    leaves = [t.detach().double().requires_grad_() for t in (x, weight, bias) if t is not None]
    out = F.conv2d(
        leaves[0],
        leaves[1],
        leaves[2] if problem.bias else None,
        problem.stride,
        problem.padding,
        problem.dilation,
        problem.groups,
    )
    return (out.detach(), *torch.autograd.grad(out, leaves, grad.double()))


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference, relative to that of ``expected``; NaN counts as infinite."""
    error = float((value.double() - expected).norm() / expected.norm().clamp_min(1e-30))
    return error if error == error else float("inf")


def assert_correct(route: Route, problem: ConvProblem) -> None:
    """Run forward and backward of ``route`` and compare both with :func:`reference`."""
    x, weight, bias, grad = tensors(problem)
    with torch.inference_mode():
        out = route.forward(problem, x, weight, bias)
        gradients: Gradients = route.backward(problem, grad, x, weight, (True, True, problem.bias))
    expected = reference(problem, x, weight, bias, grad)
    names = ("output", "gradient of input", "gradient of weight", "gradient of bias")
    for name, value, truth in zip(names, (out, *gradients), expected, strict=False):
        assert value is not None, name
        assert value.shape == truth.shape, name
        assert value.dtype == problem.dtype, name
        assert relative_error(value, truth) <= TOLERANCE[problem.dtype], f"{name} of {problem}"


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill every new buffer with NaN, so that memory which is read before it is written shows."""
    original: Callable[..., Tensor] = torch.Tensor.new_empty

    def poisoned(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        return original(self, *args, **kwargs).fill_(float("nan"))

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
