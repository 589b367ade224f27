"""Concatenation in place: parts are written side by side into one tensor, and nothing is copied for it.

What is kept for the backward passes of those who read a part is then that tensor, which the reader of the
whole keeps anyway. The tensors that share the memory are no views of each other to autograd: it would check
one version for all, while each is written once, before anybody reads it. Who calls :func:`join` vouches that
nobody changes them afterwards (``blocks``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Whole:
    """What a concatenation along channels fills: (batch, channels, height, width), made with its first part.

    Args:
        channels: of all parts.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.tensor: Tensor | None = None
        self._stored = torch.contiguous_format
        self._like: tuple[Any, ...] = ()
        self._start = self._step = 0

    def room(self, first: int, x: Tensor) -> Tensor | None:
        """Where a part like ``x`` is to be written from channel ``first`` on; None where it does not fit.

        Args:
            x: (batch, channels of the part, height, width); the first one decides how all lie in memory.
        """
        if x.dim() != 4 or first + x.shape[1] > self.channels:
            return None
        if self.tensor is None:
            if x.is_contiguous():
                self._make(x, torch.contiguous_format)
            elif x.is_contiguous(memory_format=torch.channels_last):
                self._make(x, torch.channels_last)
        to = self.tensor
        return channels_of(to, first, x.shape[1]) if to is not None and self.takes(first, x) else None

    def has(self, first: int, x: Tensor) -> bool:
        """Whether ``x`` is what was written from channel ``first`` on."""
        return (
            self.tensor is not None
            and x.data_ptr() == self._start + first * self._step
            and x.stride() == self.tensor.stride()
            and self._fits(first, x)
        )

    def takes(self, first: int, x: Tensor) -> bool:
        """Whether ``x``, a part from channel ``first`` on, may be copied there: it lies as the whole does."""
        return self._fits(first, x) and x.is_contiguous(memory_format=self._stored)

    def after(self, x: Tensor) -> Part | None:
        """The place behind a first part; None where that was not written here: then all is to be copied."""
        return Part(self, x.shape[1]) if self.has(0, x) else None

    def _fits(self, first: int, x: Tensor) -> bool:
        shape = x.shape
        return (
            len(shape) == 4
            and first + shape[1] <= self.channels
            and (shape[0], shape[2], shape[3], x.dtype, x.device) == self._like
        )

    def _make(self, x: Tensor, stored: torch.memory_format) -> None:
        n, _, height, width = x.shape
        to = torch.empty(
            (n, self.channels, height, width), dtype=x.dtype, device=x.device, memory_format=stored
        )
        self.tensor, self._stored, self._like = to, stored, (n, height, width, to.dtype, to.device)
        self._start, self._step = to.data_ptr(), to.stride(1) * to.element_size()


class Part(NamedTuple):
    """A place in a :class:`Whole`: from channel ``first`` on."""

    whole: Whole
    first: int

    def room(self, x: Tensor) -> Tensor | None:
        """See :meth:`Whole.room`."""
        return self.whole.room(self.first, x)

    def behind(self, x: Tensor) -> Part:
        """The place behind ``x``, the part that belongs here."""
        return Part(self.whole, self.first + x.shape[1])


def channels_of(t: Tensor, first: int, count: int) -> Tensor:
    """Some channels of a tensor, in its memory, without being a view of it."""
    n, _, height, width = t.shape
    at = t.storage_offset() + first * t.stride(1)
    alike = torch.empty(0, dtype=t.dtype, device=t.device)
    return alike.set_(t.untyped_storage(), at, (n, count, height, width), t.stride())


class _Sum(torch.autograd.Function):
    """The sum of two tensors alike, written into the place of a part."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, part: Part) -> Tensor:
        return torch.add(a, b, out=part.room(b))  # without room: a tensor of its own

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, grad, None


class _Join(torch.autograd.Function):
    """The whole, of which the parts that lie elsewhere are copied."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, counts: list[int], elsewhere: list[int], *parts: Tensor) -> Tensor:
        ctx.counts = counts
        for each in elsewhere:
            channels_of(whole, sum(counts[:each]), counts[each]).copy_(parts[each])
        return channels_of(whole, 0, whole.shape[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *torch.split(grad, ctx.counts, 1))


def add(a: Tensor, b: Tensor, part: Part | None) -> Tensor:
    """``a + b``, in the place of a part if it has one that fits."""
    if (
        part is None
        or type(a) is not Tensor
        or type(b) is not Tensor
        or (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device)
    ):
        return a + b
    found: Tensor = _Sum.apply(a, b, part)
    return found


def join(whole: Whole, parts: Sequence[Tensor]) -> Tensor:
    """``torch.cat(parts, 1)``, without a copy of the parts that were written in place.

    Whoever reads it must not change it: readers of a part have kept that for their backward passes. Where a
    part neither lies in its place nor lies as the whole does, it is ``cat`` that decides how the answer lies.
    """
    counts, elsewhere, first = [], [], 0
    for index, each in enumerate(parts):
        if type(each) is not Tensor:
            return torch.cat(tuple(parts), 1)
        if not whole.has(first, each):
            if not whole.takes(first, each):
                return torch.cat(tuple(parts), 1)
            elsewhere.append(index)
        counts.append(each.shape[1])
        first += counts[-1]
    if whole.tensor is None or first != whole.channels:
        return torch.cat(tuple(parts), 1)
    found: Tensor = _Join.apply(whole.tensor, counts, elsewhere, *parts)
    return found
