"""How often the dot products of a step read shared memory, conflicts included, from a kernel's TTGIR.

Which element a thread needs follows from the layout of the product, and where it lies from that of the
tensor in shared memory. An access costs as many passes as the busiest of the 32 banks has different words.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

_BLOCKED = re.compile(
    r"(#\w+) = #ttg\.blocked<\{sizePerThread = \[(\d+), (\d+)\], threadsPerWarp = \[(\d+), (\d+)\], "
    r"warpsPerCTA = \[(\d+), (\d+)\], order = \[(\d), \d\]"
)
_SHARED = re.compile(
    r"(#\w+) = #ttg\.swizzled_shared<\{vec = (\d+), perPhase = (\d+), maxPhase = (\d+), order = \[(\d), \d\]"
)
_LOAD = re.compile(
    r"ttg\.local_load .*memdesc<(\d+)x(\d+)xf32, (#\w+), .*-> .*dot_op<\{opIdx = (\d), parent = (#\w+)\}"
)


class Blocked(NamedTuple):
    """How a product is spread: elements a thread, threads a warp, warps a program; the quick axis."""

    size: tuple[int, int]
    threads: tuple[int, int]
    warps: tuple[int, int]
    quick: int


class Shared(NamedTuple):
    """How a tensor lies in shared memory: runs of ``vec`` words, exchanged among ``phases`` rows."""

    vec: int
    rows_a_phase: int
    phases: int
    quick: int


def passes(ttgir: str) -> int:
    """Passes over the banks that all warps of a program take for the products of one step, fp32."""
    blocked = {
        name: Blocked((int(a), int(b)), (int(c), int(d)), (int(e), int(f)), int(order))
        for name, a, b, c, d, e, f, order in _BLOCKED.findall(ttgir)
    }
    shared = {name: Shared(*map(int, rest)) for name, *rest in _SHARED.findall(ttgir)}
    loads = {match.groups() for match in _LOAD.finditer(ttgir)}
    return sum(
        _operand((int(a), int(b)), shared[memory], int(operand), blocked[parent])
        for a, b, memory, operand, parent in loads
    )


def _operand(shape: tuple[int, int], memory: Shared, axis: int, product: Blocked) -> int:
    """Of one operand: that of index 0 has the product's rows on axis 0, that of index 1 its columns on 1."""
    lanes = np.arange(32)
    slow = product.threads[product.quick]
    place = lanes % slow if axis == product.quick else lanes // slow
    size, span = product.size[axis], product.threads[axis] * product.size[axis]
    width = 4 if memory.phases == 1 else min(4, memory.vec)
    total = 0
    for repeat in range(0, shape[axis], span * product.warps[axis]):
        own = repeat + place * size
        if memory.quick == axis:
            step = min(width, size)
            for first in range(0, size, step):
                words = own[:, None] + first + np.arange(step)
                total += sum(_busiest(_address(words, row, shape, memory)) for row in range(shape[1 - axis]))
        else:
            step = min(width, shape[1 - axis])
            for element in range(size):
                for first in range(0, shape[1 - axis], step):
                    words = np.broadcast_to(first + np.arange(step), (32, step))
                    total += _busiest(_address(words, (own + element)[:, None], shape, memory))
    return total * product.warps[0] * product.warps[1]


def _address(quick: np.ndarray, slow: np.ndarray | int, shape: tuple[int, int], memory: Shared) -> np.ndarray:
    """Words from the tensor's start."""
    phase = np.asarray(slow) // memory.rows_a_phase % memory.phases
    place = (quick // memory.vec ^ phase) * memory.vec + quick % memory.vec
    return np.asarray(slow * shape[memory.quick] + place)


def _busiest(words: np.ndarray) -> int:
    """Different words of the bank that has most."""
    return int(np.bincount(np.unique(words) % 32).max())
