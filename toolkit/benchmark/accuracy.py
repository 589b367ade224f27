"""How far a route is from float64 on random problems, beside PyTorch's own fp32 convolution.

Needs torch alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import patches
from patches.convolution.problem import ConvProblem
from toolkit.benchmark.measure import conv2d, ieee_products

NAMES = ("output", "input gradient", "weight gradient", "bias gradient")

ALLOWED, ALLOWED_ONCE = 2.0, 4.0
"""How many times the error of PyTorch's own convolution a route may have: over all problems, and on one,
where both errors are a few roundings (a bias of three numbers) and their ratio is partly chance."""


@dataclass(frozen=True)
class Sample:
    """Relative errors (Frobenius norm) on one problem, of the values in the order of :data:`NAMES`.

    Attributes:
        number: of the problem, which is also the seed of its tensors.
        ours, theirs: of the route and of PyTorch's own convolution; infinite where a value is NaN.
    """

    number: int
    problem: ConvProblem
    ours: tuple[float, ...]
    theirs: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """One of :data:`NAMES` over all problems that have it.

    Attributes:
        largest, rms: of the errors, each (the route's, PyTorch's).
        ratios: of the errors on each sample, where PyTorch's root mean square over all problems counts if
            PyTorch happened to do better on that one.
    """

    name: str
    largest: tuple[float, float]
    rms: tuple[float, float]
    ratios: tuple[tuple[float, Sample], ...]

    @property
    def failures(self) -> list[str]:
        """What is beyond :data:`ALLOWED` or :data:`ALLOWED_ONCE`, a line each."""
        found = [
            f"{what} {pair[0] / pair[1]:.2f}"
            for what, pair in (("largest error", self.largest), ("root mean square", self.rms))
            if not pair[0] <= ALLOWED * pair[1]
        ]
        beyond = sorted(self.beyond(ALLOWED_ONCE), key=lambda each: -each[0])
        return [*found, *(f"{ratio:.2f} on problem {s.number}, {s.problem}" for ratio, s in beyond)]

    def beyond(self, limit: float) -> list[tuple[float, Sample]]:
        """The ratios above a limit, NaN among them."""
        return [each for each in self.ratios if not each[0] <= limit]


def problems(count: int, device: str, seed: int = 0) -> list[ConvProblem]:
    """Problems of the kinds that detectors have, and of kinds that they do not."""
    rng = random.Random(seed)
    return [_draw(rng, device) for _ in range(count)]


def _draw(rng: random.Random, device: str) -> ConvProblem:
    groups = rng.choice([1, 1, 1, 2, 4, 16])
    depthwise = groups > 1 and rng.random() < 0.5
    kernel = rng.choice([(1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (4, 2)])
    dilation = (rng.randint(1, 2), rng.randint(1, 2))
    padding = (rng.randint(0, 3), rng.randint(0, 3))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, p, d in zip(kernel, padding, dilation, strict=True)]
    return ConvProblem(
        batch=rng.randint(1, 4),
        channels_in=groups * (1 if depthwise else rng.randint(1, 48 // groups)),
        height=least[0] + rng.randint(0, 40),
        width=least[1] + rng.randint(0, 40),
        channels_out=groups * (1 if depthwise else rng.randint(1, 64 // groups)),
        kernel=kernel,
        stride=(rng.randint(1, 3), rng.randint(1, 3)),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=rng.random() < 0.5,
        dtype=torch.float32,
        device=device,
        channels_last=rng.random() < 0.5,
    )


def sample(drawn: list[ConvProblem], route: str) -> Iterator[Sample]:
    """Errors on each problem; one that the route does not serve raises ``RuntimeError``."""
    with ieee_products():
        for number, problem in enumerate(drawn):
            yield _sample(number, problem, route)


def _sample(number: int, problem: ConvProblem, route: str) -> Sample:
    generator = torch.Generator().manual_seed(number)
    shapes: list[tuple[int, ...]] = [
        (problem.batch, problem.channels_in, problem.height, problem.width),
        (problem.channels_out, problem.channels_in // problem.groups, *problem.kernel),
        (problem.channels_out,),
    ]
    cpu = [torch.randn(shape, generator=generator) for shape in shapes[: 2 + problem.bias]]
    cpu_grad = torch.randn(problem.batch, problem.channels_out, *problem.output_size, generator=generator)
    expected = _run(problem, [each.double() for each in cpu], cpu_grad.double(), None)
    inputs, grad = [each.to(problem.device) for each in cpu], cpu_grad.to(problem.device)
    if problem.channels_last:
        inputs[0] = inputs[0].to(memory_format=torch.channels_last)
        grad = grad.to(memory_format=torch.channels_last)
    ours = _errors(_run(problem, inputs, grad, route), expected)
    return Sample(number, problem, ours, _errors(_run(problem, inputs, grad, None), expected))


def _run(problem: ConvProblem, inputs: list[Tensor], grad: Tensor, route: str | None) -> list[Tensor]:
    """Output and gradients by a route, or by PyTorch as it comes (None)."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    x, weight, *bias = leaves
    if route is None:
        out = conv2d(problem, x, weight, bias[0] if bias else None)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    with patches.enabled(problem.device, route):
        values = _run(problem, inputs, grad, None)
        served = set(patches.report().by_route())
        if served != {route}:
            raise RuntimeError(f"{problem} was served by {served}, expected {route}: {patches.report()}")
    return values


def _errors(values: list[Tensor], expected: list[Tensor]) -> tuple[float, ...]:
    found = []
    for value, truth in zip(values, expected, strict=True):
        error = float((value.cpu().double() - truth).norm() / truth.norm().clamp_min(1e-30))
        found.append(error if error == error else float("inf"))
    return tuple(found)


def compare(samples: list[Sample]) -> list[Comparison]:
    """One comparison for each of :data:`NAMES` that a sample has."""
    most = max(len(s.ours) for s in samples)
    return [_compare(index, [s for s in samples if len(s.ours) > index]) for index in range(most)]


def _compare(index: int, samples: list[Sample]) -> Comparison:
    ours, theirs = [s.ours[index] for s in samples], [s.theirs[index] for s in samples]
    rms = _root_mean_square(ours), _root_mean_square(theirs)
    ratios = tuple((s.ours[index] / max(s.theirs[index], rms[1]), s) for s in samples)
    return Comparison(NAMES[index], (max(ours), max(theirs)), rms, ratios)


def _root_mean_square(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).square().mean().sqrt())
