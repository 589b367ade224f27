"""Outputs that the next convolution computes again for its backward pass, instead of keeping them.

Where a convolution follows a batch norm with its activation, autograd keeps two tensors of one size: the
norm's input for the norm, and the activation's output for the convolution. The second one follows from the
first, in one pass over it, as in InPlace-ABN (Rota Bulo et al., arXiv 1712.02616), but from the norm's input,
so that the activation needs no inverse.

PyTorch knows whether a kept tensor was changed in place; it does not ask where one is computed again. Changes
of what that reads (the norm's input, weight and bias) raise here, in PyTorch's words. An output that is
changed before the convolution reads it is kept, as always. Changed afterwards, it is computed as it was when
it was read: the gradient is right where PyTorch would have raised. What moves these tensors behind
autograd's back raises too (``Module.half``, another ``Tensor.data``, FSDP around single blocks); what is
written through ``data``, nobody sees. On a CPU the bits are the same only while PyTorch has as many threads
as in the forward pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..convolution.statistics import TileStatistics
from .problem import Parameters

if TYPE_CHECKING:
    from .operation import Implementation


class Recipe:
    """How to compute an output again.

    It holds neither input nor output. Where autograd lets the input go, because hooks move it elsewhere or a
    checkpoint computes it again, it stays gone, and convolutions keep the output.

    Args:
        by: computed the output.
        x, held, tiles: what it got.
        kept: what it returned for the backward pass.
        out: the output.

    Attributes:
        summed: whether the sums that the forward pass left in ``kept`` are there; the operation's backward
            pass writes there.
    """

    __slots__ = ("_at", "_by", "_held", "_kept", "_out", "_pixels", "_read", "_version", "_x", "summed")

    def __init__(
        self,
        by: Implementation,
        x: Tensor,
        held: Parameters,
        kept: Sequence[Tensor],
        tiles: TileStatistics | None,
        out: Tensor,
    ) -> None:
        self._by, self._held = by, held
        self._x, self._kept = weakref.ref(x), [weakref.ref(each) for each in kept]
        self._pixels, self.summed = None if tiles is None else tiles.pixels, True
        self._out, self._at, self._version = weakref.ref(out), out.data_ptr(), out._version
        self._read = [
            None if each is None else (each._version, each.data_ptr(), each.dtype)
            for each in (x, held.weight, held.bias)
        ]

    def makes(self, x: Tensor) -> bool:
        """Whether it makes this very tensor, as it is now."""
        return self._out() is x and x._version == self._version

    def instead_of(self, out: Tensor) -> Ingredients | Tensor:
        """What autograd is to keep: not the output, but a copy of it (autocast)."""
        x, kept = self._x(), [there for each in self._kept if (there := each()) is not None]
        if out.data_ptr() != self._at or x is None or len(kept) < len(self._kept):
            return out
        return self, x, kept

    def again(self, x: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The output, as it was, from what :meth:`instead_of` said.

        Raises:
            RuntimeError: what it is computed from is no longer what it was.
        """
        out = self._out()
        if out is not None and out._version == self._version:
            return out  # somebody keeps it
        for each, was in zip((x, self._held.weight, self._held.bias), self._read):  # noqa: B905 - quicker
            if each is not None and was != (each._version, each.data_ptr(), each.dtype):
                raise RuntimeError(_changed(each, was))
        if self.summed:
            return self._by.again(x, self._held, kept, self._pixels, True)
        out = self._by.again(x, self._held, kept, None, False)
        self._pixels, self.summed = None, True
        return out


def _changed(t: Tensor, was: tuple[int, int, torch.dtype] | None) -> str:
    """What happened to a tensor, in PyTorch's words where it has any."""
    version = was[0] if was else 0
    what = f"[{t.type()} {[*t.shape]}], which a batch norm read"
    if not t.untyped_storage().nbytes():
        return f"{what}, was freed before the backward pass, as FSDP does: set CONVROUTES_RECOMPUTE=off"
    if t._version == version:
        return f"{what}, was moved or converted before the backward pass: set CONVROUTES_RECOMPUTE=off"
    return (
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"{what}, is at version {t._version}; expected version {version} instead"
    )


Ingredients = tuple[Recipe, Tensor, Sequence[Tensor]]


def _restored(kept: Ingredients | Tensor) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    recipe, x, others = kept
    with torch.no_grad():
        return recipe.again(x, others)


def let_go(x: Tensor, out: Tensor) -> None:
    """Have the backward pass of a convolution compute its input again, where there is a recipe for that.

    Hooks for kept tensors that are on already stay: who moves them to the host, or computes a whole part of
    the model again, decides about this one too.

    Args:
        x: what the convolution read.
        out: what it returned; with a graph behind it where gradients are wanted.
    """
    recipe = getattr(x.grad_fn, "recipe", None)
    if not isinstance(recipe, Recipe) or not recipe.makes(x):
        return
    kept: Any = getattr(out.grad_fn, "_raw_saved_input", None)
    if kept is None:
        return
    try:
        kept.register_hooks(recipe.instead_of, _restored)
    except RuntimeError:  # there are hooks: PyTorch takes one pair, and is asked so in every version alike
        return
