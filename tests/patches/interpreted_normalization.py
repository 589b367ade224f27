"""Batch norm and activation as Triton kernels, on the CPU through Triton's interpreter; run in a process of
its own by test_normalization.py, because the interpreter is chosen for a whole process.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convolution_cases import poison
from hypothesis import HealthCheck, given, seed, settings
from normalization_cases import assert_correct, in_layout, problems
from quick_interpreter import quick_interpreter

from patches.convolution.statistics import TileStatistics
from patches.normalization import launches
from patches.normalization.launches import Kernels, Shape, Shapes
from patches.normalization.operation import apply
from patches.normalization.problem import ACTIVATIONS, NormProblem
from patches.normalization.recomputing import let_go
from patches.normalization.selftest import operands, reference

__all__ = ["poison", "quick_interpreter"]

pytestmark = pytest.mark.usefixtures("poison")

PLAIN = NormProblem(3, 12, 8, 8, torch.float32)


def kernels(p: NormProblem, units: int = 4) -> Kernels:
    """The kernels of a problem for a card of a few compute units."""
    return Kernels(p, 0, units)


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("training", [False, True], ids=["frozen", "training"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_kind_of_batch_norm_agrees_with_float64(
    activation: str, training: bool, channels_last: bool
) -> None:
    assert_correct(
        kernels(
            replace(PLAIN, activation=activation, slope=0.1, training=training, channels_last=channels_last)
        )
    )


@seed(20261127)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(problems((torch.float32, torch.float16, torch.bfloat16)))
def test_any_batch_norm_agrees_with_float64(problem: NormProblem) -> None:
    assert_correct(kernels(problem), wider=problem.batch % 2 == 0)


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_many_programs_share_a_channel(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for layout, programs in (("PLANES", 4), ("CHANNELS_LAST", 2)):
        monkeypatch.setattr(launches, layout, Shapes(Shape(16, 1, programs), Shape(256, 1, 1)))
    p = replace(PLAIN, batch=5, channels=2, height=19, width=11, channels_last=channels_last)
    assert kernels(p, 40).reducing.splits > launches.Kernels(p, 0, 1).chunk
    assert_correct(kernels(p, 40))


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_slices_of_wider_tensors_are_read_and_written_in_place(channels_last: bool) -> None:
    assert_correct(kernels(replace(PLAIN, channels_last=channels_last)), wider=True)


def test_a_gradient_of_any_strides_is_taken() -> None:
    by = kernels(PLAIN)
    x, grad, held = operands(PLAIN)
    expected = reference(PLAIN, x, grad, held)
    _, kept = by.forward(x, held)
    turned = grad.transpose(2, 3).contiguous().transpose(2, 3)
    spread = torch.ones(()).expand(grad.shape)
    torch.testing.assert_close(
        by.backward(x, turned, held, kept)[0].double(), expected[1], rtol=1e-5, atol=1e-5
    )
    plain, same = by.backward(x, spread.contiguous(), held, kept), by.backward(x, spread, held, kept)
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True) if a is not None and b is not None)


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_a_mean_far_from_zero_costs_no_digits(channels_last: bool) -> None:
    p = replace(PLAIN, channels_last=channels_last)
    x, _, held = operands(p)
    x = in_layout(p, x + 4096.0)
    out, _ = kernels(p).forward(x, held)
    expected = reference(p, x, torch.ones_like(x), held)[0]
    assert expected is not None
    plain = torch.nn.functional.silu(
        torch.nn.functional.batch_norm(x, None, None, held.weight, held.bias, True, 0, held.eps)
    )
    assert (out - expected).norm() <= 2 * (plain - expected).norm()


def test_nan_stays_nan() -> None:
    for activation in ACTIVATIONS:
        p = replace(PLAIN, activation=activation, slope=0.1)
        x, grad, held = operands(p)
        x[0, 3, 2, 1] = float("nan")
        by = kernels(p)
        out, kept = by.forward(x, held)
        back = by.backward(x, grad, held, kept)[0]
        assert out[:, 3].isnan().all() and back[:, 3].isnan().all()
        assert out.isfinite().sum() == out.numel() - out[:, 3].numel()


def test_the_backward_pass_may_be_run_twice() -> None:
    by = kernels(PLAIN)
    x, grad, held = operands(PLAIN)
    _, kept = by.forward(x, held)
    first, second = by.backward(x, grad, held, kept), by.backward(x, grad, held, kept)
    assert all(
        torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None
    )


def test_the_running_statistics_tell_autograd_that_they_moved() -> None:
    x, _, held = operands(PLAIN)
    assert held.running_mean is not None
    before = held.running_mean._version
    kernels(PLAIN).forward(x, held)
    assert held.running_mean._version > before


@pytest.fixture
def many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is summed has other parts than what a convolution tells."""
    for layout, programs in (("PLANES", 4), ("CHANNELS_LAST", 2)):
        monkeypatch.setattr(launches, layout, Shapes(Shape(16, 1, programs), Shape(256, 1, 1)))


FEW = replace(PLAIN, batch=2, channels=3, height=4)
"""For many programs, each of which takes the interpreter its time."""


def told(x: torch.Tensor) -> TileStatistics:
    """The statistics of a tensor as a convolution leaves them."""
    left = TileStatistics.of(x, 16)
    return TileStatistics(left.table.float(), left.pixels)


@pytest.mark.usefixtures("many_programs")
@pytest.mark.parametrize("asked", [False, True], ids=["found", "told"])
@pytest.mark.parametrize("tracked", [False, True], ids=["untracked", "tracked"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_an_output_is_computed_again_bit_for_bit(channels_last: bool, tracked: bool, asked: bool) -> None:
    p = replace(FEW, channels_last=channels_last, tracked=tracked, dtype=torch.float16)
    x, grad, held = operands(p)
    x, by, tiles = in_layout(p, x), kernels(p), told(x) if asked else None
    assert by.reducing.splits > 1
    out, kept = by.forward(x, held, tiles)
    moving = [each for each in held[2:5] if each is not None]
    moved = [(each.clone(), each._version) for each in moving]
    saved, pixels = kept[0].clone(), tiles.pixels if tiles else None
    again = by.again(x, held, kept, pixels, True)
    assert torch.equal(again, out) and again.stride() == out.stride() and again is not out
    assert torch.equal(kept[0].nan_to_num(), saved.nan_to_num()), "the backward pass finds what it did"
    first = by.backward(x, grad, held, kept)
    torch.testing.assert_close(by.again(x, held, kept, None, False), out)
    assert torch.equal(by.again(x, held, kept, None, True), by.again(x, held, kept, None, False))
    for one, other in zip(first, by.backward(x, grad, held, kept), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-4)
    for each, (value, version) in zip(moving, moved, strict=True):
        assert torch.equal(each, value) and each._version == version


@pytest.mark.usefixtures("many_programs")
@pytest.mark.parametrize("asked", [False, True], ids=["found", "told"])
def test_convolutions_compute_their_input_again_for_every_backward_pass(asked: bool) -> None:
    x, _, held = operands(FEW)
    weight = torch.randn(5, 3, 1, 1, generator=torch.Generator().manual_seed(2)).requires_grad_()
    found = []
    for recomputed in (False, True):
        by = kernels(FEW)
        out = apply(x.requires_grad_(), held, by, told(x.detach()) if asked else None, recomputed=recomputed)
        both = torch.nn.functional.conv2d(out, weight), torch.nn.functional.conv2d(out, 2 * weight)
        for each in both:
            let_go(out, each)
        del out, each
        loss = both[0].square().sum() + both[1].sum()
        del both
        found.append([torch.autograd.grad(loss, (x, weight), retain_graph=True) for _ in range(2)])
    (kept, _), (first, second) = found
    assert all(map(torch.equal, kept, first))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("many_programs")
def test_what_a_told_pass_left_is_not_read_by_a_launch_that_was_not_told() -> None:
    x, _, held = operands(FEW)
    tiles, by = told(x), kernels(FEW)
    out, kept = by.forward(x, held, tiles)
    by._forward.clear()  # as if the card's kernels had been asked for otherwise
    again = by.again(x, held, kept, tiles.pixels + 1, True)
    torch.testing.assert_close(again, out)


@pytest.mark.usefixtures("many_programs")
def test_memory_that_does_not_suffice_once_leaves_the_next_try_right(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, held = operands(FEW)
    weight = torch.randn(5, 3, 1, 1, generator=torch.Generator().manual_seed(2)).requires_grad_()
    out = apply(x.requires_grad_(), held, kernels(FEW), recomputed=True)
    read = torch.nn.functional.conv2d(out, weight)
    let_go(out, read)
    beside = (out * 2).sum()
    del out
    loss = read.square().sum()
    del read
    right = torch.autograd.grad(loss, weight, retain_graph=True)[0]
    torch.autograd.grad(beside, x, retain_graph=True)  # the sums are gone

    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("no memory")

    with monkeypatch.context() as moment:
        moment.setattr(torch, "empty_like", full)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.autograd.grad(loss, weight, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, weight, retain_graph=True)[0], right)
