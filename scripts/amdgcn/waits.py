"""Who still owes which register: the counters of outstanding accesses, and the waits for them.

RDNA counts the accesses of a wave and lets it run on; ``s_waitcnt vmcnt(n)`` stops it until at most n loads
are under way ("RDNA" ISA, 4.4 "Manually Inserted Wait States" and "S_WAITCNT"; gfx12: RDNA4 ISA, 5.7 "Data
dependency resolution", with a counter for each kind). Loads from memory come back in order, LDS too; scalar
loads in any order, so with one of them under way nothing but a wait for zero says which has arrived.

A barrier needs no wait for LDS: accesses of all waves to it are executed in one order, that of their issue
(LLVM's SIMemoryLegalizer: "LDS operations for all waves are executed in a total global ordering"). Triton 3.8
leaves the wait out.

The queues belong to a team of waves that execute together. Where two teams meet the longer queue of each
counter wins, entry by entry from its newest end, as the compiler's own pass has to assume.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .faults import MissingWait, UnknownInstruction

Register = tuple[str, int]
Owed = frozenset[Register]

# What gfx10 and gfx11 count as one (lgkm: LDS and scalar loads), gfx12 counts as two.
LOAD, STORE, LDS, SCALAR = "load", "store", "lds", "scalar"
# Cycles from issue to use. Memory: 226 ns, measured on a Radeon RX 6900 XT ("Measuring GPU Memory Latency",
# chipsandcheese.com, 2021; none was found for RDNA1), at 1.56 GHz. LDS and scalar loads are assumptions. A
# store is not waited for.
LATENCY = {LOAD: 350.0, STORE: 0.0, LDS: 64.0, SCALAR: 100.0}
GFX12 = {
    "loadcnt": (LOAD,), "storecnt": (STORE,), "dscnt": (LDS,), "kmcnt": (SCALAR,),
    "loadcnt_dscnt": (LOAD, LDS),
    "storecnt_dscnt": (STORE, LDS), "samplecnt": (), "bvhcnt": (), "expcnt": (), "alu": (), "event": (),
    "xcnt": (),
}  # fmt: skip
GFX10 = {"vmcnt": (LOAD,), "lgkmcnt": (LDS, SCALAR), "expcnt": (), "vscnt": (STORE,)}


@dataclass
class Waits:
    """The accesses under way of one team, oldest first.

    Attributes:
        queues: by counter; registers that the access will write (none for a store).
        owed: all of those registers, for a quick look.
        clock: cycles that a wave on its own would have taken so far, where somebody counts them (``spend``).
        due: for each entry of ``queues``, the cycle at which the access will have come back.
    """

    queues: dict[str, list[Owed]] = field(default_factory=lambda: {LOAD: [], STORE: [], LDS: [], SCALAR: []})
    owed: set[Register] = field(default_factory=set)
    clock: float = 0.0
    due: dict[str, list[float]] = field(default_factory=lambda: {LOAD: [], STORE: [], LDS: [], SCALAR: []})

    def issue(self, counter: str, registers: Owed = frozenset()) -> None:
        """An access starts."""
        self.queues[counter].append(registers)
        self.due[counter].append(self.clock + LATENCY[counter])
        self.owed |= registers

    def spend(self, cycles: float) -> None:
        """The wave has issued an instruction."""
        self.clock += cycles

    def finish(self, counters: tuple[str, ...], left: int) -> None:
        """A wait until at most ``left`` accesses of the counters together are under way."""
        if not counters:
            return
        if left and self.queues[SCALAR] and SCALAR in counters:
            return
        for counter in counters:
            queue, due = self.queues[counter], self.due[counter]
            done = max(0, len(queue) - left)
            self.clock = max(self.clock, *due[:done], 0.0)
            del queue[:done], due[:done]
        self.owed = {register for queue in self.queues.values() for each in queue for register in each}

    def check(self, registers: Owed, loaded: Owed = frozenset(), counter: str = "") -> None:
        """An instruction is about to use registers.

        Args:
            loaded: those that it loads itself: one that an earlier load of the same kind owes is no fault,
                since they come back in order (the other half of it, as a rule).
        """
        if self.owed and not self.owed.isdisjoint(registers):
            wrong = self.owed & registers
            if counter:
                others = [each for name, queue in self.queues.items() if name != counter for each in queue]
                wrong -= loaded.difference(*others)
            if not wrong:
                return
            kind, index = min(wrong)
            raise MissingWait(f"{kind}{index} is used before the load that writes it has been waited for")

    def copy(self) -> Waits:
        queues = {counter: list(queue) for counter, queue in self.queues.items()}
        due = {counter: list(queue) for counter, queue in self.due.items()}
        return Waits(queues, set(self.owed), self.clock, due)

    def meet(self, other: Waits) -> Waits:
        """What may be under way after two teams became one."""
        met = Waits()
        for counter, mine in self.queues.items():
            theirs = other.queues[counter]
            length = max(len(mine), len(theirs))
            padded = [[frozenset[Register]()] * (length - len(each)) + each for each in (mine, theirs)]
            met.queues[counter] = [a | b for a, b in zip(*padded, strict=True)]
            times = [[0.0] * (length - len(each)) + each for each in (self.due[counter], other.due[counter])]
            met.due[counter] = [max(pair) for pair in zip(*times, strict=True)]
        met.owed, met.clock = self.owed | other.owed, max(self.clock, other.clock)
        return met


def parse_wait(name: str, arguments: str) -> list[tuple[tuple[str, ...], int]]:
    """What a wait instruction waits for: counters, and how many accesses it leaves under way."""
    if name == "s_waitcnt":
        found = re.findall(r"(\w+)\((\d+)\)", arguments)
        if not found:
            raise UnknownInstruction(f"{name} {arguments}")
        return [(GFX10[counter], int(left)) for counter, left in found]
    if name.startswith("s_waitcnt_"):
        counter = name.removeprefix("s_waitcnt_")
        if counter == "depctr":
            return []
        return [(GFX10[counter], int(arguments.split(",")[-1].strip(), 0))]
    counter = name.removeprefix("s_wait_")
    if counter in ("idle",):
        return [((LOAD,), 0), ((STORE,), 0), ((LDS,), 0), ((SCALAR,), 0)]
    if counter not in GFX12:
        raise UnknownInstruction(f"{name} {arguments}")
    if not GFX12[counter]:
        return []
    value = int(arguments, 0)
    if counter.startswith("loadcnt_"):
        return [((LOAD,), value >> 8 & 63), ((LDS,), value & 63)]
    if counter.startswith("storecnt_"):
        return [((STORE,), value >> 8 & 63), ((LDS,), value & 63)]
    return [(GFX12[counter], value)]
