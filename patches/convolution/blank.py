"""A route that computes nothing, for a step that only tells which convolutions a model has."""

from __future__ import annotations

import torch
from torch import Tensor

from .problem import ConvProblem, Gradients


class Blank:
    """Answers of the right shape, dtype and layout: random outputs, gradients of zero; implements ``Route``.

    No kernel of a convolution runs, so none must be trusted before one knows which are needed. Outputs are
    like those of a layer behind a batch norm; the process's random state is left alone.
    """

    name = "blank"

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}

    def supports(self, problem: ConvProblem) -> bool:
        """Everything."""
        return True

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :class:`~patches.convolution.problem.Route`."""
        if x.device not in self._generators:
            self._generators[x.device] = torch.Generator(x.device).manual_seed(0)
        shape = (problem.batch, problem.channels_out, *problem.output_size)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=problem.memory_format)
        return out.normal_(generator=self._generators[x.device])

    def backward(
        self, problem: ConvProblem, grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
    ) -> Gradients:
        """See :class:`~patches.convolution.problem.Route`."""
        return (
            torch.zeros(x.shape, dtype=x.dtype, device=x.device).to(memory_format=problem.memory_format)
            if needs[0]
            else None,
            torch.zeros_like(weight) if needs[1] else None,
            weight.new_zeros(problem.channels_out) if needs[2] else None,
        )
