"""The route "winograd": what it serves and with which tiles, and its kernels as machine code of a card."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from convolution_cases import PLAIN, assert_correct, poison, reference, relative_error, tensors

pytest.importorskip("triton", minversion="3.6", reason="Triton's AMD backend needs Triton")

from amdgcn.backend import EmulatedRoute, Settings

from patches.convolution.problem import ConvProblem
from patches.convolution.triton_kernels import WinogradRoute, ahead, route, tiles, transformed
from patches.convolution.triton_kernels.winograd import winograd_gather, winograd_weight

__all__ = ["poison"]

LAYER = ConvProblem(8, 64, 80, 80, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, False, torch.float32, "cuda", False)
RDNA = tiles.Tiles(36, tiles.RDNA)
CASES = {
    "even": PLAIN,
    "odd sizes, a bias": replace(PLAIN, channels_in=20, channels_out=40, height=5, width=9, bias=True),
    "nothing aligned": replace(
        PLAIN, channels_in=19, channels_out=61, height=5, width=3, channels_last=True, bias=True
    ),
    "no border above": replace(PLAIN, channels_in=64, channels_out=64, channels_last=True, padding=(0, 2)),
    "a border wider than the kernel": replace(PLAIN, channels_out=20, height=4, width=4, padding=(3, 0)),
    "transposed": replace(PLAIN, channels_in=32, channels_out=48, transposed=True, padding=(3, 0)),
    "one pixel": replace(PLAIN, batch=1, height=1, width=1),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("poison")
def test_a_kind_of_convolution_agrees_with_float64_on_gfx1010(name: str) -> None:
    settings = Settings("gfx1010")
    assert_correct(EmulatedRoute(settings, winograd=True), CASES[name])
    assert [each.name for each in settings.log][:4] == ["winograd_weight", "winograd_gather"] * 2


@pytest.mark.parametrize("architecture", ["gfx1030", "gfx1100", "gfx1201"])
@pytest.mark.usefixtures("poison")
def test_other_generations_agree(architecture: str) -> None:
    served = EmulatedRoute(Settings(architecture), winograd=True)
    assert_correct(served, replace(PLAIN, channels_in=36, channels_out=64, channels_last=True))


def test_the_error_is_at_most_twice_that_of_pytorch() -> None:
    p = replace(PLAIN, channels_in=256, channels_out=32, height=8, width=8)
    x, weight, _, grad = tensors(p)
    served = EmulatedRoute(Settings("gfx1010"), winograd=True)
    ours = served.forward(p, x, weight, None), served.backward(p, grad, x, weight, (True, False, False))[0]
    theirs = F.conv2d(x, weight, padding=1), F.conv_transpose2d(grad, weight, padding=1)
    for own, usual, truth in zip(ours, theirs, reference(p, x, weight, None, grad), strict=False):
        assert own is not None
        assert relative_error(own, truth) <= 2 * relative_error(usual, truth)


def test_what_it_does_not_suit_it_does_not_serve() -> None:
    served = WinogradRoute(tiles=RDNA)
    assert transformed.suits(LAYER) and transformed.suits(replace(LAYER, channels_last=True, bias=True))
    for changes in (
        {"dtype": torch.float16}, {"kernel": (1, 3)}, {"kernel": (5, 5)}, {"stride": (2, 2)},
        {"stride": (1, 2)}, {"dilation": (2, 1)}, {"groups": 4}, {"channels_in": 15}, {"channels_out": 3},
        {"transposed": True, "output_padding": (1, 0), "dilation": (1, 1)}, {"batch": 2**13},
    ):  # fmt: skip
        assert not transformed.suits(replace(LAYER, **changes)), changes  # type: ignore[arg-type]
        assert not served.supports(replace(LAYER, **changes)), changes  # type: ignore[arg-type]


def test_it_serves_where_its_tiles_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "_available", lambda device: True)
    assert WinogradRoute(tiles=RDNA).supports(LAYER)
    assert not WinogradRoute(tiles=tiles.Tiles(132)).supports(LAYER)
    monkeypatch.setattr(torch.version, "hip", None)
    assert not WinogradRoute().supports(LAYER)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert WinogradRoute().supports(LAYER)


def test_offsets_beyond_32_bits_go_to_the_kernel_that_has_them() -> None:
    p = replace(PLAIN, batch=3)
    distance = 2**30 + 16
    x = torch.empty_strided((3, 16, 7, 6), (distance, 42, 6, 1), device="meta")
    weight = torch.empty(16, 16, 3, 3, device="meta")
    builder = ahead.Recorder(0, RDNA, winograd=True)
    builder.forward(p, x, weight, None)
    (made,) = builder.made
    assert made.kernel.__name__ == "gather_gemm" and made.constants["WIDE"]


def test_few_workgroups_and_much_to_address_take_the_small_tile() -> None:
    assert RDNA.winograd(64, 12800, roomy=True) == RDNA.winograd(128, 3200, roomy=True)
    assert RDNA.winograd(64, 12800, roomy=True) != tiles.RDNA.winograd_small
    assert RDNA.winograd(128, 800, roomy=True) == tiles.RDNA.winograd_small
    assert RDNA.winograd(64, 12800, roomy=False) == tiles.RDNA.winograd_small
    assert [RDNA.winograd(filters, 100, roomy=False).m for filters in (16, 32, 80)] == [16, 32, 16]


def test_its_kernels_are_compiled_ahead_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "tiles_for", lambda units, dtype: RDNA)
    problems = [replace(LAYER, channels_last=last) for last in (False, True)]
    problems += [replace(LAYER, kernel=(1, 1), padding=(0, 0)), replace(LAYER, batch=16)]
    made = [launch for p in problems[:2] for launch in ahead.launches(p, RDNA, winograd=True)]
    of = {ahead.variant(launch) for launch in made}
    assert {launch.kernel for launch in made} >= {winograd_gather, winograd_weight}
    assert len(ahead.jobs(problems, 36, ("winograd",))) == len(of)
    both, alone = (len(ahead.jobs(problems, 36, routes)) for routes in (("triton", "winograd"), ("triton",)))
    assert both - alone == sum(name.startswith("winograd") for name, *_ in of)
