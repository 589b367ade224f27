"""The route's cases once more, as machine code of a card: see scripts/amdgcn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convolution_cases import KINDS, PLAIN, assert_correct, poison

pytest.importorskip("triton", minversion="3.6", reason="Triton's AMD backend needs Triton")

from amdgcn.backend import EmulatedRoute, Settings

__all__ = ["poison"]

pytestmark = pytest.mark.usefixtures("poison")

FURTHER = {
    "5x5": replace(PLAIN, channels_in=17, kernel=(5, 5), padding=(2, 2)),
    "7x7 on three channels, stride 2, channels_last": replace(
        PLAIN, channels_in=3, kernel=(7, 7), padding=(3, 3), stride=(2, 2), channels_last=True
    ),
    "5x5, depthwise": replace(PLAIN, channels_in=4, channels_out=4, groups=4, kernel=(5, 5), padding=(2, 2)),
    "more pixels than one split takes": replace(PLAIN, height=19, width=17, bias=True),
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
