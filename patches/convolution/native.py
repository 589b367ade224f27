"""PyTorch's own convolution kernels as a route, with the vendor's library (cuDNN, MIOpen) on or off.

The overrides sit in the dispatcher's table under the device's key, so calling the operators again would come
back to the override. The kernels that PyTorch would have used are registered once more for every backend,
under the alias key CompositeExplicitAutograd; calling that key runs them and nothing else.

``aten::convolution`` itself does nothing but call ``aten::_convolution`` with PyTorch's switches, and a graph
of TorchScript calls that one at once. It is overridden too, so PyTorch's kernels are called through it here:
the way over ``aten::convolution`` would come back to the override.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from .problem import ConvProblem, Gradients

_KEY = torch._C.DispatchKey.CompositeExplicitAutograd
_inner: Callable[..., Any] = torch.ops.aten._convolution.default._op_dk
_outer: Callable[..., Any] = torch.ops.aten.convolution.default._op_dk
_backward: Callable[..., Any] = torch.ops.aten.convolution_backward.default._op_dk
_precision: Callable[[str, str], str] | None = getattr(torch._C, "_get_fp32_precision_getter", None)
switch = threading.RLock()
"""Held by calls that change the process-wide switch of the vendor's library, or need it to stay as it is."""


def _has_tf32() -> bool:
    """Whether the library's convolutions may use TF32, as PyTorch itself asks."""
    if _precision is None:
        return torch._C._get_cudnn_allow_tf32()
    return bool(_precision("cuda", "conv") == "tf32")


class _Thread(threading.local):
    """What this thread is doing.

    Attributes:
        records: whether a tracer writes down the call that it is in.
    """

    records = False


_thread = _Thread()


def _forward(key: Any, *args: Any) -> Any:
    """``aten::convolution`` in one step: ``aten::_convolution`` with the switches as they are."""
    return _inner(
        key,
        *args,
        torch._C._get_cudnn_benchmark(),
        torch._C._get_cudnn_deterministic() or torch._C._get_deterministic_algorithms(),
        torch._C._get_cudnn_enabled(),
        _has_tf32(),
    )


def is_overridden(key: str) -> bool:
    """Whether somebody registered ``aten::convolution`` under a device's key, where PyTorch has no kernel."""
    found: bool = torch._C._dispatch_has_kernel_for_dispatch_key("aten::convolution", key)
    return found


def call_forward(library: bool | None, *args: Any) -> Tensor:
    """``aten::convolution`` by PyTorch's own kernels.

    Args:
        library: whether the vendor's library may serve this call; None leaves PyTorch's switch as it is.
        args: the operator's arguments.
    """
    return cast(Tensor, _call(library, _forward, args))


def record_forward(library: bool | None, *args: Any) -> Tensor:
    """:func:`call_forward` under a tracer, which writes down that ``aten::_convolution`` is called."""
    _thread.records = True
    try:
        return cast(Tensor, _call(library, _outer, args))
    finally:
        _thread.records = False


def is_recorded() -> bool:
    """Whether this thread is in :func:`record_forward`."""
    return _thread.records


def call_inner(*args: Any) -> Tensor:
    """``aten::_convolution`` by PyTorch's own kernels, with the operator's arguments."""
    return cast(Tensor, _inner(_KEY, *args))


def call_backward(library: bool | None, *args: Any) -> Gradients:
    """``aten::convolution_backward`` by PyTorch's own kernels; arguments as in :func:`call_forward`."""
    return cast(Gradients, _call(library, _backward, args))


def _call(library: bool | None, operator: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if library is None:
        return operator(_KEY, *args)
    with switch:
        before = torch._C._get_cudnn_enabled()
        torch._C._set_cudnn_enabled(library)
        try:
            return operator(_KEY, *args)
        finally:
            torch._C._set_cudnn_enabled(before)


class Native:
    """The routes ``native`` (PyTorch's kernels alone) and ``library`` (with cuDNN or MIOpen).

    On the CPU there is no vendor's library to avoid: ``native`` is whatever PyTorch does there (oneDNN).

    Args:
        library: whether the vendor's library may be used.
    """

    def __init__(self, library: bool) -> None:
        self.name = "library" if library else "native"
        self.library = library

    def supports(self, problem: ConvProblem) -> bool:
        """Everything; the library only where there is one."""
        return not self.library or problem.device != "cpu"

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See :class:`~patches.convolution.problem.Route`."""
        out = call_forward(
            self._may_use(problem),
            x,
            weight,
            bias,
            problem.stride,
            problem.padding,
            problem.dilation,
            problem.transposed,
            problem.output_padding,
            problem.groups,
        )
        # PyTorch 1 answers a transposed one in rows, whatever the layout of the input.
        rows = problem.channels_last and problem.transposed
        return out.contiguous(memory_format=torch.channels_last) if rows else out

    def backward(
        self,
        problem: ConvProblem,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        needs: tuple[bool, bool, bool],
    ) -> Gradients:
        """See :class:`~patches.convolution.problem.Route`."""
        return call_backward(
            self._may_use(problem),
            grad,
            x,
            weight,
            [problem.channels_out],
            problem.stride,
            problem.padding,
            problem.dilation,
            problem.transposed,
            problem.output_padding,
            problem.groups,
            needs,
        )

    def _may_use(self, problem: ConvProblem) -> bool | None:
        return None if problem.device == "cpu" else self.library
