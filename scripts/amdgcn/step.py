"""An instruction, ready to execute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from .assembly import Instruction
from .team import Team
from .waits import Owed

if TYPE_CHECKING:
    from .machine import Machine


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
    run: Callable[[Machine, Team], None] | None = None
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
