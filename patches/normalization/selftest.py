"""What the fused kernels must show on a card before they are trusted.

``patches.convolution.selftest`` runs it in a child process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import compiling, hashing
from ..convolution.selftest import TOLERANCE, WATCH, Poison, open_device, say, wait_until_wanted
from ..convolution.statistics import TileStatistics
from .operation import Implementation
from .problem import NormProblem, Parameters

NAMES = ("output", "input gradient", "weight gradient", "bias gradient", "running mean", "running variance")


def problems(dtype: torch.dtype) -> list[NormProblem]:
    """One for each kind of kernel: both layouts, sizes that allow 16 bytes at once and others, frozen.

    The last three choose the tiles that YOLOv8n needs at batch 16 and the others leave out.
    """
    plain = NormProblem(3, 24, 20, 20, dtype)
    most = NormProblem(16, 4, 20, 20, dtype)
    ragged = NormProblem(5, 19, 13, 7, dtype)
    return [
        replace(each, channels_last=last)
        for each in (
            plain,
            ragged,
            replace(plain, channels=80, height=40, width=40),
            replace(plain, training=False),
            replace(plain, activation="relu"),
            replace(ragged, activation="leaky_relu", slope=0.1, affine=False),
            replace(plain, activation="hardswish"),
        )
        for last in (False, True)
    ] + [
        most,
        replace(plain, channels=4, height=70, width=72),
        replace(most, channels=64, height=4, width=4, channels_last=True),
    ]


def examine(device: str, dtype: torch.dtype) -> str:
    """Why the kernels are not to be trusted; empty when they are."""
    from ..convolution import triton_kernels
    from .launches import Kernels

    triton_kernels.prepare()
    here, units = torch.device(device), 4
    with ExitStack() as stack:
        if here.type == "cuda":
            say("compiling")
            with WATCH.during("hashing Triton"):
                hashing.wait()
            with WATCH.during("asking for the target"):
                target = compiling.target_of(device)
            units = target.units
            with WATCH.during("starting compilers"):
                with hashing.beside():
                    work = jobs(problems(dtype), units)
                wait = stack.enter_context(compiling.beside(work, target))
            wait_until_wanted()
            open_device(device)
            with WATCH.during("waiting for compilers"):
                wait(len(work))
        with WATCH.during("tests"):
            for problem in problems(dtype):
                reason = compare(Kernels(problem, here.index or 0, units), device)
                if reason:
                    return reason
    return ""


def jobs(problems: Iterable[NormProblem], units: int) -> list[Callable[[], object]]:
    """Compiling every kernel of problems for a card of so many compute units, one job a variant."""
    from ..convolution.triton_kernels.ahead import variant
    from .launches import Kernels

    found: dict[tuple[Any, ...], Callable[[], object]] = {}
    for p in problems:
        for launch, tensors in Kernels(p, 0, units).launches():
            job = partial(
                launch.kernel.warmup, *tensors, *launch.arguments, grid=launch.grid, **launch.options
            )
            found.setdefault((p.dtype, *variant(launch)), job)
    return list(found.values())


def compare(by: Implementation, device: str) -> str:
    """Run forward and backward against float64 on the CPU; what is wrong, or nothing.

    In training once more with the statistics as a convolution would leave them.
    """
    x, grad, held = operands(by.problem)
    truths = reference(by.problem, x, grad, held)
    found = _compare(by, device, truths, None)
    if found or not by.problem.training:
        return found
    left = TileStatistics.of(x, 16)  # short runs, of which several programs find some
    return _compare(by, device, truths, TileStatistics(left.table.float().to(device), left.pixels))


def _compare(
    by: Implementation, device: str, truths: Sequence[Tensor | None], tiles: TileStatistics | None
) -> str:
    p = by.problem
    x, grad, held = operands(p)  # anew: running statistics move
    x, grad = (each.to(device).contiguous(memory_format=p.memory_format) for each in (x, grad))
    held = held.to(device)
    with torch.inference_mode(), Poison():
        say(f"forward of {p}{', told its statistics' * (tiles is not None)}")
        out, kept = by.forward(x, held, tiles)
        say(f"backward of {p}")
        gradients = by.backward(x, grad, held, kept)
    values = (out, *gradients, *((held.running_mean, held.running_var) if p.training else (None, None)))
    for name, value, truth in zip(NAMES, values, truths):  # noqa: B905 - frozen statistics do not move
        if value is None or truth is None:
            continue
        error = float((value.cpu().double() - truth).norm() / truth.norm().clamp_min(1e-30))
        if value.shape != truth.shape or not error <= TOLERANCE[str(p.dtype).removeprefix("torch.")]:
            return f"{name} of {p} is wrong: relative error {error:.1e}"
    if p.training and held.batches is not None and int(held.batches) != 1:
        return f"{p} counted {int(held.batches)} batches, expected 1"
    return ""


def operands(p: NormProblem, seed: int = 0) -> tuple[Tensor, Tensor, Parameters]:
    """Input with a mean away from zero, output gradient, and what the module holds."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    shape = (p.batch, p.channels, p.height, p.width)
    x, grad = (2 * normal(*shape) + 3).to(p.dtype), normal(*shape).to(p.dtype)
    wide = torch.promote_types(p.dtype, torch.float32)
    held = Parameters(
        normal(p.channels).to(wide) if p.affine else None,
        normal(p.channels).to(wide) if p.affine else None,
        normal(p.channels).to(wide) if p.tracked else None,
        normal(p.channels).abs().to(wide) + 0.5 if p.tracked else None,
        torch.zeros((), dtype=torch.int64) if p.tracked else None,
        momentum=0.1,
        eps=1e-3,
    )
    return x, grad, held


def reference(p: NormProblem, x: Tensor, grad: Tensor, held: Parameters) -> list[Tensor | None]:
    """What :data:`NAMES` says, in float64 by PyTorch's own kernels and autograd."""
    wide = [None if each is None else each.detach().double().clone() for each in held[:4]]
    leaf = x.detach().double().requires_grad_()
    leaves = [leaf, *(each.requires_grad_() for each in wide[:2] if each is not None)]
    z = F.batch_norm(leaf, wide[2], wide[3], wide[0], wide[1], p.training, held.momentum, held.eps)
    out = {
        "identity": lambda: z,
        "silu": lambda: F.silu(z),
        "relu": lambda: F.relu(z),
        "leaky_relu": lambda: F.leaky_relu(z, p.slope),
        "hardswish": lambda: F.hardswish(z),
    }[p.activation]()
    found = torch.autograd.grad((out * grad.double()).sum(), leaves)
    return [out.detach(), found[0], *(found[1:] or (None, None)), *wide[2:]]
