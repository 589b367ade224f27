"""Routes that misbehave in every way that a self-test must survive."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import torch
from torch import Tensor

from patches.convolution.gemm import Gemm
from patches.convolution.problem import ConvProblem, Gradients
from patches.convolution.statistics import TileStatistics


class Hanging(Gemm):
    """A kernel that never ends."""

    name = "hanging"

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        time.sleep(600)
        return super().forward(problem, x, weight, bias)


class Dying(Gemm):
    """A kernel that takes its process along, in the backward pass."""

    name = "dying"

    def backward(self, *args: object) -> Gradients:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError


class Leaving(Gemm):
    """A compiler that ends the process with a message, as LLVM does."""

    name = "leaving"

    def forward(self, *args: object) -> Tensor:
        sys.stderr.write("LLVM ERROR: Cannot select FDOT2\n")
        sys.stderr.flush()
        os._exit(3)


class Silent(Gemm):
    """A kernel that reports success and writes nothing."""

    name = "silent"

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.empty((problem.batch, problem.channels_out, *problem.output_size), dtype=x.dtype)


class Wrong(Gemm):
    """A kernel whose weight gradient is a little off."""

    name = "wrong"

    def backward(self, *args: object) -> Gradients:
        grad_x, grad_weight, grad_bias = super().backward(*args)
        return grad_x, None if grad_weight is None else grad_weight * 1.001, grad_bias


class Raising(Gemm):
    """A kernel that does not compile."""

    name = "raising"

    def forward(self, *args: object) -> Tensor:
        raise NotImplementedError("no kernel image for this card")


class Exhausted(Gemm):
    """A card that is full."""

    name = "exhausted"

    def forward(self, *args: object) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Killed(Gemm):
    """A system that is short of memory and ends a process."""

    name = "killed"

    def forward(self, *args: object) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class WrongInHalf(Gemm):
    """A kernel that is right in fp32 and wrong in fp16."""

    name = "wronginhalf"

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = super().forward(problem, x, weight, bias)
        return out * 1.1 if problem.dtype == torch.float16 else out


class WrongFromAHead(Gemm):
    """A kernel that takes a gradient's strides for those of the input."""

    name = "wrongfromahead"

    def backward(self, *args: Any) -> Gradients:
        problem, grad = args[:2]
        grad_x, grad_weight, grad_bias = super().backward(*args)
        wrong = not (problem.channels_last or grad.is_contiguous())
        return grad_x, None if grad_weight is None else grad_weight * (1 + wrong), grad_bias


class WrongBehindAnAttention(Gemm):
    """A kernel that takes an input to be stored as the output is."""

    name = "wrongbehindanattention"

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wrong = not x.is_contiguous(memory_format=problem.memory_format)
        return super().forward(problem, x, weight, bias) * (1 + wrong)


class WrongStatistics(Gemm):
    """A kernel that leaves squares that are a little off."""

    name = "wrongstatistics"

    def sums(self, problem: ConvProblem) -> bool:
        return not problem.bias

    def forward_with_statistics(
        self, problem: ConvProblem, x: Tensor, weight: Tensor
    ) -> tuple[Tensor, TileStatistics]:
        out = self.forward(problem, x, weight, None)
        left = TileStatistics.of(out, 100)
        left.table[1] *= 1.001 if problem.channels_last else 1.0
        return out, left


class Misshapen(Gemm):
    """A kernel that forgets the last row."""

    name = "misshapen"

    def forward(self, *args: object) -> Tensor:
        return super().forward(*args)[:, :, :-1]
