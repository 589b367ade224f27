"""Blocks that concatenate in place: the numbers of the original, whoever watches or changes them."""

from __future__ import annotations

import copy
import functools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from ultralytics.nn.modules.block import Bottleneck, C2f, C2fCIB, C3k, C3k2, RepNCSPELAN4
from ultralytics.nn.modules.conv import Conv
from ultralytics.nn.tasks import DetectionModel

import patches
from patches import dispatch
from patches.normalization import blocks, concatenation
from patches.normalization.concatenation import Whole, channels_of
from patches.normalization.torch_only import TorchOnly

pytestmark = pytest.mark.skipif(
    torch.__version__.startswith("1."), reason="batch norm and activation are served from torch 2 on"
)


@pytest.fixture(autouse=True, scope="module")
def no_whole_is_too_small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(blocks, "LEAST", 0)
        yield


@pytest.fixture
def served() -> Iterator[None]:
    """Fused on the CPU; what is not written is NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        with patches.enabled("cpu", normalization="torch"):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def values(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients of input and parameters, running statistics."""
    model.zero_grad()
    x = x.detach().requires_grad_()
    out = model(x * 1)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    assert x.grad is not None
    found = [each.grad for each in model.parameters() if each.grad is not None]
    return [out.detach(), x.grad, *found, *(each.clone() for each in model.buffers())]


def assert_as_original(model: nn.Module, x: Tensor, run: Callable[..., list[Tensor]] = values) -> None:
    """Bit for bit what the blocks give as they came, and up to rounding what PyTorch gives."""
    session = dispatch.current()
    assert session is not None
    copying, plain = copy.deepcopy(model), copy.deepcopy(model)
    found = run(model, x)
    session.norms.joins = False
    copied = run(copying, x)
    session.norms.joins = True
    with patches.enabled("cpu", normalization="off"):
        expected = run(plain, x)
    for one, other, last in zip(found, copied, expected, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, last, rtol=1e-9, atol=1e-11)


MAKE: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "C2f": lambda c, n, add: C2f(6, 2 * c, n, add),
    "C3k2": lambda c, n, add: C3k2(6, 2 * c, n, c3k=False, shortcut=add),
    "C3k2 of C3k": lambda c, n, add: C3k2(6, 4 * c, n, c3k=True, shortcut=add),
    "C2fCIB": lambda c, n, add: C2fCIB(6, 2 * c, n, add),
    "C3k": lambda c, n, add: C3k(6, 2 * c, n, add),
    "RepNCSPELAN4": lambda c, n, add: RepNCSPELAN4(6, 8, 2 * c, 2 * c + 2, n),
}


@seed(20261129)
@settings(max_examples=40, deadline=None, database=None)
@given(
    st.sampled_from(sorted(MAKE)),
    st.integers(2, 4),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
)
def test_any_block_computes_and_learns_what_it_did(
    kind: str, c: int, n: int, add: bool, channels_last: bool, training: bool, size: tuple[int, int, int]
) -> None:
    if size == (1, 1, 1):
        size = (2, 1, 1)
    torch.manual_seed(0)
    model = MAKE[kind](c, n, add).double().train(training)
    x = torch.randn(size[0], 6, *size[1:], dtype=torch.float64)
    if channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with patches.enabled("cpu", normalization="torch"):
        assert_as_original(model, x)


def example(n: int = 2, add: bool = True) -> C2f:
    torch.manual_seed(0)
    model = C2f(6, 8, n, add).double().train()
    for each in model.modules():
        if isinstance(each, Conv):
            each.act = nn.SiLU()  # all share one, and a hook on that stays
    return model


def image() -> Tensor:
    return torch.randn(2, 6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", sorted(MAKE))
@pytest.mark.usefixtures("served")
def test_every_part_is_written_in_place(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = concatenation.join

    def join(whole: Whole, parts: list[Tensor]) -> Tensor:
        first = 0
        for each in parts:
            asked.append(whole.has(first, each))
            first += each.shape[1]
        return original(whole, parts)

    monkeypatch.setattr(blocks, "join", join)
    torch.manual_seed(0)
    model = MAKE[kind](4, 2, True).double()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(image())
    assert all(asked)
    if kind == "C2fCIB":  # a depthwise convolution in nn.Sequential reads there
        assert not asked
    else:
        assert asked and "aten::cat" not in {each.key for each in profile.key_averages()}


@pytest.mark.usefixtures("served")
def test_a_small_whole_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "LEAST", 16 * 5 * 4 * 2 * 8)
    made: list[Whole] = []
    monkeypatch.setattr(blocks, "Whole", lambda channels: made.append(Whole(channels)) or made[-1])
    model, x = example(), image()
    model(x[:, :, :4])
    assert not made
    model(x)
    assert len(made) == 1 and made[0].tensor is not None


@pytest.mark.usefixtures("served")
def test_a_part_is_kept_once() -> None:
    def kept(joins: bool) -> int:
        session = dispatch.current()
        assert session is not None
        session.norms.joins = joins
        sizes: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = model(x)
        return sum(sizes.values()) + 0 * out.numel()

    model, x = example(n=3), torch.randn(4, 6, 32, 32, dtype=torch.float64)
    plane = 4 * 32 * 32 * 8
    # Both halves (8 channels), and what the first and second bottleneck hand on (4 each).
    assert kept(False) - kept(True) == (8 + 4 + 4) * plane


@pytest.mark.usefixtures("served")
def test_a_detector_computes_what_it_did() -> None:
    torch.manual_seed(0)
    model = DetectionModel("yolov8n.yaml", ch=1, nc=4, verbose=False).train().double()

    def run(model: nn.Module, x: Tensor) -> list[Tensor]:
        model.zero_grad()
        found = [each for each in model(x).values() if isinstance(each, Tensor)]
        sum((each * torch.linspace(-1, 1, each.numel()).view_as(each)).sum() for each in found).backward()  # type: ignore[union-attr]
        return [*found, *(each.grad for each in model.parameters() if each.grad is not None)]

    assert_as_original(model, torch.rand(2, 1, 64, 64, dtype=torch.float64), run)


class InPlace(nn.Module):
    """Changes what it is handed, and hands on something else."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return x.tanh()


class Wider(nn.Module):
    """Answers in another dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class OwnConv(Conv):
    """Overrides what is known."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Doubled(Bottleneck):
    """Overrides the call itself."""

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x) * 2


class Views(nn.Module):
    """Wants its input in one piece."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        return x.view(n * 2, c // 2, height, width).sigmoid().view(n, c, height, width)


class Remembers(nn.Module):
    """Keeps what it is handed, and somebody changes that before the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        seen, out = x.detach(), x * 2
        out.register_hook(lambda grad: grad + 0 * seen.zero_().sum())
        return out


def _inner(module: nn.Module, at: int = 0) -> Callable[[C2f], None]:
    def change(model: C2f) -> None:
        model.m[at] = module

    return change


def _first(model: C2f) -> None:
    model.cv1 = OwnConv(6, 8).double()


def _last(model: C2f) -> None:
    model.cv2 = OwnConv(16, 8).double()


class Clamping(Conv):
    """Changes what it is handed before it reads it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.clamp_(-1, 1))


def _clamping_last(model: C2f) -> None:
    model.cv2 = Clamping(16, 8).double()


class Mean(nn.Module):
    """One number for each channel, in half the precision."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).float()


def _broadcast(model: C2f) -> None:
    model.m[0].cv2, model.m[0].add = Mean(), True


def _last_convolution(model: C2f) -> None:
    model.cv2.conv = nn.Sequential(nn.Hardtanh(inplace=True), model.cv2.conv)


def _frozen(model: C2f) -> None:
    model.cv1.requires_grad_(False)


def _last_in_a_sequence(model: C2f) -> None:
    inside = OrderedDict(pre=nn.Hardtanh(-0.1, 0.1, inplace=True), conv=nn.Conv2d(16, 8, 1))
    model.cv2 = nn.Sequential(inside).double()


def _stale(model: C2f) -> None:
    model.cv2.conv.in_channels = 100


def _function(model: C2f) -> None:
    del model.m
    model.m = [torch.tanh, lambda x: x.sin()]  # type: ignore[assignment]


def _no_norm(model: C2f) -> None:
    model.cv1.bn = nn.Identity()


def _hook(name: str) -> Callable[[C2f], None]:
    def change(model: C2f) -> None:
        model.get_submodule(name).register_forward_hook(lambda module, given, out: out * 2)

    return change


def _pre_hook(name: str) -> Callable[[C2f], None]:
    def change(model: C2f) -> None:
        model.get_submodule(name).register_forward_pre_hook(lambda module, given: given[0].mul_(3))

    return change


CHANGES: dict[str, Callable[[C2f], Any]] = {
    "one inside changes what it is handed": _inner(InPlace(), 1),
    "one inside hands on what it got": _inner(nn.Identity()),
    "another dtype": _inner(Wider(), 1),
    "one inside with a call of its own": _inner(Doubled(4, 4).double(), 1),
    "one inside wants its input in one piece": _inner(Views(), 1),
    "one inside keeps it for somebody": _inner(Remembers(), 1),
    "a batch norm reads a part": _inner(nn.Sequential(nn.BatchNorm2d(4), nn.SiLU()).double(), 1),
    "a sequence for a last": _last_in_a_sequence,
    "a stale number of channels": _stale,
    "one inside scripted": _inner(torch.jit.script(nn.Tanh()), 1),
    "functions inside": _function,
    "own first": _first,
    "own last": _last,
    "a last one that changes what is concatenated": _clamping_last,
    "a sum of different shapes": _broadcast,
    "a last convolution that does": _last_convolution,
    "frozen": _frozen,
    "a norm that is none": _no_norm,
    **{
        f"{kind} on {name}": make(name)
        for kind, make in (("hook", _hook), ("pre-hook", _pre_hook))
        for name in ("cv1", "cv1.act", "m.1", "m.1.cv1", "m.1.cv2", "cv2.bn")
    },
    "hook on the last": _hook("cv2"),
    "pre-hook on the last": _pre_hook("cv2"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("add", [False, True], ids=["chain", "residual"])
@pytest.mark.usefixtures("served")
def test_what_was_done_to_a_block_is_done(name: str, add: bool) -> None:
    model = example(add=add)
    CHANGES[name](model)
    assert_as_original(model, image())


@pytest.mark.usefixtures("served")
def test_parts_in_several_memory_formats_are_answered_as_by_cat() -> None:
    for name in ("cv1", "m", "m.1.cv2", "cv2"):
        torch.manual_seed(0)
        model = C3k(6, 8, 2).double()
        model.get_submodule(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert_as_original(model, image(), lambda model, x: [model(x), torch.tensor(model(x).stride())])


@pytest.mark.usefixtures("served")
def test_forward_mode_scripts_and_hooks_on_all_modules_see_the_original() -> None:
    from torch.autograd import forward_ad

    def tangent(model: nn.Module, x: Tensor) -> list[Tensor]:
        with forward_ad.dual_level():
            return [*forward_ad.unpack_dual(model(forward_ad.make_dual(x, x.cos())))]

    def hooked(model: nn.Module, x: Tensor) -> list[Tensor]:
        seen: list[Tensor] = []
        handle = nn.modules.module.register_module_full_backward_pre_hook(
            lambda module, grads: seen.append(grads[0].clone())
        )
        try:
            values(model, x)
        finally:
            handle.remove()
        return seen

    assert_as_original(example(), image(), tangent)
    assert_as_original(example(), image(), hooked)
    for kind in sorted({*MAKE} - {"RepNCSPELAN4"}):  # which scripts refuse
        model = MAKE[kind](4, 1, True).double().eval()
        scripted = torch.jit.script(model)
        torch.testing.assert_close(scripted(image()), model(image()), rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("served")
def test_channels_that_are_missing_are_refused_as_by_pytorch() -> None:
    model = example()
    model.m[1] = nn.Sequential(model.m[1], nn.Conv2d(4, 3, 1).double())
    with pytest.raises(RuntimeError, match=r"expected input.* to have 16 channels, but got 15"):
        model(image())


@pytest.mark.usefixtures("served")
def test_who_keeps_the_gradient_of_what_the_last_reads_keeps_the_right_one() -> None:
    def run(model: nn.Module, x: Tensor) -> list[Tensor]:
        held: list[Tensor] = []

        def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            given[0].retain_grad()
            held.append(given[0])

        for name in ("cv2", "cv2.conv", "m.0.cv1", "m.1.cv1"):
            handle = model.get_submodule(name).register_forward_pre_hook(keep)
            values(model, x)
            handle.remove()
        return [each.grad for each in held if each.grad is not None]

    assert_as_original(example(), image(), run)


@pytest.mark.usefixtures("served")
def test_two_backward_passes_second_derivatives_and_checkpoints_agree() -> None:
    def twice(model: nn.Module, x: Tensor) -> list[Tensor]:
        out = model(x).square().sum()
        out.backward(retain_graph=True)
        out.backward()
        return [each.grad for each in model.parameters() if each.grad is not None]

    def second(model: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        out = model(x)
        (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        first.square().sum().backward()
        assert x.grad is not None
        return [x.grad, *(each.grad for each in model.parameters() if each.grad is not None)]

    def again(model: nn.Module, x: Tensor) -> list[Tensor]:
        x = x.detach().requires_grad_()
        checkpoint(model, x, use_reentrant=False).square().sum().backward()
        assert x.grad is not None
        return [x.grad, *(each.grad for each in model.parameters() if each.grad is not None)]

    for run in (twice, second, again):
        assert_as_original(example(), image(), run)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("inner", [None, InPlace()], ids=["plain", "changing"])
@pytest.mark.usefixtures("served")
def test_a_pass_without_gradients_agrees(
    mode: Callable[[], Any], inner: nn.Module | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = dispatch.current()
    assert session is not None
    monkeypatch.setattr(session.norms, "_choose", lambda problem, x: TorchOnly(problem))

    def run(model: nn.Module, x: Tensor) -> list[Tensor]:
        with mode():
            return [model(x), model.eval()(x)]

    model = example()
    if inner is not None:
        model.m[0] = inner
    assert_as_original(model, image(), run)


def test_a_part_that_does_not_fit_has_no_room() -> None:
    whole, x = Whole(6), torch.zeros(2, 4, 3, 3)
    assert whole.room(3, x) is None and whole.tensor is None
    assert whole.room(0, x) is not None
    for other in (x.half(), x[:1], x[..., :2], x[0]):
        assert whole.room(0, other) is None
    assert whole.room(2, x) is not None and whole.room(3, x) is None
    strange = Whole(6)
    assert strange.room(0, torch.zeros(2, 3, 3, 4).transpose(1, 2)) is None


def test_channels_lie_in_the_memory_of_the_tensor_that_has_them() -> None:
    whole = torch.zeros(2, 5, 3, 4).to(memory_format=torch.channels_last)
    part = channels_of(whole[1:], 2, 2)
    part.fill_(1)
    assert whole.sum() == part.numel() and bool((whole[1, 2:4] == 1).all())
    assert part._base is None and whole._version == 0


def _otherwise(self: Any, x: Tensor) -> Tensor:
    y = list(self.cv1(x).chunk(2, 1))
    y.extend(m(y[0]) for m in self.m)
    return self.cv2(torch.cat(y, 1))  # type: ignore[no-any-return]


def test_a_class_that_does_something_else_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_otherwise, "__module__", "ultralytics.nn.modules.block")
    monkeypatch.setattr(C2f, "forward", _otherwise)
    with patches.enabled("cpu", normalization="torch"):
        assert C2f.forward is _otherwise
        assert_as_original(example(), image())


def served_classes() -> dict[str, Any]:
    """The classes that are known, where they are at home."""
    return {name: getattr(sys.modules[home], name) for name, (home, _) in blocks.KNOWN.items()}


def test_what_is_installed_does_what_is_known() -> None:
    for name, owner in served_classes().items():
        assert blocks.is_known(name, vars(owner)["forward"]), name


def test_who_else_replaced_a_forward_meanwhile_keeps_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    original = C2f.forward
    monkeypatch.setattr(C2f, "forward", original)
    with patches.enabled("cpu", normalization="torch"):
        theirs = functools.wraps(original)(lambda self, x: original(self, x))
        C2f.forward = theirs  # type: ignore[method-assign]
    assert C2f.forward is theirs


def test_the_forward_of_classes_is_put_back() -> None:
    before = {name: owner.forward for name, owner in served_classes().items()}
    for _ in range(2):
        with patches.enabled("cpu", normalization="torch"):
            now = {name: owner.forward for name, owner in served_classes().items()}
            assert {name for name in before if now[name] is before[name]} == {"Bottleneck"}
        assert {name: owner.forward for name, owner in served_classes().items()} == before
