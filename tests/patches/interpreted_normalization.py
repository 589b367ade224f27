"""Batch norm and activation as Triton kernels, on the CPU through Triton's interpreter; run in a process of
its own by test_normalization.py, because the interpreter is chosen for a whole process.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from convolution_cases import PLAIN as CONVOLUTION
from convolution_cases import poison
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from normalization_cases import assert_correct, in_layout, problems
from torch import Tensor, nn

import patches
from patches import dispatch
from patches.convolution.problem import ConvProblem
from patches.convolution.statistics import QUESTION, TileStatistics, answering, with_statistics
from patches.normalization import launches, routes
from patches.normalization.launches import Kernels, Shape, Shapes
from patches.normalization.problem import ACTIVATIONS, NormProblem, Parameters
from patches.normalization.selftest import compare, operands, reference

__all__ = ["poison"]

pytestmark = pytest.mark.usefixtures("poison")

PLAIN = NormProblem(3, 24, 8, 8, torch.float32)


def kernels(p: NormProblem, units: int = 4) -> Kernels:
    """The kernels of a problem for a card of a few compute units."""
    return Kernels(p, 0, units)


class Told(Kernels):
    """Kernels that never read their input to find its statistics: they are told those of runs of pixels."""

    def __init__(self, p: NormProblem, pixels: int) -> None:
        super().__init__(p, 0, 4)
        self._pixels = pixels

    def forward(
        self, x: Tensor, held: Parameters, tiles: TileStatistics | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        assert tiles is None
        table = TileStatistics.of(x, self._pixels).table.float()
        return super().forward(x, held, TileStatistics(table, self._pixels))


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
    assert_correct(kernels(problem))


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_many_programs_share_a_channel(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for layout in ("PLANES", "CHANNELS_LAST"):
        monkeypatch.setattr(launches, layout, Shapes(Shape(32, 1, 4), Shape(256, 1, 1)))
    p = replace(PLAIN, batch=5, channels=3, height=23, width=21, channels_last=channels_last)
    assert kernels(p, 200).reducing.splits > launches.Kernels(p, 0, 1).chunk
    assert_correct(kernels(p, 200))


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_a_slice_of_a_wider_gradient_is_read_in_place(channels_last: bool) -> None:
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


def test_who_is_told_the_statistics_launches_nothing_that_finds_them() -> None:
    told, x = Told(PLAIN, 16), operands(PLAIN)[0]
    told.forward(x, operands(PLAIN)[2])
    ((reduce, _, _),) = told._forward.values()
    assert reduce.kernel.__name__ == "join_statistics"


@seed(20261129)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(problems((torch.float32, torch.float16, torch.bfloat16)), st.integers(1, 200))
def test_any_batch_norm_that_is_told_its_statistics_agrees_with_float64(p: NormProblem, pixels: int) -> None:
    assert_correct(Told(replace(p, training=True), pixels))


def test_the_statistics_of_very_many_tiles_are_joined_by_many_programs() -> None:
    p = replace(PLAIN, batch=9, channels=3, height=33, width=31)
    joined = launches.joining(p.channels, -(-p.count // 2))
    assert joined.splits > 32 and joined.share > launches.JOINED[0]
    assert_correct(Told(p, 2))


def test_told_statistics_keep_the_digits_of_a_mean_far_from_zero() -> None:
    x, _, held = operands(PLAIN)
    x = x + 4096.0
    expected = reference(PLAIN, x, torch.ones_like(x), held)[0]
    assert expected is not None
    out, _ = Told(PLAIN, 16).forward(x, held)
    plain = torch.nn.functional.silu(
        torch.nn.functional.batch_norm(x, None, None, held.weight, held.bias, True, 0, held.eps)
    )
    assert (out - expected).norm() <= 2 * (plain - expected).norm()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Blocks by both kinds of kernels; what the batch norms of the test found their statistics by."""
    names: list[str] = []

    class Noting(Kernels):
        def forward(
            self, x: Tensor, held: Parameters, tiles: TileStatistics | None = None
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            names.append("read" if tiles is None else "left")
            return super().forward(x, held, tiles)

    monkeypatch.setattr(routes, "chooser", lambda *_: lambda p, x: Noting(p, 0, 4))
    monkeypatch.setattr(routes, "is_fused", lambda *_: True)
    with patches.enabled("cpu", route="triton", normalization="triton"):
        yield names


def block(conv: nn.Conv2d | None = None) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    torch.manual_seed(0)
    conv = conv or nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.SiLU())


X = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))


def learn(model: nn.Module, x: Tensor = X) -> list[Tensor]:
    """Output, gradients of input and parameters, and what the norms remember."""
    model.zero_grad()
    leaf = x.detach().requires_grad_()
    out = model(leaf)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    gradients = [each.grad.clone() for each in (leaf, *model.parameters()) if each.grad is not None]
    return [out.detach(), *gradients, *(each.clone() for each in model.buffers())]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_a_block_learns_from_what_its_convolution_left(launched: list[str], channels_last: bool) -> None:
    model = block()
    x = X.contiguous(memory_format=torch.channels_last) if channels_last else X
    truth = copy.deepcopy(model).double()
    found = [learn(model, x) for _ in range(2)]
    assert launched == ["left", "left"]
    assert all(torch.equal(a, b) for a, b in zip(found[0][:-3], found[1][:-3], strict=True)), "the same bits"
    with patches.enabled("cpu", normalization="off"):
        assert_same(found[0], learn(truth, X.double()))


def twice() -> nn.Module:
    model = block()
    return nn.Sequential(*model, nn.BatchNorm2d(8), nn.ReLU())


def hooked() -> nn.Module:
    model = block()
    model[0].register_forward_hook(lambda module, given, out: out.mul_(2))
    return model


def watched() -> nn.Module:
    model = block()
    model[1].register_forward_hook(lambda module, given, out: out * 2)
    return model


def frozen() -> nn.Module:
    model = block()
    model[1].eval()
    return model


def shared() -> nn.Module:
    class Two(nn.Module):
        """Changes what a convolution returned before a norm takes it."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.rest = block()[0], block()[1:]

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.rest(self.conv(x).mul_(3))
            return out

    return Two()


WAYS = {
    "another norm behind the block": (twice, ["left", "read"]),
    "a hook on the convolution": (hooked, ["read"]),
    "a hook on the norm": (watched, []),
    "frozen statistics": (frozen, ["read"]),
    "an output changed in between": (shared, ["read"]),
    "a bias": (lambda: block(nn.Conv2d(3, 8, 3)), ["read"]),
    "a depthwise convolution": (lambda: block(nn.Conv2d(3, 6, 3, groups=3, bias=False)), ["read"]),
    "another padding": (
        lambda: block(nn.Conv2d(3, 8, 3, bias=False, padding=1, padding_mode="reflect")),
        ["read"],
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_what_is_no_plain_block_computes_what_it_did(name: str, launched: list[str]) -> None:
    make, expected = WAYS[name]
    model = make()
    truth = copy.deepcopy(model).double()
    found = learn(model)
    assert launched == expected
    with patches.enabled("cpu", normalization="off"):
        assert_same(found, learn(truth, X.double()))


def test_evaluation_and_a_session_that_asks_for_nothing_read_the_output(launched: list[str]) -> None:
    model = block()
    model.eval()(X)
    with torch.no_grad():
        model.train()(X)
    session = dispatch.current()
    assert session is not None
    session.norms.asks = False
    model(X)
    assert launched == ["read", "left", "read"]


def test_autocast_leaves_the_statistics_of_what_is_stored(launched: list[str]) -> None:
    model, plain = block(), block()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(X)
    with patches.enabled("cpu", normalization="off"), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain(X)
    assert launched == ["left"]
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(model[1].running_var, plain[1].running_var, rtol=1e-3, atol=1e-3)


def test_a_checkpointed_block_computes_it_again(launched: list[str]) -> None:
    from torch.utils.checkpoint import checkpoint

    whole, part = block(), block()
    found = learn(whole)
    leaf = X.clone().requires_grad_()
    out = checkpoint(part, leaf, use_reentrant=False)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    assert launched == ["left"] * 3
    assert torch.equal(out, found[0]) and torch.equal(leaf.grad, found[1])


def test_an_answer_counts_for_its_own_tensor_in_its_own_thread() -> None:
    out, other = torch.ones(1), torch.ones(1)
    told = TileStatistics(torch.ones(2, 1, 1), 1)

    class Told:
        def sums(self, problem: ConvProblem) -> bool:
            return True

        def forward_with_statistics(self, *_: object) -> tuple[Tensor, TileStatistics]:
            return out, told

    def convolve(returned: Tensor) -> Tensor:
        assert QUESTION.open
        with ThreadPoolExecutor(1) as pool:
            assert not pool.submit(lambda: QUESTION.open).result()
        assert answering(Told(), CONVOLUTION, out, out, None) is out
        assert not QUESTION.open, "the first convolution answers"
        return returned

    assert with_statistics(convolve, out) == (out, told)
    assert with_statistics(convolve, other) == (other, None)
    assert with_statistics(lambda: out) == (out, None)
    with pytest.raises(ZeroDivisionError):
        with_statistics(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
    assert not QUESTION.open and QUESTION.answer is None


@pytest.mark.parametrize("table", [0, 1], ids=["mean", "sum of squares"])
def test_the_self_test_notices_statistics_that_are_read_wrongly(table: int) -> None:
    class Misreading(Kernels):
        def forward(
            self, x: Tensor, held: Parameters, tiles: TileStatistics | None = None
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            if tiles is not None:
                tiles.table[table] *= 1.001
            return super().forward(x, held, tiles)

    assert "is wrong" in compare(Misreading(PLAIN, 0, 4), "cpu")
    assert compare(kernels(PLAIN), "cpu") == ""
