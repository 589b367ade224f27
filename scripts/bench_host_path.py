#!/usr/bin/env python3
"""Microseconds that the overrides add to one convolution on the host, measured on the CPU.

    OMP_NUM_THREADS=1 python3 scripts/bench_host_path.py

A route that computes nothing and returns a tensor made before stands in for a launch, so that what remains is
the way from ATen to the route. PyTorch's own time on a 1x1 image, which is nearly all host path too, stands
beside it. Medians of many short samples; needs torch alone.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

import patches
from patches import dispatch
from patches.convolution.gemm import Gemm
from patches.convolution.problem import ConvProblem, Gradients


class Nothing(Gemm):
    """A route whose answers are there before the question."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = torch.zeros(1, 16, 1, 1)
        self.gradients: Gradients = (torch.zeros(1, 16, 1, 1), torch.zeros(16, 16, 3, 3), None)

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.answer

    def backward(self, *_: object) -> Gradients:
        return self.gradients


def microseconds(call: Callable[[], object], loops: int = 200, samples: int = 101) -> float:
    """Median time of one call."""
    found = []
    for _ in range(samples):
        start = time.perf_counter()
        for _ in range(loops):
            call()
        found.append((time.perf_counter() - start) / loops * 1e6)
    return statistics.median(found)


def main() -> None:
    x, weight = torch.randn(1, 16, 1, 1), torch.randn(16, 16, 3, 3)
    grad = torch.randn(1, 16, 1, 1)
    forward = torch.ops.aten.convolution.default
    backward = torch.ops.aten.convolution_backward.default
    settings = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    calls: dict[str, Callable[[], object]] = {
        "F.conv2d, no gradient": lambda: F.conv2d(x, weight, padding=1),
        "aten::convolution": lambda: forward(x, weight, None, *settings),
        "aten::convolution_backward": lambda: backward(grad, x, weight, [0], *settings, [True, True, False]),
    }
    print(f"{'microseconds a call':<28} {'PyTorch':>9} {'null route':>11} {'difference':>11}")
    with torch.no_grad():
        for name, call in calls.items():
            plain = microseconds(call)
            with patches.enabled("cpu", route="gemm"):
                session = dispatch.current()
                assert session is not None
                session.routes["gemm"] = Nothing()
                patched = microseconds(call)
            print(f"{name:<28} {plain:>9.2f} {patched:>11.2f} {patched - plain:>11.2f}")
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
