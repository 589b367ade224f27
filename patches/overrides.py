"""Kernels in PyTorch's dispatcher, in the place of its own convolutions and their gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from . import startup
from .convolution.native import call_inner, is_overridden, is_recorded

_SWITCHES = -4
"""Where the switches of the vendor's library begin among the arguments of ``aten::_convolution``."""

_open_library: Callable[..., Any] = torch.library.Library


class Overrides:
    """Kernels for ``aten::convolution`` and ``aten::convolution_backward``, not yet in the dispatcher.

    Graphs of TorchScript call ``aten::_convolution`` instead of the first; it gets the same kernel.

    Args:
        key: the dispatch key, "CPU" or "CUDA".
        forward, backward: the kernels, with the operators' arguments.
    """

    def __init__(self, key: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        self.key = key
        self._kernels: dict[str, Callable[..., Any]] = {
            "convolution": forward,
            "convolution_backward": backward,
            "_convolution": partial(_of_script, forward),
        }
        self._library: Any = None

    def shared(self) -> str:
        """What to tell where another library overrode the same operators; empty where none did."""
        if self._library is not None or not is_overridden(self.key):
            return ""
        return (
            f"another library overrode aten::convolution for {self.key} before{_named()}: the routes come "
            "first while they are enabled, and its kernel serves again afterwards"
        )

    def put(self) -> None:
        """Put the kernels into the dispatcher; nothing where they are.

        Raises:
            ValueError: another library's are there, and this PyTorch lets one library override an operator.
        """
        if self._library is not None:
            return
        library = _open_library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
            try:
                for name, kernel in self._kernels.items():
                    library.impl(name, kernel, self.key)
            except RuntimeError as error:  # PyTorch 1 lets one library do so
                raise ValueError(
                    f"another library overrode the convolutions before{_named()}: {error}"
                ) from error
        self._library = library

    def take_out(self) -> None:
        """Take them out of the dispatcher."""
        self._library = None


def _of_script(forward: Callable[..., Any], *args: Any) -> Any:
    """``aten::_convolution`` by a kernel of ``aten::convolution``, unless a tracer is writing it down."""
    return call_inner(*args) if is_recorded() else forward(*args[:_SWITCHES])


def _named() -> str:
    """Who the other library is, where it is another copy of this one."""
    owner = startup.switched_on_by()
    return "" if owner in ("", startup.__file__) else f" ({owner})"
