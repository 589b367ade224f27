"""Networks quantised eagerly, through FX and through ``torch.export``: integers stay PyTorch's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import convroutes
import torch
from torch import Tensor, nn

from .comparing import Row

MOST = 1e-6
"""Largest difference of an output, relative to the largest value: float32, with few layers."""

MOST_ROUNDED = 1e-3
"""The same as a norm, where every layer rounds to 8 bits: one number that falls to the other side of a step
costs 7e-4, a layer that is wrong a hundred times that."""

Quantized = tuple[list[Tensor], list[str]]
"""Outputs and gradients, and the operators of the graph that computed them."""


def rows() -> Iterator[Row]:
    """A row a kind."""
    for name, make in (("eager", _eager), ("FX graph", _graph)):
        yield _row(name, make, _largest, MOST)
    for name, make in (("PT2E, XNNPACK", _exported_xnnpack), ("PT2E, x86", _exported_x86)):
        yield _row(name, make, _norm, MOST_ROUNDED)
    yield _row("PT2E, aware training", _exported_training, _norm, MOST_ROUNDED)


def _row(
    name: str, make: Callable[[], Quantized], difference: Callable[[Tensor, Tensor], float], most: float
) -> Row:
    begun = time.perf_counter()
    found: list[Quantized] = []
    calls = 0
    try:
        for served in (False, True):
            torch.manual_seed(0)
            with convroutes.enabled("cpu", route="gemm") if served else nullcontext():
                found.append(make())
                calls = convroutes.report().calls if served else 0
    except Exception as error:
        words = f"{type(error).__name__}: {error}"[:200]
        return Row(f"quantised, {name}", False, words, 0, time.perf_counter() - begun)
    (plain, operators), (ours, theirs) = found
    worst = max(difference(a, b) for a, b in zip(ours, plain, strict=True))
    passed = worst < most and operators == theirs and calls > 0
    return Row(f"quantised, {name}", passed, f"{worst:.1e}", calls, time.perf_counter() - begun)


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _norm(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def _input() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


class _Eager(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.out = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(self.out(self.conv(self.quant(x))))
        return answer


def _eager() -> Quantized:
    from torch.ao.quantization import convert, get_default_qconfig, prepare

    model: Any = _Eager().eval()
    model.conv.qconfig = model.quant.qconfig = model.out.qconfig = get_default_qconfig("x86")
    prepared = prepare(model)
    prepared(_input())
    return [convert(prepared)(_input())], []


def _graph() -> Quantized:
    from torch.ao.quantization import QConfigMapping, get_default_qconfig, quantize_fx

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    mapping = QConfigMapping().set_global(get_default_qconfig("x86"))
    prepared = quantize_fx.prepare_fx(model, mapping, (_input(),))
    prepared(_input())
    converted = quantize_fx.convert_fx(prepared)
    return [converted(_input())], _operators(converted)


def _exported_xnnpack() -> Quantized:
    from torchao.testing.pt2e._xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    return _exported(XNNPACKQuantizer().set_global(get_symmetric_quantization_config()))


def _exported_x86() -> Quantized:
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    return _exported(
        x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    )


def _exported(quantizer: Any) -> Quantized:
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    layers = (
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, 2),
        nn.Conv2d(4, 4, 3),
    )
    program = torch.export.export(nn.Sequential(*layers).eval(), (_input(),))
    prepared = prepare_pt2e(program.module(), quantizer)
    prepared(_input())
    converted = convert_pt2e(prepared)
    return [converted(_input())], _operators(converted)


def _exported_training() -> Quantized:
    """Without batch norm, which it takes half a minute to look for."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.testing.pt2e._xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_qat=True))
    program = torch.export.export(nn.Sequential(*layers).train(), (_input(),))
    prepared = prepare_qat_pt2e(program.module(), quantizer)
    prepared(_input()).square().mean().backward()
    gradients = [each.grad for each in prepared.parameters() if each.grad is not None]
    converted = convert_pt2e(prepared)
    return [*gradients, converted(_input())], _operators(converted)


def _operators(graph: Any) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
