"""Executing a program: teams of waves that run together, part at branches and meet again, and barriers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .counters import Counters
from .faults import EndlessLoop, Fault, Stuck, Unwritten
from .lds import Lds
from .memory import Memory
from .step import Control, Step
from .team import Team

# Of one wave; the longest kernels of the tests need a hundredth of it.
MOST_STEPS = 4_000_000
NOWHERE = 1 << 60


class Machine:
    """Some workgroups of one launch.

    The team at the lowest instruction runs until it reaches another, which it joins, or a barrier. A program
    of structured loops and conditions so executes each instruction once for all waves that need it.

    Args:
        steps: the program; memory: of the launch; lds: of these workgroups; counters: what is counted, if
        any. live: waves of each workgroup.
    """

    def __init__(
        self, steps: list[Step], memory: Memory, lds: Lds, live: Any, counters: Counters | None = None
    ) -> None:
        self.steps, self.memory, self.lds, self.counters = steps, memory, lds, counters
        self.live = np.array(live)
        self._ready: list[Team] = []
        self._parked: list[Team] = []
        self._budget = MOST_STEPS

    def run(self, team: Team) -> None:
        """Execute until all waves have ended."""
        self._ready = [team]
        with np.errstate(all="ignore"):
            while self._ready or self._parked:
                if not self._ready:
                    self._release()
                self._ready.sort(key=lambda each: each.pc)
                current = self._ready.pop(0)
                while self._ready and self._ready[0].pc == current.pc:
                    current = current.join(self._ready.pop(0))
                self._advance(current, self._ready[0].pc if self._ready else NOWHERE)

    def traffic(self, team: Team, instruction: Any, at: Any, on: Any, size: int, stores: bool) -> None:
        """An access to memory is about to happen."""
        if self.counters is not None:
            self.counters.memory(team, instruction, at, on, size, stores)

    def banks(self, team: Team, instruction: Any, at: Any, on: Any, size: int, shifts: list[int]) -> None:
        """An access to LDS is about to happen."""
        if self.counters is not None:
            self.counters.lds(team, instruction, at, on, size, shifts)

    def _advance(self, team: Team, limit: int) -> None:
        """Run a team until it ends, parks, parts, or passes the instruction where another waits."""
        steps, counters = self.steps, self.counters
        while True:
            step = steps[team.pc]
            self._budget -= 1
            if counters is not None:
                counters.issued(team.pc, team)
            try:
                if self._budget < 0:
                    raise EndlessLoop(f"more than {MOST_STEPS} instructions")
                if team.waits.owed:
                    team.waits.check(step.uses, step.writes - step.reads, step.counter)
                if step.needs and not step.needs <= team.written:
                    kind, index = min(step.needs - team.written)
                    raise Unwritten(f"{kind}{index} was never written")
                if step.run is not None:
                    step.run(self, team)
            except Fault as fault:
                raise type(fault)(f"{fault}: {step.source.text} (instruction {team.pc})") from None
            team.written |= step.writes
            if step.control is None:
                team.pc += 1
            elif step.control is Control.BRANCH:
                if not self._branch(team, step):
                    return
            elif step.control is Control.END:
                if counters is not None:
                    counters.ended(team)
                np.subtract.at(self.live, team.group, 1)
                return
            elif not self._barrier(team):
                return
            if team.pc >= limit:
                self._ready.append(team)
                return

    def _branch(self, team: Team, step: Step) -> bool:
        """Whether the team stays whole; else both parts are ready."""
        assert step.taken is not None
        taken = np.asarray(step.taken(team))
        if taken.all():
            team.pc = step.target
            return True
        if not taken.any():
            team.pc += 1
            return True
        goes, stays = team.part(taken), team.part(~taken)
        goes.pc, stays.pc = step.target, team.pc + 1
        self._ready += [goes, stays]
        return False

    def _barrier(self, team: Team) -> bool:
        """Whether the team may go on: all waves of its workgroups are in it."""
        team.pc += 1
        arrived = np.bincount(team.group, minlength=len(self.live))
        groups = np.flatnonzero(arrived)
        if (arrived[groups] == self.live[groups]).all():
            self.lds.barrier(groups)
            return True
        self._parked.append(team)
        return False

    def _release(self) -> None:
        """Nothing else can run: open the barriers of the workgroups whose waves have all arrived."""
        arrived = np.bincount(np.concatenate([team.group for team in self._parked]), minlength=len(self.live))
        groups = np.flatnonzero(arrived)
        if (arrived[groups] != self.live[groups]).any():
            raise Stuck("waves wait at a barrier that others of their workgroup do not reach")
        self.lds.barrier(groups)
        self._ready, self._parked = self._parked, []
