"""The route's cases once more, as machine code of a card: see scripts/amdgcn."""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from convolution_cases import KINDS, PLAIN, assert_correct, poison, tensors

pytest.importorskip("triton", minversion="3.6", reason="Triton's AMD backend needs Triton")

from amdgcn.backend import EmulatedRoute, Settings
from amdgcn.faults import Fault

from patches.convolution import selftest

__all__ = ["poison"]

pytestmark = pytest.mark.usefixtures("poison")

FURTHER = {
    "5x5": replace(PLAIN, channels_in=17, kernel=(5, 5), padding=(2, 2)),
    "7x7 on three channels, stride 2, channels_last": replace(
        PLAIN, channels_in=3, kernel=(7, 7), padding=(3, 3), stride=(2, 2), channels_last=True
    ),
    "5x5, depthwise": replace(PLAIN, channels_in=4, channels_out=4, groups=4, kernel=(5, 5), padding=(2, 2)),
    "more pixels than one split takes": replace(PLAIN, height=19, width=17, bias=True),
    "several images in a step": replace(PLAIN, batch=13, height=2, width=3, bias=True),
    "several images in a step, 1x1": replace(
        PLAIN, batch=9, height=1, width=2, kernel=(1, 1), padding=(0, 0), channels_out=80
    ),
    "several images in a step, channels_last, stride 2": replace(
        PLAIN, batch=11, height=3, width=4, stride=(2, 2), channels_last=True
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_convolution_agrees_with_float64_on_gfx1010(name: str) -> None:
    assert_correct(EmulatedRoute(Settings("gfx1010")), KINDS[name])


@pytest.mark.parametrize("name", FURTHER)
def test_larger_kernels_and_several_splits_agree_on_gfx1010(name: str) -> None:
    settings = Settings("gfx1010")
    assert_correct(EmulatedRoute(settings), FURTHER[name])
    if "split" in name:
        assert any(grid[2] > 1 for kernel, grid, *_ in settings.log if kernel == "weight_gradient")


@pytest.mark.parametrize("name", ["3x3", "1x1", "depthwise, channels_last"])
def test_fp16_agrees_on_gfx1010(name: str) -> None:
    problem = replace(KINDS[name], dtype=torch.float16)
    assert_correct(EmulatedRoute(Settings("gfx1010")), problem)


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [
        ("gfx1030", torch.float16),
        ("gfx1100", torch.float16),
        ("gfx1100", torch.bfloat16),
        ("gfx1151", torch.float32),
        ("gfx1201", torch.float16),
        ("gfx1201", torch.bfloat16),
        ("gfx1201", torch.float32),
    ],
    ids=str,
)
def test_other_generations_agree(architecture: str, dtype: torch.dtype) -> None:
    assert_correct(EmulatedRoute(Settings(architecture)), replace(PLAIN, dtype=dtype, channels_out=20))


@pytest.mark.parametrize("name", ["3x3", "depthwise"])
def test_offsets_beyond_32_bits_reach_the_right_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that lie gigabytes apart at false addresses, with strides to match, in little memory."""
    from patches.convolution.triton_kernels import route

    monkeypatch.setattr(route, "_wide", lambda *tensors: True)
    far = {name: (1 << 46) + (k << 34) for k, name in enumerate(("src", "grad", "x", "out", "partial"))}
    assert_correct(EmulatedRoute(Settings("gfx1010", addresses=far)), KINDS[name])


@pytest.mark.parametrize("distance", [2**30 + 16, 2**29 - 2**22], ids=["elements", "bytes"])
@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
def test_one_offset_beyond_2_to_the_31_reaches_the_right_bytes(last: bool, distance: int) -> None:
    """The third image lies that far after the first, in memory that exists where it is touched alone."""
    problem = replace(PLAIN, batch=3, bias=True, channels_last=last)
    values, weight, bias, grad = tensors(problem)
    memory = torch.frombuffer(mmap.mmap(-1, 4 * (2 * distance + values[0].numel())), dtype=torch.float32)
    x = memory.as_strided(values.shape, (distance, *values.stride()[1:])).copy_(values)
    assert_correct(EmulatedRoute(Settings("gfx1010")), problem, (x, weight, bias, grad))


def test_the_order_of_workgroups_changes_no_bit() -> None:
    """As deterministic training wants it: nothing is summed by whoever comes first."""
    problem = replace(FURTHER["more pixels than one split takes"], channels_out=20)
    x, weight, bias, grad = tensors(problem)

    def run(order: Callable[[range], Sequence[int]]) -> list[torch.Tensor]:
        route = EmulatedRoute(Settings("gfx1010", chosen=lambda grid: order(range(math.prod(grid)))))
        out = route.forward(problem, x, weight, bias)
        gradients = route.backward(problem, grad, x, weight, (True, True, True))
        return [out, *(each for each in gradients if each is not None)]

    for one, other in zip(run(lambda numbers: numbers), run(lambda numbers: numbers[::-1]), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("architecture", "buffer_operations", "said"),
    [("gfx1010", True, "is wrong"), ("gfx1010", False, ""), ("gfx1030", True, "")],
)
def test_the_self_test_refuses_buffer_operations_where_they_write_nothing(
    architecture: str, buffer_operations: bool, said: str
) -> None:
    """As on the card: the descriptor that Triton makes for gfx101x puts every offset out of bounds."""
    settings = Settings(architecture, buffer_operations=buffer_operations)
    problem = replace(KINDS["1x1"], batch=1)
    verdict = selftest._compare(EmulatedRoute(settings), problem, "cpu")
    assert said in verdict if said else verdict == "", verdict


def test_a_wrong_stride_is_noticed() -> None:
    """The gradient's stride in place of the input's: addresses leave the tensor, or the numbers are wrong."""
    route = EmulatedRoute(Settings("gfx1010"))
    x, weight, bias, _ = tensors(PLAIN)
    call = route._builder.forward(PLAIN, x, weight, bias)
    turned = x.permute(0, 1, 3, 2).contiguous()
    try:
        wrong = call(turned, weight, bias)
    except Fault:
        return
    right = torch.nn.functional.conv2d(x, weight, bias, PLAIN.stride, PLAIN.padding)
    assert not torch.allclose(wrong, right, atol=1e-3)
