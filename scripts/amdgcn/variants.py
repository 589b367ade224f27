"""Executing each variant of a kernel on a small problem that needs exactly that variant.

A variant is what the compiler sees: constants, alignments, warps, stages, the type. The sizes are
arguments, so a layer of 80 x 80 pixels and 256 channels shares its kernel with a problem a hundred times
smaller; ``smallest`` looks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from patches.convolution.problem import ConvProblem, Formats
from patches.convolution.statistics import TileStatistics
from patches.convolution.triton_kernels import route
from patches.convolution.triton_kernels.ahead import launches, variant
from patches.convolution.triton_kernels.tiles import RDNA, Tiles

from .backend import WITHOUT_PACKED_DOT, EmulatedRoute, Settings

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Largest relative error in the Frobenius norm, as in the route's tests."""

Key = tuple[Any, ...]
# Rows and columns: odd, and such that planes keep the divisibility of the layers' 80, 40 and 20.
SIDES = ((3, 5), (4, 4), (5, 7), (6, 6), (5, 8), (8, 8), (16, 16), (20, 20), (40, 40), (48, 48), (96, 96))


class Setup(NamedTuple):
    """A route on a card.

    Attributes:
        units: compute units of the card.
        winograd: the route "winograd", not "triton".
        formats: of the tensors that it is handed; the first of a problem's when None.
    """

    architecture: str
    units: int
    winograd: bool = False
    formats: Formats | None = None


def variants(problem: ConvProblem, setup: Setup) -> list[Key]:
    """The variants that would be launched for a problem, in order."""
    upcast = setup.architecture in WITHOUT_PACKED_DOT
    made = launches(problem, Tiles(setup.units, RDNA), setup.formats, setup.winograd, upcast)
    return [variant(launch) for launch in made]


def smallest(problem: ConvProblem, index: int, setup: Setup) -> ConvProblem | None:
    """The smallest problem found with the same variant as launch ``index``; None where none was."""
    with wide_offsets(is_wide(problem)):
        wanted = variants(problem, setup)[index]
        for candidate in sorted(candidates(problem), key=cost):
            made = variants(candidate, setup)
            if index < len(made) and made[index] == wanted:
                return candidate
    return None


def candidates(problem: ConvProblem) -> Iterator[ConvProblem]:
    """Smaller problems of the kind, the problem's own channels among them."""
    p = problem
    if p.groups > 1:
        widths = {(p.channels_in, p.channels_out, p.groups)}
        widths |= {
            (p.channels_in * n // p.groups, p.channels_out * n // p.groups, n)
            for n in (2, 8, 32)
            if n < p.groups
        }
    else:
        inputs = {p.channels_in, *(n for n in (16, 32, 48, 64) if n < p.channels_in)}
        outputs = {p.channels_out, *(n for n in (16, 32, 48, 64, 80, 96) if n < p.channels_out)}
        widths = {(c, o, 1) for c, o in product(inputs, outputs)}
    for (height, width), (c_in, c_out, groups), batch in product(SIDES, widths, (1, 2)):
        smaller = replace(
            p, batch=batch, height=height, width=width, channels_in=c_in, channels_out=c_out, groups=groups,
        )  # fmt: skip
        if min(smaller.output_size) >= 1:
            yield smaller


def cost(problem: ConvProblem) -> int:
    """Products of a problem, roughly what executing it takes."""
    p = problem
    taps = p.kernel[0] * p.kernel[1]
    return p.batch * p.height * p.width * p.channels_in * p.channels_out * taps // p.groups


def is_wide(problem: ConvProblem) -> bool:
    """Whether offsets of the problem need 64 bits."""
    sizes = (
        problem.batch * problem.channels_in * problem.height * problem.width,
        problem.batch * problem.channels_out * problem.output_size[0] * problem.output_size[1],
    )
    return max(sizes) >= 2**31 - 2**22


@contextmanager
def wide_offsets(wide: bool) -> Iterator[None]:
    """Offsets of 64 bits whatever the problem, if ``wide``."""
    before = route._wide
    if wide:
        route._wide = lambda *tensors: True
    try:
        yield
    finally:
        route._wide = before


STATISTICS = "statistics of the output"
PASSES = ("output", "gradient of input", "gradient of weight", "gradient of weight")
"""The pass in which the route "triton" makes each of its launches."""


def passes(winograd: bool) -> tuple[str, ...]:
    """The pass in which a route makes each of its launches: "winograd" transforms the weight in one more."""
    return (*PASSES[:1] * 2, *PASSES[1:2] * 2, *PASSES[2:]) if winograd else PASSES


class Operands(NamedTuple):
    """Seeded operands of a problem."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    grad: Tensor


def operands(p: ConvProblem, formats: Formats | None = None, seed: int = 0) -> Operands:
    """Standard normal ones, in these formats or the first of the problem's."""
    generator = torch.Generator().manual_seed(seed)
    formats = formats or p.formats[0]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(p.dtype)

    return Operands(
        normal(p.batch, p.channels_in, p.height, p.width).to(memory_format=formats.x),
        normal(*p.weight_shape).to(memory_format=formats.weight),
        normal(p.channels_out) if p.bias else None,
        normal(p.batch, p.channels_out, *p.output_size).to(memory_format=formats.grad),
    )


def compute(
    emulated: EmulatedRoute,
    p: ConvProblem,
    given: Operands,
    wanted: str | None = None,
    summed: bool = False,
) -> dict[str, Tensor]:
    """Output and gradients; with ``wanted``, one of ``PASSES``, those of that pass alone.

    With ``summed`` the output's statistics too, where the route leaves them: as left, and in float64.
    """
    x, weight, bias, grad = given
    found: dict[str, Tensor | None] = {}
    if wanted in (None, PASSES[0]) and summed and emulated.sums(p):
        out, left = emulated.forward_with_statistics(p, x, weight)
        found[PASSES[0]] = out
        found[STATISTICS] = torch.stack((left.table, TileStatistics.of(out, left.pixels).table))
    elif wanted in (None, PASSES[0]):
        found[PASSES[0]] = emulated.forward(p, x, weight, bias)
    needs = (wanted in (None, PASSES[1]), wanted in (None, PASSES[2]), p.bias and wanted in (None, PASSES[2]))
    if any(needs):
        names = (*PASSES[1:3], "gradient of bias")
        found.update(zip(names, emulated.backward(p, grad, x, weight, needs), strict=True))
    return {name: value for name, value in found.items() if value is not None}


def errors(
    emulated: EmulatedRoute,
    problem: ConvProblem,
    wanted: str | None = None,
    formats: Formats | None = None,
) -> dict[str, float]:
    """Relative errors, in the Frobenius norm, of output, its statistics and the gradients against float64."""
    given = operands(problem, formats)
    truths = _truths(problem, *given)
    found = compute(emulated, problem, given, wanted, summed=True)
    if STATISTICS in found:
        found[STATISTICS], truths[STATISTICS] = found[STATISTICS]
    return {name: _error(value, truths[name]) for name, value in found.items()}


def _truths(
    p: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None, grad: Tensor
) -> dict[str, Tensor]:
    """Output and gradients in float64."""
    leaves = [each.double().requires_grad_() for each in (x, weight, bias) if each is not None]
    settings: dict[str, Any] = {
        name: getattr(p, name) for name in ("stride", "padding", "dilation", "groups")
    }
    if p.transposed:
        settings["output_padding"] = p.output_padding
    convolve: Any = F.conv_transpose2d if p.transposed else F.conv2d
    out = convolve(leaves[0], leaves[1], leaves[2] if p.bias else None, **settings)
    gradients = torch.autograd.grad(out, leaves, grad.double())
    names = (*PASSES[:3], "gradient of bias")
    return dict(zip(names, (out.detach(), *gradients), strict=False))


def _error(value: Tensor, wanted: Tensor) -> float:
    error = float((value.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))
    return error if error == error else float("inf")


def execute(problem: ConvProblem, index: int, setup: Setup) -> str:
    """Execute the pass that makes launch ``index``; "" where it is right, else what is wrong."""
    emulated = EmulatedRoute(Settings(setup.architecture), setup.units, winograd=setup.winograd)
    found = errors(emulated, problem, passes(setup.winograd)[index], setup.formats)
    wrong = {name: error for name, error in found.items() if error > TOLERANCE[problem.dtype]}
    return ", ".join(f"{name} is off by {error:.1e}" for name, error in wrong.items())


def launched(problem: ConvProblem, index: int, setup: Setup) -> list[Key]:
    """The variants that ``execute`` launches."""
    made, names = variants(problem, setup), passes(setup.winograd)
    return [key for key, name in zip(made, names, strict=True) if name == names[index]]
