"""What executing a kernel did, counted: instructions by unit, cache lines, LDS passes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .step import Step

LINE = 128
"""Bytes of a cache line of RDNA's L0, L1 and L2."""
QUARTER_RATE = ("v_mul_lo_u32", "v_mul_hi_u32", "v_mul_hi_i32", "v_mad_co_u64_u32", "v_mad_co_i64_i32")
"""Products of 32-bit integers, which like transcendental functions take four cycles of a SIMD."""
BANKS = 32
"""Banks of 4 bytes of the half of LDS that a compute unit reaches in one cycle ("RDNA 1.0 ISA", 10.1)."""


@dataclass
class Counters:
    """Counts of the workgroups that were executed.

    Attributes:
        executed: for each instruction of the program, how many waves executed it.
        lines, halves: distinct 128-byte and 64-byte pieces that each access of a wave touched, summed.
        useful: bytes that lanes asked for; stored: those of stores.
        touched: distinct lines of each workgroup, summed: what a cache that forgets nothing would fetch.
        lds_cycles: passes over the banks, conflicts included; lds_least: without them.
        workgroups, waves: executed.
        alone: cycles that each executed wave would take on its own, waits included, summed.
    """

    steps: list[Step]
    executed: Any = field(init=False)
    lines: int = 0
    halves: int = 0
    useful: int = 0
    stored: int = 0
    lds_cycles: int = 0
    lds_least: int = 0
    workgroups: int = 0
    waves: int = 0
    alone: float = 0.0
    cycles: list[float] = field(init=False)
    _touched: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.executed = np.zeros(len(self.steps), np.int64)
        self.cycles = [issue_cycles(step) for step in self.steps]

    def issued(self, pc: int, team: Any) -> None:
        """All waves of a team issue an instruction."""
        self.executed[pc] += team.size
        team.waits.spend(self.cycles[pc])

    def ended(self, team: Any) -> None:
        """The waves of a team have ended."""
        self.alone += team.waits.clock * team.size

    def memory(self, team: Any, instruction: Any, at: Any, on: Any, size: int, stores: bool) -> None:
        """Count an access of lanes at addresses (n,), ``size`` bytes each."""
        wave = np.broadcast_to(np.arange(team.size)[:, None], on.shape)[on].astype(np.uint64)
        for width in (LINE, LINE // 2):
            first, last = at // np.uint64(width), (at + np.uint64(size - 1)) // np.uint64(width)
            pieces = np.unique(np.concatenate([wave << np.uint64(48) | first, wave << np.uint64(48) | last]))
            if width == LINE:
                self.lines += len(pieces)
                self._touched.update((pieces & np.uint64((1 << 48) - 1)).tolist())
            else:
                self.halves += len(pieces)
        self.useful += len(at) * size
        if stores:
            self.stored += len(at) * size

    def lds(self, team: Any, instruction: Any, at: Any, on: Any, size: int, shifts: list[int]) -> None:
        """Count the passes of an access: 32 banks serve 128 bytes a pass, each bank one word."""
        wave = np.broadcast_to(np.arange(team.size)[:, None], on.shape)[on]
        lane = np.broadcast_to(np.arange(32), on.shape)[on]
        words = max(1, size // 4)
        part = lane // (32 // words)  # lanes served together
        for shift in shifts:
            word = (at + shift) // 4
            every = np.concatenate([word + k for k in range(words)])
            key = (np.tile(wave * words + part, words)).astype(np.int64)
            pairs = np.unique(np.stack([key, every]), axis=1)
            load = np.zeros((team.size * words, BANKS), np.int64)
            np.add.at(load, (pairs[0], pairs[1] % BANKS), 1)
            self.lds_cycles += int(load.max(1).sum())
            self.lds_least += int((load.sum(1) > 0).sum())

    @property
    def touched(self) -> int:
        """Distinct lines of all executed workgroups."""
        return len(self._touched)

    def busy(self) -> float:
        """Cycles for which vector instructions of the executed waves occupy a SIMD."""
        units = ("valu", "trans", "matrix")
        return float(
            sum(
                cycles * count
                for step, cycles, count in zip(self.steps, self.cycles, self.executed.tolist(), strict=True)
                if step.unit in units
            )
        )

    def by_unit(self) -> dict[str, int]:
        """Instructions of waves, by the unit that executes them; dual ones once, as "dual"."""
        found: dict[str, int] = {}
        for step, count in zip(self.steps, self.executed.tolist(), strict=True):
            unit = "dual" if step.source.dual else step.unit
            found[unit] = found.get(unit, 0) + count
        return found


def issue_cycles(step: Step) -> float:
    """Cycles for which an instruction occupies the unit that executes it, for a wave of 32 lanes.

    "RDNA Architecture" (AMD, 2019): a SIMD takes a wave32 instruction each cycle; transcendental functions
    have a quarter of its lanes. Products of 32-bit integers are taken to have as many. Hints cost nothing
    here. A matrix product of 16 x 16 x 16 takes 32 cycles, 512 operations a cycle of a compute unit.
    """
    if step.unit in ("other", "wait"):
        return 0.0
    if step.unit == "matrix":
        return 32.0
    names = [half.name for half in (step.source, step.source.second) if half is not None]
    return 4.0 if step.unit == "trans" or any(name in QUARTER_RATE for name in names) else 1.0
