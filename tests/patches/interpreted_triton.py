"""The Triton route on the CPU, through Triton's interpreter; test_triton_route.py runs this file in a process
of its own.

The interpreter is chosen when Triton is imported, for the whole process, so these tests cannot share one with
others.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convolution_cases import (
    KINDS,
    PLAIN,
    POINTWISE,
    assert_correct,
    poison,
    problems,
    tensors,
    transposed_problems,
)
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from quick_interpreter import quick_interpreter
from torch import Tensor

from patches.convolution.problem import ConvProblem
from patches.convolution.triton_kernels import TritonRoute, WinogradRoute, route
from patches.convolution.triton_kernels.tiles import RDNA, Tile, Tiles

__all__ = ["poison", "quick_interpreter"]

pytestmark = pytest.mark.usefixtures("poison")


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_convolution_agrees_with_float64(name: str) -> None:
    assert_correct(TritonRoute(), KINDS[name])


@seed(20261123)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(problems((torch.float32, torch.float16, torch.bfloat16)))
def test_any_convolution_agrees_with_float64(problem: ConvProblem) -> None:
    assert_correct(TritonRoute(), problem)


@seed(20261128)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(transposed_problems((torch.float32, torch.float16, torch.bfloat16)))
def test_any_transposed_convolution_agrees_with_float64(problem: ConvProblem) -> None:
    assert_correct(TritonRoute(), problem)


@seed(20261128)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(
    channels=st.tuples(st.integers(16, 24), st.sampled_from([16, 19, 24, 32, 61, 64])),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    batch=st.integers(1, 3),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_any_convolution_that_winograd_serves_agrees_with_float64(
    channels: tuple[int, int],
    size: tuple[int, int],
    padding: tuple[int, int],
    batch: int,
    flags: tuple[bool, bool, bool],
) -> None:
    bias, channels_last, transposed = flags
    least = [max(1, 3 - 2 * each) if not transposed else max(1, 2 * each - 1) for each in padding]
    p = replace(
        PLAIN, batch=batch, channels_in=channels[0], channels_out=channels[1], padding=padding, bias=bias,
        height=least[0] + size[0] - 1, width=least[1] + size[1] - 1, channels_last=channels_last,
        transposed=transposed,
    )  # fmt: skip
    assert_correct(WinogradRoute(tiles=Tiles(4, RDNA)), p)


def test_winograd_takes_tensors_of_any_strides() -> None:
    p = replace(PLAIN, channels_out=20, bias=True)
    x, weight, bias, grad = tensors(p)
    wider = torch.randn(p.batch, 2 * p.channels_in, p.height, p.width)
    served = WinogradRoute(tiles=Tiles(4, RDNA))
    assert_correct(served, p, (wider.chunk(2, 1)[1], weight, bias, grad))
    assert_correct(served, p, (turned(x), turned(weight), bias, grad))
    assert_correct(served, p, (x, weight, bias, torch.ones(()).expand(grad.shape)))
    last = replace(p, channels_last=True)
    assert_correct(served, last, (wider.chunk(2, 1)[1], weight, bias, grad))
    x = tensors(last)[0]
    moved = torch.empty(x.numel() + 1)[1:].as_strided(x.shape, x.stride()).copy_(x)
    assert_correct(served, last, (moved, weight, bias, grad))


@pytest.mark.parametrize("upcast", [False, True], ids=["packed dot", "multiplied in fp32"])
def test_fp16_is_summed_in_fp32(upcast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "lacks_packed_dot", lambda: upcast)
    p = replace(PLAIN, channels_in=32, dtype=torch.float16, bias=True)
    # Half a unit in the last place of fp16 (2^-11) on each result, and nothing from the 288 products.
    assert_correct(TritonRoute(), p, tolerance=2**-11)


@pytest.mark.parametrize("name", ["3x3", "1x1, channels_last", "depthwise"])
def test_64_bit_offsets_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "_wide", lambda *tensors: True)
    assert_correct(TritonRoute(), KINDS[name])


def test_tensors_may_have_any_strides() -> None:
    p = replace(PLAIN, channels_out=4, bias=True)
    x, weight, bias, grad = tensors(p)
    wider = torch.randn(p.batch, 2 * p.channels_in, p.height, p.width)
    assert_correct(TritonRoute(), p, (wider.chunk(2, 1)[1], weight, bias, grad))
    assert_correct(TritonRoute(), p, (turned(x), weight, bias, grad))
    assert_correct(TritonRoute(), p, (x, turned(weight), bias, grad))
    assert_correct(TritonRoute(), p, (x, weight, bias, torch.ones(()).expand(grad.shape)))


def turned(t: Tensor) -> Tensor:
    """The same values, columns before rows in memory."""
    return t.transpose(2, 3).contiguous().transpose(2, 3)


@pytest.mark.parametrize("groups", [1, 4], ids=["one group", "depthwise"])
def test_a_bias_may_have_any_stride(groups: int) -> None:
    p = replace(PLAIN, channels_in=4, channels_out=4, groups=groups, bias=True)
    x, weight, _, grad = tensors(p)
    for bias in (torch.randn(8)[::2], torch.randn(1).expand(4), torch.randn(9)[5:]):
        assert_correct(TritonRoute(), p, (x, weight, bias, grad))


def shifted(t: Tensor) -> Tensor:
    """The same values, one element past a multiple of 16 bytes."""
    place = torch.empty(t.numel() + 8, dtype=t.dtype)[1 : t.numel() + 1].view(t.shape)
    assert place.data_ptr() % 16
    return place.copy_(t)


def test_a_kernel_for_aligned_tensors_is_used_for_no_others() -> None:
    p = replace(POINTWISE, height=4, width=4, bias=True)
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
    p = replace(PLAIN, channels_last=True)
    x, weight, bias, grad = tensors(p)
    assert_correct(TritonRoute(), p, (x, weight.contiguous(), bias, grad.contiguous()))


def test_only_what_is_needed_is_computed() -> None:
    p = replace(PLAIN, channels_in=4, channels_out=4, bias=True)
    x, weight, _, grad = tensors(p)
    for needs in [(True, False, False), (False, True, False), (False, False, True), (False, False, False)]:
        got = TritonRoute().backward(p, grad, x, weight, needs)
        assert tuple(t is not None for t in got) == needs


def test_one_route_serves_problems_in_turn() -> None:
    served = TritonRoute()
    for name in ("1x1", "depthwise", "1x1"):
        assert_correct(served, KINDS[name])


def test_many_splits_of_the_pixels_are_summed() -> None:
    class Split(Tiles):
        def weight(self, *sizes: int, **_: bool) -> tuple[Tile, int]:
            return Tile(16, 16, 16, 1, 1), 70

    p = replace(PLAIN, batch=3, channels_in=1, channels_out=4, height=20, width=20, bias=True)
    assert_correct(TritonRoute(tiles=Split(4)), p)
