"""How far the fused batch norm is from float64 on random problems, beside PyTorch's own in fp32."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from patches import compiling
from patches.normalization.launches import Kernels
from patches.normalization.operation import Implementation, apply
from patches.normalization.problem import ACTIVATIONS, NormProblem
from patches.normalization.selftest import NAMES, jobs, operands, reference
from patches.normalization.torch_only import activate


def compare(count: int) -> Iterator[tuple[str, float, float]]:
    """For each of ``NAMES``: root mean square of the fused errors over PyTorch's, and the largest of ours.

    Call it in a process that has not opened the device: the kernels are compiled by forks of it.
    """
    errors: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
    target, drawn = compiling.target_of("cuda:0"), problems(count)
    compiling.compile_all(jobs(drawn, target.units), target)
    for number, problem in enumerate(drawn):
        x, grad, held = operands(problem, number)
        truths = reference(problem, x, grad, held)
        fused = _by(Kernels(problem, 0, target.units), problem, number)
        usual = _by(None, problem, number)
        for name, ours, theirs, truth in zip(NAMES, fused, usual, truths, strict=True):
            if ours is not None and theirs is not None and truth is not None:
                errors[name].append((_error(ours, truth), _error(theirs, truth)))
    for name, pairs in errors.items():
        ours, theirs = (sum(each**2 for each in column) ** 0.5 for column in zip(*pairs, strict=True))
        yield name, ours / theirs, max(pair[0] for pair in pairs)


def problems(count: int, seed: int = 0) -> list[NormProblem]:
    """Training problems in fp32 of the sizes that detectors have, and of ragged ones."""
    rng = random.Random(seed)
    return [
        NormProblem(
            rng.randint(2, 16),
            rng.choice([1, 3, 16, 24, 64, 80, 128, 257]),
            rng.randint(1, 40),
            rng.randint(1, 40),
            torch.float32,
            channels_last=rng.random() < 0.5,
            activation=rng.choice(ACTIVATIONS),
            slope=0.1,
        )
        for _ in range(count)
    ]


def _by(by: Implementation | None, p: NormProblem, seed: int) -> list[Tensor | None]:
    x, grad, held = operands(p, seed)
    x, grad = (each.cuda().contiguous(memory_format=p.memory_format) for each in (x, grad))
    held = held.to("cuda")
    leaves = [each.requires_grad_() for each in (x, held.weight, held.bias) if each is not None]
    if by is None:
        settings = (held.weight, held.bias, p.training, held.momentum, held.eps)
        z = nn.functional.batch_norm(x, held.running_mean, held.running_var, *settings)
        out = activate(p, z)
    else:
        out = apply(x, held, by)
    gradients = torch.autograd.grad(out, leaves, grad)
    return [out, *gradients, held.running_mean, held.running_var]


def _error(value: Tensor, truth: Tensor) -> float:
    return float((value.detach().cpu().double() - truth).norm() / truth.norm().clamp_min(1e-30))
