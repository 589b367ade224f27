"""Outputs that the next convolution computes again: the same bits, less kept, and no change in silence."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import patches
from patches import dispatch, settling, variables
from patches.normalization import routes
from patches.normalization.modules import Server
from patches.normalization.operation import apply
from patches.normalization.problem import NormProblem
from patches.normalization.recomputing import let_go
from patches.normalization.selftest import operands
from patches.normalization.torch_only import TorchOnly

pytestmark = pytest.mark.skipif(
    torch.__version__.startswith("1."), reason="batch norm and activation are served from torch 2 on"
)


@contextlib.contextmanager
def setting(value: str) -> Iterator[list[NormProblem]]:
    """The operation serves on the CPU, with a setting; what was computed again meanwhile."""
    again, made = TorchOnly.again, []

    def counting(self: TorchOnly, *given: Any) -> Tensor:
        made.append(self.problem)
        return again(self, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(variables.RECOMPUTE.name, value)
        patch.setattr(TorchOnly, "again", counting)
        with patches.enabled("cpu", normalization="torch"):
            yield made


@pytest.fixture
def made() -> Iterator[list[NormProblem]]:
    """It is on."""
    with setting("on") as made:
        yield made


def stack(activation: nn.Module | None = None, channels: int = 6) -> nn.Sequential:
    """Three blocks of Ultralytics', and a convolution behind them."""
    from ultralytics.nn.modules.conv import Conv

    torch.manual_seed(0)
    act = True if activation is None else activation
    return nn.Sequential(
        Conv(3, channels, 3, act=act),
        Conv(channels, channels, 3, 2, g=2, act=act),
        Conv(channels, 5, 1, act=act),
        nn.Conv2d(5, 4, 1),
    )


def images(size: int = 9, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


def slope(out: Tensor) -> Tensor:
    return torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)


def learn(model: nn.Module, out: Tensor) -> list[Tensor]:
    """Output, gradients and buffers."""
    out.backward(slope(out), retain_graph=False)
    found = [each.grad for each in model.parameters() if each.grad is not None]
    return [out.detach(), *found, *(each.clone() for each in model.buffers())]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


Pass = Callable[[nn.Module, Tensor], Tensor]


def both(model: nn.Module, x: Tensor, forward: Pass = lambda model, x: model(x)) -> int:
    """Compare a step with one that keeps everything, bit for bit; how many outputs were computed again."""
    twin = copy.deepcopy(model)
    with setting("off") as made:
        expected = learn(twin, forward(twin, x))
        assert made == []
    with setting("on") as made:
        assert same(learn(model, forward(model, x)), expected)
    return len(made)


@seed(20261129)
@settings(max_examples=30, deadline=None, database=None)
@given(
    st.sampled_from([nn.SiLU(), nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.1), nn.Hardswish()]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.booleans(),
    st.integers(2, 3),
    st.integers(2, 12),
)
def test_a_step_is_bit_for_bit_the_one_that_keeps_all(
    activation: nn.Module, dtype: torch.dtype, channels_last: bool, batch: int, size: int
) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = stack(activation).to(dtype, memory_format=layout)
    kept = isinstance(activation, nn.ReLU)  # PyTorch's own serve, which keep no more alone
    again = both(model, images(size, batch, dtype).contiguous(memory_format=layout))
    assert again == (0 if kept else 3)


def test_a_detector_learns_the_same_bits() -> None:
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model = DetectionModel("yolov8n.yaml", ch=3, nc=4, verbose=False).train()

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        found = model(x)
        return torch.cat([each.flatten() for each in found.values() if isinstance(each, Tensor)])

    assert both(model, images(64), forward) > 0


def test_outputs_are_gone_before_the_backward_pass_and_everything_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outputs: list[Any] = []
    inputs: list[Any] = []
    forward = TorchOnly.forward

    def noting(self: TorchOnly, x: Tensor, *given: Any) -> Any:
        out, kept = forward(self, x, *given)
        outputs.append(weakref.ref(out.untyped_storage()))
        inputs.append(weakref.ref(x.untyped_storage()))
        return out, kept

    monkeypatch.setattr(TorchOnly, "forward", noting)
    gc.disable()  # nothing may be left to it
    try:
        for value, kept in (("off", 3), ("on", 0)):
            outputs.clear(), inputs.clear()
            with setting(value):
                loss = stack()(images()).sum()
            assert sum(each() is not None for each in outputs) == kept
            assert sum(each() is not None for each in inputs) == 3
            loss.backward()
            assert [each() for each in (*outputs, *inputs) if each() is not None] == []
            with setting(value):
                loss = stack()(images()).sum()
            del loss
            assert [each() for each in (*outputs, *inputs) if each() is not None] == []
            with setting(value), torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda kept: kept):
                read = stack()(images())
            assert [each() for each in (*outputs, *inputs) if each() is not None] == [], "copies are kept"
            del read
    finally:
        gc.enable()


@pytest.mark.parametrize("moved", [1, 4], ids=["statistics", "input"])
def test_what_is_kept_elsewhere_makes_no_output(moved: int, made: list[NormProblem]) -> None:
    x, norm = images().requires_grad_() * 1, nn.Sequential(nn.BatchNorm2d(3), nn.SiLU())
    conv = nn.Sequential(nn.Conv2d(3, 2, 1))
    move = lambda kept: kept.clone() if kept.dim() == moved else kept  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(move, lambda kept: kept):
        out = norm(x)
    del x
    read = conv(out)
    del out
    read.sum().backward()
    assert made == []


@pytest.mark.usefixtures("made")
def test_who_holds_an_output_after_the_backward_pass_does_not_hold_the_input() -> None:
    x = images().requires_grad_() * 1
    gone, model = weakref.ref(x.untyped_storage()), nn.Sequential(nn.BatchNorm2d(3), nn.SiLU())
    out = model(x)
    F.conv2d(out, torch.ones(1, 3, 1, 1)).sum().backward()
    del x
    assert gone() is None


def test_an_output_that_somebody_holds_is_not_computed_again(made: list[NormProblem]) -> None:
    model = stack()
    out = model[0](images())
    learn(model, model[1:](out))
    assert len(made) == 2


def test_two_consumers_compute_it_twice(made: list[NormProblem]) -> None:
    def forward(model: nn.Module, x: Tensor) -> Tensor:
        out = model[0](x)  # type: ignore[index]
        return model[1](out) + model[1](out)  # type: ignore[index,no-any-return]

    assert both(stack()[:2], images(), forward) == 2


def twice(value: str) -> list[Tensor]:
    model = stack()
    with setting(value) as made:
        loss = (out := model(images()).sin()).mul(slope(out)).sum()
        loss.backward(retain_graph=True)
        first = [each.grad.clone() for each in model.parameters() if each.grad is not None]
        model.zero_grad()
        loss.backward()
    assert len(made) == (6 if value == "on" else 0)
    second = [each.grad for each in model.parameters() if each.grad is not None]
    assert same(first, second)
    return second


def test_two_backward_passes_agree() -> None:
    assert same(twice("on"), twice("off"))


def curvature(value: str) -> list[Tensor]:
    model, x = stack().double(), images(5, dtype=torch.float64).requires_grad_()
    with setting(value) as made:
        parameters = [x, *model.parameters()]
        out = model(x)
        first = torch.autograd.grad(out, parameters, slope(out), create_graph=True)
        found = torch.autograd.grad(sum(each.square().sum() for each in first), parameters, allow_unused=True)
    assert bool(made) is (value == "on")
    return [each for each in (*first, *found) if each is not None]


def test_second_derivatives_are_the_same() -> None:
    assert same(curvature("on"), curvature("off"))


def test_second_derivatives_are_right(made: list[NormProblem]) -> None:
    model, x = stack(channels=2).double(), images(3, dtype=torch.float64).requires_grad_()
    weight = model[1].conv.weight.detach().clone().requires_grad_()

    def function(x: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(model[:2], {"1.conv.weight": weight}, (x,))
        return out

    assert torch.autograd.gradgradcheck(function, (x, weight))
    assert made


def by_autograd(out: Tensor) -> Tensor:
    return out.mul_(2)


def unseen_by_autograd(out: Tensor) -> Tensor:
    with torch.no_grad():
        out.mul_(2)
    return out


@pytest.mark.parametrize("change", [by_autograd, unseen_by_autograd])
def test_an_output_that_was_changed_is_kept(change: Callable[[Tensor], Tensor]) -> None:
    act = nn.Hardswish()  # whose backward pass needs no output

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        return model[1:](change(model[0](x)))  # type: ignore[index,no-any-return]

    assert both(stack(act), images(), forward) == 2


@pytest.mark.parametrize("holds", [False, True], ids=["gone", "held"])
def test_a_change_after_it_was_read_leaves_the_gradient_right(holds: bool) -> None:
    held: list[Tensor] = []

    def forward(model: nn.Module, x: Tensor, change: bool) -> Tensor:
        out = model[0](x)  # type: ignore[index]
        held.extend([out] * holds)
        read: Tensor = model[1](out)  # type: ignore[index]
        out = out.add_(1) if change else out + 1
        return torch.cat([read.flatten(), out.flatten()])

    with setting("off"):
        model = stack()[:2]
        expected = learn(model, forward(model, images(), False))
        model = stack()[:2]
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            learn(model, forward(model, images(), True))
    with setting("on") as made:
        model = stack()[:2]
        assert same(learn(model, forward(model, images(), True)), expected)
    assert len(made) == 1


@pytest.mark.parametrize("what", ["input", "weight", "bias"])
def test_a_change_of_what_it_is_computed_from_raises(what: str, made: list[NormProblem]) -> None:
    norm, conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
    x = images().requires_grad_() * 1
    out = nn.Sequential(norm, nn.SiLU(), conv)(x)
    with torch.no_grad():
        {"input": x, "weight": norm.weight, "bias": norm.bias}[what].add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.* at version \d; expected"):
        torch.autograd.grad(
            out.sum(), conv.weight
        )  # the norm's own backward pass, which raises too, is not run
    assert made == []


@pytest.mark.usefixtures("made")
def test_a_convolutions_weight_that_changed_raises_as_ever() -> None:
    model = stack()
    out = model(images())
    with torch.no_grad():
        model[1].conv.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        learn(model, out)


@pytest.mark.usefixtures("made")
def test_a_parameter_that_was_freed_raises() -> None:
    model = stack()
    out = model(images())
    model[0].bn.weight.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="CONVROUTES_RECOMPUTE=off"):
        learn(model, out)


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    "change", [lambda norm: norm.half(), lambda norm: setattr(norm.weight, "data", torch.ones(3))]
)
def test_a_parameter_that_was_moved_or_converted_raises(change: Callable[[nn.Module], object]) -> None:
    norm, conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
    out = nn.Sequential(norm, nn.SiLU(), conv)(images())
    change(norm)
    with pytest.raises(RuntimeError, match="was moved or converted before the backward pass"):
        torch.autograd.grad(out.sum(), conv.weight)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_running_statistics_of_another_dtype_change_no_bit(affine: bool, dtype: torch.dtype) -> None:
    norm = nn.BatchNorm2d(3, affine=affine)
    model = nn.Sequential(norm, nn.SiLU(), nn.Conv2d(3, 4, 3).to(dtype))
    assert both(model, images().to(dtype).requires_grad_()) == 1


def test_what_is_computed_again_for_second_derivatives_records_nothing() -> None:
    def penalty(value: str) -> list[Tensor]:
        with setting(value) as made:
            torch.manual_seed(0)
            norm, conv = nn.Sequential(nn.BatchNorm2d(3), nn.SiLU()), nn.Sequential(nn.Conv2d(3, 2, 1))
            x = images().requires_grad_()
            out = norm(x)
            loss, scale = conv(out).square().sum(), torch.ones_like(x).requires_grad_()

            def inner(scale: Tensor) -> Tensor:
                return (torch.autograd.grad(loss, x, create_graph=True)[0] * scale).sum()

            found = checkpoint(inner, scale, use_reentrant=False)
            del out
            found.backward()
        assert bool(made) is (value == "on")
        return [
            each.grad for each in (scale, x, *norm.parameters(), *conv.parameters()) if each.grad is not None
        ]

    for one, other in zip(penalty("on"), penalty("off"), strict=True):
        torch.testing.assert_close(one, other)


def offloaded(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return model(x)  # type: ignore[no-any-return]


def checkpointed(model: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(model, x, use_reentrant=False)  # type: ignore[no-any-return]


def hooked(model: nn.Module, x: Tensor) -> Tensor:
    for each in (model[1].conv, model[2].conv, model[3]):  # type: ignore[index]
        each.register_forward_hook(lambda *_: None)
    return model(x)  # type: ignore[no-any-return]


def frozen(model: nn.Module, x: Tensor) -> Tensor:
    return model.eval()(x)  # type: ignore[no-any-return]


def copied(model: nn.Module, x: Tensor) -> Tensor:
    wide = nn.Sequential(model[0].bn, nn.SiLU(), model[2].conv)  # type: ignore[index]
    with torch.autocast("cpu", torch.bfloat16):
        return wide(x.repeat(1, 2, 1, 1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [offloaded, checkpointed, hooked, frozen, copied])
def test_nothing_is_computed_again_where_others_decide_or_nothing_is_gained(forward: Pass) -> None:
    assert both(stack(), images(), forward) == 0


def fixed(model: nn.Module, x: Tensor) -> Tensor:
    for each in (model[1].conv, model[2].conv, model[3]):  # type: ignore[index]
        each.weight.requires_grad_(False)
    return model(x)  # type: ignore[no-any-return]


def mixed(model: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(x)  # type: ignore[no-any-return]


def checkpointed_anew(model: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(model, x.requires_grad_(), use_reentrant=True)  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [fixed, mixed, checkpointed_anew])
def test_so_it_is_everywhere_else(forward: Pass) -> None:
    assert both(stack(), images(), forward) == 3


@pytest.mark.usefixtures("made")
def test_no_gradient_is_no_recipe() -> None:
    model = stack()
    out = model[0](images())
    with torch.no_grad():
        assert model[1:](out).grad_fn is None
    assert out.grad_fn.recipe is not None
    assert model.eval()[0](images()).grad_fn.recipe is None


def test_what_autograd_keeps_of_another_tensor_stays(made: list[NormProblem]) -> None:
    p = NormProblem(2, 3, 4, 4, torch.float32)
    x, _, held = operands(p)
    out = apply(x.requires_grad_(), held, TorchOnly(p), recomputed=True)
    weight = torch.ones(1, 3, 1, 1, requires_grad=True)
    y = F.conv2d(out * 2, weight)
    let_go(out, y)
    expected = (2 * out).detach().sum((0, 2, 3)).view_as(weight)
    del out
    torch.testing.assert_close(torch.autograd.grad(y.sum(), weight)[0], expected)
    assert made == []


GIB = 2**30


@pytest.mark.parametrize(
    ("value", "device", "memory", "expected"),
    [
        ("", "cuda", routes.SMALL, True),
        ("auto", "cuda", routes.SMALL + 1, False),
        ("auto", "cpu", 0, False),
        ("on", "cuda", 80 * GIB, True),
        ("on", "cpu", 0, True),
        ("off", "cuda", 4 * GIB, False),
    ],
)
def test_a_card_with_little_memory_or_a_person_switches_it_on(
    value: str, device: str, memory: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variables.RECOMPUTE.name, value)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory), raising=True
    )
    assert routes.recomputing(device)(torch.zeros(1)) is expected


def test_a_value_that_nobody_understands_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variables.RECOMPUTE.name, "yes")
    with pytest.raises(ValueError, match="CONVROUTES_RECOMPUTE=yes: expected one of auto, on, off"):
        patches.enable("cpu")


def test_the_card_is_asked_once() -> None:
    asked: list[Tensor] = []
    serve = Server("cpu", lambda p, x: TorchOnly(p), print, lambda x: not asked.append(x))  # type: ignore[func-returns-value]
    assert serve.recomputes is None
    for size in (2, 3):
        out = serve(nn.BatchNorm2d(3), nn.SiLU(), images(size).requires_grad_())
        assert out is not None and out.grad_fn is not None and out.grad_fn.recipe is not None
    assert len(asked) == 1 and serve.recomputes


def test_a_step_that_computes_more_is_judged_anew() -> None:
    names = []
    for value in ("off", "on"):
        with setting(value):
            stack()(images())
            session = dispatch.current()
            assert session is not None
            session.planner.step_name = lambda _: "step"  # type: ignore[method-assign,assignment]
            names.append(settling.step_name(session, ()))
    assert names == ["step batch norm torch fused silu", "step batch norm torch fused silu recomputed"]
