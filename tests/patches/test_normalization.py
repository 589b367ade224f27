"""Batch norm and activation as one operation: right, plain to others, and gone when it is not wanted."""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, seed, settings
from normalization_cases import assert_correct, problems
from torch import Tensor, nn

import patches
from patches import dispatch, variables
from patches.normalization import modules, routes
from patches.normalization.problem import NormProblem
from patches.normalization.torch_only import TorchOnly

HERE = Path(__file__).resolve().parent


pytestmark = pytest.mark.skipif(
    torch.__version__.startswith("1."), reason="batch norm and activation are served from torch 2 on"
)


@pytest.fixture
def served() -> Iterator[None]:
    """The operation is on, on the CPU, from PyTorch's own kernels."""
    with patches.enabled("cpu", normalization="torch"):
        yield


def calls() -> int:
    """Batch norms that the operation served."""
    return patches.report().normalizations


def block(activation: nn.Module | None = None, channels: int = 8) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    torch.manual_seed(0)
    act = nn.SiLU() if activation is None else activation
    return nn.Sequential(nn.Conv2d(3, channels, 3, bias=False), nn.BatchNorm2d(channels), act)


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients of all parameters."""
    model.zero_grad()
    out = model(x)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return [out.detach(), *(each.grad.clone() for each in model.parameters() if each.grad is not None)]


def assert_same(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["interpreted_normalization.py", "interpreted_statistics.py"])
def test_the_kernels_agree_with_float64_under_the_interpreter(file: str) -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    environment = {
        **os.environ, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1",
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(HERE / file),
    ]
    done = subprocess.run(
        command, env=environment, cwd=HERE.parent.parent, capture_output=True, text=True, timeout=560
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@seed(20261127)
@settings(max_examples=100, deadline=None, database=None)
@given(problems((torch.float64, torch.float32, torch.float16, torch.bfloat16)))
def test_any_batch_norm_from_pytorchs_kernels_agrees_with_float64(problem: NormProblem) -> None:
    assert_correct(TorchOnly(problem), wider=problem.batch % 2 == 0)


@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
@pytest.mark.parametrize("activation", [nn.SiLU(), nn.LeakyReLU(0.2), nn.Hardswish()], ids=str)
@pytest.mark.usefixtures("served")
def test_a_block_computes_and_learns_what_it_did(activation: nn.Module, training: bool) -> None:
    plain, patched = block(activation), block(activation)
    plain.train(training), patched.train(training)
    for step in range(3):
        x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(step))
        found = gradients(patched, x)
        with patches.enabled("cpu", normalization="off"):
            assert_same(found, gradients(plain, x))
    assert calls() == 3
    assert list(plain.state_dict()) == list(patched.state_dict())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(patched.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("served")
def test_one_tensor_is_kept_where_pytorch_keeps_two() -> None:
    def kept(model: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = model(x)
        return sum(size for size in sizes.values() if size >= out.numel())

    x = torch.randn(2, 8, 32, 32, requires_grad=True)
    model = nn.Sequential(nn.BatchNorm2d(8), nn.SiLU())
    fused = kept(model)
    with patches.enabled("cpu", normalization="off"):
        assert kept(model) == 2 * fused == 2 * x.numel()


def hooked() -> nn.Module:
    model = block()
    model[1].register_forward_hook(lambda *_: None)
    return model


def overridden() -> nn.Module:
    model = block()
    model[2].forward = lambda x: x * 2  # type: ignore[method-assign]
    return model


class OwnNorm(nn.BatchNorm2d):
    """A user's own."""


def replaced(norm: nn.Module) -> nn.Module:
    model = block()
    model[1] = norm
    return model


OTHERS = {
    "a hook": hooked,
    "a forward of the instance's own": overridden,
    "a subclass": lambda: replaced(OwnNorm(8)),
    "an average over all batches": lambda: replaced(nn.BatchNorm2d(8, momentum=None)),
    "another norm": lambda: replaced(nn.GroupNorm(2, 8)),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(block()).eval(),
    "another activation": lambda: block(nn.GELU()),
    "an activation of a class derived from one": lambda: block(type("Mine", (nn.SiLU,), {})()),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.usefixtures("served")
def test_what_is_not_plain_goes_pytorchs_way(name: str) -> None:
    model, x = OTHERS[name](), torch.randn(2, 3, 9, 9)
    found = gradients(copy.deepcopy(model), x)
    assert calls() == 0
    with patches.enabled("cpu", normalization="off"):
        assert_same(found, gradients(model, x))


@pytest.mark.usefixtures("served")
def test_a_pass_without_gradients_decides_nothing_for_one_with_them() -> None:
    model, x = block(), torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        model(x)
    assert calls() == 0, "nothing is kept where no gradient is wanted, and PyTorch's own kernels are as quick"
    gradients(model, x)
    assert calls() == 1


@pytest.mark.usefixtures("served")
def test_errors_and_edges_are_pytorchs() -> None:
    model = block().train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.randn(1, 3, 3, 3))
    with pytest.raises(RuntimeError):
        model[1:](torch.randn(2, 7, 3, 3))
    with pytest.raises(ValueError, match="4D"):
        model[1:](torch.randn(2, 8))
    one = nn.Sequential(nn.BatchNorm2d(1), nn.SiLU())
    assert one(torch.randn(1, 1, 2, 1)).shape == (1, 1, 2, 1)
    assert model.eval()(torch.randn(0, 3, 9, 9)).shape == (0, 8, 7, 7)
    assert nn.Sequential(nn.BatchNorm2d(8)).eval()(torch.randn(1, 8, 2, 2)).shape == (1, 8, 2, 2)


@pytest.mark.parametrize("training", [True, False], ids=["training", "frozen"])
@pytest.mark.usefixtures("served")
def test_second_derivatives_are_right(training: bool) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.SiLU()).double().train(training)
    x = torch.randn(3, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = model[0].weight.detach().clone().requires_grad_()

    def function(x: Tensor, weight: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(model, {"0.weight": weight}, (x,))
        return out

    assert torch.autograd.gradgradcheck(function, (x, weight))
    assert calls() > 0


@pytest.mark.usefixtures("served")
def test_checkpointing_and_two_backward_passes_agree() -> None:
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(2, 3, 9, 9)
    whole, part = block(), block()
    found = gradients(whole, x)
    out = checkpoint(part, x, use_reentrant=False)
    loss = (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()
    loss.backward(retain_graph=True)
    part.zero_grad()
    loss.backward()
    assert_same(found, [out.detach(), *(each.grad for each in part.parameters() if each.grad is not None)])


@pytest.mark.usefixtures("served")
def test_tracing_scripting_exporting_and_transforms_see_plain_pytorch() -> None:
    model, x = block().eval(), torch.randn(2, 3, 9, 9)
    expected = model(x)
    before = calls()
    traced = torch.jit.trace(model, x, check_trace=False)
    assert "silu" in str(traced.graph) or "silu" in str(traced.inlined_graph)
    torch.testing.assert_close(torch.jit.script(model)(x), expected)
    torch.testing.assert_close(torch.vmap(model)(x[None])[0], expected)
    exported = torch.export.export(model, (x,))
    assert any("silu" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
    assert calls() == before


def test_the_forward_of_classes_is_put_back() -> None:
    original = nn.Sequential.forward
    with patches.enabled("cpu", normalization="torch"):
        assert nn.Sequential.forward is not original
        with patches.enabled("cpu", normalization="off"):
            assert nn.Sequential.forward is original
        assert nn.Sequential.forward is not original
    assert nn.Sequential.forward is original
    with patches.enabled("cpu"):
        assert nn.Sequential.forward is original, "a CPU keeps PyTorch's own way unless asked"


def test_a_forward_that_somebody_else_replaced_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def theirs(self: nn.Sequential, input: Tensor) -> Tensor:
        return input

    monkeypatch.setattr(nn.Sequential, "forward", theirs)
    with patches.enabled("cpu", normalization="torch"):
        assert nn.Sequential.forward is theirs


def test_a_forward_that_somebody_else_wrapped_serves_only_while_it_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nn.Sequential, "forward", nn.Sequential.forward)
    layers, images = block(), torch.randn(2, 3, 9, 9)

    def came() -> int:
        before = calls()
        layers(images)
        return calls() - before

    with patches.enabled("cpu", normalization="torch"):
        ours, session = nn.Sequential.forward, dispatch.current()
        assert session is not None

        @functools.wraps(ours)
        def theirs(self: nn.Sequential, input: Tensor) -> object:
            return ours(self, input)

        nn.Sequential.forward = theirs  # type: ignore[method-assign, assignment]
        wanted = came()
        assert wanted > 0
        session.use("plan with PyTorch's norms")
        assert came() == 0
        session.use("plan")
        assert came() == wanted
    assert came() == 0, "although theirs calls ours"
    assert nn.Sequential.forward is theirs


def test_one_setting_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variables.NORMALIZATION.name, "off")
    with patches.enabled("cpu", normalization="torch"):
        block()(torch.randn(2, 3, 9, 9))
        assert calls() == 0
    monkeypatch.setenv(variables.NORMALIZATION.name, "fast")
    with pytest.raises(
        ValueError, match="CONVROUTES_NORMALIZATION=fast: expected one of auto, off, torch, triton"
    ):
        patches.enable("cpu")
    monkeypatch.delenv(variables.NORMALIZATION.name)
    with pytest.raises(ValueError, match="normalization 'quick': expected one of"):
        patches.enable("cpu", normalization="quick")


def test_a_problem_that_cannot_be_computed_goes_to_pytorch_and_says_so_once() -> None:
    class Failing(TorchOnly):
        def forward(self, *_: object) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            raise RuntimeError("no kernel image")

    notes: list[str] = []
    serve = modules.Server("cpu", lambda problem, x: Failing(problem), notes.append)
    norm, x = nn.BatchNorm2d(8), torch.randn(2, 8, 3, 3)
    assert serve(norm, nn.SiLU(), x) is None and serve(norm, nn.SiLU(), x) is None
    (note,) = notes
    assert (
        note
        == "batch norm + silu, 2x8x3x3, float32 goes to PyTorch's own kernels: RuntimeError: no kernel image"
    )


def test_a_card_is_trusted_by_a_test_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, torch.dtype]] = []

    def trusted(test: str, dtype: torch.dtype) -> bool:
        asked.append((test, dtype))
        return False

    p, x = NormProblem(2, 8, 4, 4, torch.float16), torch.zeros(1)
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    looked: list[str] = []
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: looked.append(name) or find(name))
    is_fused = routes.fused_dtypes("auto", "cuda", trusted)
    choose = routes.chooser("auto", is_fused)
    assert isinstance(choose(p, x), TorchOnly)
    assert asked == [("fused batch norm", torch.float16)]
    assert routes.chooser("triton", is_fused)(p, x) is None
    assert looked == ["triton"], "once, however many problems there are"
    for setting, device in (("off", "cuda"), ("torch", "cuda"), ("auto", "cpu")):
        assert not routes.fused_dtypes(setting, device, lambda test, dtype: True)(torch.float16)
    with torch.no_grad():
        assert choose(p, x) is None, "nothing is saved where nothing is kept"


@pytest.mark.usefixtures("served")
def test_a_detector_computes_what_it_did_and_its_checkpoint_stays_plain(tmp_path: Path) -> None:
    from ultralytics.nn.modules.conv import Conv
    from ultralytics.nn.tasks import DetectionModel

    original = Conv.forward
    torch.manual_seed(0)
    model = DetectionModel("yolov8n.yaml", ch=1, nc=4, verbose=False).train()
    plain = copy.deepcopy(model)
    x = torch.rand(2, 1, 64, 64)
    before = calls()
    found = model(x)
    assert calls() - before == sum(type(each) is Conv for each in model.modules())
    with patches.enabled("cpu", normalization="off"):
        expected = plain(x)
        assert list(model.state_dict()) == list(plain.state_dict())
    for name in expected:
        if isinstance(expected[name], Tensor):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    torch.save({"model": model}, tmp_path / "best.pt")
    dispatch.stop()
    assert Conv.forward is not original or not hasattr(Conv.forward, "__wrapped__")
    loaded = torch.load(tmp_path / "best.pt", weights_only=False)["model"]
    assert F.mse_loss(loaded.eval()(x)[0], model.eval()(x)[0]) == 0


def _doubled(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *given: 2 * original(*given)


def _hook(conv: nn.Conv2d, _: pytest.MonkeyPatch) -> None:
    conv.register_forward_hook(lambda module, given, out: out * 2)


def _pre_hook(conv: nn.Conv2d, _: pytest.MonkeyPatch) -> None:
    conv.register_forward_pre_hook(lambda module, given: (given[0] * 2,))


def _own_forward(conv: nn.Conv2d, _: pytest.MonkeyPatch) -> None:
    conv.forward = _doubled(conv.forward)  # type: ignore[method-assign]


def _compiled(conv: nn.Conv2d, _: pytest.MonkeyPatch) -> None:
    conv._compiled_call_impl = _doubled(conv._call_impl)  # type: ignore[attr-defined]


def _class_forward(_: nn.Conv2d, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Conv2d, "forward", _doubled(nn.Conv2d.forward))


def _class_inner_forward(_: nn.Conv2d, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", _doubled(nn.Conv2d._conv_forward))


def _function(_: nn.Conv2d, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "conv2d", _doubled(F.conv2d))


def _padding_mode(conv: nn.Conv2d, _: pytest.MonkeyPatch) -> None:
    conv.padding_mode = "reflect"


def _plain_weight(conv: nn.Conv2d, _: pytest.MonkeyPatch) -> None:
    weight = 2 * conv.weight.detach()
    del conv.weight
    conv.weight = weight  # type: ignore[assignment]


def _parametrised(conv: nn.Conv2d, _: pytest.MonkeyPatch) -> None:
    nn.utils.parametrizations.weight_norm(conv)
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(2)  # type: ignore[union-attr,index,operator]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    "change",
    [
        _hook,
        _pre_hook,
        _own_forward,
        _compiled,
        _class_forward,
        _class_inner_forward,
        _function,
        _padding_mode,
        _plain_weight,
        _parametrised,
    ],
)
def test_what_was_done_to_the_convolution_of_a_block_is_done(
    change: Callable[[nn.Conv2d, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics.nn.modules.conv import Conv

    torch.manual_seed(0)
    conv_block, x = Conv(8, 8, 3).eval(), torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        unchanged = conv_block(x)
        change(conv_block.conv, monkeypatch)
        found = conv_block(x)
        expected = conv_block.act(conv_block.bn(conv_block.conv(x)))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, unchanged), "the case changes something"
