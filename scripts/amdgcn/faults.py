"""What must not happen in a kernel: each kind of it, as an exception."""

from __future__ import annotations


class Fault(Exception):
    """A kernel did what a card would answer with wrong numbers, a hang or a crash."""


class WildAccess(Fault):
    """An address outside the tensors of the launch."""


class Misaligned(Fault):
    """An address that is not a multiple of what the access needs."""


class LdsBounds(Fault):
    """LDS beyond what the launch asked for."""


class LdsRace(Fault):
    """Two waves touched a word of LDS, one of them wrote it, and no barrier lay between."""


class MemoryRace(Fault):
    """A launch loaded what it had stored: another compute unit's cache may hold what was there before."""


class Unwritten(Fault):
    """A register or a word of LDS was read that nothing has written."""


class MissingWait(Fault):
    """A register was used that a load still owes."""


class EndlessLoop(Fault):
    """More instructions than a kernel of this size can need."""


class Stuck(Fault):
    """Waves wait at a barrier that others of their workgroup left without."""


class BadArguments(Fault):
    """The arguments do not have the sizes that the code object declares."""


class UnknownInstruction(Fault):
    """An instruction, an operand or a modifier that the tables do not have."""
