"""Who computes a batch norm with its activation: the setting, and what the card is trusted with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from .. import variables
from .operation import Implementation
from .problem import NormProblem
from .torch_only import TorchOnly

SELF_TEST = "fused batch norm"
"""What the self-test of the Triton kernels is called."""

SMALL = 8 * 2**30
"""Bytes of a card in all, up to which outputs are computed again: so small a card gains images of a batch by
it, or a larger model, while others would only lose time."""

_HALVES = (torch.float32, torch.float16, torch.bfloat16)


def setting(wanted: str) -> str:
    """One of :data:`~patches.variables.NORMALIZATIONS`: what the environment says, else what is wanted.

    Raises:
        ValueError: it is none of them.
    """
    return variables.NORMALIZATION.choose("normalization", wanted, variables.NORMALIZATIONS)


def recomputing(device: str) -> Callable[[Tensor], bool]:
    """Whether outputs on the device of a tensor are computed again for the next convolution's backward pass.

    Args:
        device: "cuda" or "cpu".

    Raises:
        ValueError: the environment says what nobody understands.
    """
    found = variables.RECOMPUTE.choose("recompute", "auto", variables.RECOMPUTES)
    if found == "auto" and device == "cuda":
        return lambda x: torch.cuda.get_device_properties(x.device).total_memory <= SMALL
    return lambda _: found == "on"


def may_attach(setting: str, device: str) -> bool:
    """Whether modules are served at all; on a CPU only when asked to.

    PyTorch 1 keeps its own: hooks, transforms and half precision answer otherwise there.
    """
    return (
        not torch.__version__.startswith("1.") and setting != "off" and (device, setting) != ("cpu", "auto")
    )


def self_tests(setting: str, device: str) -> tuple[str, ...]:
    """What must be tested before anything is fused on a device."""
    fused = setting in ("auto", "triton") and device == "cuda" and importlib.util.find_spec("triton")
    return (SELF_TEST,) if fused else ()


def fused_dtypes(
    setting: str, device: str, trusted: Callable[[str, torch.dtype], bool]
) -> Callable[[torch.dtype], bool]:
    """Whether the Triton kernels compute the batch norms of a dtype; Triton is looked for once, now.

    Args:
        setting: one of :data:`~patches.variables.NORMALIZATIONS`.
        device: "cuda" or "cpu".
        trusted: whether a self-test passed in a dtype on the card in use.
    """
    tests = self_tests(setting, device)
    return lambda dtype: bool(tests) and dtype in _HALVES and all(trusted(each, dtype) for each in tests)


def chooser(
    setting: str, is_fused: Callable[[torch.dtype], bool]
) -> Callable[[NormProblem, Tensor], Implementation | None]:
    """Who computes a problem on the device of a tensor; None: PyTorch.

    Args:
        setting: one of :data:`~patches.variables.NORMALIZATIONS`.
        is_fused: of :func:`fused_dtypes`.
    """

    def choose(problem: NormProblem, x: Tensor) -> Implementation | None:
        if is_fused(problem.dtype):
            from ..convolution import triton_kernels
            from .launches import Kernels

            triton_kernels.prepare()
            units = torch.cuda.get_device_properties(x.device).multi_processor_count
            return Kernels(problem, x.get_device(), units)
        # PyTorch keeps the output of a ReLU, which the next layer keeps anyway.
        saves = problem.activation != "relu" and torch.is_grad_enabled()
        return TorchOnly(problem) if setting != "triton" and saves else None

    return choose
