"""Waves that execute one instruction together: their registers, one row a wave, one column a lane."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .assembly import NAMED
from .waits import Register, Waits

Words = NDArray[np.uint32]
Mask = NDArray[np.bool_]

LANES = 32
# A NaN as fp32 and as fp16, far outside any tensor as an address.
POISON = np.uint32(0xFFC5FEA5)
EXEC = NAMED["exec_lo"]
SCALARS = 128


def lanes_of(bits: Words) -> Mask:
    """(waves,) words to (waves, 32) flags."""
    flags = np.unpackbits(np.ascontiguousarray(bits).view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    return flags.view(np.bool_)


def bits_of(flags: Mask) -> Words:
    """(waves, 32) flags to (waves,) words."""
    return np.packbits(flags, axis=1, bitorder="little").view(np.uint32)[:, 0]


class Team:
    """State of the waves that share a program counter.

    Attributes:
        v: vector registers (registers, waves, 32); vf: the same as floats; s: scalar registers (128, waves).
        scc: the scalar condition (waves,); on: lanes that execute (waves, 32), None where all do.
        wave: number of each wave in its workgroup; group: number of its workgroup.
        waits: accesses under way; written: registers that hold a value.
        signalled: whether the waves have announced themselves at a split barrier (gfx12).
    """

    __slots__ = ("group", "on", "pc", "s", "scc", "signalled", "v", "vf", "waits", "wave", "written")

    def __init__(
        self, v: Words, s: Words, scc: Mask, wave: NDArray[np.int64], group: NDArray[np.int64]
    ) -> None:
        self.v, self.vf, self.s, self.scc = v, v.view(np.float32), s, scc
        self.wave, self.group = wave, group
        self.pc = 0
        self.waits = Waits()
        self.written: set[Register] = set()
        self.on: Mask | None = None
        self.signalled = False
        self.refresh()

    @property
    def size(self) -> int:
        """Waves."""
        return len(self.wave)

    def refresh(self) -> None:
        """Read the lanes that execute from the exec register."""
        bits = self.s[EXEC]
        self.on = None if (bits == 0xFFFFFFFF).all() else lanes_of(bits)

    def lanes(self) -> Mask:
        """Lanes that execute (waves, 32)."""
        return np.ones((self.size, LANES), bool) if self.on is None else self.on

    def part(self, which: Mask) -> Team:
        """Some of the waves, as a team of their own."""
        team = Team(
            np.ascontiguousarray(self.v[:, which]), np.ascontiguousarray(self.s[:, which]), self.scc[which],
            self.wave[which], self.group[which],
        )  # fmt: skip
        team.pc, team.waits, team.written = self.pc, self.waits.copy(), set(self.written)
        team.signalled = self.signalled
        return team

    def join(self, other: Team) -> Team:
        """Both teams as one; they are at the same instruction."""
        team = Team(
            np.concatenate([self.v, other.v], axis=1), np.concatenate([self.s, other.s], axis=1),
            np.concatenate([self.scc, other.scc]), np.concatenate([self.wave, other.wave]),
            np.concatenate([self.group, other.group]),
        )  # fmt: skip
        team.pc, team.waits = self.pc, self.waits.meet(other.waits)
        team.signalled = self.signalled or other.signalled
        team.written = self.written | other.written
        return team
