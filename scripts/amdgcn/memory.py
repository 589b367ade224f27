"""The memory that a launch may touch: its tensors, at their addresses or at others.

A tensor is a span of bytes with an address. The address may be a false one, which lets offsets pass 2^31
without the memory for them: what lies between two spans is nobody's.

Waves of one launch do not see each other's stores in order: in WGP mode, Triton's, those of a workgroup run
on two compute units, each with an L0 cache of its own (LLVM's "User guide for AMDGPU backend", memory model
of gfx10), and workgroups run in any order. So no launch may load what it has stored. On the card a wave may
load what it stored itself; no kernel here does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .faults import MemoryRace, Misaligned, WildAccess

Bytes = NDArray[np.uint8]
U64 = np.uint64
SHAPES: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32}


@dataclass
class Span:
    """Bytes at an address.

    Attributes:
        name: of the argument; writable: False for what the kernel only reads.
    """

    address: int
    data: Bytes
    name: str = ""
    writable: bool = True


class Memory:
    """Spans, and the accesses of many lanes to them."""

    def __init__(self, spans: list[Span]) -> None:
        self.spans = sorted((span for span in spans if len(span.data)), key=lambda span: span.address)
        for first, second in zip(self.spans, self.spans[1:], strict=False):
            if first.address + len(first.data) > second.address:
                raise ValueError(f"{first.name} and {second.name} overlap")
        self._starts = np.array([span.address for span in self.spans], U64)
        # By address: bytes that are not 0 where the launch has stored.
        self._stored: dict[int, Span] = {}

    def load(self, addresses: NDArray[np.uint64], size: int) -> Any:
        """Values of ``size`` bytes (1, 2, 4) at addresses (n,), as unsigned integers of that size."""
        result = np.empty(len(addresses), SHAPES[size])
        for span, which, index in self._find(addresses, size):
            stored = self._stored.get(span.address)
            if stored is not None and _view(stored, size)[index].any():
                raise MemoryRace(f"{span.name} is loaded where the same launch has stored to it")
            result[which] = _view(span, size)[index]
        return result

    def store(self, addresses: NDArray[np.uint64], size: int, values: Any) -> None:
        """Store values of ``size`` bytes at addresses (n,)."""
        for span, which, index in self._find(addresses, size):
            if not span.writable:
                raise WildAccess(f"a store to {span.name}, which the kernel only reads")
            _view(span, size)[index] = values[which]
            if span.address not in self._stored:
                self._stored[span.address] = Span(span.address, np.zeros_like(span.data))
            _view(self._stored[span.address], size)[index] = np.iinfo(SHAPES[size]).max

    def _find(self, addresses: NDArray[np.uint64], size: int) -> list[tuple[Span, Any, NDArray[np.int64]]]:
        if not len(addresses):
            return []
        if (addresses & U64(size - 1)).any():
            raise Misaligned(
                f"{int(addresses[(addresses & U64(size - 1)) != 0][0]):#x} is no multiple of {size}"
            )
        least, most = int(addresses.min()), int(addresses.max())
        number = int(np.searchsorted(self._starts, U64(least), "right")) - 1
        if number >= 0:
            span = self.spans[number]
            if most + size <= span.address + len(span.data):
                return [(span, slice(None), self._index(span, addresses, size))]
        numbers = np.searchsorted(self._starts, addresses, "right").astype(np.int64) - 1
        found = []
        for number in np.unique(numbers):
            which = numbers == number
            inside = addresses[which]
            end = self.spans[number].address + len(self.spans[number].data) if number >= 0 else 0
            if int(inside.max()) + size > end:
                wrong = int(inside[inside.astype(U64) + U64(size) > U64(end)][0])
                near = (
                    f", {wrong - end} bytes after the end of {self.spans[number].name}" if number >= 0 else ""
                )
                raise WildAccess(f"{wrong:#x} is outside the launch's memory{near}")
            found.append((self.spans[number], which, self._index(self.spans[number], inside, size)))
        return found

    @staticmethod
    def _index(span: Span, addresses: NDArray[np.uint64], size: int) -> NDArray[np.int64]:
        return ((addresses - U64(span.address)) // U64(size)).astype(np.int64)


def _view(span: Span, size: int) -> Any:
    return span.data[: len(span.data) // size * size].view(SHAPES[size])
