"""What identifies a convolution, and what a route is: the two types that every route shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Gradients of input, weight and bias; None where nobody asked."""


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
        channels_last: whether input or weight is stored NHWC; then the output is as well.
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

    def __str__(self) -> str:
        """All but the device, as one line: ``4x3x640x640 -> 16, 3x3 stride 2 pad 1, float32``."""
        shape = f"{self.batch}x{self.channels_in}x{self.height}x{self.width} -> {self.channels_out}"
        parts = [f"{shape}, {_pair(self.kernel, always_both=True)} stride {_pair(self.stride)}"]
        if self.padding != (0, 0):
            parts.append(f"pad {_pair(self.padding)}")
        if self.dilation != (1, 1):
            parts.append(f"dilation {_pair(self.dilation)}")
        if self.groups != 1:
            parts.append(f"groups {self.groups}")
        if self.bias:
            parts.append("bias")
        layout = " channels_last" if self.channels_last else ""
        return f"{' '.join(parts)}, {str(self.dtype).removeprefix('torch.')}{layout}"


def _pair(value: tuple[int, int], always_both: bool = False) -> str:
    return f"{value[0]}" if value[0] == value[1] and not always_both else f"{value[0]}x{value[1]}"


class Route(Protocol):
    """One way to compute a convolution: a pair of functions over plain tensors, below autograd.

    The dispatcher calls them with autograd already handled; anybody else calls them under
    ``torch.inference_mode()``.

    ``x`` is (batch, channels_in, height, width), ``weight`` is (channels_out, channels_in / groups, kh, kw),
    ``bias`` is (channels_out,) or None, ``grad`` has the shape of the output. Any strides are allowed.
    Output and input gradient come back in the problem's memory format, as PyTorch's own convolution does:
    code after a convolution may ``view`` what it gets.
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
    ) -> Gradients:
        """Gradients of input, weight and bias; None where ``needs`` says no."""
        ...
