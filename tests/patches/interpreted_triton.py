"""The Triton route on the CPU, through Triton's interpreter; test_triton_route.py runs this file in a process
of its own.

The interpreter is chosen when Triton is imported, for the whole process, so these tests cannot share one with
others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from patches.convolution.problem import ConvProblem
from patches.convolution.triton_kernels import TritonRoute, route
from patches.convolution.triton_kernels.tiles import Tile, Tiles

# Relative error (Frobenius) that fp32 sums of a few hundred products stay under, and that tf32 (1e-4) does
# not.
FP32_ERROR = 2e-6


def problem(
    batch: int = 2,
    channels: int = 16,
    filters: int = 16,
    size: tuple[int, int] = (7, 6),
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> ConvProblem:
    return ConvProblem(
        batch,
        channels,
        *size,
        filters,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        bias,
        dtype,
        "cpu",
        channels_last,
    )


CASES = {
    "3x3": problem(filters=20),
    "3x3 on three channels, stride 2 (the first layer)": problem(channels=3, stride=(2, 2), bias=True),
    "3x3, stride 2, channels_last": problem(stride=(2, 2), channels_last=True),
    "1x1": problem(kernel=(1, 1), padding=(0, 0), channels=20, filters=40, bias=True),
    "1x1, channels_last": problem(kernel=(1, 1), padding=(0, 0), filters=20, channels_last=True, bias=True),
    "1x1, stride 2": problem(kernel=(1, 1), padding=(0, 0), stride=(2, 2)),
    "stride larger than the kernel leaves phases without taps": problem(
        kernel=(2, 1), stride=(3, 2), padding=(0, 0)
    ),
    "stride and dilation share a factor": problem(
        stride=(2, 2), dilation=(2, 3), size=(9, 11), padding=(2, 1)
    ),
    "output narrower than the stride": problem(size=(4, 2), kernel=(1, 1), stride=(3, 3), padding=(0, 0)),
    "depthwise": problem(channels=6, filters=6, groups=6, bias=True),
    "depthwise, two filters a channel, stride 2": problem(channels=5, filters=10, groups=5, stride=(2, 2)),
    "depthwise, channels_last": problem(channels=6, filters=6, groups=6, channels_last=True),
    "small groups": problem(channels=8, filters=6, groups=2, bias=True),
    "large groups": problem(channels=40, filters=34, groups=2, kernel=(1, 3), padding=(0, 1)),
    "one pixel": problem(batch=1, size=(1, 1), padding=(1, 1)),
}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the route allocates holds NaN, so that an element nobody writes shows."""

    def poisoning(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poison(*args: Any, **kwargs: Any) -> Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return poison

    for place, name in (
        (route.torch, "empty_like"),
        (Tensor, "new_empty"),
        (Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(place, name, poisoning(getattr(place, name)))


def tensors(p: ConvProblem) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if p.channels_last else torch.contiguous_format

    def make(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator).to(p.dtype)
        return values.to(memory_format=layout) if values.dim() == 4 else values

    return (
        make(p.batch, p.channels_in, p.height, p.width),
        make(p.channels_out, p.channels_in // p.groups, *p.kernel),
        make(p.channels_out) if p.bias else None,
        make(p.batch, p.channels_out, *p.output_size),
    )


def assert_agrees(
    p: ConvProblem,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grad: Tensor,
    served: TritonRoute,
    most: float,
) -> None:
    """Output and gradients against PyTorch in float64."""
    wide = [None if t is None else t.double().requires_grad_() for t in (x, weight, bias)]
    expected = torch.nn.functional.conv2d(*wide, p.stride, p.padding, p.dilation, p.groups)
    expected.backward(grad.double())

    assert served.supports(p)
    output = served.forward(p, x, weight, bias)
    gradients = served.backward(p, grad, x, weight, (True, True, p.bias))

    assert output.is_contiguous(
        memory_format=torch.channels_last if p.channels_last else torch.contiguous_format
    )
    pairs = [("output", output, expected.detach())]
    pairs += [
        (name, got, want.grad)
        for name, got, want in zip(("input", "weight", "bias"), gradients, wide, strict=True)
        if want is not None
    ]
    for name, got, want in pairs:
        assert got is not None and got.dtype == p.dtype and got.shape == want.shape
        error = (got.double() - want).norm() / want.norm().clamp_min(1e-30)
        assert error <= most, f"{name} is off by {error:.2e} for {p}"
    assert p.bias or gradients[2] is None


@pytest.mark.parametrize("name", CASES)
def test_a_kind_of_convolution_agrees_with_float64(name: str) -> None:
    p = CASES[name]
    assert_agrees(p, *tensors(p), TritonRoute(), FP32_ERROR)


@st.composite
def problems(draw: st.DrawFn) -> ConvProblem:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pair), draw(pair), draw(pair)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    return problem(
        batch=draw(st.integers(1, 2)),
        channels=groups * draw(st.sampled_from([1, 3, 8, 9, 17])),
        filters=groups * draw(st.sampled_from([1, 3, 18])),
        size=(draw(st.integers(least[0], least[0] + 5)), draw(st.integers(least[1], least[1] + 5))),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        channels_last=draw(st.booleans()),
    )


@seed(20261123)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(problems())
def test_any_convolution_agrees_with_float64(p: ConvProblem) -> None:
    assert_agrees(p, *tensors(p), TritonRoute(), FP32_ERROR)


@pytest.mark.parametrize("upcast", [False, True], ids=["packed dot", "multiplied in fp32"])
def test_fp16_is_summed_in_fp32(upcast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "lacks_packed_dot", lambda: upcast)
    p = problem(channels=32, dtype=torch.float16, bias=True)
    # Half a unit in the last place of fp16 (2^-11) on each result, and nothing from the 288 products.
    assert_agrees(p, *tensors(p), TritonRoute(), 2**-11)


@pytest.mark.parametrize("name", ["3x3", "1x1, channels_last", "depthwise"])
def test_64_bit_offsets_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "_wide", lambda *tensors: True)
    p = CASES[name]
    assert_agrees(p, *tensors(p), TritonRoute(), FP32_ERROR)


def test_tensors_may_have_any_strides() -> None:
    p = problem(channels=16, filters=4, bias=True)
    x, weight, bias, grad = tensors(p)
    wider = torch.randn(p.batch, 2 * p.channels_in, p.height, p.width)
    assert_agrees(p, wider.chunk(2, 1)[1], weight, bias, grad, TritonRoute(), FP32_ERROR)
    assert_agrees(
        p, x.transpose(2, 3).contiguous().transpose(2, 3), weight, bias, grad, TritonRoute(), FP32_ERROR
    )
    assert_agrees(
        p, x, weight.transpose(2, 3).contiguous().transpose(2, 3), bias, grad, TritonRoute(), FP32_ERROR
    )
    assert_agrees(p, x, weight, bias, torch.ones(()).expand(grad.shape), TritonRoute(), FP32_ERROR)


@pytest.mark.parametrize("groups", [1, 4], ids=["one group", "depthwise"])
def test_a_bias_may_have_any_stride(groups: int) -> None:
    p = problem(channels=4, filters=4, groups=groups, bias=True)
    x, weight, _, grad = tensors(p)
    for bias in (torch.randn(8)[::2], torch.randn(1).expand(4), torch.randn(9)[5:]):
        assert_agrees(p, x, weight, bias, grad, TritonRoute(), FP32_ERROR)


def shifted(t: Tensor) -> Tensor:
    """The same values, one element past a multiple of 16 bytes."""
    place = torch.empty(t.numel() + 8, dtype=t.dtype)[1 : t.numel() + 1].view(t.shape)
    assert place.data_ptr() % 16
    return place.copy_(t)


def test_a_kernel_for_aligned_tensors_is_used_for_no_others() -> None:
    p = problem(kernel=(1, 1), padding=(0, 0), size=(4, 4), bias=True)
    x, weight, bias, grad = tensors(p)
    served = TritonRoute()
    served.forward(p, shifted(x), weight, bias)
    served.forward(p, x, shifted(weight), bias)
    assert bias is not None
    served.forward(p, x, weight, shifted(bias))
    assert len(served._forward) == 3
    needs = (True, True, True)
    served.backward(p, shifted(grad), x, weight, needs)
    served.backward(p, grad, shifted(x), weight, needs)
    served.backward(p, grad, x, shifted(weight), needs)
    assert len(served._backward) == 3


def test_channels_last_input_with_a_contiguous_gradient() -> None:
    p = problem(channels_last=True)
    x, weight, bias, grad = tensors(p)
    assert_agrees(p, x, weight.contiguous(), bias, grad.contiguous(), TritonRoute(), FP32_ERROR)


def test_only_what_is_needed_is_computed() -> None:
    p = problem(channels=4, filters=4, bias=True)
    x, weight, _, grad = tensors(p)
    for needs in [(True, False, False), (False, True, False), (False, False, True), (False, False, False)]:
        got = TritonRoute().backward(p, grad, x, weight, needs)
        assert tuple(t is not None for t in got) == needs


def test_one_route_serves_problems_in_turn() -> None:
    served = TritonRoute()
    for name in ("1x1", "depthwise", "1x1"):
        assert_agrees(CASES[name], *tensors(CASES[name]), served, FP32_ERROR)


def test_many_splits_of_the_pixels_are_summed() -> None:
    class Split(Tiles):
        def weight(self, filters: int, pairs: int, pixels: int, groups: int) -> tuple[Tile, int]:
            return Tile(16, 16, 16, 1, 1), 70

    p = problem(batch=3, channels=1, filters=4, size=(20, 20), bias=True)
    assert_agrees(p, *tensors(p), TritonRoute(tiles=Split(4)), FP32_ERROR)
