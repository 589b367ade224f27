"""Measuring convolutions and training steps: time, peak extra memory, and whether they stay healthy.

Needs torch alone, so that the scripts run on a machine without the other dependencies. Steps of whole models,
which a planned run tries as well, are in :mod:`toolkit.training.steps`.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import patches
from patches import variables
from patches.convolution.calls import answers_channels_last
from patches.convolution.problem import ConvProblem

BASELINE = "unfold"
"""The name of unfold + matmul, the convolution that people copy when the vendor's library fails."""

Convolution = Callable[[ConvProblem, Tensor, Tensor, "Tensor | None"], Tensor]


@dataclass(frozen=True)
class Measurement:
    """One layer by one route.

    Attributes:
        count: how often the layer occurs in the model.
        forward, backward: median seconds; both together are what was measured, backward is the difference.
        extra_bytes: peak memory beyond input, weight, bias and output gradient.
    """

    problem: ConvProblem
    count: int
    route: str
    forward: float
    backward: float
    extra_bytes: int

    @property
    def seconds(self) -> float:
        """Forward + backward."""
        return self.forward + self.backward


SIX_LAYERS = (
    (3, 16, 3, 2, 640),
    (16, 32, 3, 2, 320),
    (32, 32, 3, 1, 160),
    (64, 64, 3, 1, 80),
    (128, 128, 1, 1, 40),
    (256, 256, 3, 1, 20),
)
"""The layers whose sum the originals published as their speed: channels in, out, kernel, stride, image size.

Published for a Radeon RX 5600 XT at batch 4: 54.76 ms forward + backward in all
(hkevin01/robust-thermal-image-object-detection); a training step has ten times as many layers.
"""


def six_layers(batch: int, device: str) -> list[ConvProblem]:
    """:data:`SIX_LAYERS` as problems in fp32."""
    return [
        ConvProblem(
            batch=batch,
            channels_in=channels_in,
            height=size,
            width=size,
            channels_out=channels_out,
            kernel=(kernel, kernel),
            stride=(stride, stride),
            padding=(kernel // 2, kernel // 2),
            dilation=(1, 1),
            groups=1,
            bias=False,
            dtype=torch.float32,
            device=device,
            channels_last=False,
        )
        for channels_in, channels_out, kernel, stride, size in SIX_LAYERS
    ]


def layers_of(
    model: nn.Module, batch: int, image_size: int, device: str, dtype: torch.dtype = torch.float32
) -> list[ConvProblem]:
    """Every call of a Conv2d in a training forward pass of ``model``, in order.

    Args:
        model: on the CPU, in fp32, in the layout of the problems; runs once on one black image.
        batch, device, dtype: what the problems are to say.
        image_size: side of the square input, pixels.
    """
    found: list[ConvProblem] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        channels, height, width = inputs[0].shape[1:]
        found.append(
            ConvProblem(
                batch=batch,
                channels_in=channels,
                height=height,
                width=width,
                channels_out=module.out_channels,
                kernel=(module.kernel_size[0], module.kernel_size[1]),
                stride=(module.stride[0], module.stride[1]),
                padding=(int(module.padding[0]), int(module.padding[1])),
                dilation=(module.dilation[0], module.dilation[1]),
                groups=module.groups,
                bias=module.bias is not None,
                dtype=dtype,
                device=device,
                channels_last=answers_channels_last(inputs[0], module.weight),
            )
        )

    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(record) for module in convolutions]
    try:
        with torch.no_grad():
            model.train()(torch.zeros(1, convolutions[0].in_channels, image_size, image_size))
    finally:
        for hook in hooks:
            hook.remove()
    return found


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
            with context, ieee_products():
                forward, step = _steps(problem, convolution)
                step()
                loops = max(1, round(seconds / max(_clock(step, 1, problem.device), 1e-6)))
                there = statistics.median(_clock(forward, loops, problem.device) for _ in range(repeats))
                both = statistics.median(_clock(step, loops, problem.device) for _ in range(repeats))
                extra = peak_extra_bytes(step, problem.device)
            yield Measurement(problem, count, route, there, max(0.0, both - there), extra)


def _steps(
    problem: ConvProblem, convolution: Convolution
) -> tuple[Callable[[], Tensor], Callable[[], object]]:
    """Forward alone, and forward + backward, on random numbers."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(problem.device, problem.dtype)

    x = normal(problem.batch, problem.channels_in, problem.height, problem.width)
    weight = normal(problem.channels_out, problem.channels_in // problem.groups, *problem.kernel)
    bias = normal(problem.channels_out) if problem.bias else None
    grad = normal(problem.batch, problem.channels_out, *problem.output_size)
    leaves = [each.requires_grad_() for each in (x, weight, bias) if each is not None]

    def forward() -> Tensor:
        return convolution(problem, x, weight, bias)

    return forward, lambda: torch.autograd.grad(forward(), leaves, grad)


def forced_route() -> str | None:
    """Why nothing can be compared: the environment puts one route in place of all; None if it does not."""
    forced = variables.ROUTE.read()
    return f"{forced.name}={forced.value} would be measured in place of every route" if forced else None


def missing_device(device: str) -> str | None:
    """Why nothing can be measured on a device ("cuda" or "cpu"): it is not there; None if it is."""
    return "no GPU that PyTorch can use" if device == "cuda" and not torch.cuda.is_available() else None


def positive(text: str) -> int:
    """A number from 1, as a type for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


@contextmanager
def ieee_products() -> Iterator[None]:
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


@dataclass(frozen=True)
class Steps:
    """Many steps of the same kind, one after the other.

    Attributes:
        seconds: of each step.
        bad: steps in which a number was not finite.
        held: bytes held after each step (GPU: the allocator's count; CPU: the process).
    """

    seconds: tuple[float, ...]
    bad: int
    held: tuple[int, ...]

    def quantile(self, share: float) -> float:
        """Seconds that ``share`` of the steps stay below."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    @property
    def mean(self) -> float:
        """Seconds of a step, the slow ones counted in full: what a sum over many steps is made of."""
        return statistics.fmean(self.seconds)

    def mean_interval(self, share: float = 0.9, draws: int = 1000) -> tuple[float, float]:
        """Where the mean lies with a probability of ``share``, by the circular block bootstrap.

        Neighbouring steps are alike (clocks, heat, a garbage collection), so blocks of sqrt(n) neighbours are
        drawn instead of single steps (Politis and Romano 1992).
        """
        n = len(self.seconds)
        length = max(1, math.isqrt(n))
        ring = self.seconds * 2
        blocks = [statistics.fmean(ring[i : i + length]) for i in range(n)]
        rng = random.Random(0)
        means = sorted(statistics.fmean(rng.choices(blocks, k=-(-n // length))) for _ in range(draws))
        tail = int((1 - share) / 2 * draws)
        return means[tail], means[-1 - tail]

    @property
    def growth(self) -> int:
        """Bytes that the last tenth of the steps hold more than the tenth after the first tenth."""
        tenth = max(1, len(self.held) // 10)
        return round(statistics.median(self.held[-tenth:]) - statistics.median(self.held[tenth : 2 * tenth]))


def stress_step(batch: int, device: str) -> Callable[[], Tensor]:
    """Forward + backward of the six layers; the answer is one number that is finite if everything was."""
    steps = [_steps(problem, conv2d)[1] for problem in six_layers(batch, device)]

    def step() -> Tensor:
        gradients = [gradient for each in steps for gradient in cast("tuple[Tensor, ...]", each())]
        return torch.stack([gradient.sum() for gradient in gradients]).sum()

    return step


def returned_and_done(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds until a call returns, and until the device has done all of it."""
    start = time.perf_counter()
    call()
    returned = time.perf_counter() - start
    if device == "cuda":
        torch.cuda.synchronize()
    return returned, time.perf_counter() - start
