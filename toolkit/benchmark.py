"""Measuring convolutions: time and peak extra memory of a layer, forward + backward, by every route.

Needs torch alone, so that the scripts run on a machine without this project's other dependencies.
"""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import patches
from patches.convolution.problem import ConvProblem

BASELINE = "unfold"
"""The name of unfold + matmul, the convolution that people copy when the vendor's library fails."""

Convolution = Callable[[ConvProblem, Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Measurement:
    """One layer by one route.

    Attributes:
        count: how often the layer occurs in the model.
        seconds: median time of one forward + backward.
        extra_bytes: peak memory beyond input, weight, bias and output gradient.
    """

    problem: ConvProblem
    count: int
    route: str
    seconds: float
    extra_bytes: int


def load_layers(path: Path, batch: int, device: str, dtype: torch.dtype) -> list[ConvProblem]:
    """The layers that ``scripts/record_layers.py`` recorded, as problems in NCHW."""
    layers: list[dict[str, Any]] = json.loads(path.read_text())["layers"]
    problems = []
    for layer in layers:
        pairs = {name: tuple(layer[name]) for name in ("kernel", "stride", "padding", "dilation")}
        problems.append(
            ConvProblem(**{**layer, **pairs}, batch=batch, dtype=dtype, device=device, channels_last=False)
        )
    return problems


def unfold_and_matmul(problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The baseline, as people write it: ``F.unfold`` and a product for each group, all left to autograd."""
    inputs = x.chunk(problem.groups, dim=1)
    weights = weight.flatten(1).chunk(problem.groups, dim=0)
    settings = (problem.kernel, problem.dilation, problem.padding, problem.stride)
    outputs = [w @ F.unfold(part, *settings) for part, w in zip(inputs, weights, strict=True)]
    out = torch.cat(outputs, dim=1).view(problem.batch, problem.channels_out, *problem.output_size)
    return out if bias is None else out + bias.view(-1, 1, 1)


def conv2d(problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.conv2d`` with the problem's settings."""
    return F.conv2d(x, weight, bias, problem.stride, problem.padding, problem.dilation, problem.groups)


def by_route(route: str, device: str) -> tuple[Convolution, AbstractContextManager[None]]:
    """What to call and under which context, for the name of a route or :data:`BASELINE`."""
    if route == BASELINE:
        return unfold_and_matmul, nullcontext()
    return conv2d, patches.enabled(device, route)


def measure(
    problems: Iterable[ConvProblem], routes: Iterable[str], repeats: int = 7, seconds: float = 0.05
) -> Iterator[Measurement]:
    """Time every distinct problem by every route, the routes of a problem one after the other.

    Args:
        problems: layers; equal ones are measured once and counted.
        routes: names of routes, or :data:`BASELINE`.
        repeats: samples of which the median is taken.
        seconds: least length of a sample; short layers run several times a sample.
    """
    routes = tuple(routes)
    for problem, count in Counter(problems).items():
        for route in routes:
            convolution, context = by_route(route, problem.device)
            with context, _ieee_products():
                step = _step(problem, convolution)
                step()
                once = _clock(step, 1, problem.device)
                loops = max(1, round(seconds / max(once, 1e-6)))
                samples = [_clock(step, loops, problem.device) for _ in range(repeats)]
                extra = peak_extra_bytes(step, problem.device)
            yield Measurement(problem, count, route, statistics.median(samples), extra)


def _step(problem: ConvProblem, convolution: Convolution) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(problem.device, problem.dtype)

    x = normal(problem.batch, problem.channels_in, problem.height, problem.width)
    weight = normal(problem.channels_out, problem.channels_in // problem.groups, *problem.kernel)
    bias = normal(problem.channels_out) if problem.bias else None
    grad = normal(problem.batch, problem.channels_out, *problem.output_size)
    leaves = [each.requires_grad_() for each in (x, weight, bias) if each is not None]
    return lambda: torch.autograd.grad(convolution(problem, x, weight, bias), leaves, grad)


@contextmanager
def _ieee_products() -> Iterator[None]:
    """Without TF32, which would compare different arithmetic."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _clock(step: Callable[[], object], loops: int, device: str) -> float:
    """Seconds of one call of ``step``, the device's queue included."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(loops):
        step()
    _wait(device)
    return (time.perf_counter() - start) / loops


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_extra_bytes(step: Callable[[], object], device: str) -> int:
    """Most bytes that one call of ``step`` holds at a time beyond what was held before it.

    On a GPU by the caching allocator's own count, on the CPU from the allocations that the profiler records.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        step()
    held = peak = 0
    for event in profile.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
