"""What identifies a convolution, and what a route is: the two types that every route shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class ConvProblem:
    """Everything that decides which route serves a 2-d convolution; hashable, the key of the plan.

    Attributes:
        batch: images in the input.
        channels_in: channels of the input.
        height, width: size of the input, pixels.
        channels_out: channels of the output.
        kernel: kernel height and width.
        stride, padding, dilation: each (height, width).
        groups: number of groups; ``channels_in`` and ``channels_out`` are multiples of it.
        bias: whether a bias is added.
        dtype: of input, weight and output.
        device: "cpu", "cuda" (ROCm builds say "cuda" too).
        channels_last: whether the input is stored NHWC.
    """

    batch: int
    channels_in: int
    height: int
    width: int
    channels_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias: bool
    dtype: torch.dtype
    device: str
    channels_last: bool

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output, pixels (Dumoulin and Visin, arXiv 1603.07285, relation 15)."""
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self.kernel, self.stride, self.padding, self.dilation
        return (
            (self.height + 2 * ph - dh * (kh - 1) - 1) // sh + 1,
            (self.width + 2 * pw - dw * (kw - 1) - 1) // sw + 1,
        )


class Route(Protocol):
    """One way to compute a convolution: a pair of functions over plain tensors, outside autograd.

    ``x`` is (batch, channels_in, height, width), ``weight`` is (channels_out, channels_in / groups, kh, kw),
    ``bias`` is (channels_out,) or None, ``grad`` has the shape of the output. Any strides are allowed.
    """

    name: str

    def supports(self, problem: ConvProblem) -> bool:
        """Whether this route can serve the problem at all (not whether it is fast)."""
        ...

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output, (batch, channels_out, *problem.output_size)."""
        ...

    def backward(
        self,
        problem: ConvProblem,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of input, weight and bias; None where ``needs`` says no."""
        ...
