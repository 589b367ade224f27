#!/usr/bin/env python3
"""Compare a route with float64 on random problems, beside PyTorch's own fp32 convolution.

    python3 scripts/check_convolution_accuracy.py --device cpu
    python3 scripts/check_convolution_accuracy.py --device cuda --route gemm --problems 500

The relative error (Frobenius norm) of output and gradients of input, weight and bias may be at most
twice that of PyTorch's own convolution: its largest, its root mean square, and on every single problem, where
PyTorch's root mean square over all problems counts if PyTorch happened to do better on that one. No problem
is skipped: one that the route does not serve fails. The exit code is the number of failures, at most 100.
Needs torch alone.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

import patches
from patches.convolution.problem import ConvProblem
from toolkit.benchmark.measure import conv2d

NAMES = ("output", "input gradient", "weight gradient", "bias gradient")
ALLOWED = 2.0


def draw(rng: random.Random, device: str) -> ConvProblem:
    """A problem of the kinds that detectors have, and of kinds that they do not."""
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


def run(problem: ConvProblem, inputs: list[Tensor], grad: Tensor, route: str | None) -> list[Tensor]:
    """Output and gradients by a route, or by PyTorch as it comes (None)."""
    leaves = [each.detach().requires_grad_() for each in inputs]
    x, weight, *bias = leaves
    if route is None:
        out = conv2d(problem, x, weight, bias[0] if bias else None)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    with patches.enabled(problem.device, route):
        values = run(problem, inputs, grad, None)
        served = set(patches.report().by_route())
        if served != {route}:
            raise RuntimeError(f"{problem} was served by {served}, expected {route}: {patches.report()}")
    return values


def errors(values: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Relative errors in the Frobenius norm; infinite where a value is NaN."""
    found = []
    for value, truth in zip(values, expected, strict=True):
        error = float((value.cpu().double() - truth).norm() / truth.norm().clamp_min(1e-30))
        found.append(error if error == error else float("inf"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--route", default="gemm")
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    rng = random.Random(options.seed)
    ours: dict[str, list[float]] = {name: [] for name in NAMES}
    theirs: dict[str, list[float]] = {name: [] for name in NAMES}
    labels: dict[str, list[str]] = {name: [] for name in NAMES}
    for number in range(options.problems):
        problem = draw(rng, options.device)
        generator = torch.Generator().manual_seed(number)
        shapes: list[tuple[int, ...]] = [
            (problem.batch, problem.channels_in, problem.height, problem.width),
            (problem.channels_out, problem.channels_in // problem.groups, *problem.kernel),
        ]
        if problem.bias:
            shapes.append((problem.channels_out,))
        cpu = [torch.randn(shape, generator=generator) for shape in shapes]
        cpu_grad = torch.randn(problem.batch, problem.channels_out, *problem.output_size, generator=generator)
        expected = run(problem, [each.double() for each in cpu], cpu_grad.double(), None)
        inputs, grad = [each.to(options.device) for each in cpu], cpu_grad.to(options.device)
        if problem.channels_last:
            inputs[0] = inputs[0].to(memory_format=torch.channels_last)
        found = errors(run(problem, inputs, grad, options.route), expected)
        plain = errors(run(problem, inputs, grad, None), expected)
        for name, our, their in zip(NAMES[: len(found)], found, plain, strict=True):
            ours[name].append(our)
            theirs[name].append(their)
            labels[name].append(f"problem {number}, {problem}")

    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{options.problems} problems, route {options.route}, {device}, torch {torch.__version__}")
    print(
        f"{'relative error':<16} {'largest':>9} {'PyTorch':>9} {'rms':>9} {'PyTorch':>9} {'worst ratio':>12}"
    )
    failures = 0
    for name in NAMES:
        largest = max(ours[name]), max(theirs[name])
        rms = root_mean_square(ours[name]), root_mean_square(theirs[name])
        ratios = [our / max(their, rms[1]) for our, their in zip(ours[name], theirs[name], strict=True)]
        columns = " ".join(f"{value:>9.2e}" for value in (*largest, *rms))
        print(f"{name:<16} {columns} {max(ratios):>12.2f}")
        failures += (largest[0] > ALLOWED * largest[1]) + (rms[0] > ALLOWED * rms[1])
        for label, ratio in zip(labels[name], ratios, strict=True):
            if not ratio <= ALLOWED:
                failures += 1
                print(f"  {ratio:.2f} on {label}")
    print(f"{failures} failures")
    return min(failures, 100)


def root_mean_square(values: list[float]) -> float:
    """Of relative errors."""
    return float(torch.tensor(values, dtype=torch.float64).square().mean().sqrt())


if __name__ == "__main__":
    sys.exit(main())
