"""Statistics that a convolution leaves, batch norms that are told them, and blocks of both, on the CPU.

Through Triton's interpreter; run in a process of its own by test_normalization.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import convolution_cases
import normalization_cases
import pytest
import torch
from convolution_cases import KINDS, POINTWISE, poison, relative_error, tensors
from convolution_cases import PLAIN as CONVOLUTION
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from normalization_cases import assert_correct
from quick_interpreter import quick_interpreter
from torch import Tensor, nn

import patches
from patches import dispatch
from patches.convolution.problem import ConvProblem
from patches.convolution.statistics import QUESTION, TileStatistics, answering, with_statistics
from patches.convolution.triton_kernels import TritonRoute, WinogradRoute, route
from patches.convolution.triton_kernels.tiles import RDNA, Tile, Tiles
from patches.normalization import launches, routes
from patches.normalization.launches import Kernels
from patches.normalization.problem import NormProblem, Parameters
from patches.normalization.selftest import compare, operands, reference

__all__ = ["poison", "quick_interpreter"]

pytestmark = pytest.mark.usefixtures("poison")

PLAIN = NormProblem(3, 20, 8, 8, torch.float32)


class Short(Tiles):
    """Tiles of few pixels, so that small outputs have many."""

    def gather(self, *sizes: int, **_: bool) -> Tile:
        return Tile(16, 16, 16, 1, 1)


def assert_statistics_are_right(served: TritonRoute, p: ConvProblem) -> int:
    """What the forward pass leaves is what its output has, and the output what it was; how many tiles."""
    x, weight, _, _ = tensors(p)
    with torch.inference_mode():
        out, left = served.forward_with_statistics(p, x, weight)
        assert torch.equal(out, served.forward(p, x, weight, None))
    truth = TileStatistics.of(out, left.pixels).table
    assert left.table.dtype == torch.float32
    assert left.table.shape == truth.shape
    largest = float(out.double().abs().max())
    for name, table, expected in zip(("mean", "sum of squares"), left.table, truth, strict=True):
        # A mean may be near zero: what was lost counts against the values.
        size = max(float(expected.norm()), largest if name == "mean" else 1e-6 * largest**2)
        assert (table - expected).norm() <= 5e-7 * size, f"{name} of {p}"
    return left.table.shape[1]


SUMMED = [name for name, p in KINDS.items() if TritonRoute().sums(replace(p, bias=False))]


@pytest.mark.parametrize("name", SUMMED)
def test_a_kind_of_convolution_leaves_the_statistics_of_its_output(name: str) -> None:
    assert_statistics_are_right(TritonRoute(), replace(KINDS[name], bias=False))


@seed(20261129)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(convolution_cases.problems((torch.float32, torch.float16, torch.bfloat16)))
def test_any_convolution_leaves_the_statistics_of_its_output(problem: ConvProblem) -> None:
    p = replace(problem, bias=False)
    if TritonRoute().sums(p):
        assert_statistics_are_right(TritonRoute(tiles=Short(4)), p)


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "channels_last"])
def test_statistics_of_many_tiles_that_nothing_fills(channels_last: bool) -> None:
    p = replace(
        CONVOLUTION, batch=3, channels_in=17, channels_out=19, height=5, width=5, channels_last=channels_last
    )
    assert assert_statistics_are_right(TritonRoute(tiles=Short(4)), p) == 5


def test_64_bit_offsets_leave_the_same_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "_wide", lambda *tensors: True)
    assert_statistics_are_right(TritonRoute(tiles=Short(4)), replace(CONVOLUTION, channels_out=20))


def test_a_mean_far_from_zero_costs_the_squares_no_digits() -> None:
    p = replace(POINTWISE, channels_out=20, height=12, width=11)
    x, weight, _, _ = tensors(p)
    out, left = TritonRoute().forward_with_statistics(p, x + 1000.0, weight)
    truth = TileStatistics.of(out, left.pixels).table
    assert out.mean((0, 2, 3)).abs().median() > 100 * out.std((0, 2, 3)).median()
    assert relative_error(left.table[1], truth[1]) < 1e-6


def test_who_adds_a_bias_or_has_other_kernels_leaves_none() -> None:
    assert TritonRoute().sums(CONVOLUTION)
    for p in (KINDS["depthwise"], KINDS["transposed"], replace(CONVOLUTION, bias=True)):
        assert not TritonRoute().sums(p)
    assert not WinogradRoute(tiles=Tiles(4, RDNA)).sums(CONVOLUTION)


def test_what_is_not_finite_is_not_hidden_by_the_border() -> None:
    x, weight, _, _ = tensors(CONVOLUTION)
    weight[3] = float("inf")
    _, left = TritonRoute().forward_with_statistics(CONVOLUTION, x, weight)
    assert left.table[:, :, 3].isnan().all()
    assert left.table[:, :, :3].isfinite().all() and left.table[:, :, 4:].isfinite().all()


class Told(Kernels):
    """Kernels that never read their input to find its statistics: they are told those of runs of pixels."""

    def __init__(self, p: NormProblem, pixels: int) -> None:
        super().__init__(p, 0, 4)
        self._pixels = pixels

    def forward(
        self,
        x: Tensor,
        held: Parameters,
        tiles: TileStatistics | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        assert tiles is None
        table = TileStatistics.of(x, self._pixels).table.float()
        return super().forward(x, held, TileStatistics(table, self._pixels), out)


def test_who_is_told_the_statistics_launches_nothing_that_finds_them() -> None:
    told, x = Told(PLAIN, 16), operands(PLAIN)[0]
    told.forward(x, operands(PLAIN)[2])
    ((reduce, _, _),) = told._forward.values()
    assert reduce.kernel.__name__ == "join_statistics"


@seed(20261129)
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(normalization_cases.problems((torch.float32, torch.float16, torch.bfloat16)), st.integers(1, 200))
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
            self,
            x: Tensor,
            held: Parameters,
            tiles: TileStatistics | None = None,
            out: Tensor | None = None,
        ) -> tuple[Tensor, tuple[Tensor, ...]]:
            names.append("read" if tiles is None else "left")
            return super().forward(x, held, tiles, out)

    monkeypatch.setattr(routes, "chooser", lambda *_: lambda p, x: Noting(p, 0, 4))
    monkeypatch.setattr(routes, "fused_dtypes", lambda *_: lambda dtype: True)
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

    p = replace(PLAIN, channels=3)
    assert "is wrong" in compare(Misreading(p, 0, 4), "cpu")
    assert compare(Kernels(p, 0, 4), "cpu") == ""
