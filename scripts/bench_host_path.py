#!/usr/bin/env python3
"""Microseconds of the host for one small convolution, from ATen to the launch.

    OMP_NUM_THREADS=1 python3 scripts/bench_host_path.py
    python3 scripts/bench_host_path.py --device cuda

On the CPU a route that computes nothing and returns a tensor made before stands in for a launch, so that what
remains is the way from ATen to the route. On a card the Triton route launches its kernels, 64 channels on a
20 x 20 image. "override" is from the entry of the override in ATen's dispatcher to its return, all launches
included; the other columns are the whole call of the operator from Python, by PyTorch as it comes (on a card:
cuDNN) and patched. Medians of many short samples; needs torch alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

import patches
from patches import dispatch
from patches.convolution.gemm import Gemm
from patches.convolution.problem import ConvProblem, Gradients
from toolkit.benchmark.measure import forced_route, missing_device

LAYERS = {"1x1": (1, 1), "3x3": (3, 1), "3x3 depthwise": (3, 64)}
"""Kernel and groups."""

Calls = dict[str, tuple[Callable[[], object], Callable[[], object]]]
"""By name: the operator, and the override itself."""


class Nothing(Gemm):
    """A route whose answers are there before the question."""

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.answer = torch.zeros_like(x)
        self.gradients: Gradients = (torch.zeros_like(x), torch.zeros_like(weight), None)

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.answer

    def backward(self, *_: object) -> Gradients:
        return self.gradients


def microseconds(call: Callable[[], object], device: str, samples: int = 51) -> float:
    """Median time until a call returns; few enough at a time that the card's queue never fills."""
    loops = 200 if device == "cpu" else 50
    found = []
    for _ in range(samples):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(loops):
            call()
        found.append((time.perf_counter() - start) / loops * 1e6)
    return statistics.median(found)


def calls(x: Tensor, weight: Tensor, groups: int) -> Calls:
    """Forward, the gradients one by one, and both together, as a training step asks for them."""
    pad = weight.shape[2] // 2
    settings: tuple[Any, ...] = ([1, 1], [pad, pad], [1, 1], False, [0, 0], groups)
    grad = torch.randn_like(x)
    operator = torch.ops.aten.convolution_backward.default

    def forward() -> object:
        return session()._convolution(x, weight, None, *settings)

    def backward(*needs: bool) -> tuple[Callable[[], object], Callable[[], object]]:
        return (
            lambda: operator(grad, x, weight, [0], *settings, list(needs)),
            lambda: session()._convolution_backward(grad, x, weight, [0], *settings, needs),  # type: ignore[arg-type]
        )

    return {
        "forward": (lambda: F.conv2d(x, weight, None, 1, pad, 1, groups), forward),
        "input gradient": backward(True, False, False),
        "weight gradient": backward(False, True, False),
        "both gradients": backward(True, True, False),
    }


def session() -> dispatch.Session:
    """The one whose overrides are in the dispatcher."""
    found = dispatch.current()
    assert found is not None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device: str = parser.parse_args().device
    obstacle = forced_route() or missing_device(device)
    if obstacle:
        sys.exit(obstacle)
    route = "gemm" if device == "cpu" else "triton"
    size = 1 if device == "cpu" else 20
    print(f"{'microseconds a call':<30} {'PyTorch':>9} {'patched':>9} {'override':>9}")
    with torch.no_grad():
        for layer, (kernel, groups) in LAYERS.items():
            x = torch.randn(1, 64, size, size, device=device)
            weight = torch.randn(64, 64 // groups, kernel, kernel, device=device)
            for name, (operator, override) in calls(x, weight, groups).items():
                plain = microseconds(operator, device)
                with patches.enabled(device, route):
                    if device == "cpu":
                        session().routes["gemm"] = Nothing(x, weight)
                    operator()
                    patched, alone = microseconds(operator, device), microseconds(override, device)
                print(f"{layer + ', ' + name:<30} {plain:>9.2f} {patched:>9.2f} {alone:>9.2f}", flush=True)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
