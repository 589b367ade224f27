"""LDS of many workgroups, and who touched which part of it since the last barrier.

The barrier model: a workgroup's waves run freely between two barriers, so within that stretch no word may be
written by one wave and read or written by another, in whatever order this interpreter executes them. Two
waves that write the same value to a word agree, and so are let be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .faults import LdsBounds, LdsRace, Misaligned, Unwritten

SHAPES: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32}


class Lds:
    """LDS of ``groups`` workgroups of ``waves`` waves, ``size`` bytes each.

    Args:
        grain: bytes of the smallest access of the kernel, for which races are told apart.
    """

    def __init__(self, groups: int, waves: int, size: int, grain: int) -> None:
        self.size = -(-size // 16) * 16
        self.asked = size
        self.grain = grain
        self._data = np.zeros(groups * self.size, np.uint8)
        slots = self.size // grain
        self._slots, self._groups = slots, groups
        self._known = np.zeros(groups * slots, bool)
        self._read = np.zeros((waves, groups * slots), bool)
        self._wrote = np.zeros((waves, groups * slots), bool)

    def load(self, group: Any, wave: Any, at: Any, size: int) -> Any:
        """Values of ``size`` bytes at offsets ``at`` of the LDS of ``group``, read by ``wave``; all are
        (n,).
        """
        first = self._check(group, at, size)
        for k in range(size // self.grain):
            slot = first + k
            if not self._known[slot].all():
                raise Unwritten(f"LDS at {int(at[~self._known[slot]][0])} was never written")
            others = self._wrote[:, slot].sum(0) - self._wrote[wave, slot]
            if (others[~self._wrote[wave, slot]] > 0).any():
                raise LdsRace("a word is read that another wave has written since the last barrier")
            self._read[wave, slot] = True
        return self._data.view(SHAPES[size])[(group * self.size + at) // size]

    def store(self, group: Any, wave: Any, at: Any, size: int, values: Any) -> None:
        """Store values (n,); see ``load``."""
        first = self._check(group, at, size)
        view = self._data.view(SHAPES[size])
        index = (group * self.size + at) // size
        changed = view[index] != values
        for k in range(size // self.grain):
            slot = first + k
            others = (self._read[:, slot] | self._wrote[:, slot]).sum(0) - (
                self._read[wave, slot] | self._wrote[wave, slot]
            )
            if (changed & (others > 0)).any():
                raise LdsRace("a word is overwritten that another wave has used since the last barrier")
        view[index] = values
        if (view[index] != values).any():
            raise LdsRace("lanes write different values to one word")
        for k in range(size // self.grain):
            self._wrote[wave, first + k] = True
            self._known[first + k] = True

    def barrier(self, groups: Any) -> None:
        """All waves of some workgroups have passed a barrier."""
        for flags in (self._read, self._wrote):
            flags.reshape(len(flags), self._groups, self._slots)[:, groups] = False

    def _check(self, group: Any, at: Any, size: int) -> Any:
        if len(at) and int(at.max()) + size > self.asked:
            raise LdsBounds(f"LDS at {int(at.max())}, of {self.asked} bytes")
        if (at & (size - 1)).any():
            raise Misaligned(f"LDS at {int(at[(at & (size - 1)) != 0][0])} is no multiple of {size}")
        return group * self._slots + at // self.grain


def offsets(groups: Any, lanes: Any) -> NDArray[np.int64]:
    """The workgroup of each lane that is on: (waves,) and (waves, 32) flags to (n,)."""
    return np.asarray(np.broadcast_to(np.asarray(groups)[:, None], lanes.shape)[lanes])
