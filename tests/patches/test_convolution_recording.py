"""What records a program under a forced route keeps the convolution, right for sizes it has never seen."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import patches
from patches.dispatch import RECORDED

TORCH_1 = torch.__version__.startswith("1.")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Both tracers say that they are deprecated; TracerWarnings stay, they would be the fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class Net(nn.Module):
    """Strides, groups, depthwise and a transposed layer, as detectors have them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, stride=2),
            nn.SiLU(),
            nn.Conv2d(8, 8, 3, groups=8, bias=False),
            nn.Conv2d(8, 4, 1),
            nn.ConvTranspose2d(4, 2, 2, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, 2, about h, about w)."""
        out: Tensor = self.layers(x)
        return out


@pytest.fixture
def net() -> Net:
    torch.manual_seed(11)
    return Net().eval()


def images(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


OTHERS = [images(1, 16, 16), images(3, 20, 12), images(5, 9, 31)]


def _graph(traced: torch.jit.ScriptModule) -> list[tuple[str, dict[str, Any]]]:
    """The recorded operators in their order, constants with their values, without names and lines."""
    nodes = traced.inlined_graph.nodes()
    return [
        (node.kind(), {"is": node.output().toIValue()} if "Constant" in node.kind() else {}) for node in nodes
    ]


@pytest.mark.parametrize("route", ["gemm", "native", "auto"])
def test_a_trace_is_the_graph_that_unpatched_pytorch_records(net: Net, route: str) -> None:
    plain = torch.jit.trace(net, images(2, 16, 16), check_trace=False)
    with patches.enabled("cpu", route=route), warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(net, images(2, 16, 16), check_trace=False)
        passed = {each.reason for each in patches.report().fall_throughs}
    assert _graph(traced) == _graph(plain)
    assert passed == {RECORDED}
    for x in OTHERS:
        torch.testing.assert_close(traced(x), net(x))


def test_a_gradient_cannot_be_traced_as_without_patches() -> None:
    """TorchScript's tracer refuses ``aten::convolution_backward``; no route slips past that refusal."""

    def step(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(F.conv2d(x, weight).square().sum(), weight)

    arguments = (images(2, 16, 16), torch.randn(8, 3, 3, 3, requires_grad=True))
    with pytest.raises(RuntimeError) as plain:
        torch.jit.trace(step, arguments, check_trace=False)
    with patches.enabled("cpu", route="gemm"), pytest.raises(RuntimeError) as patched:
        torch.jit.trace(step, arguments, check_trace=False)
    assert str(patched.value) == str(plain.value)


def test_a_route_serves_again_when_the_recording_is_over(net: Net) -> None:
    with patches.enabled("cpu", route="gemm"):
        torch.jit.trace(net, images(2, 16, 16), check_trace=False)
        net(images(2, 16, 16))
        assert {use.route for use in patches.report().problems} == {"gemm"}


def _scripted(net: Net) -> Any:
    return torch.jit.script(net)


def _traced(net: Net) -> Any:
    return torch.jit.trace(net, images(2, 16, 16), check_trace=False)


def _loaded(net: Net) -> Any:
    file = io.BytesIO()
    torch.jit.save(_traced(net), file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("record", [_scripted, _traced, _loaded])
@pytest.mark.parametrize("route", ["gemm", "native"])
def test_a_graph_of_torchscript_is_served(net: Net, record: Callable[[Net], Any], route: str) -> None:
    recorded, x = record(net), images(3, 20, 12)
    expected = net(x)
    expected.square().sum().backward()
    gradients = [each.grad for each in net.parameters()]
    for _ in range(3):  # the second call compiles the graph, by what the first has seen
        net.zero_grad(set_to_none=True)
        recorded.zero_grad(set_to_none=True)
        with patches.enabled("cpu", route=route):
            found = recorded(x)
            found.square().sum().backward()
            report = patches.report()
        assert report.by_route() == {route: 8}
        assert report.fall_throughs == ()
        torch.testing.assert_close(found, expected)
        for ours, theirs in zip(recorded.parameters(), gradients, strict=True):
            torch.testing.assert_close(ours.grad, theirs)


def test_nothing_serves_beneath_a_recorder(net: Net) -> None:
    with patches.enabled("cpu", route="gemm"):
        _traced(net)
        report = patches.report()
    assert report.by_route() == {}
    assert report.calls == 4


def test_a_graph_under_autocast_is_served() -> None:
    layer, x = nn.Conv2d(3, 4, 3), images(2, 9, 9)
    recorded = torch.jit.trace(layer, x, check_trace=False)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        expected = recorded(x)
        with patches.enabled("cpu", route="gemm"):
            found = recorded(x)
            assert patches.report().by_route() == {"gemm": 1}
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)  # 8 bits, sums of another order


def test_a_recorder_in_one_thread_keeps_nothing_from_another(net: Net) -> None:
    def record() -> None:
        for _ in range(3):
            torch.jit.trace(net, images(2, 16, 16), check_trace=False)

    x = images(1, 16, 16)
    recorded = torch.jit.trace(net, x, check_trace=False)
    served = 0
    with patches.enabled("cpu", route="gemm"):
        recorder = threading.Thread(target=record)
        recorder.start()
        while not served or recorder.is_alive():
            recorded(x)
            served += 4
        recorder.join()
        report = patches.report()
    assert report.by_route() == {"gemm": served}
    assert [(each.reason, each.calls) for each in report.fall_throughs] == [(RECORDED, 3 * 4)]


@pytest.mark.parametrize("layer", [nn.Conv1d(2, 3, 3, padding=1), nn.ConvTranspose1d(2, 3, 3, stride=2)])
def test_a_one_dimensional_graph_is_served(layer: nn.Module) -> None:
    x = torch.randn(2, 2, 7)
    recorded = torch.jit.trace(layer, x, check_trace=False)
    with patches.enabled("cpu", route="gemm"):
        torch.testing.assert_close(recorded(x), layer(x))
        assert patches.report().by_route() == {"gemm": 2}


def test_a_three_dimensional_graph_goes_to_pytorchs_own_kernels() -> None:
    layer, x = nn.Conv3d(2, 3, 2), torch.randn(1, 2, 4, 4, 4)
    recorded = torch.jit.trace(layer, x, check_trace=False)
    with patches.enabled("cpu", route="gemm"):
        torch.testing.assert_close(recorded(x), layer(x))
        assert [(each.reason, each.calls) for each in patches.report().fall_throughs] == [
            ("3-d convolution", 2)
        ]


def test_an_onnx_file_holds_convolutions_and_computes_other_sizes(net: Net) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx.reference import ReferenceEvaluator

    exporter: dict[str, Any] = {} if TORCH_1 else {"dynamo": False}
    file = io.BytesIO()
    with patches.enabled("cpu", route="gemm"):
        torch.onnx.export(
            net,
            (images(2, 16, 16),),
            file,
            input_names=["images"],
            dynamic_axes={"images": {0: "batch", 2: "height", 3: "width"}},
            **exporter,
        )
    model = onnx.load_from_string(file.getvalue())
    assert [node.op_type for node in model.graph.node].count("Conv") == 3
    run = ReferenceEvaluator(model)
    for x in OTHERS:
        (got,) = run.run(None, {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), net(x).detach(), rtol=1e-4, atol=1e-5)


def _exported(net: Net, x: Tensor) -> Callable[[Tensor], Tensor]:
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    module: Callable[[Tensor], Tensor] = torch.export.export(net, (x,), dynamic_shapes=(sizes,)).module()
    return module


def _symbolic(net: Net, x: Tensor) -> Callable[[Tensor], Tensor]:
    from torch.fx.experimental.proxy_tensor import make_fx

    def call(x: Tensor, values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, values, (x,))

    values = dict(net.named_parameters())
    graph = make_fx(call, tracing_mode="symbolic")(x, values)
    return lambda x: graph(x, values)


def _real(net: Net, x: Tensor) -> Callable[[Tensor], Tensor]:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph: Callable[[Tensor], Tensor] = make_fx(net)(x)
    return graph


@pytest.mark.slow
@pytest.mark.skipif(TORCH_1, reason="torch.export came with torch 2")
@pytest.mark.parametrize("record", [_exported, _symbolic, _real])
def test_newer_recorders_keep_the_operator_too(
    net: Net, record: Callable[[Net, Tensor], Callable[[Tensor], Tensor]]
) -> None:
    with patches.enabled("cpu", route="gemm"):
        recorded = record(net, images(2, 16, 16))
    for x in (images(3, 20, 12), images(5, 18, 30)):
        torch.testing.assert_close(recorded(x), net(x), rtol=1e-4, atol=1e-5)
