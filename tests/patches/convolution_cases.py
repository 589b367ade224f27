"""The problems on which every route is judged, and the judge: float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from patches.convolution.problem import ConvProblem, Gradients, Route

TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Largest relative error in the Frobenius norm: a few rounding steps of each dtype."""


PLAIN = ConvProblem(
    batch=2,
    channels_in=16,
    height=7,
    width=6,
    channels_out=16,
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    groups=1,
    bias=False,
    dtype=torch.float32,
    device="cpu",
    channels_last=False,
)
POINTWISE = replace(PLAIN, kernel=(1, 1), padding=(0, 0))
TRANSPOSED = replace(PLAIN, transposed=True)
DEPTHWISE = replace(PLAIN, channels_in=6, channels_out=6, groups=6)

KINDS = {
    "3x3": replace(PLAIN, channels_out=20),
    "3x3 on three channels, stride 2 (the first layer)": replace(
        PLAIN, channels_in=3, stride=(2, 2), bias=True
    ),
    "3x3, stride 2, channels_last": replace(PLAIN, stride=(2, 2), channels_last=True),
    "1x1": replace(POINTWISE, channels_in=20, channels_out=40, bias=True),
    "1x1, channels_last": replace(POINTWISE, channels_out=20, channels_last=True, bias=True),
    "1x1, stride 2": replace(POINTWISE, stride=(2, 2)),
    "stride larger than the kernel leaves phases without taps": replace(
        PLAIN, kernel=(2, 1), stride=(3, 2), padding=(0, 0)
    ),
    "stride and dilation share a factor": replace(
        PLAIN, stride=(2, 2), dilation=(2, 3), height=9, width=11, padding=(2, 1)
    ),
    "output narrower than the stride": replace(POINTWISE, height=4, width=2, stride=(3, 3)),
    "depthwise": replace(DEPTHWISE, bias=True),
    "depthwise, two filters a channel, stride 2": replace(
        PLAIN, channels_in=3, channels_out=6, groups=3, stride=(2, 2)
    ),
    "depthwise, channels_last": replace(DEPTHWISE, channels_last=True),
    "small groups": replace(PLAIN, channels_in=4, channels_out=6, groups=2, bias=True),
    "large groups": replace(PLAIN, channels_in=40, channels_out=34, groups=2, kernel=(1, 3), padding=(0, 1)),
    "one pixel": replace(PLAIN, batch=1, height=1, width=1),
    "a row": replace(PLAIN, height=1, width=13, kernel=(1, 5), stride=(1, 2), padding=(0, 3), bias=True),
    "a row, channels_last": replace(PLAIN, height=1, kernel=(1, 3), padding=(0, 1), channels_last=True),
    "a row, depthwise": replace(DEPTHWISE, height=1, width=19, kernel=(1, 7), padding=(0, 3)),
    "transposed": replace(TRANSPOSED, channels_out=20, bias=True),
    "transposed, 2x2 stride 2 (the usual upsampling)": replace(
        TRANSPOSED, kernel=(2, 2), stride=(2, 2), padding=(0, 0), bias=True
    ),
    "transposed, channels_last": replace(TRANSPOSED, stride=(2, 2), channels_last=True, bias=True),
    "transposed, output padding": replace(TRANSPOSED, stride=(3, 2), output_padding=(2, 1)),
    "transposed, output padding beyond the stride": replace(
        TRANSPOSED, dilation=(2, 3), stride=(1, 2), output_padding=(1, 2), bias=True
    ),
    "transposed, 1x1, output padding beyond the stride": replace(
        TRANSPOSED, kernel=(1, 1), padding=(0, 0), dilation=(2, 2), output_padding=(1, 1), bias=True
    ),
    "transposed, stride beyond the kernel": replace(
        TRANSPOSED, kernel=(2, 1), stride=(3, 2), padding=(0, 0), bias=True
    ),
    "transposed, depthwise": replace(TRANSPOSED, channels_in=6, channels_out=6, groups=6, bias=True),
    "transposed, small groups": replace(
        TRANSPOSED, channels_in=4, channels_out=6, groups=2, stride=(2, 2), bias=True
    ),
    "transposed, large groups": replace(TRANSPOSED, channels_in=40, channels_out=34, groups=2),
    "transposed row": replace(
        TRANSPOSED, height=1, kernel=(1, 4), stride=(1, 2), padding=(0, 1), output_padding=(0, 1), bias=True
    ),
}
"""What a route may treat as a case of its own, by name."""


def _filled(
    draw: st.DrawFn,
    small: st.SearchStrategy[int],
    least: list[int],
    more: int,
    dtypes: tuple[torch.dtype, ...],
    axes: dict[str, Any],
) -> ConvProblem:
    """A problem of the drawn axes, from the ``least`` sizes that they allow to ``more`` pixels beyond."""
    return ConvProblem(
        batch=draw(small),
        channels_in=axes["groups"] * draw(small),
        height=least[0] + draw(st.integers(0, more)),
        width=least[1] + draw(st.integers(0, more)),
        channels_out=axes["groups"] * draw(small),
        bias=draw(st.booleans()),
        dtype=draw(st.sampled_from(dtypes)),
        device="cpu",
        channels_last=draw(st.booleans()),
        **axes,
    )


@st.composite
def problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> ConvProblem:
    """Small 2-d convolutions of every kind: strides, padding wider than the kernel, dilation, groups."""
    small = st.integers(1, 3)
    pair = st.tuples(small, small)
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 3), (5, 1), (4, 4)]))
    stride, dilation = draw(pair), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    axes = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _filled(draw, small, least, 7, dtypes, axes)


@st.composite
def transposed_problems(draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> ConvProblem:
    """Small transposed convolutions of every kind, the output padding beyond the stride included."""
    small = st.integers(1, 3)
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (2, 2), (1, 4), (5, 1)]))
    stride, dilation = draw(st.tuples(small, small)), draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    least = [
        max(1, -(-(2 * p - d * (k - 1) - e) // s) + 1)
        for k, s, p, d, e in zip(kernel, stride, padding, dilation, extra, strict=True)
    ]
    axes = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    axes |= {"transposed": True, "output_padding": extra}
    return _filled(draw, small, least, 5, dtypes, axes)


Operands = tuple[Tensor, Tensor, "Tensor | None", Tensor]


def tensors(problem: ConvProblem, seed: int = 0) -> Operands:
    """Seeded input, weight, bias and output gradient of a problem, in its memory format."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator).to(problem.dtype)
        return values.to(memory_format=problem.memory_format) if len(shape) == 4 else values

    return (
        normal(problem.batch, problem.channels_in, problem.height, problem.width),
        normal(*problem.weight_shape),
        normal(problem.channels_out) if problem.bias else None,
        normal(problem.batch, problem.channels_out, *problem.output_size),
    )


def convolve(problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's function for the problem; 1-d where the tensors are, and the problem has one row."""
    axes = slice(4 - x.dim(), None)
    settings: dict[str, Any] = {
        name: getattr(problem, name)[axes] for name in ("stride", "padding", "dilation")
    }
    kind = ""
    if problem.transposed:
        kind, settings["output_padding"] = "_transpose", problem.output_padding[axes]
    function: Callable[..., Tensor] = getattr(F, f"conv{kind}{x.dim() - 2}d")
    return function(x, weight, bias, groups=problem.groups, **settings)


def reference(
    problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor
) -> tuple[Tensor, ...]:
    """Output and gradients of input, weight and bias in float64, by PyTorch's own kernels and autograd."""
    leaves = [t.detach().double().requires_grad_() for t in (x, weight, bias) if t is not None]
    out = convolve(problem, leaves[0], leaves[1], leaves[2] if problem.bias else None)
    return (out.detach(), *torch.autograd.grad(out, leaves, grad.double()))


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference, relative to that of ``expected``; NaN counts as infinite."""
    error = float((value.double() - expected).norm() / expected.norm().clamp_min(1e-30))
    return error if error == error else float("inf")


def assert_correct(
    route: Route, problem: ConvProblem, operands: Operands | None = None, tolerance: float | None = None
) -> None:
    """Run forward and backward of ``route`` and compare both with :func:`reference`.

    Args:
        operands: instead of :func:`tensors`.
        tolerance: instead of :data:`TOLERANCE`.
    """
    assert route.supports(problem)
    x, weight, bias, grad = operands or tensors(problem)
    with torch.inference_mode():
        out = route.forward(problem, x, weight, bias)
        gradients: Gradients = route.backward(problem, grad, x, weight, (True, True, problem.bias))
    expected = reference(problem, x, weight, bias, grad)
    assert out.is_contiguous(memory_format=problem.memory_format)
    assert problem.bias or gradients[2] is None
    names = ("output", "gradient of input", "gradient of weight", "gradient of bias")
    for name, value, truth in zip(names, (out, *gradients), expected, strict=False):
        assert value is not None, name
        assert value.shape == truth.shape, name
        assert value.dtype == problem.dtype, name
        error = relative_error(value, truth)
        assert error <= (tolerance or TOLERANCE[problem.dtype]), f"{name} of {problem}: {error:.2e}"


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill every new buffer with NaN, so that memory which is read before it is written shows."""

    def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned(*args: Any, **kwargs: Any) -> Tensor:
            buffer = allocate(*args, **kwargs)
            return buffer.fill_(float("nan")) if buffer.is_floating_point() else buffer

        return poisoned

    for place, name in ((Tensor, "new_empty"), (Tensor, "new_empty_strided"), (torch, "empty_like")):
        monkeypatch.setattr(place, name, poisoning(getattr(place, name)))
