"""What identifies a convolution, and what a route is: the two types that every route shares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Gradients of input, weight and bias; None where nobody asked."""


class Formats(NamedTuple):
    """How input, weight and output gradient of a call lie in memory: its problem leaves that open."""

    x: torch.memory_format
    weight: torch.memory_format
    grad: torch.memory_format

    @classmethod
    def alike(cls, each: torch.memory_format) -> Formats:
        """All three stored so."""
        return cls(each, each, each)

    def __str__(self) -> str:
        """As in "input NCHW, weight NHWC, gradient NHWC"."""
        names = {torch.contiguous_format: "NCHW", torch.channels_last: "NHWC"}
        return f"input {names[self.x]}, weight {names[self.weight]}, gradient {names[self.grad]}"


@dataclass(frozen=True)
class ConvProblem:
    """Everything that decides which route serves a 2-d convolution; hashable, the key of the plan.

    A 1-d convolution is one of images with a single row (see ``calls``).

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
        transposed: whether it is the input gradient of another convolution: :attr:`adjoint`.
        output_padding: rows and columns added to the output of a transposed one, (height, width).
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
    transposed: bool = False
    output_padding: tuple[int, int] = (0, 0)

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of the output, pixels (Dumoulin and Visin, arXiv 1603.07285, relation 15).

        Of a transposed one: PyTorch's documentation of ``ConvTranspose2d``.
        """
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self.kernel, self.stride, self.padding, self.dilation
        if self.transposed:
            return (
                (self.height - 1) * sh - 2 * ph + dh * (kh - 1) + self.output_padding[0] + 1,
                (self.width - 1) * sw - 2 * pw + dw * (kw - 1) + self.output_padding[1] + 1,
            )
        return (
            (self.height + 2 * ph - dh * (kh - 1) - 1) // sh + 1,
            (self.width + 2 * pw - dw * (kw - 1) - 1) // sw + 1,
        )

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight: channels written, or of a transposed one channels read, come first."""
        first, second = self.channels_out, self.channels_in
        if self.transposed:
            first, second = second, first
        return (first, second // self.groups, *self.kernel)

    @property
    def memory_format(self) -> torch.memory_format:
        """Of input, output and the gradient of the input."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def formats(self) -> list[Formats]:
        """Every way in which models store what they hand it: kernels are compiled and tested for all.

        First input and gradient as the problem says, and a contiguous weight.
        """
        own, nchw, nhwc = self.memory_format, torch.contiguous_format, torch.channels_last
        pointwise = self.kernel == (1, 1) and not self.transposed
        found = [Formats(own, nchw, own)]
        if self.channels_last:  # of a model that is
            found.append(Formats(own, own, own))
        if pointwise and self.bias and not self.channels_last:
            # May end a head: its output is permuted and concatenated behind it, and so is the gradient.
            found.append(Formats(own, nchw, nhwc))
        # Images come in NCHW, and an attention leaves what it has reshaped so.
        behind_images = self.channels_in <= 4
        behind_attention = pointwise and self.channels_in == self.channels_out and not self.bias
        if self.channels_last and self.groups == 1 and (behind_images or behind_attention):
            found.append(Formats(nchw, own, own))
        return found

    @cached_property
    def adjoint(self) -> ConvProblem:
        """Of a transposed convolution: the plain one, with the same weight, whose input gradient it is.

        Its input gradient, forward pass and weight gradient are this one's forward pass, input gradient and
        weight gradient; a bias is added by this one alone. Its output is as large as this one's input, which
        is less than its ``output_size`` where the output padding reaches the stride.
        """
        height, width = self.output_size
        return replace(
            self,
            channels_in=self.channels_out,
            height=height,
            width=width,
            channels_out=self.channels_in,
            bias=False,
            transposed=False,
            output_padding=(0, 0),
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
        if self.transposed:
            parts.append("transposed")
        if self.output_padding != (0, 0):
            parts.append(f"output pad {_pair(self.output_padding)}")
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

    ``x`` is (batch, channels_in, height, width), ``weight`` is (channels_out, channels_in / groups, kh, kw);
    of a transposed convolution (channels_in, channels_out / groups, kh, kw). ``bias`` is (channels_out,) or
    None, ``grad`` has the shape of the output. Any strides are allowed.
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
