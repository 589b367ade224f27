"""Switching the vendor's library off for everything that is no convolution.

On a ROCm build PyTorch sends batch normalisation and RNNs through MIOpen as well, so that a card whose
convolutions are patched can still hang in the next layer. PyTorch has one switch for the library, and it is
called cuDNN on ROCm too.
"""

from __future__ import annotations

import torch


def needed() -> bool:
    """Whether this PyTorch is a ROCm build."""
    return torch.version.hip is not None


def switch_off() -> bool:
    """Switch MIOpen off for the process and return what the switch said before, for :func:`restore`."""
    before: bool = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    return before


def restore(before: bool) -> None:
    """Set the switch to what :func:`switch_off` returned."""
    torch.backends.cudnn.enabled = before
