"""Planted faults: one instruction of a kernel dropped, and whether the run notices.

A run notices by raising a fault or by wrong numbers. What it does not notice must be shown to be redundant on
the problems that were run, by watching the sound kernel (``Watcher``): an instruction that never changed a
register, whose results nothing used, a wait with nothing to wait for, a barrier between whose sides no word
of LDS is shared (the race check has then looked at all of them), or a jump around code that no lane would
execute.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from .faults import Fault
from .launch import Kernel
from .operands import put
from .scalar import SAVE_EXEC, SCALAR
from .step import Control, Step
from .team import EXEC, POISON, Team

NOTICED, WRONG, REDUNDANT, MISSED = "a fault", "wrong numbers", "redundant", "missed"
SCC = ("scc", 0)
# A number, and as an integer one that no offset or count is.
FINITE = np.float32(3e5).view(np.uint32)
Case = Callable[[Callable[[Kernel], Kernel]], bool]


@dataclass
class Drop:
    """What came of dropping one instruction.

    Attributes:
        found: NOTICED, WRONG, REDUNDANT or MISSED; why: the fault, or what shows that it is redundant.
    """

    kernel: str
    index: int
    text: str
    found: str
    why: str = ""


@dataclass
class Watcher:
    """What each instruction of a sound run did.

    Attributes:
        changed: instructions that changed a register, exec or the condition for some wave; used: those of
            whose results some instruction read one; ran: those that were executed; waited: waits that
            something was under way for; jumped: branches that some wave with a lane on took.
    """

    changed: set[int] = field(default_factory=set)
    used: set[int] = field(default_factory=set)
    ran: set[int] = field(default_factory=set)
    waited: set[int] = field(default_factory=set)
    jumped: set[int] = field(default_factory=set)
    _writers: dict[tuple[str, int], set[int]] = field(default_factory=dict)

    def watch(self, kernel: Kernel) -> Kernel:
        """The kernel with every step watched."""
        return replace(kernel, steps=[self._watched(k, step) for k, step in enumerate(kernel.steps)])

    def _watched(self, k: int, step: Step) -> Step:
        watched = replace(step, run=lambda machine, team: self._run(k, step, machine, team))
        if step.taken is not None:
            watched.taken = lambda team: self._branch(k, step, team)
        return watched

    def _run(self, k: int, step: Step, machine: Any, team: Team) -> None:
        self.ran.add(k)
        reads_condition = any(part in step.source.name for part in ("scc", "cselect", "_ci_"))
        for register in (*step.reads, *((SCC,) if reads_condition else ())):
            self.used |= self._writers.get(register, set())
        if step.run is None:
            return
        before = [_value(team, register) for register in step.writes]
        condition, on = team.scc.copy(), team.s[EXEC].copy()
        under_way = {name: len(queue) for name, queue in team.waits.queues.items()}
        step.run(machine, team)
        if step.unit == "wait" and under_way != {name: len(q) for name, q in team.waits.queues.items()}:
            self.waited.add(k)
        if not step.writes and step.unit in ("vmem", "lds"):
            self.changed.add(k)
            self.used.add(k)
        if (team.s[EXEC] != on).any():
            self.changed.add(k)
            self.used.add(k)
        after = [_value(team, register) for register in step.writes]
        if any((x != y).any() for x, y in zip(before, after, strict=True)) or (team.scc != condition).any():
            self.changed.add(k)
        for register in (*step.writes, *((SCC,) if step.unit == "salu" else ())):
            self._writers.setdefault(register, set()).add(k)

    def _branch(self, k: int, step: Step, team: Team) -> Any:
        assert step.taken is not None
        taken = np.asarray(step.taken(team))
        if (taken & (team.s[EXEC] != 0)).any():
            self.jumped.add(k)
        return taken

    def redundant(self, k: int, step: Step) -> str:
        """Why the instruction is redundant on what was run; "" if it is not."""
        if k not in self.ran:
            return "never executed"
        if step.control is Control.BRANCH:
            return "" if k in self.jumped else "never taken by a wave with a lane on"
        if step.control is Control.BARRIER:
            return "no word of LDS is shared across it"
        if step.unit == "wait":
            return "nothing under way" if k not in self.waited else "another wait comes before any use"
        if k not in self.changed:
            return "never changed a register"
        return "" if k in self.used else "no result of it is used"


def _value(team: Team, register: tuple[str, int]) -> Any:
    kind, index = register
    return (team.v if kind == "v" else team.s)[index].copy()


def dropped(kernel: Kernel, k: int) -> Kernel:
    """The kernel without one instruction; places of labels stay."""
    steps = list(kernel.steps)
    steps[k] = Step(steps[k].source, "other")
    return replace(kernel, steps=steps)


def spoiled(kernel: Kernel, k: int, condition: bool, value: Any = POISON) -> Kernel:
    """The kernel with the results of one instruction spoiled: with ``condition`` its condition turned around,
    else ``value`` in vector registers, in the lanes that execute it, and the complement in scalar ones.
    """
    step = kernel.steps[k]

    def run(machine: Any, team: Team) -> None:
        assert step.run is not None
        step.run(machine, team)
        if condition:
            team.scc = ~team.scc
            return
        for kind, index in step.writes:
            if kind == "v":
                put(team, index, value)
            else:
                team.s[index] = ~team.s[index]
        team.refresh()

    steps = list(kernel.steps)
    steps[k] = replace(step, run=run)
    return replace(kernel, steps=steps)


def sets_condition(step: Step) -> bool:
    """Whether the instruction sets the scalar condition."""
    name = step.source.name
    return name in SAVE_EXEC or (name in SCALAR and SCALAR[name].sets != "")


@dataclass
class Planter:
    """Drops instructions of the kernel ``name`` in runs of some cases.

    Attributes:
        cases: each runs a problem with the kernels that a function makes of the sound ones, and returns
            whether the numbers are right.
    """

    name: str
    cases: list[Case]
    kernel: Kernel | None = None
    _watchers: list[Watcher] = field(default_factory=list)

    def __post_init__(self) -> None:
        for case in self.cases:
            watcher = Watcher()
            if not case(partial(self._changed, change=watcher.watch)):
                raise ValueError(f"{self.name} is wrong before anything is planted")
            self._watchers.append(watcher)

    def _changed(self, kernel: Kernel, change: Callable[[Kernel], Kernel]) -> Kernel:
        if kernel.program.name != self.name:
            return kernel
        self.kernel = self.kernel or kernel
        if self.kernel.program is not kernel.program:
            raise ValueError(f"the problems need different variants of {self.name}")
        return change(kernel)

    def places(self, kind: str) -> list[int]:
        """Instructions of a kind: "barrier", "wait", or "any" other that does something."""
        assert self.kernel is not None
        steps = list(enumerate(self.kernel.steps))
        if kind == "barrier":
            return [k for k, step in steps if step.control is Control.BARRIER]
        if kind == "wait":
            return [k for k, step in steps if step.unit == "wait"]
        return [
            k for k, step in steps
            if step.unit not in ("wait", "other") or step.control is Control.BRANCH
        ]  # fmt: skip

    def drop(self, k: int) -> Drop:
        """Drop one instruction and run the cases until one notices."""
        assert self.kernel is not None
        step = self.kernel.steps[k]
        drop = partial(Drop, self.name, k, step.source.text)
        found = self._notices(partial(dropped, k=k))
        if found is not None:
            return drop(*found)
        reasons = [watcher.redundant(k, step) for watcher in self._watchers]
        if all(reasons):
            return drop(REDUNDANT, reasons[0])
        if step.run is not None and not self._needs(k, step):
            return drop(
                REDUNDANT, "no output depends on it: NaN or the complement in its place changes nothing"
            )
        finite = partial(spoiled, k=k, condition=False, value=FINITE)
        if (
            step.unit == "valu"
            and {kind for kind, _ in step.writes} == {"v"}
            and self._notices(finite) is None
        ):
            return drop(
                REDUNDANT, "it keeps NaN away from a product with zero: a number in its place does too"
            )
        return drop(MISSED)

    def _needs(self, k: int, step: Step) -> bool:
        """Whether an output depends on a result of the instruction, or whether it has none."""
        results = [False] * bool(step.writes) + [True] * sets_condition(step)
        return not results or any(
            self._notices(partial(spoiled, k=k, condition=condition)) is not None for condition in results
        )

    def _notices(self, change: Callable[[Kernel], Kernel]) -> tuple[str, str] | None:
        """What the first case that notices a changed kernel says."""
        found = (_verdict(case, partial(self._changed, change=change)) for case in self.cases)
        return next((each for each in found if each is not None), None)

    def drops(self, kind: str, count: int | None = None, seed: int = 0) -> Iterator[Drop]:
        """Drop all instructions of a kind, or ``count`` of them at random."""
        places = self.places(kind)
        if count is not None and count < len(places):
            places = sorted(random.Random(seed).sample(places, count))
        for k in places:
            yield self.drop(k)


def _verdict(case: Case, rewrite: Callable[[Kernel], Kernel]) -> tuple[str, str] | None:
    try:
        return None if case(rewrite) else (WRONG, "")
    except Fault as fault:
        return NOTICED, type(fault).__name__
