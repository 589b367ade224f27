"""The overrides in PyTorch's dispatcher: every convolution is caught, counted, right, and given back."""

from __future__ import annotations

import contextlib
import copy
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from convolution_cases import (
    KINDS,
    convolve,
    problems,
    reference,
    relative_error,
    tensors,
    transposed_problems,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import patches
from patches import dispatch, ledger, overrides, startup
from patches.convolution import native
from patches.convolution.gemm import Gemm
from patches.convolution.problem import ConvProblem, Gradients, Route

TORCH_1 = torch.__version__.startswith("1.")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    patches.disable()


def routes_used() -> set[str]:
    return set(patches.report().by_route())


def passed() -> dict[str, int]:
    return {each.reason: each.calls for each in patches.report().fall_throughs}


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)], ids=str)
def test_a_device_may_be_torchs_own(device: str | torch.device) -> None:
    with patches.enabled(device, "gemm"):
        F.conv1d(torch.ones(1, 1, 3), torch.ones(1, 1, 3))
        report = patches.report()
    assert (report.device, report.by_route()) == ("cpu", {"gemm": 1})


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_without_a_device_it_is_the_gpu_where_there_is_one(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "default_device", lambda: device)
    patches.enable(route="gemm")
    assert patches.report().device == device


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cpu:first", "", torch.device("meta")], ids=str)
def test_any_other_device_is_refused(device: str | torch.device) -> None:
    with pytest.raises(ValueError, match=f"device '{device}': expected one of cpu, cuda"):
        patches.enable(device)


@pytest.mark.parametrize(
    "before", ["", "Warning only once for all operators,  other operators may also be overridden.\n  "]
)
def test_enabling_does_not_warn_of_what_it_is_for(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        """As PyTorch, whose versions say so in different words."""

        def __init__(self, *_: str) -> None:
            pass

        def impl(self, *_: object) -> None:
            warnings.warn(
                f"{before}Overriding a previously registered kernel for the same operator", stacklevel=1
            )

    monkeypatch.setattr(overrides, "_open_library", Library)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = dispatch.Session("cuda", "auto", 2**20)
        session.install()
    session.uninstall()


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, patches; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_enabling_for_the_gpu_does_not_initialise_it() -> None:
    with patches.enabled("cuda"):
        assert not torch.cuda.is_initialized()


@settings(max_examples=60, derandomize=True)
@given(problem=problems((torch.float32, torch.float64)))
def test_conv2d_and_its_gradients_agree_with_float64(problem: ConvProblem) -> None:
    x, weight, bias, grad = tensors(problem)
    expected = reference(problem, x, weight, bias, grad)
    leaves = [t.requires_grad_() for t in (x, weight, bias) if t is not None]
    with patches.enabled("cpu", route="gemm"):
        settings_ = (problem.stride, problem.padding, problem.dilation, problem.groups)
        out = F.conv2d(x, weight, bias, *settings_)
        gradients = torch.autograd.grad(out, leaves, grad)
        assert routes_used() == {"gemm"}
    for value, truth in zip((out, *gradients), expected, strict=True):
        assert relative_error(value.detach(), truth) < 2e-6


@settings(max_examples=60, derandomize=True, deadline=None)
@given(problem=st.one_of(problems(), transposed_problems()), flat=st.booleans(), odd=st.booleans())
def test_transposed_and_1d_ones_answer_as_unpatched_in_the_same_layout(
    problem: ConvProblem, flat: bool, odd: bool
) -> None:
    if flat:
        axes = {name: getattr(problem, name)[1] for name in ("kernel", "stride", "padding", "dilation")}
        rows = {name: (1, value) for name, value in axes.items()}
        row = replace(problem, height=1, **{**rows, "padding": (0, axes["padding"])})
        problem = replace(row, output_padding=(0, problem.output_padding[1]))
    x, weight, bias, grad = tensors(replace(problem, dtype=torch.float64))
    if flat:
        x, weight, grad = x[:, :, 0], weight[:, :, 0], grad[:, :, 0]
    if odd:
        x, weight = (t.transpose(1, -1).contiguous().transpose(1, -1) for t in (x, weight))
    leaves = [t.requires_grad_() for t in (x, weight, bias) if t is not None]

    def run() -> tuple[Tensor, ...]:
        out = convolve(problem, x, weight, bias)
        return (out.detach(), *torch.autograd.grad(out, leaves, grad))

    expected = run()
    with patches.enabled("cpu", route="gemm"):
        found = run()
        assert (routes_used(), passed()) == ({"gemm"}, {})
    for value, truth in zip(found, expected, strict=True):
        assert (value.shape, steps(value)) == (truth.shape, steps(truth))
        assert relative_error(value, truth) < 1e-13


def steps(tensor: Tensor) -> list[int]:
    """Strides of the axes that have more than one element: those of others say nothing."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_transposed_convolution_in_half_precision_is_as_exact_as_its_dtype(dtype: torch.dtype) -> None:
    problem = replace(KINDS["transposed, output padding"], dtype=dtype, bias=True)
    x, weight, bias, _ = tensors(problem)
    with patches.enabled("cpu", route="gemm"):
        out = convolve(problem, x, weight, bias)
        assert routes_used() == {"gemm"}
    assert bias is not None
    truth = convolve(problem, x.double(), weight.double(), bias.double())
    assert relative_error(out, truth) < 2 * torch.finfo(dtype).eps


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "unbatched": lambda x, w: F.conv2d(x[0], w),
    "padding same": lambda x, w: F.conv2d(x, w, padding="same"),
    "padding same, even kernel": lambda x, w: F.conv2d(x, w[:, :, :2, :2], padding="same"),
    "padding valid": lambda x, w: F.conv2d(x, w, padding="valid", stride=2),
    "channels_last": lambda x, w: F.conv2d(x.to(memory_format=torch.channels_last), w),
    "channels_last, part of the channels": lambda x, w: F.conv2d(
        torch.cat([x, x], 1).to(memory_format=torch.channels_last).chunk(2, 1)[1], w
    ),
    "channels_last weight": lambda x, w: F.conv2d(x, w.to(memory_format=torch.channels_last)),
    "transposed view": lambda x, w: F.conv2d(x.transpose(2, 3), w),
    "strided view": lambda x, w: F.conv2d(x[:, :, ::2, 1:], w),
    "expanded": lambda x, w: F.conv2d(x[:1].expand(3, -1, -1, -1), w),
    "reversed twice": lambda x, w: F.conv2d(x.flip(3), w.flip(3)),
    "half": lambda x, w: F.conv2d(x.bfloat16(), w.bfloat16()).float(),
    "double": lambda x, w: F.conv2d(x.double(), w.double()).float(),
    "one group a channel": lambda x, w: F.conv2d(x, w[:4, :1], groups=4),
    "stride beyond the kernel": lambda x, w: F.conv2d(x, w, stride=5),
    "1-d": lambda x, w: F.conv1d(x[:, :, 0], w[:, :, 0], padding=2, dilation=2),
    "1-d, unbatched": lambda x, w: F.conv1d(x[0, :, 0], w[:, :, 0]),
    "1-d, padding same": lambda x, w: F.conv1d(x[:, :, 0], w[:, :, 0], padding="same"),
    "1-d, channels last in memory": lambda x, w: F.conv1d(
        x[:, :, 0].transpose(1, 2).contiguous().transpose(1, 2), w[:, :, 0]
    ),
    "transposed": lambda x, w: F.conv_transpose2d(x, w[:4], stride=2, output_padding=1),
    "transposed, unbatched": lambda x, w: F.conv_transpose2d(x[0], w[:4], groups=2),
    "transposed, 1-d": lambda x, w: F.conv_transpose1d(x[:, :, 0], w[:4, :, 0], stride=3),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_every_way_to_call_conv2d_is_served_by_the_route(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(1)
    x, w = torch.randn(3, 4, 9, 11, requires_grad=True), torch.randn(6, 4, 3, 3, requires_grad=True)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        out = call(x, w)
        return (out.detach(), *torch.autograd.grad(out.square().sum(), (x, w)))

    expected = run()
    with patches.enabled("cpu", route="gemm"):
        values = run()
        assert routes_used() == {"gemm"}
        assert passed() == {}
    for value, truth in zip(values, expected, strict=True):
        assert value.stride() == truth.stride()
        # Sums of bfloat16 are rounded at their own size, and by each processor's kernels in another order.
        error = 2**-6 * float(truth.abs().max()) if call is CALLS["half"] else 1e-4
        torch.testing.assert_close(value, truth, rtol=1e-4, atol=error)


ODD_STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean over the pixels, expanded": lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
    "channels and columns swapped": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "channels and rows swapped": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "one channel repeated": lambda x: x[:, :1].expand_as(x),
    "every second channel of channels_last": lambda x: x.repeat_interleave(2, 1).to(
        memory_format=torch.channels_last
    )[:, ::2],
    "rows of channels_last": lambda x: torch.cat([x, x], 2).to(memory_format=torch.channels_last)[:, :, ::2],
}


@pytest.mark.parametrize("odd", ODD_STRIDES.values(), ids=ODD_STRIDES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_output_has_the_strides_that_pytorch_gives_it(
    odd: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    x, conv = torch.randn(3, 16, 8, 8, dtype=dtype), nn.Conv2d(16, 8, 1, dtype=dtype)
    expected = conv(odd(x))
    with patches.enabled("cpu", route="gemm"):
        out = conv(odd(x))
        assert routes_used() == {"gemm"}
    assert out.stride() == expected.stride()


@st.composite
def strided(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """Axes in any order in memory, some with gaps, some expanded."""
    strides, step = [0, 0, 0, 0], draw(st.sampled_from([1, 1, 2]))
    for axis in draw(st.permutations(range(4))):
        strides[axis] = step * draw(st.sampled_from([0, 1, 1, 1]))
        step *= shape[axis] * draw(st.sampled_from([1, 1, 2]))
    return torch.arange(float(step)).as_strided(shape, strides)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.data(), st.tuples(*[st.integers(2, 4)] * 4), st.integers(2, 4), st.sampled_from([1, 2]))
def test_so_it_has_for_any_strides_of_input_and_weight(
    data: st.DataObject, shape: tuple[int, ...], filters: int, kernel: int
) -> None:
    x, weight = data.draw(strided(shape)), data.draw(strided((filters, shape[1], kernel, kernel)))
    expected = F.conv2d(x, weight)
    with patches.enabled("cpu", route="gemm"):
        out = F.conv2d(x, weight)
    assert out.stride() == expected.stride(), (x.stride(), weight.stride())


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_every_padding_mode_of_the_module(mode: str) -> None:
    torch.manual_seed(2)
    conv = nn.Conv2d(3, 5, 3, padding=2, padding_mode=mode)
    x = torch.randn(2, 3, 8, 8)
    expected = conv(x)
    with patches.enabled("cpu", route="gemm"):
        torch.testing.assert_close(conv(x), expected)
        assert routes_used() == {"gemm"}


def test_autocast_reaches_the_route_in_bf16_and_its_backward_is_not_cast_again() -> None:
    torch.manual_seed(3)
    conv = nn.Conv2d(4, 6, 3)
    x = torch.randn(2, 4, 9, 9)
    with patches.enabled("cpu", route="gemm"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = conv(x)
            out.float().sum().backward()
            double = F.conv2d(x.double(), conv.weight.detach().double())
        dtypes = [use.problem.dtype for use in patches.report().problems]
    assert out.dtype == torch.bfloat16
    assert double.dtype == torch.float64
    assert dtypes == [torch.bfloat16, torch.float64]
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(out, conv(x), rtol=2e-2, atol=2e-2)


def test_a_route_is_chosen_while_the_inputs_card_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    @contextlib.contextmanager
    def guard(device: str, x: Tensor) -> Iterator[None]:
        steps.append(f"to {x.device}")
        yield
        steps.append("back")

    with patches.enabled("cpu", route="gemm"):
        session = dispatch.current()
        assert session is not None
        choose = session._choose
        monkeypatch.setattr(dispatch, "_guard", guard)
        monkeypatch.setattr(session, "_choose", lambda problem: (steps.append("choose"), choose(problem))[1])
        F.conv2d(torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3))
    assert steps == ["to cpu", "choose", "back"]


def test_gradients_and_second_gradients_pass_the_numeric_check() -> None:
    torch.manual_seed(4)
    x = torch.randn(1, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True)

    def conv(*args: Tensor) -> Tensor:
        return F.conv2d(*args, stride=(2, 1), padding=1, dilation=(1, 2), groups=2)

    with patches.enabled("cpu", route="gemm"):
        assert torch.autograd.gradcheck(conv, (x, weight, bias))
        assert torch.autograd.gradgradcheck(conv, (x, weight, bias))
        assert "gemm" in routes_used()


def test_a_gradient_penalty_through_two_layers_is_unchanged() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 2, 3, stride=2, groups=2))
    x = torch.randn(2, 3, 9, 9, requires_grad=True)

    def penalty() -> list[Tensor]:
        (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        return list(torch.autograd.grad(slope.square().sum(), [net[0].weight, net[2].weight]))

    expected = penalty()
    with patches.enabled("cpu", route="gemm"):
        values = penalty()
    for value, truth in zip(values, expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("reason", "call"),
    [
        ("3-d convolution", lambda x: F.conv3d(x[:, :, None], torch.ones(2, 4, 1, 3, 3))),
        ("3-d convolution", lambda x: F.conv_transpose3d(x[:, :, None], torch.ones(4, 2, 1, 3, 3))),
        ("empty tensor", lambda x: F.conv_transpose1d(x[:0, :, 0], torch.ones(4, 2, 3))),
        ("empty tensor", lambda x: F.conv2d(x[:0], torch.ones(2, 4, 3, 3))),
    ],
)
def test_other_convolutions_pass_through_and_are_counted(
    reason: str, call: Callable[[Tensor], Tensor]
) -> None:
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    expected = call(x)
    (expected_grad,) = torch.autograd.grad(expected.sum(), x)
    with patches.enabled("cpu", route="gemm"):
        out = call(x)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert passed() == {reason: 2}
        assert routes_used() == set()
    assert torch.equal(out, expected)
    assert torch.equal(grad, expected_grad)


def test_an_integer_convolution_passes_through() -> None:
    x, w = torch.arange(32).view(1, 2, 4, 4), torch.ones(1, 2, 3, 3, dtype=torch.int64)
    expected = F.conv2d(x, w)
    with patches.enabled("cpu", route="gemm"):
        assert torch.equal(F.conv2d(x, w), expected)
        assert passed() == {"dtype int64": 1}


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: F.conv2d(x[:, :3], w),
        lambda x, w: F.conv2d(x[:, :, :2], w),
        lambda x, w: F.conv2d(x.double(), w),
        lambda x, w: F.conv2d(x, w, stride=0),
        lambda x, w: F.conv2d(x, w, padding=-1),
        lambda x, w: F.conv2d(x, w, groups=3),
        lambda x, w: F.conv2d(x, w, torch.ones(1)),
        lambda x, w: F.conv2d(x, w, torch.ones(8)),
        lambda x, w: F.conv2d(x, w, torch.ones(6, 1)),
        lambda x, w: F.conv2d(x, w, torch.ones(())),
        lambda x, w: F.conv1d(x[:, :, 0], w[:, :3, 0]),
        lambda x, w: F.conv1d(x[:, :, 0], w),
        lambda x, w: torch.convolution(x[:, :, 0], w[:, :, 0], None, [1, 1], [0], [1], False, [0], 1),
        lambda x, w: F.conv_transpose2d(x, w),
        lambda x, w: F.conv_transpose2d(x, w[:4], torch.ones(3)),
        lambda x, w: F.conv_transpose2d(x, w[:4], output_padding=1),
        lambda x, w: F.conv_transpose2d(x, w[:4], output_padding=-1),
        lambda x, w: F.conv_transpose2d(x, w[:4], padding=9),
        lambda x, w: F.conv_transpose2d(x, w[:4], groups=3),
    ],
)
def test_a_wrong_call_raises_the_error_of_pytorch(call: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, w = torch.randn(2, 4, 6, 6), torch.randn(6, 4, 3, 3)
    with pytest.raises(RuntimeError) as plain:
        call(x, w)
    with patches.enabled("cpu", route="gemm"), pytest.raises(RuntimeError) as patched:
        call(x, w)
    assert str(patched.value).splitlines()[0] == str(plain.value).splitlines()[0]
    assert patches.report().notes == ()


def test_settings_of_one_and_of_two_numbers_are_not_mixed_up() -> None:
    x, w = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)

    def shapes() -> list[torch.Size]:
        both = (([1], [1, 2]), ([1, 1], [2]))
        return [torch.convolution(x, w, None, *each, [1, 1], False, [0, 0], 1).shape for each in both]

    expected = shapes()
    with patches.enabled("cpu", route="gemm"):
        assert shapes() == expected == [(1, 4, 8, 10), (1, 4, 10, 10)]
        assert routes_used() == {"gemm"}


PLAIN: dict[str, Any] = {
    "stride": [1, 1],
    "padding": [0, 0],
    "dilation": [1, 1],
    "transposed": False,
    "output_padding": [0, 0],
    "groups": 1,
}


@pytest.mark.parametrize("wrong", ["weight", "bias"])
def test_a_tensor_on_another_device_is_no_call_for_a_route_and_spoils_no_later_one(wrong: str) -> None:
    x = torch.randn(2, 4, 6, 6)
    good = {"weight": torch.randn(6, 4, 3, 3), "bias": torch.randn(6)}
    bad = {**good, wrong: good[wrong].to("meta")}
    with patches.enabled("cpu", route="gemm"):
        session = dispatch.current()
        assert session is not None
        for each in (bad, good, bad, good):
            with contextlib.suppress(RuntimeError):
                session._convolution(x, **each, **PLAIN)
        assert patches.report().by_route() == {"gemm": 2}
        assert passed() == {"malformed arguments": 2}


def test_meta_tensors_are_left_alone() -> None:
    with patches.enabled("cpu", route="gemm"):
        out = F.conv2d(torch.empty(2, 4, 6, 6, device="meta"), torch.empty(6, 4, 3, 3, device="meta"))
        assert out.shape == (2, 6, 4, 4)
        assert patches.report().calls == 0


def test_fake_tensors_are_left_alone() -> None:
    from torch._subclasses import FakeTensorMode

    with patches.enabled("cpu", route="gemm"), FakeTensorMode():
        out = F.conv2d(torch.empty(2, 4, 6, 6), torch.empty(6, 4, 3, 3))
        assert out.shape == (2, 6, 4, 4)
        assert patches.report().calls == 0


@pytest.mark.skipif(TORCH_1, reason="torch.compile came with torch 2.0")
@pytest.mark.slow
def test_a_compiled_model_trains_through_the_route() -> None:
    torch.manual_seed(6)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, stride=2))
    plain = copy.deepcopy(net)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    plain(x).square().sum().backward()
    with patches.enabled("cpu", route="gemm"):
        torch.compile(net, backend="aot_eager")(x).square().sum().backward()
        assert routes_used() == {"gemm"}
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_a_training_step_under_inference_tensors_and_checkpointing() -> None:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(7)
    conv = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with patches.enabled("cpu", route="gemm"):
        with torch.inference_mode():
            conv(x)
        checkpoint(conv, x, use_reentrant=True).sum().backward()
        (use,) = patches.report().problems
    assert (use.forward, use.backward) == (3, 1)


def test_the_backward_pass_keeps_no_columns() -> None:
    """Autograd saves the input and the weight, nothing that is nine times larger."""
    saved: list[int] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t.numel())
        return t

    x, conv = torch.randn(1, 8, 16, 16), nn.Conv2d(8, 8, 3, padding=1)
    with (
        patches.enabled("cpu", route="gemm"),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        conv(x)
    assert max(saved) == x.numel()


def test_disable_gives_pytorch_back_its_kernels() -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    patches.enable("cpu", route="gemm")
    F.conv2d(x, w)
    patches.disable()
    patches.disable()
    F.conv2d(x, w)
    report = patches.report()
    assert not report.enabled
    assert report.calls == 1


def test_enabling_again_replaces_the_settings() -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    patches.enable("cpu", route="gemm")
    patches.enable("cpu", route="native")
    F.conv2d(x, w)
    assert patches.report().by_route() == {"native": 1}


def test_a_nested_context_gives_back_the_outer_one_with_its_counters() -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    with patches.enabled("cpu", route="gemm"):
        F.conv2d(x, w)
        with patches.enabled("cpu", route="native"):
            F.conv2d(x, w)
            assert patches.report().by_route() == {"native": 1}
        F.conv2d(x, w)
        assert patches.report().by_route() == {"gemm": 2}
    F.conv2d(x, w)
    assert patches.report().calls == 2


def test_an_exception_inside_the_context_still_takes_the_overrides_out() -> None:
    with pytest.raises(KeyError), patches.enabled("cpu", route="gemm"):
        raise KeyError
    assert not patches.report().enabled


def test_auto_on_the_cpu_means_pytorchs_own_kernels() -> None:
    with patches.enabled("cpu"):
        F.conv2d(torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3))
        assert routes_used() == {"native"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tpu",), "device 'tpu': expected one of cpu, cuda"),
        (("cpu", "fastest"), "route 'fastest': expected one of auto"),
        (("cpu", "gemm", 0), "column budget 0"),
    ],
)
def test_wrong_settings_are_refused_and_leave_what_was_enabled(
    arguments: tuple[object, ...], message: str
) -> None:
    patches.enable("cpu", route="gemm")
    with pytest.raises(ValueError, match=message):
        patches.enable(*arguments)  # type: ignore[arg-type]
    assert patches.report().route == "gemm"
    assert patches.report().enabled


def test_the_environment_forces_a_route_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOOLKIT_CONV_ROUTE", "gemm")
    with caplog.at_level(logging.WARNING, "patches"), patches.enabled("cpu"):
        F.conv2d(torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3))
        assert routes_used() == {"gemm"}
    assert "TOOLKIT_CONV_ROUTE=gemm overrules route 'auto'" in caplog.text
    assert "TOOLKIT_CONV_ROUTE=gemm" in patches.report().notes[0]


def test_a_route_that_the_environment_misspells_is_refused_without_a_note(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOOLKIT_CONV_ROUTE", "fastest")
    with pytest.raises(ValueError, match=r"^TOOLKIT_CONV_ROUTE=fastest: expected one of auto, native"):
        patches.enable("cpu")
    assert caplog.text == ""


class Failing(Gemm):
    """A route whose backward raises, as a kernel that does not compile on a card would."""

    def backward(self, problem: ConvProblem, *args: object) -> Gradients:  # type: ignore[override]
        raise RuntimeError("no kernel image for this card")


def test_a_route_that_raises_is_struck_off_and_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3, requires_grad=True)
    F.conv2d(x, w).sum().backward()
    expected, w.grad = w.grad, None
    patches.enable("cpu", route="gemm")
    session = dispatch.current()
    assert session is not None
    session.routes["gemm"] = Failing()
    for _ in range(3):
        w.grad = None
        F.conv2d(x, w).sum().backward()
        torch.testing.assert_close(w.grad, expected)
    report = patches.report()
    assert [(use.route, use.forward, use.backward) for use in report.problems] == [
        ("gemm", 1, 1),
        ("native", 2, 2),
    ]
    assert (
        "route gemm raised RuntimeError (no kernel image for this card) and is struck off" in report.notes[0]
    )
    assert report.notes[0] in caplog.text


def test_running_out_of_memory_is_not_held_against_a_route(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: object) -> Tensor:
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(Gemm, "forward", forward)
    with patches.enabled("cpu", route="gemm"), pytest.raises(torch.cuda.OutOfMemoryError):
        F.conv2d(torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3))
    assert patches.report().notes == ()


def test_a_problem_beyond_the_budget_goes_to_pytorch() -> None:
    with patches.enabled("cpu", route="gemm", column_budget=64):
        F.conv2d(torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3))
        assert routes_used() == {"native"}


def test_a_forced_route_that_cannot_serve_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "patches"), patches.enabled("cpu", route="library"):
        for size in (5, 6, 6):
            F.conv2d(torch.randn(1, 2, size, size), torch.randn(2, 2, 3, 3))
        assert routes_used() == {"native"}
    (note,) = patches.report().notes
    assert note.startswith("route library cannot serve 1x2x5x5 -> 2, 3x3 stride 1, float32; ")
    assert caplog.messages == [note]


def test_a_random_image_size_each_step_does_not_grow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MOST_KEYS", 10)
    w = torch.randn(2, 2, 3, 3)
    with patches.enabled("cpu", route="gemm"):
        session = dispatch.current()
        assert session is not None
        for size in range(3, 53):
            F.conv2d(torch.randn(1, 2, 3, size), w)
            F.conv3d(torch.randn(1, 2, 1, 3, size), w[:, :, None])
            assert len(session.ledger.entries) + len(session.ledger.retired) <= 10
        report = patches.report()
    assert report.by_route() == {"gemm": 50}
    assert passed() == {"3-d convolution": 50}
    assert report.calls == 100
    assert len(report.problems) == 5
    assert "45 earlier calls of gemm not listed by problem" in str(report)


def test_another_librarys_override_is_named_and_serves_again_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.impl("convolution", lambda x, *_: x.new_full((1, 1, 1, 1), 7.0), "CPU")
    x, w = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    assert float(F.conv2d(x, w)) == 7.0
    if TORCH_1:  # which lets one library do so
        with pytest.raises(ValueError, match="another library overrode the convolutions before"):
            patches.enable("cpu", "gemm")
    else:
        with patches.enabled("cpu", route="gemm"):
            assert float(F.conv2d(x, w)) == pytest.approx(float((x * w).sum()), abs=1e-5)
            (note,) = patches.report().notes
        assert note.startswith("another library overrode aten::convolution for CPU before: ")
        with monkeypatch.context() as patch:
            patch.setattr(torch, startup._OWNER, "/elsewhere/convroutes/startup.py", raising=False)
            with patches.enabled("cpu", route="gemm"):
                (note,) = patches.report().notes
        assert "for CPU before (/elsewhere/convroutes/startup.py): the routes come first" in note
    assert float(F.conv2d(x, w)) == 7.0
    del other
    assert float(F.conv2d(x, w)) == pytest.approx(float((x * w).sum()), abs=1e-5)
    for device in ("cpu", "cuda"):  # PyTorch has a kernel of the backward pass under CUDA's key itself
        with patches.enabled(device, route="gemm"):
            assert patches.report().notes == ()


def test_threads_share_the_overrides() -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    expected, found = F.conv2d(x, w), []
    with patches.enabled("cpu", route="gemm"):
        threads = [threading.Thread(target=lambda: found.append(F.conv2d(x, w))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert routes_used() == {"gemm"}
    assert len(found) == 4
    for out in found:
        torch.testing.assert_close(out, expected)


def test_a_call_passed_on_on_the_card_sees_the_librarys_switch_as_it_was_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[bool] = []
    monkeypatch.setattr(native, "_forward", lambda *_: held.append(native.switch._is_owned()))
    for device in ("cuda", "cpu"):
        with patches.enabled(device, route="native"):
            session = dispatch.current()
            assert session is not None
            mixed = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
            session._convolution(torch.zeros(1, 2, 4, 4), mixed, None, **PLAIN)
    assert held == [True, False]


def test_a_problem_that_two_threads_bring_at_once_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    with patches.enabled("cpu", route="gemm"):
        session = dispatch.current()
        assert session is not None
        inside, leave, decided, choose = threading.Event(), threading.Event(), [], session._choose

        def slow(problem: ConvProblem) -> Route:
            decided.append(problem)
            inside.set()
            leave.wait(10)
            return choose(problem)

        monkeypatch.setattr(session, "_choose", slow)
        threads = [threading.Thread(target=lambda: F.conv2d(x, w)) for _ in range(2)]
        threads[0].start()
        assert inside.wait(10)
        threads[1].start()
        threads[1].join(0.3)
        leave.set()
        for thread in threads:
            thread.join()
        assert len(decided) == 1
        assert patches.report().by_route() == {"gemm": 2}


def test_a_route_struck_off_while_another_thread_chooses_it_is_gone_for_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, w = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3, requires_grad=True)
    with patches.enabled("cpu", route="gemm"):
        session = dispatch.current()
        assert session is not None
        session.routes["gemm"] = Failing()
        out = F.conv2d(x, w)
        inside, leave, choose = threading.Event(), threading.Event(), session._choose

        def slow(problem: ConvProblem) -> Route:
            chosen = choose(problem)
            inside.set()
            leave.wait(10)
            return chosen

        monkeypatch.setattr(session, "_choose", slow)
        chooser = threading.Thread(target=lambda: F.conv2d(x[:, :, :4], w.detach()))
        striker = threading.Thread(target=lambda: out.sum().backward())
        chooser.start()
        assert inside.wait(10)
        striker.start()
        striker.join(0.3)
        leave.set()
        chooser.join()
        striker.join()
        assert {entry.route for entry in session.ledger.entries.values()} <= {session.native}
        assert len(patches.report().notes) == 1


def test_a_model_trained_with_patches_saves_a_plain_state() -> None:
    with patches.enabled("cpu", route="gemm"):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert type(net[0]) is nn.Conv2d
    assert list(net.state_dict())[:2] == ["0.weight", "0.bias"]


def test_the_report_reads_as_a_table() -> None:
    with patches.enabled("cpu", route="gemm"):
        conv = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2)
        conv(torch.randn(1, 4, 6, 8)).sum().backward()
        F.conv3d(torch.randn(1, 2, 5, 5, 5), torch.randn(2, 2, 3, 3, 3))
    text = str(patches.report())
    assert text.splitlines()[0] == "convolution patches: off, cpu, route gemm, 3 calls"
    assert "1x4x6x8 -> 4, 3x3 stride 2 pad 1 groups 2 bias, float32" in text
    assert "not ours: 3-d convolution: 1 calls" in text
