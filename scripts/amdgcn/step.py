"""An instruction, ready to execute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from .assembly import Instruction
from .lds import Lds
from .memory import Memory
from .team import Team
from .waits import Owed


class Surroundings(Protocol):
    """What an instruction reaches outside the registers of its waves.

    Attributes:
        memory: of the launch; lds: of the workgroups that execute together.
    """

    memory: Memory
    lds: Lds

    def traffic(
        self, team: Team, instruction: Instruction, at: Any, on: Any, size: int, stores: bool
    ) -> None:
        """An access to memory is about to happen: ``size`` bytes at each of the addresses (n,)."""

    def banks(
        self, team: Team, instruction: Instruction, at: Any, on: Any, size: int, shifts: list[int]
    ) -> None:
        """An access to LDS is about to happen: ``size`` bytes at offsets (n,) plus each shift."""


class Control(Enum):
    """What an instruction that is no computation does to the program counter."""

    BRANCH = "branch"
    BARRIER = "barrier"
    END = "end"


@dataclass
class Step:
    """One instruction.

    Attributes:
        unit: valu, trans, salu, smem, vmem, lds, matrix, wait or other: which part of a compute unit does it.
        run: does it; None for what only moves the program counter.
        reads, writes: registers; uses: both.
        needs: those of ``reads`` that must hold a value. Vector arithmetic may read others, as the compiler
            lets it for lanes and halves that nothing uses; what comes of it is poisoned.
        counter: of the loads that come back in order; "" for all else.
        control, taken, target: of a branch: which waves take it, and where to.
    """

    source: Instruction
    unit: str
    run: Callable[[Surroundings, Team], None] | None = None
    reads: Owed = frozenset()
    writes: Owed = frozenset()
    control: Control | None = None
    taken: Callable[[Team], object] | None = None
    target: int = 0
    needs: Owed | None = None
    counter: str = ""
    uses: Owed = field(init=False)

    def __post_init__(self) -> None:
        self.uses = self.reads | self.writes
        if self.needs is None:
            self.needs = frozenset() if self.unit in ("valu", "trans", "matrix", "lds") else self.reads
