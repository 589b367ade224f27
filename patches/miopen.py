"""Whether the vendor's library may serve, and switching it off for everything that is no convolution.

On a ROCm build PyTorch sends batch normalisation and RNNs through MIOpen as well, so that a card whose
convolutions are patched can still hang in the next layer. PyTorch has one switch for the library, and it is
called cuDNN on ROCm too. Convolutions are judged as the route ``library``, batch norm by a test of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import variables
from .environment import amd_architectures

SELF_TEST = "vendor's batch norm"
"""What the self-test of batch norm by MIOpen is called."""

KNOWN_TO_WORK = ("gfx9", "gfx11", "gfx12")
"""Families of architectures for which AMD tunes and tests MIOpen; on RDNA1 it fails or hangs, on RDNA2 it has
kernels for one card alone (gfx1030)."""

FIRST_ROCM = 6
"""With older ones MIOpen's kernels for RDNA3 are few."""

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""Largest relative error (Frobenius norm) of a self-test."""


def setting(wanted: str) -> str:
    """One of :data:`~patches.variables.VENDORS`: what the environment says, else what is wanted.

    Raises:
        ValueError: it is none of them.
    """
    return variables.VENDOR.choose("vendor", wanted, variables.VENDORS)


def needed() -> bool:
    """Whether this PyTorch is a ROCm build."""
    return torch.version.hip is not None


def may_serve(setting: str, architectures: Sequence[str] | None = None) -> bool:
    """Whether the vendor's library may be tried at all; what it is trusted with, self-tests say.

    Args:
        setting: one of :data:`~patches.variables.VENDORS`.
        architectures: of AMD's cards in this machine; by the kernel driver when None.
    """
    if setting != "auto":
        return setting == "on"
    if not needed():
        return True
    cards = amd_architectures() if architectures is None else architectures
    rocm = str(torch.version.hip).partition(".")[0]
    recent = rocm.isdecimal() and int(rocm) >= FIRST_ROCM
    return recent and bool(cards) and all(card.startswith(KNOWN_TO_WORK) for card in cards)


class Switch:
    """PyTorch's switch of the library, for everything that is no convolution; off while a session wants that.

    Args:
        setting: one of :data:`~patches.variables.VENDORS`.
        device: "cuda" or "cpu".

    Attributes:
        may_serve: see :func:`may_serve`.
    """

    def __init__(self, setting: str, device: str) -> None:
        self.setting, self.device, self.may_serve = setting, device, may_serve(setting)
        self._before: bool | None = None

    def turn_off(self) -> None:
        """Turn the library off, where it may not serve or must first show that it works."""
        if self.device == "cuda" and (self.setting == "off" or (needed() and self.setting == "auto")):
            self._before = torch.backends.cudnn.enabled
            torch.backends.cudnn.enabled = False

    def turn_back(self) -> None:
        """Set it to what it was."""
        if self._before is not None:
            torch.backends.cudnn.enabled, self._before = self._before, None

    def judge(self, trusts: Callable[[str, torch.dtype], bool]) -> None:
        """Give batch norm back to the library where it may serve and passes its self-test."""
        if self._before and self.setting == "auto" and self.may_serve and trusts(SELF_TEST, torch.float32):
            self.turn_back()


def examine(device: str, dtype: torch.dtype) -> str:
    """Why batch norm by the vendor's library is not to be trusted on a device; empty when it is."""
    if dtype not in TOLERANCE:
        return f"is not tried in {dtype}"
    for layout in (torch.contiguous_format, torch.channels_last):
        for training in (True, False):
            generator = torch.Generator().manual_seed(0)
            x, grad = (torch.randn(4, 24, 13, 11, generator=generator).to(dtype) for _ in range(2))
            mean, variance, weight, bias = (torch.rand(24, generator=generator) + 0.5 for _ in range(4))
            truths = _batch_norm(x.double(), grad.double(), mean, variance, weight, bias, training, "cpu")
            x, grad = (each.to(device).contiguous(memory_format=layout) for each in (x, grad))
            values = _batch_norm(x, grad, mean, variance, weight, bias, training, device)
            for name, value, truth in zip(("output", "gradient"), values, truths, strict=True):
                error = float((value.cpu().double() - truth).norm() / truth.norm())
                if not error <= TOLERANCE[dtype]:
                    words = "training" if training else "evaluation"
                    return f"{name} in {words} mode is wrong: relative error {error:.1e}"
    return ""


def _batch_norm(
    x: Tensor,
    grad: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    device: str,
) -> tuple[Tensor, Tensor]:
    """Output and input gradient; statistics and parameters are fp32, or fp64 as the input."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, variance, weight, bias = (
        each.to(device, dtype, copy=True) for each in (mean, variance, weight, bias)
    )
    leaf = x.requires_grad_()
    out = F.batch_norm(leaf, mean, variance, weight, bias, training)
    return out.detach(), torch.autograd.grad(out, leaf, grad)[0]
